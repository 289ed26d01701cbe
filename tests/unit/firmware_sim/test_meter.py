"""Percentiles are read off within 1 %, and a series has a bounded length whatever the run's."""

from __future__ import annotations

from random import Random

import pytest

from firmware_sim.meter import Histogram, Series


class TestHistogram:
    def test_percentiles_are_within_a_percent_of_values_that_occurred(self) -> None:
        random = Random(1)
        values = sorted(random.lognormvariate(3, 2) for _ in range(5000))
        histogram = Histogram()
        for value in values:
            histogram.add(value)
        for percent in (1, 50, 90, 99, 100):
            expected = values[max(0, -(-len(values) * percent // 100) - 1)]
            assert histogram.percentile(percent) == pytest.approx(expected, rel=0.011)

    def test_none_has_no_percentile_and_nothing_is_below_nothing(self) -> None:
        histogram = Histogram()
        assert histogram.percentile(50) is None
        histogram.add(-5)
        histogram.add(0)
        assert histogram.percentile(99) == 0

    def test_merged_is_as_if_added_to_one(self) -> None:
        one, other, both = Histogram(), Histogram(), Histogram()
        for number in range(1, 100):
            (one if number % 3 else other).add(number)
            both.add(number)
        one.merge(other)
        assert [one.percentile(p) for p in (5, 50, 99)] == [both.percentile(p) for p in (5, 50, 99)]


class TestSeries:
    def test_columns_have_a_row_for_each_interval(self) -> None:
        series = Series(interval_s=1)
        assert series.is_due(1.0)
        assert not series.is_due(0.9)
        series.meter.latency.add(8)
        series.meter.alerts += 4
        series.meter.refused["rollback"] += 1
        series.sample(2.0, {"connected": 3, "off": 1}, {"idle": 4})
        assert not series.is_due(2.5)
        series.meter.failed["503"] += 3
        series.meter.refused["rollback"] += 1
        series.meter.refused["malformed"] += 2
        series.sample(3.0, {"connected": 4}, {"committed": 4})
        document = series.document()
        for percent in ("p50", "p90", "p99"):
            first, second = document["latency_ms"].pop(percent)
            assert (round(first), second) == (8, None)
        assert document == {
            "at_s": [2.0, 3.0],
            "latency_ms": {},
            "round_trip_ms": {"p50": [None, None], "p90": [None, None], "p99": [None, None]},
            "welcome_ms": {"p50": [None, None], "p90": [None, None], "p99": [None, None]},
            "alerts_per_s": [2.0, 0.0],
            "connects_per_s": [0.0, 0.0],
            "failed_connects_per_s": [0.0, 3.0],
            "phases": {"off": [1, 0], "connected": [3, 4]},
            "states": {"committed": [0, 4], "idle": [4, 0]},
            "refused": {"malformed": [0, 2], "rollback": [1, 2]},
        }

    def test_at_the_bound_two_intervals_become_one_and_nothing_is_lost(self) -> None:
        series = Series(interval_s=1, points_max=8)
        for second in range(1, 101):
            series.meter.alerts += 1
            series.meter.latency.add(second)
            if series.is_due(second):
                series.sample(second, {"connected": second}, {})
        document = series.document()
        assert 4 <= len(document["at_s"]) <= 8
        assert document["at_s"] == sorted(document["at_s"])
        assert series.interval_s == 16
        ends = [0.0, *document["at_s"]]
        counted = sum(
            rate * (end - start)
            for rate, start, end in zip(document["alerts_per_s"], ends, ends[1:], strict=False)
        )
        assert counted == pytest.approx(series.total.alerts, rel=0.01)
        assert document["phases"]["connected"] == document["at_s"]
