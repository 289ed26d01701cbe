"""The gateway as a service: units that systemd accepts, what is said to it, its sockets, new certificates."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.harness.certificates import CertificateAuthority, common_name
from tests.harness.gateway import CLI, free_port
from tests.harness.systemd import NotifySocket
from tests.integration.origins.process import Origin

UNITS = Path(__file__).parents[2] / "ops/systemd"
OPERATING = (Path(__file__).parents[2] / "docs/operating.md").read_text()
FLEET, DEVICE = "acme", "tc3-0001"
STOP_TIMEOUT_S = 30


def program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is needed; install it:  ops/dev/packages systemd"
    return found


class TestUnits:
    @pytest.fixture
    def units(self, tmp_path: Path) -> list[str]:
        """The units as they are, but for the path of the program: systemd looks whether it is there."""
        found = []
        for name in ("fleetcast.service", "fleetcast.socket"):
            text = (UNITS / name).read_text().replace("/opt/fleetcast/bin/fleetcast", str(CLI))
            (tmp_path / name).write_text(text)
            found.append(str(tmp_path / name))
        return found

    def analyze(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program("systemd-analyze"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def test_systemd_accepts_them(self, units: list[str]) -> None:
        done = self.analyze("verify", "--man=no", *units)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def test_systemd_would_not_accept_just_anything(self, units: list[str]) -> None:
        service = Path(units[0])
        service.write_text(service.read_text().replace("WatchdogSec=60", "WatchdogSec=often"))
        assert "Failed to parse sec value" in self.analyze("verify", "--man=no", *units).stderr

    def test_the_service_has_little_of_the_machine(self, units: list[str]) -> None:
        done = self.analyze("security", "--offline=true", "--threshold=20", units[0])
        assert done.returncode == 0, done.stdout

    def test_the_service_runs_what_there_is(self) -> None:
        text = (UNITS / "fleetcast.service").read_text()
        (line,) = re.findall(r"^ExecStart=\S+ (.*)$", text, re.M)
        assert line.split()[:2] == ["serve", "--config"]
        assert 'data_dir = "/var/lib/fleetcast"' in OPERATING, "the folder that it may write to"


def settings(folder: Path, *, port: int, more: str = "") -> Path:
    path = folder / "fleetcast.toml"
    path.touch(mode=0o600)
    path.write_text(f'{more}\n[server]\nlisten_port = {port}\ndata_dir = "{folder}/data"\n')
    return path


@asynccontextmanager
async def running(
    folder: Path, command: Sequence[str], **environ: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("FLEETCAST_")}
    with (folder / "gateway.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment | environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()


class TestStates:
    async def test_it_is_ready_alive_and_stopping_in_its_words(self, tmp_path: Path) -> None:
        config, port = settings(tmp_path, port=free_port()), None
        with NotifySocket(tmp_path / "notify") as heard:
            command = [str(CLI), "serve", "--config", str(config)]
            environ = {"NOTIFY_SOCKET": heard.address, "WATCHDOG_USEC": "300000"}
            async with running(tmp_path, command, **environ) as process:
                ready = await heard.until("READY=1")
                port = re.search(r"STATUS=0 devices connected at http://127\.0\.0\.1:(\d+)", "\n".join(ready))
                assert port is not None
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"http://127.0.0.1:{port[1]}/readyz") as answer,
                ):
                    assert answer.status == 200, "ready means ready"
                for _ in range(3):
                    await heard.until("WATCHDOG=1")
                process.send_signal(signal.SIGHUP)
                await heard.until("RELOADING=1")
                await heard.until("READY=1")
                await heard.until("WATCHDOG=1")
                process.terminate()
                await heard.until("STOPPING=1")
                assert await process.wait() == 0
        assert ["READY=1"] not in heard.said

    async def test_a_wrong_configuration_is_exit_status_2_and_never_ready(self, tmp_path: Path) -> None:
        config = settings(tmp_path, port=70000)
        with NotifySocket(tmp_path / "notify") as heard:
            command = [str(CLI), "serve", "--config", str(config)]
            async with running(tmp_path, command, NOTIFY_SOCKET=heard.address) as process:
                assert await process.wait() == 2
            assert heard.read() == []

    async def test_it_takes_the_socket_that_systemd_holds(self, tmp_path: Path) -> None:
        port = free_port()
        config = settings(tmp_path, port=1)  # not used, and not to be had by everybody
        command = [
            *(program("systemd-socket-activate"), "--listen", f"127.0.0.1:{port}"),
            *(f"--setenv={name}" for name in os.environ if not name.startswith("FLEETCAST_")),
            *(str(CLI), "serve", "--config", str(config)),
        ]
        async with running(tmp_path, command), aiohttp.ClientSession() as session:
            async with asyncio.timeout(60):
                while True:  # until systemd's program listens; the first connection starts the gateway
                    try:
                        async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
                            assert answer.status == 200
                            break
                    except aiohttp.ClientConnectorError:
                        await asyncio.sleep(0.02)


class TestCertificate:
    @pytest.fixture
    def authority(self) -> CertificateAuthority:
        return CertificateAuthority()

    @pytest.fixture
    async def origin(self) -> AsyncIterator[Origin]:
        with Origin("forward_auth") as origin:
            verdict = {"device_id": DEVICE, "fleet": FLEET, "channels": [{"name": "ops", "kind": "alert"}]}
            await origin.control(tokens={"s3cret": {"json": verdict}})
            yield origin

    @asynccontextmanager
    async def gateway(
        self, folder: Path, authority: CertificateAuthority, origin: Origin
    ) -> AsyncIterator[tuple[str, NotifySocket, asyncio.subprocess.Process]]:
        """A gateway that speaks TLS with a certificate for "old"; it and the fleet are new."""
        authority.issue(folder / "cert.pem", folder / "key.pem", name="old", is_rsa=True)
        port = free_port()
        config = settings(
            folder,
            port=port,
            more=f'[identity]\nmode = "forward_auth"\n[identity.forward_auth]\nurl = "{origin.url}/auth"\n'
            '[log]\nformat = "json"',
        )
        with config.open("a") as file:
            file.write(f'tls_cert = "{folder}/cert.pem"\ntls_key = "{folder}/key.pem"\n')
        create = ("token", "create", "--name", "t", "--scope", "admin", "--fleet", FLEET, "--create-fleet")
        made = await asyncio.create_subprocess_exec(
            CLI,
            *create,
            "--output",
            str(folder / "token"),
            "--config",
            str(config),
            stderr=subprocess.DEVNULL,
        )
        assert await made.wait() == 0
        with NotifySocket(folder / "notify") as heard:
            command = [str(CLI), "serve", "--config", str(config)]
            async with running(folder, command, NOTIFY_SOCKET=heard.address) as process:
                await heard.until("READY=1")
                yield f"https://127.0.0.1:{port}", heard, process

    async def test_a_new_one_is_taken_up_while_devices_stay(
        self, tmp_path: Path, authority: CertificateAuthority, origin: Origin
    ) -> None:
        context = authority.client_context()
        async with (
            self.gateway(tmp_path, authority, origin) as (url, heard, process),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            connected(session, url) as socket,
        ):
            operator = {"Authorization": f"Bearer {(tmp_path / 'token').read_text().strip()}"}
            assert await whom(url, context) == "old"

            async def reload() -> str:
                process.send_signal(signal.SIGHUP)
                await heard.until("RELOADING=1")
                await heard.until("READY=1")
                return await whom(url, context)

            async def alert(text: str) -> None:
                path = f"{url}/api/v1/fleets/{FLEET}/channels/ops/alerts"
                async with session.post(path, json={"text": text}, headers=operator) as answer:
                    assert answer.status == 201
                assert (await receive(socket, "alert"))["channel"] == "ops"

            await alert("before")
            authority.issue(tmp_path / "cert.pem", tmp_path / "other.pem", name="broken")
            assert await reload() == "old", "the key is another one's"
            (tmp_path / "other.pem").replace(tmp_path / "key.pem")
            authority.issue(tmp_path / "cert.pem", tmp_path / "key.pem", name="new")
            assert await reload() == "new"
            await alert("after")
            async with connected(session, url, device="x") as refused:
                assert refused is None
        log = (tmp_path / "gateway.log").read_text()
        assert "not reloaded, the old certificate stays" in log
        assert "are no certificate and its key" in log
        assert '"certificate reloaded"' in log

    async def test_a_device_polls_and_the_command_line_asks_over_tls(
        self, tmp_path: Path, authority: CertificateAuthority, origin: Origin
    ) -> None:
        (tmp_path / "ca.pem").write_bytes(authority.pem)
        async with self.gateway(tmp_path, authority, origin) as (url, _, _):
            environ = os.environ | {"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "FLEETCAST_FLEET": FLEET}
            asked = await asyncio.create_subprocess_exec(
                *(CLI, "channel", "list", "--url", url, "--token-file", str(tmp_path / "token")),
                env=environ,
            )
            assert await asked.wait() == 0
            client = f"""
