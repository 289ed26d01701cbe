"""One device's session: how it begins, what it takes from the device, which channels it has, how it ends.

Everything that decides what a session does next is in this package. Alerts by position and credit are
``deliveries``, updates until they are acknowledged ``updates``, sending and failing ``conversation``. Time
comes in as an argument, and nothing is sent before the commit it depends on.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Sequence
from typing import Final

from device_sdk.wire.limits import WINDOW_MAX
from device_sdk.wire.messages import (
    Ack,
    Cancel,
    Error,
    Hello,
    Lost,
    Message,
    Nack,
    Position,
    Report,
    Roots,
    StatementMessage,
    Subscriptions,
    Uplink,
    Welcome,
)
from device_sdk.wire.names import own_channel
from gateway.fleet.facts import Adopted, Disconnected
from gateway.fleet.model import Connected, ConnectedSubscription
from gateway.hub import device_channel
from gateway.session.conversation import State
from gateway.session.deliveries import Deliveries
from gateway.session.lane import Lane
from gateway.telemetry import logger

_log = logger("session")

SESSION_ID_SIZE: Final = 16


class Session(Deliveries):
    """A connected device. A transport is a subclass."""

    __slots__ = ()

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

    # --- from the device, over HTTP: answered once it is committed ----------------------------------------

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
