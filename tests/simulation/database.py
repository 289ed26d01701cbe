"""A fleet's database in memory: what the gateway's queries do, in plain Python, slowly or not at all.

Every answer takes a while and tells of the moment it was made, not of the one it arrives at. While the
database is away everything fails, and what fails at its end may have been committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from device_sdk.wire.names import ChannelName, DeviceId, own_channel
from gateway.errors import CredentialRefusedError, GatewayError, NotFoundError, StorageUnavailableError
from gateway.fleet.facts import (
    Adopted,
    Attempted,
    Connect,
    DeadLettered,
    Disconnected,
    IntervalClosed,
    IntervalOpened,
    Received,
    Sent,
)
from gateway.fleet.model import (
    Appended,
    Channel,
    Connected,
    ConnectedSubscription,
    Draft,
    Fleet,
    LogRange,
    StoredMessage,
)

Place = tuple[int, int, int]
"""(channel id, epoch, offset)."""


class _Connection:
    """What the writer asks whether the database answers."""

    def execute(self, statement: object) -> _Connection:
        return self

    def scalar(self) -> int:
        return 1


_CONNECTION = _Connection()


@dataclass
class Subscription:
    id: int
    device_key: int
    channel_id: int
    epoch: int
    offset: int
    start: int
    stuck_offset: int = 0
    attempts: int = 0


@dataclass
class Device:
    key: int
    device_id: DeviceId
    boot_id: bytes | None = None
    is_enabled: bool = True


@dataclass
class Interval:
    device_key: int
    channel_id: int
    epoch: int
    first: int
    last: int | None = None


@dataclass
class Database:
    """Rows, and how badly they are served.

    Attributes:
        fails: How often an answer is lost.
        is_away: Nothing is answered.
        latencies_s: At most, each way; one of these.
    """

    fleet: Fleet
    random: Random
    fails: float = 0.0
    is_away: bool = False
    latencies_s: Sequence[float] = (0.05, 0.05, 0.05, 1.0)
    channels: dict[str, Channel] = field(default_factory=dict)
    rows: dict[Place, StoredMessage] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    subscriptions: dict[tuple[int, int], Subscription] = field(default_factory=dict)
    intervals: dict[bytes, Interval] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    dead: dict[tuple[int, int, int, int], str] = field(default_factory=dict)
    on_received: Callable[[Received], None] = lambda _: None
    _ids: int = 0

    # --- how it is reached --------------------------------------------------------------------------------

    async def transaction(self, command: Callable[[Any], Any]) -> Any:
        await self._travel()
        result = command(_CONNECTION)
        await self._travel(is_lossy=True)
        return result

    async def _travel(self, *, is_lossy: bool = False) -> None:
        await asyncio.sleep(self.random.uniform(0, self.random.choice(self.latencies_s)))
        if self.is_away or (is_lossy and self.random.random() < self.fails):
            raise StorageUnavailableError("away")

    def _id(self) -> int:
        self._ids += 1
        return self._ids

    # --- channels and the log -----------------------------------------------------------------------------

    def create_channel(self, name: str) -> Channel:
        id, epoch = self._id(), self.random.getrandbits(32)
        made = Channel(id, 1, ChannelName(name), "alert", epoch, 0, 0, name[0] == "~", None, None, 1, 0)
        self.channels[name] = made
        return made

    def delete_channel(self, name: str) -> Channel:
        gone = self.channels.pop(name)
        self.subscriptions = {at: s for at, s in self.subscriptions.items() if s.channel_id != gone.id}
        return gone

    def channel_of(self, channel_id: int) -> Channel | None:
        return next((channel for channel in self.channels.values() if channel.id == channel_id), None)

    def prune(self, name: str, floor: int) -> None:
        channel = self.channels[name]
        floor = max(channel.floor, min(floor, channel.head))
        self.channels[name] = replace(channel, floor=floor)

    async def append(
        self,
        fleet_key: int,
        channel: str,
        drafts: Sequence[Draft],
        *,
        now_ms: int,
        kid: bytes,
        seal: Any,
        **_: Any,
    ) -> Appended:
        await self._travel()
        at = self.channels.get(channel)
        if at is None:
            raise NotFoundError("no such channel")
        added = []
        for draft in drafts:
            at = replace(at, head=at.head + 1)
            payload, signature = seal(self.fleet.name, at.name, at.epoch, at.head, draft)
            if draft.key is not None:
                for place, row in self.rows.items():
                    if place[:2] == (at.id, at.epoch) and row.key == draft.key and row.superseded_by is None:
                        self.rows[place] = replace(row, superseded_by=at.head)
            message = StoredMessage(
                at.id,
                at.head,
                draft.id,
                payload,
                signature,
                kid,
                draft.key,
                None,
                None,
                now_ms,
                draft.expires_at,
            )
            self.rows[at.id, at.epoch, at.head] = message
            added.append(message)
        self.channels[channel] = at
        await self._travel(is_lossy=True)
        return Appended(at, tuple(added))

    async def log_range(self, channel_id: int, first: int, last: int) -> LogRange:
        await self._travel()
        at = self.channel_of(channel_id)
        if at is None:
            raise NotFoundError("the channel is gone")
        offsets = range(max(first, at.floor + 1), min(last, at.head) + 1)
        found = LogRange(
            at.epoch, at.head, at.floor, tuple(self.rows[at.id, at.epoch, offset] for offset in offsets)
        )
        await self._travel()
        return found

    # --- devices and subscriptions ------------------------------------------------------------------------

    async def device(self, fleet_key: int, device_id: DeviceId) -> Device:
        await self._travel()
        if device_id not in self.devices:
            raise NotFoundError("no such device")
        return self.devices[device_id]

    async def root_document(self, fleet_key: int) -> tuple[int, bytes | None]:
        return 0, None

    async def cancelling(self, device_keys: Sequence[int]) -> Sequence[tuple[int, bytes]]:
        return ()

    def subscribe(self, device_key: int, name: str) -> None:
        at = self.channels[name]
        if (device_key, at.id) not in self.subscriptions:
            start = at.floor if at.starts_at_earliest else at.head
            self.subscriptions[device_key, at.id] = Subscription(
                self._id(), device_key, at.id, at.epoch, start, start
            )

    def unsubscribe(self, device_key: int, name: str) -> None:
        self.subscriptions.pop((device_key, self.channels[name].id), None)

    async def connected_subscriptions(self, device_key: int) -> Sequence[ConnectedSubscription]:
        await self._travel()
        found = self._standing(device_key)
        await self._travel()
        return found

    def _standing(self, device_key: int) -> tuple[ConnectedSubscription, ...]:
        found = []
        for sub in self.subscriptions.values():
            at = self.channel_of(sub.channel_id)
            if sub.device_key != device_key or at is None:
                continue
            found.append(
                ConnectedSubscription(
                    id=sub.id,
                    channel_id=at.id,
                    channel=at.name,
                    kind="alert",
                    epoch=sub.epoch,
                    offset=sub.offset,
                    stuck_offset=sub.stuck_offset,
                    attempts=sub.attempts,
                    channel_epoch=at.epoch,
                    head=at.head,
                    floor=at.floor,
                    was_sent=self._was_sent(device_key, (at.id, sub.epoch, sub.offset + 1))
                    or sub.stuck_offset == sub.offset + 1,
                    dead=frozenset(
                        offset
                        for key, channel_id, epoch, offset in self.dead
                        if (key, channel_id, epoch) == (device_key, at.id, sub.epoch) and offset > sub.offset
                    ),
                )
            )
        return tuple(sorted(found, key=lambda one: one.channel))

    def _was_sent(self, device_key: int, place: Place) -> bool:
        return any(
            (v.device_key, v.channel_id, v.epoch) == (device_key, *place[:2])
            and v.first <= place[2]
            and (v.last is None or v.last >= place[2])
            for v in self.intervals.values()
        ) or any(
            (f.device_key, f.channel_id, f.epoch) == (device_key, *place[:2])
            and f.first <= place[2] <= f.last
            for f in self.sent
        )

    # --- hot writes ---------------------------------------------------------------------------------------

    def handlers(self) -> Mapping[type, Callable[[Any, Sequence[Any]], Sequence[Any]]]:
        one_by_one: dict[type, Callable[[Any], Any]] = {
            Connect: self._connect,
            IntervalOpened: self._interval_opened,
            IntervalClosed: self._interval_closed,
            Sent: self.sent.append,
            Attempted: self._attempted,
            DeadLettered: self._dead_lettered,
            Adopted: self._adopted,
            Received: self._received,
            Disconnected: lambda _: None,
        }

        def handler(apply: Callable[[Any], Any]) -> Callable[[Any, Sequence[Any]], Sequence[Any]]:
            return lambda _, writes: [apply(write) for write in writes]

        return {kind: handler(apply) for kind, apply in one_by_one.items()}

    def _connect(self, write: Connect) -> Connected | GatewayError:
        device_id = write.verdict.device_id
        device = self.devices.setdefault(device_id, Device(self._id(), device_id))
        if not device.is_enabled:
            return CredentialRefusedError("disabled", code="device_disabled")
        own = own_channel(device_id)
        if own not in self.channels:
            self.create_channel(own)
        self.subscribe(device.key, own)
        for sub in self._of(device.key):
            at = self.channel_of(sub.channel_id)
            told = write.hello.positions.get(at.name) if at is not None else None
            if at is not None and told is not None and told.epoch == sub.epoch == at.epoch:
                self._move(sub, told.offset, sub.offset + 1)
        standing = self._standing(device.key)
        self._close_by_proof(device.key)
        previous, device.boot_id = device.boot_id, write.hello.boot_id
        return Connected(self.fleet.key, device.key, b"e" * 16, 0, previous, standing, 0, None)

    def _of(self, device_key: int) -> list[Subscription]:
        return [sub for sub in self.subscriptions.values() if sub.device_key == device_key]

    def _close_by_proof(self, device_key: int | None = None) -> None:
        for interval in self.intervals.values():
            if interval.last is None and device_key in (None, interval.device_key):
                sub = self.subscriptions.get((interval.device_key, interval.channel_id))
                proved = sub.offset if sub is not None and sub.epoch == interval.epoch else 0
                interval.last = max(proved, interval.first - 1)

    def close_intervals(self) -> None:
        """What a node does as it starts."""
        self._close_by_proof()

    def _interval_opened(self, write: IntervalOpened) -> None:
        self.intervals.setdefault(
            write.id, Interval(write.device_key, write.channel_id, write.epoch, write.first)
        )

    def _interval_closed(self, write: IntervalClosed) -> None:
        if write.id in self.intervals:
            self.intervals[write.id].last = write.last

    def _subscription(self, id: int) -> Subscription | None:
        return next((sub for sub in self.subscriptions.values() if sub.id == id), None)

    def _attempted(self, write: Attempted) -> None:
        sub = self._subscription(write.subscription_id)
        if sub is not None and sub.offset < write.stuck_offset and sub.stuck_offset <= write.stuck_offset:
            is_same = sub.stuck_offset == write.stuck_offset
            sub.attempts = max(sub.attempts, write.attempts) if is_same else write.attempts
            sub.stuck_offset = write.stuck_offset

    def _dead_lettered(self, write: DeadLettered) -> None:
        self.dead.setdefault((write.device_key, write.channel_id, write.epoch, write.offset), write.reason)

    def _adopted(self, write: Adopted) -> None:
        sub = self._subscription(write.subscription_id)
        if sub is not None:
            sub.epoch, sub.offset, sub.stuck_offset, sub.attempts = write.epoch, write.offset, 0, 0

    def _received(self, write: Received) -> None:
        sub = self._subscription(write.subscription_id)
        if sub is not None and sub.epoch == write.epoch:
            self._move(sub, write.last, write.first)

    def _move(self, sub: Subscription, upto: int, first: int) -> None:
        at = self.channel_of(sub.channel_id)
        if at is None or not sub.offset < upto <= at.head:
            return
        fact = Received(sub.id, sub.device_key, at.id, sub.epoch, first, upto)
        self.on_received(fact)
        self.received.append(fact)
        sub.offset = upto
        if sub.stuck_offset <= upto:
            sub.stuck_offset = sub.attempts = 0
