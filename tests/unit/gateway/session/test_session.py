"""A session's rules, one class a section of the protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import (
    Ack,
    Advance,
    Alert,
    Cancel,
    Error,
    Lost,
    Message,
    Nack,
    Position,
    Recorded,
    Report,
    Roots,
    StatementMessage,
    Subscriptions,
    Update,
    Welcome,
)
from gateway.fleet.facts import (
    Adopted,
    Attempted,
    DeadLettered,
    DeploymentReceived,
    Disconnected,
    IntervalClosed,
    IntervalOpened,
    Received,
    Reported,
    Sent,
)
from gateway.rollout import Offer, ReportOutcome
from gateway.session.conversation import State
from gateway.session.limits import SessionLimits
from tests.unit.gateway.session.node import EPOCH, PushedSession, World


def offsets(messages: list[Message]) -> list[int]:
    return [message.offset for message in messages if isinstance(message, Alert)]


def ack(session: PushedSession, channel: str, offset: int, epoch: int = EPOCH) -> None:
    session.receive(Ack(positions={channel: Position(epoch, offset)}), session.node.clock.monotonic())


@pytest.fixture
def world() -> World:
    made = World()
    made.store.add("ops")
    return made


class TestWelcome:
    async def test_names_the_heads_and_comes_first(self, world: World) -> None:
        await world.publish("ops", 3)
        session = world.session("ops", positions={"ops": Position(EPOCH, 3)})
        welcome, *rest = session.taken()
        assert isinstance(welcome, Welcome)
        assert welcome.heads == {"ops": Position(EPOCH, 3)}
        assert rest == []

    async def test_is_followed_by_roots_and_cancels_before_any_alert(self, world: World) -> None:
        await world.publish("ops")
        connected = replace(world.connected("ops"), root_document=b"root", cancelling=(b"c" * 16,))
        session = world.session(connected=connected)
        await world.settle()
        kinds = [type(message) for message in session.taken()]
        assert kinds == [Welcome, Roots, Cancel, Alert]

    @pytest.mark.parametrize("root", [None, b"root"], ids=["known-root", "new-root"])
    async def test_brings_the_statement_once_its_key_is_known(self, world: World, root: bytes | None) -> None:
        connected = replace(world.connected("ops"), root_document=root)
        welcome, *rest = world.session(connected=connected, statement=b"signed").taken()
        assert isinstance(welcome, Welcome)
        assert welcome.statement == (b"signed" if root is None else None)
        assert rest == ([] if root is None else [Roots((root,)), StatementMessage(b"signed")])


class TestPosition:
    async def test_lower_than_stored_is_sent_again_from_there(self, world: World) -> None:
        await world.publish("ops", 5)
        session = world.session(
            connected=world.connected("ops", offset=5), positions={"ops": Position(EPOCH, 2)}
        )
        await world.settle()
        assert offsets(session.taken()) == [3, 4, 5]
        assert not world.writer.of(Adopted)

    async def test_absent_means_the_stored_one(self, world: World) -> None:
        await world.publish("ops", 5)
        session = world.session(connected=world.connected("ops", offset=3))
        await world.settle()
        assert offsets(session.taken()) == [4, 5]

    async def test_of_another_epoch_is_lost_and_the_stored_one_adopted(self, world: World) -> None:
        await world.publish("ops", 5)
        session = world.session(
            connected=world.connected("ops", offset=4), positions={"ops": Position(99, 2)}
        )
        await world.settle()
        messages = session.taken()
        assert messages[1] == Lost("ops", EPOCH, 4, "epoch_changed")
        assert offsets(messages) == [5]

    async def test_above_the_head_is_lost(self, world: World) -> None:
        await world.publish("ops", 2)
        session = world.session(
            connected=world.connected("ops", offset=1), positions={"ops": Position(EPOCH, 9)}
        )
        await world.settle()
        messages = session.taken()
        assert messages[1] == Lost("ops", EPOCH, 1, "ahead_of_head")
        assert offsets(messages) == [2]

    async def test_stored_in_another_epoch_falls_back_to_the_earliest_retained(self, world: World) -> None:
        await world.publish("ops", 5)
        world.store.prune("ops", 2)
        session = world.session(connected=world.connected("ops", epoch=3, offset=4))
        await world.settle()
        messages = session.taken()
        assert messages[1] == Lost("ops", EPOCH, 2, "epoch_changed")
        assert offsets(messages) == [3, 4, 5]
        assert world.writer.of(Adopted) == [Adopted(101, EPOCH, 2)]


class TestAck:
    async def test_is_cumulative_and_committed_once(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 4)
        ack(session, "ops", 3)
        ack(session, "ops", 3)
        ack(session, "ops", 2)
        assert world.writer.of(Received) == [Received(101, 11, 1, EPOCH, 1, 3)]

    @pytest.mark.parametrize(("epoch", "offset"), [(EPOCH, 5), (EPOCH + 1, 1)], ids=["above", "epoch"])
    async def test_that_cannot_be_changes_nothing(self, world: World, epoch: int, offset: int) -> None:
        session = world.session("ops")
        await world.publish("ops", 4)
        session.taken()
        ack(session, "ops", offset, epoch)
        assert session.taken() == [Error("bad_position", "ops")]
        assert not world.writer.of(Received)

    async def test_of_an_unknown_channel_is_an_error(self, world: World) -> None:
        session = world.session("ops")
        session.taken()
        ack(session, "other", 1)
        assert session.taken() == [Error("unknown_channel", "other")]

    async def test_while_the_writer_is_full_holds_the_input_until_there_is_room(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 2)
        world.writer.is_full = True
        ack(session, "ops", 1)
        ack(session, "ops", 2)
        assert session.holds == 1
        world.writer.room.set()
        await world.settle()
        assert session.holds == 0


class TestWindow:
    async def test_full_makes_a_live_session_behind_and_an_ack_makes_it_live_again(
        self, world: World
    ) -> None:
        session = world.session("ops", window=4)
        await world.publish("ops", 10)
        assert offsets(session.taken()) == [1, 2, 3, 4]
        assert world.writer.of(IntervalClosed)[0].last == 4
        ack(session, "ops", 4)
        await world.settle()
        assert offsets(session.taken()) == [5, 6, 7, 8]
        ack(session, "ops", 8)
        await world.settle()
        assert offsets(session.taken()) == [9, 10]
        await world.publish("ops", 1)
        assert offsets(session.taken()) == [11]
        opened = world.writer.of(IntervalOpened)
        assert [interval.first for interval in opened] == [1, 11]

    async def test_of_zero_stops_alerts_and_counts_nothing(self, world: World) -> None:
        session = world.session("ops", window=0)
        await world.publish("ops", 3)
        await world.settle()
        assert offsets(session.taken()) == []
        world.clock.advance(1000)
        session.visit(world.clock.monotonic())
        await world.settle()
        assert not world.writer.of(Attempted)
        session.receive(Ack(window=2), world.clock.monotonic())
        await world.settle()
        assert offsets(session.taken()) == [1, 2]

    async def test_counts_bytes_and_lets_one_large_alert_through(self) -> None:
        world = World(limits=SessionLimits(window_size_bytes_max=10_000))
        world.store.add("ops")
        session = world.session("ops")
        await world.publish("ops", 3, data=b"x" * 20_000)
        await world.settle()
        assert offsets(session.taken()) == [1]
        ack(session, "ops", 1)
        await world.settle()
        assert offsets(session.taken()) == [2]

    async def test_is_given_back_whole_whatever_way_alerts_went(self, world: World) -> None:
        await world.publish("ops", 6)
        session = world.session("ops", window=5)
        await world.settle()
        ack(session, "ops", 3)
        await world.settle()
        await world.publish("ops", 3)
        for offset in (4, 6, 8, 9):
            ack(session, "ops", offset)
            await world.settle()
        assert (session.credit, session.credit_bytes) == (5, world.limits.window_size_bytes_max)
        assert offsets(session.taken()) == list(range(1, 10))


class TestStall:
    async def test_paused_transport_falls_behind_and_catches_up(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 1)
        session.stall()
        await world.publish("ops", 5)
        await world.settle()
        assert offsets(session.taken()) == [1]
        session.resume()
        await world.settle()
        assert offsets(session.taken()) == [2, 3, 4, 5, 6]
        ack(session, "ops", 6)
        assert session.credit == 32


class TestAdvance:
    async def test_pruned_offsets_are_passed_over(self, world: World) -> None:
        await world.publish("ops", 5)
        world.store.prune("ops", 3)
        world.log.forget(1)
        session = world.session("ops")
        await world.settle()
        assert session.taken()[1] == Advance("ops", EPOCH, 1, 3, "pruned")

    async def test_expired_alerts_are_passed_over_and_become_dead_letters(self, world: World) -> None:
        await world.publish("ops", 2, ttl_s=10)
        await world.publish("ops", 1)
        world.clock.advance(10)
        session = world.session("ops")
        await world.settle()
        messages = session.taken()
        assert messages[1] == Advance("ops", EPOCH, 1, 2, "expired")
        assert offsets(messages) == [3]
        assert [(dead.offset, dead.reason) for dead in world.writer.of(DeadLettered)] == [
            (1, "expired"),
            (2, "expired"),
        ]
        assert [(sent.first, sent.last) for sent in world.writer.of(Sent)] == [(3, 3)]

    async def test_superseded_alerts_are_passed_over(self, world: World) -> None:
        await world.publish("ops", 1, key="door")
        await world.publish("ops", 1)
        await world.publish("ops", 1, key="door")
        session = world.session("ops")
        await world.settle()
        messages = session.taken()
        assert messages[1] == Advance("ops", EPOCH, 1, 1, "superseded")
        assert offsets(messages) == [2, 3]

    async def test_an_ack_in_the_middle_of_one_gives_nothing_back_yet(self, world: World) -> None:
        await world.publish("ops", 4)
        world.store.prune("ops", 3)
        world.log.forget(1)
        session = world.session("ops", window=4)
        await world.settle()
        ack(session, "ops", 2)
        assert session.credit == 2
        ack(session, "ops", 4)
        assert session.credit == 4


class TestRedelivery:
    async def test_is_not_before_half_the_wait_and_surely_after_it(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 2)
        session.taken()
        session.visit(world.clock.monotonic())
        world.clock.advance(4.9)
        session.visit(world.clock.monotonic())
        await world.settle()
        assert session.taken() == []
        world.clock.advance(5.2)
        session.visit(world.clock.monotonic())
        await world.settle()
        again = session.taken()
        assert [(m.offset, m.attempt) for m in again if isinstance(m, Alert)] == [(1, 2), (2, 2)]
        assert world.writer.of(Attempted) == [Attempted(101, 1, 1)]
        assert world.writer.of(Sent)[-1].attempt == 2

    async def test_is_committed_before_anything_is_sent(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 1)
        session.taken()
        session.visit(world.clock.monotonic())
        world.writer.is_held = True
        world.clock.advance(11)
        session.visit(world.clock.monotonic())
        await world.settle()
        assert session.taken() == []
        world.writer.held[0].set_result(None)
        await world.settle()
        assert offsets(session.taken()) == [1]

    async def test_spent_attempts_become_a_dead_letter_and_an_advance(self) -> None:
        world = World(limits=SessionLimits(attempts_max=2))
        world.store.add("ops")
        session = world.session("ops")
        await world.publish("ops", 2)
        session.taken()
        for _ in range(2):
            session.visit(world.clock.monotonic())
            world.clock.advance(400)
            session.visit(world.clock.monotonic())
            await world.settle()
        messages = session.taken()
        assert world.writer.of(DeadLettered)[0].reason == "attempts"
        assert Advance("ops", EPOCH, 1, 1, "dead_letter") in messages
        ack(session, "ops", 2)
        assert session.credit == 32

    async def test_an_ack_begins_a_new_wait(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 2)
        session.visit(world.clock.monotonic())
        world.clock.advance(4.9)
        ack(session, "ops", 1)
        session.taken()
        session.visit(world.clock.monotonic())
        world.clock.advance(4.9)
        session.visit(world.clock.monotonic())
        await world.settle()
        assert session.taken() == []

    async def test_of_a_stalled_transport_waits_until_its_bytes_have_left(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 1)
        session.stall()
        for _ in range(5):
            world.clock.advance(20)
            session.visit(world.clock.monotonic())
        await world.settle()
        assert not world.writer.of(Attempted)

    @pytest.mark.parametrize(("boot_id", "attempts"), [(b"b" * 16, 0), (b"x" * 16, 1)], ids=["same", "other"])
    async def test_hello_at_a_sent_offset_is_an_attempt_after_a_reboot_alone(
        self, world: World, boot_id: bytes, attempts: int
    ) -> None:
        await world.publish("ops", 1)
        connected = replace(world.connected("ops", was_sent=True), previous_boot_id=boot_id)
        session = world.session(connected=connected)
        await world.settle()
        assert len(world.writer.of(Attempted)) == attempts
        assert offsets(session.taken()) == [1]


class TestNack:
    async def test_becomes_a_dead_letter_with_its_code(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 2)
        session.receive(Nack("ops", EPOCH, 2, "bad_signature"), world.clock.monotonic())
        await world.settle()
        (dead,) = world.writer.of(DeadLettered)
        assert (dead.offset, dead.reason, dead.code) == (2, "nacked", "bad_signature")

    async def test_of_what_was_never_sent_is_an_error(self, world: World) -> None:
        session = world.session("ops", window=1)
        await world.publish("ops", 2)
        session.taken()
        session.receive(Nack("ops", EPOCH, 2, "bad_signature"), world.clock.monotonic())
        await world.settle()
        assert session.taken() == [Error("bad_position", "ops")]
        assert not world.writer.of(DeadLettered)


def offer(number: int = 1, attempt: int = 1, superseded: tuple[bytes, ...] = ()) -> Offer:
    return Offer(
        device_key=11,
        deployment_id=bytes([number]) * 16,
        component="main",  # type: ignore[arg-type]
        directive=b"d",
        manifest=b"m",
        attempt=attempt,
        superseded=superseded,
    )


class TestUpdate:
    async def test_is_sent_again_until_acknowledged(self, world: World) -> None:
        session = world.session("ops")
        session.taken()
        session.push(offer())
        world.updates.redeliveries = [offer(attempt=2)]
        world.clock.advance(11)
        session.visit(world.clock.monotonic())
        await world.settle()
        assert [m.attempt for m in session.taken() if isinstance(m, Update)] == [1, 2]
        session.receive(Ack(deployment=b"\x01" * 16), world.clock.monotonic())
        await world.settle()
        assert len(world.writer.of(DeploymentReceived)) == 1
        world.clock.advance(1000)
        session.visit(world.clock.monotonic())
        await world.settle()
        assert session.taken() == []

    async def test_that_is_not_to_be_sent_any_more_is_forgotten(self, world: World) -> None:
        session = world.session("ops")
        session.push(offer())
        session.taken()
        world.updates.redeliveries = [None]
        world.clock.advance(11)
        session.visit(world.clock.monotonic())
        await world.settle()
        assert session.taken() == []
        assert session.pending == {}

    async def test_that_supersedes_cancels_the_older_one_first(self, world: World) -> None:
        session = world.session("ops")
        session.taken()
        session.push(offer(2, superseded=(b"\x01" * 16,)))
        assert [type(message) for message in session.taken()] == [Cancel, Update]


class TestReport:
    async def test_is_recorded_only_once_it_is_committed(self, world: World) -> None:
        session = world.session("ops")
        session.taken()
        world.writer.is_held = True
        session.receive(Report(b"r" * 16, b"\x01" * 16, 1, "verified"), world.clock.monotonic())
        await world.settle()
        assert session.taken() == []
        world.writer.held[0].set_result(ReportOutcome("recorded", None, False, False))
        await world.settle()
        assert session.taken() == [Recorded(b"r" * 16, "recorded")]

    async def test_that_ends_a_deployment_asks_for_the_next(self, world: World) -> None:
        session = world.session("ops")
        session.update_channels = (5,)
        session.taken()
        world.writer.results[Reported] = ReportOutcome("recorded", None, True, False)
        world.updates.offers = [offer(2)]
        session.receive(Report(b"r" * 16, b"\x01" * 16, 1, "committed"), world.clock.monotonic())
        await world.settle()
        assert [type(message) for message in session.taken()] == [Recorded, Update]

    async def test_many_at_once_hold_the_input(self, world: World) -> None:
        session = world.session("ops")
        world.writer.is_held = True
        for number in range(20):
            session.receive(Report(bytes([number]) * 16, b"\x01" * 16, 1, "verified"), 0.0)
        await world.settle()
        assert session.holds == 1
        for held in world.writer.held:
            held.set_result(ReportOutcome("recorded", None, False, False))
        await world.settle()
        assert session.holds == 0

    async def test_while_the_database_is_away_ends_the_session_as_retryable(self, world: World) -> None:
        session = world.session("ops")
        world.writer.fails = True
        session.receive(Report(b"r" * 16, b"\x01" * 16, 1, "verified"), 0.0)
        await world.settle()
        assert session.codes == [CloseCode.STORAGE_UNAVAILABLE]
        assert not [m for m in session.taken() if isinstance(m, Recorded)]


class TestSubscriptions:
    async def test_added_and_removed_while_connected_take_effect_at_once(self, world: World) -> None:
        world.store.add("more")
        await world.publish("more", 2)
        session = world.session("ops")
        session.taken()
        found = world.connected("more", offset=1).subscriptions
        session.subscriptions_changed(found, world.clock.monotonic())
        await world.settle()
        first, *rest = session.taken()
        assert first == Subscriptions(added={"more": Position(EPOCH, 1)}, removed=("ops",))
        assert offsets(rest) == [2]
        await world.publish("ops", 1)
        assert session.taken() == []
        assert world.writer.of(IntervalClosed)


class TestEnd:
    async def test_closes_intervals_once_and_is_written_down(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 2)
        session.close(CloseCode.SHUTDOWN)
        session.ended()
        await world.publish("ops", 1)
        assert session.state is State.CLOSED
        assert [interval.last for interval in world.writer.of(IntervalClosed)] == [2]
        assert len(world.writer.of(Disconnected)) == 1
        assert session.codes == [CloseCode.SHUTDOWN]

    async def test_of_a_channels_epoch_ends_the_session_with_insufficient_state(self, world: World) -> None:
        session = world.session("ops")
        other = world.connected("ops", channel_epoch=EPOCH + 1, epoch=EPOCH + 1)
        world.session(connected=other)
        assert session.codes == [CloseCode.INSUFFICIENT_STATE]


class TestEncodings:
    async def test_json_gets_the_same_messages(self, world: World) -> None:
        await world.publish("ops", 2)
        session = world.session("ops", is_json=True)
        await world.settle()
        await world.publish("ops", 1)
        assert offsets(session.taken()) == [1, 2, 3]


class TestFullWriter:
    async def test_is_waited_for_and_not_taken_for_a_database_that_is_away(self, world: World) -> None:
        session = world.session("ops")
        session.taken()
        world.writer.results[Reported] = ReportOutcome("recorded", None, False, False)
        world.writer.is_full = True
        session.receive(Report(b"r" * 16, b"\x01" * 16, 1, "verified"), 0.0)
        await world.settle()
        assert session.taken() == []
        assert session.codes == []
        world.writer.is_full = False
        world.writer.room.set()
        await world.settle()
        assert session.taken() == [Recorded(b"r" * 16, "recorded")]
