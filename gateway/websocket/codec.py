"""The server's half of RFC 6455, sans I/O: bytes in, events out, one object for each connection.

The caller feeds what it read (``receive``) and takes events one by one (``next_event``) until there is none;
what it has not taken stays here as bytes, so a caller that pauses is not overrun. It tells the codec when it
sends a close frame (``sent_close``) and when the transport is gone (``lost``). Nothing is sent from here:
answering pings, echoing the close and hanging up are the connection's.

* At most one message is being put together; its size is checked on each frame's header, before the payload is
  kept. What is buffered is at most one frame and one read.
* A violation is an event, not an exception: it names the close code, it is the last event, and what arrives
  after it is thrown away (§7.1.7).
* After our close frame only the peer's close frame matters (§1.4); data and pings before it are discarded.
* No extension is ever negotiated, so the reserved bits are always an error.
"""

from __future__ import annotations

import codecs
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.websocket.frames import CONTROL_SIZE_MAX, FrameError, Opcode, mask, parse_close
from gateway.websocket.limits import WebSocketLimits

# Plain integers: an enum's member costs 30 ns at each look.
_CONTINUATION: Final = int(Opcode.CONTINUATION)
_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_CLOSE: Final = int(Opcode.CLOSE)
_PING: Final = int(Opcode.PING)
_PONG: Final = int(Opcode.PONG)


class State(enum.Enum):
    """Where the closing handshake stands (§7.1)."""

    OPEN = enum.auto()
    CLOSING = enum.auto()  # we sent a close frame, the peer has not
    CLOSED = enum.auto()  # the peer closed, broke the protocol, or is gone: nothing more is read


class Step(enum.Enum):
    """What can happen to a connection."""

    MESSAGE = enum.auto()
    PING = enum.auto()
    PONG = enum.auto()
    PEER_CLOSE = enum.auto()
    VIOLATION = enum.auto()
    OWN_CLOSE = enum.auto()
    LOST = enum.auto()


# A step that a state does not name is discarded and changes nothing.
TRANSITIONS: Final[Mapping[State, Mapping[Step, State]]] = {
    State.OPEN: {
        Step.MESSAGE: State.OPEN,
        Step.PING: State.OPEN,
        Step.PONG: State.OPEN,
        Step.PEER_CLOSE: State.CLOSED,
        Step.VIOLATION: State.CLOSED,
        Step.OWN_CLOSE: State.CLOSING,
        Step.LOST: State.CLOSED,
    },
    State.CLOSING: {
        Step.PEER_CLOSE: State.CLOSED,
        Step.VIOLATION: State.CLOSED,
        Step.LOST: State.CLOSED,
    },
    State.CLOSED: {},
}


@dataclass(slots=True)
class Message:
    """A whole message. Text is valid UTF-8. Not frozen: that would cost 0.2 µs a message."""

    is_text: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer's close frame; ``code`` is 1005 if it had none."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Violation:
    """The peer broke the protocol or a limit; ``code`` is the close code to send."""

    code: int
    reason: str


Event = Message | Ping | Pong | Close | Violation


