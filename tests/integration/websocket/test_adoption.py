"""Real sockets, aiohttp's server, the ``websockets`` client, on asyncio's loop and on uvloop.

Everything ``gateway.edge.adopt`` assumes about aiohttp is here: if an upgrade of aiohttp breaks the
hand-over, these tests fail.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from gateway.edge.adopt import adopt, handshake_of
from gateway.websocket import Connection, HandshakeError, Opcode, WebSocketLimits, frame
from gateway.websocket.frames import mask

SUBPROTOCOL = "fleetcast.v1.cbor"
LIMITS = WebSocketLimits(close_timeout_s=0.2)
LARGE = 32 * 1024 * 1024  # more than the kernel buffers
REQUEST = (
    b"GET /connect HTTP/1.1\r\nHost: gateway\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: fleetcast.v1.cbor\r\n"
)
RESPONSE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: fleetcast.v1.cbor\r\n\r\n"
)


class Recorder:
    """A listener that keeps what it was told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.connection: Connection
        self.calls: list[tuple[object, ...]] = []
        self.on_message: Callable[[bytes], None] = lambda payload: None
        self._changed = asyncio.Event()

    def _record(self, *call: object) -> None:
        assert not self.closes, "closed is the last call"
        self.calls.append(call)
        self._changed.set()

    def message(self, is_text: bool, payload: bytes) -> None:
        self._record("text" if is_text else "binary", payload)
        self.on_message(payload)

    def pong(self, payload: bytes) -> None:
        self._record("pong", payload)

    def paused(self) -> None:
        self._record("paused")

    def resumed(self) -> None:
        self._record("resumed")

    def closed(self, code: int, reason: str) -> None:
        self._record("closed", code, reason)

    @property
    def closes(self) -> list[tuple[object, ...]]:
        return [call for call in self.calls if call[0] == "closed"]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_called(self, *call: object) -> None:
        await self.until(lambda: call in self.calls)

    async def until_closed(self) -> tuple[object, ...]:
        await self.until(lambda: self.closes)
        return self.closes[0]


class Server:
    """An aiohttp server whose ``/connect`` hands its transport over; ``peers`` in the order of arrival."""

    def __init__(self) -> None:
        self.port = 0
        self.limits = LIMITS
        self.peers: list[Recorder] = []
        self.runner: web.AppRunner
        self.before: Callable[[web.Request], Awaitable[None]] | None = None
        self._arrived = asyncio.Event()
        self.arriving = asyncio.Event()

    async def connect(self, request: web.Request) -> web.StreamResponse:
        try:
            handshake = handshake_of(request)
            subprotocol = handshake.choose([SUBPROTOCOL])
        except HandshakeError as error:
            return web.Response(status=error.http_status, headers=dict(error.headers), text=error.code)
        self.arriving.set()
        if self.before is not None:
            await self.before(request)
        peer = Recorder()
        peer.connection = Connection(peer, self.limits, asyncio.get_running_loop())
        self.peers.append(peer)
        response = adopt(request, handshake, subprotocol=subprotocol, connection=peer.connection)
        self._arrived.set()
        return response

    async def peer(self, index: int = 0) -> Recorder:
        async with asyncio.timeout(10):
            while len(self.peers) <= index:
                self._arrived.clear()
                await self._arrived.wait()
        return self.peers[index]


async def plain(request: web.Request) -> web.Response:
    return web.Response(text="an answer")


async def large(request: web.Request) -> web.Response:
    return web.Response(body=bytes(LARGE))


@asynccontextmanager
async def serving(
    *, ssl_context: ssl.SSLContext | None = None, handler_cancellation: bool = False
) -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/connect", server.connect)
    app.router.add_get("/", plain)
    app.router.add_get("/large", large)
    server.runner = web.AppRunner(app, handler_cancellation=handler_cancellation)
    await server.runner.setup()
    site = web.TCPSite(server.runner, "127.0.0.1", 0, ssl_context=ssl_context)
    await site.start()
    server.port = server.runner.addresses[0][1]
    try:
        yield server
    finally:
        for peer in server.peers:
            peer.connection.abort()
        for peer in server.peers:
            await peer.until_closed()
        await server.runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


def client(server: Server, **options: object) -> connect:
    return connect(
        f"ws://127.0.0.1:{server.port}/connect", subprotocols=[SUBPROTOCOL], ping_interval=None, **options
    )


