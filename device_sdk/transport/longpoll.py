"""The gateway over plain requests, for devices that cannot hold a socket (PROTOCOL §4.4).

A poll's ``If-None-Match`` carries the cursor of the last batch that is on stable storage, and so
acknowledges its alerts; nacks, deployments, windows, reports and uplinks have requests of their own. The
newest ticket is shown with each.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Final

import aiohttp

from device_sdk.transport.http import (
    CONTENT_TYPES,
    TICKET_HEADER,
    Endpoint,
    decode_batch,
    encode_batch,
    is_unreachable,
    read_body,
    retry_after_s,
)
from device_sdk.transport.link import LinkClosedError
from device_sdk.update.ports import DeviceClock
from device_sdk.wire.errors import WireError
from device_sdk.wire.messages import (
    Ack,
    FromDevice,
    FromGateway,
    Hello,
    Report,
    Ticket,
    Uplink,
    Welcome,
    encode_base64url,
)

WAIT_MAX_S: Final = 55
PAUSE_S: Final = 1.0
"""Shortest time from one poll to the next if the first brought nothing new."""
UNCONFIRMED_PAUSE_S: Final = 5.0
_CONFLICT: Final = 409  # hello_required: the gateway has no session of ours
_CURSOR_LEN_MAX: Final = 2100


class LongPollTransport:
    """``POST /v1/device/hello``, then one ``GET /v1/device/messages`` after the other.

    Args:
        session: Stays the caller's.
        clock: For the pauses between polls.
    """

    name = "longpoll"

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        clock: DeviceClock,
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._clock = clock

    async def connect(self, hello: Hello, token: str) -> LongPollLink:
        link = LongPollLink(self._session, self._endpoint, token, self._clock, ticket=hello.ticket)
        await link.open(hello)
        return link


class LongPollLink:
    """A session of requests. A poll is under way only while ``receive`` is waited for, or was."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        token: str,
        clock: DeviceClock,
        *,
        ticket: bytes | None = None,
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._headers = {
            **endpoint.headers(token, ticket),
            "Content-Type": CONTENT_TYPES[endpoint.encoding],
            "Accept": CONTENT_TYPES[endpoint.encoding],
        }
        self._clock = clock
        self._wait_s = WAIT_MAX_S
        self._cursor: str | None = None  # acknowledged with the next poll
        self._next_cursor: str | None = None  # of what ``receive`` returned last
        self._arrived: list[FromGateway] = []  # answers to requests other than polls
        self._has_arrived = asyncio.Event()
        self._poll: asyncio.Task[list[FromGateway]] | None = None
        self._not_before = 0.0

    async def open(self, hello: Hello) -> None:
        """Say hello; the answer is what ``receive`` returns first."""
        said = dataclasses.replace(hello, ticket=None)
        status, _, body = await self._request(
            "POST", "v1/device/hello", encode_batch([said], self._endpoint.encoding), timeout_s=0
        )
        if status != 200:
            raise LinkClosedError("hello was not answered", http_status=status)
        messages = self._decode(body)
        for message in messages:
            if isinstance(message, Welcome) and message.heartbeat_s > 0:
                # A poll that brings nothing returns before the client takes the silence for an end.
                self._wait_s = max(1, min(WAIT_MAX_S, 2 * message.heartbeat_s))
        self._arrive(messages)

    async def receive(self) -> list[FromGateway]:
        if not self._has_arrived.is_set():
            if self._poll is None:
                self._poll = asyncio.create_task(self._messages(), name="fleetcast.longpoll.poll")
            arrival = asyncio.create_task(self._has_arrived.wait(), name="fleetcast.longpoll.arrival")
            try:
                await asyncio.wait({self._poll, arrival}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                arrival.cancel()
        if self._has_arrived.is_set():
            arrived, self._arrived = self._arrived, []
            self._has_arrived.clear()
            return arrived
        assert self._poll is not None
        poll, self._poll = self._poll, None
        return poll.result()

    def confirm(self) -> None:
        self._cursor, self._next_cursor = self._next_cursor or self._cursor, None

    async def send(self, messages: Sequence[FromDevice]) -> None:
        reports = [message for message in messages if isinstance(message, Report)]
        uplinks = [message for message in messages if isinstance(message, Uplink)]
        acks = [
            ack
            for message in messages
            if not isinstance(message, Report | Uplink) and (ack := self._spoken(message))
        ]
        encoding = self._endpoint.encoding
        if acks:
            status, _, body = await self._request("POST", "v1/device/acks", encode_batch(acks, encoding))
            if status == 200:  # what could not be accepted
                self._arrive(self._decode(body))
            elif status != 204:
                raise LinkClosedError(
                    "acks were not taken", http_status=status, is_continuity=status == _CONFLICT
                )
        await self._post("reports", reports)
        await self._post("uplinks", uplinks)

    async def close(self) -> None:
        poll, self._poll = self._poll, None
        if poll is not None:
            poll.cancel()
            with contextlib.suppress(asyncio.CancelledError, LinkClosedError):
                await poll

    async def _post(self, what: str, messages: Sequence[Report] | Sequence[Uplink]) -> None:
        """Post ``messages``, of which each is answered."""
        if not messages:
            return
        status, _, body = await self._request(
            "POST", f"v1/device/{what}", encode_batch(messages, self._endpoint.encoding)
        )
        if status != 200:
            raise LinkClosedError(
                f"{what} were not taken", http_status=status, is_continuity=status == _CONFLICT
            )
        self._arrive(self._decode(body))

    def _spoken(self, message: FromDevice) -> FromDevice | None:
        """Return what of an ack the next poll's cursor does not say; None: it says all."""
        if not isinstance(message, Ack) or self._cursor is None or not message.positions:
            return message
        if message.deployment is None and message.window is None:
            return None
        return dataclasses.replace(message, positions={})

    def _arrive(self, messages: Sequence[FromGateway]) -> None:
        """Hand ``messages``, the answer to a request other than a poll, to ``receive``."""
        self._arrived += messages
        if self._arrived:
            self._has_arrived.set()

    async def _messages(self) -> list[FromGateway]:
        pause_s = self._not_before - self._clock.monotonic()
        if self._next_cursor is not None:
            pause_s = UNCONFIRMED_PAUSE_S  # the same comes again: it could not be stored yet
        if pause_s > 0:
            await self._clock.sleep(pause_s)
        started = self._clock.monotonic()
        headers = {} if self._cursor is None else {"If-None-Match": self._cursor}
        status, etag, body = await self._request(
            "GET", f"v1/device/messages?wait={self._wait_s}", None, headers=headers, timeout_s=self._wait_s
        )
        if status == 204:
            self._not_before = started + PAUSE_S
            return []
        if status != 200:
            raise LinkClosedError(
                "the poll was not answered", http_status=status, is_continuity=status == _CONFLICT
            )
        if etag is None or len(etag) > _CURSOR_LEN_MAX or not etag.isascii() or not etag.isprintable():
            raise LinkClosedError("a batch without a cursor")
        self._not_before = started + PAUSE_S if etag == self._cursor else 0.0
        self._next_cursor = etag
        return self._decode(body)

    def _decode(self, body: bytes) -> list[FromGateway]:
        try:
            messages = decode_batch(body, self._endpoint.encoding)
        except WireError as error:
            raise LinkClosedError(f"not messages of the contract: {error.code}") from error
        for message in messages:
            if isinstance(message, Welcome | Ticket) and message.ticket is not None:
                self._headers[TICKET_HEADER] = encode_base64url(message.ticket)
        return [message for message in messages if not isinstance(message, FromDevice)]

    async def _request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float = 0,
    ) -> tuple[int, str | None, bytes]:
        """Return status, ETag and body of the answer; what has a time or a refusal in it raises."""
        path, _, query = path.partition("?")
        url = self._endpoint.path(path).with_query(query)
        limit_s = self._endpoint.connect_timeout_s + self._endpoint.io_timeout_s + timeout_s
        try:
            async with (
                asyncio.timeout(limit_s),
                self._session.request(
                    method,
                    url,
                    data=body,
                    headers={**self._headers, **(headers or {})},
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None),
                ) as response,
            ):
                if response.status in (401, 403, 429, 503):
                    raise LinkClosedError(
                        "the gateway refuses",
                        http_status=response.status,
                        retry_after_s=retry_after_s(response.headers.get("Retry-After")),
                    )
                content = await read_body(response)
                return response.status, response.headers.get("ETag"), content
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LinkClosedError(
                f"no answer: {type(error).__name__}", is_unreachable=is_unreachable(error)
            ) from error
