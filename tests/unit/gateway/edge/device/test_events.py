"""A device that holds a stream: live like any, resumed by cursor, acknowledged by POST, bounded if slow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Ack, Cancel, Position
from gateway.edge.device.events import UNSENT_SIZE_HIGH, EventSession, EventStream
from gateway.edge.device.poll import parse_cursor
from gateway.errors import CredentialRefusedError, OriginUnavailableError
from gateway.fleet.facts import Attempted, IntervalClosed, IntervalOpened, Received, Sent
from gateway.session.conversation import State
from tests.unit.gateway.edge.device.node import CREDENTIAL, Edge, started
from tests.unit.gateway.edge.device.test_poll import OPS, offer, poll
from tests.unit.gateway.session.node import EPOCH

LAB = OPS + 1


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False

    def is_closing(self) -> bool:
        return self.is_cut

    def abort(self) -> None:
        self.is_cut = True


@dataclass
class FakeResponse:
    """What a stream is written to; ``gate`` is closed while the other side does not read."""

    data: bytearray = field(default_factory=bytearray)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, data: bytes) -> None:
        self.data += data
        await self.gate.wait()


class Stream:
    """A stream of ``session``, and the client's end of it."""

    def __init__(self, edge: Edge, session: EventSession, cursor: dict[int, Position] | None = None) -> None:
        self.transport = FakeTransport()
        self.response = FakeResponse()
        self.response.gate.set()
        self.stream = EventStream(session, self.transport, now=edge.world.clock.monotonic())
        self.session = session
        session.attach(self.stream, cursor, credential=CREDENTIAL)
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            await self.stream.run(cast(Any, self.response))
        finally:
            self.session.detach(self.stream)

    async def cut(self) -> None:
        """The other side is gone, which a write finds out."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def blocks(self) -> list[dict[str, str]]:
        """Return what was written since the last call, by field; comments have the field ''."""
        for _ in range(30):
            await asyncio.sleep(0)
        text, self.response.data = bytes(self.response.data).decode(), bytearray()
        assert not text or text.endswith("\n\n")
        found = []
        for block in text.split("\n\n")[:-1]:
            found.append(
                dict(line.split(": ", 1) if ": " in line else ("", line) for line in block.split("\n"))
            )
        return found

    async def events(self) -> list[dict[str, Any]]:
        """Return the messages of the events, each with its cursor as ``id``."""
        found = []
        for block in await self.blocks():
            if "data" in block:
                message = json.loads(block["data"])
                assert message["type"] == block["event"]
                found.append(message | ({"id": parse_cursor(block["id"])} if "id" in block else {}))
        return found

    async def offsets(self) -> list[int]:
        return [event["offset"] for event in await self.events() if event["type"] == "alert"]


@pytest.fixture
def edge() -> Edge:
    made = Edge()
    made.world.store.add("ops")
    made.world.store.add("lab")
    made.identity.verdict = made.verdict()
    return made


async def session_of(edge: Edge, *names: str, window: int = 32) -> EventSession:
    session = EventSession(edge.admission, edge.verdict(), is_json=False, now=edge.world.clock.monotonic())
    edge.admission.entered(session, "longpoll")
    edge.finds(*(names or ("ops",)))
    await edge.admission.connect(session, edge.hello(window=window), CREDENTIAL)
    session.taken_at_hello()
    return session


def at(offset: int, number: int = OPS) -> dict[int, Position]:
    return {number: Position(EPOCH, offset)}


async def publish(edge: Edge, *texts: str, channel: str = "ops") -> None:
    for text in texts:
        await edge.world.publish(channel, data=text.encode())
    await edge.world.settle()


def ack(offset: int, channel: str = "ops") -> Ack:
    return Ack(positions={channel: Position(EPOCH, offset)})


def connections(edge: Edge, transport: str) -> float | None:
    return edge.world.node.metrics.registry.get_sample_value(
        "fleetcast_device_connections", {"transport": transport}
    )


class TestStream:
    async def test_it_begins_with_how_long_to_wait_and_what_was_missed(self, edge: Edge) -> None:
        await publish(edge, "a", "b")
        stream = Stream(edge, await session_of(edge))
        first, *_ = blocks = await stream.blocks()
        assert 1000 <= int(first["retry"]) <= 2000
        assert [block["event"] for block in blocks[1:]] == ["alert", "alert"]
        assert [parse_cursor(block["id"])[OPS].offset for block in blocks[1:]] == [1, 2]

    async def test_it_is_live_and_each_event_says_where_it_stands_in_every_channel(self, edge: Edge) -> None:
        stream = Stream(edge, await session_of(edge, "ops", "lab"))
        assert len(edge.world.writer.of(IntervalOpened)) == 2
        await publish(edge, "a")
        await publish(edge, "x", channel="lab")
        await publish(edge, "b")
        events = await stream.events()
        assert [(event["channel"], event["offset"]) for event in events] == [
            ("ops", 1),
            ("lab", 1),
            ("ops", 2),
        ]
        assert events[1]["id"][OPS] == events[1]["id"][LAB] == Position(EPOCH, 1)
        assert (events[2]["id"][OPS].offset, events[2]["id"][LAB].offset) == (2, 1)
        assert not edge.world.writer.of(Sent)  # one interval, whatever is published

    async def test_a_long_alert_is_whole(self, edge: Edge) -> None:
        stream = Stream(edge, await session_of(edge))
        await publish(edge, "x" * 200, "y" * 60_000)
        assert await stream.offsets() == [1, 2]

    async def test_it_gives_signs_of_life(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        await stream.blocks()
        for _ in range(4):
            edge.world.clock.advance(25)
            session.visit(edge.world.clock.monotonic())
        assert await stream.blocks() == [{"": ":"}] * 4

    async def test_it_counts_as_what_it_is(self, edge: Edge) -> None:
        session = await session_of(edge)
        assert (connections(edge, "longpoll"), connections(edge, "events")) == (1, 0)
        stream = Stream(edge, session)
        assert (connections(edge, "longpoll"), connections(edge, "events")) == (0, 1)
        await stream.blocks()
        await stream.cut()
        assert (connections(edge, "longpoll"), connections(edge, "events")) == (1, 0)
        session.ended()
        assert (connections(edge, "longpoll"), connections(edge, "events")) == (0, 0)
        assert edge.admission.connections == 0


class TestCredit:
    async def test_no_more_than_the_window_is_under_way_and_posts_make_room(self, edge: Edge) -> None:
        session = await session_of(edge, window=2)
        stream = Stream(edge, session)
        await publish(edge, "a", "b", "c", "d")
        assert await stream.offsets() == [1, 2]
        assert await session.acknowledge([ack(1)], edge.world.clock.monotonic()) == []
        assert await stream.offsets() == [3]
        await session.acknowledge([ack(3)], edge.world.clock.monotonic())
        assert await stream.offsets() == [4]
        assert [received.last for received in edge.world.writer.of(Received)] == [1, 3]

    async def test_what_is_not_acknowledged_comes_again(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        await publish(edge, "a")
        assert await stream.offsets() == [1]
        for _ in range(3):
            edge.world.clock.advance(6)
            session.visit(edge.world.clock.monotonic())
            await asyncio.sleep(0)
        events = [event for event in await stream.events() if event["type"] == "alert"]
        assert [(event["offset"], event["attempt"]) for event in events] == [(1, 2)]
        assert [attempt.attempts for attempt in edge.world.writer.of(Attempted)] == [1]


class TestResuming:
    async def test_last_event_id_resumes_and_acknowledges_nothing(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        await publish(edge, "a", "b", "c")
        last = (await stream.events())[1]["id"]
        await stream.cut()
        await publish(edge, "d")
        again = Stream(edge, session, last)
        assert await again.offsets() == [3, 4]
        assert not edge.world.writer.of(Received)
        assert session.lanes[0].acked == 0
        await session.acknowledge([ack(4)], edge.world.clock.monotonic())
        assert [(received.first, received.last) for received in edge.world.writer.of(Received)] == [(1, 4)]

    async def test_without_it_the_stream_begins_at_what_was_acknowledged(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        await publish(edge, "a", "b", "c")
        await session.acknowledge([ack(1)], edge.world.clock.monotonic())
        await stream.cut()
        assert await Stream(edge, session).offsets() == [2, 3]

    async def test_a_cursor_from_before_what_was_acknowledged_is_lost_flash(self, edge: Edge) -> None:
        await publish(edge, "a", "b")
        session = await session_of(edge)
        stream = Stream(edge, session)
        await session.acknowledge([ack(2)], edge.world.clock.monotonic())
        await stream.cut()
        assert await Stream(edge, session, at(0)).offsets() == [1, 2]

    async def test_a_cursor_of_another_epoch_or_above_the_head_is_passed_over(self, edge: Edge) -> None:
        await publish(edge, "a")
        session = await session_of(edge)
        for cursor in ({OPS: Position(EPOCH + 1, 1)}, at(7)):
            stream = Stream(edge, session, cursor)
            assert await stream.offsets() == [1]
            await stream.cut()

    async def test_cancels_that_the_broken_stream_had_come_again_and_others_do_not(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        session.cancel(b"1" * 16)
        session.cancel(b"2" * 16)
        first, second = await stream.events()
        await stream.cut()
        session.cancel(b"3" * 16)
        again = Stream(edge, session, first["id"])
        assert [event["deployment"][0] for event in await again.events()] == ["M", "M"]
        await again.cut()
        last = Stream(edge, session, second["id"])  # of the stream before: it knows no better
        assert len(await last.events()) == 2

    async def test_an_update_is_sent_again_at_its_own_times_only(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        session.push(offer())
        assert [event["type"] for event in await stream.events()] == ["update"]
        await stream.cut()
        assert await Stream(edge, session).events() == []
        assert session.pending is not None

    async def test_a_broken_stream_leaves_the_session_for_a_while(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        stream.transport.is_cut = True
        session.visit(edge.world.clock.monotonic())
        assert not session.is_streamed
        assert len(edge.world.writer.of(IntervalClosed)) == 1
        edge.world.clock.advance(119)
        session.visit(edge.world.clock.monotonic())
        assert session.state is State.OPEN
        edge.world.clock.advance(1)
        session.visit(edge.world.clock.monotonic())
        assert session.state is State.CLOSED


class TestNewest:
    async def test_a_second_stream_ends_the_first(self, edge: Edge) -> None:
        session = await session_of(edge)
        first = Stream(edge, session)
        second = Stream(edge, session)
        await publish(edge, "a")
        assert await second.offsets() == [1]
        assert await first.offsets() == []
        assert first.task.done()

    async def test_a_poll_ends_the_stream_and_gets_what_it_left(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        await publish(edge, "a")
        session.cancel(b"1" * 16)
        await stream.events()
        answer = await session.poll(None, wait_s=0)
        assert answer is not None
        kinds = [json.loads(message)["type"] for message in answer[0]]
        assert sorted(kinds) == ["alert", "cancel"]
        assert not session.is_streamed

    async def test_a_stream_ends_the_poll_and_takes_what_waits_for_it(self, edge: Edge) -> None:
        session = await session_of(edge)
        session.cancel(b"1" * 16)
        assert [type(message) for message in (await poll(session))[0]] == [Cancel]
        waiting = await started(session.poll(None, wait_s=50))
        session_events = Stream(edge, session)
        assert await waiting is None
        session.cancel(b"2" * 16)
        assert [event["type"] for event in await session_events.events()] == ["cancel"]

    async def test_what_was_kept_in_cbor_is_said_in_json(self, edge: Edge) -> None:
        session = await session_of(edge)
        session.cancel(b"1" * 16)
        (event,) = await Stream(edge, session).events()
        assert event["deployment"] == "MTExMTExMTExMTExMTExMQ"


class TestSlowReader:
    async def test_it_falls_behind_and_catches_up_when_it_reads(self, edge: Edge) -> None:
        session = await session_of(edge, window=1000)
        stream = Stream(edge, session)
        await stream.blocks()
        stream.response.gate.clear()
        for _ in range(8):
            await publish(edge, "x" * 20_000)
        assert session.is_stalled
        assert stream.stream.unsent < UNSENT_SIZE_HIGH + 40_000
        assert not session.lanes[0].is_live
        stream.response.gate.set()
        assert await stream.offsets() == list(range(1, 9))
        assert session.lanes[0].is_live
        assert session.credit == 1000 - 8

    async def test_one_that_takes_nothing_is_cut_off(self, edge: Edge) -> None:
        session = await session_of(edge, window=1000)
        stream = Stream(edge, session)
        await stream.blocks()
        stream.response.gate.clear()
        for _ in range(8):
            await publish(edge, "x" * 20_000)
        edge.world.clock.advance(59.9)
        session.visit(edge.world.clock.monotonic())
        assert session.state is State.OPEN
        edge.world.clock.advance(0.1)
        session.visit(edge.world.clock.monotonic())
        assert session.state is State.CLOSED
        assert stream.transport.is_cut

    async def test_what_it_provokes_is_bounded(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        stream.response.gate.clear()
        number = 0
        while session.state is State.OPEN:
            number += 1
            session.push(offer(number % 256, manifest=b"m" * 100_000, attempt=number))
        assert stream.stream.unsent < (1 << 20) + 300_000
        assert stream.transport.is_cut


class TestVerdict:
    async def test_it_is_asked_for_again_and_the_stream_gets_a_ticket(self, edge: Edge) -> None:
        edge.directory.keys["d1"] = 11
        session = await session_of(edge)
        stream = Stream(edge, session)
        await stream.blocks()
        edge.world.clock.advance(900)
        edge.identity.verdict = edge.verdict()
        session.visit(edge.world.clock.monotonic())
        assert [event["type"] for event in await stream.events()] == ["ticket"]
        assert edge.identity.asked == 1

    async def test_a_no_ends_it_and_says_so(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        await stream.blocks()
        edge.identity.error = CredentialRefusedError("no")
        edge.world.clock.advance(900)
        session.visit(edge.world.clock.monotonic())
        events = await stream.events()
        assert [(event["type"], event["code"]) for event in events] == [("goaway", 4501)]
        assert stream.task.done()
        assert session.state is State.CLOSED

    async def test_an_origin_that_is_away_ends_nothing(self, edge: Edge) -> None:
        session = await session_of(edge)
        Stream(edge, session)
        edge.identity.error = OriginUnavailableError("away")
        edge.world.clock.advance(900)
        session.visit(edge.world.clock.monotonic())
        await asyncio.sleep(0)
        assert session.state is State.OPEN


class TestEnd:
    async def test_a_node_that_stops_says_when_to_come_back(self, edge: Edge) -> None:
        session = await session_of(edge)
        stream = Stream(edge, session)
        await stream.blocks()
        session.go_away(CloseCode.SHUTDOWN, 7)
        assert await stream.events() == [{"type": "goaway", "code": 4000, "retry_after_s": 7}]
        assert stream.task.done()

    async def test_a_poll_that_waits_is_told_too(self, edge: Edge) -> None:
        session = await session_of(edge)
        waiting = await started(session.poll(None, wait_s=50))
        session.go_away(CloseCode.SHUTDOWN, 7)
        answer = await waiting
        assert answer is not None
        assert _kinds(answer[0]) == [17]


def _kinds(messages: Sequence[bytes]) -> list[int]:
    return [message[2] for message in messages]  # a CBOR map: head, key 0, the type
