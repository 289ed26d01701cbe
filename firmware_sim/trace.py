"""What happens to a device, in order: each fault, and each thing that it said, was told and did.

Every event has a number, by which a broken invariant names it. All faults are counted; the newest
``EVENTS_KEPT_MAX`` events are kept in memory, and a sink is told each.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

EVENTS_KEPT_MAX: Final = 32


class Event(NamedTuple):
    """One event.

    Attributes:
        number: From 1, for each device.
        at_s: Since the run began.
        kind: Of a fault: ``cut``, ``drop``, ``duplicate``, ``reorder``, ``refuse``, ``outage``, ``tamper``,
            ``attack``, ``download_cut``, ``clock_jump``, ``power_cut``, ``write_failed``, ``panic`` or
            ``sick``; else what was said, told or done.
        details: What it is about. Of a fault its place in the device's life: the same seed and traffic give
            the same places.
    """

    number: int
    at_s: float
    kind: str
    details: tuple[object, ...]
    is_fault: bool

    @property
    def where(self) -> str:
        """The details as text."""
        return " ".join(one.hex() if isinstance(one, bytes) else str(one) for one in self.details)

    def document(self, device_id: str) -> dict[str, Any]:
        """Return the event as it is written to a file, a line of JSON each."""
        return {
            "device": device_id,
            "event": self.number,
            "at_s": round(self.at_s, 3),
            "kind": self.kind,
            "where": self.where,
            "fault": self.is_fault,
        }


class Trace:
    """The events of one device.

    Args:
        now_s: Seconds since the run began.
        sink: Told each event.
    """

    def __init__(
        self, *, now_s: Callable[[], float] = lambda: 0.0, sink: Callable[[Event], None] | None = None
    ) -> None:
        self._now_s = now_s
        self._sink = sink
        self.number = 0
        self.counts: Counter[str] = Counter()
        self.recent: deque[Event] = deque(maxlen=EVENTS_KEPT_MAX)

    @property
    def now_s(self) -> float:
        """Seconds since the run began."""
        return self._now_s()

    @property
    def faults(self) -> list[Event]:
        """The faults among the newest events."""
        return [event for event in self.recent if event.is_fault]

    def note(self, kind: str, where: str) -> None:
        """A fault happens now."""
        self.counts[kind] += 1
        self._add(kind, (where,), is_fault=True)

    def event(self, kind: str, *details: object) -> None:
        """Something else happens now."""
        self._add(kind, details, is_fault=False)

    def _add(self, kind: str, details: tuple[object, ...], *, is_fault: bool) -> None:
        self.number += 1
        event = Event(self.number, self._now_s(), kind, details, is_fault)
        self.recent.append(event)
        if self._sink is not None:
            self._sink(event)
