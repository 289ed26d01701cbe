"""A session that is asked: long-poll (PROTOCOL §4.4).

Nothing is written between polls. Each poll says by its cursor what is on the device's stable storage, gets
what comes after it, and is answered with the next cursor; the same cursor reads again from the same
positions. So the lanes are never live: a publish wakes the poll that waits, which reads a page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from device_sdk.wire import cbor
from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.errors import MalformedError, WireError
from device_sdk.wire.limits import BATCH_LEN_MAX, BATCH_SIZE_MAX, CHANNELS_MAX
from device_sdk.wire.messages import (
    Message,
    Position,
    Update,
    decode_base64url,
    encode_base64url,
    encode_cbor,
    encode_json,
)
from gateway.edge.device.admission import Admission
from gateway.edge.device.watched import Watched
from gateway.errors import GatewayError
from gateway.fleet.facts import Attempted
from gateway.identity import Credential, Verdict
from gateway.session.conversation import State
from gateway.session.lane import Lane
from gateway.session.page import Page

CURSOR_PREFIX: Final = "v1."
CURSOR_SIZE_MAX: Final = 2048
KEPT_LEN_MAX: Final = 128  # updates, cancels and changes that wait for a poll; more end the session
_ANSWER_SIZE_MAX: Final = BATCH_SIZE_MAX - BATCH_LEN_MAX - 8  # of the messages: what is around them fits too
_READ_WAIT_S: Final = 5.0  # a poll that does not wait waits that long for a read of the log that it began
ANSWER: Final = 0  # the number in a cursor that is no subscription's: which answer it came with


class _Nowhere:
    """Where a polled session's frames would go: its lanes are never live."""

    def write(self, data: bytes) -> None:
        raise AssertionError("a polled session is not written to")


NOWHERE: Final = _Nowhere()


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
    if not isinstance(found, dict) or len(found) > CHANNELS_MAX + 1:
        raise MalformedError("not a cursor")
    positions = {}
    for number, pair in found.items():
        match pair:
            case [int(epoch), int(offset)] if type(number) is int and epoch >= 0 and offset >= 0:
                positions[number] = Position(epoch, offset)
            case _:
                raise MalformedError("not a cursor")
    return positions


@dataclass(frozen=True, slots=True)
class Item:
    """A message that waits for a poll.

    Attributes:
        lane: Of an alert or advance: if no poll takes it, it is read again from the log.
        upto: The offset that it brings the lane to.
        is_update: It is sent again at its own times, not because an answer was lost.
        answer: Number of the first answer it was in; 0: none yet.
    """

    data: bytes
    lane: Lane | None = None
    upto: int = 0
    is_update: bool = False
    answer: int = 0


