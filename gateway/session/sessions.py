"""The sessions of this node: one a device, the timer that visits them, and what changes while they are there.

One wheel serves every session: it is cut in slots, a session stands in the slot that a hash of its device
names, and each turn of the wheel visits each slot once. So there is no task and no timer for a connection,
and pings are spread over time by themselves.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar
from zlib import crc32

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Roots
from device_sdk.wire.names import DeviceId, FleetName
from gateway.errors import GatewayError, NotFoundError, UnavailableError
from gateway.fleet.model import Device
from gateway.hub import HubKey
from gateway.identity import RevocationRow
from gateway.session.conversation import State
from gateway.session.ports import Node, SubscriptionSource
from gateway.session.session import Session
from gateway.telemetry import logger

_log = logger("session")

_SLOTS: Final = 16
_OFFER_LEN: Final = 200  # devices in one question about updates
_VISIT_LEN: Final = 500  # sessions visited before the loop serves others
_CHANGES_LEN_MAX: Final = 4096  # changes remembered for hellos that are being committed
_RETRY_S: Final = 1.0  # until a question is asked again that the database did not answer

T = TypeVar("T")


class Visited(Protocol):
    """What the wheel visits: a session, or a connection that has not said hello yet."""

    def visit(self, now: float) -> None: ...


class SubscriptionStore(SubscriptionSource, Protocol):
    """What is read again when it changed."""

    async def root_document(self, fleet_key: int) -> tuple[int, bytes | None]: ...

    async def device(self, fleet_key: int, device_id: DeviceId) -> Device:
        """Raises NotFoundError."""
        ...


class CancelSource(Protocol):
    """Which deployments wait for a cancel to reach the device."""

    async def cancelling(self, device_keys: Sequence[int]) -> Sequence[tuple[int, bytes]]:
        """Return (device key, deployment id)."""
        ...


class _Changes:
    """What changed lately: a hello that was committed before a change may open its session after it."""

    def __init__(self) -> None:
        self.number = 0  # of changes so far
        self._forgotten = 0  # the newest that is not remembered
        self._last: OrderedDict[tuple[str, int], int] = OrderedDict()

    def note(self, kind: str, key: int) -> None:
        self.number += 1
        self._last[kind, key] = self.number
        self._last.move_to_end((kind, key))
        if len(self._last) > _CHANGES_LEN_MAX:
            _, self._forgotten = self._last.popitem(last=False)

    def are_known(self, since: int) -> bool:
        """Return whether all changes after ``since`` are remembered."""
        return self._forgotten <= since

    def has(self, kind: str, key: int, *, since: int) -> bool:
        return self._last.get((kind, key), 0) > since


class Sessions:
    """Every session of the node.

    Args:
        node: What sessions share.
        store: For subscriptions that change.
        cancels: For rollouts that are aborted.
        wheel_s: One turn of the wheel: how accurate deadlines are.
        sleep: ``asyncio.sleep``; a simulation brings its own.
    """

    def __init__(
        self,
        node: Node,
        *,
        store: SubscriptionStore,
        cancels: CancelSource,
        wheel_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.node = node
        self._store = store
        self._cancels = cancels
        self._wheel_s = wheel_s
        self._sleep = sleep
        self._slots: tuple[dict[Visited, None], ...] = tuple({} for _ in range(_SLOTS))
        self._by_device: dict[int, Session] = {}
        self._by_update_channel: defaultdict[int, dict[Session, None]] = defaultdict(dict)
        self._changes = _Changes()
        self._rereading: dict[int, bool] = {}  # device → whether what is being read may be too old already
        node.hub.unclaimed = self.unclaimed

    def __len__(self) -> int:
        return len(self._by_device)

    # --- coming and going ---------------------------------------------------------------------------------

    def watch(self, visited: Visited, name: str) -> None:
        """Have ``visited`` visited; ``name`` spreads the load."""
        self._slots[crc32(name.encode()) % _SLOTS][visited] = None

    def unwatch(self, visited: Visited, name: str) -> None:
        self._slots[crc32(name.encode()) % _SLOTS].pop(visited, None)

    def register(self, session: Session, device_key: int) -> None:
        """Make ``session`` the device's one session; the newest wins (PROTOCOL §5.6)."""
        old = self._by_device.get(device_key)
        self._by_device[device_key] = session
        if old is not None:
            self._leave_channels(old)
            old.close(CloseCode.REPLACED)

    def mark(self) -> int:
        """Return what ``opened`` is to be told: take it before the hello is committed."""
        return self._changes.number

    def opened(self, session: Session, *, since: int) -> None:
        """The session is open: its update channels are known, and what it missed between ``mark`` and now."""
        if session.state is not State.OPEN:
            return  # it ended as it began
        self._join_channels(session)
        changes, device_key = self._changes, session.device_key
        if changes.has("disabled", device_key, since=since):
            session.close(CloseCode.DEVICE_DISABLED)
        elif not changes.are_known(since):
            session.close(CloseCode.CHANGED)  # the device comes back at once, and finds all
        else:
            if changes.has("device", device_key, since=since):
                self._reread(device_key)
            if changes.has("root", session.fleet_key, since=since):
                self.node.spawn(self._give_root([session]), name=f"sessions.root[{device_key}]")
            if any(changes.has("cancelled", channel, since=since) for channel in session.update_channels):
                self.node.spawn(self._cancel([device_key]), name=f"sessions.cancel[{device_key}]")

    def forget(self, session: Session) -> None:
        """The session ended."""
        self._leave_channels(session)
        if self._by_device.get(session.device_key) is session:
            del self._by_device[session.device_key]

    def of_device(self, device_key: int) -> Session | None:
        return self._by_device.get(device_key)

    def _join_channels(self, session: Session) -> None:
        for channel_id in session.update_channels:
            self._by_update_channel[channel_id][session] = None

    def _leave_channels(self, session: Session) -> None:
        for channel_id in session.update_channels:
            members = self._by_update_channel.get(channel_id)
            if members is not None:
                members.pop(session, None)
                if not members:
                    del self._by_update_channel[channel_id]

    # --- time ---------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Turn the wheel for ever. A session whose visit fails is logged and does not stop it."""
        while True:
            for slot in self._slots:
                await self._sleep(self._wheel_s / _SLOTS)
                await self._visit_slot(slot)

    async def _visit_slot(self, slot: dict[Visited, None]) -> None:
        now = self.node.clock.monotonic()
        for number, visited in enumerate(tuple(slot), 1):
            try:
                visited.visit(now)
            except Exception:
                _log.exception("visit failed")
                if isinstance(visited, Session):
                    visited.close(CloseCode.INTERNAL_ERROR)
            if number % _VISIT_LEN == 0:
                await asyncio.sleep(0)

    # --- rollouts (``rollout.RolloutListener``) -----------------------------------------------------------

    def rollout_changed(self, channel_id: int) -> None:
        """More devices of the channel may be admitted: ask for those that are connected."""
        self.node.spawn(self._offer(channel_id), name=f"sessions.offer[{channel_id}]")

    def cancelled(self, channel_id: int, rollout_id: bytes) -> None:
        """A rollout was aborted: tell the connected devices that have a deployment of it."""
        self._changes.note("cancelled", channel_id)
        self.node.spawn(self._cancel(self._device_keys(channel_id)), name=f"sessions.cancel[{channel_id}]")

    async def _offer(self, channel_id: int) -> None:
        for keys in _chunks(self._device_keys(channel_id)):
            try:
                offers = await self.node.updates.offer(keys)
            except GatewayError as error:
                # The row is the truth: each of them is asked for again at its next hello or visit.
                _log.warning("updates not offered", code=error.code)
                for key in keys:
                    if (session := self._by_device.get(key)) is not None:
                        session.wants_offer = True
                continue
            for offer in offers:
                session = self._by_device.get(offer.device_key)
                if session is not None:
                    session.push(offer)

    async def _cancel(self, device_keys: Sequence[int]) -> None:
        for keys in _chunks(device_keys):
            cancelling = await self._answered(partial(self._cancels.cancelling, keys))
            for device_key, deployment in cancelling:
                session = self._by_device.get(device_key)
                if session is not None:
                    session.cancel(deployment)

    def _device_keys(self, channel_id: int) -> list[int]:
        return [session.device_key for session in self._by_update_channel.get(channel_id, ())]

    # --- a device's own channel -----------------------------------------------------------------------------

    def unclaimed(self, key: HubKey) -> None:
        """A channel that no session here has got an alert: a device's own, if it is connected (``Hub``)."""
        if key.kind == "device" and key.name.startswith("~"):
            self.node.spawn(self._wake(key), name=f"sessions.wake[{key.name}]")

    async def _wake(self, key: HubKey) -> None:
        try:
            device = await self._answered(partial(self._store.device, key.fleet, DeviceId(key.name[1:])))
        except NotFoundError:
            return
        if device.key in self._by_device:
            self._reread(device.key)

    # --- operators ----------------------------------------------------------------------------------------

    def subscriptions_changed(self, device_key: int) -> None:
        """The device's channels are others than before."""
        self._changes.note("device", device_key)
        if device_key in self._by_device:
            self._reread(device_key)

    def disabled(self, device_key: int) -> None:
        """The device was disabled or deleted."""
        self._changes.note("disabled", device_key)
        session = self._by_device.get(device_key)
        if session is not None:
            session.close(CloseCode.DEVICE_DISABLED)

    def revoked(
        self, fleet_key: int, *, device_key: int | None = None, token_sha256: bytes | None = None
    ) -> None:
        """A token, or all that the device has now, was taken back."""
        session = None if device_key is None else self._by_device.get(device_key)
        if session is not None and session.fleet_key == fleet_key:
            session.revoke()
        if token_sha256 is not None:
            self.node.spawn(self._revoke(fleet_key, token_sha256), name="sessions.revoke")

    async def _revoke(self, fleet_key: int, token_sha256: bytes) -> None:
        # No session is found by its token: they are looked at, which for 15,000 takes a third of a second.
        for number, session in enumerate(tuple(self._by_device.values()), 1):
            if session.fleet_key == fleet_key and session.token_sha256 == token_sha256:
                session.revoke()
            if number % _VISIT_LEN == 0:
                await asyncio.sleep(0)

    def taken_back(self, rows: Sequence[RevocationRow]) -> None:
        """Tokens and devices were revoked, here or on another node: end the sessions that stand on them."""
        tokens = {row.token_sha256: row.fleet for row in rows if row.token_sha256 is not None}
        devices = {(row.fleet, row.device_id): row.sequence for row in rows if row.device_id is not None}
        self.node.spawn(self._end_revoked(tokens, devices), name="sessions.taken_back")

    async def _end_revoked(
        self, tokens: Mapping[bytes, FleetName], devices: Mapping[tuple[FleetName, DeviceId], int]
    ) -> None:
        """Look at every session, those without a hello too: none is found by its token."""
        for slot in self._slots:
            for number, session in enumerate(tuple(slot), 1):
                if isinstance(session, Session) and session.state is not State.CLOSED:
                    verdict = session.verdict
                    if devices.get((verdict.fleet, verdict.device_id), 0) > verdict.seen or (
                        tokens and tokens.get(session.token_sha256) == verdict.fleet
                    ):
                        session.revoke()
                if number % _VISIT_LEN == 0:
                    await asyncio.sleep(0)

    async def enrolment_id(self, session: Session) -> bytes:
        """Return as which the session's device is enrolled. Raises NotFoundError: it is no more."""
        return (await self._store.device(session.fleet_key, session.verdict.device_id)).enrolment_id

    @property
    def all(self) -> list[Session]:
        """Every session that has not ended, those without a hello too."""
        return [visited for slot in self._slots for visited in slot if isinstance(visited, Session)]

    def is_connected(self, device_key: int) -> bool:
        return device_key in self._by_device

    def connected(self, fleet_key: int) -> frozenset[int]:
        """Return the keys of the fleet's devices that are connected."""
        return frozenset(key for key, session in self._by_device.items() if session.fleet_key == fleet_key)

    def next_attempt_s(self, device_key: int, deployment_id: bytes) -> float | None:
        """Return in how many seconds an update that is not acknowledged is sent again; None: not by us."""
        session = self._by_device.get(device_key)
        pending = None if session is None or session.pending is None else session.pending.get(deployment_id)
        return None if pending is None else max(0.0, pending.deadline - self.node.clock.monotonic())

    def channel_changed(self, channel_id: int) -> None:
        """The channel was changed or deleted: those who have it read their subscriptions again."""
        self.node.log.forget(channel_id)
        for session in tuple(self._by_device.values()):
            if channel_id in session.update_channels or any(
                lane.channel.id == channel_id for lane in session.lanes
            ):
                self.subscriptions_changed(session.device_key)

    def root_changed(self, fleet_key: int) -> None:
        """The fleet has a new root document: its connected devices are given it."""
        self._changes.note("root", fleet_key)
        of_fleet = [session for session in self._by_device.values() if session.fleet_key == fleet_key]
        self.node.spawn(self._give_root(of_fleet), name=f"sessions.root[{fleet_key}]")

    async def _give_root(self, sessions: Sequence[Session]) -> None:
        """Send the fleet's root document to these sessions, all of one fleet."""
        if not sessions:
            return
        fleet_key = sessions[0].fleet_key
        _, document = await self._answered(partial(self._store.root_document, fleet_key))
        if document is None:
            return
        for number, session in enumerate(sessions, 1):
            if session.state is State.OPEN:
                session.send(Roots((document,)))
            if number % _VISIT_LEN == 0:
                await asyncio.sleep(0)

    def _reread(self, device_key: int) -> None:
        """Read the device's subscriptions again; what is being read now may be older than the change."""
        if device_key in self._rereading:
            self._rereading[device_key] = True
        else:
            self._rereading[device_key] = False
            self.node.spawn(self._resubscribe(device_key), name=f"sessions.resubscribe[{device_key}]")

    async def _resubscribe(self, device_key: int) -> None:
        try:
            while (session := self._by_device.get(device_key)) is not None:
                self._rereading[device_key] = False
                found = await self._answered(partial(self._store.connected_subscriptions, device_key))
                if self._rereading[device_key] or self._by_device.get(device_key) is not session:
                    continue
                self._leave_channels(session)
                session.subscriptions_changed(found, self.node.clock.monotonic())
                if session.state is State.OPEN:
                    self._join_channels(session)
                return
        except NotFoundError:
            self.disabled(device_key)
        finally:
            del self._rereading[device_key]

    async def _answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to a question that nobody else will ask, however long the database is away."""
        while True:
            try:
                return await ask()
            except UnavailableError as error:
                _log.warning("asked again later", code=error.code)
            await self._sleep(_RETRY_S)


def _chunks(keys: Sequence[int]) -> Iterable[Sequence[int]]:
    for start in range(0, len(keys), _OFFER_LEN):
        yield keys[start : start + _OFFER_LEN]
