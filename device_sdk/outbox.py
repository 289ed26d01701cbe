"""What is said until it is surely known: reports and uplinks (until ``recorded``) and nacks (on a connection
that lasts).

Pure: monotonic time is an argument. Reports are durable at their owner, the update agent; nacks and uplinks
here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from device_sdk.inbox import State, nack_key
from device_sdk.wire.messages import Nack, Uplink

NACKS_MAX: Final = 256
"""Nacks that wait. At the bound the oldest goes: its alert then counts as received."""

NACK_SETTLED_S: Final = 10.0
"""A connection that lives this long after a nack was sent has had it committed: a gateway that cannot
commit ends the session."""


class NackOutbox:
    """Refusals on their way to the gateway. It answers none, so each is sent again on the next connection
    until one lasted."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._nacks: dict[str, Nack] = {}
        self._sent_at: dict[str, float] = {}
        for key, code in state.items("nack/"):
            _, channel, epoch, offset = key.split("/")
            assert isinstance(code, str), "written with the refusal"
            self._nacks[key] = Nack(channel, int(epoch, 16), int(offset, 16), code)

    def __len__(self) -> int:
        return len(self._nacks)

    def add(self, *nacks: Nack) -> None:
        """Queue nacks that are on stable storage, under ``nack_key``."""
        for nack in nacks:
            self._nacks[nack_key(nack)] = nack
        self._drop(list(self._nacks)[: max(0, len(self._nacks) - NACKS_MAX)])

    def connected(self) -> None:
        """A new connection knows of nothing that was sent before."""
        self._sent_at.clear()

    def due(self, now: float, limit: int) -> list[Nack]:
        """Return up to ``limit`` nacks that this connection has not sent, and count them as sent."""
        keys = [key for key in self._nacks if key not in self._sent_at][:limit]
        self._sent_at.update(dict.fromkeys(keys, now))
        return [self._nacks[key] for key in keys]

    def settle(self, now: float) -> None:
        """Forget, durably, what this connection sent long enough ago."""
        self._drop([key for key, sent_at in self._sent_at.items() if now - sent_at >= NACK_SETTLED_S])

    def next_due(self) -> float | None:
        """Return when ``settle`` has something to do, or 0 if something is to be sent; None: neither."""
        if len(self._sent_at) < len(self._nacks):
            return 0.0
        return min((sent_at + NACK_SETTLED_S for sent_at in self._sent_at.values()), default=None)

    def refused(self, channel: str) -> bool:
        """The gateway does not take the nacks of ``channel``: forget those sent; return if there were any."""
        sent = [key for key in self._sent_at if self._nacks[key].channel == channel]
        self._drop(sent)
        return bool(sent)

    def _drop(self, keys: Sequence[str]) -> None:
        if keys:
            self._state.commit(dict.fromkeys(keys))
            for key in keys:
                del self._nacks[key]
                self._sent_at.pop(key, None)


class UplinksFullError(Exception):
    """As much waits for the operator's backend as the device keeps: try again when some was taken."""

    code = "uplinks_full"


class Identified(Protocol):
    """What is answered by its id."""

    @property
    def id(self) -> bytes: ...


R = TypeVar("R", bound=Identified)


@dataclass(slots=True)
class _Repeat:
    sends: int
    due: float


class Repeater:
    """When each of what waits for ``recorded`` is sent again: at once on a new connection, then after
    doubling waits.

    Args:
        wait_s, wait_max_s: First and longest wait for ``recorded``.
    """

    def __init__(self, *, wait_s: float, wait_max_s: float) -> None:
        self._wait_s = wait_s
        self._wait_max_s = wait_max_s
        self._repeats: dict[bytes, _Repeat] = {}

    def connected(self) -> None:
        """A new connection: everything is due."""
        self._repeats.clear()

    def due(self, pending: Iterable[R], now: float, limit: int) -> list[R]:
        """Return up to ``limit`` of ``pending`` that are to be sent now, and count them as sent."""
        found: list[R] = []
        known: dict[bytes, _Repeat] = {}
        for item in pending:
            repeat = self._repeats.get(item.id)
            if len(found) < limit and (repeat is None or repeat.due <= now):
                sends = 1 if repeat is None else repeat.sends + 1
                wait_s = min(self._wait_max_s, self._wait_s * 2 ** min(sends - 1, 16))
                repeat = _Repeat(sends, now + wait_s)
                found.append(item)
            if repeat is not None:
                known[item.id] = repeat
        self._repeats = known
        return found

    def next_due(self, pending: Iterable[Identified]) -> float | None:
        """Return when one of ``pending`` is to be sent; None if there is none."""
        due = [repeat.due if (repeat := self._repeats.get(item.id)) is not None else 0.0 for item in pending]
        return min(due, default=None)