class PollSession(Watched):
    """A device that polls.

    An answer may be lost. Alerts are then read again from where the cursor stands; cancels and the like are
    kept until a cursor that came with them, or after them, says that the answer arrived.

    Attributes:
        credential_key: Of the credential that opened it (``Identity.key``): while the origin gives no answer
            it is what the session's requests are known by.
        told_at: When the origin said what the device's newest ticket is made of, ms UTC.
    """

    __slots__ = (
        "_answers",
        "_commits",
        "_outbox",
        "_outbox_bytes",
        "_polled_at",
        "_polls",
        "_said",
        "_token_sha256",
        "_waiter",
        "credential_key",
        "is_polled",
        "told_at",
    )

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
        super().__init__(admission, verdict, credential="", is_json=is_json, now=now)
        self._token_sha256 = token_sha256
        self.told_at = verdict.judged_at
        self.credential_key = credential_key
        self.connection = NOWHERE
        self.is_polled = False
        self._commits: set[asyncio.Future[object]] = set()
        self._outbox: list[Item] = []
        self._outbox_bytes = 0
        self._said: list[Item] = []  # in the last answer, of what is not read again from the log
        self._answers = 0
        self._polls = 0
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
        self._polls += 1
        number = self._polls
        self._say_again(cursor)
        now = self.node.clock.monotonic()
        try:
            await self._take_cursor(cursor, now)
        except GatewayError:
            self.ended()  # as in ``acknowledge``
            raise
        if self.state is not State.OPEN or number != self._polls:
            return None  # it ended, or a newer poll came while this one committed
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        self.is_polled = True
        try:
            self.feed()
            if not self._outbox:
                is_reading = any(lane.is_busy for lane in self.lanes)
                async with asyncio.timeout(max(wait_s, _READ_WAIT_S if is_reading else 0.0)):
                    await waiter
        except TimeoutError:
            pass
        finally:
            if self._waiter is waiter:
                self._waiter = None
                self.is_polled = False
                self._polled_at = self.node.clock.monotonic()
        # Its time being over cancels what it waits for.
        if waiter.done() and not waiter.cancelled() and not waiter.result():
            return None  # a newer poll came, or the session ended
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
            errors = [error for finished in done if (error := finished.exception()) is not None]
            if errors:
                raise errors[0]

    def end_poll(self) -> None:
        """End the poll that waits, with nothing; what it was given is sent to the next."""
        waiter, self._waiter = self._waiter, None
        self.is_polled = False
        if waiter is not None and not waiter.done():
            waiter.set_result(False)

    def _taken(self) -> tuple[list[bytes], str] | None:
        """Return as much as one body holds, and the cursor that stands behind it."""
        if not self._outbox:
            return None
        size, count = 0, 0
        for item in self._outbox[:BATCH_LEN_MAX]:
            size += len(item.data)
            if count and size > _ANSWER_SIZE_MAX:
                break
            count += 1
        taken, left = self._outbox[:count], self._outbox[count:]
        self._keep(item for item in left if item.lane is None)
        stands = {lane.subscription_id: Position(lane.channel.epoch, lane.acked) for lane in self.lanes}
        for item in taken:
            if item.lane is not None:
                stands[item.lane.subscription_id] = Position(item.lane.channel.epoch, item.upto)
        said = [item for item in taken if item.lane is None and not item.is_update]
        if said:
            self._answers += 1
            stands[ANSWER] = self._answer_position
        self._said = [replace(item, answer=item.answer or self._answers) for item in said]
        return [item.data for item in taken], format_cursor(stands)

    @property
    def _answer_position(self) -> Position:
        """What a cursor says that came with the last answer of this session; the epoch is the session's."""
        return Position(int.from_bytes(self.id[:4], "big"), self._answers)

    def _say_again(self, cursor: Mapping[int, Position] | None) -> None:
        """Take back what was in answers that did not arrive, as far as ``cursor`` says.

        What is not confirmed is in every answer, so one that arrived confirms all since its first. A device
        that sends no cursor (it acknowledges by requests of their own) does not say, and is believed.
        """
        said, self._said = self._said, []
        if said and cursor is not None:
            session = self._answer_position.epoch
            seen = cursor.get(ANSWER)
            arrived = seen.offset if seen is not None and seen.epoch == session else 0
            self._keep([item for item in said if item.answer > arrived] + self._outbox)

    async def _take_cursor(self, cursor: Mapping[int, Position] | None, now: float) -> None:
        """Acknowledge what the cursor says, durably, and stand there: everything after it is sent again."""
        commits: list[Awaitable[object]] = []
        for lane in self.lanes:
            position = cursor.get(lane.subscription_id) if cursor is not None else None
            if position is None or not self.is_position(lane, position):
                continue  # a channel of another epoch is read from where the gateway knows the device to be
            if position.offset < lane.acked:
                # Its flash lost some. What it was sent and has not acknowledged comes back with it.
                self.rewind(lane)
                lane.acked = lane.sent = position.offset
                continue
            received = self.take_position(lane, position.offset, now)
            if received is not None:
                commits.append(self.node.writer.commit(received))
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
        if was_sent and deadline and now >= deadline and self.window > 0:
            lane.attempts += 1
            deadline = 0.0
            if lane.attempts >= limits.attempts_max:
                await self._spend(lane, lane.acked + 1)
                lane.attempts = 0
            else:
                await self.node.writer.commit(Attempted(lane.subscription_id, lane.acked + 1, lane.attempts))
        if was_sent and not deadline:
            deadline = now + self._wait(lane.attempts, limits.redeliver_min_s, limits.redeliver_max_s)
        lane.deadline = deadline

    def _drop_alerts(self) -> None:
        """Alerts that no poll took are read again; what else waits stays."""
        self._keep(item for item in self._outbox if item.lane is None)

    def _keep(self, items: Iterable[Item]) -> None:
        self._outbox = list(items)
        self._outbox_bytes = sum(len(item.data) for item in self._outbox)

    # --- what the session asks ----------------------------------------------------------------------------

    @property
    def token_sha256(self) -> bytes:
        return self._token_sha256

    def presented(self, credential: Credential) -> None:
        """A request of the session came with ``credential``, which is good."""
        self._token_sha256 = credential.sha256

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

    def _send_pages(self, lane: Lane, page: Page) -> None:
        self._add(
            [
                Item(message, lane, upto)
                for message, (upto, _) in zip(page.messages, page.entries, strict=True)
            ]
        )

    def _send_update(self, update: Update) -> None:
        data = encode_json(update).encode() if self.is_json else encode_cbor(update)
        self._add([Item(data, is_update=True)])

    def _send(self, messages: Sequence[bytes]) -> None:
        self._add([Item(message) for message in messages])

    def _add(self, items: Sequence[Item]) -> None:
        self._outbox += items
        self._outbox_bytes += sum(len(item.data) for item in items)
        if not self.is_polled and len(self._outbox) > KEPT_LEN_MAX:
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
            self.feed()
        elif now - self._polled_at >= self.node.limits.longpoll_idle_s:
            self.ended()

    def taken_at_hello(self) -> list[bytes]:
        """Return what the session has said so far: the answer to its hello."""
        messages = [item.data for item in self._outbox]
        self._keep(())
        return messages


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


def check_last_event_id(header: str | None) -> dict[int, Position] | None:
    """Return the positions in a ``Last-Event-ID``, which is a cursor without quotes; None if there is none.

    Raises:
        MalformedError: Not a cursor.
    """
    if not header:  # what a client sends that has seen no event
        return None
    try:
        return parse_cursor(header)
    except WireError as error:
        raise MalformedError("Last-Event-ID is not a cursor") from error
