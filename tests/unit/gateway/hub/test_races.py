"""The hub at the worst moments: channels that close, come again, or change while a gap is healed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from device_sdk.wire.names import ChannelName, FleetName
from gateway.clock import FakeClock
from gateway.errors import NotFoundError, StorageUnavailableError
from gateway.hub import Channel, Hub, HubKey, HubLimits
from tests.unit.gateway.hub.test_hub import EPOCH, KEY, Item, Lane, Log, opened, settle


class GatedLog(Log):
    """A log whose reads wait until they are let go."""

    gate: asyncio.Event | None = None
    error: Exception | None = None
    heads: int = 0

    async def missing(self, channel: Channel, first: int, last: int) -> Sequence[Item]:
        self.reads.append((first, last))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if self.failures:
            self.failures -= 1
            raise StorageUnavailableError("away")
        return [self.items[offset] for offset in range(first, last + 1) if offset in self.items]

    async def head(self, channel: Channel) -> int:
        self.heads += 1
        if self.failures:
            self.failures -= 1
            raise StorageUnavailableError("away")
        return max(self.items, default=0)

    def have(self, *offsets: int) -> None:
        self.items |= {offset: Item(offset) for offset in offsets}


class Subscriber(Lane):
    """A lane that goes when its channel is not the one it was, as a session's does."""

    def __init__(self, hub: Hub, channel: Channel) -> None:
        super().__init__(channel)
        self.hub = hub
        channel.join_live(self)

    def discontinued(self) -> None:
        super().discontinued()
        self.hub.close(self.channel)

    def quit(self) -> None:
        self.channel.leave(self)
        self.hub.close(self.channel)


@pytest.fixture
def log() -> GatedLog:
    return GatedLog()


@pytest.fixture
def hub(log: GatedLog) -> Hub:
    return Hub(log, clock=FakeClock(), limits=HubLimits(0.0, 0.0))


class TestAnotherEpoch:
    async def test_first_session_of_the_new_one_is_delivered_to(self, hub: Hub) -> None:
        Subscriber(hub, opened(hub))
        new = opened(hub, epoch=EPOCH + 1, head=4)
        lane = Subscriber(hub, new)
        hub.deliver(KEY, EPOCH + 1, [Item(5)])
        assert lane.frames == [b"cbor5"]

    async def test_notification_that_ends_the_old_one_is_found_by_who_comes_next(
        self, hub: Hub, log: GatedLog
    ) -> None:
        log.have(1)
        old = Subscriber(hub, opened(hub))
        hub.deliver(KEY, EPOCH + 1, [Item(1)])  # after the hello below read the database
        assert old.ended
        lane = Subscriber(hub, opened(hub, epoch=EPOCH + 1, head=0))
        await settle()
        assert lane.frames == [b"cbor1"]

    async def test_while_a_gap_of_the_old_one_is_healed_leaves_nothing_to_heal(
        self, hub: Hub, log: GatedLog
    ) -> None:
        log.gate = asyncio.Event()
        Subscriber(hub, opened(hub))
        hub.deliver(KEY, EPOCH, [Item(100)])
        await settle()
        new = opened(hub, epoch=EPOCH + 1, head=3)
        lane = Subscriber(hub, new)
        log.gate.set()
        await settle()
        assert not new.is_healing
        assert len(log.reads) == 1
        hub.deliver(KEY, EPOCH + 1, [Item(4)])
        assert lane.frames == [b"cbor4"]


class TestReopened:
    async def test_alert_that_only_the_session_before_saw_is_found(self, hub: Hub, log: GatedLog) -> None:
        log.have(1)
        before = Subscriber(hub, opened(hub))
        hub.deliver(KEY, EPOCH, [Item(1)])  # the next session's hello read the database before this
        before.quit()
        lane = Subscriber(hub, opened(hub, head=0))
        await settle()
        assert lane.frames == [b"cbor1"]

    async def test_channel_that_was_left_at_the_head_is_quiet_again(self, hub: Hub) -> None:
        before = Subscriber(hub, opened(hub))
        hub.deliver(KEY, EPOCH, [Item(1)])
        before.quit()
        assert not hub.is_quiet(KEY, 0)
        assert hub.is_quiet(KEY, 1)


