"""A device as the contract has it, and no more: it believes offsets, stores, acknowledges, comes back.

Whatever it is sent must go on where it stands or be known already. A hole ends the simulation.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, Protocol

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import (
    Ack,
    Advance,
    Alert,
    Error,
    Goaway,
    Hello,
    Lost,
    Message,
    Nack,
    Position,
    Subscriptions,
    Welcome,
    decode_cbor,
    decode_json,
    encode_cbor,
)
from device_sdk.wire.names import DeviceId
from gateway.edge.device.events import EventSession, EventStream
from gateway.edge.device.poll import parse_cursor
from gateway.edge.device.socket import SocketSession
from gateway.errors import GatewayError
from gateway.identity import Credential, Verdict
from gateway.session.conversation import State
from tests.simulation.node import SimulatedNode

CREDENTIAL = Credential.from_headers([("Authorization", "Bearer t")])
Place = tuple[str, int, int]
"""(channel, epoch, offset)."""


class Surroundings(Protocol):
    """What a device is in."""

    node: SimulatedNode
    random: Random
    is_calm: bool

    def fail(self, what: str) -> None: ...

    def out_of_step(self, device: SimulatedDevice) -> None:
        """A device is told that its connection lost continuity."""
        ...


class Reconnect(Exception):
    """End this connection and say hello anew."""


@dataclass
class SimulatedDevice:
    """One device.

    Attributes:
        positions: On its flash.
        stored: The highest offset of each (channel, epoch) that ever was on its flash.
        alerts: What it was given, by place.
        passed: Offsets that it was told will not come, with the reason.
        written: What the gateway wrote to its connections, by place.
    """

    surroundings: Surroundings
    device_id: str
    transport: Literal["socket", "poll", "stream"]
    boot: int = 0
    positions: dict[str, Position] = field(default_factory=dict)
    stored: dict[tuple[str, int], int] = field(default_factory=dict)
    alerts: set[Place] = field(default_factory=set)
    passed: dict[Place, str] = field(default_factory=dict)
    written: set[Place] = field(default_factory=set)
    connections: int = 0
    is_connected: bool = False

    @property
    def random(self) -> Random:
        return self.surroundings.random

    @property
    def verdict(self) -> Verdict:
        node = self.surroundings.node
        return Verdict(DeviceId(self.device_id), node.database.fleet.name, judged_at=node.node.clock.now_ms())

    async def live(self) -> None:
        """Be connected most of the time, for ever."""
        while True:
            self.connections += 1
            link = LINKS[self.transport](self)
            try:
                await link.converse()
            except Reconnect:
                pass
            finally:
                self.is_connected = False
            self._suffer()
            most_s = 0.5 if self.surroundings.is_calm else self.random.choice([0.1, 0.1, 2, 15])
            await asyncio.sleep(self.random.uniform(0.0, most_s))

    def _suffer(self) -> None:
        """What may happen to a device between two connections."""
        if self.surroundings.is_calm:
            return
        if self.random.random() < 0.2:
            self.boot += 1
        if self.random.random() < 0.1:
            for name, at in self.positions.items():  # flash that lost the last writes
                self.positions[name] = Position(at.epoch, max(0, at.offset - self.random.randint(0, 9)))
        if self.random.random() < 0.03:
            self.positions = {}  # all of it: the gateway's word is what there is

    def hello(self) -> Hello:
        window = self.random.choice([1, 4, 16, 64]) if not self.surroundings.is_calm else 32
        return Hello(
            protocol=1,
            window=window,
            boot_id=self.boot.to_bytes(16, "big"),
            positions=dict(self.positions),
        )

    def receive(self, message: Message) -> bool:
        """Take one message; return whether something is to be acknowledged.

        Raises:
            Reconnect: The gateway does not know where this device stands.
        """
        match message:
            case Welcome():
                self.is_connected = True
                for name in [name for name in self.positions if name not in message.heads]:
                    del self.positions[name]
            case Lost():
                self._stand(message.channel, Position(message.epoch, message.offset))
                return True
            case Subscriptions():
                for name in message.removed:
                    self.positions.pop(name, None)
                for name, at in message.added.items():
                    self._stand(name, at)
            case Alert():
                if self._follows(message.channel, message.epoch, message.offset, message.offset):
                    self.alerts.add((message.channel, message.epoch, message.offset))
                    self._stand(message.channel, Position(message.epoch, message.offset))
                return True
            case Advance():
                at = self.positions.get(message.channel)
                if self._follows(message.channel, message.epoch, message.first, message.last):
                    first = message.first if at is None else at.offset + 1
                    for offset in range(first, message.last + 1):
                        self.passed[message.channel, message.epoch, offset] = message.reason
                    self._stand(message.channel, Position(message.epoch, message.last))
                return True
            case Error():
                raise Reconnect
            case Goaway():
                pass
            case _:
                self.surroundings.fail(f"{self.device_id} was sent {message}")
        return False

    def _stand(self, name: str, at: Position) -> None:
        self.positions[name] = at
        known = self.stored.get((name, at.epoch), 0)
        self.stored[name, at.epoch] = max(known, at.offset)

    def _follows(self, name: str, epoch: int, first: int, last: int) -> bool:
        at = self.positions.get(name)
        if at is None:
            return True
        if at.epoch != epoch or first > at.offset + 1:
            self.surroundings.fail(
                f"{self.device_id} stands at {name} {at} and is sent {epoch} {first}..{last}"
            )
        return last > at.offset


class SocketLink:
    """A WebSocket over a slow, thin and unreliable network: the device's side and the gateway's."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.random = device.random
        self.write_buffer_size = 0
        self.closed_by_us = False
        self._down: deque[bytes] = deque()  # on its way to the device
        self._up: deque[bytes] = deque()  # read by the gateway when it reads
        self._has_down = asyncio.Event()
        self._is_reading = True
        self._is_paused = False
        self._is_open = True  # as the gateway sees it
        self._is_over = False  # as the device sees it
        self.session = SocketSession(
            device.surroundings.node.admission,
            CREDENTIAL.packed(),
            device.verdict,
            is_json=False,
            now=device.surroundings.node.node.clock.monotonic(),
        )
        self.session.connection = self  # type: ignore[assignment]
        device.surroundings.node.admission.entered(self.session, "websocket")

    # --- the gateway's side: a ``gateway.websocket.Connection`` -------------------------------------------

    def write(self, data: bytes) -> None:
        if not self._is_open:
            return
        for message in _messages(data):
            self._note(message)
            self._down.append(message)
        self.write_buffer_size += len(data)
        self._has_down.set()
        if self.write_buffer_size > 3_000 and not self._is_paused:
            self._is_paused = True
            self.session.paused()

    def _note(self, message: bytes) -> None:
        found = decode_cbor(message)
        if isinstance(found, Alert):
            self.device.written.add((found.channel, found.epoch, found.offset))

    def ping(self) -> None:
        if not self._is_over:
            _later(self.random.uniform(0.01, 1.0), lambda: self._is_open and self.session.pong(b""))

    def close(self, code: int, reason: str = "") -> None:
        if code == CloseCode.INSUFFICIENT_STATE:
            self.device.surroundings.out_of_step(self.device)
        self.closed_by_us = True
        self._is_open = False
        self._has_down.set()
        _later(self.random.uniform(0.01, 5.0), self._gone)

    def abort(self) -> None:
        self._is_open = False
        self._has_down.set()
        _later(0.0, self._gone)

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        _later(0.0, self._read)

    def _gone(self) -> None:
        self._is_open = False
        if not self.device.surroundings.node.is_dead:
            self.session.closed(1006, "")

    def _read(self) -> None:
        while self._up and self._is_reading and self._is_open:
            self.session.message(False, self._up.popleft())

    # --- the device's side --------------------------------------------------------------------------------

    async def converse(self) -> None:
        device, surroundings = self.device, self.device.surroundings
        node = surroundings.node
        self._say(device.hello())
        over_at = asyncio.get_running_loop().time() + self.random.expovariate(1 / 60)
        is_due = False
        try:
            while not node.is_dead:
                if not surroundings.is_calm and asyncio.get_running_loop().time() > over_at:
                    return
                try:
                    async with asyncio.timeout(self.random.uniform(0.05, 2)):
                        await self._has_down.wait()
                except TimeoutError:
                    pass
                if not self._down and not self._is_open:
                    return
                is_due = await self._take() or is_due
                if is_due and self.random.random() < 0.6:
                    self._acknowledge()
                    is_due = False
                if not surroundings.is_calm and self.random.random() < 0.03:
                    self._change_window()
        finally:
            self._is_over = True
            # The gateway learns of it at once, late, or when nobody answers its ping.
            _later(self.random.choice([0.0, 0.3, 30.0]), self._gone)

    async def _take(self) -> bool:
        """Take some of what arrived."""
        is_due = False
        for _ in range(min(len(self._down), self.random.randint(1, 20))):
            data = self._down.popleft()
            self.write_buffer_size -= min(len(data) + 4, self.write_buffer_size)
            message = decode_cbor(data)
            assert message is not None
            is_doubtful = not self.device.surroundings.is_calm and self.random.random() < 0.01
            if isinstance(message, Alert) and is_doubtful:  # it does not believe it, and moves on
                self._say(Nack(message.channel, message.epoch, message.offset, "bad_signature"))
            is_due = self.device.receive(message) or is_due
        if not self._down:
            self.write_buffer_size = 0
            self._has_down.clear()
        if self._is_paused and self.write_buffer_size < 1_000:
            self._is_paused = False
            if self._is_open:
                self.session.resumed()
        await asyncio.sleep(self.random.uniform(0, 0.1))
        return is_due

    def _acknowledge(self) -> None:
        positions = dict(self.device.positions)
        if positions:
            self._say(Ack(positions=positions))

    def _change_window(self) -> None:
        self._say(Ack(window=0))
        _later(self.random.uniform(0.1, 5), lambda: self._say(Ack(window=self.random.randint(1, 32))))

    def _say(self, message: Message) -> None:
        if not self._is_over and self._is_open:
            self._up.append(encode_cbor(message))
            _later(self.random.uniform(0.0, 0.05), self._arrived)

    def _arrived(self) -> None:
        if not self._is_over:
            self._read()


