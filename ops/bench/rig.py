"""What is measured and what measures it, each a process: a gateway with its origin, load, C programs."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
CLI = Path(sys.executable).with_name("fleetcast")
FLEET = "bench"
CHANNEL = "bench"
TEXT = "Pressure in line 4 is above 8 bar. Close valve V-17 and acknowledge at the panel."
QUIET_S = 0.5  # after the last acknowledgement was sent: the gateway commits them
READY_TIMEOUT_S = 60


class BenchError(Exception):
    """What was measured is not what was promised."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build(name: str, folder: Path) -> Path:
    program = folder / name
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("no C compiler: apt-get install gcc libc6-dev")
    subprocess.run([compiler, "-O2", "-o", program, HERE / f"{name}.c"], check=True)
    return program


@contextlib.contextmanager
def running(command: list[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([str(word) for word in command], text=True, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise BenchError(f"{process.args!r} said nothing")
    return line


class Load:
    """The load program, told what to do line by line. All devices are connected once it is made."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        opened = json.loads(first_line(process))
        self.connections_per_s: float = opened["connections_per_s"]

    @classmethod
    @contextlib.contextmanager
    def connected(cls, program: Path, **options: object) -> Iterator[Self]:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        with running([program, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            yield cls(process)

    def __call__(self, order: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(first_line(self._process))
        return answer

    def settle(self) -> dict[str, Any]:
        settled = self("settle")
        time.sleep(QUIET_S)
        return settled


class Gateway:
    """``fleetcast serve`` on SQLite in ``folder``, its origin beside it."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], port: int, token: str) -> None:
        self.database = folder / "data" / "fleetcast.db"
        self.process = process
        self.port = port
        self.token = token

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path) -> Iterator[Self]:
        folder.mkdir()
        origin_command = [sys.executable, HERE / "origin.py", "--fleet", FLEET, "--channel", CHANNEL]
        with running(origin_command, stdout=subprocess.PIPE) as origin:
            port = free_port()
            config = folder / "fleetcast.toml"
            config.write_text(
                f"[server]\nlisten_port = {port}\ndata_dir = {json.dumps(str(folder / 'data'))}\n"
                f'[identity]\nmode = "forward_auth"\n'
                f'[identity.forward_auth]\nurl = "http://127.0.0.1:{first_line(origin)}/auth"\n'
                # Connections come as fast as they can: it is the gateway that is measured, not its patience.
                f"[device]\naccept_rate_per_s = 100000\n"
                f'[log]\nlevel = "warning"\n'
            )
            token = folder / "operator.token"
            create = ["token", "create", "--name", "bench", "--scope", "admin", "--fleet", FLEET]
            create += ["--create-fleet", "--output", str(token), "--config", str(config)]
            subprocess.run([CLI, *create], check=True, stderr=subprocess.DEVNULL)
            with running([CLI, "serve", "--config", config]) as process:
                gateway = cls(folder, process, port, token.read_text().strip())
                wait_until(gateway.is_ready, READY_TIMEOUT_S, "the gateway is not ready")
                yield gateway

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise BenchError("the gateway ended")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def load(self, program: Path, count: int, name: str) -> contextlib.AbstractContextManager[Load]:
        """Connect ``count`` devices, called ``name`` and their number."""
        return Load.connected(
            program,
            port=self.port,
            count=count,
            channel=CHANNEL,
            fleet=FLEET,
            device=f"{name}-%d",
            token=f"{name}-%d",
            publish_path=f"/api/v1/fleets/{FLEET}/channels/{CHANNEL}/alerts",
            publish_token=self.token,
            publish_body=json.dumps({"text": TEXT}),
        )

    def pss_bytes(self) -> int:
        """Return the memory of the process, shared pages divided among those who share them."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_until(is_so: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise BenchError(otherwise)
        time.sleep(0.05)
