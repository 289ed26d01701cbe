"""The bench measures and checks; here with few devices, so that it is sure to work when it is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "ops" / "bench" / "bench.py"
DEVICES = 40


def bench(*words: object) -> tuple[dict[str, Any], str]:
    """Return the last line of standard output, and what was said meanwhile."""
    command = [sys.executable, str(BENCH), *map(str, words), "--devices", str(DEVICES), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert all(isinstance(value, int | float) for value in results.values()), "one flat object of figures"
    return results, done.stderr


@pytest.mark.timeout(180)
def test_fanout_is_beside_the_floor_and_every_fact_of_it_is_in_the_database() -> None:
    results, said = bench("--only", "fanout", "--only", "idle", "--rounds", 1)
    assert results["fanout_devices"] == results["idle_devices"] == DEVICES
    assert results["fanout_deliveries_per_s"] > 0
    assert results["fanout_p99_ms"] > 0
    assert results["fanout_ratio_to_floor"] > 0
    assert results["fanout_burst_ratio_to_floor"] > 0
    assert "idle_bytes_per_connection" in results
    assert f"positions and facts of {DEVICES} devices" in said


@pytest.mark.timeout(180)
@pytest.mark.skipif(shutil.which("pushpin") is None, reason="pushpin is for make bench; see bench-packages")
def test_fanout_is_beside_nchan_and_pushpin() -> None:
    results, _ = bench("--only", "peers", "--rounds", 1)
    assert results["fanout_ratio_to_pushpin"] > 0
    assert results["fanout_ratio_to_nchan"] > 0


@pytest.mark.timeout(180)
def test_connections_are_measured_with_the_origin_asked_and_by_ticket() -> None:
    results, _ = bench("--only", "connects", "--rounds", 1)
    assert results["connects_per_s"] > 0
    assert results["ticket_connects_per_s"] > 0


@pytest.mark.timeout(180)
def test_a_wave_of_polls_loses_nothing_and_late_devices_catch_up() -> None:
    results, _ = bench("--only", "longpoll", "--only", "catchup", "--rounds", 2)
    assert results["longpoll_lost"] == results["longpoll_5xx"] == 0
    assert results["longpoll_responses_per_s"] > 0
    assert results["catchup_messages_per_s"] > 0
    assert results["catchup_live_p99_ms"] > 0


@pytest.mark.timeout(180)
def test_acknowledgements_and_rollouts_are_measured_on_both_databases() -> None:
    results, _ = bench("--only", "acked", "--only", "rollout", "--rounds", 1)
    for dialect in ("sqlite", "postgresql"):
        assert results[f"acked_per_s_{dialect}"] > 0
        assert results[f"rollout_start_ms_{dialect}"] > 0
    assert results["rollout_start_statements"] > 0


@pytest.mark.timeout(180)
def test_every_device_comes_back_from_a_storm_without_a_question_to_the_origin(tmp_path: Path) -> None:
    plot = tmp_path / "storm.svg"
    results, _ = bench("--only", "storm", "--plot", plot)
    assert results["storm_seconds"] > 0
    assert results["storm_origin_requests"] == 0
    assert plot.read_text().startswith("<svg ")