class TestHealing:
    async def test_goes_on_to_a_head_that_was_heard_of_meanwhile(self, hub: Hub, log: GatedLog) -> None:
        log.gate = asyncio.Event()
        lane = Subscriber(hub, opened(hub))
        log.have(1, 2, 3, 4)
        opened(hub, head=2)
        await settle()
        opened(hub, head=4)
        log.gate.set()
        await settle()
        assert lane.frames == [b"cbor1", b"cbor2", b"cbor3", b"cbor4"]

    async def test_ends_when_nobody_has_the_channel_any_more(self, hub: Hub, log: GatedLog) -> None:
        log.error = StorageUnavailableError("away")
        lane = Subscriber(hub, opened(hub))
        hub.deliver(KEY, EPOCH, [Item(5)])
        await settle()
        lane.quit()
        await settle()
        reads = len(log.reads)
        await settle()
        assert len(log.reads) == reads
        assert hub.channel(KEY) is None

    async def test_of_a_channel_that_is_gone_sends_its_sessions_back(self, hub: Hub, log: GatedLog) -> None:
        log.error = NotFoundError("the channel is gone")
        lane = Subscriber(hub, opened(hub))
        hub.deliver(KEY, EPOCH, [Item(5)])
        await settle()
        assert lane.ended
        assert hub.channel(KEY) is None
        assert len(log.reads) == 1

    async def test_more_notifications_than_are_held_are_all_delivered(self, hub: Hub, log: GatedLog) -> None:
        log.gate = asyncio.Event()
        channel = opened(hub)
        lane = Subscriber(hub, channel)
        lane.credit = 10_000
        log.have(*range(1, 1501))
        for offset in range(2, 1501):
            hub.deliver(KEY, EPOCH, [Item(offset)])
        log.gate.set()
        await settle()
        assert len(lane.frames) == 1500
        assert channel.next == 1501


class TestLaneThatFails:
    async def test_is_sent_back_and_does_not_keep_others_or_the_publisher(self, hub: Hub) -> None:
        channel = opened(hub)
        bad, good = Lane(channel), Lane(channel)

        def fail() -> None:
            raise AssertionError("our bug")

        bad.head_raised = fail  # type: ignore[method-assign]
        channel.join_behind(bad)
        channel.join_behind(good)
        hub.deliver(KEY, EPOCH, [Item(1)])
        assert bad.ended
        assert good.raised == 1
        assert channel.behind == [good]


class TestDoubt:
    """An append whose outcome nobody saw."""

    async def test_is_settled_by_the_log_and_what_is_there_is_delivered(
        self, hub: Hub, log: GatedLog
    ) -> None:
        lane = Subscriber(hub, opened(hub))
        log.have(1)
        log.failures = 2  # the database is away for a while longer
        hub.doubt(KEY)
        await settle()
        assert lane.frames == [b"cbor1"]

    async def test_asks_once_and_changes_nothing_if_nothing_is_there(self, hub: Hub, log: GatedLog) -> None:
        channel = opened(hub)
        lane = Subscriber(hub, channel)
        hub.doubt(KEY)
        hub.doubt(KEY)
        await settle()
        assert log.heads == 1
        assert lane.frames == []
        assert not channel.is_healing

    async def test_of_a_channel_that_nobody_has_is_told_and_kept_for_who_comes_next(
        self, hub: Hub, log: GatedLog
    ) -> None:
        told: list[HubKey] = []
        hub.unclaimed = told.append
        hub.doubt(KEY)
        await settle()
        assert told == [KEY]  # a device whose own channel is asleep
        assert not hub.is_quiet(KEY, 0)
        log.have(1)
        lane = Subscriber(hub, opened(hub))  # its hello read the database before that
        await settle()
        assert lane.frames == [b"cbor1"]
        lane.quit()
        assert hub.is_quiet(KEY, 1)


async def test_frame_that_cannot_be_made_delivers_nothing_and_moves_nothing(hub: Hub) -> None:
    class Bad(Item):
        def frame(self, *, is_json: bool) -> bytes:
            raise ValueError("our bug")

    channel = Channel(KEY, id=1, fleet=FleetName("a"), name=ChannelName("ops"), epoch=1, head=0)
    channel.join_live(Lane(channel))
    with pytest.raises(ValueError, match="our bug"):
        channel.fan_out(Bad(1), 0.0)
    assert channel.next == 1
