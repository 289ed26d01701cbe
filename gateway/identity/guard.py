"""A wrong answer of the origin must not cost a truck roll to each device (PROTOCOL §4.8).

A refused device stays away for an hour and more. So when many tokens that were good within the last day are
refused within one minute, the origin is suspect: refusals are answered as retryable, and an alarm is raised.
Nobody is admitted by it. Sans-I/O: the caller brings ``now``, monotonic seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from gateway.identity.limits import IdentityLimits

WINDOW_S: Final = 60.0
LATELY_S: Final = 24 * 3600.0


class RefusalGuard:
    """Count refused tokens of the last minute, and know which were accepted within the last day.

    A token counts once a minute, however often it comes: one device that insists is no storm. Both memories
    hold ``cache_entries_max`` tokens; the oldest go first.
    """

    def __init__(self, limits: IdentityLimits) -> None:
        self._limits = limits
        self._accepted: dict[bytes, float] = {}  # the oldest first
        self._refused: OrderedDict[bytes, tuple[float, bool]] = OrderedDict()
        self._refused_lately_accepted = 0

    def accepted(self, key: bytes, now: float) -> None:
        """Note that the token ``key`` was admitted."""
        self._accepted.pop(key, None)
        self._accepted[key] = now
        if len(self._accepted) > self._limits.cache_entries_max:
            del self._accepted[next(iter(self._accepted))]

    def forget(self, key: bytes) -> None:
        """Do not count refusals of ``key``: it was taken back through the API, so they are expected."""
        self._accepted.pop(key, None)
        self._drop(key)

    def refused(self, key: bytes, now: float) -> bool:
        """Note that the token ``key`` was refused; return whether the origin is suspect now."""
        self._drop(key)
        accepted_at = self._accepted.get(key)
        is_lately_accepted = accepted_at is not None and now - accepted_at < LATELY_S
        self._refused[key] = (now, is_lately_accepted)
        self._refused_lately_accepted += is_lately_accepted
        if len(self._refused) > self._limits.cache_entries_max:
            self._drop(next(iter(self._refused)))
        return self.is_alarmed(now)

    def is_alarmed(self, now: float) -> bool:
        """Return whether the refusals of the last minute make the origin suspect."""
        while self._refused:
            oldest, (refused_at, _) = next(iter(self._refused.items()))
            if now - refused_at < WINDOW_S:
                break
            self._drop(oldest)
        suspect = self._refused_lately_accepted
        return suspect >= self._limits.guard_refusals_min and suspect > self._limits.guard_share * len(
            self._refused
        )

    def _drop(self, key: bytes) -> None:
        entry = self._refused.pop(key, None)
        if entry is not None:
            self._refused_lately_accepted -= entry[1]
