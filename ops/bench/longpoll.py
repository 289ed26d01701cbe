"""A wave of long-polls: each alert ends the poll of every device at once, and all of them poll again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facts import check_facts
from node import CHANNEL, Gateway
from rig import BenchError, say


def longpoll(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Measure responses a second over ``rounds`` waves, and what was lost."""
    say(f"longpoll: {devices:,} devices poll, {rounds} rounds ...")
    with Gateway.started(folder / "longpoll") as gateway, gateway.polls(folder, devices, "device") as polls:
        cpu_before = gateway.cpu_s()
        wave = polls(f"wave {rounds}")
        cpu_us = (gateway.cpu_s() - cpu_before) * 1e6 / (devices * rounds)
        check_facts(gateway.url, CHANNEL, devices, wave["offset"])
    if wave["status_200"] < devices * rounds or wave["status_other"]:
        raise BenchError(f"not every poll was answered as it should: {wave}")
    rate = wave["status_200"] / wave["seconds"]
    say(f"  {rate:,.0f} responses a second, {wave['lost']} alerts lost, {wave['status_5xx']} errors")
    return {
        "longpoll_devices": devices,
        "longpoll_rounds": rounds,
        "longpoll_lost": wave["lost"],
        "longpoll_5xx": wave["status_5xx"],
        "longpoll_503_deliberate": wave["status_503"],
        "longpoll_responses_per_s": round(rate),
        "longpoll_p99_ms": round(wave["p99_ms"], 1),
        "longpoll_cpu_us": round(cpu_us),
    }