def client_frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    key = b"\x01\x02\x03\x04"
    assert len(payload) <= 125
    return bytes((0x80 * fin | opcode, 0x80 | len(payload))) + key + mask(key, payload)


def tls_contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's, around a certificate for localhost made for the occasion."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = directory / "server.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(pem)
    return server_side, ssl.create_default_context(cafile=pem)


@asynccontextmanager
async def raw(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_messages_go_both_ways(server):
    async with client(server) as websocket:
        assert websocket.subprotocol == SUBPROTOCOL
        peer = await server.peer()
        await websocket.send(b"ack")
        await websocket.send("täxt")
        await websocket.send(b"x" * 200_000)
        await peer.until(lambda: len(peer.calls) == 3)
        assert peer.calls == [("binary", b"ack"), ("text", "täxt".encode()), ("binary", b"x" * 200_000)]
        for payload in (b"", b"a", b"b" * 126, b"c" * 70_000):
            peer.connection.write(frame(Opcode.BINARY, payload))
            assert await websocket.recv() == payload
        peer.connection.write(frame(Opcode.TEXT, "tëxt".encode()))
        assert await websocket.recv() == "tëxt"
        assert peer.connection.remote == "127.0.0.1"


async def test_fragments_and_control_frames_between_them(server):
    async with client(server) as websocket:
        peer = await server.peer()

        async def fragments() -> AsyncIterator[str]:
            yield "to"
            await (await websocket.ping(b"between"))
            yield "gether"

        await websocket.send(fragments())
        await peer.until_called("text", b"together")
        assert len(peer.calls) == 1


async def test_pings_are_answered_in_both_directions(server):
    async with client(server) as websocket:
        peer = await server.peer()
        async with asyncio.timeout(10):
            await (await websocket.ping(b"from the device"))
        peer.connection.ping(b"from the gateway")
        await peer.until_called("pong", b"from the gateway")


class TestClose:
    async def test_by_us_is_answered_and_ends_cleanly(self, server):
        async with client(server) as websocket:
            peer = await server.peer()
            peer.connection.close(4001, "slow")
            with pytest.raises(ConnectionClosedError):
                await websocket.recv()
            assert (websocket.close_code, websocket.close_reason) == (4001, "slow")
            assert await peer.until_closed() == ("closed", 4001, "slow")

    async def test_by_the_device_is_answered_and_ends_cleanly(self, server):
        async with client(server) as websocket:
            peer = await server.peer()
            await websocket.close(1000, "bye")
            assert await peer.until_closed() == ("closed", 1000, "bye")
            with pytest.raises(ConnectionClosedOK):
                await websocket.recv()

    async def test_a_device_that_never_answers_is_dropped(self, server):
        async with raw(server) as (reader, writer):
            writer.write(REQUEST + b"\r\n")
            peer = await server.peer()
            peer.connection.close(4000)
            assert await reader.readexactly(len(RESPONSE) + 4) == RESPONSE + b"\x88\x02\x0f\xa0"
            assert await peer.until_closed() == ("closed", 4000, "")
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(1)

    async def test_a_violation_is_told_even_to_one_that_keeps_sending(self, server):
        async with raw(server) as (reader, writer):
            writer.write(REQUEST + b"\r\n")
            peer = await server.peer()
            writer.write(b"\x82\x05naked" + bytes(300_000))
            assert await reader.read() == RESPONSE + b"\x88\x15\x03\xeaframe is not masked"
            assert await peer.until_closed() == ("closed", 1002, "frame is not masked")

    async def test_a_message_over_the_limit_is_told_1009(self, server):
        async with client(server, max_size=None) as websocket:
            peer = await server.peer()
            await websocket.send(bytes(LIMITS.message_size_bytes_max))
            with suppress(ConnectionClosedError):  # it may be closed before all of it is sent
                await websocket.send(bytes(LIMITS.message_size_bytes_max + 1))
            await websocket.wait_closed()
            assert websocket.close_code == 1009
            assert await peer.until_closed() == ("closed", 1009, "message too big")
            assert peer.calls[0] == ("binary", bytes(LIMITS.message_size_bytes_max))


class TestLoss:
    async def test_a_reset_is_told_as_abnormal(self, server):
        async with raw(server) as (reader, writer):
            writer.write(REQUEST + b"\r\n")
            peer = await server.peer()
            await reader.readexactly(len(RESPONSE))
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            assert await peer.until_closed() == ("closed", 1006, "")

    async def test_an_end_without_a_close_frame_is_told_as_abnormal(self, server):
        async with raw(server) as (reader, writer):
            writer.write(REQUEST + b"\r\n" + client_frame(Opcode.TEXT, b"a", fin=False))
            peer = await server.peer()
            writer.write_eof()
            assert await peer.until_closed() == ("closed", 1006, "")
            assert await reader.read() == RESPONSE

    async def test_one_that_stops_reading_and_then_sending_is_dropped(self, server):
        async with raw(server) as (_reader, writer):
            writer.write(REQUEST + b"\r\n")
            peer = await server.peer()
            writer.transport.pause_reading()
            while ("paused",) not in peer.calls:
                peer.connection.write(frame(Opcode.BINARY, bytes(65536)))
            writer.write_eof()
            assert await peer.until_closed() == ("closed", 1006, "")

    async def test_an_abort_drops_unsent_bytes(self, server):
        async with raw(server) as (_reader, writer):
            writer.write(REQUEST + b"\r\n")
            peer = await server.peer()
            writer.transport.pause_reading()
            while ("paused",) not in peer.calls:
                peer.connection.write(frame(Opcode.BINARY, bytes(65536)))
            peer.connection.abort()
            assert await peer.until_closed() == ("closed", 1006, "")
            assert peer.connection.write_buffer_size == 0


async def test_a_slow_reader_is_told_and_then_catches_up(server):
    async with client(server, max_queue=1) as websocket:
        peer = await server.peer()
        count = 0
        while ("paused",) not in peer.calls:
            peer.connection.write(frame(Opcode.BINARY, bytes(50_000)))
            count += 1
        assert peer.connection.write_buffer_size > LIMITS.write_buffer_high_bytes
        for _ in range(count):
            assert len(await websocket.recv()) == 50_000
        await peer.until_called("resumed")
        assert peer.connection.write_buffer_size == 0


def made_by_aiohttp() -> list[object]:
    """Return what aiohttp makes for a request, of all that is alive."""
    gc.collect()
    return [o for o in gc.get_objects() if isinstance(o, RequestHandler | web.Request)]


class TestHandOver:
    """What ``adopt`` knows about aiohttp's inside."""

    async def test_frames_right_behind_the_request_are_not_lost(self, server):
        async with raw(server) as (reader, writer):
            pipelined = client_frame(Opcode.TEXT, b"first", fin=False) + client_frame(
                Opcode.CONTINUATION, b"!"
            )
            writer.write(REQUEST + b"\r\n" + pipelined + client_frame(Opcode.PING, b"p")[:4])
            peer = await server.peer()
            writer.write(client_frame(Opcode.PING, b"p")[4:])
            await peer.until_called("text", b"first!")
            expected = RESPONSE + frame(Opcode.PONG, b"p")
            assert await reader.readexactly(len(expected)) == expected

    async def test_frames_that_arrive_while_the_handler_thinks_are_not_lost(self, server):
        may_go_on = asyncio.Event()

        async def think(_request: web.Request) -> None:
            await may_go_on.wait()

        server.before = think
        messages = [bytes((i % 256,)) * 100 for i in range(5000)]  # more than aiohttp buffers
        async with raw(server) as (reader, writer):
            writer.write(REQUEST + b"\r\n")
            await server.arriving.wait()
            writer.write(b"".join(client_frame(Opcode.BINARY, message) for message in messages[:1000]))
            handler = next(iter(server.runner.server.connections))
            async with asyncio.timeout(10):
                while len(handler._message_tail) < 2**16:
                    await asyncio.sleep(0)
            may_go_on.set()
            writer.write(b"".join(client_frame(Opcode.BINARY, message) for message in messages[1000:]))
            peer = await server.peer()
            await peer.until(lambda: len(peer.calls) == len(messages))
            assert [payload for _, payload in peer.calls] == messages
            assert await reader.readexactly(len(RESPONSE)) == RESPONSE

    async def test_a_close_right_behind_the_request_is_answered(self, server):
        async with raw(server) as (reader, writer):
            writer.write(REQUEST + b"\r\n" + client_frame(Opcode.CLOSE, b"\x03\xe8"))
            assert await reader.read() == RESPONSE + b"\x88\x02\x03\xe8"
            peer = await server.peer()
            assert await peer.until_closed() == ("closed", 1000, "")

    async def test_a_request_before_it_on_the_same_connection_is_answered_first(self, server):
        async with raw(server) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n" + REQUEST + b"\r\n")
            answer = await reader.readuntil(b"an answer")
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert await reader.readexactly(len(RESPONSE)) == RESPONSE
            peer = await server.peer()
            writer.write(client_frame(Opcode.BINARY, b"x"))
            await peer.until_called("binary", b"x")

    async def test_it_waits_until_the_answer_before_it_is_read(self, server):
        async with raw(server) as (reader, writer):
            writer.write(b"GET /large HTTP/1.1\r\nHost: gateway\r\n\r\n" + REQUEST + b"\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(LARGE)
            assert await reader.readexactly(len(RESPONSE)) == RESPONSE
            peer = await server.peer()
            assert peer.calls == [], "so it begins with an empty write buffer, and not paused"

    @pytest.mark.parametrize("handler_cancellation", [False, True])
    async def test_aiohttp_lets_go_of_everything_it_made_for_the_request(self, handler_cancellation):
        others = made_by_aiohttp()  # of tests that ran before in this process
        async with serving(handler_cancellation=handler_cancellation) as server, client(server) as websocket:
            peer = await server.peer()
            async with asyncio.timeout(10):
                while server.runner.server.connections:
                    await asyncio.sleep(0)
            alive = made_by_aiohttp()
            assert [type(o).__name__ for o in alive if all(o is not other for other in others)] == []
            tasks = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
            assert not any("RequestHandler" in name for name in tasks)
            await websocket.send(b"still there")
            await peer.until_called("binary", b"still there")

    async def test_aiohttps_shutdown_does_not_close_it(self, server):
        async with client(server) as websocket:
            peer = await server.peer()
            await server.runner.cleanup()
            await websocket.send(b"still there")
            await peer.until_called("binary", b"still there")

    async def test_a_device_that_left_while_the_handler_thought_is_closed_at_once(self, server):
        async def until_gone(request: web.Request) -> None:
            async with asyncio.timeout(10):
                while request.transport is not None:
                    await asyncio.sleep(0)

        server.before = until_gone
        async with raw(server) as (_reader, writer):
            writer.write(REQUEST + b"\r\n")
            await server.arriving.wait()
            writer.transport.abort()
            peer = await server.peer()
            assert peer.calls == [("closed", 1006, "")]

    async def test_a_body_is_not_read_as_frames(self, server):
        frames = client_frame(Opcode.BINARY, b"smuggled")
        async with raw(server) as (reader, writer):
            writer.write(REQUEST + f"Content-Length: {len(frames)}\r\n\r\n".encode() + frames)
            answer = await reader.readuntil(b"\r\n")
            assert answer == b"HTTP/1.1 400 Bad Request\r\n"
            assert server.peers == []

    async def test_a_plain_request_is_refused_and_the_connection_stays_http(self, server):
        async with raw(server) as (reader, writer):
            writer.write(b"GET /connect HTTP/1.1\r\nHost: gateway\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
            assert b"Upgrade: websocket\r\n" in head
            await reader.readexactly(len(b"websocket_handshake"))
            writer.write(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert (await reader.readuntil(b"an answer")).startswith(b"HTTP/1.1 200 OK")

    async def test_another_version_is_told_ours(self, server):
        async with raw(server) as (reader, writer):
            writer.write(REQUEST.replace(b"Version: 13", b"Version: 12") + b"\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
            assert b"Sec-WebSocket-Version: 13\r\n" in head

    async def test_over_tls(self, tmp_path):
        server_side, client_side = tls_contexts(tmp_path)
        async with (
            serving(ssl_context=server_side) as server,
            connect(
                f"wss://localhost:{server.port}/connect", subprotocols=[SUBPROTOCOL], ssl=client_side
            ) as websocket,
        ):
            peer = await server.peer()
            await websocket.send(b"x" * 100_000)
            await peer.until_called("binary", b"x" * 100_000)
            peer.connection.write(frame(Opcode.BINARY, b"y" * 100_000))
            assert await websocket.recv() == b"y" * 100_000
            await websocket.close(1000)
            assert await peer.until_closed() == ("closed", 1000, "")


async def test_several_connections_get_the_same_bytes(server):
    async with client(server) as first, client(server) as second:
        await server.peer(1)
        same = frame(Opcode.BINARY, b"to all")
        for peer in server.peers:
            peer.connection.write(same)
        assert [await first.recv(), await second.recv()] == [b"to all", b"to all"]


async def test_a_client_that_offers_no_subprotocol_of_ours_is_refused(server):
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{server.port}/connect", subprotocols=["other"])
    assert refused.value.response.status_code == 400
