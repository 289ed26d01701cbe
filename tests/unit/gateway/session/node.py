"""A node in memory for session tests: a log, a writer that commits when told, updates that are scripted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.messages import Hello, Message, Position, decode_cbor, decode_json
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.clock import FakeClock
from gateway.errors import NotFoundError, StorageUnavailableError
from gateway.fleet.alerts import AlertLimits, Alerts, AlertSigner, LogReader
from gateway.fleet.facts import HotWrite
from gateway.fleet.log import AlertLog
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
from gateway.hub import Channel as HubChannel
from gateway.hub import Hub, HubLimits, device_channel
from gateway.identity import Verdict
from gateway.rollout import Offer
from gateway.session.limits import SessionLimits
from gateway.session.ports import Node
from gateway.session.session import Session
from gateway.telemetry import Metrics

FLEET = Fleet(1, FleetName("acme"), 0, 0)
KEY = PrivateKey.from_seed(b"a" * 32)
EPOCH = 7


class MemoryLog:
    """Messages by channel; ``log_range`` and ``append`` as the store has them."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self.rows: dict[int, list[StoredMessage]] = {}
        self.reads = 0

    def add(self, name: str) -> Channel:
        id = len(self.channels) + 1
        channel = Channel(id, 1, ChannelName(name), "alert", EPOCH, 0, 0, False, None, None, 1, 0)
        self.channels[name] = channel
        self.rows[id] = []
        return channel

    async def log_range(self, channel_id: int, first: int, last: int) -> LogRange:
        self.reads += 1
        channel = next(channel for channel in self.channels.values() if channel.id == channel_id)
        rows = tuple(row for row in self.rows[channel_id] if first <= row.offset <= last)
        return LogRange(channel.epoch, channel.head, channel.floor, rows)

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
        found = self.channels[channel]
        added = []
        for draft in drafts:
            found = replace(found, head=found.head + 1)
            payload, signature = seal(FLEET.name, found.name, found.epoch, found.head, draft)
            if draft.key is not None:
                self.rows[found.id] = [
                    replace(row, superseded_by=found.head) if row.key == draft.key else row
                    for row in self.rows[found.id]
                ]
            added.append(
                StoredMessage(
                    found.id,
                    found.head,
                    draft.id,
                    payload,
                    signature,
                    kid,
                    draft.key,
                    None,
                    draft.original_id,
                    now_ms,
                    draft.expires_at,
                )
            )
        self.rows[found.id] += added
        self.channels[channel] = found
        return Appended(found, tuple(added))

    def prune(self, name: str, floor: int) -> None:
        channel = self.channels[name] = replace(self.channels[name], floor=floor)
        self.rows[channel.id] = [row for row in self.rows[channel.id] if row.offset > floor]


class MemoryWriter:
    """Keeps what was written; ``commit`` is answered at once unless it is told to hold or to fail."""

    def __init__(self) -> None:
        self.writes: list[HotWrite] = []
        self.results: dict[type, Any] = {}
        self.is_full = False
        self.is_held = False
        self.fails = False
        self.held: list[asyncio.Future[Any]] = []
        self.room = asyncio.Event()

    def put(self, write: HotWrite) -> None:
        self.writes.append(write)

    def commit(self, write: HotWrite) -> asyncio.Future[Any]:
        self.writes.append(write)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.fails:
            future.set_exception(StorageUnavailableError("away"))
        elif self.is_held:
            self.held.append(future)
        else:
            future.set_result(self.results.get(type(write)))
        return future

    async def drained(self) -> None:
        await self.room.wait()

    def of(self, kind: type[Any]) -> list[Any]:
        return [write for write in self.writes if isinstance(write, kind)]


class MemorySubscriptions:
    """What a device's subscriptions are when they are read again."""

    def __init__(self) -> None:
        self.found: tuple[ConnectedSubscription, ...] = ()

    async def connected_subscriptions(self, device_key: int) -> Sequence[ConnectedSubscription]:
        return self.found


class Directory:
    """What is stored of devices. An answer is what is there when it is asked for, and comes when let go."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[ConnectedSubscription, ...]] = {}
        self.keys: dict[str, int] = {}
        self.root: bytes | None = None
        self.deployments: list[tuple[int, bytes]] = []
        self.failures = 0
        self.asked: list[tuple[str, Any]] = []
        self.is_held = False
        self.gates: list[asyncio.Event] = []

    async def connected_subscriptions(self, device_key: int) -> Sequence[ConnectedSubscription]:
        if device_key not in self.found:
            raise NotFoundError("the device is gone")
        found = self.found[device_key]
        await self._asked("subscriptions", device_key)
        return found

    async def root_document(self, fleet_key: int) -> tuple[int, bytes | None]:
        root = self.root
        await self._asked("root", fleet_key)
        return 1, root

    async def device(self, fleet_key: int, device_id: DeviceId) -> Any:
        await self._asked("device", device_id)
        if device_id not in self.keys:
            raise NotFoundError("no such device")
        return type("Row", (), {"key": self.keys[device_id], "enrolment_id": b"e" * 16})

    async def cancelling(self, device_keys: Sequence[int]) -> Sequence[tuple[int, bytes]]:
        found = [one for one in self.deployments if one[0] in device_keys]
        await self._asked("cancelling", tuple(device_keys))
        return found

    async def _asked(self, what: str, of: Any) -> None:
        self.asked.append((what, of))
        if self.failures:
            self.failures -= 1
            raise StorageUnavailableError("away")
        if self.is_held:
            self.gates.append(asyncio.Event())
            await self.gates[-1].wait()


class ScriptedUpdates:
    error: Exception | None = None

    def __init__(self) -> None:
        self.offers: list[Offer] = []
        self.redeliveries: list[Offer | None] = []
        self.asked: list[Sequence[int]] = []

    async def offer(self, device_keys: Sequence[int]) -> Sequence[Offer]:
        self.asked.append(device_keys)
        if self.error is not None:
            raise self.error
        offers, self.offers = self.offers, []
        return offers

    async def redeliver(self, device_key: int, deployment_id: bytes) -> Offer | None:
        if self.error is not None:
            raise self.error
        return self.redeliveries.pop(0)


class Wire:
    """Frames as a connection would get them."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.frames.append(data)


