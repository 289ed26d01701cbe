"""The paths of the device plane, and their bodies in the two encodings.

Bodies are batches of messages (``application/cbor`` or ``application/json``). A POST is answered once what it
brought is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp import web

from device_sdk.wire.errors import MalformedError
from device_sdk.wire.limits import BATCH_SIZE_MAX, HELLO_SIZE_MAX
from device_sdk.wire.messages import (
    Ack,
    Hello,
    Message,
    Nack,
    Report,
    Uplink,
    decode_batch_cbor,
    decode_batch_json,
    encode_cbor,
    encode_json,
)
from gateway.edge.device.admission import TICKET_HEADER, Admission
from gateway.edge.device.events import STREAM_HEADERS, EventSession, EventStream
from gateway.edge.device.poll import PollSession, check_cursor, check_last_event_id
from gateway.edge.device.socket import connect
from gateway.errors import ConflictError, ProtocolViolationError
from gateway.identity import Credential, ResumedVerdict, Verdict
from gateway.session.conversation import State
from gateway.websocket import WebSocketLimits

CBOR: Final = "application/cbor"
JSON: Final = "application/json"
_POSTED_LEN_MAX: Final = 100  # acks, nacks or reports in one body
_NO_STORE: Final = {"Cache-Control": "no-store"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def device_routes(
    admission: Admission, *, websocket_limits: WebSocketLimits, longpoll_wait_max_s: int
) -> list[web.RouteDef]:
    """Return the routes of the device plane."""
    plane = _Plane(admission, longpoll_wait_max_s)

    async def connected(request: web.Request) -> web.StreamResponse:
        return await connect(request, admission, websocket_limits)

    return [
        web.get("/v1/device/connect", connected, allow_head=False),
        web.post("/v1/device/hello", plane.hello),
        web.get("/v1/device/messages", plane.messages, allow_head=False),
        web.get("/v1/device/events", plane.events, allow_head=False),
        web.post("/v1/device/acks", plane.acks),
        web.post("/v1/device/reports", plane.reports),
        web.post("/v1/device/uplinks", plane.uplinks),
    ]


class _Plane:
    def __init__(self, admission: Admission, longpoll_wait_max_s: int) -> None:
        self._admission = admission
        self._wait_max_s = longpoll_wait_max_s

    async def hello(self, request: web.Request) -> web.StreamResponse:
        """Open a polled session; the answer begins with ``welcome``."""
        admission = self._admission
        credential, verdict = await admission.judged(admission.enter(request))
        match await _read(request, HELLO_SIZE_MAX):
            case [Hello() as hello]:
                pass
            case _:
                raise ProtocolViolationError("one hello", code="hello_expected")
        admission.identity.check(credential, verdict)  # again, after a body that took its time
        session = EventSession(
            admission,
            verdict,
            credential_key=admission.identity.key(credential),
            token_sha256=credential.sha256,
            is_json=_is_json_wanted(request),
            now=admission.node.clock.monotonic(),
        )
        admission.entered(session, "longpoll")
        try:
            await admission.connect(session, hello, credential)
        except BaseException:
            session.ended()
            raise
        if session.state is not State.OPEN:  # the node is stopping, or what the hello found is old already
            admission.check_room()
            raise _hello_required()
        admission.polled[verdict.fleet, verdict.device_id] = session
        return _batch(session.taken_at_hello(), is_json=session.is_json)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """Answer what comes after the cursor, or 204 when nothing came in time."""
        wait_s = _wait(request, self._wait_max_s)
        credential, verdict = await self._admission.judge_polled(request)
        session = self._session(credential, verdict)
        await self._renew(session, verdict, is_ticket_shown=TICKET_HEADER in request.headers)
        cursor = check_cursor(request.headers.get("If-None-Match"))
        answer = await session.poll(cursor, wait_s=wait_s)
        if answer is None:
            if session.state is not State.OPEN:
                raise _hello_required()
            return web.Response(status=204, headers=_NO_STORE)
        messages, etag = answer
        return _batch(messages, is_json=session.is_json, headers={"ETag": f'"{etag}"'})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Answer with a stream of what comes after ``Last-Event-ID``, until either side ends it."""
        credential, verdict = await self._admission.judge_polled(request)
        session = self._session(credential, verdict)
        await self._renew(session, verdict, is_ticket_shown=TICKET_HEADER in request.headers)
        cursor = check_last_event_id(request.headers.get("Last-Event-ID"))
        response = web.StreamResponse(headers=STREAM_HEADERS)
        await response.prepare(request)
        if session.state is not State.OPEN:
            return response
        stream = EventStream(session, request.transport, now=self._admission.node.clock.monotonic())
        session.attach(stream, cursor, credential=credential)
        try:
            await stream.run(response)
        finally:
            session.detach(stream)
        return response

    async def acks(self, request: web.Request) -> web.StreamResponse:
        """Commit acknowledgements; what cannot be accepted is answered as a batch of ``error``."""
        credential, verdict = await self._admission.judge_polled(request)
        messages = await _read_posted(request, (Ack, Nack))
        session = self._session(credential, verdict)  # now, and not before a body that takes its time
        errors = await session.acknowledge(messages, self._admission.node.clock.monotonic())
        if errors:
            return _batch(_encoded(errors, session.is_json), is_json=session.is_json)
        return web.Response(status=204, headers=_NO_STORE)

    async def reports(self, request: web.Request) -> web.StreamResponse:
        """Commit reports; each is answered ``recorded``."""
        credential, verdict = await self._admission.judge_polled(request)
        reports = await _read_posted(request, (Report,))
        session = self._session(credential, verdict)
        is_json = _is_json_wanted(request)
        answers: list[Message] = []
        for report in reports:
            assert isinstance(report, Report), "checked when it was read"
            answers += await session.recorded(report)
        return _batch(_encoded(answers, is_json), is_json=is_json)

    async def uplinks(self, request: web.Request) -> web.StreamResponse:
        """Give uplinks to the operator's backend; each is answered ``recorded``, or ``error``: later."""
        credential, verdict = await self._admission.judge_polled(request)
        uplinks = await _read_posted(request, (Uplink,))
        session = self._session(credential, verdict)
        is_json = _is_json_wanted(request)
        found = await asyncio.gather(
            *(session.uplink(uplink) for uplink in uplinks if isinstance(uplink, Uplink))
        )
        return _batch(_encoded(found, is_json), is_json=is_json)

    def _session(self, credential: Credential, verdict: Verdict) -> EventSession:
        """Return the device's polled session.

        Raises:
            ConflictError: It has none, or the origin says something else of it now: ``hello_required``.
        """
        session = self._admission.polled.get((verdict.fleet, verdict.device_id))
        if session is None or session.state is not State.OPEN:
            raise _hello_required()
        session.presented(credential)
        known = session.verdict
        if isinstance(known, ResumedVerdict) or isinstance(verdict, ResumedVerdict):
            return session  # a ticket does not say what the device has
        if not verdict.grants_as(known):
            session.ended()
            raise _hello_required()
        session.judged(verdict)  # as old as the origin's last word
        return session

    async def _renew(self, session: PollSession, verdict: Verdict, *, is_ticket_shown: bool) -> None:
        """Take up the origin's first word after a ticket's; give a new one to who shows one that is over."""
        if isinstance(verdict, ResumedVerdict):
            return
        is_news = session.told_at < verdict.judged_at
        if isinstance(session.verdict, ResumedVerdict):
            await self._admission.take_up(session, verdict)
        if is_news and is_ticket_shown:
            session.told_at = verdict.judged_at
            await self._admission.give_ticket(session)