class PollLink:
    """Requests, of which the answers may be lost, and which may come twice."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.random = device.random

    async def converse(self) -> None:
        surroundings = self.device.surroundings
        node = surroundings.node
        session = await self._opened()
        if session is None:
            return
        cursor: dict[int, Position] | None = None
        over_at = asyncio.get_running_loop().time() + self.random.expovariate(1 / 60)
        while session.state is State.OPEN and not node.is_dead:
            if not surroundings.is_calm and cursor and self.random.random() < 0.05:
                cursor = self._forgetful(session, cursor)
            if not surroundings.is_calm and asyncio.get_running_loop().time() > over_at:
                return
            cursor = await self._poll(session, cursor)
            await asyncio.sleep(self.random.uniform(0.0, 0.3))

    def _forgetful(self, session: EventSession, cursor: dict[int, Position]) -> dict[int, Position]:
        """Lose what was written to flash last, while connected; return where that leaves the device."""
        cursor = dict(cursor)
        for lane in session.lanes:
            name, at = lane.channel.name, self.device.positions.get(lane.channel.name)
            if at is not None and at == cursor.get(lane.subscription_id):
                lower = Position(at.epoch, max(0, at.offset - self.random.randint(0, 9)))
                cursor[lane.subscription_id] = self.device.positions[name] = lower
        return cursor

    async def _opened(self) -> EventSession | None:
        """Say hello; return the session, if there is one."""
        device, node = self.device, self.device.surroundings.node
        session = EventSession(node.admission, device.verdict, is_json=False, now=node.node.clock.monotonic())
        node.admission.entered(session, "longpoll")
        try:
            await node.admission.connect(session, device.hello(), CREDENTIAL)
        except GatewayError:
            session.ended()
            return None
        except BaseException:
            session.ended()
            raise
        if session.state is not State.OPEN:
            return None
        node.admission.polled[device.verdict.fleet, device.verdict.device_id] = session
        for data in session.taken_at_hello():
            self._receive(data)
        return session

    async def _poll(
        self, session: EventSession, cursor: dict[int, Position] | None
    ) -> dict[int, Position] | None:
        """Poll once, perhaps twice; return the cursor to go on with."""
        is_calm = self.device.surroundings.is_calm
        wait_s = self.random.choice([0.0, 1.0, 10.0])
        first = asyncio.create_task(_answer(session, cursor, wait_s))
        if not is_calm and self.random.random() < 0.1:
            await asyncio.sleep(self.random.uniform(0, 0.2))
            second = asyncio.create_task(_answer(session, cursor, wait_s))
            await asyncio.gather(first, second)
            first = self.random.choice([first, second])
        answer = await first
        if answer is None or (not is_calm and self.random.random() < 0.1):
            return cursor  # nothing, or it was lost
        messages, etag = answer
        for data in messages:
            self._receive(data)
        is_posting = not is_calm and self.random.random() < 0.1 and self.device.positions
        if is_posting and not await self._acknowledge(session):
            return cursor
        return parse_cursor(etag)

    async def _acknowledge(self, session: EventSession) -> bool:
        """Post where the device stands; return whether that was answered."""
        try:
            errors = await session.acknowledge([Ack(positions=dict(self.device.positions))], 0.0)
        except GatewayError:
            return False
        if errors:
            raise Reconnect
        return True

    def _receive(self, data: bytes) -> None:
        # A session that streamed once goes on in JSON.
        message = decode_json(data) if data[:1] == b"{" else decode_cbor(data)
        assert message is not None
        self.device.receive(message)


class StreamLink(PollLink):
    """Streams of events, one after the other, with a poll in between now and then; acks are posted."""

    async def converse(self) -> None:
        surroundings = self.device.surroundings
        node = surroundings.node
        session = await self._opened()
        cursor: dict[int, Position] | None = None
        over_at = asyncio.get_running_loop().time() + self.random.expovariate(1 / 90)
        while session is not None and session.state is State.OPEN and not node.is_dead:
            if not surroundings.is_calm and asyncio.get_running_loop().time() > over_at:
                return
            if not surroundings.is_calm and self.random.random() < 0.2:
                cursor = await self._poll(session, cursor)
            else:
                cursor = await self._stream(node, session, cursor)
            await asyncio.sleep(self.random.uniform(0.0, 0.5))

    async def _stream(
        self, node: SimulatedNode, session: EventSession, cursor: dict[int, Position] | None
    ) -> dict[int, Position] | None:
        """Take a stream until it breaks or ends; return the cursor of what was taken last."""
        surroundings = self.device.surroundings
        response = SimulatedResponse(self.random)
        stream = EventStream(session, response, now=session.node.clock.monotonic())
        session.attach(stream, cursor, credential=CREDENTIAL)
        running = asyncio.create_task(_run(session, stream, response))
        breaks_at = asyncio.get_running_loop().time() + self.random.expovariate(1 / 20)
        try:
            while not node.is_dead:
                if not surroundings.is_calm and asyncio.get_running_loop().time() > breaks_at:
                    break
                event = await response.event(self.random.uniform(0.05, 2))
                if event is not None:
                    name, data = event
                    self._receive(data)
                    cursor = parse_cursor(name) if name is not None else cursor
                elif running.done():
                    break
                is_idle = event is None or surroundings.is_calm or self.random.random() < 0.2
                if is_idle and self.device.positions and not await self._acknowledge(session):
                    break
        finally:
            response.is_gone = True
            running.cancel()
        return cursor


class SimulatedResponse(asyncio.Transport):
    """A response whose body is a stream, and its connection in one."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.is_gone = False
        self._random = random
        self._events: deque[bytes] = deque()
        self._has_some = asyncio.Event()

    def is_closing(self) -> bool:
        return self.is_gone

    def abort(self) -> None:
        self.is_gone = True

    async def write(self, data: bytes) -> None:  # type: ignore[override]
        await asyncio.sleep(self._random.uniform(0, 0.1))
        if self.is_gone:
            raise ConnectionResetError
        self._events += [event for event in data.split(b"\n\n") if event.startswith(b"event:")]
        self._has_some.set()

    async def event(self, wait_s: float) -> tuple[str | None, bytes] | None:
        """Return the id and the data of the next event; None: none came."""
        if not self._events:
            self._has_some.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._has_some.wait()
            if not self._events:
                return None
        lines = dict(line.split(b": ", 1) for line in self._events.popleft().split(b"\n"))
        name = lines.get(b"id")
        return None if name is None else name.decode(), lines[b"data"]


async def _run(session: EventSession, stream: EventStream, response: Any) -> None:
    """What the route does with a stream."""
    with suppress(ConnectionResetError):
        try:
            await stream.run(response)
        finally:
            session.detach(stream)


LINKS: dict[str, type[SocketLink | PollLink]] = {
    "socket": SocketLink,
    "poll": PollLink,
    "stream": StreamLink,
}


async def _answer(
    session: EventSession, cursor: dict[int, Position] | None, wait_s: float
) -> tuple[list[bytes], str] | None:
    try:
        return await session.poll(cursor, wait_s=wait_s)
    except GatewayError:
        return None


def _later(seconds: float, do: Any) -> None:
    asyncio.get_running_loop().call_later(seconds, do)


def _messages(data: bytes) -> list[bytes]:
    """Return the payloads of the unmasked frames in ``data``."""
    found = []
    while data:
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        found.append(data[start : start + size])
        data = data[start + size :]
    return found
