"""The hub delivers in order, whatever order notifications come in, and forgets nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.wire.names import ChannelName, FleetName
from gateway.clock import FakeClock
from gateway.errors import StorageUnavailableError
from gateway.hub import Channel, Hub, HubLimits, device_channel
from gateway.hub.channel import WINDOW_LEN_MAX

KEY = device_channel(1, ChannelName("ops"))
EPOCH = 7


@dataclass(frozen=True)
class Item:
    offset: int
    size: int = 10

    def frame(self, *, is_json: bool) -> bytes:
        return b"%s%d" % (b"json" if is_json else b"cbor", self.offset)


@dataclass
class Log:
    """What is committed; pruned offsets are absent."""

    items: dict[int, Item] = field(default_factory=dict)
    reads: list[tuple[int, int]] = field(default_factory=list)
    failures: int = 0

    async def missing(self, channel: Channel, first: int, last: int) -> Sequence[Item]:
        self.reads.append((first, last))
        if self.failures:
            self.failures -= 1
            raise StorageUnavailableError("away")
        return [self.items[offset] for offset in range(first, last + 1) if offset in self.items]


class Lane:
    """A lane and its session in one."""

    def __init__(self, channel: Channel, *, credit: int = 1000, is_json: bool = False) -> None:
        self.index = -1
        self.channel = channel
        self.credit = credit
        self.credit_bytes = 1_000_000
        self.is_json = is_json
        self.frames: list[bytes] = []
        self.fell: list[int] = []
        self.raised = 0
        self.ended = False

    @property
    def session(self) -> Lane:
        return self

    @property
    def connection(self) -> Lane:
        return self

    def write(self, data: bytes) -> None:
        self.frames.append(data)

    def fall_behind(self, sent: int) -> None:
        self.fell.append(sent)

    def head_raised(self) -> None:
        self.raised += 1

    def discontinued(self) -> None:
        self.ended = True


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def hub(log: Log) -> Hub:
    return Hub(log, clock=FakeClock(), limits=HubLimits(0.0, 0.0))


def opened(hub: Hub, *, head: int = 0, epoch: int = EPOCH, id: int = 1) -> Channel:
    return hub.open(KEY, id=id, fleet=FleetName("acme"), name=ChannelName("ops"), epoch=epoch, head=head)


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


class TestFanOut:
    async def test_same_bytes_go_to_every_live_lane_of_an_encoding(self, hub: Hub) -> None:
        channel = opened(hub)
        lanes = [Lane(channel), Lane(channel), Lane(channel, is_json=True)]
        for lane in lanes:
            channel.join_live(lane)
        hub.deliver(KEY, EPOCH, [Item(1)])
        assert lanes[0].frames[0] is lanes[1].frames[0]
        assert lanes[2].frames == [b"json1"]

    async def test_lane_without_credit_falls_behind_at_the_offset_before(self, hub: Hub) -> None:
        channel = opened(hub)
        lane, other = Lane(channel, credit=1), Lane(channel)
        channel.join_live(lane)
        channel.join_live(other)
        hub.deliver(KEY, EPOCH, [Item(1), Item(2), Item(3)])
        assert lane.frames == [b"cbor1"]
        assert lane.fell == [1]
        assert other.frames == [b"cbor1", b"cbor2", b"cbor3"]
        assert channel.behind == [lane]

    async def test_bytes_are_credit_too_and_the_first_alert_always_fits(self, hub: Hub) -> None:
        channel = opened(hub)
        lane = Lane(channel)
        lane.credit_bytes = 1
        channel.join_live(lane)
        hub.deliver(KEY, EPOCH, [Item(1, size=500), Item(2)])
        assert lane.frames == [b"cbor1"]
        assert lane.fell == [1]

    async def test_repeated_notifications_change_nothing(self, hub: Hub) -> None:
        channel = opened(hub)
        lane = Lane(channel)
        channel.join_live(lane)
        hub.deliver(KEY, EPOCH, [Item(1)])
        hub.deliver(KEY, EPOCH, [Item(1), Item(2)])
        assert lane.frames == [b"cbor1", b"cbor2"]

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
    def test_leaving_keeps_every_other_lane_where_it_is(self, steps: list[tuple[bool, int]]) -> None:
        channel = Channel(KEY, id=1, fleet=FleetName("a"), name=ChannelName("ops"), epoch=1, head=0)
        lanes = [Lane(channel) for _ in range(10)]
        for is_live, number in steps:
            lane = lanes[number]
            channel.leave(lane)
            if is_live:
                channel.join_live(lane)
            elif number % 2:
                channel.join_behind(lane)
        for members in (channel.live, channel.behind):
            assert [lane.index for lane in members] == list(range(len(members)))
        assert not set(map(id, channel.live)) & set(map(id, channel.behind))


class TestGap:
    async def test_overtaken_notification_is_waited_for_and_needs_no_read(self, hub: Hub, log: Log) -> None:
        channel = opened(hub)
        lane = Lane(channel)
        channel.join_live(lane)
        hub.deliver(KEY, EPOCH, [Item(2)])
        assert lane.frames == []
        hub.deliver(KEY, EPOCH, [Item(1)])
        assert lane.frames == [b"cbor1", b"cbor2"]
        await settle()
        assert log.reads == []

    async def test_lost_notification_is_read_once_and_delivered_in_order(self, hub: Hub, log: Log) -> None:
        channel = opened(hub)
        lane = Lane(channel)
        channel.join_live(lane)
        log.items = {offset: Item(offset) for offset in range(1, 6)}
        hub.deliver(KEY, EPOCH, [Item(4)])
        hub.deliver(KEY, EPOCH, [Item(5)])
        await settle()
        assert lane.frames == [b"cbor1", b"cbor2", b"cbor3", b"cbor4", b"cbor5"]
        assert len(log.reads) == 1

    async def test_read_that_fails_is_tried_again(self, hub: Hub, log: Log) -> None:
        channel = opened(hub)
        lane = Lane(channel)
        channel.join_live(lane)
        log.items = {1: Item(1), 2: Item(2)}
        log.failures = 2
        hub.deliver(KEY, EPOCH, [Item(2)])
        await settle()
        assert lane.frames == [b"cbor1", b"cbor2"]

    async def test_pruned_offsets_make_live_lanes_fall_behind_before_them(self, hub: Hub, log: Log) -> None:
        channel = opened(hub)
        lane = Lane(channel)
        channel.join_live(lane)
        log.items = {3: Item(3)}
        hub.deliver(KEY, EPOCH, [Item(3)])
        await settle()
        assert lane.frames == []
        assert lane.fell == [0]
        assert lane.raised
        assert channel.next == 4

    async def test_publish_between_a_hello_and_its_session_is_found(self, hub: Hub, log: Log) -> None:
        log.items = {1: Item(1)}
        hub.deliver(KEY, EPOCH, [Item(1)])  # nobody has the channel yet
        channel = opened(hub, head=0)  # the hello read the database before that
        lane = Lane(channel)
        channel.join_behind(lane)
        await settle()
        assert channel.next == 2
        assert lane.raised

    async def test_head_above_the_hubs_is_a_lost_notification(self, hub: Hub, log: Log) -> None:
        channel = opened(hub, head=0)
        lane = Lane(channel)
        channel.join_live(lane)
        log.items = {1: Item(1), 2: Item(2)}
        opened(hub, head=2)
        await settle()
        assert lane.frames == [b"cbor1", b"cbor2"]

    @given(st.permutations(range(1, 9)))
    async def test_any_order_of_notifications_is_delivered_in_order(self, order: list[int]) -> None:
        log = Log({offset: Item(offset) for offset in range(1, 9)})
        hub = Hub(log, clock=FakeClock(), limits=HubLimits(0.0, 0.0))
        channel = opened(hub)
        lane = Lane(channel)
        channel.join_live(lane)
        for offset in order:
            hub.deliver(KEY, EPOCH, [Item(offset)])
        await settle()
        assert lane.frames == [b"cbor%d" % offset for offset in range(1, 9)]
        await hub.stop()


class TestEpoch:
    async def test_another_one_ends_every_session_of_the_old(self, hub: Hub) -> None:
        channel = opened(hub)
        live, behind = Lane(channel), Lane(channel)
        channel.join_live(live)
        channel.join_behind(behind)
        again = opened(hub, epoch=EPOCH + 1, head=4)
        assert live.ended
        assert behind.ended
        assert (again.epoch, again.next) == (EPOCH + 1, 5)
        hub.deliver(KEY, EPOCH, [Item(5)])
        assert again.next == 5

    async def test_deleted_channel_ends_its_sessions(self, hub: Hub) -> None:
        channel = opened(hub)
        lane = Lane(channel)
        channel.join_live(lane)
        hub.drop(KEY)
        assert lane.ended
        assert hub.channel(KEY) is None


class TestMemory:
    async def test_sizes_and_times_are_known_for_the_window_and_no_more(self, hub: Hub) -> None:
        channel = opened(hub)
        count = 3 * WINDOW_LEN_MAX
        for offset in range(1, count + 1):
            channel.fan_out(Item(offset, size=offset), now=float(offset))
        assert channel.bytes_between(count - 2, count) == 2 * count - 1
        assert channel.bytes_between(count - WINDOW_LEN_MAX, count) == sum(
            range(count - WINDOW_LEN_MAX + 1, count + 1)
        )
        assert channel.delivered_at(count) == float(count)
        assert channel.delivered_at(1) is None

    async def test_channel_that_nobody_has_is_forgotten(self, hub: Hub) -> None:
        channel = opened(hub)
        lane = Lane(channel)
        channel.join_live(lane)
        hub.close(channel)
        assert hub.channel(KEY) is channel
        channel.leave(lane)
        hub.close(channel)
        assert hub.channel(KEY) is None
