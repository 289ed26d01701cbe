"""What a run measures: latencies, connections and refusals of all devices, over time. Pure.

Devices count here as things happen; ``Series.sample`` closes an interval. Whatever the length of a run, at
most ``POINTS_MAX`` intervals are kept: at the bound each two become one, and last twice as long from then on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

POINTS_MAX: Final = 240
INTERVAL_S: Final = 0.25
_GROWTH: Final = 1.02
_LOG_GROWTH: Final = math.log(_GROWTH)
_SMALLEST_MS: Final = 0.01


class Histogram:
    """Durations, by classes of 2 %: what is read off is at most 1 % from a value that was added.

    Attributes:
        counts: Durations in each class.
        count: All of them.
    """

    __slots__ = ("count", "counts", "largest_ms")

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.count = 0
        self.largest_ms = 0.0

    def add(self, ms: float) -> None:
        """Add one duration; what is below 0, by clocks that are set, counts as nothing."""
        self.counts[int(math.log(max(ms, _SMALLEST_MS) / _SMALLEST_MS) / _LOG_GROWTH)] += 1
        self.count += 1
        self.largest_ms = max(self.largest_ms, ms)

    def merge(self, other: Histogram) -> None:
        """Add everything of ``other``."""
        self.counts.update(other.counts)
        self.count += other.count
        self.largest_ms = max(self.largest_ms, other.largest_ms)

    def percentile(self, percent: float) -> float | None:
        """Return the duration that ``percent`` of all do not exceed; None of none."""
        if not self.count:
            return None
        wanted = max(1, math.ceil(self.count * percent / 100))
        for index in sorted(self.counts):
            wanted -= self.counts[index]
            if wanted <= 0:
                middle_ms: float = _SMALLEST_MS * math.pow(_GROWTH, index + 0.5)
                return round(min(middle_ms, self.largest_ms), 3)
        raise AssertionError("as many as were counted")


PHASES: Final = ("off", "booting", "without_power", "waiting", "connected", "crashed")
"""What a device does: switched off, starting, its power gone, on and not connected, connected, crashed."""


@dataclass(slots=True)
class Meter:
    """What all devices counted since the last sample.

    Attributes:
        latency: From an alert's issue to the commit of its handler on the device, on one clock.
        round_trip: From a report's sending to its ``recorded``.
        welcome: From the first byte of a connection to its welcome.
        connected: Connections that were welcomed.
        failed: Attempts that were not, by reason.
        refused: What devices refused, by code: alerts, updates; and updates that failed on them.
        alerts: Handled.
    """

    latency: Histogram = field(default_factory=Histogram)
    round_trip: Histogram = field(default_factory=Histogram)
    welcome: Histogram = field(default_factory=Histogram)
    connected: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    alerts: int = 0

    def merge(self, other: Meter) -> None:
        """Add everything of ``other``."""
        for mine, theirs in (
            (self.latency, other.latency),
            (self.round_trip, other.round_trip),
            (self.welcome, other.welcome),
        ):
            mine.merge(theirs)
        self.connected += other.connected
        self.failed.update(other.failed)
        self.refused.update(other.refused)
        self.alerts += other.alerts


@dataclass(slots=True)
class _Point:
    """One interval: its end, what was counted in it, and how the devices were at its end."""

    ends_s: float
    meter: Meter
    phases: Mapping[str, int]
    states: Mapping[str, int]


class Series:
    """The intervals of a run.

    Attributes:
        meter: Of the interval that is open.
        total: Of those that are closed.
        interval_s: How long one lasts now.
    """

    def __init__(self, *, interval_s: float = INTERVAL_S, points_max: int = POINTS_MAX) -> None:
        assert points_max >= 2, "two become one"
        self._points: list[_Point] = []
        self._points_max = points_max
        self.meter = Meter()
        self.total = Meter()
        self.interval_s = interval_s

    def is_due(self, now_s: float) -> bool:
        """Return whether the open interval is over."""
        return now_s >= (self._points[-1].ends_s if self._points else 0.0) + self.interval_s

    def sample(self, now_s: float, phases: Mapping[str, int], states: Mapping[str, int]) -> None:
        """Close the open interval.

        Args:
            phases: Devices by what they do now, of ``PHASES``.
            states: Devices by the state of their newest deployment.
        """
        closed, self.meter = self.meter, Meter()
        self.total.merge(closed)
        self._points.append(_Point(now_s, closed, dict(phases), dict(states)))
        if len(self._points) > self._points_max:
            self._halve()

    def _halve(self) -> None:
        points = self._points
        merged = []
        for first, second in zip(points[0::2], points[1::2], strict=False):
            second.meter.merge(first.meter)
            merged.append(second)
        self._points = merged + points[len(merged) * 2 :]
        self.interval_s *= 2

    def document(self) -> dict[str, Any]:
        """Return the series as columns of equal length, one row an interval, oldest first (JSON)."""
        points = self._points
        started = [0.0, *(point.ends_s for point in points[:-1])]
        refused: Counter[str] = Counter()
        refused_rows: list[dict[str, int]] = []
        for point in points:
            refused.update(point.meter.refused)
            refused_rows.append(dict(refused))
        return {
            "at_s": [round(point.ends_s, 3) for point in points],
            "latency_ms": _percentiles([point.meter.latency for point in points]),
            "round_trip_ms": _percentiles([point.meter.round_trip for point in points]),
            "welcome_ms": _percentiles([point.meter.welcome for point in points]),
            "alerts_per_s": _rates([point.meter.alerts for point in points], points, started),
            "connects_per_s": _rates([point.meter.connected for point in points], points, started),
            "failed_connects_per_s": _rates(
                [point.meter.failed.total() for point in points], points, started
            ),
            "phases": _columns([point.phases for point in points], PHASES),
            "states": _columns([point.states for point in points], ()),
            "refused": _columns(refused_rows, ()),
        }


def _percentiles(histograms: list[Histogram]) -> dict[str, list[float | None]]:
    return {
        f"p{percent}": [histogram.percentile(percent) for histogram in histograms] for percent in (50, 90, 99)
    }


def _rates(counts: list[int], points: list[_Point], started: list[float]) -> list[float]:
    return [
        round(count / max(point.ends_s - start, 1e-3), 3)
        for count, point, start in zip(counts, points, started, strict=True)
    ]


def _columns(
    rows: list[Mapping[str, int]] | list[dict[str, int]], first: tuple[str, ...]
) -> dict[str, list[int]]:
    """Return a column for each name that occurs, those of ``first`` in their order."""
    names = {name for row in rows for name in row}
    ordered = [name for name in first if name in names] + sorted(names - set(first))
    return {name: [row.get(name, 0) for row in rows] for name in ordered}
