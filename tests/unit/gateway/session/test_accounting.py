"""Credit is what the window leaves of what is unacknowledged: whatever happens, and in whatever order."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from device_sdk.wire.messages import Ack, Advance, Alert, Position, Welcome, decode_cbor
from gateway.fleet.facts import IntervalClosed, IntervalOpened, Received, Sent
from gateway.session.deliveries import STALL
from gateway.session.limits import SessionLimits
from tests.unit.gateway.session.node import EPOCH, PushedSession, World

CHANNELS = ("ops", "site")
BYTES_MAX = 2_000


class Device:
    """What the device was sent in one channel, and what the gateway must think is unacknowledged."""

    def __init__(self) -> None:
        self.acked = 0
        self.sent = 0
        self.unacked: deque[tuple[int, int]] = deque()

    def take(self, first: int, last: int, size: int) -> None:
        assert first == self.sent + 1, "in order, and each once in an attempt"
        self.sent = last
        self.unacked.append((last, size))

    def ack(self, offset: int) -> None:
        self.acked = max(self.acked, offset)
        self.sent = max(self.sent, self.acked)
        while self.unacked and self.unacked[0][0] <= offset:
            self.unacked.popleft()

    def rewind(self) -> None:
        self.sent = self.acked
        self.unacked.clear()


class Model:
    def __init__(self, world: World, session: PushedSession, window: int) -> None:
        self.world = world
        self.session = session
        self.window = window
        self.devices = {name: Device() for name in CHANNELS}

    def take(self) -> None:
        sent, self.session.sent = self.session.sent, []
        for data in sent:
            match decode_cbor(data):
                case Alert(channel=name, offset=offset):
                    self.devices[name].take(offset, offset, len(data))
                case Advance(channel=name, first=first, last=last):
                    self.devices[name].take(first, last, len(data))
                case other:
                    assert isinstance(other, Welcome)

    def check(self) -> None:
        session = self.session
        unacked = [entry for device in self.devices.values() for entry in device.unacked]
        stalled = STALL if session.is_stalled else 0
        assert session.credit == self.window - len(unacked) - stalled
        assert session.credit_bytes == BYTES_MAX - sum(size for _, size in unacked)
        for lane in session.lanes:
            device = self.devices[lane.channel.name]
            assert (lane.acked, lane.last_sent) == (device.acked, device.sent)


steps = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(CHANNELS), st.integers(1, 12)),
    st.tuples(st.just("ack"), st.sampled_from(CHANNELS), st.integers(0, 20)),
    st.tuples(st.just("rewind"), st.sampled_from(CHANNELS), st.just(0)),
    st.tuples(st.just("prune"), st.sampled_from(CHANNELS), st.integers(0, 10)),
    st.tuples(st.just("window"), st.just("ops"), st.integers(0, 9)),
    st.tuples(st.just("stall"), st.just("ops"), st.just(0)),
    st.tuples(st.just("resume"), st.just("ops"), st.just(0)),
    st.tuples(st.just("forget"), st.sampled_from(CHANNELS), st.just(0)),
)


async def apply(model: Model, step: tuple[str, str, int]) -> None:
    kind, name, number = step
    world, session, device = model.world, model.session, model.devices[name]
    now = world.clock.monotonic()
    lane = session.lane(name)
    assert lane is not None
    match kind:
        case "publish":
            await world.publish(name, number)
        case "ack":
            head = world.store.channels[name].head
            offset = min(device.acked + number, head)  # above what was sent, now and then
            model.take()
            device.ack(offset)
            session.receive(Ack(positions={name: Position(EPOCH, offset)}), now)
        case "rewind":
            model.take()
            device.rewind()
            session.rewind(lane)
            session.pump(lane)
        case "prune":
            head = world.store.channels[name].head
            world.store.prune(name, max(world.store.channels[name].floor, head - number))
            world.log.forget(lane.channel.id)
        case "window":
            model.window = number
            session.receive(Ack(window=number), now)
        case "stall":
            session.stall()
        case "resume":
            session.resume()
        case "forget":
            world.log.forget(lane.channel.id)
    await world.settle()
    model.take()


@given(st.lists(steps, max_size=40), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
async def test_credit_follows_what_is_unacknowledged_and_comes_back_whole(
    script: list[tuple[str, str, int]], window: int
) -> None:
    world = World(limits=SessionLimits(window_size_bytes_max=BYTES_MAX))
    for name in CHANNELS:
        world.store.add(name)
    session = world.session(*CHANNELS, window=window)
    model = Model(world, session, window)
    model.take()
    for step in script:
        await apply(model, step)
        model.check()

    # Whatever was, a window and acks bring all of it, and all of the credit back.
    await apply(model, ("resume", "ops", 0))
    await apply(model, ("window", "ops", 9))
    heads = {name: world.store.channels[name].head for name in CHANNELS}
    for _ in range(sum(heads.values()) + 1):
        if all(device.acked == heads[name] for name, device in model.devices.items()):
            break
        for name, device in model.devices.items():
            await apply(model, ("ack", name, device.sent - device.acked))
    model.check()
    assert session.credit == 9
    assert session.codes == []
    for lane in session.lanes:
        assert lane.acked == world.store.channels[lane.channel.name].head
        assert lane.is_live
    session.ended()
    check_facts(world, model)


def check_facts(world: World, model: Model) -> None:
    """The facts tell of every offset that it was received, and of every alert that it was sent."""
    received: dict[int, list[tuple[int, int]]] = {}
    for fact in world.writer.of(Received):
        received.setdefault(fact.channel_id, []).append((fact.first, fact.last))
    for name, device in model.devices.items():
        ranges = received.get(world.store.channels[name].id, [])
        assert [at for first, last in ranges for at in range(first, last + 1)] == list(
            range(1, device.acked + 1)
        )
    opened = {interval.id: interval for interval in world.writer.of(IntervalOpened)}
    closed = {interval.id: interval for interval in world.writer.of(IntervalClosed)}
    assert opened.keys() == closed.keys()
    for id, interval in opened.items():
        assert closed[id].last >= interval.first - 1
    for sent in world.writer.of(Sent):
        assert sent.first <= sent.last
