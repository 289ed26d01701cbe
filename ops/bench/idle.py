"""What an idle device connection costs in memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from node import READY_TIMEOUT_S, Gateway
from rig import say

WARM_UP_DEVICES = 200


def idle(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Measure memory (PSS) over the baseline for each idle device connection. There is one round."""
    with Gateway.started(folder / "idle") as gateway, gateway.load(folder, WARM_UP_DEVICES, "warm"):
        # What the first devices cost once (imports, caches) is baseline.
        baseline = _settled_pss(gateway)
        say(f"idle: {devices:,} devices connect ...")
        with gateway.load(folder, devices, "device"):
            used = _settled_pss(gateway)
    say(f"  {baseline / 2**20:.1f} MiB before, {used / 2**20:.1f} MiB with them")
    return {
        "idle_devices": devices,
        "idle_baseline_bytes": baseline,
        "idle_bytes_per_connection": round((used - baseline) / devices),
    }


def _settled_pss(gateway: Gateway) -> int:
    """Return the memory once it has not grown for a second: what hellos left to commit is committed."""
    last, since = gateway.pss_bytes(), time.monotonic()
    deadline = since + READY_TIMEOUT_S
    while time.monotonic() < min(since + 1, deadline):
        time.sleep(0.1)
        if abs((pss := gateway.pss_bytes()) - last) > 64 * 1024:
            last, since = pss, time.monotonic()
    return gateway.pss_bytes()
