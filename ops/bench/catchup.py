"""A fleet that was away comes back and is fed from the log, while others are live."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from facts import check_facts
from node import CHANNEL, Gateway
from rig import BenchError, Load, say

ALERTS = 1000
LIVE_CHANNEL = "live"
LIVE_DEVICES = 100
LIVE_INTERVAL_S = 0.2
LIVE_BEFORE = 25
TIMEOUT_S = 1800


def catchup(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Measure messages a second until all have caught up, and how late live alerts are. One round."""
    say(f"catchup: {devices:,} devices come back {ALERTS:,} alerts behind ...")
    with (
        Gateway.started(folder / "catchup") as gateway,
        gateway.load(folder, devices, "device", timeout=TIMEOUT_S) as load,
        gateway.load(folder, LIVE_DEVICES, "live", channel=LIVE_CHANNEL) as live,
        ThreadPoolExecutor(1) as pool,
    ):
        delivered = load("leave")["deliveries"]
        gateway.wait_until_left(LIVE_DEVICES)
        gateway.publish(ALERTS)
        before = [_live_ms(live) for _ in range(LIVE_BEFORE)]
        begun, cpu_before = time.monotonic(), gateway.cpu_s()
        returning = pool.submit(_return, load)
        meanwhile = []
        while not returning.done() or not meanwhile:
            meanwhile.append(_live_ms(live))
        messages = returning.result() - delivered
        seconds, cpu_s = time.monotonic() - begun, gateway.cpu_s() - cpu_before
        check_facts(gateway.url, CHANNEL, devices, ALERTS)
        live.settle()
    if messages != devices * ALERTS:
        raise BenchError(f"{messages:,} of {devices * ALERTS:,} alerts arrived")
    say(f"  {messages / seconds:,.0f} messages a second; all positions are in the database")
    return {
        "catchup_devices": devices,
        "catchup_alerts": ALERTS,
        "catchup_seconds": round(seconds, 2),
        "catchup_messages_per_s": round(messages / seconds),
        "catchup_cpu_us": round(cpu_s * 1e6 / messages, 1),
        "catchup_live_alerts": len(meanwhile),
        "catchup_live_p50_ms": round(_percentile(meanwhile, 0.5), 1),
        "catchup_live_p99_ms": round(_percentile(meanwhile, 0.99), 1),
        "catchup_live_before_p99_ms": round(_percentile(before, 0.99), 1),
    }


def _return(load: Load) -> int:
    load("return 1")
    count: int = load(f"until {ALERTS}")["deliveries"]
    return count


def _live_ms(live: Load) -> float:
    """Publish a live alert; return when the last of its devices had it."""
    time.sleep(LIVE_INTERVAL_S)
    burst = live("burst")
    late_ms: float = burst["first_byte_ms"] + burst["burst_ms"]
    return late_ms


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]
