"""Alerts between the gateway and the application: a durable queue for each channel (PROTOCOL §2.6).

An alert is stored, then acknowledged to the gateway, then handed to the application in the order of its
channel, and forgotten once the handler returned or its transaction committed. What a crash leaves is handed
over again with ``redelivered=True``. Who stores an alert is ``core``, in one commit with the position; who
calls the handler is ``client``. No clock and no task here: monotonic time is an argument.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

from device_sdk.store.errors import StateFullError
from device_sdk.wire import cbor
from device_sdk.wire.limits import ALERT_SIZE_MAX
from device_sdk.wire.messages import Nack
from device_sdk.wire.signed import AlertPayload

_ENTRY_OVERHEAD_BYTES: Final = 512  # an alert's fields other than its data, at most
APP_KEY_LEN_MAX: Final = 128


class State(Protocol):
    """What is needed of ``device_sdk.store.StateStore``."""

    def get(self, key: str) -> object | None: ...

    def items(self, prefix: str) -> Iterator[tuple[str, object]]: ...

    def commit(self, changes: Mapping[str, object | None]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxLimits:
    """Bounds of the inbox.

    Attributes:
        alerts_max, size_max_bytes: From here on the device asks for no more (``window`` 0). What is on its
            way by then is still taken, up to ``hard_factor`` times as much; beyond that the connection is
            closed and the alert comes again later. Nothing is ever dropped.
        calls_max: Calls of a handler that raises, before the alert becomes a local dead letter.
        retry_s, retry_max_s: Wait before it is called again: doubling, with jitter.
        dead_letters_max: Local dead letters that are kept; the oldest go.
        app_size_max_bytes: Keys and values that the application put, together.
    """

    alerts_max: int = 256
    size_max_bytes: int = 4 * 1024 * 1024
    hard_factor: int = 2
    calls_max: int = 3
    retry_s: float = 1.0
    retry_max_s: float = 30.0
    dead_letters_max: int = 64
    app_size_max_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        assert self.alerts_max >= 1, "an inbox of nothing receives nothing"
        assert self.size_max_bytes >= ALERT_SIZE_MAX + _ENTRY_OVERHEAD_BYTES, "one alert has to fit"
        assert self.hard_factor >= 2, "what is on its way when the window closes has to fit"
        assert self.calls_max >= 1
        assert 0 < self.retry_s <= self.retry_max_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedAlert:
    """An alert as the application gets it: authentic, stored, in order. Times are milliseconds UTC.

    Attributes:
        id: UUIDv7; the same for the same alert, however often it is handed over.
        key: An alert of the channel with the same key is about the same thing; the newest counts.
        original_id: The alert that this one repeats after it had been given up.
        redelivered: A crash came while this alert was next: the handler may have seen it before.
    """

    channel: str
    epoch: int
    offset: int
    id: bytes
    issued_at: int
    expires_at: int | None
    content_type: str
    data: bytes
    key: str | None
    original_id: bytes | None
    redelivered: bool

    @property
    def text(self) -> str:
        """The data as UTF-8; what is not is replaced."""
        return self.data.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the data as JSON; ValueError if it is not."""
        return json.loads(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An alert that the application did not take.

    Attributes:
        code: ``handler_failed`` or ``expired``.
    """

    alert: ReceivedAlert
    code: str


@dataclass(slots=True)
class Entry:
    """An alert that waits: where it is stored, and when it may be handed over."""

    key: str
    channel: str
    size_bytes: int
    redelivered: bool
    calls: int = 0
    not_before: float = 0.0


class Transaction:
    """Values that are committed together with "this alert is done", or not at all."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.changes: dict[str, object | None] = {}

    def get(self, key: str) -> object | None:
        """Return the value of ``key`` as this transaction sees it."""
        return self.changes[key] if key in self.changes else self._inbox.value(key)

    def put(self, key: str, value: object) -> None:
        """Set ``key`` to a plain value: bool, int, float, bytes, str, list or dict of these."""
        if not 0 < len(key) <= APP_KEY_LEN_MAX:
            raise ValueError(f"a key is 1..{APP_KEY_LEN_MAX} characters")
        self.changes[key] = value

    def delete(self, key: str) -> None:
        """Remove ``key``, if it is there."""
        self.changes[key] = None


class Inbox:
    """The alerts that are stored and not done.

    Args:
        state: Owns the keys ``inbox/``, ``dead/`` and ``app/`` in it.
    """

    def __init__(self, state: State, limits: InboxLimits | None = None) -> None:
        self._state = state
        self._limits = limits or InboxLimits()
        self._channels: dict[str, deque[Entry]] = {}
        self._len = 0
        self._size = 0
        self._in_hand: Entry | None = None
        self._app_sizes = {key: len(cbor.encode(value)) for key, value in state.items("app/")}
        numbers = [0]
        for key, value in state.items("inbox/"):
            numbers.append(int(key.removeprefix("inbox/"), 16))
            record = _Record.parse(value)
            # Handed over one after the other: only the first of a channel can have been in hand.
            is_first = record.channel not in self._channels
            self._add(Entry(key, record.channel, record.size_bytes, is_first, record.calls))
        numbers += [int(key.removeprefix("dead/"), 16) for key, _ in state.items("dead/")]
        self._number = max(numbers)

    def __len__(self) -> int:
        return self._len

    def credit(self, window_max: int) -> int:
        """Return how many alerts the gateway may have under way: ``window`` in hello and ack."""
        by_count = self._limits.alerts_max - self._len
        by_size = (self._limits.size_max_bytes - self._size) // (ALERT_SIZE_MAX + _ENTRY_OVERHEAD_BYTES)
        if self._len == 0:
            by_size = max(by_size, 1)
        return max(0, min(window_max, by_count, by_size))

    def has_room(self, staged: int, staged_bytes: int) -> bool:
        """Return whether one more alert fits behind those that are staged, whatever the window was."""
        limits = self._limits
        return (
            self._len + staged < limits.alerts_max * limits.hard_factor
            and self._size + staged_bytes + ALERT_SIZE_MAX + _ENTRY_OVERHEAD_BYTES
            <= limits.size_max_bytes * limits.hard_factor
        )

    # --- in, by ``core`` ----------------------------------------------------------------------------------

    def entry(self, alert: AlertPayload) -> tuple[Entry, dict[str, object | None]]:
        """Return a new entry and the change that stores it; ``add`` it after the commit."""
        self._number += 1
        record = _Record(
            alert.channel,
            alert.epoch,
            alert.offset,
            alert.id,
            alert.issued_at,
            alert.expires_at,
            alert.content_type,
            alert.data,
            alert.key,
            alert.original_id,
            0,
        )
        key = f"inbox/{self._number:016x}"
        return Entry(key, alert.channel, record.size_bytes, redelivered=False), {key: record.value()}

    def add(self, entries: list[Entry]) -> None:
        """Queue entries that are on stable storage."""
        for entry in entries:
            self._add(entry)

    # --- out, by ``client`` -------------------------------------------------------------------------------

    def take(self, now: float) -> tuple[Entry, ReceivedAlert] | None:
        """Return the oldest alert that may be handed over now, and hold it in hand; None: there is none.

        One alert is in hand at a time; ``done``, ``failed`` or ``give_up`` lets go of it.
        """
        due = [queue[0] for queue in self._channels.values() if queue[0].not_before <= now]
        if not due:
            return None
        entry = min(due, key=lambda head: head.key)
        self._in_hand = entry
        return entry, self._load(entry).alert(redelivered=entry.redelivered)

    def next_due(self) -> float | None:
        """Return the monotonic time from which ``take`` has something; None: nothing waits."""
        return min((queue[0].not_before for queue in self._channels.values()), default=None)

    def done(self, entry: Entry) -> None:
        """The handler returned: forget the alert, durably. Nothing happens if its transaction did that.

        Raises:
            StoreError: It stays, and will be handed over again.
        """
        if self._is_queued(entry):
            self._state.commit({entry.key: None})
            self._forget(entry)
        self._release(entry)

    def release(self, entry: Entry, *, retry_at: float) -> None:
        """The handler did not come to an end that counts: hand the alert over again from ``retry_at`` on."""
        entry.not_before = retry_at
        entry.redelivered = True
        self._release(entry)

    def failed(self, entry: Entry, now: float, random: Random) -> Nack | None:
        """The handler raised: call it again later, or give the alert up.

        Returns:
            What the gateway is to be told if it was given up.

        Raises:
            StoreError: Nothing was counted.
        """
        if not self._is_queued(entry):  # it raised after its transaction had committed: done is done
            self._release(entry)
            return None
        record = self._load(entry)
        record.calls += 1
        if record.calls >= self._limits.calls_max:
            return self.give_up(entry, "handler_failed")
        self._state.commit({entry.key: record.value()})
        entry.calls = record.calls
        wait_s = min(self._limits.retry_max_s, self._limits.retry_s * 2 ** (record.calls - 1))
        self.release(entry, retry_at=now + wait_s * random.uniform(0.5, 1.0))
        return None

    def give_up(self, entry: Entry, code: str) -> Nack:
        """Move the alert to the local dead letters; return what the gateway is to be told.

        The nack is stored in the same commit, under the key that ``nack_key`` gives.

        Raises:
            StoreError: It stays.
        """
        record = self._load(entry)
        nack = Nack(record.channel, record.epoch, record.offset, code)
        changes: dict[str, object | None] = {
            entry.key: None,
            entry.key.replace("inbox/", "dead/"): [*record.value(), code],
            nack_key(nack): code,
        }
        kept = [key for key, _ in self._state.items("dead/")]
        for key in kept[: max(0, len(kept) + 1 - self._limits.dead_letters_max)]:
            changes[key] = None
        self._state.commit(changes)
        self._forget(entry)
        self._release(entry)
        return nack

    def dead_letters(self) -> list[DeadLetter]:
        """Return the alerts that the application did not take, oldest first."""
        found = []
        for _, value in self._state.items("dead/"):
            assert isinstance(value, list), "written by give_up"
            record = _Record.parse(value[:-1])
            found.append(DeadLetter(alert=record.alert(redelivered=True), code=value[-1]))
        return found

    # --- the application's values -------------------------------------------------------------------------

    def value(self, key: str) -> object | None:
        """Return what a transaction put under ``key``."""
        return self._state.get(f"app/{key}")

    def values(self, prefix: str = "") -> Iterator[tuple[str, object]]:
        """Yield what transactions put under keys that start with ``prefix``, sorted."""
        for key, value in self._state.items(f"app/{prefix}"):
            yield key.removeprefix("app/"), value

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Take effects exactly once: commit them together with "the alert in hand is done".

        Only within the handler. Leaving the context normally commits; an exception commits nothing.

        Raises:
            StateFullError: The values would be more than the inbox's limits allow; nothing was changed.
            StoreError: The flash failed; the alert will be handed over again.
            RuntimeError: No alert is in hand, or its effects are committed already.
        """
        entry = self._in_hand
        if entry is None or not self._is_queued(entry):
            raise RuntimeError("no alert is in hand, or its transaction is over")
        transaction = Transaction(self)
        yield transaction
        if self._in_hand is not entry or not self._is_queued(entry):
            raise RuntimeError("the alert of this transaction is no longer in hand")
        changes = {f"app/{key}": value for key, value in transaction.changes.items()}
        sizes = {**self._app_sizes}
        for key, value in changes.items():
            sizes[key] = 0 if value is None else len(key) + len(cbor.encode(value))
        total = sum(sizes.values())
        if total > max(self._limits.app_size_max_bytes, sum(self._app_sizes.values())):
            raise StateFullError("app_size_bytes", total, self._limits.app_size_max_bytes)
        self._state.commit({**changes, entry.key: None})
        self._app_sizes = {key: size for key, size in sizes.items() if size}
        self._forget(entry)

    # --- parts --------------------------------------------------------------------------------------------

    def _add(self, entry: Entry) -> None:
        self._channels.setdefault(entry.channel, deque()).append(entry)
        self._len += 1
        self._size += entry.size_bytes

    def _is_queued(self, entry: Entry) -> bool:
        queue = self._channels.get(entry.channel)
        return queue is not None and queue[0] is entry  # no queue is empty

    def _forget(self, entry: Entry) -> None:
        queue = self._channels[entry.channel]
        assert queue[0] is entry, "a channel's alerts go in order"
        queue.popleft()
        if not queue:
            del self._channels[entry.channel]
        self._len -= 1
        self._size -= entry.size_bytes

    def _release(self, entry: Entry) -> None:
        if self._in_hand is entry:
            self._in_hand = None

    def _load(self, entry: Entry) -> _Record:
        return _Record.parse(self._state.get(entry.key))


def nack_key(nack: Nack) -> str:
    """Return the key under which a nack waits to be sent."""
    return f"nack/{nack.channel}/{nack.epoch:08x}/{nack.offset:016x}"


@dataclass(slots=True)
class _Record:
    """An alert as it is stored: the fields of the list, in order."""

    channel: str
    epoch: int
    offset: int
    id: bytes
    issued_at: int
    expires_at: int | None
    content_type: str
    data: bytes
    key: str | None
    original_id: bytes | None
    calls: int

    @classmethod
    def parse(cls, value: object) -> _Record:
        assert isinstance(value, list), "written by value(), and its record's CRC was good"
        return cls(*value)

    def value(self) -> list[object]:
        return [
            self.channel,
            self.epoch,
            self.offset,
            self.id,
            self.issued_at,
            self.expires_at,
            self.content_type,
            self.data,
            self.key,
            self.original_id,
            self.calls,
        ]

    @property
    def size_bytes(self) -> int:
        return len(self.data) + _ENTRY_OVERHEAD_BYTES

    def alert(self, *, redelivered: bool) -> ReceivedAlert:
        return ReceivedAlert(
            channel=self.channel,
            epoch=self.epoch,
            offset=self.offset,
            id=self.id,
            issued_at=self.issued_at,
            expires_at=self.expires_at,
            content_type=self.content_type,
            data=self.data,
            key=self.key,
            original_id=self.original_id,
            redelivered=redelivered,
        )
