"""One WebSocket connection on an asyncio transport that somebody else opened.

``Connection`` is the whole shell around ``codec``: bytes from the transport become calls on a ``Listener``,
pings are answered, close frames exchanged, the transport is let go in bounded time. It owns no task, no queue
and, until it closes, no timer. What to send and when to ping is its owner's; how the transport is taken from
the HTTP server is ``gateway.edge.adopt``. Idle, it and its transport take 1,534 bytes (PSS over baseline,
15,000 connections, uvloop 0.23; 1,920 on asyncio's own loop).

Sending is ``connection.write(frame)`` with a frame built once by ``frames.frame``, for all receivers the same
bytes: ``write`` is the transport's own method as long as the connection is open, and throws away what it gets
from then on (after a close frame nothing may follow, RFC 6455 §5.5.1). So look it up at each use; do not keep
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from gateway.telemetry import logger
from gateway.websocket.codec import Close, Codec, Event, Message, Ping, Pong, State, Violation
from gateway.websocket.frames import ABNORMAL, TEXT_FIRST_BYTE, Opcode, close_frame, frame, small_message
from gateway.websocket.limits import WebSocketLimits

_log = logger("websocket")

_INTERNAL_ERROR = 1011


class Listener(Protocol):
    """What a connection tells its owner, always on the loop, one call at a time.

    Every call may call back into the connection. ``closed`` comes exactly once and is the last call.
    """

    def message(self, is_text: bool, payload: bytes) -> None:
        """Take a whole message; text is valid UTF-8."""

    def pong(self, payload: bytes) -> None:
        """Take note of a sign of life."""

    def paused(self) -> None:
        """Stop writing: ``write_buffer_high_bytes`` are unsent. What is written all the same is queued."""

    def resumed(self) -> None:
        """Go on: no more than ``write_buffer_low_bytes`` are unsent."""

    def closed(self, code: int, reason: str) -> None:
        """Forget the connection; it lets its transport go by itself.

        ``code`` and ``reason`` are of whoever closed first: what ``close`` was called with, what a violation
        was answered with, or the peer's (1005 if it gave none); 1006 if the transport went without a word.
        """


class _Nobody:
    """The listener after ``closed``."""

    __slots__ = ()

    def message(self, is_text: bool, payload: bytes) -> None: ...
    def pong(self, payload: bytes) -> None: ...
    def paused(self) -> None: ...
    def resumed(self) -> None: ...
    def closed(self, code: int, reason: str) -> None: ...


_NOBODY = _Nobody()


# What is read after the end; being closed, it keeps nothing and serves everybody.
_GONE = Codec(WebSocketLimits())
_GONE.lost()


def _discard(_data: bytes) -> None:
    """Stand in for the transport's ``write`` while there is nobody to write to."""


