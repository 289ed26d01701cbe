"""RFC 6455 for servers: frames, a sans-I/O codec, the opening handshake, and the connection on a transport.

HTTP is not here: ``gateway.edge.adopt`` takes a request's transport and gives it to a ``Connection``.
"""

from gateway.websocket.codec import (
    TRANSITIONS,
    Close,
    Codec,
    Event,
    Message,
    Ping,
    Pong,
    State,
    Step,
    Violation,
)
from gateway.websocket.connection import Connection, Listener
from gateway.websocket.frames import Opcode, close_frame, frame
from gateway.websocket.handshake import Handshake, HandshakeError, parse_handshake
from gateway.websocket.limits import WebSocketLimits

__all__ = [
    "TRANSITIONS",
    "Close",
    "Codec",
    "Connection",
    "Event",
    "Handshake",
    "HandshakeError",
    "Listener",
    "Message",
    "Opcode",
    "Ping",
    "Pong",
    "State",
    "Step",
    "Violation",
    "WebSocketLimits",
    "close_frame",
    "frame",
    "parse_handshake",
]
