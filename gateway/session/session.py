"""One device's session: alerts by position and credit, updates until acknowledged, reports until recorded.

Everything that decides what a session does next is here. It knows no socket and no HTTP: a transport is a
subclass that can ``_send`` encoded messages and ``_end``; time comes in as an argument. What needs the
database is handed to the node's ports and comes back on the loop; nothing is sent before the commit it
depends on.

Alerts (PROTOCOL §2, §3): each channel is a ``Lane``, live or behind; ``pump`` feeds one that is behind. One
deadline per lane, for its oldest unacknowledged alert, looked at by ``visit``, which the node's timer calls.
Attempts are committed before the alert is sent again.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Final

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.limits import WINDOW_MAX
from device_sdk.wire.messages import (
    Ack,
    Cancel,
    Error,
    Goaway,
    Hello,
    Lost,
    Message,
    Nack,
    Position,
    Recorded,
    Report,
    Roots,
    StatementMessage,
    Subscriptions,
    Update,
    Uplink,
    Welcome,
    encode_cbor,
    encode_json,
)
from device_sdk.wire.names import own_channel
from gateway.errors import GatewayError, StorageUnavailableError, UnavailableError
from gateway.fleet.facts import (
    Adopted,
    Attempted,
    DeadLettered,
    DeploymentReceived,
    Disconnected,
    IntervalClosed,
    IntervalOpened,
    Received,
    Reported,
    Sent,
)
from gateway.fleet.log import Block
from gateway.fleet.model import Connected, ConnectedSubscription
from gateway.hub import Writer, device_channel
from gateway.identity import Verdict
from gateway.session.lane import Lane
from gateway.session.limits import IN_FLIGHT_MAX
from gateway.session.page import Page, build_page
from gateway.session.ports import Node, UpdateOffer, commit
from gateway.telemetry import logger

_log = logger("session")

SESSION_ID_SIZE: Final = 16
STALL: Final = 1 << 20  # taken from the credit of a transport that is paused: the hub's loop sees only credit
_BACKOFF_EXPONENT_MAX: Final = 16


class State(enum.Enum):
    """CONNECTING → OPEN → CLOSED; there is no way back."""

    CONNECTING = enum.auto()  # admitted; no hello yet
    OPEN = enum.auto()
    CLOSED = enum.auto()  # the end was said or seen; input is discarded


class Pending:
    """An update that was sent and not acknowledged."""

    __slots__ = ("deadline", "is_busy", "sends")

    def __init__(self, deadline: float, sends: int) -> None:
        self.deadline = deadline
        self.sends = sends
        self.is_busy = False


class Session:
    """A connected device.

    Attributes:
        connection: Where frames are written while lanes are live.
        credit, credit_bytes: What may still be written before an ack; the hub takes from them.
        window: What the device asked for, at most the node's.
        rtt_s: Of the last ping; 0: not measured yet.
    """

    __slots__ = (
        "boot_id",
        "connection",
        "credit",
        "credit_bytes",
        "device_key",
        "fleet_key",
        "id",
        "in_flight",
        "intervals",
        "is_json",
        "is_stalled",
        "is_waiting",
        "lanes",
        "node",
        "opened_at",
        "pending",
        "rtt_s",
        "state",
        "update_channels",
        "verdict",
        "wants_offer",
        "window",
    )

    connection: Writer

    def __init__(self, node: Node, verdict: Verdict, *, is_json: bool, now: float) -> None:
        self.node = node
        self.verdict = verdict
        self.is_json = is_json
        self.opened_at = now
        self.state = State.CONNECTING
        self.id = b""
        self.fleet_key = 0
        self.device_key = 0
        self.boot_id = b""
        self.window = 0
        self.credit = 0
        self.credit_bytes = node.limits.window_size_bytes_max
        self.rtt_s = 0.0
        self.in_flight = 0
        self.intervals = 0  # live intervals opened so far
        self.is_waiting = False
        self.is_stalled = False
        self.lanes: tuple[Lane, ...] = ()
        self.update_channels: tuple[int, ...] = ()
        self.pending: dict[bytes, Pending] | None = None
        self.wants_offer = False  # a question about updates was left open

    # --- what a transport gives ---------------------------------------------------------------------------

    @property
    def token_sha256(self) -> bytes:
        """Of the bearer token that it stands on; empty: it keeps none."""
        return b""

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

    def _send(self, messages: Sequence[bytes]) -> None:
        """Write encoded messages, in order."""
        raise AssertionError("a transport decides")

    def _send_pages(self, lane: Lane, page: Page) -> None:
        """Write a page of ``lane``: messages that can be made again from the log."""
        self._send(page.messages)

    def _send_update(self, update: Update) -> None:
        """Write an update, which is sent again until it is acknowledged."""
        self.send(update)

    def _end(self, code: CloseCode) -> None:
        """Tell the peer, and let go of it."""
        raise AssertionError("a transport decides")

    def _hold_input(self) -> None:
        """Read no more from the peer until ``_take_input``."""

    def _take_input(self) -> None:
        """Read again."""

    def judged(self, verdict: Verdict) -> None:
        """The origin spoke again."""
        self.verdict = verdict

    # --- the beginning ------------------------------------------------------------------------------------

    def start(
        self,
        hello: Hello,
        connected: Connected,
        *,
        statement: bytes | None,
        spread_s: int,
        now: float,
        ticket: bytes | None = None,
    ) -> None:
        """Open: say welcome and what the device must know first, then feed its channels.

        Args:
            connected: What the committed hello found; the caller registered this session before.
            statement: Signed for the hello's nonce.
            ticket: For coming back; None: it has one, or there is none to be had.
        """
        assert self.state is State.CONNECTING, "one hello opens one session"
        self.state = State.OPEN
        self.id = secrets.token_bytes(SESSION_ID_SIZE)
        self.fleet_key = connected.fleet_key
        self.device_key = connected.device_key
        self.boot_id = hello.boot_id
        self._set_window(hello.window)
        heads: dict[str, Position] = {}
        first: list[Message] = []
        if connected.root_document is not None:
            # It brings the key that the statement is signed with, so it comes before.
            first.append(Roots((connected.root_document,)))
            if statement is not None:
                first.append(StatementMessage(statement))
                statement = None
        attempted: list[Lane] = []
        lanes = []
        has_rebooted = connected.previous_boot_id not in (None, hello.boot_id)
        for found in connected.subscriptions:
            if found.kind != "alert":
                continue
            heads[found.channel] = Position(found.channel_epoch, found.head)
            told = hello.positions.get(found.channel)
            if self._is_asleep(found, told):
                continue
            lane, lost = self._lane(found, told, now)
            lanes.append(lane)
            if lost is not None:
                first.append(lost)
            if lost is None and has_rebooted and found.was_sent and lane.acked == found.offset:
                attempted.append(lane)
        if self.window == 0:
            attempted = []  # nothing is sent, and so nothing counted
        self.lanes = tuple(lanes)
        self.update_channels = tuple(
            found.channel_id for found in connected.subscriptions if found.kind == "update"
        )
        first += [Cancel(deployment) for deployment in connected.cancelling]
        welcome = Welcome(
            session=self.id,
            heads=heads,
            heartbeat_s=round(self.node.limits.heartbeat_s),
            spread_s=spread_s,
            server_time=self.node.clock.now_ms(),
            ticket=ticket,
            statement=statement,
        )
        self.send(welcome, *first)
        for lane in self.lanes:
            lane.channel.join_behind(lane)
        if self.state is State.OPEN:  # it may have been closed for what it was just told
            for lane in attempted:
                # It restarted with this alert in hand: a crash, not a flaky link, and so an attempt.
                self._attempt_again(lane, now)
            self.feed()

    def _is_asleep(self, found: ConnectedSubscription, told: Position | None) -> bool:
        """Return whether this is the device's own channel with nothing in it for the device.

        Every device has one and hardly any ever gets an alert there, so it gets a lane when there is one
        (``Sessions.unclaimed``).
        """
        stands = Position(found.channel_epoch, found.head)
        return (
            found.channel == own_channel(self.verdict.device_id)
            and (found.epoch, found.offset) == stands
            and (told is None or told == stands)
            and self.node.hub.is_quiet(device_channel(self.fleet_key, found.channel), found.head)
        )

    def _lane(
        self, found: ConnectedSubscription, told: Position | None, now: float
    ) -> tuple[Lane, Lost | None]:
        """Return the lane for a subscription, and what the device must be told of lost history."""
        node = self.node
        channel = node.hub.open(
            device_channel(self.fleet_key, found.channel),
            id=found.channel_id,
            fleet=self.verdict.fleet,
            name=found.channel,
            epoch=found.channel_epoch,
            head=found.head,
        )
        is_stored_good = found.epoch == found.channel_epoch and found.offset <= found.head
        stored = found.offset if is_stored_good else found.floor
        reason = None
        acked = stored
        if told is not None and told.epoch == found.channel_epoch and told.offset <= found.head:
            # Higher than stored: committed with the hello. Lower: its flash lost some, sent again. And where
            # the stored one is no good, the device was told ``lost`` before and the commit of that was lost.
            acked = told.offset
        elif told is not None and told.epoch != found.channel_epoch:
            reason = "epoch_changed"
        elif told is not None and told.offset > found.head:
            reason = "ahead_of_head"
            _log.error(
                "a device is ahead of the log: was a backup restored without `fleetcast db restored`?",
                fleet=self.verdict.fleet,
                channel=found.channel,
            )
        elif not is_stored_good:
            reason = "epoch_changed" if found.epoch != found.channel_epoch else "ahead_of_head"
        if not is_stored_good:
            node.writer.put(Adopted(found.id, found.channel_epoch, acked))
        is_stuck = found.attempts > 0 and found.stuck_offset == acked + 1
        lane = Lane(
            self,
            channel,
            subscription_id=found.id,
            acked=acked,
            attempts=found.attempts if is_stuck else 0,
            dead=found.dead or None,
            now=now,
        )
        if found.was_sent and acked == found.offset:
            lane.resent_upto = acked + 1
        lost = (
            Lost(channel=found.channel, epoch=found.channel_epoch, offset=acked, reason=reason)
            if reason is not None
            else None
        )
        return lane, lost

    # --- from the device ----------------------------------------------------------------------------------

    def receive(self, message: Message, now: float) -> None:
        """Apply one message of the device; what it may not send is answered ``error``."""
        if self.state is not State.OPEN:
            return
        match message:
            case Ack():
                self._ack(message, now)
            case Nack():
                self._nack(message, now)
            case Report():
                self._answer(self._reported(message), "report")
            case Uplink():
                # Not counted as an answer under way: a slow backend must not keep acks from being read. The
                # queue of uplinks has a bound of its own for each device.
                self._work(self._uplinked(message), "uplink")
            case Error():
                _log.info("the device reports an error", device=self.verdict.device_id, code=message.code)
            case _:
                self.send(Error(code="unexpected_message"))

    def _ack(self, ack: Ack, now: float) -> None:
        progressed = False
        for name, position in ack.positions.items():
            progressed = self._ack_position(name, position, now) or progressed
        if ack.deployment is not None:
            self._answer(self._deployment_received(ack.deployment), "received")
        if ack.window is not None:
            self._set_window(ack.window)
            progressed = True
        if progressed:
            self.feed()

    def _ack_position(self, name: str, position: Position, now: float) -> bool:
        """Apply one position of an ack; return whether it moved."""
        lane = self.lane(name)
        if lane is None:
            if name != own_channel(self.verdict.device_id):  # asleep: there is nothing to acknowledge
                self.send(Error(code="unknown_channel", ref=name))
            return False
        if not self.is_position(lane, position):
            self.send(Error(code="bad_position", ref=name))
            return False
        return self._put_position(lane, position.offset, now)

    def acknowledged(self, lane: Lane, offset: int, now: float) -> None:
        """Apply an ack of one position in the channel's epoch: what ``receive`` does, without a message."""
        if offset >= lane.channel.next:
            self.send(Error(code="bad_position", ref=lane.channel.name))
        elif self._put_position(lane, offset, now):
            for one in self.lanes:
                if one.interval is None:  # behind: there is credit for it now
                    self.feed()
                    break

    def _put_position(self, lane: Lane, offset: int, now: float) -> bool:
        received = self.take_position(lane, offset, now)
        if received is None:
            return False
        self.node.writer.put(received)
        if self.node.writer.is_full:
            self._wait_for_room()
        return True

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

    def _nack(self, nack: Nack, now: float) -> None:
        lane = self.lane(nack.channel)
        if lane is None and nack.channel == own_channel(self.verdict.device_id):
            self._answer(self._nack_asleep(nack), "nack")
        elif lane is None:
            self.send(Error(code="unknown_channel", ref=nack.channel))
        elif not self._is_nackable(lane, nack):
            self.send(Error(code="bad_position", ref=nack.channel))
        else:
            self._answer(self._nacked(lane, nack), "nack")

    async def _nack_asleep(self, nack: Nack) -> None:
        """Take a refusal in the device's own channel, which has no lane since all in it is acknowledged."""
        lane = await self._own_lane()
        if lane is not None and self._is_nackable(lane, nack):
            await self._nacked(lane, nack)
        elif self.state is State.OPEN:
            self.send(Error(code="bad_position", ref=nack.channel))

    async def _own_lane(self) -> Lane | None:
        """Return the lane of the device's own channel, woken if it was asleep."""
        name = own_channel(self.verdict.device_id)
        if self.lane(name) is None:
            found = await self.node.subscriptions.connected_subscriptions(self.device_key)
            own = next((subscription for subscription in found if subscription.channel == name), None)
            if own is not None and self.state is State.OPEN and self.lane(name) is None:
                lane, _ = self._lane(own, None, self.node.clock.monotonic())
                self.lanes = (*self.lanes, lane)
                lane.channel.join_behind(lane)
                self.pump(lane)
        return self.lane(name)

    async def _nacked(self, lane: Lane, nack: Nack) -> None:
        self.node.metrics.nacked.inc()
        await self._give_up(lane, nack.offset, "nacked", nack.code)

    def _is_nackable(self, lane: Lane, nack: Nack) -> bool:
        """Return whether the device can have been sent this alert on this connection or lately."""
        return (
            nack.epoch == lane.channel.epoch
            and lane.acked - WINDOW_MAX < nack.offset <= lane.last_sent
            and nack.offset > 0
        )

    async def _deployment_received(self, deployment: bytes) -> None:
        await commit(
            self.node.writer, DeploymentReceived(self.device_key, deployment, self.node.clock.now_ms())
        )
        if self.pending is not None:
            self.pending.pop(deployment, None)
            if not self.pending:
                self.pending = None

    async def _reported(self, report: Report) -> None:
        answers = await self.recorded(report)
        if self.state is State.OPEN:
            self.send(*answers)

    async def _uplinked(self, uplink: Uplink) -> None:
        answer = await self.uplink(uplink)
        if self.state is State.OPEN:
            self.send(answer)

    async def uplink(self, uplink: Uplink) -> Recorded | Error:
        """Give ``uplink`` to the operator's backend; return the answer to it."""
        verdict = self.verdict
        return await self.node.uplinks.deliver(verdict.fleet, verdict.device_id, uplink)

    # --- from the device, over HTTP: answered once it is committed ------------------------------------------

    async def acknowledge(self, messages: Sequence[Message], now: float) -> list[Message]:
        """Commit acks and nacks; return what could not be accepted.

        Raises:
            StorageUnavailableError: They may or may not be committed; the device repeats them.
        """
        own = own_channel(self.verdict.device_id)
        if any(isinstance(message, Nack) and message.channel == own for message in messages):
            await self._own_lane()
        errors: list[Message] = []
        commits: list[Awaitable[object]] = []
        for message in messages:
            match message:
                case Ack():
                    for name, position in message.positions.items():
                        lane = self.lane(name)
                        if lane is None:
                            if name != own:
                                errors.append(Error(code="unknown_channel", ref=name))
                        elif not self.is_position(lane, position):
                            errors.append(Error(code="bad_position", ref=name))
                        elif received := self.take_position(lane, position.offset, now):
                            commits.append(self.node.writer.commit(received))
                    if message.deployment is not None:
                        commits.append(self._deployment_received(message.deployment))
                    if message.window is not None:
                        self._set_window(message.window)
                case Nack():
                    lane = self.lane(message.channel)
                    if lane is None or not self._is_nackable(lane, message):
                        errors.append(Error(code="bad_position", ref=message.channel))
                    else:
                        commits.append(self._nacked(lane, message))
        await self._committed(commits)
        self.feed()
        return errors

    async def _committed(self, commits: Sequence[Awaitable[object]]) -> None:
        """Return once ``commits``, and those of the device's requests before, are committed.

        A position is taken in memory before it is committed, so a request that repeats it finds nothing left
        to do, and must not be answered before the one that had.
        """
        raise AssertionError("a transport whose acknowledgements are answered decides")

    async def recorded(self, report: Report) -> list[Message]:
        """Commit ``report``; return the answer to it.

        Raises:
            StorageUnavailableError: The device repeats the report.
        """
        answer, cancel, ended = await record(self.node, self.device_key, self.boot_id, report)
        if self.pending is not None:
            self.pending.pop(report.deployment, None)  # who reports on it has it
        if ended:
            self.offer_updates()
        return [answer, *([Cancel(report.deployment)] if cancel else [])]

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

    def _visit_updates(self, now: float) -> None:
        if self.wants_offer:
            self.offer_updates()
        if self.pending is not None:
            for deployment, pending in list(self.pending.items()):
                if now >= pending.deadline and not pending.is_busy:
                    pending.is_busy = True
                    self._work(self._redeliver_update(deployment, pending), "redeliver")

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

    def _wait(self, attempts: int, least_s: float, most_s: float) -> float:
        """Return d/2 + U(0, d/2); d doubles with each attempt and is never less than four round trips."""
        d = max(least_s, 4 * self.rtt_s) * 2 ** min(attempts, _BACKOFF_EXPONENT_MAX)
        d = min(d, max(most_s, least_s))
        jittered: float = d / 2 + self.node.random.uniform(0, d / 2)
        return jittered

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

    # --- updates ------------------------------------------------------------------------------------------

    async def _offer(self) -> None:
        self.wants_offer = False
        try:
            offers = await self.node.updates.offer([self.device_key])
        except UnavailableError as error:
            _log.warning("updates not offered", device=self.verdict.device_id, code=error.code)
            self.wants_offer = True  # ``visit`` asks again; nothing else of this session is in doubt
            return
        for offer in offers:
            self.push(offer)

    def offer_updates(self) -> None:
        """Ask which update this device should get, and push it."""
        if self.update_channels and self.state is State.OPEN:
            self._work(self._offer(), "offer")

    def push(self, offer: UpdateOffer) -> None:
        """Send an update whose attempt is committed; it is sent again until it is acknowledged."""
        if self.state is not State.OPEN:
            return
        for deployment in offer.superseded:
            self.cancel(deployment)
        sends = offer.attempt
        known = self.pending.get(offer.deployment_id) if self.pending is not None else None
        if known is not None and known.sends >= sends:
            return  # it is on its way: asked for twice, it is found twice
        limits = self.node.limits
        wait = self._wait(sends - 1, limits.update_redeliver_min_s, limits.update_redeliver_max_s)
        if self.pending is None:
            self.pending = {}
        self.pending[offer.deployment_id] = Pending(self.node.clock.monotonic() + wait, sends)
        self.node.metrics.updates_sent.inc()
        if sends > 1:
            self.node.metrics.updates_redelivered.inc()
        self._send_update(
            Update(
                deployment=offer.deployment_id,
                directive=offer.directive,
                manifest=offer.manifest,
                attempt=sends,
                waiting=0,
            )
        )

    def cancel(self, deployment: bytes) -> None:
        """Tell the device to stop, if it still can."""
        if self.state is not State.OPEN:
            return
        if self.pending is not None:
            self.pending.pop(deployment, None)
        self.send(Cancel(deployment))

    async def _redeliver_update(self, deployment: bytes, pending: Pending) -> None:
        try:
            offer = await self.node.updates.redeliver(self.device_key, deployment)
        except UnavailableError as error:
            _log.warning("update not sent again", device=self.verdict.device_id, code=error.code)
            pending.deadline = self.node.clock.monotonic() + self.node.limits.update_redeliver_min_s
            return
        finally:
            pending.is_busy = False
        if self.pending is None or self.pending.get(deployment) is not pending:
            return  # acknowledged meanwhile
        if offer is None:
            self.pending.pop(deployment, None)
        else:
            self.push(offer)

    # --- changes while connected --------------------------------------------------------------------------

    def subscriptions_changed(self, found: Sequence[ConnectedSubscription], now: float) -> None:
        """Take up the subscriptions as they are now, and tell the device."""
        if self.state is not State.OPEN:
            return
        wanted = {sub.channel: sub for sub in found if sub.kind == "alert"}
        have = {lane.channel.name: lane for lane in self.lanes}
        removed = [
            name
            for name, lane in have.items()
            if name not in wanted or wanted[name].id != lane.subscription_id
        ]
        for name in removed:
            self._drop_lane(have[name])
        kept = [lane for lane in self.lanes if lane.channel.name not in removed]
        added = []
        positions: dict[str, Position] = {}
        for name, sub in wanted.items():
            if name not in have or name in removed:
                lane, _ = self._lane(sub, None, now)
                added.append(lane)
                if name != own_channel(self.verdict.device_id):  # that one it has always had
                    positions[name] = Position(sub.channel_epoch, lane.acked)
        self.lanes = (*kept, *added)
        self.update_channels = tuple(sub.channel_id for sub in found if sub.kind == "update")
        gone = tuple(name for name in removed if name not in wanted)
        if positions or gone:
            self.send(Subscriptions(added=positions, removed=gone))
        if self.state is not State.OPEN:
            return  # closed for what it was just told; its lanes are gone with it
        for lane in added:
            lane.channel.join_behind(lane)
        self.feed()
        self.offer_updates()

    def _drop_lane(self, lane: Lane) -> None:
        channel, sent = lane.channel, lane.last_sent
        channel.leave(lane)
        count, size = lane.outstanding()
        if lane.is_live:
            self.left_live(lane, sent)
        self._give_back(count, size)
        self.node.hub.close(channel)

    # --- the end ------------------------------------------------------------------------------------------

    def close(self, code: CloseCode) -> None:
        """End the session for the reason ``code``."""
        if self.state is State.CLOSED:
            return
        self._end(code)
        self.ended()

    def go_away(self, code: CloseCode, retry_after_s: int) -> None:
        """End the session for the reason ``code``, and say when to come back."""
        if self.state is State.OPEN:  # the first message of all is the welcome
            self.send(Goaway(int(code), retry_after_s))
        self.close(code)

    def revoke(self) -> None:
        """End the session: its credential was taken back."""
        self.close(CloseCode.CREDENTIAL_REVOKED)

    def ended(self) -> None:
        """The transport is gone or told to go: leave the hub and write down that it ended. Idempotent."""
        was = self.state
        self.state = State.CLOSED
        if was is not State.OPEN:
            return
        for lane in self.lanes:
            sent = lane.last_sent
            lane.channel.leave(lane)
            if lane.is_live:
                self.left_live(lane, sent)
            self.node.hub.close(lane.channel)
        self.lanes = ()
        self.pending = None
        self.node.writer.put(Disconnected(self.device_key, self.node.clock.now_ms()))

    # --- parts --------------------------------------------------------------------------------------------

    def lane(self, name: str) -> Lane | None:
        """Return the lane of the channel ``name``."""
        for lane in self.lanes:
            if lane.channel.name == name:
                return lane
        return None

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

    def send(self, *messages: Message) -> None:
        """Encode and write ``messages``."""
        if self.is_json:
            self._send([encode_json(message).encode() for message in messages])
        else:
            self._send([encode_cbor(message) for message in messages])

    def _set_window(self, asked: int) -> None:
        """Take the device's window; what is unacknowledged counts against the new one at once."""
        window = min(asked, self.node.limits.window_max)
        self.credit += window - self.window
        self.window = window

    def _give_back(self, count: int, size: int) -> None:
        most = self.window - (STALL if self.is_stalled else 0)
        self.credit = min(self.credit + count, most)
        self.credit_bytes = min(self.credit_bytes + size, self.node.limits.window_size_bytes_max)

    def _wait_for_room(self) -> None:
        if not self.is_waiting:
            self.is_waiting = True
            self._hold_input()
            self._work(self._room(), "room")

    async def _room(self) -> None:
        await self.node.writer.drained()
        self.is_waiting = False
        self._take_input()

    def _answer(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do ``work`` for a message of the peer; it is not read while too much of that is under way."""
        self.in_flight += 1
        if self.in_flight == IN_FLIGHT_MAX:
            self._hold_input()
        self._work(self._counted(work), name)

    async def _counted(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            if self.in_flight == IN_FLIGHT_MAX:
                self._take_input()
            self.in_flight -= 1

    def _work(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.node.spawn(self._guarded(work), name=f"session[{self.verdict.device_id}].{name}")

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work``; a database that is away ends the session, since what it needs cannot be had."""
        try:
            await work
        except StorageUnavailableError:
            self.close(CloseCode.STORAGE_UNAVAILABLE)
        except GatewayError as error:
            _log.info("session cannot go on", device=self.verdict.device_id, code=error.code)
            self.close(CloseCode.INSUFFICIENT_STATE)
        except Exception:
            _log.exception("session failed", device=self.verdict.device_id)
            self.close(CloseCode.INTERNAL_ERROR)


async def record(node: Node, device_key: int, boot_id: bytes, report: Report) -> tuple[Recorded, bool, bool]:
    """Commit ``report``; return what the device is told, whether to cancel, whether the deployment ended.

    Raises:
        StorageUnavailableError: The device repeats the report.
    """
    outcome = await commit(node.writer, Reported(device_key, report, boot_id, node.clock.now_ms()))
    node.metrics.reports[outcome.status].inc()
    if outcome.entered is not None:
        node.metrics.deployments[outcome.entered.value].inc()
    return Recorded(report.id, outcome.status, outcome.code), outcome.cancel, outcome.ended
