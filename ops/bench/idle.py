"""What an idle device connection costs in memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rig import READY_TIMEOUT_S, Gateway, build, say

WARM_UP_DEVICES = 200


def idle(folder: Path, devices: int) -> dict[str, Any]:
    load = build("load", folder)
    with Gateway.started(folder / "idle") as gateway, gateway.load(load, WARM_UP_DEVICES, "warm"):
        # What the first devices cost once (imports, caches) is baseline.
        baseline = _settled_pss(gateway)
        say(f"idle: {devices:,} devices connect ...")
        with gateway.load(load, devices, "device"):
            used = _settled_pss(gateway)
    per_connection = (used - baseline) / devices
    say(f"  {baseline / 2**20:.1f} MiB before, {used / 2**20:.1f} MiB with them")
    return {
        "idle_devices": devices,
        "idle_baseline_bytes": baseline,
        "idle_bytes_per_connection": round(per_connection),
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
