"""A faulty link does what its transport allows, the same for the same seed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.transport.link import LinkClosedError
from device_sdk.wire.messages import (
    Ack,
    Alert,
    Cancel,
    FromDevice,
    FromGateway,
    Hello,
    Nack,
    Position,
    Recorded,
    Report,
    Roots,
    Update,
    Welcome,
)
from firmware_sim.dice import Dice
from firmware_sim.link import FaultyLink, FaultyTransport, LinkState, TappedTransport, interleaved
from firmware_sim.scenario import LinkFaults
from firmware_sim.trace import Trace

HELLO = Hello(protocol=1, window=32, boot_id=bytes(16))
WELCOME = Welcome(session=bytes(16), heads={}, heartbeat_s=25, spread_s=0, server_time=0)


def alert(offset: int, channel: str = "ops") -> Alert:
    return Alert(channel=channel, epoch=1, offset=offset, body=b"body")


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s
        await asyncio.sleep(0)


class Script:
    """A transport and its one link: batches that come, messages that go."""

    def __init__(self, batches: Sequence[Sequence[FromGateway]], name: str = "websocket") -> None:
        self.name = name
        self.batches = [list(batch) for batch in batches]
        self.sent: list[list[FromDevice]] = []
        self.confirmed = 0
        self.is_closed = self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True

    async def connect(self, hello: Hello, token: str) -> Script:
        return self

    async def receive(self) -> list[FromGateway]:
        if not self.batches:
            await asyncio.Event().wait()
        return self.batches.pop(0)

    def confirm(self) -> None:
        self.confirmed += 1

    async def send(self, messages: Sequence[FromDevice]) -> None:
        self.sent.append(list(messages))

    async def close(self) -> None:
        self.is_closed = True


class Watch:
    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.hellos = 0
        self.ends: list[str] = []

    def hello(self, hello: Hello) -> None:
        self.hellos += 1

    def closed(self) -> None:
        self.ends.append("closed")

    def failed(self, reason: str) -> None:
        self.ends.append(reason)

    def received(self, message: FromGateway) -> None:
        self.seen.append(message)

    def sent(self, message: FromDevice) -> None:
        self.seen.append(message)


class World:
    """A device's link over any number of connections."""

    def __init__(self, *, seed: int = 1, **faults: Any) -> None:
        self.clock = FakeClock()
        self.trace = Trace()
        self.watch = Watch()
        self.state = LinkState()
        self._faults = LinkFaults(**faults)
        self._dice = Dice(seed, "dev-1")

    async def connect(self, script: Script) -> FaultyLink:
        transport = FaultyTransport(
            script,
            faults=self._faults,
            dice=self._dice,
            state=self.state,
            trace=self.trace,
            watch=self.watch,
            clock=self.clock,
            is_powered=lambda: True,
        )
        assert transport.name == script.name
        return await transport.connect(HELLO, "token")

    async def life(self, name: str) -> list[Any]:
        """Receive and send over some connections; return what the device saw of it."""
        seen: list[Any] = []
        for number in range(6):
            script = Script([[WELCOME], *[[alert(offset)] for offset in range(20)]], name)
            try:
                link = await self.connect(script)
                for _ in range(20):
                    seen += await link.receive()
                    await link.send([Ack(positions={"ops": Position(1, 1)}), Ack(deployment=bytes(16))])
            except LinkClosedError as error:
                seen.append((number, str(error)))
                self.clock.now_s += 10
        return seen


FAULTS = {"cut": 0.02, "drop": 0.02, "duplicate": 0.2, "reorder": 0.3, "refuse": 0.2, "delay_ms": (0, 10)}


