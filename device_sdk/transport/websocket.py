"""A WebSocket to the gateway: one message in each frame, CBOR or JSON by subprotocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, cast

import aiohttp

from device_sdk.transport.http import Endpoint, is_unreachable, retry_after_s
from device_sdk.transport.link import LinkClosedError
from device_sdk.wire.errors import WireError
from device_sdk.wire.limits import FRAME_SIZE_MAX
from device_sdk.wire.messages import (
    CBOR_SUBPROTOCOL,
    JSON_SUBPROTOCOL,
    FromDevice,
    FromGateway,
    Hello,
    decode_cbor,
    decode_json,
    encode_cbor,
    encode_json,
)

_QUEUE_LEN_MAX: Final = 64  # frames read ahead; then the socket is not read
_CLOSE_TIMEOUT_S: Final = 2.0


class WebSocketTransport:
    """``GET /v1/device/connect``, upgraded.

    Args:
        session: Stays the caller's.
    """

    name = "websocket"

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        self._session = session
        self._endpoint = endpoint

    async def connect(self, hello: Hello, token: str) -> WebSocketLink:
        endpoint = self._endpoint
        is_json = endpoint.encoding == "json"
        subprotocol = JSON_SUBPROTOCOL if is_json else CBOR_SUBPROTOCOL
        try:
            async with asyncio.timeout(endpoint.connect_timeout_s):
                websocket = await self._session.ws_connect(
                    endpoint.path("v1/device/connect"),
                    protocols=(subprotocol,),
                    headers=endpoint.headers(token, hello.ticket),
                    autoping=False,  # a ping is a sign of life that the watch has to see
                    max_msg_size=FRAME_SIZE_MAX,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT_S),
                )
        except aiohttp.WSServerHandshakeError as error:
            headers = error.headers if error.headers is not None else {}
            raise LinkClosedError(
                "the gateway did not open a WebSocket",
                http_status=error.status,
                retry_after_s=retry_after_s(headers.get("Retry-After")),
            ) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LinkClosedError(
                f"no connection: {type(error).__name__}", is_unreachable=is_unreachable(error)
            ) from error
        if websocket.protocol != subprotocol:
            await websocket.close()
            raise LinkClosedError("the other end speaks another protocol")
        link = WebSocketLink(websocket, is_json=is_json, io_timeout_s=endpoint.io_timeout_s)
        try:
            await link.send([replace(hello, ticket=None)])
        except BaseException:
            await link.close()
            raise
        return link


class WebSocketLink:
    """An open WebSocket. Its reader takes frames as they come, ahead of ``receive`` by a bounded queue."""

    def __init__(
        self, websocket: aiohttp.ClientWebSocketResponse, *, is_json: bool, io_timeout_s: float
    ) -> None:
        self._websocket = websocket
        self._is_json = is_json
        self._io_timeout_s = io_timeout_s
        self._queue: asyncio.Queue[FromGateway | LinkClosedError | None] = asyncio.Queue(_QUEUE_LEN_MAX)
        self._ending: LinkClosedError | None = None
        self._reader = asyncio.create_task(self._read(), name="fleetcast.websocket.reader")

    async def receive(self) -> list[FromGateway]:
        batch: list[FromGateway] = []
        item = None
        if self._ending is None:
            item = await self._queue.get()
        while self._ending is None:
            if isinstance(item, LinkClosedError):
                self._ending = item
            elif item is not None:
                batch.append(item)
            if self._queue.empty():
                break
            item = self._queue.get_nowait()
        if self._ending is not None and not batch:
            raise self._ending
        return batch

    def confirm(self) -> None:
        """Nothing: acknowledgements are messages here."""

    async def send(self, messages: Sequence[FromDevice]) -> None:
        try:
            async with asyncio.timeout(self._io_timeout_s):
                for message in messages:
                    if self._is_json:
                        await self._websocket.send_str(encode_json(message))
                    else:
                        await self._websocket.send_bytes(encode_cbor(message))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LinkClosedError(f"not sent: {type(error).__name__}") from error

    async def close(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(2 * _CLOSE_TIMEOUT_S):
                await self._websocket.close()

    def abort(self) -> None:
        """End the connection without a word, as a power cut does; for simulators. ``close`` it still."""
        shared = self._websocket.get_extra_info("socket")
        if shared is not None and (number := shared.fileno()) >= 0:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as twin:
                twin.shutdown(socket.SHUT_RDWR)

    async def _read(self) -> None:
        try:
            while True:
                await self._queue.put(await self._next())
        except LinkClosedError as ending:
            await self._queue.put(ending)
        except WireError as error:
            await self._queue.put(LinkClosedError(f"not a message of the contract: {error.code}"))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await self._queue.put(LinkClosedError(f"connection lost: {type(error).__name__}"))

    async def _next(self) -> FromGateway | None:
        """Return the next message; None for a sign of life, or a type that this version does not know."""
        frame = await self._websocket.receive()
        match frame.type:
            case aiohttp.WSMsgType.BINARY if not self._is_json:
                return _from_gateway(decode_cbor(frame.data))
            case aiohttp.WSMsgType.TEXT if self._is_json:
                return _from_gateway(decode_json(frame.data))
            case aiohttp.WSMsgType.PING:
                await self._websocket.pong(frame.data)
                return None
            case aiohttp.WSMsgType.PONG:
                return None
            case aiohttp.WSMsgType.CLOSE | aiohttp.WSMsgType.CLOSING | aiohttp.WSMsgType.CLOSED:
                code = frame.data if isinstance(frame.data, int) else self._websocket.close_code
                raise LinkClosedError("the gateway closed the connection", close_code=code or None)
            case aiohttp.WSMsgType.ERROR:
                raise LinkClosedError(f"the WebSocket broke: {frame.data!r}")
            case _:
                raise LinkClosedError("a frame of the wrong kind")


def _from_gateway(message: object) -> FromGateway | None:
    """Return ``message`` if a gateway may say it; what only devices say is passed over."""
    return None if isinstance(message, FromDevice) else cast("FromGateway | None", message)
