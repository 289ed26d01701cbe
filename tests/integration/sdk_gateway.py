"""A gateway small enough to misbehave on request, for the SDK's tests: PROTOCOL's device plane over aiohttp.

Everything a device says is noted in ``seen``; ``until`` waits for it. Time at the device runs ``FACTOR``
times as fast as the test's, so that waits of seconds take milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from device_sdk.wire.messages import (
    CBOR_SUBPROTOCOL,
    JSON_SUBPROTOCOL,
    Ack,
    Alert,
    Hello,
    Message,
    Nack,
    Position,
    Recorded,
    Report,
    Roots,
    Uplink,
    Welcome,
    decode_base64url,
    decode_batch_cbor,
    decode_batch_json,
    decode_cbor,
    decode_json,
    encode_batch_cbor,
    encode_batch_json,
    encode_cbor,
    encode_json,
)
from device_sdk.wire.signed import AlertPayload, alert_payload, assemble_alert, sign_alert
from tests.unit.device_sdk.update import world

FACTOR = 100.0
EPOCH = 7
Encoding = Literal["cbor", "json"]


class ScaledClock:
    """The device's clock, ``FACTOR`` times as fast."""

    def monotonic(self) -> float:
        return time.monotonic() * FACTOR

    def wall_ms(self) -> int | None:
        return world.NOW_MS

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s / FACTOR)


@dataclass
class Channel:
    bodies: list[bytes] = field(default_factory=list)
    acked: int = 0
    epoch: int = EPOCH


