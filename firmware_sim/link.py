"""A link with faults, around a transport of the SDK: breaks, silence, delays, duplicates, tampering.

Faults are those that the transport below cannot hide. On a WebSocket, which is TCP, messages come in order
and none is missing from the middle: a loss takes everything behind it along, and ends the connection. By
long-poll an answer comes whole or not at all, a request may be repeated by something on the way, and two
requests may overtake each other. What becomes of the nth message of a connection is drawn from that
connection's own stream: see ``dice``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from device_sdk.transport.link import Link, LinkClosedError, Transport
from device_sdk.wire.messages import (
    Advance,
    Alert,
    Cancel,
    FromDevice,
    FromGateway,
    Hello,
    Nack,
    Recorded,
    Update,
    Welcome,
)
from firmware_sim.dice import Dice, between
from firmware_sim.scenario import LinkFaults
from firmware_sim.tamper import tampered
from firmware_sim.trace import Trace


class Clock(Protocol):
    """The time that faults take."""

    def monotonic(self) -> float: ...

    async def sleep(self, delay_s: float) -> None: ...


class Watch(Protocol):
    """Who looks on, at the device's end of the link; nothing is changed by it."""

    def hello(self, hello: Hello) -> None:
        """The device tries to connect."""
        ...

    def received(self, message: FromGateway) -> None:
        """The device is told ``message``."""
        ...

    def sent(self, message: FromDevice) -> None:
        """The device says ``message``."""
        ...

    def closed(self) -> None:
        """A connection is over."""
        ...

    def failed(self, reason: str) -> None:
        """No connection came about, or one that was never welcomed is over."""
        ...


@runtime_checkable
class Abortable(Protocol):
    """A link that can end without a word."""

    def abort(self) -> None: ...


def abort(link: Link) -> None:
    """End ``link`` as a power cut does, if its transport has a way to; ``close`` it still."""
    if isinstance(link, Abortable):
        link.abort()


class TappedTransport:
    """A transport, and somebody who is told what the gateway says on it, before anybody else is."""

    def __init__(self, inner: Transport, said: Callable[[FromGateway], None]) -> None:
        self._inner = inner
        self._said = said

    @property
    def name(self) -> str:
        return self._inner.name

    async def connect(self, hello: Hello, token: str) -> TappedLink:
        return TappedLink(await self._inner.connect(hello, token), self._said)


class TappedLink:
    """One connection of ``TappedTransport``."""

    def __init__(self, inner: Link, said: Callable[[FromGateway], None]) -> None:
        self._inner = inner
        self._said = said

    async def receive(self) -> Sequence[FromGateway]:
        batch = await self._inner.receive()
        for message in batch:
            self._said(message)
        return batch

    def confirm(self) -> None:
        self._inner.confirm()

    async def send(self, messages: Sequence[FromDevice]) -> None:
        await self._inner.send(messages)

    def abort(self) -> None:
        abort(self._inner)

    async def close(self) -> None:
        await self._inner.close()


class Fate(NamedTuple):
    """What becomes of one message."""

    is_cut: bool
    is_dropped: bool
    is_duplicated: bool
    delay_s: float


def fates(random: Random, faults: LinkFaults) -> Iterator[Fate]:
    """Yield the fate of one message after the other; each draws the same number of times."""
    while True:
        yield Fate(
            is_cut=random.random() < faults.cut,
            is_dropped=random.random() < faults.drop,
            is_duplicated=random.random() < faults.duplicate,
            delay_s=between(random, faults.delay_ms) / 1000,
        )


@dataclass(slots=True)
class LinkState:
    """What a device's link remembers from one connection to the next, and over boots.

    Attributes:
        connections: Attempts that met the dice.
        offline_until: Monotonic.
        current: The connection that there is, or was last.
    """

    connections: int = 0
    offline_until: float = float("-inf")
    current: FaultyLink | None = None

    def lose_network(self, until: float) -> None:
        """Break the connection; none can be made before ``until``, monotonic."""
        self.offline_until = max(self.offline_until, until)
        if self.current is not None:
            self.current.lose_network()