def _hello_required() -> ConflictError:
    return ConflictError("say hello first", code="hello_required")


def _wait(request: web.Request, most_s: int) -> float:
    text = request.query.get("wait", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 3):
        raise MalformedError("wait is a number of seconds")
    return float(min(int(text), most_s))


def _is_json(content_type: str) -> bool:
    if content_type in (JSON, CBOR):
        return content_type == JSON
    raise ProtocolViolationError(f"{CBOR} or {JSON}", code="unsupported_media_type")


def _is_json_wanted(request: web.Request) -> bool:
    """Return whether the answer is JSON: by ``Accept``, else like the body, else CBOR."""
    for part in request.headers.get("Accept", "").split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in (JSON, CBOR):
            return kind == JSON
    return request.content_type == JSON


async def _read(request: web.Request, size_max: int) -> list[Message]:
    is_json = _is_json(request.content_type)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ProtocolViolationError("a body comes as it is", code="unsupported_media_type")
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > size_max:
            raise web.HTTPRequestEntityTooLarge(max_size=size_max, actual_size=len(body))
    decode = decode_batch_json if is_json else decode_batch_cbor
    return decode(bytes(body), size_max=size_max)


async def _read_posted(request: web.Request, kinds: tuple[type[Message], ...]) -> list[Message]:
    messages = await _read(request, BATCH_SIZE_MAX)
    if len(messages) > _POSTED_LEN_MAX:
        raise ProtocolViolationError(f"at most {_POSTED_LEN_MAX} messages", code="too_large")
    if not all(isinstance(message, kinds) for message in messages):
        raise ProtocolViolationError("not a message for this path", code="unexpected_message")
    return messages


def _encoded(messages: Sequence[Message], is_json: bool) -> list[bytes]:
    if is_json:
        return [encode_json(message).encode() for message in messages]
    return [encode_cbor(message) for message in messages]


def _batch(
    messages: Sequence[bytes], *, is_json: bool, headers: dict[str, str] | None = None
) -> web.Response:
    if is_json:
        body = b"[" + b",".join(messages) + b"]"
    else:
        count = len(messages)
        head = (
            bytes([0x80 | count])
            if count < 24
            else bytes([0x98, count])
            if count < 256
            else b"\x99" + count.to_bytes(2, "big")
        )
        body = head + b"".join(messages)
    return web.Response(
        body=body, content_type=JSON if is_json else CBOR, headers={**_NO_STORE, **(headers or {})}
    )
