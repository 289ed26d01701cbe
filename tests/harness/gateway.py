"""A gateway as a process of its own, the way an operator runs it: ``fleetcast serve --config``.

It can be stopped, killed and started again on the same folder and port. The operator API is spoken through
``call``; what it answers that is not a 2xx is an ``ApiError``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.harness.nursery import Forked, Nursery

CLI = Path(sys.executable).with_name("fleetcast")
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


class ApiError(Exception):
    """The operator API said no."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status} {problem.get('code')}: {problem.get('detail')}")
        self.status = status
        self.code = problem.get("code")


def free_port() -> int:
    """Return a port that was free a moment ago, and that nothing takes while the gateway is away.

    It is below the range from which the kernel gives ports to outgoing connections: devices that knock at a
    gateway which is down would else, now and then, be connected to themselves.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FLEETCAST_")}


class GatewayProcess:
    """``async with GatewayProcess(folder, fleet=…, forward_auth_url=…) as gateway``.

    Args:
        folder: Its own, empty or of an earlier one.
        database_url: Without one, SQLite in ``folder``.
        settings: More of the configuration, as ``{"section": {"key": value}}``.
        nursery: Where it is started, if not from the command line.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fleet: str,
        forward_auth_url: str | None = None,
        database_url: str | None = None,
        settings: dict[str, dict[str, Any]] | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        self.folder = folder
        self.fleet = fleet
        self.port = free_port()
        self.token = ""
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.log_file = folder / "gateway.log"
        self._config_file = folder / "fleetcast.toml"
        self._nursery = nursery
        self._session: aiohttp.ClientSession | None = None
        tables: dict[str, dict[str, Any]] = {
            "server": {
                "listen_port": self.port,
                "data_dir": str(folder / "data"),
                "shutdown_grace_s": 5.0,
            },
            "log": {"format": "json"},
        }
        if database_url is not None:
            tables["database"] = {"url": database_url}
        if forward_auth_url is not None:
            tables["identity"] = {"mode": "forward_auth"}
            tables["identity.forward_auth"] = {"url": forward_auth_url}
        for table, values in (settings or {}).items():
            tables.setdefault(table, {}).update(values)
        folder.mkdir(parents=True, exist_ok=True)
        self._config_file.write_text(
            "".join(
                f"[{table}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
                for table, values in tables.items()
            )
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        try:
            if not (self.folder / "operator.token").exists():
                await self._run("db", "upgrade", "--config", str(self._config_file))
                await self._run(
                    *("token", "create", "--name", "tests", "--scope", "admin", "--fleet", self.fleet),
                    *("--create-fleet", "--output", str(self.folder / "operator.token")),
                    *("--config", str(self._config_file)),
                )
            self.token = (self.folder / "operator.token").read_text().strip()
            await self.start()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()
        await self.stop()

    async def _run(self, *arguments: str) -> None:
        if self._nursery is None:
            await self.command(*arguments)
            return
        status = await asyncio.to_thread(self._nursery.launch(*arguments, log=self.log_file).wait)
        assert status == 0, f"fleetcast {' '.join(arguments)}:\n{self.log_tail()}"

    async def command(self, *arguments: str) -> str:
        """Run the CLI and return what it printed."""
        process = await asyncio.create_subprocess_exec(
            str(CLI), *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment()
        )
        out, err = await process.communicate()
        assert process.returncode == 0, f"fleetcast {' '.join(arguments)}: {err.decode()}"
        return out.decode()

    async def start(self) -> None:
        """Return once it is ready."""
        self.launch()
        await self.ready()

    def launch(self) -> None:
        """Start the process, and wait for nothing."""
        assert self.process is None
        if self._nursery is not None:
            self.process = self._nursery.launch(
                "serve", "--config", str(self._config_file), log=self.log_file
            )
            return
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [str(CLI), "serve", "--config", str(self._config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
            )

    async def ready(self) -> None:
        """Return once the process that was launched is ready."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await self._is_ready():
                assert self.process is not None
                assert self.process.poll() is None, f"the gateway ended:\n{self.log_tail()}"
                await asyncio.sleep(0.02)

    async def stop(self) -> int:
        """End it in good order; return its exit status."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End it as a power cut does."""
        await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the gateway did not stop:\n{self.log_tail()}") from None

    async def _is_ready(self) -> bool:
        assert self._session is not None
        try:
            async with self._session.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """Call ``/api/v1/fleets/{fleet}{path}``; return the JSON, None for an empty answer.

        Raises:
            ApiError: Not a 2xx.
            aiohttp.ClientError: No answer.
        """
        assert self._session is not None
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        url = f"{self.url}/api/v1/fleets/{self.fleet}{path}"
        async with self._session.request(method, url, headers=headers, **options) as answer:
            body = await answer.read()
            document = json.loads(body) if body else None
            if not answer.ok:
                raise ApiError(answer.status, document or {})
            return document

    async def metric(self, name: str) -> float:
        """Return one value of ``/metrics``; ``name`` with its labels, as it stands there."""
        assert self._session is not None
        async with self._session.get(f"{self.url}/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith(f"{name} "):
                    return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