class FaultyTransport:
    """A transport whose connections have ``faults``.

    Args:
        inner: The real one.
        is_powered: Whether the device has power; without it nothing more is said to anybody.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        faults: LinkFaults,
        dice: Dice,
        state: LinkState,
        trace: Trace,
        watch: Watch,
        clock: Clock,
        is_powered: Callable[[], bool],
    ) -> None:
        self._inner = inner
        self._faults = faults
        self._dice = dice
        self._state = state
        self._trace = trace
        self._watch = watch
        self._clock = clock
        self._is_powered = is_powered

    @property
    def name(self) -> str:
        return self._inner.name

    async def connect(self, hello: Hello, token: str) -> FaultyLink:
        try:
            return await self._connect(hello, token)
        except LinkClosedError as error:
            self._watch.failed(_reason(error))
            raise

    async def _connect(self, hello: Hello, token: str) -> FaultyLink:
        state, faults = self._state, self._faults
        self._watch.hello(hello)
        if self._clock.monotonic() < state.offline_until:
            raise LinkClosedError("offline", is_unreachable=True)
        state.connections += 1
        place = f"connection {state.connections}"
        random = self._dice.stream("link", state.connections, "connect")
        is_refused, delay_s = random.random() < faults.refuse, between(random, faults.delay_ms) / 1000
        offline_s = between(random, faults.offline_s)
        if is_refused:
            self._trace.note("refuse", place)
            state.offline_until = self._clock.monotonic() + offline_s
            raise LinkClosedError("the network is not there", is_unreachable=True)
        await self._clock.sleep(delay_s)
        inner = await self._inner.connect(hello, token)

        def on_break() -> None:
            state.offline_until = self._clock.monotonic() + offline_s

        link = FaultyLink(
            inner,
            is_stream=self._inner.name == "websocket",
            faults=faults,
            streams=[self._dice.stream("link", state.connections, way) for way in ("in", "out", "tamper")],
            place=place,
            trace=self._trace,
            watch=self._watch,
            clock=self._clock,
            is_powered=self._is_powered,
            state=state,
            on_break=on_break,
        )
        state.current = link
        if self._clock.monotonic() < state.offline_until:  # the network went meanwhile
            link.lose_network()
        return link


class FaultyLink:
    """One connection, until it breaks.

    Args:
        is_stream: In order, and nothing missing: a WebSocket.
        streams: Of chance: for what comes, for what goes, for tampering.
        state: Of the device's link; its ``current`` is this one.
        on_break: Called when a fault ends the connection.
    """

    def __init__(
        self,
        inner: Link,
        *,
        is_stream: bool,
        faults: LinkFaults,
        streams: Sequence[Random],
        place: str,
        trace: Trace,
        watch: Watch,
        clock: Clock,
        is_powered: Callable[[], bool],
        state: LinkState,
        on_break: Callable[[], None],
    ) -> None:
        self._inner = inner
        self._state = state
        self._is_stream = is_stream
        self._faults = faults
        self._random_in, self._random_out, self._random_tamper = streams
        self._fates_in = fates(self._random_in, faults)
        self._fates_out = fates(self._random_out, faults)
        self._silence_s = between(self._random_tamper, faults.silence_s)
        self._place = place
        self._trace = trace
        self._watch = watch
        self._clock = clock
        self._is_powered = is_powered
        self._on_break = on_break
        self._received = 0
        self._sent = 0
        self._breaking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_silent = False
        self._is_welcomed = False
        self._is_closed = False
        self._ending = LinkClosedError("the link broke")

    # --- what comes ---------------------------------------------------------------------------------------

    async def receive(self) -> Sequence[FromGateway]:
        if self._is_broken:
            await self._end()
        batch = await self._unless_broken()
        arrived: list[FromGateway] = []
        delay_s = 0.0
        for message in batch:
            self._received += 1
            fate = next(self._fates_in)
            where = f"{self._place}, message {self._received} in"
            delay_s = max(delay_s, fate.delay_s)
            if fate.is_cut or fate.is_dropped:
                self._break("cut" if fate.is_cut else "drop", where)
                break
            message = self._changed(message, where)
            arrived.append(message)
            if fate.is_duplicated and not isinstance(message, Welcome):
                self._trace.note("duplicate", where)
                arrived.append(message)
        if delay_s > 0:
            await self._clock.sleep(delay_s)
        if self._is_broken and (not self._is_stream or not arrived):
            await self._end()  # an answer comes whole or not at all
        if not self._is_stream and self._is_reordered(self._random_in, arrived, "in"):
            arrived = interleaved(arrived, self._random_in)
        for message in arrived:
            self._is_welcomed = self._is_welcomed or isinstance(message, Welcome)
            self._watch.received(message)
        return arrived

    async def _unless_broken(self) -> Sequence[FromGateway]:
        """Return what comes next; a break on the other way ends the wait."""
        coming = asyncio.ensure_future(self._inner.receive())
        awaited: set[asyncio.Future[Any]] = {coming, self._breaking}
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if self._is_broken:
                await self._end()
            return coming.result()
        except LinkClosedError as error:
            self._ending = error
            raise
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            elif not coming.cancelled():
                coming.exception()  # it was seen, or does not matter any more

    def confirm(self) -> None:
        self._inner.confirm()

    def _changed(self, message: FromGateway, where: str) -> FromGateway:
        if not isinstance(message, Update) or self._faults.tamper == "nothing":
            return message
        self._trace.note("tamper", where)
        return replace(message, manifest=tampered(message.manifest, self._faults.tamper, self._random_tamper))

    # --- what goes ----------------------------------------------------------------------------------------

    async def send(self, messages: Sequence[FromDevice]) -> None:
        if self._is_broken:
            await self._end()
        leaving: list[FromDevice] = []
        delay_s = 0.0
        for message in messages:
            self._sent += 1
            fate = next(self._fates_out)
            where = f"{self._place}, message {self._sent} out"
            delay_s = max(delay_s, fate.delay_s)
            if fate.is_cut or fate.is_dropped:
                self._break("cut" if fate.is_cut else "drop", where)
                break
            leaving.append(message)
            if fate.is_duplicated:
                self._trace.note("duplicate", where)
                leaving.append(message)
        if delay_s > 0:
            await self._clock.sleep(delay_s)
        for message in leaving:
            self._watch.sent(message)  # before: the answer may be faster than the end of the sending
        if not self._is_stream and self._is_reordered(self._random_out, leaving, "out"):
            await self._send_apart(leaving)
        elif leaving:
            await self._inner.send(leaving)
        if self._is_broken:
            await self._end()

    async def _send_apart(self, messages: list[FromDevice]) -> None:
        """Send each as a request of its own, in another order; nacks stay before the acks that pass them."""
        first = [message for message in messages if isinstance(message, Nack)]
        rest = [message for message in messages if not isinstance(message, Nack)]
        self._random_out.shuffle(rest)
        for message in first + rest:
            await self._inner.send([message])

    # --- both ---------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if self._is_broken or not self._is_powered():
            abort(self._inner)  # the other end is not told
        if self._state.current is self:
            self._state.current = None
        if not self._is_closed:
            self._is_closed = True
            if self._is_welcomed:
                self._watch.closed()
            else:
                self._watch.failed(_reason(self._ending))
        await self._inner.close()

    def lose_network(self) -> None:
        """Break now."""
        if not self._breaking.done():
            self._breaking.set_result(None)

    @property
    def _is_broken(self) -> bool:
        return self._breaking.done()

    def _is_reordered(self, random: Random, messages: Sequence[object], way: str) -> bool:
        if random.random() >= self._faults.reorder or len(messages) < 2:
            return False
        self._trace.note(
            "reorder", f"{self._place}, up to message {self._received} in, {self._sent} out, {way}"
        )
        return True

    def _break(self, kind: str, where: str) -> None:
        self._trace.note(kind, where)
        self._is_silent = kind == "drop"
        self._on_break()
        self.lose_network()

    async def _end(self) -> None:
        if self._is_silent:
            await self._clock.sleep(self._silence_s)
        raise LinkClosedError("the link broke")


def _reason(error: LinkClosedError) -> str:
    """Return why a connection did not come about, in a word."""
    code = error.http_status or error.close_code
    if code is not None:
        return str(code)
    return "other" if error.blames_transport else "unreachable"


_LANES: Final = (Alert, Advance, Recorded, Update, Cancel)


def interleaved(messages: Iterable[FromGateway], random: Random) -> list[FromGateway]:
    """Return ``messages`` in another order that the protocol allows: each channel's in theirs.

    What is neither an alert nor about a deployment stays where it is, and nothing passes it.
    """
    result: list[FromGateway] = []
    lanes: dict[object, list[FromGateway]] = {}

    def flush() -> None:
        while lanes:
            lane = random.choice(sorted(lanes, key=str))
            result.append(lanes[lane].pop(0))
            if not lanes[lane]:
                del lanes[lane]

    for message in messages:
        match message:
            case Alert() | Advance():
                lanes.setdefault(("channel", message.channel), []).append(message)
            case Recorded():
                lanes.setdefault(("recorded", message.id), []).append(message)
            case Update() | Cancel():
                lanes.setdefault(("deployments",), []).append(message)
            case _:
                flush()
                result.append(message)
    flush()
    return result
