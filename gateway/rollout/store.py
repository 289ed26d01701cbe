"""The port to stored rollouts and deployments; ``gateway.storage.rollouts`` implements it.

Every implementation promises, and ``tests/contract`` checks on SQLite and PostgreSQL:

* Each method is one transaction. A write that returned is committed; a database that fails is
  ``StorageUnavailableError``.
* A deployment is created only while its rollout's row is locked against an abort, running, and the device
  inside its boundary and matched by its selector: none is created after an abort returned (PROTOCOL §6.4).
* A device has at most one active deployment for each component.
* A boundary never moves back.
* Lists are bounded by ``limit`` and ordered by id, after ``after`` exclusively; or the other way round.
* What is given as ``act`` is written down in the transaction of the change; one that was done before changes
  nothing and is answered with its ``Replay``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from gateway.fleet.acts import Act, Replay
from gateway.rollout.deployment import State
from gateway.rollout.limits import UpdateLimits
from gateway.rollout.model import Changed, DeploymentRow, NewRollout, Pushes, RolloutFilter
from gateway.rollout.rollout import Action, Rollout


class RolloutStore(Protocol):
    """Rollouts, as operators change them, and deployments, as devices get them."""

    async def create_rollout(
        self,
        fleet_key: int,
        new: NewRollout,
        *,
        now_ms: int,
        act: Act[Rollout] | None = None,
    ) -> Rollout | Replay:
        """Raises NotFoundError (release or channel), ConflictError (``wrong_kind``, ``artifact_missing``,
        ``idempotency_key_reused``)."""
        ...

    async def change_rollout(
        self,
        fleet_key: int,
        rollout_id: bytes,
        action: Action,
        *,
        percent: int | None = None,
        version: int | None = None,
        now_ms: int,
        act: Act[Changed] | None = None,
    ) -> Changed | Replay:
        """``percent`` with ``widen`` only; ``version``: the one the operator saw.

        Raises NotFoundError, ConflictError (``rollout_state``, ``boundary_moves_up``, ``stale_version``,
        ``idempotency_key_reused``).
        """
        ...

    async def cancel_rest(self, *, now_ms: int) -> int:
        """Cancel some deployments of aborted rollouts that ``change_rollout`` left; return how many.

        An abort cancels a bounded number in its own transaction: call this until it returns 0.
        """
        ...

    async def rollout(self, fleet_key: int, rollout_id: bytes) -> Rollout:
        """Raises NotFoundError."""
        ...

    async def rollouts(
        self,
        fleet_key: int,
        *,
        filter: RolloutFilter | None = None,
        is_newest_first: bool = False,
        after: bytes | None = None,
        limit: int = 100,
    ) -> Sequence[Rollout]: ...

    async def rollout_counts(self) -> Mapping[str, int]:
        """How many rollouts of all fleets are in each state."""
        ...

    async def deployments(
        self,
        fleet_key: int,
        *,
        rollout_id: bytes | None = None,
        device_id: str | None = None,
        states: Collection[State] = (),
        is_newest_first: bool = False,
        after: bytes | None = None,
        limit: int = 100,
    ) -> Sequence[DeploymentRow]:
        """Of one rollout, of one device, or of both; in any of ``states``, if some are given."""
        ...

    async def deployment(self, fleet_key: int, deployment_id: bytes) -> DeploymentRow:
        """Raises NotFoundError."""
        ...

    async def concerned(self, device_keys: Sequence[int]) -> Sequence[int]:
        """Return those of the devices for which ``offer`` would find something. A read: nothing is locked."""
        ...

    async def offer(self, device_keys: Sequence[int], *, now_ms: int, limits: UpdateLimits) -> Pushes:
        """Create the deployments that these devices lack, and return those to push. At most 200 devices."""
        ...

    async def redeliver(
        self, device_key: int, deployment_id: bytes, *, now_ms: int, limits: UpdateLimits
    ) -> Pushes:
        """Raise the attempts of a deployment that was not acknowledged, if it may still be sent."""
        ...

    async def cancelling(self, device_keys: Sequence[int], *, now_ms: int) -> Sequence[tuple[int, bytes]]:
        """Return (device, deployment) for what these devices are to be told to cancel."""
        ...

    async def envelope(self, release_id: bytes) -> bytes:
        """Raises NotFoundError."""
        ...
