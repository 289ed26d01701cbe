"""The SDK and a real gateway, each in its own process: alerts, a signed update, and a killed gateway."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from device_sdk import DeviceClient, RebootRequiredError, ReceivedAlert, SlotInstaller
from device_sdk.wire.keys import PrivateKey, PublicKey, Role
from device_sdk.wire.names import FleetName
from device_sdk.wire.signed import RootDocument, RootKey, sign_root
from gateway.release import ReleaseContent, author_envelope, sign_envelope
from tests.harness.gateway import ApiError, GatewayProcess
from tests.integration.origins.process import Origin

FLEET = "acme"
VENDOR, CLASS = bytes([1] * 16), bytes([2] * 16)
RELEASE = PrivateKey.from_seed(bytes([10] * 32))
WAYS = [("websocket", "cbor"), ("websocket", "json"), ("longpoll", "cbor"), ("longpoll", "json")]
DEVICES = [f"{name}-{transport}-{encoding}" for name in ("a", "u", "k") for transport, encoding in WAYS]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """A fleet with a root document; each device has a token and channels of its name."""
    folder: Path = tmp_path_factory.mktemp("gateway")
    with Origin("forward_auth") as origin:
        await origin.control(tokens={name: {"json": verdict(name)} for name in DEVICES})
        async with GatewayProcess(folder, fleet=FLEET, forward_auth_url=f"{origin.url}/auth") as running:
            await put_root(running)
            yield running


def verdict(name: str) -> dict[str, Any]:
    channels = [{"name": name, "kind": "alert"}, {"name": f"{name}.firmware", "kind": "update"}]
    return {"device_id": name, "fleet": FLEET, "channels": channels}


async def put_root(gateway: GatewayProcess) -> None:
    pem = RELEASE.public.to_pem().decode()
    await gateway.call("PUT", f"/release-keys/{RELEASE.kid.hex()}", json={"public_pem": pem})
    online = (await gateway.call("GET", "/keys"))["online"]
    now_ms = time.time_ns() // 1_000_000
    document = RootDocument(
        fleet=FleetName(FLEET),
        version=1,
        issued_at=now_ms,
        expires_at=now_ms + 86_400_000,
        keys=tuple(
            RootKey(Role(key["role"]), PublicKey.from_pem(key["public_pem"].encode())) for key in online
        ),
    )
    headers = {"Content-Type": "application/cose"}
    await gateway.call("PUT", "/root", data=sign_root(document, RELEASE), headers=headers)


class Application:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self._news = asyncio.Event()

    async def __call__(self, alert: ReceivedAlert) -> None:
        self.texts.append(alert.text)
        self._news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.texts) < count:
                self._news.clear()
                await self._news.wait()


def device(
    gateway: GatewayProcess, name: str, way: tuple[str, str], folder: Path, **changes: Any
) -> DeviceClient:
    return DeviceClient(
        url=gateway.url,
        fleet=FLEET,
        device_id=name,
        token=name,
        release_keys=[RELEASE.public],
        state_dir=folder / "state",
        transport=way[0],  # type: ignore[arg-type]
        encoding=way[1],  # type: ignore[arg-type]
        **changes,
    )


async def enrolled(client: DeviceClient) -> None:
    """Return once the device has connected: it exists, and so do its channels."""
    async with asyncio.timeout(20):
        await client.wait_connected()


async def publish(gateway: GatewayProcess, channel: str, text: str) -> None:
    """Publish until it is answered; the gateway may be away."""
    async with asyncio.timeout(30):
        while True:
            with suppress(aiohttp.ClientError):
                await gateway.call("POST", f"/channels/{channel}/alerts", json={"text": text})
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
async def test_alerts_come_in_order_and_are_known_as_received(gateway, tmp_path, way):
    name = f"a-{way[0]}-{way[1]}"
    application = Application()
    client = device(gateway, name, way, tmp_path, on_alert=application)
    async with client:
        run = asyncio.create_task(client.run())
        await enrolled(client)
        sent = [f"alert {n}" for n in range(50)]
        answers = [
            await gateway.call("POST", f"/channels/{name}/alerts", json={"text": text}) for text in sent
        ]
        await application.until(50)
        assert application.texts == sent
        async with asyncio.timeout(20):
            while True:
                page = await gateway.call("GET", f"/alerts/{answers[-1]['id']}/deliveries")
                if page["items"] and page["items"][0]["received_at"] is not None:
                    break
                await asyncio.sleep(0.02)
        assert client.core.refusals == 0
        client.stop()
        await run


@pytest.mark.parametrize("way", WAYS, ids="-".join)
async def test_a_signed_update_reaches_the_slot_and_comes_back_committed(gateway, tmp_path, way):
    name = f"u-{way[0]}-{way[1]}"
    image = name.encode() * 10_000
    digest = hashlib.sha256(image).hexdigest()

    def client() -> DeviceClient:
        installer = SlotInstaller(tmp_path / "slots")
        return device(gateway, name, way, tmp_path, vendor=VENDOR, device_class=CLASS, installer=installer)

    async with client() as first:
        run = asyncio.create_task(first.run())
        await enrolled(first)
        await gateway.call("PUT", f"/artifacts/{digest}", data=image)
        content = ReleaseContent(
            vendor_identifier=VENDOR,
            class_identifier=CLASS,
            component="main",
            sequence_number=2,
            image_digest=bytes.fromhex(digest),
            image_size=len(image),
            uri=f"/v1/device/artifacts/{digest}",
            version="2.0",
        )
        release = await gateway.call(
            "POST",
            "/releases",
            data=sign_envelope(author_envelope(content), [RELEASE]),
            headers={"Content-Type": "application/suit-envelope+cose"},
        )
        rollout = await gateway.call(
            "POST",
            "/rollouts",
            json={"release_id": release["id"], "channel": f"{name}.firmware", "percent": 100},
        )
        with pytest.raises(RebootRequiredError):
            async with asyncio.timeout(30):
                await run
    async with client() as second:
        run = asyncio.create_task(second.run())
        async with asyncio.timeout(30):
            while True:
                page = await gateway.call("GET", f"/rollouts/{rollout['id']}/deployments")
                [deployment] = page["items"]
                if deployment["state"] == "committed":
                    break
                await asyncio.sleep(0.05)
        second.stop()
        await run
    installer = SlotInstaller(tmp_path / "slots")
    assert (tmp_path / "slots" / installer.running_file("main")).read_bytes() == image
    assert installer.running()["main"].version == "2.0"


@pytest.mark.parametrize("way", [("websocket", "cbor"), ("longpoll", "cbor")], ids="-".join)
async def test_a_killed_gateway_costs_time_and_no_alert(gateway, tmp_path, way):
    name = f"k-{way[0]}-{way[1]}"
    application = Application()
    async with device(gateway, name, way, tmp_path, on_alert=application) as client:
        run = asyncio.create_task(client.run())
        await enrolled(client)
        sent = []
        for n in range(3):
            await publish(gateway, name, f"before {n}")
            await gateway.kill()
            await gateway.start()
            await publish(gateway, name, f"after {n}")
            sent += [f"before {n}", f"after {n}"]
            await application.until(len(sent))
        assert application.texts == sent
        client.stop()
        await run


async def test_a_token_for_another_device_is_refused_for_hours(gateway, tmp_path):
    client = device(gateway, "stranger", ("websocket", "cbor"), tmp_path)
    client.set_token(DEVICES[0])
    async with client:
        run = asyncio.create_task(client.run())
        async with asyncio.timeout(20):
            while client.status.last_ending is None:
                await asyncio.sleep(0.01)
        assert "403" in client.status.last_ending or "4502" in client.status.last_ending
        client.stop()
        await run
    with pytest.raises(ApiError):
        await gateway.call("GET", "/devices/stranger")
