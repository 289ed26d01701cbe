"""Server-sent events of a running gateway, read as the HTML standard has it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from device_sdk.wire.messages import Ack, Alert, Cancel, Position, Recorded, Report, Update
from tests.harness.devices import EventStream, PollDevice, Refused, SocketDevice, alert_data
from tests.harness.gateway import GatewayProcess
from tests.harness.nursery import Nursery
from tests.harness.operator import Operator
from tests.integration.origins.process import Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLEET = "acme"
DEVICES = ("live", "behind", "resumes", "acks", "updates", "slow", "both", "swaps", "beats", "bad")


class Plane:
    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self.operator = Operator(gateway)

    def poll(self, device: str, encoding: str = "cbor") -> PollDevice:
        return PollDevice(self.gateway.url, fleet=FLEET, device=device, encoding=encoding)

    async def publish(self, channel: str, *texts: str) -> list[dict[str, Any]]:
        path = f"/channels/{channel}/alerts"
        return [await self.gateway.call("POST", path, json={"text": text}) for text in texts]

    async def delivery(self, alert: dict[str, Any], device: str) -> dict[str, Any]:
        page = await self.gateway.call("GET", f"/alerts/{alert['id']}/deliveries")
        found: dict[str, Any] = next(item for item in page["items"] if item["device_id"] == device)
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> AsyncIterator[Plane]:
    def verdict(name: str) -> dict[str, Any]:
        channels = [{"name": name, "kind": "alert"}, {"name": f"{name}.firmware", "kind": "update"}]
        return {"json": {"device_id": name, "fleet": FLEET, "channels": channels}}

    with Origin("forward_auth") as origin:
        await origin.control(tokens={name: verdict(name) for name in DEVICES})
        async with GatewayProcess(
            tmp_path_factory.mktemp("events"),
            fleet=FLEET,
            forward_auth_url=f"{origin.url}/auth",
            settings={"device": {"wheel_s": 0.05, "heartbeat_s": 5.0, "pong_timeout_s": 5.0}},
            nursery=nursery,
        ) as gateway:
            found = Plane(gateway)
            await found.operator.trust()
            yield found


async def texts(stream: EventStream, count: int) -> list[str]:
    return [alert_data((await stream.next(Alert)).body).decode() for _ in range(count)]


@pytest.mark.parametrize("encoding", ["cbor", "json"])
async def test_what_was_missed_comes_and_then_what_is_published(plane: Plane, encoding: str):
    async with plane.poll("live", encoding) as device:
        await device.begin()
        await plane.publish("live", "missed")
        async with device.events() as stream:
            assert await texts(stream, 1) == ["missed"]
            [published] = await plane.publish("live", "live")
            assert await texts(stream, 1) == ["live"]
            assert stream.retry_ms is not None
            await device.acknowledge(
                Ack(positions={"live": Position(published["epoch"], published["offset"])})
            )
    facts = await plane.delivery(published, "live")
    assert facts["sent_at"] is not None
    assert facts["received_at"] is not None


async def test_a_broken_stream_goes_on_behind_the_last_event_and_acknowledges_nothing(plane: Plane):
    boot_id = os.urandom(16)
    async with plane.poll("resumes") as device:
        await device.begin(boot_id=boot_id)
        async with device.events() as stream:
            await plane.publish("resumes", "one", "two", "three")
            assert await texts(stream, 2) == ["one", "two"]
            last = stream.id
        async with device.events(last) as stream:
            assert await texts(stream, 1) == ["three"]
        subscriptions = (await plane.gateway.call("GET", "/devices/resumes/subscriptions"))["items"]
        assert next(item["offset"] for item in subscriptions if item["channel"] == "resumes") == 0
        async with device.events() as stream:
            assert await texts(stream, 3) == ["one", "two", "three"]
    async with plane.poll("resumes") as device:
        await device.begin(boot_id=boot_id)
        async with device.events(last) as stream:  # after another hello, too
            assert await texts(stream, 1) == ["three"]


async def test_the_window_is_kept_and_posts_open_it(plane: Plane):
    async with plane.poll("acks") as device:
        await device.begin(window=2)
        async with device.events() as stream:
            published = await plane.publish("acks", "1", "2", "3")
            assert await texts(stream, 2) == ["1", "2"]
            await asyncio.sleep(0.05)
            await device.acknowledge(Ack(positions={"acks": Position(published[0]["epoch"], 2)}))
            assert await texts(stream, 1) == ["3"]


async def test_updates_reports_and_cancels_go_their_way(plane: Plane):
    async with plane.poll("updates") as device:
        await device.begin()
        async with device.events() as stream:
            release = await plane.operator.release(os.urandom(64), version="1", sequence=1)
            rollout = await plane.operator.rollout(release, "updates.firmware")
            update = await stream.next(Update)
            await device.acknowledge(Ack(deployment=update.deployment))
            report = Report(os.urandom(16), update.deployment, 1, "received")
            assert await device.report(report) == [Recorded(report.id, "recorded")]
            await plane.gateway.call("POST", f"/rollouts/{rollout['id']}/abort")
            assert (await stream.next(Cancel)).deployment == update.deployment


async def test_without_a_hello_it_asks_for_one_and_what_is_no_cursor_is_refused(plane: Plane):
    async with plane.poll("bad") as device:
        with pytest.raises(Refused) as refused:
            async with device.events():
                pass
        assert (refused.value.status, refused.value.code) == (409, "hello_required")
        await device.begin()
        with pytest.raises(Refused) as refused:
            async with device.events("v2.nonsense"):
                pass
        assert refused.value.status == 400
        async with device.events(""):
            pass


async def test_the_newest_way_of_a_device_ends_the_one_before(plane: Plane):
    async with plane.poll("swaps") as device:
        await device.begin()
        async with device.events() as first:
            async with device.events() as second:
                assert await first.ended() == 1000
                polled = await device.poll()
                assert polled.status == 204
                assert await second.ended() == 1000
            async with device.events() as third:
                socket = SocketDevice(plane.gateway.url, fleet=FLEET, device="swaps")
                async with socket as connection:
                    await connection.begin()
                    assert await third.ended() == 1000
                    await plane.publish("swaps", "to the socket")
                    await connection.next(Alert)


async def test_signs_of_life_come_when_nothing_else_does(plane: Plane):
    async with plane.poll("beats") as device:
        await device.begin()
        async with device.events() as stream:
            waiting = asyncio.create_task(stream.receive())
            async with asyncio.timeout(20):
                while not stream.comments:
                    await asyncio.sleep(0.05)
            waiting.cancel()


async def test_one_who_does_not_read_holds_nobody_up(plane: Plane):
    async with plane.poll("slow") as slow, plane.poll("both") as other:
        await slow.begin(window=1000)
        await other.begin()
        async with slow.events() as stream:
            transport = stream._answer.connection
            assert transport is not None
            assert transport.transport is not None
            transport.transport.pause_reading()
            for _ in range(4):
                await asyncio.gather(*(plane.publish("slow", "x" * 60_000) for _ in range(8)))
            async with other.events() as live:
                await plane.publish("both", "still here")
                assert await texts(live, 1) == ["still here"]
            transport.transport.resume_reading()
            found = [await stream.next(Alert) for _ in range(4)]
            assert [alert.offset for alert in found] == [1, 2, 3, 4]


async def test_a_client_that_goes_is_noticed(plane: Plane):
    async with plane.poll("behind") as device:
        await device.begin()
        async with device.events():
            pass
        async with asyncio.timeout(20):
            while await connections(plane, "events"):
                await asyncio.sleep(0.05)


async def connections(plane: Plane, transport: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{plane.gateway.url}/metrics") as answer:
        text = await answer.text()
    name = f'fleetcast_device_connections{{transport="{transport}"}} '
    return float(next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name))
