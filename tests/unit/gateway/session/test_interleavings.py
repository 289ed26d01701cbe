"""A session at the worst moments: what comes between a question and its answer, and what fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Ack, Advance, Alert, Error, Lost, Message, Nack, Position, Report
from gateway.errors import StorageUnavailableError
from gateway.fleet.facts import Adopted, Attempted, DeadLettered, IntervalOpened, Reported, Sent
from gateway.fleet.model import ConnectedSubscription
from gateway.rollout import Offer, ReportOutcome
from gateway.session.conversation import State
from gateway.session.limits import SessionLimits
from tests.unit.gateway.session.node import EPOCH, PushedSession, World

OWN = "~d1"


def offsets(messages: Sequence[Message], channel: str | None = None) -> list[int]:
    return [m.offset for m in messages if isinstance(m, Alert) and channel in (None, m.channel)]


def ack(session: PushedSession, channel: str, offset: int) -> None:
    session.receive(Ack(positions={channel: Position(EPOCH, offset)}), session.node.clock.monotonic())


@pytest.fixture
def world() -> World:
    made = World()
    made.store.add("ops")
    return made


class ClosingSession(PushedSession):
    """A session whose transport closes it in the middle of a write, as one of a slow consumer does."""

    __slots__ = ("closes",)

    def _send(self, messages: Sequence[bytes]) -> None:
        super()._send(messages)
        if getattr(self, "closes", False):
            self.close(CloseCode.SLOW_CONSUMER)


class TestEndedInTheMiddle:
    async def test_of_a_change_of_subscriptions_leaves_nothing_in_the_hub(self, world: World) -> None:
        world.store.add("more")
        other = world.session("more")
        session = world.session("ops", of=ClosingSession)
        session.closes = True
        session.subscriptions_changed(world.connected("more", "ops").subscriptions, world.clock.monotonic())
        assert session.state is State.CLOSED
        assert world.hub_channel("ops") is None
        more = world.hub_channel("more")
        assert more is not None
        assert [lane.session for lane in (*more.live, *more.behind)] == [other]

    async def test_of_the_beginning_counts_no_attempt(self, world: World) -> None:
        await world.publish("ops")
        connected = replace(world.connected("ops", was_sent=True), previous_boot_id=b"x" * 16)
        session = world.session(connected=connected, of=ClosingSession, closes=True)
        await world.settle()
        assert session.state is State.CLOSED
        assert not world.writer.of(Attempted)
        assert world.hub_channel("ops") is None

    async def test_while_its_block_is_read_is_sent_nothing(self, world: World) -> None:
        await world.publish("ops", 3)
        world.log.forget(1)
        session = world.session("ops")
        session.close(CloseCode.SHUTDOWN)
        session.taken()
        await world.settle()
        assert session.taken() == []
        assert not world.writer.of(Sent)

    async def test_while_an_attempt_is_committed_is_sent_nothing(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops")
        session.visit(world.clock.monotonic())
        world.writer.is_held = True
        world.clock.advance(11)
        session.visit(world.clock.monotonic())
        await world.settle()
        session.close(CloseCode.SHUTDOWN)
        session.taken()
        world.writer.held[0].set_result(None)
        await world.settle()
        assert session.taken() == []

    async def test_while_a_report_is_committed_asks_for_no_update(self, world: World) -> None:
        session = world.session("ops")
        session.update_channels = (5,)
        world.writer.is_held = True
        session.receive(Report(b"r" * 16, b"\x01" * 16, 1, "committed"), 0.0)
        await world.settle()
        session.close(CloseCode.SHUTDOWN)
        (held,) = world.writer.held
        held.set_result(ReportOutcome("recorded", None, True, False))
        await world.settle()
        assert world.writer.of(Reported)
        assert world.updates.asked == []


class TestLaneDropped:
    async def test_while_its_block_is_read_is_sent_nothing(self, world: World) -> None:
        world.store.add("more")
        await world.publish("more", 3)
        world.log.forget(2)
        session = world.session("ops", "more")
        session.subscriptions_changed(world.connected("ops").subscriptions, world.clock.monotonic())
        await world.settle()
        assert offsets(session.taken()) == []
        assert session.credit == 32
        assert world.hub_channel("more") is None

    async def test_while_its_attempt_is_committed_is_sent_nothing_and_keeps_no_credit(
        self, world: World
    ) -> None:
        world.store.add("more")
        session = world.session("ops", "more")
        await world.publish("more", 3)
        session.visit(world.clock.monotonic())
        world.writer.is_held = True
        world.clock.advance(11)
        session.visit(world.clock.monotonic())
        await world.settle()
        session.subscriptions_changed(world.connected("ops").subscriptions, world.clock.monotonic())
        session.taken()
        world.writer.held[0].set_result(None)
        await world.settle()
        assert session.taken() == []
        assert session.credit == 32


class TestAckedMeanwhile:
    async def test_while_an_attempt_is_committed_is_not_sent_again(self, world: World) -> None:
        session = world.session("ops")
        await world.publish("ops", 2)
        session.visit(world.clock.monotonic())
        world.writer.is_held = True
        world.clock.advance(11)
        session.visit(world.clock.monotonic())
        await world.settle()
        ack(session, "ops", 2)
        session.taken()
        world.writer.held[0].set_result(None)
        await world.settle()
        assert session.taken() == []
        assert session.credit == 32
        await world.publish("ops")
        assert offsets(session.taken()) == [3]

    async def test_while_a_block_is_read_goes_on_after_it(self, world: World) -> None:
        await world.publish("ops", 5)
        world.log.forget(1)
        session = world.session("ops")
        ack(session, "ops", 3)
        await world.settle()
        assert offsets(session.taken()) == [4, 5]

    async def test_above_what_was_sent_but_not_above_the_head_is_taken(self, world: World) -> None:
        await world.publish("ops", 5)
        session = world.session("ops", window=2)
        await world.settle()
        ack(session, "ops", 5)
        await world.settle()
        assert session.credit == 2
        await world.publish("ops")
        assert offsets(session.taken()) == [1, 2, 6]


class TestWindowOfZero:
    async def test_at_hello_after_a_reboot_counts_no_attempt(self, world: World) -> None:
        await world.publish("ops")
        connected = replace(
            world.connected("ops", was_sent=True, stuck_offset=1, attempts=19), previous_boot_id=b"x" * 16
        )
        session = world.session(connected=connected, window=0)
        await world.settle()
        assert not world.writer.of(Attempted)
        assert not world.writer.of(DeadLettered)
        session.receive(Ack(window=1), world.clock.monotonic())
        await world.settle()
        assert offsets(session.taken()) == [1]


class TestLostAdoption:
    async def test_device_that_adopted_is_believed_though_the_gateway_forgot(self, world: World) -> None:
        """The node was killed between ``lost`` and the commit of the position that the device adopted."""
        await world.publish("ops", 5)
        session = world.session(
            connected=world.connected("ops", epoch=3, offset=9), positions={"ops": Position(EPOCH, 4)}
        )
        await world.settle()
        messages = session.taken()
        assert not [m for m in messages if isinstance(m, Lost)]
        assert offsets(messages) == [5]
        assert world.writer.of(Adopted) == [Adopted(101, EPOCH, 4)]


class TestTurns:
    async def test_channel_with_a_long_way_to_go_does_not_keep_another_waiting(self, world: World) -> None:
        world.store.add("rare")
        await world.publish("ops", 100)
        await world.publish("rare", 1)
        session = world.session("ops", "rare", window=4)
        await world.settle()
        first = offsets(session.taken(), "ops")
        assert first == [1, 2, 3, 4]
        ack(session, "ops", 4)
        await world.settle()
        assert offsets(session.taken(), "rare") == [1]

    async def test_every_channel_comes_to_its_end(self, world: World) -> None:
        names = ("a", "b", "c")
        for name in names:
            world.store.add(name)
            await world.publish(name, 20)
        session = world.session(*names, window=3)
        stands = dict.fromkeys(names, 0)
        for _ in range(60):
            await world.settle()
            for message in session.taken():
                if isinstance(message, Alert):
                    assert message.offset == stands[message.channel] + 1
                    stands[message.channel] = message.offset
                    ack(session, message.channel, message.offset)
        assert stands == dict.fromkeys(names, 20)
        assert session.credit == 3


class TestFullWriter:
    async def test_pages_wait_until_it_takes_their_facts(self, world: World) -> None:
        await world.publish("ops", 3)
        world.writer.is_full = True
        session = world.session("ops")
        await world.settle()
        assert offsets(session.taken()) == []
        session.visit(world.clock.monotonic())
        await world.settle()
        assert offsets(session.taken()) == []
        world.writer.is_full = False
        session.visit(world.clock.monotonic())
        await world.settle()
        assert offsets(session.taken()) == [1, 2, 3]
        assert [interval.first for interval in world.writer.of(IntervalOpened)] == [4]


class TestUpdatesAway:
    async def test_question_that_fails_is_asked_again_and_ends_no_session(self, world: World) -> None:
        session = world.session("ops")
        session.update_channels = (5,)
        world.updates.error = StorageUnavailableError("away")
        session.offer_updates()
        await world.settle()
        assert session.state is State.OPEN
        world.updates.error = None
        world.updates.offers = [offer()]
        session.visit(world.clock.monotonic())
        await world.settle()
        assert session.pending is not None
        assert len(world.updates.asked) == 2

    async def test_redelivery_that_fails_is_tried_again_and_ends_no_session(self, world: World) -> None:
        session = world.session("ops")
        session.push(offer())
        world.updates.error = StorageUnavailableError("away")
        world.clock.advance(11)
        session.visit(world.clock.monotonic())
        await world.settle()
        assert session.state is State.OPEN
        world.updates.error = None
        world.updates.redeliveries = [None]
        world.clock.advance(11)
        session.visit(world.clock.monotonic())
        await world.settle()
        assert session.pending == {}


def offer() -> Offer:
    return Offer(
        device_key=11,
        deployment_id=b"\x01" * 16,
        component="main",  # type: ignore[arg-type]
        directive=b"d",
        manifest=b"m",
        attempt=1,
        superseded=(),
    )


class TestOwnChannelAsleep:
    """Every device has a channel of its own, and it costs nothing while it is empty."""

    @pytest.fixture
    def own(self, world: World) -> World:
        world.store.add(OWN)
        return world

    def stands(self, world: World, offset: int) -> tuple[ConnectedSubscription, ...]:
        return (
            *world.connected("ops").subscriptions,
            *world.connected(OWN, offset=offset).subscriptions,
        )

    async def test_has_no_lane_and_an_ack_of_it_is_no_error(self, own: World) -> None:
        await own.publish(OWN, 2)
        session = own.session(connected=replace(own.connected(), subscriptions=self.stands(own, 2)))
        assert [lane.channel.name for lane in session.lanes] == ["ops"]
        session.taken()
        ack(session, OWN, 2)
        assert session.taken() == []

    async def test_refusal_that_comes_after_the_ack_becomes_a_dead_letter_all_the_same(
        self, own: World
    ) -> None:
        """Its connection went before the nack was sent; the hello acknowledged what the device moved past."""
        await own.publish(OWN, 2)
        session = own.session(connected=replace(own.connected(), subscriptions=self.stands(own, 2)))
        own.subscriptions.found = self.stands(own, 2)
        session.taken()
        session.receive(Nack(OWN, EPOCH, 2, "bad_signature"), own.clock.monotonic())
        await own.settle()
        (dead,) = own.writer.of(DeadLettered)
        assert (dead.offset, dead.reason, dead.code) == (2, "nacked", "bad_signature")
        assert session.taken() == []
        await own.publish(OWN)
        assert offsets(session.taken()) == [3]

    async def test_refusal_of_what_it_never_had_is_an_error(self, own: World) -> None:
        session = own.session(connected=replace(own.connected(), subscriptions=self.stands(own, 0)))
        own.subscriptions.found = self.stands(own, 0)
        session.taken()
        session.receive(Nack(OWN, EPOCH, 2, "bad_signature"), own.clock.monotonic())
        await own.settle()
        assert session.taken() == [Error("bad_position", OWN)]
        assert not own.writer.of(DeadLettered)

    async def test_publish_since_the_hello_gives_it_a_lane(self, own: World) -> None:
        connected = replace(own.connected(), subscriptions=self.stands(own, 0))
        await own.publish(OWN)  # between the hello and the start
        session = own.session(connected=connected)
        await own.settle()
        assert offsets(session.taken(), OWN) == [1]


class TestSpent:
    async def test_advance_that_is_not_acknowledged_is_not_given_up_twice(self) -> None:
        world = World(limits=SessionLimits(attempts_max=1))
        world.store.add("ops")
        session = world.session("ops")
        await world.publish("ops", 1)
        for _ in range(3):
            session.visit(world.clock.monotonic())
            world.clock.advance(400)
            session.visit(world.clock.monotonic())
            await world.settle()
        assert len(world.writer.of(DeadLettered)) == 1
        assert Advance("ops", EPOCH, 1, 1, "dead_letter") in session.taken()