class UplinkOutbox:
    """Uplinks on their way to the operator's backend, in order; those of best effort only in memory.

    Durable key: ``uplink/<number>``, which rises.

    Args:
        len_max, size_max_bytes: Of what waits; at the bound ``add`` refuses, and nothing is dropped.
        in_flight_max: Sent and not yet answered; the others wait.
        wait_s, wait_max_s: First and longest wait for ``recorded``.
    """

    def __init__(
        self,
        state: State,
        *,
        len_max: int,
        size_max_bytes: int,
        in_flight_max: int,
        wait_s: float,
        wait_max_s: float,
    ) -> None:
        self._state = state
        self._len_max = len_max
        self._size_max_bytes = size_max_bytes
        self._in_flight_max = in_flight_max
        self._repeater = Repeater(wait_s=wait_s, wait_max_s=wait_max_s)
        self._uplinks: dict[str, Uplink] = {}  # the oldest first
        self._passing: deque[Uplink] = deque(maxlen=in_flight_max)  # best effort; the oldest goes
        self._size_bytes = 0
        self._next = 0
        for key, value in sorted(state.items("uplink/")):
            match value:
                case [bytes(id_), str(content_type), bytes(data)]:
                    self._uplinks[key] = Uplink(id_, content_type, data)
                    self._size_bytes += len(data)
                    self._next = int(key.removeprefix("uplink/"), 16) + 1
                case _:
                    raise AssertionError("written by add")

    def __len__(self) -> int:
        return len(self._uplinks)

    @property
    def waiting(self) -> list[bytes]:
        """The ids of what is neither taken nor refused yet, the oldest first."""
        return [uplink.id for uplink in self._uplinks.values()]

    def add(self, uplink: Uplink) -> None:
        """Queue ``uplink``; unless it is of best effort it is on stable storage once this returns.

        Raises:
            UplinksFullError: No room; nothing was changed.
            StoreError: It is not stored, nor queued.
        """
        if uplink.best_effort:
            self._passing.append(uplink)
            return
        size_bytes = self._size_bytes + len(uplink.data)
        if len(self._uplinks) >= self._len_max or size_bytes > self._size_max_bytes:
            raise UplinksFullError(f"{len(self._uplinks)} uplinks of {self._size_bytes} bytes wait")
        key = f"uplink/{self._next:012x}"
        self._state.commit({key: [uplink.id, uplink.content_type, uplink.data]})
        self._next += 1
        self._size_bytes = size_bytes
        self._uplinks[key] = uplink

    def connected(self) -> None:
        """A new connection: what was not recorded is sent again, and what was to be tried once was."""
        self._repeater.connected()

    def due(self, now: float) -> list[Uplink]:
        """Return what is to be sent now, and count it as sent."""
        first = list(self._uplinks.values())[: self._in_flight_max]
        passing = list(self._passing)
        self._passing.clear()
        return [*self._repeater.due(first, now, self._in_flight_max), *passing]

    def next_due(self) -> float | None:
        """Return when something is to be sent; None: nothing waits."""
        if self._passing:
            return 0.0
        return self._repeater.next_due(list(self._uplinks.values())[: self._in_flight_max])

    def recorded(self, id_: bytes) -> bool:
        """Forget the uplink ``id_``, durably; return whether it was one."""
        for key, uplink in self._uplinks.items():
            if uplink.id == id_:
                self._state.commit({key: None})
                del self._uplinks[key]
                self._size_bytes -= len(uplink.data)
                return True
        return False
