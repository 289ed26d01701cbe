"""Acknowledged-and-committed alerts a second, one ``ack`` message for each, on each database."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from database import DIALECTS, database
from facts import check_facts, wait_for_positions
from node import CHANNEL, Gateway
from rig import Load, say

ALERTS = 100  # in a round


def acked(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Measure from the first alert's publish until every device's last position is committed."""
    results: dict[str, Any] = {"acked_devices": devices, "acked_alerts": ALERTS, "acked_rounds": rounds}
    for dialect in DIALECTS:
        say(f"acked: {devices:,} devices acknowledge each of {ALERTS} alerts, on {dialect} ...")
        with (
            database(dialect) as url,
            Gateway.started(folder / f"acked-{dialect}", database_url=url) as gateway,
            gateway.load(folder, devices, "device", ack_each=True) as load,
        ):
            load("burst")
            wait_for_positions(gateway.url, CHANNEL, devices, head=1)
            figures = [_round(gateway, load, devices, 1 + number * ALERTS) for number in range(rounds)]
            check_facts(gateway.url, CHANNEL, devices, 1 + rounds * ALERTS)
        rate = statistics.median(rate for rate, _ in figures)
        say(f"  {rate:,.0f} a second; all are in the database")
        results[f"acked_per_s_{dialect}"] = round(rate)
        results[f"acked_cpu_us_{dialect}"] = round(statistics.median(cpu_us for _, cpu_us in figures), 1)
    return results


def _round(gateway: Gateway, load: Load, devices: int, head: int) -> tuple[float, float]:
    begun, cpu_before = time.monotonic(), gateway.cpu_s()
    load(f"sequence {ALERTS}")
    wait_for_positions(gateway.url, CHANNEL, devices, head + ALERTS)
    count = devices * ALERTS
    rate = count / (time.monotonic() - begun)
    return rate, (gateway.cpu_s() - cpu_before) * 1e6 / count