import asyncio, ssl
from device_sdk import DeviceClient
async def main():
    async with DeviceClient(url={url!r}, fleet={FLEET!r}, device_id={DEVICE!r}, token="s3cret",
            release_keys=[], state_dir={str(tmp_path / "state")!r}, transport="longpoll",
            ssl=ssl.create_default_context(cafile={str(tmp_path / "ca.pem")!r})) as client:
        running = asyncio.create_task(client.run())
        await client.wait_connected()
        running.cancel()
asyncio.run(main())
"""
            device = await asyncio.create_subprocess_exec(sys.executable, "-c", client)
            async with asyncio.timeout(30):
                assert await device.wait() == 0


@asynccontextmanager
async def connected(
    session: aiohttp.ClientSession, url: str, device: str = DEVICE
) -> AsyncIterator[aiohttp.ClientWebSocketResponse | None]:
    """Yield the connection of a device that was welcomed; None if it was refused."""
    headers = {"Authorization": "Bearer s3cret", "Fleetcast-Fleet": FLEET, "Fleetcast-Device": device}
    try:
        opened = await session.ws_connect(
            f"{url}/v1/device/connect", headers=headers, protocols=["fleetcast.v1.json"]
        )
    except aiohttp.WSServerHandshakeError:
        yield None
        return
    async with opened as socket:
        await socket.send_json({"type": "hello", "protocol": 1, "window": 32, "boot_id": "A" * 22})
        await receive(socket, "welcome")
        yield socket


async def receive(socket: aiohttp.ClientWebSocketResponse | None, kind: str) -> dict[str, Any]:
    assert socket is not None
    async with asyncio.timeout(30):
        while True:
            message: dict[str, Any] = await socket.receive_json()
            if message["type"] == kind:
                return message


async def whom(url: str, context: ssl.SSLContext) -> str:
    """Return whom a connection that is made now meets."""
    _, _, port = url.rpartition(":")
    _, writer = await asyncio.open_connection("127.0.0.1", int(port), ssl=context)
    met = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return common_name(met)
