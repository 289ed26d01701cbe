"""``make demo`` shows what it should, leaves nothing behind, and keeps what it is told to keep."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).resolve().parents[2] / "ops" / "demo" / "demo.py"
TIMEOUT_S = 170

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the demo makes its folder."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def demo(temporary: Path, *options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DEMO), *map(str, options)],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def summary(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, f"{out}\n{err}"
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def check(found: dict[str, Any], devices: int) -> None:
    assert found["ok"] is True
    assert (found["devices"], found["committed"], found["verified"]) == (devices, devices - 2, devices - 2)
    assert found["refused"] == {"bad_signature": 1, "rollback": 1}
    assert (found["alerts_received"], found["updates_received"]) == (devices, devices)
    assert found["alerts_in_order"] is True
    assert 0 < found["received_p50_ms"] <= found["received_p99_ms"]
    assert (found["slots_checked"], found["unexpected"]) == (devices - 2, {})
    assert found["seconds"] > 0


def test_fifty_devices_end_as_they_should_and_nothing_is_left(temporary: Path) -> None:
    check(summary(demo(temporary, "--once", "--json")), 50)
    assert not list(temporary.iterdir())
    assert not processes_in(temporary)


def test_on_postgresql_and_kept_it_answers_until_it_is_stopped(
    temporary: Path, empty_postgresql_url: str
) -> None:
    options = ("--once", "--json", "--keep", "--devices", 8, "--database", empty_postgresql_url)
    found = summary(demo(temporary, *options))
    try:
        check(found, 8)
        token = Path(found["token_file"]).read_text().strip()
        request = urllib.request.Request(
            f"{found['gateway']}/api/v1/fleets/{found['fleet']}/devices",
            headers={"Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert len(json.load(answer)["items"]) == 8
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(found["origin"], timeout=30)
        assert caught.value.code == 401
        caught.value.close()
    finally:
        subprocess.run(shlex.split(found["stop"]), check=True, timeout=60)
    assert not list(temporary.iterdir())
    assert not processes_in(temporary)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_what_it_started(temporary: Path, number: signal.Signals) -> None:
    process = demo(temporary, "--once", "--json")
    deadline = time.monotonic() + TIMEOUT_S
    while not list(temporary.glob("*/origin.out")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number
    assert not list(temporary.iterdir())
    assert not processes_in(temporary)


def test_wrong_usage_is_said(temporary: Path) -> None:
    for options in (("--keep",), ("--devices", 2), ("--colour",)):
        process = demo(temporary, *options)
        _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 2
        assert "usage: make demo" in err


def processes_in(folder: Path) -> list[str]:
    """Return the processes that were started by a demo in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            is_here = entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder)
        except OSError:
            continue
        if is_here:
            found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