class PushedSession(Session):
    """A session whose transport is a list."""

    __slots__ = ("codes", "holds", "sent")

    def __init__(self, node: Node, *, is_json: bool = False, device: str = "d1") -> None:
        super().__init__(
            node,
            Verdict(DeviceId(device), FLEET.name),
            is_json=is_json,
            now=node.clock.monotonic(),
        )
        self.sent: list[bytes] = []
        self.codes: list[CloseCode] = []
        self.holds = 0
        self.connection = self

    def write(self, data: bytes) -> None:
        self.sent.append(_payload(data))

    @property
    def can_send(self) -> bool:
        return not self.is_stalled

    @property
    def is_pushed(self) -> bool:
        return True

    def _send(self, messages: Sequence[bytes]) -> None:
        self.sent += messages

    def _end(self, code: CloseCode) -> None:
        self.codes.append(code)

    def _hold_input(self) -> None:
        self.holds += 1

    def _take_input(self) -> None:
        self.holds -= 1

    def taken(self) -> list[Message]:
        """Return what was sent since the last call."""
        sent, self.sent = self.sent, []
        decode = decode_json if self.is_json else decode_cbor
        return [message for data in sent if (message := decode(data)) is not None]


def _payload(frame: bytes) -> bytes:
    size = frame[1]
    return frame[2:] if size < 126 else frame[4:] if size == 126 else frame[10:]


@dataclass
class World:
    """Everything a session test has."""

    limits: SessionLimits = field(default_factory=SessionLimits)
    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryLog = field(default_factory=MemoryLog)
    writer: MemoryWriter = field(default_factory=MemoryWriter)
    updates: ScriptedUpdates = field(default_factory=ScriptedUpdates)
    subscriptions: MemorySubscriptions = field(default_factory=MemorySubscriptions)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        signer = AlertSigner(KEY, self.metrics)
        self.log = AlertLog(
            self.store, resign=signer.resign, metrics=self.metrics, size_bytes_max=1 << 20, reads_max=4
        )
        self.hub = Hub(LogReader(self.log), clock=self.clock, limits=HubLimits(0.0, 0.0))
        self.tasks: set[asyncio.Task[None]] = set()
        self.failures: list[BaseException] = []
        self.alerts = Alerts(
            self.store,
            hub=self.hub,
            log=self.log,
            signer=signer,
            clock=self.clock,
            metrics=self.metrics,
            limits=AlertLimits(),
        )
        self.node = Node(
            clock=self.clock,
            random=random.Random(1),
            hub=self.hub,
            log=self.log,
            writer=self.writer,
            updates=self.updates,
            subscriptions=self.subscriptions,
            limits=self.limits,
            metrics=self.metrics,
            spawn=self._spawn,
        )

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)

    def hub_channel(self, name: str) -> HubChannel | None:
        return self.hub.channel(device_channel(FLEET.key, ChannelName(name)))

    async def settle(self) -> None:
        """Let everything that can run, run."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def publish(self, channel: str, count: int = 1, **options: Any) -> None:
        for number in range(count):
            await self.alerts.publish(
                FLEET,
                ChannelName(channel),
                data=options.get("data", b"%d" % number),
                content_type="text/plain",
                **{name: value for name, value in options.items() if name != "data"},
            )

    def connected(self, *names: str, **changes: Any) -> Connected:
        """Return what a hello finds: subscriptions at the stored offset 0, or as ``changes`` say."""
        subscriptions = []
        for name in names:
            channel = self.store.channels[name]
            given: dict[str, Any] = {
                "id": 100 + channel.id,
                "channel_id": channel.id,
                "channel": channel.name,
                "kind": "alert",
                "epoch": EPOCH,
                "offset": 0,
                "stuck_offset": 0,
                "attempts": 0,
                "channel_epoch": channel.epoch,
                "head": channel.head,
                "floor": channel.floor,
            }
            given.update(changes)
            subscriptions.append(ConnectedSubscription(**given))
        return Connected(1, 11, b"e" * 16, 0, None, tuple(subscriptions), 0, None)

    def session(
        self,
        *names: str,
        window: int = 32,
        positions: Mapping[str, Position] | None = None,
        connected: Connected | None = None,
        is_json: bool = False,
        boot_id: bytes = b"b" * 16,
        statement: bytes | None = None,
        of: type[PushedSession] = PushedSession,
        **attributes: Any,
    ) -> Any:
        session = of(self.node, is_json=is_json)
        for name, value in attributes.items():
            setattr(session, name, value)
        hello = Hello(protocol=1, window=window, boot_id=boot_id, positions=positions or {})
        session.start(
            hello,
            connected or self.connected(*names),
            statement=statement,
            spread_s=0,
            now=self.clock.monotonic(),
        )
        return session
