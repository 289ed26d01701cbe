"""A reconnect storm: the gateway is killed, starts again, and every device comes back to it.

The devices do as the SDK: the first wait is anywhere in the ``spread_s`` that the welcome named, then backoff
with full jitter; Retry-After wins; they show the tickets that they have. Meanwhile alerts are published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facts import check_facts
from node import CHANNEL, Gateway
from plot import Line, write_plot
from rig import BenchError, say

ALERTS_BEFORE = 5
ALERTS_MEANWHILE = 20
TIMEOUT_S = 600
ASKED_SHARE_MAX = 0.01  # of the devices, whom the origin may be asked about though they have tickets


def storm(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Measure until all are back and have every alert. The gateway is configured as it comes.

    There is one round.
    """
    say(f"storm: {devices:,} devices lose the gateway and come back ...")
    with (
        Gateway.started(folder / "storm", device={}) as gateway,
        gateway.load(folder, devices, "device", timeout=TIMEOUT_S, patient=True) as load,
    ):
        for _ in range(ALERTS_BEFORE):
            load("burst")
        load.settle()
        gateway.wait_until_quiet()
        asked_before = gateway.origin.requests()
        head = ALERTS_BEFORE + ALERTS_MEANWHILE
        load.tell(f"storm {head}")
        gateway.kill()
        gateway.start()
        gateway.publish(ALERTS_MEANWHILE)
        course = load.answer()
        asked = gateway.origin.requests() - asked_before
        load.settle()
        check_facts(gateway.url, CHANNEL, devices, head)
    if course["lost"] < devices or course["messages"] != devices * ALERTS_MEANWHILE:
        raise BenchError(f"not every device lost its connection and got every alert: {course}")
    if asked > devices * ASKED_SHARE_MAX:
        raise BenchError(f"the origin was asked {asked} times about {devices} devices")
    say(f"  all are back and caught up after {course['seconds']:.1f} s; the origin was asked {asked} times")
    write_plot(
        folder / "storm.svg",
        f"{devices:,} devices come back after a kill -9 of the gateway",
        [
            Line("connected", [(ms / 1000, connected) for ms, connected, _ in course["samples"]]),
            Line("caught up", [(ms / 1000, caught_up) for ms, _, caught_up in course["samples"]]),
        ],
        y_max=devices,
    )
    return {
        "storm_devices": devices,
        "storm_seconds": round(course["seconds"], 2),
        "storm_spread_s": course["spread_s"],
        "storm_origin_requests": asked,
        "storm_refused_503": course["refused_503"],
        "storm_closed_1013": course["closed_1013"],
        "storm_unanswered": course["unanswered"],
        "storm_messages": course["messages"],
    }
