"""Which transport to try next. Pure.

The preferred one first. After some attempts in a row that reached something and brought no welcome the
other one is taken, and by turns if that fails too: what breaks WebSockets on the way has many faces. A
device on its second choice comes back to its first from time to time, less and less often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceLimits:
    """When to change.

    Attributes:
        attempts_max: Attempts without a welcome before the other transport is taken.
        return_s, return_max_s: Until the preferred one is tried again: doubling with each failure.
    """

    attempts_max: int = 3
    return_s: float = 600.0
    return_max_s: float = 21_600.0

    def __post_init__(self) -> None:
        assert self.attempts_max >= 1
        assert 0 < self.return_s <= self.return_max_s


class TransportChoice:
    """The transports of one device, preferred first."""

    def __init__(self, names: Sequence[str], limits: ChoiceLimits | None = None) -> None:
        assert names, "there is a transport"
        self._names = tuple(names)
        self._limits = limits or ChoiceLimits()
        self._index = 0
        self._failures = 0
        self._return_s = self._limits.return_s
        self._return_at: float | None = None
        self._is_trial = False

    def next(self, now: float) -> str:
        """Return the transport for the attempt that begins ``now``, monotonic."""
        if self._index and self._return_at is not None and now >= self._return_at:
            self._index = 0
            self._is_trial = True
        return self._names[self._index]

    @property
    def return_at(self) -> float | None:
        """When a connection ends in favour of the preferred transport; None: it is the preferred one."""
        return self._return_at if self._index else None

    def welcomed(self) -> None:
        """The attempt brought a welcome."""
        self._failures = 0
        self._is_trial = False
        if self._index == 0:
            self._return_s = self._limits.return_s
            self._return_at = None

    def failed(self, now: float) -> None:
        """The attempt brought none, and it may be the transport's fault."""
        self._failures += 1
        if len(self._names) == 1 or not (self._is_trial or self._failures >= self._limits.attempts_max):
            return
        self._index = (self._index + 1) % len(self._names)
        self._failures = 0
        if self._is_trial:
            self._return_s = min(self._limits.return_max_s, self._return_s * 2)
        self._is_trial = False
        self._return_at = now + self._return_s if self._index else None
