"""A session on a WebSocket: frames in, frames out, pings, and the end.

One object is the connection's listener, the session and what the wheel visits: an idle device costs no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from device_sdk.errors import UpdateError
from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.errors import WireError
from device_sdk.wire.limits import HELLO_SIZE_MAX
from device_sdk.wire.messages import (
    CBOR_SUBPROTOCOL,
    JSON_SUBPROTOCOL,
    Hello,
    decode_cbor,
    decode_json,
)
from gateway.edge.adopt import adopt, handshake_of
from gateway.edge.device.admission import Admission
from gateway.edge.device.quick_ack import quick_ack
from gateway.edge.device.watched import Watched
from gateway.edge.problem import RequestError
from gateway.edge.rejections import rejection
from gateway.errors import GatewayError
from gateway.identity import Credential, Verdict
from gateway.session.conversation import State
from gateway.telemetry import logger
from gateway.websocket import Connection, HandshakeError, Opcode, WebSocketLimits, frame

_log = logger("device")

SUBPROTOCOLS: Final = (CBOR_SUBPROTOCOL, JSON_SUBPROTOCOL)


class SocketSession(Watched):
    """A device on a WebSocket."""

    __slots__ = (
        "_buffered",
        "_drained_at",
        "_holds",
        "_next_ping_at",
        "_pinged_at",
    )

    connection: Connection

    def __init__(
        self, admission: Admission, credential: str, verdict: Verdict, *, is_json: bool, now: float
    ) -> None:
        super().__init__(admission, verdict, credential=credential, is_json=is_json, now=now)
        self._holds = 0
        self._buffered = 0
        self._drained_at = now
        self._pinged_at = 0.0
        # The first ping comes anywhere in the first interval, so that devices which came together are not
        # pinged together.
        self._next_ping_at = now + self.node.random.uniform(0.2, 1.0) * self.node.limits.heartbeat_s

    # --- what the connection says -------------------------------------------------------------------------

    def message(self, is_text: bool, payload: bytes) -> None:
        if is_text is not self.is_json:
            self.close(CloseCode.UNSUPPORTED_DATA)
            return
        is_first = self.state is State.CONNECTING
        if not is_text and not is_first and (acked := quick_ack(payload, self.lanes)) is not None:
            self.acknowledged(*acked, self.node.clock.monotonic())
            return
        try:
            if is_first and len(payload) > HELLO_SIZE_MAX:
                self.close(CloseCode.MESSAGE_TOO_BIG)
                return
            message = decode_json(payload) if is_text else decode_cbor(payload)
        except WireError as error:
            self.node.metrics.protocol_errors.inc()
            self.close(rejection(error).close_code)
            return
        if message is None:
            return  # a type of a later version
        if not is_first:
            self.receive(message, self.node.clock.monotonic())
        elif isinstance(message, Hello) and not self._holds:
            self._hold_input()
            self.node.spawn(self._hello(message), name=f"device.hello[{self.verdict.device_id}]")
        else:
            self.close(CloseCode.POLICY_VIOLATION)

    def pong(self, payload: bytes) -> None:
        if self._pinged_at:
            self.rtt_s = self.node.clock.monotonic() - self._pinged_at
            self._pinged_at = 0.0

    def paused(self) -> None:
        self._drained_at = self.node.clock.monotonic()
        self._buffered = self.connection.write_buffer_size
        self.stall()

    def resumed(self) -> None:
        self.resume()

    def closed(self, code: int, reason: str) -> None:
        if self.state is not State.CLOSED and self.connection.closed_by_us:
            self.node.metrics.closed(code)  # a violation that the connection answered by itself
        self.ended()

    async def _hello(self, hello: Hello) -> None:
        try:
            await self._admission.connect(self, hello)
        except (WireError, GatewayError, UpdateError) as error:
            self.close(rejection(error).close_code)
        except Exception:
            _log.exception("hello failed", device=self.verdict.device_id)
            self.close(CloseCode.INTERNAL_ERROR)
        finally:
            self._take_input()

    # --- what the session asks ----------------------------------------------------------------------------

    @property
    def can_send(self) -> bool:
        return not self.is_stalled

    @property
    def is_pushed(self) -> bool:
        return True

    def _send(self, messages: Sequence[bytes]) -> None:
        opcode = Opcode.TEXT if self.is_json else Opcode.BINARY
        connection = self.connection
        connection.write(b"".join([frame(opcode, message) for message in messages]))
        if self.is_stalled and connection.write_buffer_size > self._admission.outbox_size_bytes_max:
            # What a device provokes by its own messages and does not read.
            self.close(CloseCode.SLOW_CONSUMER)

    def _end(self, code: CloseCode) -> None:
        self.node.metrics.closed(code)
        self.connection.close(code)

    def _hold_input(self) -> None:
        self._holds += 1
        if self._holds == 1:
            self.connection.pause_reading()

    def _take_input(self) -> None:
        self._holds -= 1
        assert self._holds >= 0, "each hold is let go once"
        if self._holds == 0:
            self.connection.resume_reading()

    def ended(self) -> None:
        was = self.state
        super().ended()
        if was is not State.CLOSED:
            self._admission.left(self, "websocket")

    # --- time ---------------------------------------------------------------------------------------------

    def visit(self, now: float) -> None:
        limits = self.node.limits
        if self.state is State.CONNECTING:
            if now - self.opened_at < limits.hello_timeout_s:
                return
            if self._holds:  # it came, and waits to be committed
                self.close(CloseCode.STORAGE_UNAVAILABLE)
            else:
                self.node.metrics.hello_timeouts.inc()
                self.close(CloseCode.HELLO_TIMEOUT)
            return
        if self.state is State.CLOSED:
            return
        if self.is_stalled:
            size = self.connection.write_buffer_size
            if size < self._buffered:
                self._drained_at = now
            elif now - self._drained_at >= limits.drain_timeout_s:
                self.close(CloseCode.SLOW_CONSUMER)
                self.connection.abort()
                return
            self._buffered = size
        if self._pinged_at:
            # Who is slow to read cannot have answered, and while we do not read we cannot know.
            if self.is_stalled or self._holds:
                self._pinged_at = now
            elif now - self._pinged_at >= limits.pong_timeout_s:
                self.close(CloseCode.NO_PONG)
                return
        elif now >= self._next_ping_at:
            self._pinged_at = now
            self._next_ping_at = now + limits.heartbeat_s
            self.connection.ping()
        self._visit_verdict()
        super().visit(now)

    @property
    def token_sha256(self) -> bytes:
        return Credential.packed_sha256(self._credential)


async def connect(request: web.Request, admission: Admission, limits: WebSocketLimits) -> web.StreamResponse:
    """Answer ``GET /v1/device/connect``: judge, upgrade, and leave the connection to its session."""
    arrival = admission.enter(request)
    try:
        handshake = handshake_of(request)
        subprotocol = handshake.choose(SUBPROTOCOLS)
    except HandshakeError as error:
        raise RequestError(
            error.http_status, error.code, error.detail, headers=dict(error.headers)
        ) from error
    credential, verdict = await admission.judged(arrival)
    session = SocketSession(
        admission,
        admission.identity.kept(credential).packed(),
        verdict,
        is_json=subprotocol == JSON_SUBPROTOCOL,
        now=admission.node.clock.monotonic(),
    )
    connection = Connection(session, limits, asyncio.get_running_loop())
    session.connection = connection
    admission.entered(session, "websocket")
    return adopt(request, handshake, subprotocol=subprotocol, connection=connection)