class Codec:
    """Parse what one client sends.

    Args:
        limits: Bounds on a message.
    """

    __slots__ = ("_buffer", "_limits", "_need", "_partial", "_position", "state")

    def __init__(self, limits: WebSocketLimits) -> None:
        self.state = State.OPEN
        self._limits = limits
        # Bytes from ``_position`` on are not parsed yet. While a frame is incomplete this is a bytearray, so
        # that a frame which arrives byte by byte is not copied once for each byte.
        self._buffer: bytes | bytearray = b""
        self._position = 0
        self._need = 2  # with fewer bytes there is nothing to try
        self._partial: _Partial | None = None

    @property
    def is_idle(self) -> bool:
        """Open, with nothing buffered and no message begun."""
        return self.state is State.OPEN and not self._buffer and self._partial is None

    @property
    def buffered_bytes(self) -> int:
        """Bytes that are kept here."""
        partial = 0 if self._partial is None else len(self._partial.data)
        return len(self._buffer) - self._position + partial

    def receive(self, data: bytes) -> None:
        """Take ``data`` in; follow with ``next_event`` until it returns None."""
        if self.state is State.CLOSED:
            return
        if not self._buffer:
            self._buffer = data
            return
        if not isinstance(self._buffer, bytearray):
            self._buffer = bytearray(memoryview(self._buffer)[self._position :])
        else:
            del self._buffer[: self._position]
        self._position = 0
        self._buffer += data

    def next_event(self) -> Event | None:
        """Return the next event of what was received, None if more bytes are needed or the end is reached."""
        while len(self._buffer) - self._position >= self._need and self.state is not State.CLOSED:
            try:
                event = self._parse()
            except FrameError as error:
                self._step(Step.VIOLATION)
                return Violation(error.code, error.reason)
            if event is not None:
                return event
        return None

    def sent_close(self) -> bool:
        """Note our close frame; False if it must not be sent, because the connection is not open."""
        return self._step(Step.OWN_CLOSE)

    def lost(self) -> None:
        """Note that the transport is gone."""
        self._step(Step.LOST)

    def _step(self, step: Step) -> bool:
        next_state = TRANSITIONS[self.state].get(step)
        if next_state is None:
            return False
        self.state = next_state
        if next_state is State.CLOSED:
            self._buffer = b""
            self._position = 0
            self._partial = None
        return True

    def _parse(self) -> Event | None:
        """Parse one frame if all of it is here; else set ``_need``.

        §5.2 and §5.5 in the order in which the bits arrive: a frame is refused by its header, before its
        payload is waited for.
        """
        buffer, start = self._buffer, self._position
        first, second = buffer[start], buffer[start + 1]
        opcode = first & 0x0F
        is_final = first >= 0x80
        length = second & 0x7F
        if first & 0x70:
            raise FrameError(1002, "reserved bits set")
        if opcode >= _CLOSE:
            if opcode > _PONG:
                raise FrameError(1002, "reserved opcode")
            if not is_final:
                raise FrameError(1002, "fragmented control frame")
            if length > CONTROL_SIZE_MAX:
                raise FrameError(1002, "control frame too long")
        elif opcode > _BINARY:
            raise FrameError(1002, "reserved opcode")
        elif (opcode == _CONTINUATION) is (self._partial is None):
            raise FrameError(1002, "message out of sequence")
        if second < 0x80:
            raise FrameError(1002, "frame is not masked")

        header = 6
        if length > 125:
            header += 2 if length == 126 else 8
            if len(buffer) - start < header:
                self._need = header
                return None
            is_short = length == 126
            length = int.from_bytes(buffer[start + 2 : start + header - 4], "big")
            if length >> 63:
                raise FrameError(1002, "length out of range")
            # "the minimal number of bytes MUST be used to encode the length"
            if length <= (125 if is_short else 0xFFFF):
                raise FrameError(1002, "length is not minimal")
        if opcode < _CLOSE:
            self._check_limits(length)
        end = start + header + length
        if len(buffer) < end:
            self._need = header + length
            return None

        payload = mask(
            bytes(buffer[start + header - 4 : start + header]), memoryview(buffer)[start + header : end]
        )
        self._need = 2
        self._position = end
        if end == len(buffer):
            self._buffer = b""
            self._position = 0
        if opcode >= _CLOSE:
            return self._control(opcode, payload)
        return self._data(opcode, is_final, payload)

    def _check_limits(self, length: int) -> None:
        partial, limits = self._partial, self._limits
        if partial is None:
            if length > limits.message_size_bytes_max:
                raise FrameError(1009, "message too big")
            return
        if len(partial.data) + length > limits.message_size_bytes_max:
            raise FrameError(1009, "message too big")
        if partial.fragments == limits.fragments_max:
            raise FrameError(1008, "too many fragments")

    def _control(self, opcode: int, payload: bytes) -> Event | None:
        if opcode == _PING:
            return Ping(payload) if self._step(Step.PING) else None
        if opcode == _PONG:
            return Pong(payload) if self._step(Step.PONG) else None
        close = Close(*parse_close(payload))
        self._step(Step.PEER_CLOSE)
        return close

    def _data(self, opcode: int, is_final: bool, payload: bytes) -> Message | None:
        if opcode != _CONTINUATION and is_final:
            is_text = opcode == _TEXT
            if is_text:
                _check_text(payload)
            return Message(is_text, payload) if self._step(Step.MESSAGE) else None

        if opcode != _CONTINUATION:
            self._partial = _Partial(is_text=opcode == _TEXT)
        partial = self._partial
        assert partial is not None, "a continuation without a beginning was refused by its header"
        partial.append(payload, is_final)
        if not is_final:
            return None
        self._partial = None
        return Message(partial.is_text, bytes(partial.data)) if self._step(Step.MESSAGE) else None


class _Partial:
    """A message whose final fragment has not arrived; text is judged fragment by fragment (§8.1)."""

    __slots__ = ("_utf8", "data", "fragments")

    def __init__(self, *, is_text: bool) -> None:
        self.data = bytearray()
        self.fragments = 0
        self._utf8 = _UTF8Decoder() if is_text else None

    @property
    def is_text(self) -> bool:
        return self._utf8 is not None

    def append(self, payload: bytes, is_final: bool) -> None:
        if self._utf8 is not None:
            try:
                self._utf8.decode(payload, is_final)
            except UnicodeDecodeError:
                raise FrameError(1007, "invalid UTF-8") from None
        self.data += payload
        self.fragments += 1


_UTF8Decoder: Final = codecs.getincrementaldecoder("utf-8")


def _check_text(payload: bytes) -> None:
    if payload.isascii():
        return
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise FrameError(1007, "invalid UTF-8") from None