class TestReplay:
    @pytest.mark.parametrize("name", ["websocket", "longpoll"])
    async def test_same_seed_and_traffic_have_the_same_faults(self, name: str) -> None:
        first, second = World(**FAULTS), World(**FAULTS)
        assert await first.life(name) == await second.life(name)
        assert first.trace.faults == second.trace.faults
        assert first.clock.now_s == second.clock.now_s
        assert len(first.trace.counts) >= 3

    async def test_another_seed_has_others(self) -> None:
        first, second = World(**FAULTS), World(seed=2, **FAULTS)
        await first.life("websocket")
        await second.life("websocket")
        assert first.trace.faults != second.trace.faults

    async def test_what_goes_does_not_move_what_comes(self) -> None:
        quiet, talking = World(seed=4, cut=0.2), World(seed=4, cut=0.2)
        ends = []
        for world, talks in ((quiet, False), (talking, True)):
            link = await world.connect(Script([[alert(offset)] for offset in range(100)]))
            with contextlib.suppress(LinkClosedError):
                while await link.receive():
                    if talks and len(world.watch.seen) < 3:
                        await link.send([])
            ends.append(len(world.watch.seen))
        assert 2 < ends[0] == ends[1] < 100


class TestStream:
    async def test_cut_takes_the_message_and_all_behind_it(self) -> None:
        world = World(seed=4, cut=0.1)
        link = await world.connect(Script([[WELCOME, *map(alert, range(100))]]))
        came = list(await link.receive())
        assert 0 < len(came) < 101
        assert came == [WELCOME, *map(alert, range(len(came) - 1))]
        with pytest.raises(LinkClosedError):
            await link.receive()
        with pytest.raises(LinkClosedError):
            await link.send([Ack()])
        assert world.watch.seen == came

    async def test_after_a_break_no_connection_can_be_made_for_a_while(self) -> None:
        world = World(cut=1.0, offline_s=(5, 5))
        link = await world.connect(Script([[alert(1)]]))
        with pytest.raises(LinkClosedError):
            await link.receive()
        with pytest.raises(LinkClosedError) as caught:
            await world.connect(Script([]))
        assert not caught.value.blames_transport
        world.clock.now_s += 5
        await world.connect(Script([]))
        assert world.state.connections == 2

    async def test_drop_is_silence_before_the_end(self) -> None:
        world = World(drop=1.0, silence_s=(7, 7))
        link = await world.connect(Script([[alert(1)]]))
        with pytest.raises(LinkClosedError):
            await link.receive()
        assert world.clock.now_s >= 7

    async def test_cut_of_what_goes_ends_the_wait_for_what_comes(self) -> None:
        world = World(cut=1.0)
        link = await world.connect(Script([]))
        waiting = asyncio.create_task(link.receive())
        await asyncio.sleep(0)
        with pytest.raises(LinkClosedError):
            await link.send([Ack()])
        with pytest.raises(LinkClosedError):
            await waiting

    async def test_messages_are_repeated_but_for_the_welcome(self) -> None:
        world = World(duplicate=1.0)
        script = Script([[WELCOME, alert(1)]])
        link = await world.connect(script)
        assert await link.receive() == [WELCOME, alert(1), alert(1)]
        await link.send([Ack()])
        assert script.sent == [[Ack(), Ack()]]

    async def test_order_is_kept_whatever_the_scenario_says(self) -> None:
        world = World(reorder=1.0)
        batch = [alert(1, "a"), alert(1, "b"), alert(2, "a")]
        script = Script([batch])
        link = await world.connect(script)
        assert await link.receive() == batch
        await link.send([Ack(window=1), Ack(window=2)])
        assert script.sent == [[Ack(window=1), Ack(window=2)]]
        assert not world.trace.faults

    async def test_refused_connection_is_no_fault_of_the_transport(self) -> None:
        with pytest.raises(LinkClosedError) as caught:
            await World(refuse=1.0).connect(Script([]))
        assert not caught.value.blames_transport

    async def test_closing_and_confirming_reach_the_link_below(self) -> None:
        script = Script([])
        link = await World().connect(script)
        link.confirm()
        await link.close()
        assert (script.confirmed, script.is_closed) == (1, True)

    async def test_end_is_told_once_and_as_a_failure_if_there_was_no_welcome(self) -> None:
        world = World()
        welcomed, other = await world.connect(Script([[WELCOME]])), await world.connect(Script([]))
        await welcomed.receive()
        for link in (welcomed, other):
            await link.close()
            await link.close()
        assert (world.watch.hellos, world.watch.ends) == (2, ["closed", "other"])

    async def test_refusal_of_the_gateway_is_told_by_its_number(self) -> None:
        class Refusing(Script):
            async def connect(self, hello: Hello, token: str) -> Script:
                raise LinkClosedError("no", http_status=503)

        world = World()
        with pytest.raises(LinkClosedError):
            await world.connect(Refusing([]))
        assert world.watch.ends == ["503"]


