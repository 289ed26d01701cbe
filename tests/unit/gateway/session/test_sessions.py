"""The sessions of a node: one a device, visited by one wheel, told of what changes, whenever it changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Alert, Cancel, Goaway, Hello, Roots, Subscriptions, Update
from gateway.errors import StorageUnavailableError
from gateway.fleet.model import Connected, ConnectedSubscription
from gateway.rollout import Offer
from gateway.session.conversation import State
from gateway.session.sessions import Sessions
from tests.unit.gateway.session.node import EPOCH, Directory, PushedSession, World

UPDATES = 50  # id of a channel of updates


class Place:
    """A node with its sessions."""

    def __init__(self) -> None:
        self.world = World()
        self.directory = Directory()
        self.slept: list[float] = []
        self.sessions = Sessions(
            self.world.node, store=self.directory, cancels=self.directory, wheel_s=4.0, sleep=self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def subscription(self, channel_id: int, kind: str = "update", **fields: Any) -> ConnectedSubscription:
        return ConnectedSubscription(
            **{
                "id": 100 + channel_id,
                "channel_id": channel_id,
                "channel": f"c{channel_id}",
                "kind": kind,
                "epoch": EPOCH,
                "offset": 0,
                "stuck_offset": 0,
                "attempts": 0,
                "channel_epoch": EPOCH,
                "head": 0,
                "floor": 0,
                **fields,
            }
        )

    def connected(
        self, device_key: int, *subscriptions: ConnectedSubscription, root: bytes | None = None
    ) -> Connected:
        return Connected(1, device_key, b"e" * 16, 0, None, subscriptions, 0, root)

    def connecting(self, device: str = "d1") -> Arriving:
        """A device whose hello is being committed."""
        return Arriving(self, device, self.sessions.mark())

    def join(self, device_key: int, *subscriptions: ConnectedSubscription) -> PushedSession:
        self.directory.keys[f"d{device_key}"] = device_key
        self.directory.found[device_key] = subscriptions
        return self.connecting(f"d{device_key}").start(self.connected(device_key, *subscriptions))

    async def settle(self) -> None:
        await self.world.settle()


class Arriving:
    def __init__(self, place: Place, device: str, mark: int) -> None:
        self.place = place
        self.mark = mark
        self.session = EndingSession(place.world.node, device=device)
        self.session.sessions = place.sessions

    def start(self, connected: Connected) -> PushedSession:
        place = self.place
        place.sessions.watch(self.session, self.session.verdict.device_id)
        place.sessions.register(self.session, connected.device_key)
        self.session.start(
            Hello(protocol=1, window=32, boot_id=b"b" * 16), connected, statement=None, spread_s=0, now=0.0
        )
        place.sessions.opened(self.session, since=self.mark)
        self.session.taken()
        return self.session


class EndingSession(PushedSession):
    """A session that leaves the node when it ends, as its transport sees to."""

    __slots__ = ("sessions",)
    sessions: Sessions

    def ended(self) -> None:
        was = self.state
        super().ended()
        if was is not State.CLOSED:
            self.sessions.unwatch(self, self.verdict.device_id)
            self.sessions.forget(self)


@pytest.fixture
def place() -> Place:
    return Place()


def offer(device_key: int, number: int = 1) -> Offer:
    return Offer(
        device_key=device_key,
        deployment_id=bytes([number]) * 16,
        component="main",  # type: ignore[arg-type]
        directive=b"d",
        manifest=b"m",
        attempt=1,
        superseded=(),
    )


class TestNewestWins:
    async def test_the_older_session_is_replaced_and_only_the_newer_is_offered_updates(
        self, place: Place
    ) -> None:
        old = place.join(11, place.subscription(UPDATES))
        new = place.join(11, place.subscription(UPDATES))
        assert old.codes == [CloseCode.REPLACED]
        assert place.sessions.of_device(11) is new
        assert len(place.sessions) == 1
        place.world.updates.offers = [offer(11)]
        place.sessions.rollout_changed(UPDATES)
        await place.settle()
        assert place.world.updates.asked == [[11]]
        assert [type(message) for message in new.taken()] == [Update]
        assert old.taken() == []

    async def test_end_of_the_older_does_not_end_the_newer(self, place: Place) -> None:
        old = place.join(11)
        new = place.join(11)
        old.ended()
        assert place.sessions.of_device(11) is new
        new.ended()
        assert place.sessions.of_device(11) is None

    async def test_session_that_ended_while_it_began_leaves_nothing(self, place: Place) -> None:
        arriving = place.connecting()
        session = arriving.session
        place.sessions.register(session, 11)
        session.start(
            Hello(protocol=1, window=32, boot_id=b"b" * 16),
            place.connected(11, place.subscription(UPDATES)),
            statement=None,
            spread_s=0,
            now=0.0,
        )
        session.close(CloseCode.SLOW_CONSUMER)
        place.sessions.opened(session, since=arriving.mark)
        place.sessions.rollout_changed(UPDATES)
        await place.settle()
        assert place.world.updates.asked == []


class TestRollouts:
    async def test_devices_are_asked_for_in_batches(self, place: Place) -> None:
        for device_key in range(1, 452):
            place.join(device_key, place.subscription(UPDATES))
        place.join(999, place.subscription(UPDATES + 1))
        place.sessions.rollout_changed(UPDATES)
        await place.settle()
        assert [len(keys) for keys in place.world.updates.asked] == [200, 200, 51]
        assert not any(999 in keys for keys in place.world.updates.asked)

    async def test_batch_that_fails_is_asked_for_by_each_session_later(self, place: Place) -> None:
        session = place.join(11, place.subscription(UPDATES))
        place.world.updates.error = StorageUnavailableError("away")
        place.sessions.rollout_changed(UPDATES)
        await place.settle()
        assert session.wants_offer
        place.world.updates.error = None
        place.world.updates.offers = [offer(11)]
        session.visit(0.0)
        await place.settle()
        assert [type(message) for message in session.taken()] == [Update]

    async def test_offer_for_a_device_that_left_meanwhile_goes_nowhere(self, place: Place) -> None:
        session = place.join(11, place.subscription(UPDATES))
        place.world.updates.offers = [offer(11), offer(12)]
        place.sessions.rollout_changed(UPDATES)
        session.close(CloseCode.SHUTDOWN)
        await place.settle()
        assert session.taken() == []

    async def test_abort_tells_the_devices_that_have_a_deployment(self, place: Place) -> None:
        first = place.join(11, place.subscription(UPDATES))
        second = place.join(12, place.subscription(UPDATES))
        place.directory.deployments = [(11, b"c" * 16)]
        place.sessions.cancelled(UPDATES, b"r" * 16)
        await place.settle()
        assert first.taken() == [Cancel(b"c" * 16)]
        assert second.taken() == []

    async def test_abort_is_told_however_long_the_database_is_away(self, place: Place) -> None:
        session = place.join(11, place.subscription(UPDATES))
        place.directory.deployments = [(11, b"c" * 16)]
        place.directory.failures = 3
        place.sessions.cancelled(UPDATES, b"r" * 16)
        await place.settle()
        assert session.taken() == [Cancel(b"c" * 16)]

    async def test_abort_while_a_hello_is_committed_reaches_the_device(self, place: Place) -> None:
        arriving = place.connecting()
        connected = place.connected(11, place.subscription(UPDATES))  # before the abort
        place.directory.deployments = [(11, b"c" * 16)]
        place.sessions.cancelled(UPDATES, b"r" * 16)
        await place.settle()
        session = arriving.start(connected)
        await place.settle()
        assert session.taken() == [Cancel(b"c" * 16)]


class TestSubscriptionsChanged:
    async def test_are_read_again_and_taken_up(self, place: Place) -> None:
        session = place.join(11)
        place.directory.found[11] = (place.subscription(1, "alert"),)
        place.sessions.subscriptions_changed(11)
        await place.settle()
        assert [type(message) for message in session.taken()] == [Subscriptions]
        assert [lane.channel.id for lane in session.lanes] == [1]

    async def test_channel_of_updates_that_is_added_is_followed_from_then_on(self, place: Place) -> None:
        place.join(11)
        place.directory.found[11] = (place.subscription(UPDATES),)
        place.sessions.subscriptions_changed(11)
        await place.settle()
        place.sessions.rollout_changed(UPDATES)
        await place.settle()
        assert place.world.updates.asked == [[11], [11]]  # for the change, and for the rollout

    async def test_answers_that_overtake_one_another_leave_the_newest(self, place: Place) -> None:
        session = place.join(11)
        place.directory.is_held = True
        place.directory.found[11] = (place.subscription(1, "alert"),)
        place.sessions.subscriptions_changed(11)
        await place.settle()
        place.directory.found[11] = (place.subscription(1, "alert"), place.subscription(2, "alert"))
        place.sessions.subscriptions_changed(11)
        await place.settle()
        for gate in reversed(place.directory.gates):
            gate.set()
            await place.settle()
        while place.directory.gates and not place.directory.gates[-1].is_set():
            place.directory.gates[-1].set()
            await place.settle()
        assert sorted(lane.channel.id for lane in session.lanes) == [1, 2]

    async def test_answer_for_the_session_before_is_not_the_newer_ones(self, place: Place) -> None:
        place.join(11)
        place.directory.is_held = True
        place.sessions.subscriptions_changed(11)  # reads: nothing
        await place.settle()
        session = place.join(11, place.subscription(1, "alert"))  # its hello found more
        place.directory.is_held = False
        for gate in place.directory.gates:
            gate.set()
        await place.settle()
        assert [lane.channel.id for lane in session.lanes] == [1]

    async def test_are_read_again_until_the_database_answers(self, place: Place) -> None:
        session = place.join(11)
        place.directory.found[11] = (place.subscription(1, "alert"),)
        place.directory.failures = 3
        place.sessions.subscriptions_changed(11)
        await place.settle()
        assert [lane.channel.id for lane in session.lanes] == [1]
        assert len(place.slept) == 3

    async def test_while_a_hello_is_committed_are_taken_up(self, place: Place) -> None:
        arriving = place.connecting()
        connected = place.connected(11)  # before the change
        place.directory.found[11] = (place.subscription(1, "alert"),)
        place.sessions.subscriptions_changed(11)
        await place.settle()
        session = arriving.start(connected)
        await place.settle()
        assert [lane.channel.id for lane in session.lanes] == [1]

    async def test_before_a_hello_are_not_read_again(self, place: Place) -> None:
        place.sessions.subscriptions_changed(11)
        place.join(11)
        await place.settle()
        assert place.directory.asked == []

    async def test_of_a_device_that_is_gone_end_its_session(self, place: Place) -> None:
        session = place.join(11)
        del place.directory.found[11]
        place.sessions.subscriptions_changed(11)
        await place.settle()
        assert session.codes == [CloseCode.DEVICE_DISABLED]

    async def test_more_changes_than_are_remembered_send_the_device_back_to_find_its_own(
        self, place: Place
    ) -> None:
        arriving = place.connecting()
        for device_key in range(1000, 1000 + 5000):
            place.sessions.subscriptions_changed(device_key)
        assert arriving.start(place.connected(11)).codes == [CloseCode.CHANGED]
        assert place.join(11).codes == []


class TestDisabled:
    async def test_ends_the_session_at_once(self, place: Place) -> None:
        session = place.join(11)
        place.sessions.disabled(11)
        assert session.codes == [CloseCode.DEVICE_DISABLED]
        assert place.sessions.of_device(11) is None

    async def test_while_a_hello_is_committed_ends_the_session_that_it_opens(self, place: Place) -> None:
        arriving = place.connecting()
        connected = place.connected(11)  # it was enabled
        place.sessions.disabled(11)
        session = arriving.start(connected)
        assert session.codes == [CloseCode.DEVICE_DISABLED]
        assert place.sessions.of_device(11) is None

    async def test_before_a_hello_is_the_hellos_to_find(self, place: Place) -> None:
        place.sessions.disabled(11)
        assert place.join(11).codes == []  # it was enabled again


class TestWhatOperatorsSee:
    async def test_who_is_connected_by_fleet(self, place: Place) -> None:
        place.join(11)
        session = place.join(12)
        assert place.sessions.connected(1) == {11, 12}
        assert place.sessions.connected(2) == frozenset()
        assert place.sessions.is_connected(12)
        session.close(CloseCode.SHUTDOWN)
        assert place.sessions.connected(1) == {11}
        assert not place.sessions.is_connected(12)

    async def test_when_an_update_is_sent_again(self, place: Place) -> None:
        session = place.join(11, place.subscription(UPDATES))
        session.push(offer(11))
        wait_s = place.sessions.next_attempt_s(11, offer(11).deployment_id)
        assert wait_s is not None
        assert wait_s > 0
        assert place.sessions.next_attempt_s(11, bytes(16)) is None
        assert place.sessions.next_attempt_s(12, offer(11).deployment_id) is None


class TestChannelChanged:
    async def test_those_who_have_it_read_their_subscriptions_again(self, place: Place) -> None:
        place.join(11, place.subscription(1, "alert"))
        place.join(12, place.subscription(UPDATES))
        place.join(13, place.subscription(2, "alert"))
        place.sessions.channel_changed(1)
        place.sessions.channel_changed(UPDATES)
        await place.settle()
        assert place.directory.asked == [("subscriptions", 11), ("subscriptions", 12)]


class TestRootChanged:
    async def test_connected_devices_of_the_fleet_are_given_it(self, place: Place) -> None:
        session = place.join(11)
        place.directory.root = b"root"
        place.sessions.root_changed(2)
        await place.settle()
        assert session.taken() == []
        place.directory.failures = 1
        place.sessions.root_changed(1)
        await place.settle()
        assert session.taken() == [Roots((b"root",))]

    async def test_while_a_hello_is_committed_reaches_the_device(self, place: Place) -> None:
        arriving = place.connecting()
        connected = place.connected(11)
        place.directory.root = b"root"
        place.sessions.root_changed(1)
        await place.settle()
        session = arriving.start(connected)
        await place.settle()
        assert session.taken() == [Roots((b"root",))]


class TestOwnChannel:
    async def test_alert_in_it_wakes_it(self, place: Place) -> None:
        channel = place.world.store.add("~d11")
        own = place.subscription(channel.id, "alert", channel="~d11")
        session = place.join(11, own)
        assert session.lanes == ()
        place.directory.failures = 2
        await place.world.publish("~d11", 2)
        await place.settle()
        assert [m.offset for m in session.taken() if isinstance(m, Alert)] == [1, 2]

    async def test_alert_for_a_device_that_is_not_here_wakes_nobody(self, place: Place) -> None:
        place.world.store.add("~d11")
        place.world.store.add("~d12")
        place.directory.keys["d11"] = 11
        await place.world.publish("~d11")
        await place.world.publish("~d12")
        await place.settle()
        assert [what for what, _ in place.directory.asked] == ["device", "device"]
        assert not place.world.failures


class TestWheel:
    async def test_every_session_is_visited_once_a_turn(self, place: Place) -> None:
        visits: list[int] = []

        class Visited:
            def __init__(self, number: int) -> None:
                self.number = number

            def visit(self, now: float) -> None:
                visits.append(self.number)

        for number in range(100):
            place.sessions.watch(Visited(number), f"d{number}")
        wheel = asyncio.create_task(place.sessions.turn())
        while len(place.slept) <= 16:
            await asyncio.sleep(0)
        wheel.cancel()
        assert sorted(visits) == list(range(100))
        assert place.slept[0] == pytest.approx(4.0 / 16)

    async def test_one_that_fails_ends_alone(self, place: Place) -> None:
        class Failing(EndingSession):
            def visit(self, now: float) -> None:
                raise AssertionError("our bug")

        bad = Failing(place.world.node)
        bad.sessions = place.sessions
        good = place.join(11)
        visits = []
        place.sessions.watch(bad, "d11")
        place.sessions.unwatch(good, "d11")
        place.sessions.watch(good, "d11")

        def visit(now: float) -> None:
            visits.append(now)

        place.sessions.watch(type("V", (), {"visit": staticmethod(visit)})(), "d11")
        wheel = asyncio.create_task(place.sessions.turn())
        while len(place.slept) <= 17:
            await asyncio.sleep(0)
        wheel.cancel()
        assert visits
        assert bad.codes == [CloseCode.INTERNAL_ERROR]

    async def test_all_of_them_can_be_told_to_go(self, place: Place) -> None:
        sessions = [place.join(key) for key in range(1, 20)]
        assert set(place.sessions.all) == set(sessions)
        for session in place.sessions.all:
            session.go_away(CloseCode.SHUTDOWN, 7)
        assert all(session.taken()[-1] == Goaway(4000, 7) for session in sessions)
        assert all(session.codes == [CloseCode.SHUTDOWN] for session in sessions)
        assert len(place.sessions) == 0
