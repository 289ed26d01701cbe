"""A session that is asked: long-poll (PROTOCOL §4.4).

Nothing is written between polls. Each poll says by its cursor what is on the device's stable storage, gets
what comes after it, and is answered with the next cursor; the same cursor reads again from the same
positions. So the lanes are never live: a publish wakes the poll that waits, which reads a page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Final

from device_sdk.wire import cbor
from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.errors import MalformedError, WireError
from device_sdk.wire.limits import BATCH_LEN_MAX, CHANNELS_MAX
from device_sdk.wire.messages import Message, Position, decode_base64url, encode_base64url
from gateway.edge.device.admission import Admission
from gateway.errors import GatewayError
from gateway.fleet.facts import Attempted
from gateway.identity import Verdict
from gateway.session.lane import Lane
from gateway.session.session import Session, State

CURSOR_PREFIX: Final = "v1."
CURSOR_SIZE_MAX: Final = 2048
_KEPT_LEN_MAX: Final = 128  # updates, cancels and changes that wait for a poll; more end the session


class _Nowhere:
    """Where a polled session's frames would go: its lanes are never live."""

    def write(self, data: bytes) -> None:
        raise AssertionError("a polled session is not written to")


_NOWHERE: Final = _Nowhere()


def format_cursor(positions: Mapping[int, Position]) -> str:
    """Return the cursor for positions by subscription number."""
    return CURSOR_PREFIX + encode_base64url(
        cbor.encode({number: list(position) for number, position in positions.items()})
    )


def parse_cursor(text: str) -> dict[int, Position]:
    """Return the positions in a cursor that this gateway made.

    Raises:
        MalformedError: It did not.
    """
    if not text.startswith(CURSOR_PREFIX) or len(text) > CURSOR_SIZE_MAX:
        raise MalformedError("not a cursor")
    found = cbor.decode(decode_base64url(text.removeprefix(CURSOR_PREFIX)), size_max=CURSOR_SIZE_MAX)
    if not isinstance(found, dict) or len(found) > CHANNELS_MAX:
        raise MalformedError("not a cursor")
    positions = {}
    for number, pair in found.items():
        match pair:
            case [int(epoch), int(offset)] if type(number) is int and epoch >= 0 and offset >= 0:
                positions[number] = Position(epoch, offset)
            case _:
                raise MalformedError("not a cursor")
    return positions


