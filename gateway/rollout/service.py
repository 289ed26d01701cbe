"""Rollouts as operators work with them: start, widen, pause, resume, finish, abort, and look.

Each action is one transaction of the store; listeners are told after its commit, and that is a hint: a
session that misses it finds its deployment at its next hello.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final, Protocol

from device_sdk.wire.names import ChannelName, DeviceId
from gateway.errors import PeerError, StorageUnavailableError
from gateway.fleet.acts import Act, Replay
from gateway.fleet.model import Fleet
from gateway.ids import random_uint32, uuid7
from gateway.rollout.deployment import State
from gateway.rollout.model import Changed, DeploymentRow, NewRollout, RolloutFilter
from gateway.rollout.rollout import Action, Rollout
from gateway.rollout.selector import parse_selector
from gateway.rollout.store import RolloutStore
from gateway.telemetry import Metrics

NAME_LEN_MAX: Final = 128
PRIORITY_MAX: Final = 1000  # and as far below 0


class RolloutListener(Protocol):
    """Who is told of changes, on the loop and after the commit. Nothing here waits or raises."""

    def rollout_changed(self, channel_id: int) -> None:
        """Devices of the channel may have something new to get."""
        ...

    def cancelled(self, channel_id: int, rollout_id: bytes) -> None:
        """The rollout was aborted: what its devices have in hand is to be cancelled."""
        ...


class RolloutService:
    """Rollouts of every fleet.

    Args:
        store: The truth.
    """

    def __init__(self, store: RolloutStore, *, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._listeners: list[RolloutListener] = []

    def subscribe(self, listener: RolloutListener) -> None:
        """Tell ``listener`` of every change from now on."""
        self._listeners.append(listener)

    async def start(
        self,
        fleet: Fleet,
        *,
        release_id: bytes,
        channel: ChannelName,
        percent: int,
        selector: str | None = None,
        name: str | None = None,
        priority: int = 0,
        now_ms: int,
        act: Act[Rollout] | None = None,
    ) -> Rollout | Replay:
        """Start a rollout of a release to ``percent`` of the channel's devices that ``selector`` matches.

        Args:
            name: None: the release's.
            priority: The higher goes first where several rollouts want one component of a device.

        Raises:
            SelectorError: ``selector`` is none.
            PeerError: (``bad_percent``, ``bad_name``, ``bad_priority``) Out of its bounds.
            NotFoundError: No such release or channel.
            ConflictError: (``wrong_kind``) The channel carries alerts; (``artifact_missing``) the release's
                image is to come from this gateway, which has not got it; (``idempotency_key_reused``).
        """
        _check_percent(percent)
        if selector is not None:
            parse_selector(selector)
        if name is not None and not 1 <= len(name) <= NAME_LEN_MAX:
            raise PeerError(f"a name is 1..{NAME_LEN_MAX} characters", code="bad_name")
        if abs(priority) > PRIORITY_MAX:
            raise PeerError(f"a priority is -{PRIORITY_MAX}..{PRIORITY_MAX}", code="bad_priority")
        new = NewRollout(
            id=uuid7(now_ms),
            release_id=release_id,
            channel=channel,
            percent=percent,
            selector=selector,
            name=name,
            priority=priority,
            shift=random_uint32(),
        )
        started = await self._store.create_rollout(fleet.key, new, now_ms=now_ms, act=act)
        if isinstance(started, Rollout):
            await self._changed(started)
        return started

    async def change(
        self,
        fleet: Fleet,
        rollout_id: bytes,
        *,
        percent: int,
        version: int | None = None,
        now_ms: int,
        act: Act[Changed] | None = None,
    ) -> Rollout | Replay:
        """Widen a rollout. The boundary never moves back.

        Raises:
            PeerError: (``bad_percent``)
            NotFoundError: No such rollout.
            ConflictError: (``boundary_moves_up``) ``percent`` is lower than it was; (``rollout_state``) it is
                over; (``stale_version``) it is another version than ``version``.
        """
        _check_percent(percent)
        return await self._act(
            fleet, rollout_id, Action.WIDEN, percent=percent, version=version, now_ms=now_ms, act=act
        )

    async def pause(
        self, fleet: Fleet, rollout_id: bytes, *, now_ms: int, act: Act[Changed] | None = None
    ) -> Rollout | Replay:
        """Notify nobody, and send nothing again, until it is resumed.

        Raises:
            NotFoundError: No such rollout.
            ConflictError: (``rollout_state``) It is over.
        """
        return await self._act(fleet, rollout_id, Action.PAUSE, now_ms=now_ms, act=act)

    async def resume(
        self, fleet: Fleet, rollout_id: bytes, *, now_ms: int, act: Act[Changed] | None = None
    ) -> Rollout | Replay:
        """Go on. Raises as ``pause``."""
        return await self._act(fleet, rollout_id, Action.RESUME, now_ms=now_ms, act=act)

    async def finish(
        self, fleet: Fleet, rollout_id: bytes, *, now_ms: int, act: Act[Changed] | None = None
    ) -> Rollout | Replay:
        """Admit no more devices; deployments under way go on to their end. Raises as ``pause``."""
        return await self._act(fleet, rollout_id, Action.FINISH, now_ms=now_ms, act=act)

    async def abort(
        self, fleet: Fleet, rollout_id: bytes, *, now_ms: int, act: Act[Changed] | None = None
    ) -> Rollout | Replay:
        """End it, and cancel its deployments as far as they can be. Nothing is notified after this returns.

        Raises:
            NotFoundError: No such rollout.
        """
        return await self._act(fleet, rollout_id, Action.ABORT, now_ms=now_ms, act=act)

    async def rollout(self, fleet: Fleet, rollout_id: bytes) -> Rollout:
        """Return a rollout with its counts. Raises NotFoundError."""
        return await self._store.rollout(fleet.key, rollout_id)

    async def rollouts(
        self,
        fleet: Fleet,
        *,
        filter: RolloutFilter | None = None,
        is_newest_first: bool = False,
        after: bytes | None = None,
        limit: int = 100,
    ) -> Sequence[Rollout]:
        """Return rollouts by id, oldest first unless it is said, without their ``target_count``."""
        return await self._store.rollouts(
            fleet.key, filter=filter, is_newest_first=is_newest_first, after=after, limit=limit
        )

    async def deployments(
        self,
        fleet: Fleet,
        *,
        rollout_id: bytes | None = None,
        device_id: DeviceId | None = None,
        states: Collection[State] = (),
        is_newest_first: bool = False,
        after: bytes | None = None,
        limit: int = 100,
    ) -> Sequence[DeploymentRow]:
        """Return deployments of a rollout, of a device, or of both, by id, oldest first unless it is said.

        Args:
            states: In any of these; none: in whatever state.

        Raises:
            NotFoundError: No such rollout, or no such device.
        """
        return await self._store.deployments(
            fleet.key,
            rollout_id=rollout_id,
            device_id=device_id,
            states=states,
            is_newest_first=is_newest_first,
            after=after,
            limit=limit,
        )

    async def deployment(self, fleet: Fleet, deployment_id: bytes) -> DeploymentRow:
        """Return a deployment. Raises NotFoundError."""
        return await self._store.deployment(fleet.key, deployment_id)

    async def recover(self, *, now_ms: int) -> None:
        """At the start: finish what an abort may have left undone, and set the gauge of rollouts.

        Raises:
            StorageUnavailableError: As the store has it.
        """
        await self._cancel_rest(now_ms)
        await self._observe()

    async def _act(
        self,
        fleet: Fleet,
        rollout_id: bytes,
        action: Action,
        *,
        percent: int | None = None,
        version: int | None = None,
        now_ms: int,
        act: Act[Changed] | None,
    ) -> Rollout | Replay:
        changed = await self._store.change_rollout(
            fleet.key, rollout_id, action, percent=percent, version=version, now_ms=now_ms, act=act
        )
        if isinstance(changed, Replay):
            return changed
        self._metrics.deployments["cancelled"].inc(changed.cancelled_count)
        rollout = changed.rollout
        if action is Action.ABORT:
            self._cancelled(rollout)
            if await self._cancel_rest(now_ms):
                self._cancelled(rollout)
                rollout = await self._store.rollout(fleet.key, rollout_id)
        await self._changed(rollout)
        return rollout

    async def _cancel_rest(self, now_ms: int) -> int:
        total = 0
        while count := await self._store.cancel_rest(now_ms=now_ms):
            total += count
        self._metrics.deployments["cancelled"].inc(total)
        return total

    def _cancelled(self, rollout: Rollout) -> None:
        for listener in self._listeners:
            listener.cancelled(rollout.channel_id, rollout.id)

    async def _changed(self, rollout: Rollout) -> None:
        # An abort, too: what it stood in front of may now be what its devices should run.
        for listener in self._listeners:
            listener.rollout_changed(rollout.channel_id)
        with suppress(StorageUnavailableError):  # what was asked for is committed, a gauge can wait
            await self._observe()

    async def _observe(self) -> None:
        self._metrics.rollouts_are(await self._store.rollout_counts())


def _check_percent(percent: int) -> None:
    if not 1 <= percent <= 100:
        raise PeerError("percent is 1..100", code="bad_percent")