class TestOutage:
    async def test_connection_breaks_at_once_and_none_is_made_until_it_is_over(self) -> None:
        world = World()
        script = Script([[WELCOME]])
        link = await world.connect(script)
        await link.receive()
        waiting = asyncio.create_task(link.receive())
        await asyncio.sleep(0)
        world.state.lose_network(world.clock.now_s + 5)
        with pytest.raises(LinkClosedError):
            await waiting
        await link.close()
        assert script.is_aborted
        with pytest.raises(LinkClosedError) as caught:
            await world.connect(Script([]))
        assert not caught.value.blames_transport
        world.clock.now_s += 5
        await world.connect(Script([]))

    async def test_connection_that_is_being_made_meanwhile_breaks(self) -> None:
        world = World(delay_ms=(1000, 1000))

        class Slow(Script):
            async def connect(self, hello: Hello, token: str) -> Script:
                world.state.lose_network(world.clock.now_s + 9)
                return self

        link = await world.connect(Slow([[WELCOME]]))
        with pytest.raises(LinkClosedError):
            await link.receive()


class TestTap:
    async def test_who_taps_is_told_before_anybody_can_change_what_comes(self) -> None:
        told: list[FromGateway] = []
        script = Script([[WELCOME, alert(1)]])
        link = await TappedTransport(script, told.append).connect(HELLO, "token")
        assert await link.receive() == told == [WELCOME, alert(1)]
        link.confirm()
        await link.send([Ack()])
        link.abort()
        await link.close()
        assert (script.confirmed, script.sent, script.is_aborted, script.is_closed) == (
            1,
            [[Ack()]],
            True,
            True,
        )


class TestRequests:
    async def test_answer_comes_whole_or_not_at_all(self) -> None:
        world = World(seed=4, cut=0.1)
        link = await world.connect(Script([[*map(alert, range(100))]], "longpoll"))
        with pytest.raises(LinkClosedError):
            await link.receive()
        assert world.watch.seen == []

    async def test_requests_overtake_each_other_but_for_nacks(self) -> None:
        nack = Nack(channel="ops", epoch=1, offset=2, code="malformed")
        reports = [
            Report(id=bytes([n]) * 16, deployment=bytes(16), seq=n, state="verified") for n in range(9)
        ]
        world = World(reorder=1.0)
        script = Script([], "longpoll")
        link = await world.connect(script)
        await link.send([*reports, nack])
        assert script.sent[0] == [nack]
        assert sorted((sent[0] for sent in script.sent[1:]), key=lambda report: report.seq) == reports
        assert [sent[0] for sent in script.sent[1:]] != reports


MESSAGES = st.one_of(
    st.tuples(st.sampled_from("abc"), st.integers(1, 9)).map(lambda pair: alert(pair[1], pair[0])),
    st.binary(min_size=16, max_size=16).map(lambda id: Recorded(id=id, status="recorded")),
    st.binary(min_size=16, max_size=16).map(Cancel),
    st.just(Update(deployment=bytes(16), directive=b"", manifest=b"")),
    st.just(Roots(roots=())),
)


@given(st.lists(MESSAGES, max_size=12), st.integers(0, 99))
def test_interleaving_keeps_every_channel_and_every_barrier(messages: list[FromGateway], seed: int) -> None:
    found = interleaved(messages, Random(seed))
    assert sorted(map(repr, found)) == sorted(map(repr, messages))
    for channel in "abc":
        assert [m for m in found if isinstance(m, Alert) and m.channel == channel] == [
            m for m in messages if isinstance(m, Alert) and m.channel == channel
        ]
    deployments = (Update, Cancel)
    assert [m for m in found if isinstance(m, deployments)] == [
        m for m in messages if isinstance(m, deployments)
    ]
    barriers = [index for index, message in enumerate(messages) if isinstance(message, Roots)]
    assert [index for index, message in enumerate(found) if isinstance(message, Roots)] == barriers