class PollSession(Session):
    """A device that polls."""

    __slots__ = (
        "_admission",
        "_commits",
        "_outbox",
        "_outbox_bytes",
        "_polled_at",
        "_valid_until",
        "_waiter",
        "is_polled",
    )

    def __init__(self, admission: Admission, verdict: Verdict, *, is_json: bool, now: float) -> None:
        super().__init__(admission.node, verdict, is_json=is_json, now=now)
        self.connection = _NOWHERE
        self.is_polled = False
        self._admission = admission
        self._commits: set[asyncio.Future[object]] = set()
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._waiter: asyncio.Future[bool] | None = None
        self._polled_at = now

    async def poll(
        self, cursor: Mapping[int, Position] | None, *, wait_s: float
    ) -> tuple[list[bytes], str] | None:
        """Return messages and the next cursor; None after ``wait_s``, or when a newer poll came.

        Args:
            cursor: What is on the device's stable storage; None: what it acknowledged before.

        Raises:
            StorageUnavailableError: The acknowledgement is not committed.
        """
        self.end_poll()
        now = self.node.clock.monotonic()
        try:
            await self._take_cursor(cursor, now)
        except GatewayError:
            self.ended()  # as in ``acknowledge``
            raise
        if self.state is not State.OPEN or self.is_polled:
            return None  # it ended, or another poll came while this one committed
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        self.is_polled = True
        try:
            for lane in self.lanes:
                self.pump(lane)
            if not self._outbox:
                async with asyncio.timeout(wait_s):
                    await waiter
        except TimeoutError:
            pass
        finally:
            if self._waiter is waiter:
                self._waiter = None
                self.is_polled = False
                self._polled_at = self.node.clock.monotonic()
        if waiter.done() and not waiter.result():
            return None
        return self._taken()

    async def acknowledge(self, messages: Sequence[Message], now: float) -> list[Message]:
        """As ``Session.acknowledge``. What is not committed ends the session.

        Its positions are ahead of the database from then on: the device says hello, and is believed.
        """
        try:
            return await super().acknowledge(messages, now)
        except GatewayError:
            self.ended()
            raise

    async def _committed(self, commits: Sequence[Awaitable[object]]) -> None:
        for commit in commits:
            future: asyncio.Future[object] = asyncio.ensure_future(commit)
            self._commits.add(future)
            future.add_done_callback(self._commits.discard)
        if self._commits:
            # Not ``gather``: a request that is cancelled must not take the others' commits with it.
            done, _ = await asyncio.wait(tuple(self._commits))
            for finished in done:
                finished.result()

    def end_poll(self) -> None:
        """End the poll that waits, with nothing; what it was given is sent to the next."""
        waiter, self._waiter = self._waiter, None
        self.is_polled = False
        if waiter is not None and not waiter.done():
            waiter.set_result(False)

    def _taken(self) -> tuple[list[bytes], str] | None:
        if not self._outbox:
            return None
        messages, self._outbox, self._outbox_bytes = self._outbox, [], 0
        cursor = format_cursor(
            {lane.subscription_id: Position(lane.channel.epoch, lane.sent) for lane in self.lanes}
        )
        return messages, cursor

    async def _take_cursor(self, cursor: Mapping[int, Position] | None, now: float) -> None:
        """Acknowledge what the cursor says, durably, and stand there: everything after it is sent again."""
        commits: list[Awaitable[object]] = []
        for lane in self.lanes:
            position = cursor.get(lane.subscription_id) if cursor is not None else None
            if position is None or not self.is_position(lane, position):
                continue  # a channel of another epoch is read from where the gateway knows the device to be
            received = self.take_position(lane, position.offset, now)
            if received is not None:
                commits.append(self.node.writer.commit(received))
            elif position.offset < lane.acked:
                lane.acked = lane.sent = position.offset
        await self._committed(commits)
        self._drop_alerts()
        for lane in self.lanes:
            await self._again(lane, now)

    async def _again(self, lane: Lane, now: float) -> None:
        """Rewind; where the device was sent this before and still does not take it, count an attempt.

        Polls may repeat as fast as they like: an attempt is counted at most once in a wait of redelivery.
        """
        was_sent = lane.last_sent > lane.acked
        deadline = lane.deadline if was_sent else 0.0
        self.rewind(lane)
        limits = self.node.limits
        if was_sent and deadline and now >= deadline:
            lane.attempts += 1
            deadline = 0.0
            if lane.attempts >= limits.attempts_max:
                await self._give_up(lane, lane.acked + 1, "attempts", None)
                lane.attempts = 0
            else:
                await self.node.writer.commit(Attempted(lane.subscription_id, lane.acked + 1, lane.attempts))
        if was_sent and not deadline:
            deadline = now + self._wait(lane.attempts, limits.redeliver_min_s, limits.redeliver_max_s)
        lane.deadline = deadline

    def _drop_alerts(self) -> None:
        """Alerts that no poll took are read again; what else waits stays."""
        self._outbox = [message for message in self._outbox if not isinstance(message, _Page)]
        self._outbox_bytes = sum(map(len, self._outbox))

    # --- what the session asks ----------------------------------------------------------------------------

    @property
    def can_send(self) -> bool:
        return (
            self.is_polled and self.room > 0 and (self._outbox_bytes < self.node.limits.page_size_bytes_max)
        )

    @property
    def room(self) -> int:
        return BATCH_LEN_MAX - len(self._outbox)

    @property
    def is_pushed(self) -> bool:
        return False

    def _send_pages(self, messages: Sequence[bytes]) -> None:
        self._send([_Page(message) for message in messages])

    def _send(self, messages: Sequence[bytes]) -> None:
        self._outbox += messages
        self._outbox_bytes += sum(map(len, messages))
        if not self.is_polled and len(self._outbox) > _KEPT_LEN_MAX:
            self.close(CloseCode.INSUFFICIENT_STATE)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def _end(self, code: CloseCode) -> None:
        self.end_poll()

    def ended(self) -> None:
        was = self.state
        super().ended()
        if was is not State.CLOSED:
            self.end_poll()
            self._admission.left(self, "longpoll")

    def visit(self, now: float) -> None:
        if self.state is not State.OPEN:
            return
        if self.is_polled:
            self._visit_updates(now)  # time without a poll is time offline, and no attempt
            for lane in self.lanes:
                self.pump(lane)
        elif now - self._polled_at >= self.node.limits.longpoll_idle_s:
            self.ended()

    def taken_at_hello(self) -> list[bytes]:
        """Return what the session has said so far: the answer to its hello."""
        messages, self._outbox, self._outbox_bytes = self._outbox, [], 0
        return messages


class _Page(bytes):
    """A message of a page: read again from the log if no poll takes it."""


def check_cursor(header: str | None) -> dict[int, Position] | None:
    """Return the positions in an ``If-None-Match``; None if there is none.

    Raises:
        MalformedError: Not one quoted cursor.
    """
    if header is None:
        return None
    text = header.strip()
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise MalformedError("If-None-Match is not one quoted cursor")
    try:
        return parse_cursor(text[1:-1])
    except WireError as error:
        raise MalformedError("If-None-Match is not a cursor") from error
