"""Devices that do only what a test tells them, on either transport and in either encoding.

Nothing is acknowledged, repeated or remembered by itself: what a device should do is the test's to say. A
request that is refused is ``Refused``, a connection that the gateway ended is ``Ended``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import cbor2
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from device_sdk.wire.messages import (
    Hello,
    Message,
    Welcome,
    decode_batch_cbor,
    decode_batch_json,
    decode_cbor,
    decode_json,
    encode_base64url,
    encode_batch_cbor,
    encode_batch_json,
    encode_cbor,
    encode_json,
)

M = TypeVar("M")
WAIT_S = 20


class Refused(Exception):
    """The gateway answered with a status that is not a 2xx.

    Attributes:
        code: Of the problem details; empty if there are none.
        retry_after_s: What ``Retry-After`` says; None if there is none.
    """

    def __init__(self, status: int, body: bytes, retry_after: str | None) -> None:
        try:
            self.code: str = json.loads(body)["code"]
        except (ValueError, KeyError):
            self.code = ""
        self.status = status
        self.retry_after_s = None if retry_after is None else int(retry_after)
        super().__init__(f"{status} {self.code}")


class Ended(Exception):
    """The connection is over; 1006 if there was no close frame."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


def hello(*, window: int = 32, boot_id: bytes | None = None, **fields: Any) -> Hello:
    """Return a hello of a device that has just booted."""
    return Hello(protocol=1, window=window, boot_id=boot_id or os.urandom(16), **fields)


def alert_data(body: bytes) -> bytes:
    """Return what an alert says, whoever signed it."""
    data: bytes = cbor2.loads(cbor2.loads(body).value[2])[9]  # the payload of a COSE_Sign1, its key 9
    return data


def _headers(fleet: str, device: str, token: str, ticket: bytes | None) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {token}", "Fleetcast-Fleet": fleet, "Fleetcast-Device": device}
    return headers if ticket is None else headers | {"Fleetcast-Ticket": encode_base64url(ticket)}


class SocketDevice:
    """``async with SocketDevice(url, fleet=…, device=…, token=…) as device`` connects and says nothing.

    Args:
        token: The device's name, unless it is said.
        ticket: Shown with it.
    """

    def __init__(
        self,
        url: str,
        *,
        fleet: str,
        device: str,
        token: str | None = None,
        encoding: str = "cbor",
        ticket: bytes | None = None,
    ) -> None:
        self._connect = connect(
            f"{url.replace('http', 'ws', 1)}/v1/device/connect",
            additional_headers=_headers(fleet, device, token or device, ticket),
            subprotocols=[f"fleetcast.v1.{encoding}"],  # type: ignore[list-item]
            compression=None,
            ping_interval=None,
            open_timeout=WAIT_S,
            close_timeout=1,
            proxy=None,
        )
        self.is_json = encoding == "json"
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        try:
            self._socket = await self._connect
        except InvalidStatus as error:
            answer = error.response
            raise Refused(
                answer.status_code, bytes(answer.body or b""), answer.headers.get("Retry-After")
            ) from None
        except (OSError, EOFError, InvalidHandshake) as error:
            raise Ended(1006) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._socket is not None
        await self._socket.close()

    async def begin(self, **fields: Any) -> Welcome:
        """Say hello; return the welcome."""
        await self.send(hello(**fields))
        return await self.next(Welcome)

    async def send(self, *messages: Message) -> None:
        assert self._socket is not None
        try:
            for message in messages:
                await self._socket.send(encode_json(message) if self.is_json else encode_cbor(message))
        except ConnectionClosed as closed:
            raise Ended(_code(closed)) from None

    async def receive(self) -> Message:
        """Return the next message. A test's own timeout is around it."""
        assert self._socket is not None
        while True:
            try:
                frame = await self._socket.recv()
            except ConnectionClosed as closed:
                raise Ended(_code(closed)) from None
            assert isinstance(frame, str) is self.is_json, "the other kind of frame"
            message = decode_json(frame) if isinstance(frame, str) else decode_cbor(frame)
            if message is not None:
                return message

    async def next(self, kind: type[M], where: Callable[[M], bool] = lambda _: True) -> M:
        """Return the next message of ``kind`` for which ``where`` holds, passing over others."""
        async with asyncio.timeout(WAIT_S):
            while True:
                message = await self.receive()
                if isinstance(message, kind) and where(message):
                    return message

    async def ended(self) -> int:
        """Return the close code once the gateway has ended the connection."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await self.receive()
                except Ended as end:
                    return end.code


def _code(closed: ConnectionClosed) -> int:
    return 1006 if closed.rcvd is None else closed.rcvd.code


@dataclass(frozen=True, slots=True)
class Polled:
    """What a poll was answered: 200 with messages and a cursor, or 204 with neither."""

    status: int
    messages: list[Message]
    cursor: str | None

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.messages if isinstance(message, kind)]


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event. ``id`` is what ``Last-Event-ID`` would be after it."""

    message: Message
    id: str


