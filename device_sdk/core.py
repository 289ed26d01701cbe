"""What a device says and how it takes what it is told: the device's side of ``fleetcast.v1``, without I/O.

``receive`` applies one message, ``commit`` puts what came of it on stable storage, ``outgoing`` returns
what is to be said now. In this order, and nothing is acknowledged before its commit (PROTOCOL §2). The
connection, its transport and when to come back are ``client``; an update's procedure is ``update``.

Positions (PROTOCOL §1.5): what comes for a channel is the next offset, or known already, or a sign that
this connection lost something; the last ends the connection and the next hello says where the device
stands. Durable keys: ``position/<channel>``, ``seen/<channel>/<block>``, and those of ``inbox``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, assert_never

from device_sdk.errors import UpdateError
from device_sdk.inbox import Entry, Inbox, State, nack_key
from device_sdk.outbox import NackOutbox, Repeater, UplinkOutbox
from device_sdk.wire.cose import Keys
from device_sdk.wire.errors import WireError
from device_sdk.wire.limits import CHANNELS_MAX, HELLO_SIZE_MAX, SIGNED_SIZE_MAX, UPLINK_SIZE_MAX, WINDOW_MAX
from device_sdk.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Advance,
    Alert,
    Attribute,
    Cancel,
    Error,
    FromDevice,
    FromGateway,
    Goaway,
    Hello,
    Installed,
    Lost,
    Nack,
    Position,
    Recorded,
    Report,
    Roots,
    StatementMessage,
    Subscriptions,
    Ticket,
    Update,
    Uplink,
    Welcome,
    encode_cbor,
)
from device_sdk.wire.signed import AlertPayload, verify_alert

_log = logging.getLogger("fleetcast.core")

SEEN_MIN: Final = 1024
"""Message ids of a channel that are remembered, at least (PROTOCOL §1.7)."""
_SEEN_BLOCK_LEN: Final = 32
_SEEN_BLOCKS: Final = SEEN_MIN // _SEEN_BLOCK_LEN + 1
_ID_SIZE: Final = 16
_CHANNELS_KEPT_MAX: Final = 2 * CHANNELS_MAX


class ContinuityError(Exception):
    """This connection lost something: end it, say hello anew, and nothing is missing."""


class Trust(Protocol):
    """What is needed of ``update.UpdateAgent`` apart from updates themselves."""

    @property
    def root_version(self) -> int: ...

    @property
    def last_directive(self) -> int: ...

    def installed(self) -> Mapping[str, Installed]: ...

    def needs_nonce(self) -> bytes | None: ...

    def alert_keys(self) -> Keys: ...

    def now_ms(self) -> int: ...

    def adopt_roots(self, roots: Sequence[bytes]) -> str | None: ...

    def receive_statement(self, body: bytes, nonce: bytes | None = None) -> str | None: ...

    def cancel(self, deployment: bytes) -> None: ...

    def pending_reports(self) -> Sequence[Report]: ...

    def recorded(self, recorded: Recorded) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreLimits:
    """Bounds and waits of the conversation.

    Attributes:
        window: Alerts that may be under way unacknowledged.
        ack_len, ack_wait_s: An ack goes after that many alerts, or that long after the first of them;
            at once when half the window, or ``ack_size_bytes``, is used.
        held_len_max, held_size_max_bytes: Alerts that wait for the first root document; more are passed
            over and come again.
        outgoing_len_max: Nacks and, separately, reports in one ``outgoing``.
        report_wait_s, report_wait_max_s: Until a report that was not recorded is sent again: doubling.
        uplinks_len_max, uplinks_size_max_bytes: Uplinks that wait; at the bound no more are taken.
        uplinks_in_flight_max: Of them, those sent and not yet answered.
        uplink_wait_s, uplink_wait_max_s: Until an uplink that was not recorded is sent again: doubling.
    """

    window: int = 32
    ack_len: int = 16
    ack_wait_s: float = 0.25
    ack_size_bytes: int = 128 * 1024
    held_len_max: int = 64
    held_size_max_bytes: int = 512 * 1024
    outgoing_len_max: int = 32
    report_wait_s: float = 10.0
    report_wait_max_s: float = 300.0
    uplinks_len_max: int = 256
    uplinks_size_max_bytes: int = 1024 * 1024
    uplinks_in_flight_max: int = 4
    uplink_wait_s: float = 30.0
    uplink_wait_max_s: float = 600.0

    def __post_init__(self) -> None:
        assert 1 <= self.window <= WINDOW_MAX, "the contract's bound"
        assert self.ack_len >= 1
        assert 0 < self.report_wait_s <= self.report_wait_max_s
        assert 0 < self.uplink_wait_s <= self.uplink_wait_max_s
        assert 1 <= self.uplinks_in_flight_max <= self.uplinks_len_max
        assert self.uplinks_size_max_bytes >= UPLINK_SIZE_MAX, "the longest fits"


@dataclass(slots=True)
class _Channel:
    """A channel's position and the ids of its newest messages.

    ``position`` is None until the first message says where the subscription stands. ``count`` is how many
    ids were ever remembered: it says which block is overwritten next.
    """

    position: Position | None = None
    count: int = 0
    blocks: dict[int, bytearray] = field(default_factory=dict)
    ids: set[bytes] = field(default_factory=set)

    def value(self) -> list[object]:
        epoch, offset = self.position if self.position is not None else (None, 0)
        return [epoch, offset, self.count]

    def remember(self, id: bytes) -> int:
        """Note a message's id; return the block that holds it."""
        block = self.count // _SEEN_BLOCK_LEN % _SEEN_BLOCKS
        if self.count % _SEEN_BLOCK_LEN == 0:
            self.ids.difference_update(_ids(self.blocks.get(block, b"")))
            self.blocks[block] = bytearray()
        self.blocks[block] += id
        self.ids.add(id)
        self.count += 1
        return block


