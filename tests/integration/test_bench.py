"""The bench measures and checks; here with few devices, so that it is sure to work when it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "ops" / "bench" / "bench.py"
DEVICES = 40


@pytest.mark.timeout(180)
def test_the_last_line_is_one_flat_object_with_what_others_read() -> None:
    command = [sys.executable, str(BENCH), "--devices", str(DEVICES), "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert all(isinstance(value, int | float) for value in results.values())
    assert results["fanout_devices"] == results["idle_devices"] == DEVICES
    assert results["fanout_deliveries_per_s"] > 0
    assert results["fanout_ratio_to_floor"] > 0
    assert results["fanout_burst_ratio_to_floor"] > 0
    assert "idle_bytes_per_connection" in results
    assert f"positions and facts of {DEVICES} devices" in done.stderr