class EventStream:
    """The client's end of a stream, read as the HTML standard has it.

    Attributes:
        id: Of the last event that had one.
        retry_ms: What the server said last.
        comments: How many lines were comments.
    """

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self._answer = answer

    async def receive(self) -> Event:
        """Return the next event. Raises Ended: the stream is over, in good order (1000) or not (1006)."""
        fields: dict[str, str] = {}
        while True:
            try:
                line = await self._answer.content.readline()
            except aiohttp.ClientError as error:
                raise Ended(1006) from error
            if not line:
                raise Ended(1000)
            text = line.decode().rstrip("\n")
            if text:
                name, _, value = text.partition(":")
                self.comments += not name
                fields[name] = value.removeprefix(" ")
                continue
            if "retry" in fields:
                self.retry_ms = int(fields["retry"])
            self.id = fields.get("id", self.id)
            if "data" in fields:
                message = decode_json(fields["data"])
                assert message is not None
                assert json.loads(fields["data"])["type"] == fields["event"]
                return Event(message, self.id)
            fields = {}

    async def next(self, kind: type[M]) -> M:
        """Return the next message of ``kind``, passing over others."""
        async with asyncio.timeout(WAIT_S):
            while True:
                message = (await self.receive()).message
                if isinstance(message, kind):
                    return message

    async def ended(self) -> int:
        """Return how it ended, once it has."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await self.receive()
                except Ended as end:
                    return end.code


class PollDevice:
    """A device that polls; each method is one request. Use it as ``async with``."""

    def __init__(
        self,
        url: str,
        *,
        fleet: str,
        device: str,
        token: str | None = None,
        encoding: str = "cbor",
        ticket: bytes | None = None,
    ) -> None:
        self._url = url
        self.is_json = encoding == "json"
        kind = f"application/{encoding}"
        self._headers = _headers(fleet, device, token or device, ticket) | {"Accept": kind}
        self._content_type = {"Content-Type": kind}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def begin(self, **fields: Any) -> list[Message]:
        """Say hello; return the welcome and what else there is to say at once."""
        _, messages, _ = await self._post("hello", [hello(**fields)])
        return messages

    async def poll(self, cursor: str | None = None, *, wait_s: int = 0) -> Polled:
        headers = {} if cursor is None else {"If-None-Match": f'"{cursor}"'}
        status, messages, etag = await self._request("GET", f"messages?wait={wait_s}", headers=headers)
        return Polled(status, messages, etag.strip('"') if etag else None)

    async def acknowledge(self, *messages: Message) -> list[Message]:
        """Post acks and nacks; return what could not be accepted."""
        return (await self._post("acks", messages))[1]

    async def report(self, *reports: Message) -> list[Message]:
        return (await self._post("reports", reports))[1]

    async def uplink(self, *uplinks: Message) -> list[Message]:
        return (await self._post("uplinks", uplinks))[1]

    @asynccontextmanager
    async def events(self, last_event_id: str | None = None) -> AsyncIterator[EventStream]:
        """Hold a stream; a status that is not 200 is ``Refused``."""
        assert self._session is not None
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=WAIT_S)
        url = f"{self._url}/v1/device/events"
        async with self._session.get(url, headers=headers, timeout=timeout) as answer:
            if not answer.ok:
                raise Refused(answer.status, await answer.read(), answer.headers.get("Retry-After"))
            assert answer.content_type == "text/event-stream"
            yield EventStream(answer)

    async def _post(self, path: str, messages: Sequence[Message]) -> tuple[int, list[Message], str | None]:
        body = encode_batch_json(messages).encode() if self.is_json else encode_batch_cbor(messages)
        return await self._request("POST", path, data=body, headers=self._content_type)

    async def _request(self, method: str, path: str, **options: Any) -> tuple[int, list[Message], str | None]:
        assert self._session is not None
        try:
            async with self._session.request(method, f"{self._url}/v1/device/{path}", **options) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise Ended(1006) from error
        if not answer.ok:
            raise Refused(answer.status, body, answer.headers.get("Retry-After"))
        decode = decode_batch_json if self.is_json else decode_batch_cbor
        return answer.status, decode(body) if body else [], answer.headers.get("ETag")
