"""A polled session that can hold a stream: Server-Sent Events (PROTOCOL §4.5, HTML §9.2).

The device says hello over POST, as for long-polls, and then asks for a stream in the place of polls. Each
message is an event: ``event`` its type, ``data`` the message in JSON, ``id`` the cursor that stands behind
it. While the stream is open the lanes are live or behind as a WebSocket's are, with the same credit;
acknowledgements come by POST. ``Last-Event-ID`` says where to resume and acknowledges nothing. A stream that
breaks leaves the session to the next stream or poll, which is sent again what was not acknowledged.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Goaway, Position, decode_cbor, encode_json
from gateway.edge.device.admission import Admission
from gateway.edge.device.poll import ANSWER, KEPT_LEN_MAX, NOWHERE, Item, PollSession, format_cursor
from gateway.identity import Credential, Verdict
from gateway.session.conversation import State
from gateway.session.lane import Lane
from gateway.session.session import Session

CONTENT_TYPE: Final = "text/event-stream"
STREAM_HEADERS: Final = {
    "Content-Type": CONTENT_TYPE,
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # a proxy that gathers bytes would make a stream of it that stands still
}
UNSENT_SIZE_HIGH: Final = 64 * 1024  # above it a stream is sent no more alerts until it took them
_BEAT: Final = b":\n\n"
_TYPE_AT: Final = len('{"type":"')


class EventStream:
    """The bytes of one stream on their way: what is pushed waits here for ``run``, which writes it.

    Attributes:
        unsent: Bytes that were pushed and that the transport did not take yet.
        drained_at: When it last took some, monotonic.
        next_beat_at: When a sign of life is due, monotonic.
        retry_after_s: What the device is told at the end, if it is told.
    """

    def __init__(self, session: EventSession, transport: asyncio.BaseTransport | None, *, now: float) -> None:
        self.unsent = 0
        self.drained_at = now
        self.next_beat_at = now
        self.retry_after_s = 0
        self._session = session
        self._transport = transport
        self._waiting: list[bytes] = []
        self._news = asyncio.Event()
        self._is_ended = False

    @property
    def is_gone(self) -> bool:
        """Whether nobody is at the other end any more."""
        return self._transport is None or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Push the alerts in ``data``: WebSocket frames, as the hub writes the same to all."""
        while data:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            elif size == 127:
                size, start = int.from_bytes(data[2:10], "big"), 10
            self._session.push_live(data[start : start + size])
            data = data[start + size :]

    def push(self, message: bytes, *, cursor: str | None) -> None:
        """Queue a message in JSON; ``cursor`` stands behind it."""
        kind = message[_TYPE_AT : message.index(b'"', _TYPE_AT)]
        name = b"" if cursor is None else b"id: " + cursor.encode() + b"\n"
        self._queue(b"event: " + kind + b"\n" + name + b"data: " + message + b"\n\n")

    def beat(self) -> None:
        """Queue a sign of life."""
        self._queue(_BEAT)

    def retry(self, wait_s: float) -> None:
        """Queue how long to wait before coming back, should the stream break."""
        self._queue(b"retry: %d\n\n" % round(wait_s * 1000))

    def end(self) -> None:
        """Write what waits and no more."""
        self._is_ended = True
        self._news.set()

    def abort(self) -> None:
        """Cut the connection, with what waits."""
        self.end()
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.abort()

    async def run(self, response: web.StreamResponse) -> None:
        """Write to ``response`` until the end, or until the other side is gone."""
        while not self._is_ended or self._waiting:
            await self._news.wait()
            if not self._is_ended:
                self._news.clear()
            data, self._waiting = b"".join(self._waiting), []
            if data:
                await response.write(data)  # waits while the transport is full
                self.unsent -= len(data)
                self._session.drained(self)

    def _queue(self, data: bytes) -> None:
        if not self._is_ended:
            self._waiting.append(data)
            self.unsent += len(data)
            self._news.set()