class FakeGateway:
    """``async with FakeGateway() as gateway``: one fleet, one device.

    Attributes:
        tokens: Those that are accepted.
        seen: What the device said, in order.
        answers: Statuses, with headers, that the next requests to a path get instead of an answer.
        records: Whether reports and uplinks are answered.
        channels: By name; ``publish`` makes them.
        artifacts: What ``/v1/device/artifacts/<name>`` serves.
        requests: (method, path, headers) of every request.
    """

    def __init__(self) -> None:
        self.tokens = {"good"}
        self.seen: list[Message] = []
        self.answers: dict[str, list[tuple[int, dict[str, str]]]] = {}
        self.records = True
        self.has_root = True
        self.ticket: bytes | None = None  # what welcome gives
        self.heartbeat_s = 25
        self.spread_s = 0
        self.pings = True
        self.channels: dict[str, Channel] = {}
        self.artifacts: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.sessions: list[_Session] = []
        self.connections = 0
        self._news = asyncio.Event()

    async def __aenter__(self) -> FakeGateway:
        app = web.Application(middlewares=[self._note])
        app.router.add_get("/v1/device/connect", self._connect)
        app.router.add_post("/v1/device/hello", self._hello)
        app.router.add_get("/v1/device/messages", self._messages)
        app.router.add_post("/v1/device/acks", self._posted)
        app.router.add_post("/v1/device/reports", self._posted)
        app.router.add_post("/v1/device/uplinks", self._posted)
        app.router.add_get("/v1/device/artifacts/{name}", self._artifact)
        self._server = TestServer(app)
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in list(self.sessions):
            await session.close(1001)
        await self._server.close()

    @property
    def url(self) -> str:
        return str(self._server.make_url("")).rstrip("/")

    @property
    def tickets_shown(self) -> list[bytes | None]:
        """The ticket of each request that opened a connection."""
        return [
            decode_base64url(ticket) if (ticket := headers.get("Fleetcast-Ticket")) else None
            for _, path, headers in self.requests
            if path.endswith(("/connect", "/hello"))
        ]

    def said(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.seen if isinstance(message, kind)]

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once ``condition`` is true; looked at whenever something happens here."""
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def publish(self, channel: str, *data: str, key: Any = world.ALERT) -> None:
        log = self.channels.setdefault(channel, Channel())
        for text in data:
            offset = len(log.bodies) + 1
            payload = alert_payload(
                AlertPayload(
                    fleet=world.FLEET,
                    channel=channel,  # type: ignore[arg-type]
                    epoch=log.epoch,
                    offset=offset,
                    id=offset.to_bytes(8, "big") + channel.encode()[:8].ljust(8, b"\0"),
                    issued_at=1,
                    content_type="text/plain",
                    data=text.encode(),
                )
            )
            signature = sign_alert(payload, key, world.FLEET)
            log.bodies.append(assemble_alert(payload, signature, kid=key.kid, algorithm=int(key.algorithm)))
        for session in self.sessions:
            session.pump()

    def send(self, *messages: Message) -> None:
        """Say ``messages`` to the session that is open."""
        self.sessions[-1].send(messages)

    async def close(self, code: int) -> None:
        """End the session that is open."""
        await self.sessions[-1].close(code)

    def drop(self) -> None:
        """Cut the connection that is open, without a word."""
        self.sessions[-1].drop()

    # --- requests -----------------------------------------------------------------------------------------

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path, request.headers))
        self._news.set()
        answers = self.answers.get(request.path)
        if answers:
            status, headers = answers.pop(0)
            return web.Response(status=status, headers=headers)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            return web.Response(status=401)
        named = (request.headers["Fleetcast-Fleet"], request.headers["Fleetcast-Device"])
        assert named == (world.FLEET, world.DEVICE)
        answer: web.StreamResponse = await handler(request)
        return answer

    def heard(self, message: Message, session: _Session) -> list[Message]:
        """Take what the device says; return the answer."""
        self.seen.append(message)
        self._news.set()
        match message:
            case Hello():
                session.begin(message)
                welcome = Welcome(
                    session=bytes(16),
                    heads={
                        name: Position(channel.epoch, len(channel.bodies))
                        for name, channel in self.channels.items()
                    },
                    heartbeat_s=self.heartbeat_s,
                    spread_s=self.spread_s,
                    server_time=world.NOW_MS,
                    ticket=self.ticket,
                )
                is_new = self.has_root and message.root_version == 0
                return [welcome, *([Roots((world.root(),))] if is_new else [])]
            case Ack():
                for name, position in message.positions.items():
                    channel = self.channels[name]
                    assert position.epoch == channel.epoch
                    assert position.offset <= len(channel.bodies)
                    channel.acked = max(channel.acked, position.offset)
                if message.window is not None:
                    session.window = message.window
            case Report() | Uplink() if self.records:
                return [Recorded(message.id, "recorded")]
        return []

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(
            protocols=(CBOR_SUBPROTOCOL, JSON_SUBPROTOCOL), autoping=True, compress=False
        )
        await websocket.prepare(request)
        session = _Session(self, is_json=websocket.ws_protocol == JSON_SUBPROTOCOL, websocket=websocket)
        self.sessions.append(session)
        self.connections += 1
        pinger = asyncio.create_task(session.ping())
        writer = asyncio.create_task(session.write())
        try:
            async for frame in websocket:
                message = decode_json(frame.data) if session.is_json else decode_cbor(frame.data)
                assert message is not None
                session.send(self.heard(message, session))
                session.pump()
        finally:
            self.sessions.remove(session)
            self._news.set()
            pinger.cancel()
            writer.cancel()
            await asyncio.gather(pinger, writer, return_exceptions=True)
        return websocket

    async def _hello(self, request: web.Request) -> web.StreamResponse:
        [message] = await self._read(request)
        for old in list(self.sessions):
            await old.close(4004)
        session = _Session(self, is_json=request.content_type == "application/json", websocket=None)
        self.sessions.append(session)
        self.connections += 1
        return self._batch(request, self.heard(message, session))

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        polled = [session for session in self.sessions if session.websocket is None]
        if not polled:
            return web.json_response({"code": "hello_required"}, status=409)
        session = polled[-1]
        cursor = request.headers.get("If-None-Match")
        for name, offset in (json.loads(cursor.strip('"').replace("'", '"')) if cursor else {}).items():
            self.channels[name].acked = max(self.channels[name].acked, offset)
            self._news.set()
        session.rewind()
        session.pump()
        messages = await session.polled(float(request.query["wait"]) / FACTOR)
        if session not in self.sessions:
            return web.json_response({"code": "hello_required"}, status=409)
        if not messages:
            return web.Response(status=204)
        etag = json.dumps(session.sent).replace('"', "'")
        return self._batch(request, messages, {"ETag": f'"{etag}"'})

    async def _posted(self, request: web.Request) -> web.StreamResponse:
        polled = [session for session in self.sessions if session.websocket is None]
        if not polled:
            return web.json_response({"code": "hello_required"}, status=409)
        answers: list[Message] = []
        for message in await self._read(request):
            kinds = {"reports": Report, "uplinks": Uplink, "acks": Ack | Nack}
            assert isinstance(message, kinds[request.path.rpartition("/")[2]])
            answers += self.heard(message, polled[-1])
        if request.path.endswith("acks"):
            return web.Response(status=204)
        return self._batch(request, answers)

    async def _artifact(self, request: web.Request) -> web.StreamResponse:
        data = self.artifacts[request.match_info["name"]]
        headers = {"ETag": '"1"'}
        found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if found is None or request.headers.get("If-Range", '"1"') != '"1"':
            return web.Response(body=data, headers=headers)
        start = int(found[1])
        if start >= len(data):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return web.Response(status=206, body=data[start:], headers=headers)

    async def _read(self, request: web.Request) -> list[Message]:
        body = await request.read()
        is_json = request.content_type == "application/json"
        return decode_batch_json(body) if is_json else decode_batch_cbor(body)

    def _batch(
        self, request: web.Request, messages: Sequence[Message], headers: dict[str, str] | None = None
    ) -> web.Response:
        is_json = request.headers["Accept"] == "application/json"
        body = encode_batch_json(messages).encode() if is_json else encode_batch_cbor(messages)
        kind = "application/json" if is_json else "application/cbor"
        return web.Response(body=body, content_type=kind, headers=headers)


class _Session:
    """A connection, or a row of polls: what was sent, and what waits to be."""

    def __init__(
        self, gateway: FakeGateway, *, is_json: bool, websocket: web.WebSocketResponse | None
    ) -> None:
        self._gateway = gateway
        self.is_json = is_json
        self.websocket = websocket
        self.window = 0
        self.is_open = False
        self.sent: dict[str, int] = {}
        self._outbox: list[Message] = []
        self._has_more = asyncio.Event()

    def begin(self, hello: Hello) -> None:
        self.is_open = True
        self.window = hello.window
        for name, position in hello.positions.items():
            channel = self._gateway.channels.get(name)
            if channel is not None and position.epoch == channel.epoch:
                channel.acked = max(channel.acked, position.offset)
        self.rewind()

    def rewind(self) -> None:
        self.sent = {name: channel.acked for name, channel in self._gateway.channels.items()}

    def pump(self) -> None:
        """Send what the window allows."""
        if not self.is_open:
            return
        for name, channel in self._gateway.channels.items():
            self.sent.setdefault(name, channel.acked)
            while self.sent[name] < len(channel.bodies) and self._unacked() < self.window:
                self.sent[name] += 1
                offset = self.sent[name]
                self.send([Alert(name, channel.epoch, offset, channel.bodies[offset - 1])])

    def send(self, messages: Sequence[Message]) -> None:
        self._outbox += messages
        self._has_more.set()

    async def write(self) -> None:
        """Write what is to be sent; the task of a WebSocket."""
        assert self.websocket is not None
        while True:
            await self._has_more.wait()
            self._has_more.clear()
            messages, self._outbox = self._outbox, []
            for message in messages:
                if self.is_json:
                    await self.websocket.send_str(encode_json(message))
                else:
                    await self.websocket.send_bytes(encode_cbor(message))

    async def polled(self, wait_s: float) -> list[Message]:
        try:
            async with asyncio.timeout(wait_s):
                while not self._outbox and self in self._gateway.sessions:
                    self._has_more.clear()
                    await self._has_more.wait()
        except TimeoutError:
            pass
        messages, self._outbox = self._outbox, []
        return messages

    async def ping(self) -> None:
        assert self.websocket is not None
        while True:
            await asyncio.sleep(self._gateway.heartbeat_s / FACTOR)
            if self._gateway.pings:
                await self.websocket.ping()

    async def close(self, code: int) -> None:
        if self.websocket is not None:
            await self.websocket.close(code=code)
        elif self in self._gateway.sessions:
            self._gateway.sessions.remove(self)
            self._has_more.set()

    def drop(self) -> None:
        assert self.websocket is not None
        transport = self.websocket._req.transport  # type: ignore[union-attr]
        assert transport is not None
        transport.abort()

    def _unacked(self) -> int:
        return sum(sent - self._gateway.channels[name].acked for name, sent in self.sent.items())


assert aiohttp.__version__ >= "3.14"
