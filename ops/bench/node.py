"""``fleetcast serve`` as it is measured: in a folder, its origin beside it, devices and operators at it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from origin import FLEET, Origin, token
from rig import BenchError, Load, build, free_port, start, stop, wait_until

CLI = Path(sys.executable).with_name("fleetcast")
CHANNEL = "bench"
TEXT = "Pressure in line 4 is above 8 bar. Close valve V-17 and acknowledge at the panel."
READY_TIMEOUT_S = 60
QUIET_TIMEOUT_S = 60
# What a node takes is to be measured here, not what it is told to take.
UNBOUNDED = {"accept_rate_per_s": 100_000}


class Gateway:
    """A gateway with a database of its own.

    Attributes:
        url: Of the database.
        origin: Whom it asks.
    """

    def __init__(self, folder: Path, database_url: str | None, origin: Origin) -> None:
        self.folder = folder
        self.url = database_url or f"sqlite:///{folder / 'data' / 'fleetcast.db'}"
        self.origin = origin
        self.port = free_port()
        self.config = folder / "fleetcast.toml"
        self.token = ""
        self.process: subprocess.Popen[str]

    @classmethod
    @contextlib.contextmanager
    def started(
        cls,
        folder: Path,
        *,
        database_url: str | None = None,
        device: Mapping[str, float] = UNBOUNDED,
        command: tuple[object, ...] = (CLI,),
    ) -> Iterator[Self]:
        """Run one, on ``database_url`` or a SQLite of its own, until the end of the block.

        Args:
            device: Keys of the section of that name.
            command: In the place of ``fleetcast``, to serve.
        """
        folder.mkdir()
        with Origin.started(folder / "origin") as origin:
            gateway = cls(folder, database_url, origin)
            gateway._prepare(device)
            gateway.start(command)
            try:
                yield gateway
            finally:
                stop(gateway.process)

    def _prepare(self, device: Mapping[str, float]) -> None:
        self.config.write_text(
            f"[server]\nlisten_port = {self.port}\ndata_dir = {json.dumps(str(self.folder / 'data'))}\n"
            f"[database]\nurl = {json.dumps(self.url)}\n"
            f'[identity]\nmode = "forward_auth"\n'
            f"[identity.forward_auth]\nurl = {json.dumps(self.origin.url)}\n"
            f'[log]\nlevel = "warning"\n[device]\n'
            + "".join(f"{key} = {value}\n" for key, value in device.items())
        )
        (self.folder / "data").mkdir(mode=0o700)
        if not self.url.startswith("sqlite"):
            self.cli("db", "upgrade", "--config", self.config)
        path = self.folder / "operator.token"
        create = ("token", "create", "--name", "bench", "--scope", "admin", "--fleet", FLEET)
        self.cli(*create, "--create-fleet", "--output", path, "--config", self.config)
        self.token = path.read_text().strip()

    def start(self, command: tuple[object, ...] = (CLI,)) -> None:
        """Serve, again after ``kill``, and wait until it is ready."""
        self.process = start([*command, "serve", "--config", self.config])
        wait_until(self.is_ready, READY_TIMEOUT_S, "the gateway is not ready")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise BenchError("the gateway ended")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    # --- devices ------------------------------------------------------------------------------------------

    def load(
        self, folder: Path, count: int, name: str, *, channel: str = CHANNEL, **options: object
    ) -> contextlib.AbstractContextManager[Load]:
        """Connect ``count`` devices, called ``name`` and their number, with the program ``load``."""
        return self._devices(build("load", folder), count, name, channel, "%d", options)

    def polls(self, folder: Path, count: int, name: str) -> contextlib.AbstractContextManager[Load]:
        """As ``load``, with devices that poll."""
        return self._devices(build("polls", folder), count, name, CHANNEL, "0", {})

    def _devices(
        self, program: Path, count: int, name: str, channel: str, generation: str, options: dict[str, object]
    ) -> contextlib.AbstractContextManager[Load]:
        return Load.connected(
            program,
            port=self.port,
            count=count,
            channel=channel,
            fleet=FLEET,
            device=f"{name}-%d",
            token=token(channel, f"{name}-%d", generation),
            publish_path=f"/api/v1/fleets/{FLEET}/channels/{channel}/alerts",
            publish_token=self.token,
            publish_body=json.dumps({"text": TEXT}),
            **options,
        )

    # --- operators ----------------------------------------------------------------------------------------

    def cli(self, *words: object) -> str:
        """Run ``fleetcast`` with ``words``; return what it says."""
        environment = os.environ | {
            "FLEETCAST_URL": f"http://127.0.0.1:{self.port}",
            "FLEETCAST_TOKEN_FILE": str(self.folder / "operator.token"),
            "FLEETCAST_FLEET": FLEET,
        }
        done = subprocess.run(
            [CLI, *map(str, words)],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"fleetcast {words[0]} {words[1]}: {done.stderr.strip()}")
        return done.stdout

    def publish(self, count: int, *, channel: str = CHANNEL) -> None:
        """Publish ``count`` alerts, one after the other."""
        with Operator(self) as operator:
            for _ in range(count):
                operator.post(f"channels/{channel}/alerts", {"text": TEXT})

    # --- the process --------------------------------------------------------------------------------------

    def metric(self, name: str) -> float:
        """Return the sum of a metric's series whose name and labels begin with ``name``."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)}.* (\S+)$", text, re.MULTILINE))

    def wait_until_left(self, count: int = 0) -> None:
        """Wait until only ``count`` devices are connected, and what the others' going writes is committed."""
        wait_until(
            lambda: self.metric("fleetcast_device_connections{") == count,
            QUIET_TIMEOUT_S,
            "some devices stay",
        )
        self.wait_until_quiet()

    def wait_until_quiet(self) -> None:
        """Wait until the process uses next to no CPU."""
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        used = self.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(0.5)
            before, used = used, self.cpu_s()
            if used - before <= 0.05:
                return
        raise BenchError("the gateway does not come to rest")

    def cpu_s(self) -> float:
        """Return the CPU time that the process used so far, of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def pss_bytes(self) -> int:
        """Return the memory of the process, shared pages divided among those who share them."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


class Operator:
    """Requests to the operator API over one connection."""

    def __init__(self, gateway: Gateway) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        self._headers = {"Authorization": f"Bearer {gateway.token}", "Content-Type": "application/json"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self.ask("POST", path, body)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, f"/api/v1/fleets/{FLEET}/{path}", data, self._headers)
        with self._connection.getresponse() as answer:
            text = answer.read().decode()
            if answer.status >= 300:
                raise BenchError(f"{method} {path}: {answer.status} {text}")
        found: dict[str, Any] = json.loads(text) if text else {}
        return found
