"""The README's walk as it stands there, its files and its commands; only the ports are other ones."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness.gateway import CLI, free_port

README = (Path(__file__).parents[2] / "README.md").read_text()
FILES = dict(
    zip(
        ("origin.py", "fleetcast.toml", "device.py"),
        re.findall(r"^```(?:python|toml)\n(.*?)^```", README, re.M | re.S),
        strict=True,
    )
)
COMMANDS = [shlex.split(line) for line in re.findall(r"^    (fleetcast .*)$", README, re.M)]
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
TIMEOUT_S = 60


@contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, **options) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.terminate()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.timeout(180)
def test_a_newcomer_gets_an_alert_and_an_update_onto_a_device(tmp_path: Path) -> None:
    gateway_port, origin_port = free_port(), free_port()
    for name, text in FILES.items():
        text = text.replace("8080", str(gateway_port)).replace("9000", str(origin_port))
        (tmp_path / name).write_text(text)
    (tmp_path / "app.bin").write_text("version 1.4.0\n")
    environment = {
        **os.environ,
        "FLEETCAST_SERVER_LISTEN_PORT": str(gateway_port),
        "FLEETCAST_URL": f"http://127.0.0.1:{gateway_port}",
        "FLEETCAST_FLEET": "acme",
        "FLEETCAST_TOKEN_FILE": "operator.token",
    }
    options = {"cwd": tmp_path, "env": environment}
    ids: dict[str, str] = {}
    with ExitStack() as stack, (tmp_path / "device.log").open("wb") as log:
        stack.enter_context(running([sys.executable, "origin.py"], stdout=subprocess.DEVNULL, **options))
        for command in COMMANDS:
            words = [ids.get(word, word) for word in command[1:]]
            match words[:2]:
                case ["serve", _]:
                    stack.enter_context(running([str(CLI), *words], stderr=subprocess.DEVNULL, **options))
                    wait_until(lambda: answers(f"http://127.0.0.1:{gateway_port}/readyz"))
                    continue
                case ["alert", "send"]:
                    until = f"until {shlex.quote(sys.executable)} -u device.py; do :; done"
                    device = ["setsid", "sh", "-c", f"trap 'kill 0' TERM; {until} & wait"]
                    stack.enter_context(running(device, stdout=log, stderr=log, **options))
                    wait_until(lambda: "tc3-0001" in _run(["device", "list"], options))
            out = _run(words, options)
            if words[:2] in (["release", "publish"], ["rollout", "start"]):
                ids[f"{words[0].upper()}_ID"] = UUID.findall(out)[0]
        shown = _run(["device", "show", "tc3-0001"], options)
        assert "committed" in shown
        assert "main:app=1.4.0" in shown
        wait_until(lambda: b"ops #1: Close valve V-17" in (tmp_path / "device.log").read_bytes())
    slots = [path for path in (tmp_path / "device-slots").rglob("*") if path.is_file()]
    assert b"version 1.4.0\n" in [path.read_bytes() for path in slots]


def _run(words: list[str], options: dict[str, object]) -> str:
    answer = [*words, "--yes"] if words[:2] == ["fleet", "trust"] else words
    done = subprocess.run(  # type: ignore[call-overload]
        [str(CLI), *answer], capture_output=True, text=True, timeout=TIMEOUT_S, **options
    )
    assert done.returncode == 0, f"fleetcast {' '.join(words)}: {done.stderr}"
    out: str = done.stdout + done.stderr
    return out