class EventSession(PollSession):
    """A device over plain HTTP: it polls, or holds a stream."""

    __slots__ = ("_kept", "_stream")

    def __init__(
        self,
        admission: Admission,
        verdict: Verdict,
        *,
        is_json: bool,
        now: float,
        credential_key: bytes = b"",
        token_sha256: bytes = b"",
    ) -> None:
        super().__init__(
            admission,
            verdict,
            is_json=is_json,
            now=now,
            credential_key=credential_key,
            token_sha256=token_sha256,
        )
        self._stream: EventStream | None = None
        # Of a stream, what neither the log has nor its own times bring again, numbered; the oldest go.
        self._kept: deque[tuple[int, Item]] | None = None

    @property
    def is_streamed(self) -> bool:
        return self._stream is not None

    def attach(
        self, stream: EventStream, cursor: Mapping[int, Position] | None, *, credential: Credential
    ) -> None:
        """Go on by ``stream``, from ``cursor`` or else from what is acknowledged; what was before it ends.

        What a cursor says of a channel in another epoch is passed over.
        """
        assert self.state is State.OPEN, "hello comes first"
        self.end_poll()
        self._polls += 1
        if self._stream is not None:
            self._leave_stream()
        self._say_again(cursor)
        waiting = [self._as_json(item) for item in self._outbox if item.lane is None]
        self._keep(())
        self.is_json = True
        for lane in self.lanes:
            self._resume(lane, cursor)
        waiting = [*self._unseen(cursor), *waiting]
        self._kept = deque(maxlen=KEPT_LEN_MAX)
        self._credential = self._admission.identity.kept(credential).packed()
        self._validity = self._valid(self.verdict)
        self._stream = stream
        self.connection = stream
        metrics = self.node.metrics
        metrics.connections["longpoll"].dec()
        metrics.connections["events"].inc()
        metrics.connects["events"].inc()
        spread_s = self._admission.spread_s(self.verdict.fleet)
        stream.retry(1 + self.node.random.uniform(0, spread_s))
        stream.next_beat_at += self.node.random.uniform(0.2, 1.0) * self.node.limits.heartbeat_s
        self._add(waiting)
        self.feed()

    def detach(self, stream: EventStream) -> None:
        """The stream is over; nothing, if it is not the session's any more."""
        if self._stream is stream:
            self._leave_stream()

    def drained(self, stream: EventStream) -> None:
        """``stream`` took bytes."""
        stream.drained_at = self.node.clock.monotonic()
        if self._stream is stream and self.is_stalled and stream.unsent < UNSENT_SIZE_HIGH // 2:
            self.resume()

    def push_live(self, message: bytes) -> None:
        """Push an alert that the hub delivers to all; it stands at its channel's head already."""
        stream = self._stream
        assert stream is not None, "only a streamed session has live lanes"
        stream.push(message, cursor=self._cursor())
        self._stall_if_full(stream)

    async def poll(
        self, cursor: Mapping[int, Position] | None, *, wait_s: float
    ) -> tuple[list[bytes], str] | None:
        if self._stream is not None:
            self._leave_stream()
        if self._kept is not None:
            self._keep([*self._unseen(cursor), *self._outbox])
            self._kept = None
        return await super().poll(cursor, wait_s=wait_s)

    # --- what the session asks ----------------------------------------------------------------------------

    @property
    def can_send(self) -> bool:
        return super().can_send if self._stream is None else not self.is_stalled

    @property
    def room(self) -> int:
        return super().room if self._stream is None else self.node.limits.page_len_max

    @property
    def is_pushed(self) -> bool:
        return self._stream is not None

    def _add(self, items: Sequence[Item]) -> None:
        stream = self._stream
        if stream is None:
            super()._add(items)
            return
        for item in items:
            if item.lane is None and not item.is_update:
                self._answers += 1
                assert self._kept is not None, "made with the stream"
                self._kept.append((self._answers, item))
            stream.push(item.data, cursor=self._cursor(item.lane, item.upto))
        self._stall_if_full(stream)
        if self.is_stalled and stream.unsent > self._admission.outbox_size_bytes_max:
            self.close(CloseCode.SLOW_CONSUMER)  # what a device provokes and does not read
            stream.abort()

    def go_away(self, code: CloseCode, retry_after_s: int) -> None:
        if self._stream is None:
            super().go_away(code, retry_after_s)
        else:
            self._stream.retry_after_s = retry_after_s
            self.close(code)

    def _end(self, code: CloseCode) -> None:
        super()._end(code)
        stream = self._stream
        if stream is not None:
            self.node.metrics.closed(code)
            stream.push(encode_json(Goaway(int(code), stream.retry_after_s)).encode(), cursor=None)

    def ended(self) -> None:
        if self._stream is not None:
            self._leave_stream()
        super().ended()

    def visit(self, now: float) -> None:
        stream = self._stream
        if stream is None or self.state is not State.OPEN:
            PollSession.visit(self, now)
            return
        if stream.is_gone:
            self._leave_stream()
            return
        if self.is_stalled and now - stream.drained_at >= self.node.limits.drain_timeout_s:
            self.close(CloseCode.SLOW_CONSUMER)
            stream.abort()
            return
        if now >= stream.next_beat_at:
            stream.next_beat_at = now + self.node.limits.heartbeat_s
            stream.beat()
        self._visit_verdict()
        Session.visit(self, now)

    # --- parts --------------------------------------------------------------------------------------------

    def _leave_stream(self) -> None:
        """End the stream: nothing is live, and what was not acknowledged is to be sent again."""
        stream, self._stream = self._stream, None
        assert stream is not None, "asked before"
        stream.end()
        self.connection = NOWHERE
        self.unstall()
        if self.state is State.OPEN:
            for lane in self.lanes:
                self.rewind(lane)
        self._polled_at = self.node.clock.monotonic()
        self.node.metrics.connections["events"].dec()
        self.node.metrics.connections["longpoll"].inc()

    def _resume(self, lane: Lane, cursor: Mapping[int, Position] | None) -> None:
        """Stand behind what the cursor says was received, without taking it for acknowledged."""
        self.rewind(lane)
        position = None if cursor is None else cursor.get(lane.subscription_id)
        if position is None or not self.is_position(lane, position):
            return
        lane.sent = position.offset
        if position.offset < lane.acked:
            lane.acked = position.offset  # its flash lost some

    def _unseen(self, cursor: Mapping[int, Position] | None) -> list[Item]:
        """Return what the stream before was given and the device does not have."""
        kept = self._kept or ()
        seen = None if cursor is None else cursor.get(ANSWER)
        if seen is None or seen.epoch != self._answer_position.epoch:
            return [item for _, item in kept]
        return [item for number, item in kept if number > seen.offset]

    def _cursor(self, lane: Lane | None = None, upto: int = 0) -> str:
        """Return the cursor behind what was just sent; of a page, behind ``upto`` of its lane."""
        stands = {
            one.subscription_id: Position(one.channel.epoch, upto if one is lane else one.last_sent)
            for one in self.lanes
        }
        stands[ANSWER] = self._answer_position
        return format_cursor(stands)

    def _stall_if_full(self, stream: EventStream) -> None:
        if stream.unsent > UNSENT_SIZE_HIGH:
            self.stall()

    def _as_json(self, item: Item) -> Item:
        if self.is_json:
            return item
        message = decode_cbor(item.data)
        assert message is not None, "we encoded it"
        return Item(encode_json(message).encode(), is_update=item.is_update)
