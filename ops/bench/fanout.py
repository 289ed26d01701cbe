"""Alerts to connected devices, beside the floor; then what the database knows of them."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import subprocess
from pathlib import Path
from typing import Any

from rig import CHANNEL, BenchError, Gateway, Load, build, first_line, running, say, wait_until

BURSTS_A_ROUND = 3
ALERTS_A_SEQUENCE = 40
COMMIT_TIMEOUT_S = 60
_RECEIVED = """
SELECT device_key, first, last FROM delivery_fact WHERE channel_id = :channel AND fact = 2 ORDER BY 1, 2
"""
# Live intervals say that a message was sent when it was accepted; pages and redeliveries are facts.
_SENT = """
SELECT device_key, first, last FROM delivery_fact WHERE channel_id = :channel AND fact = 1
UNION ALL
SELECT device_key, first, coalesce(last, :head) FROM live_interval WHERE channel_id = :channel
ORDER BY 1, 2
"""


def fanout(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    load, floor = build("load", folder), build("floor", folder)
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(Gateway.started(folder / "fanout"))
        say(f"fanout: {devices:,} devices connect ...")
        ours = stack.enter_context(gateway.load(load, devices, "device"))
        frame = ours("burst")["frame_size"]  # also the first alert of each session: not measured
        ours.settle()
        floor_port = first_line(stack.enter_context(running([floor], stdout=subprocess.PIPE)))
        head = 4 if frame > 127 else 2
        theirs = stack.enter_context(
            Load.connected(load, port=floor_port, count=devices, publish_body="x" * (frame - head))
        )
        if (actual := theirs("burst")["frame_size"]) != frame:
            raise BenchError(f"the floor's frame is {actual} bytes, ours {frame}")
        measured: dict[str, list[float]] = {
            name: [] for name in ("burst_ms", "floor_burst_ms", "rate", "floor_rate")
        }
        for number in range(1, rounds + 1):
            measured["burst_ms"].append(_bursts(ours))
            measured["floor_burst_ms"].append(_bursts(theirs))
            measured["rate"].append(_sequence(ours))
            measured["floor_rate"].append(_sequence(theirs))
            last = {name: values[-1] for name, values in measured.items()}
            say(
                f"  round {number}/{rounds}: burst {last['burst_ms']:.1f} ms, floor"
                f" {last['floor_burst_ms']:.1f}; {last['rate']:,.0f} deliveries/s, floor"
                f" {last['floor_rate']:,.0f}"
            )
        settled = ours.settle()
        head_offset = settled["offset"]
        check_facts(gateway.database, devices, head_offset)
        say(f"  positions and facts of {devices:,} devices up to offset {head_offset} are in the database")
    median = {name: statistics.median(values) for name, values in measured.items()}
    burst_ratios = [f / o for o, f in zip(measured["burst_ms"], measured["floor_burst_ms"], strict=True)]
    ratios = [o / f for o, f in zip(measured["rate"], measured["floor_rate"], strict=True)]
    return {
        "fanout_devices": devices,
        "fanout_rounds": rounds,
        "fanout_frame_bytes": frame,
        "fanout_connections_per_s": round(ours.connections_per_s),
        "fanout_burst_ms": round(median["burst_ms"], 2),
        "fanout_floor_burst_ms": round(median["floor_burst_ms"], 2),
        "fanout_burst_ratio_to_floor": round(median["floor_burst_ms"] / median["burst_ms"], 3),
        "fanout_burst_ratio_min": round(min(burst_ratios), 3),
        "fanout_burst_ratio_max": round(max(burst_ratios), 3),
        "fanout_deliveries_per_s": round(median["rate"]),
        "fanout_floor_deliveries_per_s": round(median["floor_rate"]),
        "fanout_ratio_to_floor": round(median["rate"] / median["floor_rate"], 3),
        "fanout_ratio_min": round(min(ratios), 3),
        "fanout_ratio_max": round(max(ratios), 3),
        "fanout_alerts": head_offset,
        "fanout_repeats": settled["repeats"],
    }


def _bursts(load: Load) -> float:
    bursts = []
    for _ in range(BURSTS_A_ROUND):
        load.settle()
        bursts.append(load("burst")["burst_ms"])
    load.settle()
    return statistics.median(bursts)


def _sequence(load: Load) -> float:
    rate: float = load(f"sequence {ALERTS_A_SEQUENCE}")["deliveries_per_s"]
    load.settle()
    return rate


def check_facts(database: Path, devices: int, head: int) -> None:
    """Raise BenchError unless each device's position is ``head`` and its facts cover 1..head."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        channel_id, stored_head = connection.execute(
            "SELECT id, head FROM channel WHERE name = ?", (CHANNEL,)
        ).fetchone()
        if stored_head != head:
            raise BenchError(f"the channel's head is {stored_head}, the devices are at {head}")

        def at_head() -> int:
            query = 'SELECT count(*) FROM subscription WHERE channel_id = ? AND "offset" = ?'
            count: int = connection.execute(query, (channel_id, head)).fetchone()[0]
            return count

        wait_until(
            lambda: at_head() == devices,
            COMMIT_TIMEOUT_S,
            f"not every one of {devices} positions is {head}",
        )
        for what, rows in (
            ("received", connection.execute(_RECEIVED, {"channel": channel_id})),
            ("sent", connection.execute(_SENT, {"channel": channel_id, "head": head})),
        ):
            covered: dict[int, int] = {}
            for device, first, last in rows:
                if first > covered.get(device, 0) + 1:
                    raise BenchError(f"device {device} has no fact '{what}' before offset {first}")
                covered[device] = max(last, covered.get(device, 0))
            if sorted(covered.values()) != [head] * devices:
                raise BenchError(f"the facts '{what}' of {len(covered)} devices do not reach {head}")
