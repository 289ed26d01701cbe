"""Bounds of one WebSocket connection. docs/reference/websocket.md is the same table for people."""

from __future__ import annotations

from dataclasses import dataclass

from device_sdk.wire.limits import FRAME_SIZE_MAX


@dataclass(frozen=True, slots=True)
class WebSocketLimits:
    """How much one peer may send, and how long it may take to go.

    Attributes:
        message_size_bytes_max: One message over all its fragments; above it 1009, before the bytes are kept.
        fragments_max: Frames of one message; above it 1008 (a message of empty fragments never ends).
        turn_events_max: Messages, pings and pongs taken from one peer before the loop serves others; the rest
            waits, unread.
        write_buffer_high_bytes: Unsent bytes at which the listener is told ``paused``.
        write_buffer_low_bytes: Unsent bytes at which it is told ``resumed``.
        close_timeout_s: From our close frame, or from the answer to the peer's, to the abort of a transport
            that has not gone by itself.
    """

    message_size_bytes_max: int = FRAME_SIZE_MAX
    fragments_max: int = 1024
    turn_events_max: int = 256
    write_buffer_high_bytes: int = 64 * 1024
    write_buffer_low_bytes: int = 16 * 1024
    close_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        assert self.message_size_bytes_max >= 125, "a control frame always fits"
        assert self.fragments_max >= 1, "an unfragmented message is one frame"
        assert self.turn_events_max >= 1, "or nothing would be read"
        assert 0 <= self.write_buffer_low_bytes < self.write_buffer_high_bytes, "hysteresis"
        assert self.close_timeout_s > 0, "a peer must be able to answer"
