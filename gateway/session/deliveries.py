"""The alerts of a session: fed by position and credit, sent again until acknowledged, given up at last.

Each channel is a ``Lane``, live or behind (PROTOCOL §2, §3); ``pump`` feeds one that is behind. One deadline
per lane, for its oldest unacknowledged alert, looked at by ``visit``, which the node's timer calls. Attempts
are committed before the alert is sent again. Which channels a device has is ``session``.
"""

from __future__ import annotations

from typing import Final

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Position
from gateway.fleet.facts import (
    Attempted,
    DeadLettered,
    IntervalClosed,
    IntervalOpened,
    Received,
    Sent,
)
from gateway.fleet.log import Block
from gateway.hub import Writer
from gateway.identity import Verdict
from gateway.session.conversation import State
from gateway.session.lane import Lane
from gateway.session.page import Page, build_page
from gateway.session.ports import Node, commit
from gateway.session.updates import Updates

STALL: Final = 1 << 20  # taken from the credit of a transport that is paused: the hub's loop sees only credit


class Deliveries(Updates):
    """A conversation about alerts too.

    Attributes:
        connection: Where frames are written while lanes are live.
        credit, credit_bytes: What may still be written before an ack; the hub takes from them.
        window: What the device asked for, at most the node's.
        intervals: Live intervals opened so far.
    """

    __slots__ = (
        "connection",
        "credit",
        "credit_bytes",
        "intervals",
        "is_stalled",
        "lanes",
        "window",
    )

    connection: Writer

    def __init__(self, node: Node, verdict: Verdict, *, is_json: bool, now: float) -> None:
        super().__init__(node, verdict, is_json=is_json, now=now)
        self.window = 0
        self.credit = 0
        self.credit_bytes = node.limits.window_size_bytes_max
        self.intervals = 0
        self.is_stalled = False
        self.lanes: tuple[Lane, ...] = ()

    # --- what a transport gives ---------------------------------------------------------------------------

    @property
    def can_send(self) -> bool:
        """Whether a page may be written now; the transport calls ``resume`` when it may again."""
        raise AssertionError("a transport decides")

    @property
    def room(self) -> int:
        """How many messages the transport takes at once."""
        return self.node.limits.page_len_max

    @property
    def is_pushed(self) -> bool:
        """Whether publishes are written at once: lanes may be live."""
        raise AssertionError("a transport decides")

    def _send_pages(self, lane: Lane, page: Page) -> None:
        """Write a page of ``lane``: messages that can be made again from the log."""
        self._send(page.messages)

    # --- alerts to the device -----------------------------------------------------------------------------

    def feed(self) -> None:
        """Feed the lanes that are behind; those that got nothing come first the next time.

        They share one credit, and a lane with a long way to go takes all there is.
        """
        behind = [lane for lane in self.lanes if not lane.is_live]
        if len(behind) < 2:
            for lane in behind:
                self.pump(lane)
            return
        before = [lane.sent for lane in behind]
        for lane in behind:
            self.pump(lane)
        fed = [lane for lane, sent in zip(behind, before, strict=True) if lane.sent != sent]
        if fed and self.state is State.OPEN:
            self.lanes = (*(lane for lane in self.lanes if lane not in fed), *fed)

    def pump(self, lane: Lane) -> None:
        """Feed a lane that is behind: pages from memory at once, a read if there is none; or make it live.

        While the writer is full it is fed nothing, since each page has facts to write; ``visit`` comes back.
        """
        node, channel = self.node, lane.channel
        while (
            self.state is State.OPEN
            and not lane.is_busy
            and not lane.is_live
            and lane.index >= 0
            and self.credit > 0
            and self.credit_bytes > 0
            and self.can_send
            and not node.writer.is_full
        ):
            if lane.sent >= channel.head:
                # A hello may have found more in the log than the hub, which is about to read it, knows of.
                if self.is_pushed and lane.sent == channel.head and not channel.is_healing:
                    self._go_live(lane)
                return
            block = node.log.cached(channel.id, channel.epoch, lane.sent + 1)
            if block is None:
                lane.is_busy = True
                self._work(self._read(lane), "read")
                return
            if not self._send_page(lane, block):
                return

    def _send_page(self, lane: Lane, block: Block) -> bool:
        """Write one page; return whether anything was in it."""
        node, channel = self.node, lane.channel
        limits, now_ms = node.limits, node.clock.now_ms()
        attempt = lane.attempts + 1
        page = build_page(
            block,
            channel=channel.name,
            epoch=channel.epoch,
            after=lane.sent,
            head=channel.head,
            dead=lane.dead or (),
            now_ms=now_ms,
            is_json=self.is_json,
            attempt=attempt,
            resent_upto=lane.resent_upto,
            credit=self.credit,
            credit_bytes=self.credit_bytes,
            len_max=min(limits.page_len_max, self.room),
            size_bytes_max=limits.page_size_bytes_max,
        )
        if not page.messages:
            return False
        if lane.sent == lane.acked:
            lane.since = node.clock.monotonic()
        self.credit -= len(page.messages)
        self.credit_bytes -= page.size_bytes
        lane.sent_page(page.entries, page.upto)
        for first, last in page.runs:
            is_resent = first <= lane.resent_upto
            node.writer.put(
                Sent(
                    self.device_key,
                    channel.id,
                    channel.epoch,
                    first,
                    last,
                    attempt if is_resent else 1,
                    now_ms,
                )
            )
            node.metrics.delivered["redelivery" if is_resent else "page"].inc(last - first + 1)
        for item in page.expired:
            node.writer.put(
                DeadLettered(
                    self.device_key,
                    channel.id,
                    channel.epoch,
                    item.offset,
                    item.id,
                    "expired",
                    None,
                    lane.attempts,
                    now_ms,
                )
            )
            node.metrics.dead_lettered["expired"].inc()
        self._send_pages(lane, page)
        return True

    async def _read(self, lane: Lane) -> None:
        """Bring the block that the lane needs into memory, and go on."""
        channel = lane.channel
        try:
            block = await self.node.log.block(
                channel.fleet, channel.name, channel.id, channel.epoch, lane.sent + 1
            )
        finally:
            lane.is_busy = False
        if self.state is State.OPEN and not lane.is_live and lane.index >= 0 and self.can_send:
            # From the block itself: it may have left the cache again.
            if lane.sent + 1 <= block.upto and block.first <= lane.sent + 1 and self.credit > 0:
                self._send_page(lane, block)
            self.pump(lane)

    def _go_live(self, lane: Lane) -> None:
        channel = lane.channel
        assert lane.sent == channel.head, "live means sent everything below next"
        channel.leave(lane)
        self.intervals += 1
        lane.interval = self.intervals
        lane.live_first = channel.next
        channel.join_live(lane)
        self.node.writer.put(
            IntervalOpened(
                self._interval_id(lane.interval),
                self.device_key,
                channel.id,
                channel.epoch,
                channel.next,
                self.node.clock.now_ms(),
            )
        )

    def left_live(self, lane: Lane, sent: int) -> None:
        """The lane is behind from now on; the last alert it was sent live is ``sent``."""
        assert lane.interval is not None, "it was live"
        self.node.writer.put(IntervalClosed(self._interval_id(lane.interval), sent, self.node.clock.now_ms()))
        lane.interval = None

    def _interval_id(self, number: int) -> bytes:
        return self.id[:12] + number.to_bytes(4, "big")

    def lost_continuity(self, lane: Lane) -> None:
        """The channel is not the one it was: the device comes back and learns of it."""
        self.close(CloseCode.INSUFFICIENT_STATE)

    # --- what it acknowledges -----------------------------------------------------------------------------

    def lane(self, name: str) -> Lane | None:
        """Return the lane of the channel ``name``."""
        for lane in self.lanes:
            if lane.channel.name == name:
                return lane
        return None

    def is_position(self, lane: Lane, position: Position) -> bool:
        """Return whether ``position`` can be one of this lane: its epoch, and not above the head."""
        return position.epoch == lane.channel.epoch and position.offset <= lane.channel.head

    def take_position(self, lane: Lane, offset: int, now: float) -> Received | None:
        """Move ``lane`` to ``offset``; return what is to be committed, None if it stands there already."""
        if offset <= lane.acked:
            return None
        channel, acked = lane.channel, lane.acked
        received = Received(
            lane.subscription_id, self.device_key, channel.id, channel.epoch, acked + 1, offset
        )
        if lane.pages is None and 0 < lane.live_first <= acked + 1:  # all of it went live: no pages to count
            count, size = offset - acked, channel.bytes_between(acked, offset)
            lane.acked = offset
            if lane.sent < offset:
                lane.sent = offset
        else:
            count, size = lane.release(offset)
        self._give_back(count, size)
        lane.since = now
        lane.deadline = 0.0
        lane.attempts = 0
        if lane.dead is not None:
            lane.dead = frozenset(dead for dead in lane.dead if dead > offset) or None
        self.node.metrics.acked_lately += count
        return received

    def _set_window(self, asked: int) -> None:
        """Take the device's window; what is unacknowledged counts against the new one at once."""
        window = min(asked, self.node.limits.window_max)
        self.credit += window - self.window
        self.window = window

    def _give_back(self, count: int, size: int) -> None:
        most = self.window - (STALL if self.is_stalled else 0)
        self.credit = min(self.credit + count, most)
        self.credit_bytes = min(self.credit_bytes + size, self.node.limits.window_size_bytes_max)

    # --- what its transport takes -------------------------------------------------------------------------

    def stall(self) -> None:
        """The transport takes no more for now: live lanes fall behind at the next publish."""
        if not self.is_stalled:
            self.is_stalled = True
            self.credit -= STALL

    def resume(self) -> None:
        """The transport takes bytes again: feed what is behind."""
        self.unstall()
        self.feed()

    def unstall(self) -> None:
        """Give back the credit that ``stall`` took."""
        if self.is_stalled:
            self.is_stalled = False
            self.credit += STALL

    # --- redelivery ---------------------------------------------------------------------------------------

    def visit(self, now: float) -> None:
        """Look at the deadlines; the node's timer calls this every few seconds."""
        if self.state is not State.OPEN:
            return
        self._visit_lanes(now)
        self._visit_updates(now)

    def _visit_lanes(self, now: float) -> None:
        if self.window > 0:
            for lane in self.lanes:
                if lane.last_sent > lane.acked:
                    self._visit_lane(lane, now)
                elif not lane.is_live:
                    self.pump(lane)  # what could not be fed when its turn came

    def _visit_lane(self, lane: Lane, now: float) -> None:
        if not self.can_send or lane.is_busy:
            # Its bytes are still in the outbox: the wait begins when they have left.
            lane.since = now
            lane.deadline = 0.0
            return
        if not lane.deadline:
            delivered_at = lane.channel.delivered_at(lane.acked + 1) if lane.is_live else None
            since = max(lane.since, delivered_at or 0.0)
            lane.deadline = since + self._wait(
                lane.attempts, self.node.limits.redeliver_min_s, self.node.limits.redeliver_max_s
            )
        if now >= lane.deadline:
            self._attempt_again(lane, now)

    def _attempt_again(self, lane: Lane, now: float) -> None:
        """Count an attempt for ``acked + 1``, durably, and then send it again; or give it up."""
        lane.is_busy = True
        lane.deadline = 0.0
        lane.attempts += 1
        offset = lane.acked + 1
        if lane.attempts >= self.node.limits.attempts_max:
            self._work(self._spent(lane, offset), "spent")
        else:
            self._work(self._resend(lane, offset), "resend")

    async def _resend(self, lane: Lane, offset: int) -> None:
        try:
            await commit(self.node.writer, Attempted(lane.subscription_id, offset, lane.attempts))
        finally:
            lane.is_busy = False
        if self.state is State.OPEN and lane.acked + 1 == offset:
            self.rewind(lane)
        self.pump(lane)

    async def _spent(self, lane: Lane, offset: int) -> None:
        try:
            await self._spend(lane, offset)
        finally:
            lane.is_busy = False
        if self.state is State.OPEN and lane.acked + 1 == offset:
            lane.attempts = 0
            self.rewind(lane)
        self.pump(lane)

    async def _spend(self, lane: Lane, offset: int) -> None:
        """Give up what was sent often enough; once."""
        if offset not in (lane.dead or ()):
            await self._give_up(lane, offset, "attempts", None)

    def rewind(self, lane: Lane) -> None:
        """Stand at ``acked`` again: everything above it will be sent once more."""
        channel, sent = lane.channel, lane.last_sent
        if lane.is_live:
            channel.leave(lane)
            channel.join_behind(lane)
            count, size = lane.outstanding()
            self.left_live(lane, sent)
        else:
            count, size = lane.outstanding()
        lane.resent_upto = max(sent, lane.resent_upto)
        lane.since = self.node.clock.monotonic()
        self._give_back(count, size)

    async def _give_up(self, lane: Lane, offset: int, reason: str, code: str | None) -> None:
        """Write a dead letter; from then on the device is told ``advance`` in the alert's place."""
        channel = lane.channel
        block = await self.node.log.block(channel.fleet, channel.name, channel.id, channel.epoch, offset)
        item = block.items.get(offset)
        if item is None or (reason == "attempts" and item.is_superseded):
            return  # the page says so in its place, and that was not acknowledged
        await commit(
            self.node.writer,
            DeadLettered(
                self.device_key,
                channel.id,
                channel.epoch,
                offset,
                item.id,
                reason,
                code,
                lane.attempts,
                self.node.clock.now_ms(),
            ),
        )
        self.node.metrics.dead_lettered[reason].inc()
        if offset > lane.acked:
            lane.dead = (lane.dead or frozenset()) | {offset}