class Connection(asyncio.Protocol):
    """A server's WebSocket connection, open from ``connection_made`` on.

    Args:
        listener: Gets all calls; the owner may put another one in its place (``connection.listener = …``).
        limits: Bounds; shared by all connections.
        loop: The loop that the transport runs on.
    """

    __slots__ = (
        "_closing",
        "_codec",
        "_deadline",
        "_is_reading",
        "_is_writable",
        "_limits",
        "_loop",
        "_pong",
        "_transport",
        "listener",
        "write",
    )

    write: Callable[[bytes], None]

    def __init__(self, listener: Listener, limits: WebSocketLimits, loop: asyncio.AbstractEventLoop) -> None:
        self.listener: Listener = listener
        self.write = _discard
        self._limits = limits
        self._loop = loop
        # None while open and between messages, with nothing to remember: 80 bytes less for one that idles.
        self._codec: Codec | None = None
        self._transport: asyncio.Transport | None = None
        self._closing: tuple[int, str] | None = None  # what we closed with, if it was us
        self._deadline: asyncio.TimerHandle | None = None
        self._pong: bytes | None = None  # an answer that waits for the write buffer
        self._is_reading = True  # what the owner wants; the transport may rest for other reasons
        self._is_writable = True

    # What the owner calls.

    @property
    def is_open(self) -> bool:
        """Whether messages still go both ways."""
        return self._transport is not None and (self._codec is None or self._codec.state is State.OPEN)

    @property
    def is_gone(self) -> bool:
        """Whether its transport was let go."""
        return self._transport is None

    @property
    def closed_by_us(self) -> bool:
        """Whether ``close`` or a violation ended it, and not the peer or the network."""
        return self._closing is not None

    @property
    def write_buffer_size(self) -> int:
        """Bytes that were written and not yet taken by the kernel."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def remote(self) -> str | None:
        """The peer's address, if the transport has one and is still there."""
        if self._transport is None:
            return None
        peername = self._transport.get_extra_info("peername")
        return str(peername[0]) if isinstance(peername, tuple) and peername else None

    def ping(self, payload: bytes = b"") -> None:
        """Send a ping of at most 125 bytes; nothing, unless open."""
        self.write(frame(Opcode.PING, payload))

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame and wait for the peer's, ``close_timeout_s`` at most; nothing, unless open.

        Messages that arrive meanwhile are thrown away; ``closed`` follows when the peer answers or is gone.
        """
        if not self.is_open:
            return
        self._awake().sent_close()
        self._send_close(code, reason)
        # The peer's close frame may be behind what was not read yet.
        self.resume_reading()

    def abort(self) -> None:
        """Drop the connection at once, unsent bytes and all; ``closed`` follows from the loop."""
        if self._transport is None:
            return
        self._stop()
        self._transport.abort()

    def pause_reading(self) -> None:
        """Deliver nothing more until ``resume_reading``; the peer is held back by TCP."""
        self._is_reading = False
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again, from the loop and not from within this call."""
        if self._is_reading or self._transport is None:
            return
        self._is_reading = True
        self._loop.call_soon(self._next_turn)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(
            self._limits.write_buffer_high_bytes, self._limits.write_buffer_low_bytes
        )
        self.write = self._transport.write

    def data_received(self, data: bytes) -> None:
        if self._codec is None and self._is_reading:
            payload = small_message(data)
            if payload is not None:
                try:
                    self.listener.message(data[0] == TEXT_FIRST_BYTE, payload)
                except Exception:
                    self._listener_failed()
                return
        self._awake().receive(data)
        self._take_turn()

    def eof_received(self) -> None:
        # Returning nothing lets the transport close, after what is unsent: bounded, since a peer that only
        # shut down its sending half may never read it.
        self._stop()
        self._finish(ABNORMAL, "")
        self._start_deadline()

    def pause_writing(self) -> None:
        self._is_writable = False
        try:
            self.listener.paused()
        except Exception:
            self._listener_failed()

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._pong is not None:
            self.write(self._pong)
            self._pong = None
        try:
            self.listener.resumed()
        except Exception:
            self._listener_failed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._finish(ABNORMAL, "")

    # Reading.

    def _awake(self) -> Codec:
        codec = self._codec
        if codec is None:
            codec = self._codec = Codec(self._limits)
        return codec

    def _take_turn(self) -> None:
        """Deliver what the codec has, at most ``turn_events_max``; then others have the loop."""
        codec = self._awake()
        for _ in range(self._limits.turn_events_max):
            if not self._is_reading:
                break
            event = codec.next_event()
            if event is None:
                break
            try:
                self._deliver(event)
            except Exception:
                self._listener_failed()
        else:
            if self._transport is not None and codec.state is not State.CLOSED:
                self._transport.pause_reading()
                self._loop.call_soon(self._next_turn)
        if codec.is_idle:
            self._codec = None

    def _next_turn(self) -> None:
        if self._is_reading and self._transport is not None:
            self._transport.resume_reading()
            self._take_turn()

    def _deliver(self, event: Event) -> None:
        match event:
            case Message():
                self.listener.message(event.is_text, event.payload)
            case Ping():
                self._answer(event.payload)
            case Pong():
                self.listener.pong(event.payload)
            case Close():
                self._peer_closed(event)
            case Violation():
                self._fail(event.code, event.reason)

    def _answer(self, payload: bytes) -> None:
        pong = frame(Opcode.PONG, payload)
        if self._is_writable:
            self.write(pong)
        else:
            # "the endpoint MAY elect to send a Pong frame for only the most recently processed Ping frame"
            # (§5.5.3): a peer that pings and does not read costs us one pong.
            self._pong = pong

    # Closing.

    def _peer_closed(self, close: Close) -> None:
        if self._closing is None:
            self.write(close_frame(close.code))
        self._hang_up()
        self._finish(close.code, close.reason)

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (§7.1.7): say why, hang up.

        Only our half is shut down at first. Closing a socket with unread bytes in it resets the connection,
        and the peer might never see the close frame.
        """
        transport = self._transport
        assert transport is not None, "bytes come from a transport"
        if self._closing is not None or transport.is_closing() or not transport.can_write_eof():
            if self._closing is None:
                self._send_close(code, reason)
            self._hang_up()
        else:
            self._send_close(code, reason)
            transport.write_eof()
        self._finish(code, reason)

    def _send_close(self, code: int, reason: str) -> None:
        self._closing = code, reason
        self.write(close_frame(code, reason))
        self._stop_writing()
        self._start_deadline()

    def _hang_up(self) -> None:
        self._stop_writing()
        self._start_deadline()
        if self._transport is not None:
            self._transport.close()

    def _stop(self) -> None:
        if self._codec is not None:
            self._codec.lost()
        self._codec = _GONE
        self._stop_writing()

    def _stop_writing(self) -> None:
        self._pong = None
        self.write = _discard

    def _start_deadline(self) -> None:
        if self._deadline is None and self._transport is not None:
            self._deadline = self._loop.call_later(self._limits.close_timeout_s, self.abort)

    def _finish(self, code: int, reason: str) -> None:
        """Say ``closed``, once."""
        listener, self.listener = self.listener, _NOBODY
        if self._closing is not None:
            code, reason = self._closing
        try:
            listener.closed(code, reason)
        except Exception:
            _log.exception("listener_failed", call="closed")

    def _listener_failed(self) -> None:
        """A listener that raises is our bug; the peer is told so, and may come back."""
        _log.exception("listener_failed")
        self.close(_INTERNAL_ERROR)
