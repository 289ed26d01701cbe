"""A device that polls: its cursor is its word, a poll that is answered may be lost, and the newest counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.errors import MalformedError
from device_sdk.wire.limits import BATCH_LEN_MAX, BATCH_SIZE_MAX
from device_sdk.wire.messages import (
    Ack,
    Advance,
    Alert,
    Cancel,
    Error,
    Message,
    Nack,
    Position,
    Subscriptions,
    Update,
    Welcome,
    decode_batch_cbor,
)
from gateway.edge.device.poll import (
    CURSOR_SIZE_MAX,
    PollSession,
    check_cursor,
    format_cursor,
    parse_cursor,
)
from gateway.edge.device.routes import _batch
from gateway.errors import StorageUnavailableError
from gateway.fleet.facts import Attempted, DeadLettered, Received, Sent
from gateway.rollout import Offer
from gateway.session.conversation import State
from tests.unit.gateway.edge.device.node import CREDENTIAL, Edge, decoded, started
from tests.unit.gateway.session.node import EPOCH

OPS = 101  # the number of the subscription to the first channel that is added
Cursor = Mapping[int, Position]


@pytest.fixture
def edge() -> Edge:
    made = Edge()
    made.world.store.add("ops")
    return made


def at(offset: int, number: int = OPS) -> dict[int, Position]:
    return {number: Position(EPOCH, offset)}


async def poll(
    session: PollSession, cursor: Cursor | None = None, *, wait_s: float = 0.0
) -> tuple[list[Message], Cursor]:
    """Poll, and return what came with its cursor; nothing and no cursor for 204."""
    answer = await session.poll(cursor, wait_s=wait_s)
    if answer is None:
        return [], {}
    messages, etag = answer
    return decoded(messages), parse_cursor(etag)


def offsets(messages: list[Message]) -> list[int]:
    return [message.offset for message in messages if isinstance(message, Alert)]


def offer(number: int = 1, *, attempt: int = 1, manifest: bytes = b"m") -> Offer:
    return Offer(
        device_key=11,
        deployment_id=bytes([number]) * 16,
        component="main",  # type: ignore[arg-type]
        directive=b"d",
        manifest=manifest,
        attempt=attempt,
        superseded=(),
    )


class TestCursor:
    def test_says_what_it_was_made_of(self) -> None:
        positions = {1: Position(7, 3), 2: Position(2**32 - 1, 2**53 - 1)}
        assert parse_cursor(format_cursor(positions)) == positions

    def test_of_as_many_channels_as_a_device_may_have_fits(self) -> None:
        positions = {2**32 - 1 - number: Position(2**32 - 1, 2**53 - 1) for number in range(64)}
        positions[0] = Position(2**32 - 1, 2**53 - 1)
        cursor = format_cursor(positions)
        assert len(cursor) <= CURSOR_SIZE_MAX
        assert parse_cursor(cursor) == positions

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "v1",
            "v2.oA",
            "v1.!",
            "v1.oA==",
            "v1.gA",  # a list
            "v1.oQEB",  # {1: 1}
            "v1.oQGBAQ",  # {1: [1]}
            "v1.oQGCASA",  # {1: [1, -1]}
            "v1.oQGCAWEx",  # {1: [1, "1"]}
            "v1.oWExggEB",  # {"1": [1, 1]}
            "v1." + "A" * CURSOR_SIZE_MAX,
        ],
    )
    def test_that_is_not_one_is_refused(self, text: str) -> None:
        with pytest.raises(MalformedError):
            parse_cursor(text)

    @pytest.mark.parametrize("header", ["v1.oA", '"v1.oA', 'W/"v1.oA"', '"', '"v1.oA", "v1.oA"', "*"])
    def test_is_quoted_once(self, header: str) -> None:
        assert check_cursor(' "v1.oA" ') == {}
        assert check_cursor(None) is None
        with pytest.raises(MalformedError):
            check_cursor(header)


class TestPoll:
    async def test_answers_what_comes_after_the_cursor(self, edge: Edge) -> None:
        await edge.world.publish("ops", 5)
        session = await edge.polled("ops")
        messages, cursor = await poll(session)
        assert offsets(messages) == [1, 2, 3, 4, 5]
        assert cursor == at(5)
        messages, cursor = await poll(session, at(3))
        assert offsets(messages) == [4, 5]
        assert cursor == at(5)

    async def test_same_cursor_reads_the_same_again_and_skips_nothing(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3)
        session = await edge.polled("ops")
        for _ in range(5):
            messages, cursor = await poll(session)
            assert (offsets(messages), cursor) == ([1, 2, 3], at(3))
        assert session.credit == 32 - 3

    async def test_cursor_is_committed_before_the_answer(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3)
        session = await edge.polled("ops")
        await poll(session)
        edge.world.writer.is_held = True
        polling = await started(session.poll(at(3), wait_s=0))
        assert not polling.done()
        edge.world.writer.held[0].set_result(None)
        assert await polling is None
        assert [(fact.first, fact.last) for fact in edge.world.writer.of(Received)] == [(1, 3)]

    async def test_waits_for_what_is_published(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        polling = await started(poll(session, wait_s=50))
        assert not polling.done()
        await edge.world.publish("ops", 2)
        messages, cursor = await polling
        assert (offsets(messages), cursor) == ([1], at(1))
        assert offsets((await poll(session, cursor))[0]) == [2]

    async def test_that_brings_nothing_ends_in_time(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        assert await session.poll(None, wait_s=0.001) is None
        assert not session.is_polled

    async def test_that_does_not_wait_waits_for_the_log(self, edge: Edge) -> None:
        """A block that is not in memory would else be read for nobody, again and again."""
        await edge.world.publish("ops", 2)
        edge.world.log.forget(1)
        session = await edge.polled("ops")
        assert offsets((await poll(session, wait_s=0))[0]) == [1, 2]

    async def test_nothing_is_written_between_polls(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        await poll(session)
        await edge.world.publish("ops", 2)
        await edge.world.settle()
        assert not edge.world.writer.of(Sent)
        assert offsets((await poll(session))[0]) == [1, 2]

    async def test_of_another_epoch_or_above_the_head_is_read_from_where_the_gateway_knows(
        self, edge: Edge
    ) -> None:
        await edge.world.publish("ops", 3)
        session = await edge.polled("ops")
        for cursor in ({OPS: Position(EPOCH + 1, 2)}, at(9), {999: Position(EPOCH, 1)}):
            assert offsets((await poll(session, cursor))[0]) == [1, 2, 3]
        assert not edge.world.writer.of(Received)


class TestLowerCursor:
    async def test_is_lost_flash_and_costs_no_credit(self, edge: Edge) -> None:
        await edge.world.publish("ops", 10)
        session = await edge.polled("ops", window=5)
        await poll(session)
        for _ in range(4):
            assert offsets((await poll(session, at(5)))[0]) == [6, 7, 8, 9, 10]
            assert offsets((await poll(session, at(2)))[0]) == [3, 4, 5, 6, 7]
        await poll(session, at(10))
        assert (session.credit, session.credit_bytes) == (5, session.node.limits.window_size_bytes_max)

    async def test_says_that_it_is_sent_again(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3)
        session = await edge.polled("ops")
        await poll(session)
        await poll(session, at(3))
        await poll(session, at(1))
        assert [(fact.first, fact.last) for fact in edge.world.writer.of(Received)] == [(1, 3)]


class TestSecondPoll:
    async def test_ends_the_first_with_nothing(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        first = await started(session.poll(None, wait_s=50))
        second = await started(session.poll(None, wait_s=50))
        assert first.done()
        assert first.result() is None
        assert not second.done()
        await edge.world.publish("ops")
        answer = await second
        assert answer is not None

    async def test_that_comes_while_the_first_commits_is_the_one_that_is_answered(self, edge: Edge) -> None:
        await edge.world.publish("ops", 2)
        session = await edge.polled("ops")
        await poll(session)
        edge.world.writer.is_held = True
        first = await started(session.poll(at(1), wait_s=50))
        second = await started(session.poll(at(2), wait_s=50))
        for held in edge.world.writer.held:
            held.set_result(None)
        await edge.world.settle()
        assert first.done()
        assert first.result() is None
        assert not second.done()
        await edge.world.publish("ops")
        answer = await second
        assert answer is not None
        assert offsets(decoded(answer[0])) == [3]

    async def test_that_never_reads_its_answer_costs_the_third_nothing(self, edge: Edge) -> None:
        await edge.world.publish("ops", 40)
        session = await edge.polled("ops", window=8)
        for _ in range(10):
            await session.poll(None, wait_s=0)
        messages, _ = await poll(session)
        assert offsets(messages) == list(range(1, 9))
        assert session.credit == 0

    async def test_poll_that_is_cancelled_leaves_the_session_to_the_next(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        gone = await started(session.poll(None, wait_s=50))
        gone.cancel()
        await edge.world.settle()
        assert not session.is_polled
        await edge.world.publish("ops", 2)
        assert offsets((await poll(session))[0]) == [1, 2]

    async def test_poll_that_is_cancelled_while_it_commits_loses_no_position(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3)
        session = await edge.polled("ops")
        await poll(session)
        edge.world.writer.is_held = True
        gone = await started(session.poll(at(2), wait_s=50))
        gone.cancel()
        await edge.world.settle()
        edge.world.writer.is_held = False
        for held in edge.world.writer.held:
            held.set_result(None)
        assert offsets((await poll(session, at(2)))[0]) == [3]
        assert session.credit == 31


class TestCommit:
    async def test_that_fails_ends_the_session_and_the_device_says_hello(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3)
        session = await edge.polled("ops")
        await poll(session)
        edge.world.writer.fails = True
        with pytest.raises(StorageUnavailableError):
            await session.poll(at(2), wait_s=0)
        assert session.state is State.CLOSED
        assert edge.admission.connections == 0

    async def test_of_an_ack_that_is_repeated_is_waited_for_by_both(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3)
        session = await edge.polled("ops")
        await poll(session)
        edge.world.writer.is_held = True
        ack = Ack(positions={"ops": Position(EPOCH, 3)})
        first = await started(session.acknowledge([ack], 0.0))
        again = await started(session.acknowledge([ack], 0.0))
        polling = await started(session.poll(at(3), wait_s=0))
        assert not first.done()
        assert not again.done()
        assert not polling.done()
        edge.world.writer.held[0].set_result(None)
        assert await first == []
        assert await again == []
        assert await polling is None

    async def test_of_a_nack_is_waited_for(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3)
        session = await edge.polled("ops")
        await poll(session)
        edge.world.writer.is_held = True
        nacking = await started(session.acknowledge([Nack("ops", EPOCH, 2, "bad_signature")], 0.0))
        assert not nacking.done()
        edge.world.writer.held[0].set_result(None)
        assert await nacking == []
        assert [dead.offset for dead in edge.world.writer.of(DeadLettered)] == [2]

    async def test_what_cannot_be_accepted_is_answered_and_changes_nothing(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3)
        session = await edge.polled("ops", window=2)
        await poll(session)
        errors = await session.acknowledge(
            [
                Ack(positions={"ops": Position(EPOCH, 4), "other": Position(EPOCH, 1)}),
                Ack(positions={"ops": Position(EPOCH + 1, 1)}),
                Nack("ops", EPOCH, 3, "bad_signature"),
                Nack("other", EPOCH, 1, "bad_signature"),
            ],
            0.0,
        )
        assert errors == [
            Error("bad_position", "ops"),
            Error("unknown_channel", "other"),
            Error("bad_position", "ops"),
            Error("bad_position", "ops"),
            Error("bad_position", "other"),
        ]
        assert not edge.world.writer.of(Received)
        assert session.credit == 0


class TestAttempts:
    async def test_are_counted_once_a_wait_however_fast_polls_repeat(self, edge: Edge) -> None:
        await edge.world.publish("ops", 2)
        session = await edge.polled("ops")
        for _ in range(20):
            await poll(session)
        assert not edge.world.writer.of(Attempted)
        edge.world.clock.advance(10)
        messages, _ = await poll(session)
        assert [m.attempt for m in messages if isinstance(m, Alert)] == [2, 2]
        for _ in range(20):
            await poll(session)
        assert edge.world.writer.of(Attempted) == [Attempted(OPS, 1, 1)]

    async def test_that_are_spent_become_a_dead_letter(self) -> None:
        edge = Edge(attempts_max=2)
        edge.world.store.add("ops")
        await edge.world.publish("ops", 2)
        session = await edge.polled("ops")
        for _ in range(6):
            messages, _ = await poll(session)
            edge.world.clock.advance(400)
        assert [(dead.offset, dead.reason) for dead in edge.world.writer.of(DeadLettered)] == [
            (1, "attempts")
        ]
        assert messages[0] == Advance("ops", EPOCH, 1, 1, "dead_letter")
        assert offsets(messages) == [2]

    async def test_are_not_counted_offline_nor_with_a_window_of_zero(self, edge: Edge) -> None:
        await edge.world.publish("ops", 2)
        session = await edge.polled("ops")
        await poll(session)
        await poll(session)
        await session.acknowledge([Ack(window=0)], 0.0)
        for _ in range(5):
            edge.world.clock.advance(100)
            session.visit(edge.world.clock.monotonic())
            assert (await poll(session))[0] == []
        assert not edge.world.writer.of(Attempted)


class TestOtherMessages:
    async def test_wait_for_a_poll_and_wake_one(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        session.push(offer())
        assert [type(m) for m in (await poll(session))[0]] == [Update]
        polling = await started(poll(session, wait_s=50))
        session.cancel(b"\x01" * 16)
        assert (await polling)[0] == [Cancel(b"\x01" * 16)]

    async def test_update_is_not_repeated_before_its_time(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        session.push(offer())
        await poll(session)
        for _ in range(5):
            assert (await poll(session))[0] == []
        polling = await started(poll(session, wait_s=50))
        edge.world.updates.redeliveries = [offer(attempt=2)]
        edge.world.clock.advance(11)
        session.visit(edge.world.clock.monotonic())
        assert [m.attempt for m in (await polling)[0] if isinstance(m, Update)] == [2]

    async def test_update_that_is_acknowledged_is_not_repeated(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        session.push(offer())
        await poll(session)
        await session.acknowledge([Ack(deployment=b"\x01" * 16)], 0.0)
        polling = await started(session.poll(None, wait_s=50))
        edge.world.clock.advance(1000)
        session.visit(edge.world.clock.monotonic())
        await edge.world.settle()
        assert not polling.done()
        polling.cancel()

    async def test_cancel_in_an_answer_that_was_lost_is_said_again(self, edge: Edge) -> None:
        await edge.world.publish("ops", 1)
        session = await edge.polled("ops")
        _, stored = await poll(session)
        session.cancel(b"\x01" * 16)
        lost, cursor = await poll(session, stored)
        assert lost == [Cancel(b"\x01" * 16)]
        again, cursor = await poll(session, stored)
        assert again == [Cancel(b"\x01" * 16)]
        assert (await poll(session, cursor))[0] == []

    async def test_change_in_an_answer_that_came_twice_is_not_said_after_what_followed_it(
        self, edge: Edge
    ) -> None:
        edge.world.store.add("more")
        await edge.world.publish("more", 1)
        session = await edge.polled("ops")
        session.subscriptions_changed(
            edge.world.connected("more", "ops").subscriptions, edge.world.clock.monotonic()
        )
        first, cursor = await poll(session, {})
        again, _ = await poll(session, {})  # the device was impatient, and takes the first answer
        assert [type(message) for message in first] == [Subscriptions, Alert]
        assert again == first
        assert (await poll(session, cursor))[0] == []

    async def test_update_in_an_answer_that_was_lost_comes_at_its_time(self, edge: Edge) -> None:
        await edge.world.publish("ops", 1)
        session = await edge.polled("ops")
        _, stored = await poll(session)
        session.push(offer())
        session.cancel(b"\x02" * 16)
        await poll(session, stored)
        assert (await poll(session, stored))[0] == [Cancel(b"\x02" * 16)]

    async def test_cursor_of_another_session_confirms_nothing(self, edge: Edge) -> None:
        before = await edge.polled("ops")
        before.cancel(b"\x01" * 16)
        _, cursor = await poll(before)
        session = await edge.polled("ops")
        session.cancel(b"\x02" * 16)
        await poll(session, {})
        assert (await poll(session, cursor))[0] == [Cancel(b"\x02" * 16)]

    async def test_more_than_are_kept_end_the_session(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        for number in range(129):
            session.cancel(bytes([number]) * 16)
        assert session.state is State.CLOSED
        assert await session.poll(None, wait_s=0) is None

    async def test_change_of_subscriptions_comes_before_the_alerts_of_the_new_channel(
        self, edge: Edge
    ) -> None:
        edge.world.store.add("more")
        await edge.world.publish("more", 2)
        session = await edge.polled("ops")
        polling = await started(poll(session, wait_s=50))
        session.subscriptions_changed(
            edge.world.connected("more", "ops").subscriptions, edge.world.clock.monotonic()
        )
        messages, cursor = await polling
        assert [type(message) for message in messages] == [Subscriptions, Alert, Alert]
        assert cursor[102] == Position(EPOCH, 2)


class TestBatch:
    async def test_is_never_longer_than_a_body_may_be(self, edge: Edge) -> None:
        await edge.world.publish("ops", 600)
        session = await edge.polled("ops", window=1000)
        for number in range(100):
            session.cancel(bytes([number]) * 16)
        cursor: Cursor = {}
        seen: list[int] = []
        cancels = 0
        while len(seen) < 600:
            answer = await session.poll(cursor, wait_s=0)
            assert answer is not None
            messages = decoded(answer[0])
            assert len(messages) <= BATCH_LEN_MAX
            cancels += sum(isinstance(message, Cancel) for message in messages)
            seen += offsets(messages)
            cursor = parse_cursor(answer[1])
        assert seen == list(range(1, 601))
        assert cancels == 100

    async def test_is_never_larger_than_a_body_may_be(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3, data=b"x" * 60_000)
        session = await edge.polled("ops")
        for number in range(12):
            session.push(offer(number, manifest=b"m" * 128 * 1024))
        cursor: Cursor | None = None
        seen: list[int] = []
        updates = 0
        for _ in range(10):
            answer = await session.poll(cursor, wait_s=0)
            if answer is None:
                break
            body = _batch(answer[0], is_json=False).body
            assert isinstance(body, bytes)
            assert len(body) <= BATCH_SIZE_MAX
            messages = decode_batch_cbor(body, size_max=BATCH_SIZE_MAX)
            seen += offsets(messages)
            updates += sum(isinstance(message, Update) for message in messages)
            cursor = parse_cursor(answer[1])
        assert seen == [1, 2, 3]
        assert updates == 12

    async def test_messages_that_come_as_the_poll_is_answered_are_not_too_many(self, edge: Edge) -> None:
        await edge.world.publish("ops", 400)
        session = await edge.polled("ops", window=1000)
        await session.poll(at(100), wait_s=0)
        edge.world.log.forget(1)
        polling = await started(session.poll(at(100), wait_s=50))
        for number in range(20):
            session.cancel(bytes([number]) * 16)
        answer = await polling
        assert answer is not None
        assert len(answer[0]) <= BATCH_LEN_MAX


class TestTurns:
    async def test_channel_with_a_long_way_to_go_does_not_keep_another_waiting(self, edge: Edge) -> None:
        edge.world.store.add("rare")
        await edge.world.publish("ops", 100)
        await edge.world.publish("rare", 1)
        session = await edge.polled("ops", "rare", window=4)
        messages, cursor = await poll(session)
        messages, cursor = await poll(session, cursor)
        assert "rare" in {message.channel for message in messages if isinstance(message, Alert)}


class TestEnd:
    async def test_of_the_session_ends_the_poll(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        polling = await started(session.poll(None, wait_s=50))
        session.close(CloseCode.DEVICE_DISABLED)
        assert await polling is None
        assert session.state is State.CLOSED
        assert edge.admission.polled == {}

    async def test_of_a_device_that_polls_no_more_comes_by_itself(self, edge: Edge) -> None:
        session = await edge.polled("ops")
        polling = await started(session.poll(None, wait_s=50))
        edge.world.clock.advance(1000)
        session.visit(edge.world.clock.monotonic())
        assert session.state is State.OPEN  # a poll waits
        await edge.world.publish("ops")
        await polling
        edge.world.clock.advance(edge.world.limits.longpoll_idle_s - 1)
        session.visit(edge.world.clock.monotonic())
        assert session.state is State.OPEN
        edge.world.clock.advance(1)
        session.visit(edge.world.clock.monotonic())
        assert session.state is State.CLOSED
        assert edge.admission.connections == 0
        assert len(edge.sessions) == 0

    async def test_newer_session_of_the_device_ends_the_older_ones_poll(self, edge: Edge) -> None:
        old = await edge.polled("ops")
        polling = await started(old.poll(None, wait_s=50))
        new = await edge.polled("ops")
        assert await polling is None
        assert old.state is State.CLOSED
        assert edge.sessions.of_device(11) is new
        assert edge.admission.connections == 1


class TestHello:
    async def test_answer_begins_with_welcome_and_brings_no_alerts(self, edge: Edge) -> None:
        await edge.world.publish("ops", 3)
        session = PollSession(edge.admission, edge.verdict(), is_json=False, now=0.0)
        edge.admission.entered(session, "longpoll")
        connected = replace(edge.world.connected("ops"), cancelling=(b"c" * 16,))
        edge.finds(connected=connected)
        await edge.admission.connect(session, edge.hello(), CREDENTIAL)
        assert [type(m) for m in decoded(session.taken_at_hello())] == [Welcome, Cancel]
        assert not edge.world.writer.of(Sent)

    async def test_reboot_counts_an_attempt_and_the_first_poll_brings_the_alert(self, edge: Edge) -> None:
        await edge.world.publish("ops", 2)
        connected = replace(edge.world.connected("ops", was_sent=True), previous_boot_id=b"x" * 16)
        edge.world.writer.is_held = False
        session = await edge.polled(connected=connected)
        messages, _ = await poll(session, wait_s=1)
        assert [m.attempt for m in messages if isinstance(m, Alert)] == [2, 1]
        assert edge.world.writer.of(Attempted) == [Attempted(OPS, 1, 1)]
