"""The only place that knows the time.

Everything else takes a ``Clock`` (or plain ``now`` arguments), so that tests and simulations own it.
Wall time is integer milliseconds UTC since 1970, as on the wire; monotonic time is float seconds.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for what is stored or signed, monotonic time for deadlines."""

    def now_ms(self) -> int:
        """Return milliseconds UTC since 1970."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class FakeClock:
    """A clock that moves when told to; ``advance`` moves both times together."""

    def __init__(self, now_ms: int = 1_800_000_000_000, monotonic: float = 1_000.0) -> None:
        self._now_ms = now_ms
        self._monotonic = monotonic

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move wall and monotonic time forward by ``seconds``."""
        assert seconds >= 0, "a monotonic clock never goes back"
        self._now_ms += round(seconds * 1000)
        self._monotonic += seconds

    def jump_wall(self, milliseconds: int) -> None:
        """Set the wall clock off by ``milliseconds``, either way, as a bad NTP answer would."""
        self._now_ms += milliseconds
