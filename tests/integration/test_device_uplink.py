"""Uplinks through a running gateway to a backend that is a process of its own, and its bad days."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from device_sdk import DeviceClient, MemoryFlash
from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.messages import Error, Recorded, Uplink
from tests.harness.devices import PollDevice, Refused, SocketDevice
from tests.harness.gateway import GatewayProcess
from tests.harness.nursery import Nursery
from tests.integration.origins.process import Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLEET = "acme"
WAIT_S = 20
SECRET = "s3cret-of-the-gateway"
DEVICES = ("cbor", "json", "poll-cbor", "poll-json", "down", "no", "order", "busy", "best", "sdk", "sdk-poll")


class World:
    def __init__(self, gateway: GatewayProcess, backend: Origin) -> None:
        self.gateway = gateway
        self.backend = backend

    def socket(self, device: str, encoding: str = "cbor") -> SocketDevice:
        return SocketDevice(self.gateway.url, fleet=FLEET, device=device, encoding=encoding)

    def poll(self, device: str, encoding: str = "cbor") -> PollDevice:
        return PollDevice(self.gateway.url, fleet=FLEET, device=device, encoding=encoding)

    async def taken(self, device: str) -> list[dict[str, Any]]:
        """Return what the backend was given of ``device``: its headers, and ``data`` where it took it."""
        found = []
        for request in (await self.backend.seen())["requests"]:
            headers = {name.lower(): value for name, value in request["headers"]}
            if headers["fleetcast-device"] == device:
                data = bytes.fromhex(request["data"]) if "data" in request else None
                found.append({"headers": headers, "data": data})
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> AsyncIterator[World]:
    folder: Path = tmp_path_factory.mktemp("uplink")
    secret = folder / "backend.token"
    secret.touch(mode=0o600)
    secret.write_text(SECRET + "\n")
    with Origin("forward_auth") as origin, Origin("uplink") as backend:
        verdicts = {name: {"json": {"device_id": name, "fleet": FLEET}} for name in DEVICES}
        await origin.control(tokens=verdicts)
        settings = {
            "uplink": {
                "url": f"{backend.url}/uplink",
                "token_file": str(secret),
                "timeout_s": 2.0,
                "retry_min_s": 0.05,
                "retry_max_s": 0.1,
                "device_queue_len_max": 2,
            },
            "identity": {"circuit_failures": 1000},
        }
        async with GatewayProcess(
            folder,
            fleet=FLEET,
            forward_auth_url=f"{origin.url}/auth",
            settings=settings,
            nursery=nursery,
        ) as gateway:
            yield World(gateway, backend)


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.backend.reset()
    return running


def uplink(data: bytes = b"8.25 bar", content_type: str = "text/plain", **fields: Any) -> Uplink:
    return Uplink(os.urandom(16), content_type, data, **fields)


@pytest.mark.parametrize("encoding", ["cbor", "json"])
async def test_the_backend_gets_it_as_it_is_and_knows_whose_it_is(world: World, encoding: str):
    one = uplink(bytes(range(256)), "application/octet-stream; v=1")
    async with world.socket(encoding, encoding) as device:
        await device.begin()
        await device.send(one)
        assert await device.next(Recorded) == Recorded(one.id, "recorded")
    [given] = await world.taken(encoding)
    assert given["data"] == bytes(range(256))
    headers = given["headers"]
    assert headers["content-type"] == "application/octet-stream; v=1"
    assert (headers["fleetcast-fleet"], headers["fleetcast-device"]) == (FLEET, encoding)
    assert headers["fleetcast-uplink"] == one.id.hex()
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert "fleetcast-ticket" not in headers


@pytest.mark.parametrize("encoding", ["cbor", "json"])
async def test_over_plain_requests_each_is_answered(world: World, encoding: str):
    ones = [uplink(b"1"), uplink(b"")]
    async with world.poll(f"poll-{encoding}", encoding) as device:
        with pytest.raises(Refused) as refused:
            await device.uplink(*ones)
        assert refused.value.code == "hello_required"
        await device.begin()
        assert await device.uplink(*ones) == [Recorded(one.id, "recorded") for one in ones]
    assert [given["data"] for given in await world.taken(f"poll-{encoding}")] == [b"1", b""]


@pytest.mark.parametrize("behaviour", ["status:500", "status:429", "status:404", "status:302", "hang_up"])
async def test_a_backend_that_fails_is_tried_again_and_then_left_to_the_device(world: World, behaviour: str):
    await world.backend.control(behaviour=behaviour)
    one = uplink()
    async with world.socket("down") as device:
        await device.begin()
        await device.send(one)
        assert await device.next(Error) == Error("uplink_unavailable", one.id.hex())
        assert len(await world.taken("down")) == 3
        await world.backend.control(behaviour="answer")
        await device.send(one)  # as the SDK does, later
        assert await device.next(Recorded) == Recorded(one.id, "recorded")
    assert {given["headers"]["fleetcast-uplink"] for given in await world.taken("down")} == {one.id.hex()}


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_the_backend_refuses_for_good_is_over(world: World, status: int):
    await world.backend.control(behaviour=f"status:{status}")
    one = uplink()
    async with world.socket("no") as device:
        await device.begin()
        await device.send(one)
        assert await device.next(Recorded) == Recorded(one.id, "refused", "uplink_refused")
    assert len(await world.taken("no")) == 1


async def test_one_of_best_effort_is_tried_once(world: World):
    await world.backend.control(behaviour="status:500")
    one = uplink(best_effort=True)
    async with world.socket("best") as device:
        await device.begin()
        await device.send(one)
        assert await device.next(Recorded) == Recorded(one.id, "refused", "uplink_unavailable")
    assert len(await world.taken("best")) == 1


async def test_a_slow_backend_bounds_the_device_and_holds_up_nothing_else(world: World):
    await world.backend.control(behaviour="hold")
    ones = [uplink(b"%d" % number) for number in range(4)]
    async with world.socket("busy") as device:
        await device.begin()
        await device.send(*ones)
        busy = [await device.next(Error) for _ in range(2)]
        assert busy == [Error("uplink_busy", one.id.hex()) for one in ones[2:]]
        await world.backend.seen(held=1)
        await world.backend.release()
        assert {(await device.next(Recorded)).id for _ in range(2)} == {one.id for one in ones[:2]}


async def test_a_header_in_the_content_type_breaks_the_contract(world: World):
    bad = uplink(content_type="text/plain\r\nAuthorization: Bearer x")
    async with world.socket("no") as device:
        await device.begin()
        await device.send(bad)
        assert await device.ended() == 1008
    assert await world.taken("no") == []


@pytest.mark.parametrize(("transport", "name"), [("websocket", "sdk"), ("longpoll", "sdk-poll")])
async def test_the_sdk_keeps_it_until_the_backend_took_it(world: World, transport: str, name: str):
    flash = MemoryFlash()

    def client(flash: MemoryFlash) -> DeviceClient:
        return DeviceClient(
            url=world.gateway.url,
            fleet=FLEET,
            device_id=name,
            token=name,
            release_keys=[PrivateKey.generate().public],
            flash=flash,
            transport=transport,  # type: ignore[arg-type]
        )

    await world.backend.control(behaviour="status:503")
    async with client(flash) as first:
        task = asyncio.create_task(first.run())
        id_ = first.uplink("pressure 8.25")
        async with asyncio.timeout(WAIT_S):
            while len(await world.taken(name)) < 3:
                await asyncio.sleep(0.05)
        assert first.core.uplinks.waiting == [id_]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await world.backend.control(behaviour="answer")
    async with client(MemoryFlash(flash.files)) as again:
        task = asyncio.create_task(again.run())
        async with asyncio.timeout(WAIT_S):
            while again.core.uplinks.waiting:
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    last = (await world.taken(name))[-1]
    assert (last["data"], last["headers"]["fleetcast-uplink"]) == (b"pressure 8.25", id_.hex())


async def test_without_a_backend_the_device_is_told_to_keep_it(tmp_path: Path, nursery: Nursery) -> None:
    with Origin("forward_auth") as origin:
        await origin.control(tokens={"d": {"json": {"device_id": "d", "fleet": FLEET}}})
        async with GatewayProcess(
            tmp_path, fleet=FLEET, forward_auth_url=f"{origin.url}/auth", nursery=nursery
        ) as gateway:
            one = uplink()
            async with SocketDevice(gateway.url, fleet=FLEET, device="d") as device:
                await device.begin()
                await device.send(one)
                assert await device.next(Error) == Error("uplink_unconfigured", one.id.hex())
