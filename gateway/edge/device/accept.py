"""How many new connections a node takes a second, and when the others are to come (PROTOCOL §4.9).

A token bucket that is asked before any work is done for a connection. Devices that show a good ticket have
a lane of their own: half of the bucket is kept for them, so that they are back before strangers are looked
at, whom the origin has to be asked about. Strangers are never shut out: a tenth of the rate is always theirs.

Who is refused is told a time of its own. Each lane gives out places in a row, one every ``1 / rate``
seconds from now on, so that those who come back come at the rate that the node takes; at
``accept_retry_max_s`` the row is full, and whoever comes then is told a time in the later half of it.
Sans-I/O: the caller brings ``now``, monotonic seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class AcceptLane(enum.StrEnum):
    """Who comes: with a good ticket, or without one."""

    TICKET = "ticket"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class AcceptLimits:
    """Bounds on new connections of one node.

    Attributes:
        accept_rate_per_s: New connections a second; the bucket holds one second's worth.
        accept_retry_max_s: Longest time that a refused device is told to stay away.
    """

    accept_rate_per_s: float = 1000.0
    accept_retry_max_s: float = 300.0

    def __post_init__(self) -> None:
        assert self.accept_rate_per_s > 0, "nobody would ever be taken"
        assert self.accept_retry_max_s >= 1, "what Retry-After can say"


_STRANGERS_SHARE = 0.1


class AcceptBucket:
    """The bucket of one node, full at first."""

    def __init__(self, limits: AcceptLimits, now: float) -> None:
        self._limits = limits
        self._capacity = max(1.0, limits.accept_rate_per_s)
        self._reserve = min(self._capacity / 2, self._capacity - 1)
        self._level = self._capacity
        self._strangers_capacity = max(1.0, self._capacity * _STRANGERS_SHARE)
        self._strangers = self._strangers_capacity
        self._filled_at = now
        self._row_ends_at = dict.fromkeys(AcceptLane, now)

    def take(self, lane: AcceptLane, now: float, *, jitter: float) -> float | None:
        """Return None if the connection may come in, else in how many seconds it is to come back.

        Args:
            jitter: Uniform in [0, 1), drawn for this connection.
        """
        assert 0 <= jitter < 1, "jitter is a fraction"
        self._fill(now)
        if not self._may_enter(lane):
            return self._place(lane, now, jitter)
        self._level -= 1
        if lane is AcceptLane.STRANGER:
            self._strangers = max(0.0, self._strangers - 1)
        return None

    def _fill(self, now: float) -> None:
        elapsed = now - self._filled_at
        rate = self._limits.accept_rate_per_s
        self._filled_at = now
        self._level = min(self._capacity, self._level + elapsed * rate)
        self._strangers = min(self._strangers_capacity, self._strangers + elapsed * rate * _STRANGERS_SHARE)

    def _may_enter(self, lane: AcceptLane) -> bool:
        if lane is AcceptLane.TICKET:
            return self._level >= 1
        return self._level - 1 >= self._reserve or self._strangers >= 1

    def _place(self, lane: AcceptLane, now: float, jitter: float) -> float:
        most = self._limits.accept_retry_max_s
        at = max(now, self._row_ends_at[lane]) + 1 / self._limits.accept_rate_per_s
        if at - now > most:
            return most * (0.5 + jitter / 2)
        self._row_ends_at[lane] = at
        return at - now
