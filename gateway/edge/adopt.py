"""Take a request's transport away from aiohttp and give it to a WebSocket connection.

aiohttp's own ``WebSocketResponse`` keeps a task, a reader with its queue and the whole request alive for each
connection: 15 KB. A ``gateway.websocket.Connection`` on the bare transport is a tenth of that and has nothing
between a frame and the socket. The price is that this module, and no other, knows what is inside aiohttp's
``RequestHandler``; tests/integration/websocket fails if an upgrade changes it.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from gateway.websocket import Connection, Handshake, HandshakeError, parse_handshake


class Adopted(web.StreamResponse):
    """What a handler returns for a connection that is no longer aiohttp's: nothing is written for it."""

    def __init__(self) -> None:
        super().__init__(status=101)
        self.force_close()  # aiohttp must not wait for a next request

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def handshake_of(request: web.Request) -> Handshake:
    """Return the WebSocket handshake that ``request`` is.

    Raises:
        HandshakeError: It is none; answer with its ``http_status`` and ``headers``.
    """
    handshake = parse_handshake(
        method=request.method,
        http_version=(request.version.major, request.version.minor),
        headers=request.headers,
    )
    # The parser switches only once it has read the request to its end; bytes of a body, or of anything it
    # still takes for HTTP, would otherwise be read as frames.
    if request.body_exists or not request.protocol._upgraded:
        raise HandshakeError("the opening request has a body")
    return handshake


def adopt(
    request: web.Request, handshake: Handshake, *, subprotocol: str | None, connection: Connection
) -> web.StreamResponse:
    """Answer 101 and make ``connection`` the owner of the request's transport; return the result at once.

    Messages that the client sent right behind its request are delivered from within this call, and so may
    ``closed`` be, if it is already gone: ``connection``'s listener must be ready.

    Args:
        request: The one ``handshake`` was read from; nothing of an answer to it may be written yet.
        handshake: Of ``handshake_of``.
        subprotocol: One of those the client offered.
        connection: New, not used before.
    """
    handler = request.protocol
    transport = handler.transport
    if transport is None or transport.is_closing():
        connection.connection_lost(None)
        return Adopted()
    assert request.writer.output_size == 0, "an answer has begun"
    assert not handler._messages, "the parser reads no request behind an upgrade"

    tail, handler._message_tail = handler._message_tail, b""
    transport.set_protocol(connection)
    connection.connection_made(transport)
    transport.resume_reading()  # aiohttp stops reading if a lot arrives while the handler thinks
    # aiohttp closes the transport it knows when it is told that the connection is lost, or when the server
    # shuts down; so it is made to forget the transport first. Being told, it stops its keep-alive timer and
    # leaves its loop when the handler returns.
    handler.transport = None
    handler.connection_lost(None)

    connection.write(handshake.response(subprotocol))
    if tail:
        connection.data_received(tail)
    return Adopted()
