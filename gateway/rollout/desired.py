"""Which release a device should run, and whether that takes a new deployment. Pure.

Per component one rollout is desired: the first by (priority, release sequence, rollout id), all descending
(PROTOCOL §6.5), of those that apply to the device. Only that one is ever notified: where it has ended for the
device, was rejected by it or is paused, an older release is not offered in its stead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from device_sdk.errors import ClockUnknownError, ExpiredError, InstallByPassedError
from device_sdk.wire.messages import Installed
from gateway.rollout.deployment import SUPERSEDABLE, State
from gateway.rollout.rollout import RolloutState

UNTIMELY_MAX: Final = 3
"""Deployments of one rollout that a device may refuse for their time; the last refusal stands."""

# These refuse the directive, which was too old when it was looked at; the release was not judged.
_UNTIMELY: Final = frozenset({ExpiredError.code, InstallByPassedError.code, ClockUnknownError.code})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rollout that applies to the device: it is admitted and matches, or it has a deployment already."""

    rollout_id: bytes
    state: RolloutState
    priority: int
    sequence: int
    release_id: bytes
    component: str
    manifest_digest: bytes

    @property
    def precedence(self) -> tuple[int, int, bytes]:
        """The higher goes first."""
        return (self.priority, self.sequence, self.rollout_id)


@dataclass(frozen=True, slots=True)
class Active:
    """The component's one deployment without an outcome."""

    deployment_id: bytes
    release_id: bytes
    state: State


@dataclass(frozen=True, slots=True)
class Past:
    """The last deployment of one rollout that has ended for the device."""

    attempt: int
    state: State
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Creation:
    """A deployment to create. ``supersedes`` is the one that ends for it."""

    candidate: Candidate
    attempt: int
    supersedes: Active | None


def creation(
    candidates: Iterable[Candidate],
    *,
    active: Active | None,
    past: Mapping[bytes, Past],
    installed: Installed | None,
    committed_sequence: int | None,
) -> Creation | None:
    """Return the deployment that the device lacks for a component, if it lacks one.

    Args:
        candidates: Of this component.
        past: By rollout.
        installed: What the device said it runs.
        committed_sequence: The highest sequence that a deployment is known to have committed.
    """
    desired = max(candidates, key=lambda candidate: candidate.precedence, default=None)
    if desired is None or desired.state is not RolloutState.RUNNING:
        return None
    if active is not None:
        if active.release_id == desired.release_id:
            return None  # its own, or another rollout's of the same release
        if active.state not in SUPERSEDABLE:
            return None  # it waits for the outcome, which asks again
    if installed is not None and installed.digest == desired.manifest_digest:
        return None
    if committed_sequence is not None and committed_sequence > desired.sequence:
        return None  # a newer rollout has ended or was aborted: that is no reason to go back
    before = past.get(desired.rollout_id)
    if before is None:
        return Creation(desired, 1, active)
    if not may_come_again(before):
        return None  # once for each device, whatever the outcome
    if installed is not None and installed.sequence > desired.sequence:
        return None
    return Creation(desired, before.attempt + 1, active)


def may_come_again(before: Past) -> bool:
    """Whether a rollout notifies a device a second time after its deployment ended like this."""
    if before.state is State.SUPERSEDED:
        return True
    return before.state is State.REJECTED and before.code in _UNTIMELY and before.attempt < UNTIMELY_MAX
