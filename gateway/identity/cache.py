"""A bounded map whose entries end: verdicts by credential. Sans-I/O: the caller brings ``now``."""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")


class ExpiringCache(Generic[V]):
    """The ``entries_max`` most recently used entries; the least recently used goes first, ended or not."""

    def __init__(self, entries_max: int) -> None:
        assert entries_max > 0, "a cache for nothing"
        self._entries_max = entries_max
        self._entries: dict[bytes, tuple[float, V]] = {}  # the least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: bytes, now: float) -> V | None:
        """Return the entry under ``key``, or None if there is none or it has ended at ``now``."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        ends_at, value = entry
        if now >= ends_at:
            del self._entries[key]
            return None
        self._entries[key] = self._entries.pop(key)
        return value

    def put(self, key: bytes, value: V, *, ends_at: float) -> None:
        """Keep ``value`` until ``ends_at`` (the clock of ``now``), in the place of what was there."""
        self._entries.pop(key, None)
        self._entries[key] = (ends_at, value)
        if len(self._entries) > self._entries_max:
            del self._entries[next(iter(self._entries))]

    def drop(self, key: bytes) -> None:
        """Forget ``key``; nothing happens if it is not there."""
        self._entries.pop(key, None)
