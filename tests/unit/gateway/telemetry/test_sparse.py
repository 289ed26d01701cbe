from __future__ import annotations

import json

from gateway.telemetry import SparseLog, configure_logs, logger


def test_a_flood_is_one_line_in_a_second_and_the_next_counts_the_rest(stream):
    configure_logs(format="json", stream=stream)
    sparse = SparseLog(logger("identity"))
    for step in range(25):
        sparse.info("refused", step / 10, n=step)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["n"], line.get("left_out")) for line in lines] == [(0, None), (10, 9), (20, 9)]


def test_events_are_limited_apart(stream):
    configure_logs(format="json", stream=stream)
    sparse = SparseLog(logger("identity"))
    sparse.info("refused", 0.0)
    sparse.warning("no verdict", 0.0)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("refused", "info"),
        ("no verdict", "warning"),
    ]