class DeviceCore:
    """One device's conversation with its gateway, over one connection after the other.

    Args:
        boot_id: 16 bytes, another one after each start: the gateway tells a crash by it.
        attributes: What the device reports of itself.
    """

    _channels: dict[str, _Channel]
    # Of this connection: what is to be acknowledged,
    _unacked: set[str]
    _unacked_len: int
    _unacked_bytes: int
    _unacked_since: float
    _is_ack_urgent: bool
    _deployments: list[bytes]
    _window_told: int
    # what was received and is not yet stored,
    _staged: dict[str, object | None]
    _staged_entries: list[Entry]
    _staged_bytes: int
    _staged_nacks: list[Nack]
    # and what cannot be judged before the root document is known.
    _held: list[Alert]
    _has_passed_over: bool
    _early_statement: bytes | None

    def __init__(
        self,
        *,
        fleet: str,
        device_id: str,
        boot_id: bytes,
        state: State,
        inbox: Inbox,
        trust: Trust,
        attributes: Mapping[str, Attribute] | None = None,
        limits: CoreLimits | None = None,
    ) -> None:
        self._fleet = fleet
        self._device_id = device_id
        self._boot_id = boot_id
        self._state = state
        self._inbox = inbox
        self._trust = trust
        self.attributes = dict(attributes or {})
        self._limits = limits or CoreLimits()
        self._nacks = NackOutbox(state)
        self._reports = Repeater(wait_s=self._limits.report_wait_s, wait_max_s=self._limits.report_wait_max_s)
        self.uplinks = UplinkOutbox(
            state,
            len_max=self._limits.uplinks_len_max,
            size_max_bytes=self._limits.uplinks_size_max_bytes,
            in_flight_max=self._limits.uplinks_in_flight_max,
            wait_s=self._limits.uplink_wait_s,
            wait_max_s=self._limits.uplink_wait_max_s,
        )
        self.welcome: Welcome | None = None
        # Alerts, roots and statements not believed, uplinks that were refused; since the start.
        self.refusals = 0
        self._nonce: bytes | None = None
        self._load()
        self._forget_connection()

    # --- the beginning of a connection --------------------------------------------------------------------

    def hello(self, ticket: bytes | None = None) -> Hello:
        """Return what opens a connection, and forget the one before. The transport shows the ticket."""
        if self._staged:
            self._load()  # what was staged and never committed did not happen
        self._forget_connection()
        self._nonce = self._trust.needs_nonce()
        self._window_told = self._inbox.credit(self._limits.window)
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            window=self._window_told,
            boot_id=self._boot_id,
            positions={
                name: channel.position
                for name, channel in self._channels.items()
                if channel.position is not None
            },
            installed=self._trust.installed(),
            last_directive=self._trust.last_directive,
            root_version=self._trust.root_version,
            attributes=self.attributes,
            nonce=self._nonce,
            fleet=self._fleet,
            device=self._device_id,
        )
        if len(encode_cbor(hello)) > HELLO_SIZE_MAX:
            raise ValueError("hello is over 16 KiB: report fewer or shorter attributes")
        return replace(hello, ticket=ticket)

    # --- what the gateway says ----------------------------------------------------------------------------

    def receive(self, message: FromGateway, now: float) -> None:
        """Apply ``message``; call ``commit`` before anything is acknowledged.

        ``update``, ``ticket`` and ``goaway`` are the caller's: the first needs time, the second is about the
        connection, the third ends it.

        Raises:
            ContinuityError: End this connection and come back.
        """
        match message:
            case Alert():
                self._alert(message, now)
            case Advance():
                self._advance(message, now)
            case Recorded():
                self._recorded(message)
            case Welcome():
                self._welcome(message)
            case Lost():
                self._adopt(message.channel, Position(message.epoch, message.offset))
                self._touch(message.channel, now)
                self._is_ack_urgent = True
                _log.warning("history of %s is lost: %s", message.channel, message.reason)
            case Roots():
                self._roots(message, now)
            case StatementMessage():
                self._statement(message.body)
            case Subscriptions():
                self._subscriptions(message)
            case Cancel():
                self._trust.cancel(message.deployment)
            case Error():
                self._error(message)
            case Update() | Ticket() | Goaway():
                raise AssertionError("the caller's")
            case _:
                assert_never(message)

    def deployment_received(self, deployment: bytes) -> None:
        """An update is on stable storage: acknowledge it."""
        if deployment not in self._deployments:
            self._deployments.append(deployment)

    def nacked(self, nack: Nack) -> None:
        """A refusal that the inbox stored is to be sent."""
        self._nacks.add(nack)

    def uplink(self, uplink: Uplink) -> None:
        """Queue a message for the operator's backend, durably unless it is of best effort.

        Raises:
            UplinksFullError, StoreError: It is not queued.
        """
        self.uplinks.add(uplink)

    def commit(self) -> None:
        """Put everything received so far on stable storage, in one commit.

        Raises:
            StoreError: It is not there; end the connection, and the gateway will send it again.
        """
        if not self._staged:
            return
        self._state.commit(self._staged)
        self._staged = {}
        self._inbox.add(self._staged_entries)
        self._staged_entries, self._staged_bytes = [], 0
        nacks, self._staged_nacks = self._staged_nacks, []
        self._nacks.add(*nacks)

    @property
    def is_holding(self) -> bool:
        """Whether alerts came that cannot be judged yet, and so are neither stored nor acknowledged."""
        return bool(self._held) or self._has_passed_over

    # --- what the device says -----------------------------------------------------------------------------

    def outgoing(self, now: float) -> list[FromDevice]:
        """Return what is to be said now, each message once; all of it is on stable storage.

        Raises:
            StoreError: As ``commit``.
        """
        self.commit()
        self._nacks.settle(now)
        messages: list[FromDevice] = []
        messages += self._nacks.due(now, self._limits.outgoing_len_max)  # before the ack that passes them
        window = self._inbox.credit(self._limits.window)
        if self._is_ack_due(now) or self._is_window_due(window):
            told = None if window == self._window_told else window
            positions = {
                name: position
                for name in self._unacked
                if (channel := self._channels.get(name)) is not None
                and (position := channel.position) is not None
            }
            if positions or told is not None:
                messages.append(Ack(positions=positions, window=told))
            self._window_told = window
            self._forget_unacked()
        messages += [Ack(deployment=deployment) for deployment in self._deployments]
        self._deployments.clear()
        messages += self._reports.due(self._trust.pending_reports(), now, self._limits.outgoing_len_max)
        messages += self.uplinks.due(now)  # last: over HTTP each waits for the operator's backend
        return messages

    def deadline(self) -> float | None:
        """Return the monotonic time of the next ``outgoing`` that may have something; None: no time."""
        if self._deployments or (self._is_ack_urgent and self._unacked):
            return 0.0
        if self._is_window_due(self._inbox.credit(self._limits.window)):
            return 0.0
        ack = None if not self._unacked else self._unacked_since + self._limits.ack_wait_s
        times = (
            ack,
            self._nacks.next_due(),
            self._reports.next_due(self._trust.pending_reports()),
            self.uplinks.next_due(),
        )
        return min((time for time in times if time is not None), default=None)

    # --- alerts -------------------------------------------------------------------------------------------

    def _alert(self, message: Alert, now: float) -> None:
        if not self._follows(message.channel, message.epoch, message.offset, message.offset, now):
            return
        keys = self._trust.alert_keys()
        if not keys or self._held:
            self._hold(message)
            return
        try:
            alert = verify_alert(
                message.body,
                keys,
                fleet=self._fleet,
                channel=message.channel,
                epoch=message.epoch,
                offset=message.offset,
            )
            alert.check_fresh(self._trust.now_ms())
        except (WireError, UpdateError) as error:
            self._refuse(message, error.code)
        else:
            self._store(alert)
        self._move(message.channel, Position(message.epoch, message.offset))
        self._unacked_len += 1
        self._unacked_bytes += len(message.body)
        self._touch(message.channel, now)

    def _store(self, alert: AlertPayload) -> None:
        channel = self._channel(alert.channel)
        if alert.id in channel.ids:
            return  # history was repeated after ``lost``, and this part of it is known
        if not self._inbox.has_room(len(self._staged_entries), self._staged_bytes):
            raise ContinuityError("the gateway sends more than the window allows")
        block = channel.remember(alert.id)
        self._staged[f"seen/{alert.channel}/{block:02x}"] = bytes(channel.blocks[block])
        entry, change = self._inbox.entry(alert)
        self._staged.update(change)
        self._staged_entries.append(entry)
        self._staged_bytes += entry.size_bytes

    def _refuse(self, message: Alert, code: str) -> None:
        """Store the refusal and move on: one bad alert never blocks a channel (PROTOCOL §2.5)."""
        _log.warning("alert %s/%d refused: %s", message.channel, message.offset, code)
        self.refusals += 1
        nack = Nack(message.channel, message.epoch, message.offset, code)
        self._staged[nack_key(nack)] = code
        self._staged_nacks.append(nack)
        self._is_ack_urgent = True

    def _advance(self, message: Advance, now: float) -> None:
        if self._held:
            # What is held comes first; the gateway sends this again.
            self._has_passed_over = True
            return
        if self._follows(message.channel, message.epoch, message.first, message.last, now):
            self._move(message.channel, Position(message.epoch, message.last))
            self._unacked_len += 1
            self._touch(message.channel, now)

    def _follows(self, name: str, epoch: int, first: int, last: int, now: float) -> bool:
        """Return whether ``first``..``last`` is what comes next, False if it is known already.

        Raises:
            ContinuityError: Neither.
        """
        channel = self._channels.get(name)
        if channel is None or channel.position is None:
            return True
        if channel.position.epoch != epoch:
            raise ContinuityError(f"{name} has another epoch, and nobody said so")
        held = sum(1 for alert in self._held if alert.channel == name)
        if first > channel.position.offset + held + 1:
            raise ContinuityError(f"{name} goes on at {first}, not at {channel.position.offset + held + 1}")
        if last > channel.position.offset + held:
            return True
        if not held:
            # Sent again because the ack was lost or late: say it again, at once.
            self._touch(name, now)
            self._is_ack_urgent = True
        return False

    def _hold(self, message: Alert) -> None:
        """Keep an alert until a root document says who signs alerts; beyond the bound it comes again."""
        if any((alert.channel, alert.offset) == (message.channel, message.offset) for alert in self._held):
            return
        size = sum(len(alert.body) for alert in self._held)
        limits = self._limits
        is_full = (
            len(self._held) >= limits.held_len_max
            or size + len(message.body) > limits.held_size_max_bytes
            or self._has_passed_over
        )
        if is_full:
            self._has_passed_over = True
        else:
            self._held.append(message)

    # --- the rest of what the gateway says ----------------------------------------------------------------

    def _welcome(self, welcome: Welcome) -> None:
        self.welcome = welcome
        # A channel that is not named is no longer subscribed to; subscribing again starts elsewhere.
        for name, channel in self._channels.items():
            if name not in welcome.heads and channel.position is not None:
                channel.position = None
                self._staged[f"position/{name}"] = channel.value()
        if welcome.statement is not None:
            self._statement(welcome.statement)

    def _statement(self, body: bytes) -> None:
        if self._nonce is None:
            _log.warning("a statement that nobody asked for is passed over")
            return
        code = self._trust.receive_statement(body, self._nonce)
        if code is None:
            self._early_statement = None
        elif self._early_statement is None:
            # The root document that names its key may be the next message.
            self._early_statement = body
        else:
            self._early_statement = None
            self.refusals += 1

    def _roots(self, message: Roots, now: float) -> None:
        if self._trust.adopt_roots(message.roots) is not None:
            self.refusals += 1  # those before the refused one are in force
        if self._early_statement is not None:
            self._statement(self._early_statement)
        held, self._held = self._held, []
        for alert in held:
            self._alert(alert, now)
        if self._has_passed_over and not self._held:
            raise ContinuityError("alerts were passed over before the root document came")

    def _subscriptions(self, message: Subscriptions) -> None:
        for name in message.removed:
            channel = self._channels.get(name)
            if channel is not None and channel.position is not None:
                channel.position = None
                self._staged[f"position/{name}"] = channel.value()
            self._unacked.discard(name)
        for name, position in message.added.items():
            self._adopt(name, position)

    def _recorded(self, message: Recorded) -> None:
        if not self.uplinks.recorded(message.id):
            self._trust.recorded(message)
        elif message.status == "refused":
            _log.warning("uplink %s is refused: %s", message.id.hex(), message.code)
            self.refusals += 1

    def _error(self, message: Error) -> None:
        _log.warning("the gateway could not accept %s: %s", message.ref, message.code)
        if message.code != "bad_position" or message.ref is None:
            return
        if not self._nacks.refused(message.ref):
            raise ContinuityError(f"the gateway does not know our position in {message.ref}")

    # --- positions ----------------------------------------------------------------------------------------

    def _channel(self, name: str) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel()
            if len(self._channels) > _CHANNELS_KEPT_MAX:
                self._drop_channel(name)
        return channel

    def _drop_channel(self, newest: str) -> None:
        """Forget a channel that is not subscribed to, to make room for ``newest``."""
        for name, channel in self._channels.items():
            if channel.position is None and name != newest:
                del self._channels[name]
                self._unacked.discard(name)
                self._staged[f"position/{name}"] = None
                self._staged.update({f"seen/{name}/{block:02x}": None for block in channel.blocks})
                return
        raise ContinuityError("more channels than a device may have")

    def _adopt(self, name: str, position: Position) -> None:
        """Take the gateway's word for where this device stands; ids tell what is known (PROTOCOL §1.7)."""
        self._held = [alert for alert in self._held if alert.channel != name]
        self._move(name, position)

    def _move(self, name: str, position: Position) -> None:
        channel = self._channel(name)
        channel.position = position
        self._staged[f"position/{name}"] = channel.value()

    def _touch(self, name: str, now: float) -> None:
        """The channel's position is to be acknowledged."""
        if not self._unacked:
            self._unacked_since = now
        self._unacked.add(name)

    def _is_ack_due(self, now: float) -> bool:
        if not self._unacked:
            return False
        limits = self._limits
        return (
            self._is_ack_urgent
            or self._unacked_len >= limits.ack_len
            or self._unacked_len * 2 >= self._window_told
            or self._unacked_bytes >= limits.ack_size_bytes
            or now >= self._unacked_since + limits.ack_wait_s
        )

    def _is_window_due(self, window: int) -> bool:
        """Return whether the gateway has to know the window: it closed, or it opened far enough."""
        if window < self._window_told:
            return window == 0
        return window > self._window_told and (
            self._window_told < self._limits.window / 2 <= window or len(self._inbox) == 0
        )

    def _forget_unacked(self) -> None:
        self._unacked = set()
        self._unacked_len = 0
        self._unacked_bytes = 0
        self._unacked_since = 0.0
        self._is_ack_urgent = False

    def _forget_connection(self) -> None:
        self._forget_unacked()
        self._staged = {}
        self._staged_entries = []
        self._staged_bytes = 0
        self._staged_nacks = []
        self._deployments = []
        self._held = []
        self._has_passed_over = False
        self._early_statement = None
        self._window_told = 0
        self.welcome = None
        self._nacks.connected()
        self._reports.connected()
        self.uplinks.connected()

    def _load(self) -> None:
        """Read positions and ids from stable storage."""
        self._channels = {}
        for key, value in self._state.items("position/"):
            match value:
                case [int() | None as epoch, int(offset), int(count)]:
                    position = None if epoch is None else Position(epoch, offset)
                    self._channels[key.removeprefix("position/")] = _Channel(position, count)
                case _:
                    raise AssertionError("written by _Channel.value")
        for key, value in self._state.items("seen/"):
            _, name, block = key.split("/")
            assert isinstance(value, bytes), "written by _store"
            channel = self._channels.get(name)
            if channel is not None:
                channel.blocks[int(block, 16)] = bytearray(value)
                channel.ids.update(_ids(value))


def _ids(block: bytes | bytearray) -> list[bytes]:
    return [bytes(block[start : start + _ID_SIZE]) for start in range(0, len(block), _ID_SIZE)]


assert CoreLimits().held_size_max_bytes > SIGNED_SIZE_MAX, "one alert can be held"
