"""A device plane in memory for the tests of transports: a node, its sessions, connections that are lists."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from device_sdk.wire.messages import Hello, Message, Position, decode_cbor, decode_json
from device_sdk.wire.names import DeviceId
from gateway.clock import FakeClock
from gateway.edge.device.admission import Admission
from gateway.edge.device.poll import PollSession
from gateway.edge.device.socket import SocketSession
from gateway.fleet.facts import Connect
from gateway.fleet.model import Connected
from gateway.identity import (
    Credential,
    IdentityLimits,
    ResumedVerdict,
    Revocations,
    TicketKey,
    Tickets,
    Verdict,
)
from gateway.session.limits import SessionLimits
from gateway.session.sessions import Sessions
from tests.unit.gateway.session.node import FLEET, Directory, World

BOOT = b"b" * 16
CREDENTIAL = Credential.from_headers([("Authorization", "Bearer t")])


class FakeIdentity:
    """Says of every credential what it was told to say; ``resumed`` is who shows a ticket."""

    def __init__(self, clock: FakeClock) -> None:
        self.limits = IdentityLimits()
        revocations = Revocations(self.limits, clock=clock)
        self.tickets = Tickets(revocations, limits=self.limits, clock=clock)
        self.tickets.adopt([TicketKey.new(now_ms=clock.now_ms())])
        self.resumed: ResumedVerdict | None = None
        self.verdict: Verdict | None = None
        self.error: Exception | None = None
        self.asked = 0

    async def admit(self, credential: Credential, **_: Any) -> Verdict:
        self.asked += 1
        if self.error is not None:
            raise self.error
        assert self.verdict is not None
        return self.verdict

    def kept(self, credential: Credential) -> Credential:
        return credential

    def resume(self, credential: Credential, ticket: bytes, **_: Any) -> ResumedVerdict | None:
        return self.resumed


class FakeStatements:
    def statement(self, *_: Any, **__: Any) -> bytes:
        return b"statement"


class FakeConnection:
    """A WebSocket connection that keeps what is written; its buffer fills when it is told to."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.pings = 0
        self.closes: list[int] = []
        self.is_reading = True
        self.is_aborted = False
        self.is_gone = False
        self.closed_by_us = False
        self.write_buffer_size = 0

    def write(self, data: bytes) -> None:
        if not self.closes:
            self.frames.append(data)

    def ping(self) -> None:
        self.pings += 1

    def close(self, code: int, reason: str = "") -> None:
        self.closed_by_us = True
        self.closes.append(code)

    def abort(self) -> None:
        self.is_aborted = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def taken(self, *, is_json: bool = False) -> list[Message]:
        """Return the messages that were written since the last call."""
        data, self.frames = b"".join(self.frames), []
        found = []
        while data:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            elif size == 127:
                size, start = int.from_bytes(data[2:10], "big"), 10
            payload, data = data[start : start + size], data[start + size :]
            message = decode_json(payload) if is_json else decode_cbor(payload)
            assert message is not None
            found.append(message)
        return found


class Edge:
    """A node's device plane, without HTTP."""

    def __init__(self, **limits: Any) -> None:
        self.world = World(limits=SessionLimits(**limits))
        self.directory = Directory()
        self.identity = FakeIdentity(self.world.clock)
        self.sessions = Sessions(self.world.node, store=self.directory, cancels=self.directory, wheel_s=4.0)
        self.admission = Admission(
            identity=self.identity,  # type: ignore[arg-type]
            sessions=self.sessions,
            statements=FakeStatements(),
            accept_rate_per_s=100,
            connections_max=10,
            outbox_size_bytes_max=1 << 20,
        )

    def verdict(self, device: str = "d1", **fields: Any) -> Verdict:
        return Verdict(DeviceId(device), FLEET.name, judged_at=self.world.clock.now_ms(), **fields)

    def socket(self, *, is_json: bool = False, verdict: Verdict | None = None) -> SocketSession:
        """Return a session whose connection is open and has not said hello."""
        session = SocketSession(
            self.admission,
            CREDENTIAL.packed(),
            verdict or self.verdict(),
            is_json=is_json,
            now=self.world.clock.monotonic(),
        )
        session.connection = FakeConnection()  # type: ignore[assignment]
        self.admission.entered(session, "websocket")
        return session

    async def polled(
        self, *names: str, connected: Connected | None = None, window: int = 32, **hello: Any
    ) -> PollSession:
        """Return a session whose hello was answered."""
        session = PollSession(self.admission, self.verdict(), is_json=False, now=self.world.clock.monotonic())
        self.admission.entered(session, "longpoll")
        self.finds(*names, connected=connected)
        await self.admission.connect(session, self.hello(window=window, **hello), CREDENTIAL)
        session.taken_at_hello()
        return session

    def finds(self, *names: str, connected: Connected | None = None) -> None:
        """Say what the next hello finds."""
        self.world.writer.results[Connect] = connected or self.world.connected(*names)

    def hello(
        self, *, window: int = 32, positions: dict[str, tuple[int, int]] | None = None, **fields: Any
    ) -> Hello:
        told = {name: Position(*at) for name, at in (positions or {}).items()}
        return Hello(**{"protocol": 1, "window": window, "boot_id": BOOT, "positions": told, **fields})


def decoded(messages: Sequence[bytes]) -> list[Message]:
    return [message for data in messages if (message := decode_cbor(data)) is not None]


async def started(work: Any) -> asyncio.Task[Any]:
    """Return a task that ran as far as it can."""
    task = asyncio.ensure_future(work)
    for _ in range(20):
        await asyncio.sleep(0)
    return task
