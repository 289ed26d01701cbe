"""What was read lately, so that a hot route does not read the database for who asks and for whom."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from gateway.clock import Clock

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class Lately(Generic[KeyT, ValueT]):
    """Values by key, each for ``keep_s`` after it was read; the oldest goes when there are ``entries_max``.

    None, and what raises, is read again every time: a token that was just made works at once.
    """

    def __init__(self, *, clock: Clock, keep_s: float, entries_max: int) -> None:
        assert entries_max > 0, "a cache for nothing"
        self._clock = clock
        self._keep_s = keep_s
        self._entries_max = entries_max
        self._entries: OrderedDict[KeyT, tuple[float, ValueT]] = OrderedDict()

    async def value(self, key: KeyT, read: Callable[[], Awaitable[ValueT | None]]) -> ValueT | None:
        """Return the value of ``key``, by ``read`` unless it was read less than ``keep_s`` ago."""
        now = self._clock.monotonic()
        entry = self._entries.get(key)
        if entry is not None and now - entry[0] < self._keep_s:
            return entry[1]
        value = await read()
        self._entries.pop(key, None)
        if value is not None:
            # The time before the read: what changed while it ran is not hidden for longer than keep_s.
            self._entries[key] = (now, value)
            if len(self._entries) > self._entries_max:
                self._entries.popitem(last=False)
        return value

    def forget(self, key: KeyT) -> None:
        """Read ``key`` anew the next time."""
        self._entries.pop(key, None)
