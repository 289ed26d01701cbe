"""Devices that come back to a running gateway: by ticket, at a rate, after a stop, and not once revoked."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from device_sdk import DeviceClient, MemoryFlash, StateStore
from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.messages import Ack, Alert, Goaway, Position, Ticket, Welcome
from tests.harness.devices import PollDevice, Refused, SocketDevice
from tests.harness.gateway import GatewayProcess
from tests.harness.nursery import Nursery
from tests.integration.origins.process import Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLEET = "acme"
WAIT_S = 20
IN_TIME_S = 2.0
LATE_S = 5.0  # what a machine that does ten other things may add


class World:
    """A gateway, its origin, and the devices that know both."""

    def __init__(self, gateway: GatewayProcess, origin: Origin) -> None:
        self.gateway = gateway
        self.origin = origin
        self.known: dict[str, dict[str, Any]] = {}

    async def know(self, *devices: str, channel: str = "ops", **fields: Any) -> None:
        """Have the origin know ``devices``; a token is its device's name."""
        for device in devices:
            channels = [{"name": channel, "kind": "alert"}]
            self.known[device] = {"device_id": device, "fleet": FLEET, "channels": channels, **fields}
        await self.tell()

    async def tell(self) -> None:
        await self.origin.control(tokens={name: {"json": verdict} for name, verdict in self.known.items()})

    async def asked(self, device: str) -> int:
        """Return how often the origin was asked about ``device``."""
        seen = (await self.origin.seen())["requests"]
        return sum(["Authorization", f"Bearer {device}"] in request["headers"] for request in seen)

    def socket(self, device: str, ticket: bytes | None = None, **options: Any) -> SocketDevice:
        return SocketDevice(self.gateway.url, fleet=FLEET, device=device, ticket=ticket, **options)

    def poll(self, device: str, ticket: bytes | None = None, **options: Any) -> PollDevice:
        return PollDevice(self.gateway.url, fleet=FLEET, device=device, ticket=ticket, **options)

    async def ticket(self, device: str, **options: Any) -> bytes:
        """Connect, and return the ticket of the welcome."""
        async with self.socket(device, **options) as connection:
            ticket = (await connection.begin()).ticket
        assert ticket is not None
        return ticket

    async def publish(self, *texts: str, channel: str = "ops") -> list[dict[str, Any]]:
        path = f"/channels/{channel}/alerts"
        return [await self.gateway.call("POST", path, json={"text": text}) for text in texts]

    async def revoke(self, **what: str) -> None:
        await api(self.gateway, "POST", "/revocations", json={"fleet": FLEET, **what})

    async def restart(self) -> None:
        await self.gateway.stop()
        await self.gateway.start()

    async def metric(self, name: str, **labels: str) -> float:
        async with aiohttp.ClientSession() as session, session.get(f"{self.gateway.url}/metrics") as answer:
            text = await answer.text()
        label = "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else ""
        match = re.search(rf"^fleetcast_{re.escape(name + label)} (\S+)$", text, re.M)
        assert match, name
        return float(match[1])


async def api(gateway: GatewayProcess, method: str, path: str, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {gateway.token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, f"{gateway.url}/api/v1{path}", **options) as answer,
    ):
        assert answer.ok, await answer.text()
        return await answer.json()


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> AsyncIterator[World]:
    settings = {
        "device": {"wheel_s": 0.05},
        "identity": {
            "positive_cache_s": 0.05,
            "negative_cache_s": 0.05,
            "circuit_open_s": 0.05,
            "circuit_open_max_s": 0.1,
        },
    }
    with Origin("forward_auth") as origin:
        async with GatewayProcess(
            tmp_path_factory.mktemp("return"),
            fleet=FLEET,
            forward_auth_url=f"{origin.url}/auth",
            settings=settings,
            nursery=nursery,
        ) as gateway:
            yield World(gateway, origin)


class TestTickets:
    @pytest.mark.parametrize("encoding", ["cbor", "json"])
    async def test_who_shows_one_is_admitted_while_the_origin_is_away(self, world: World, encoding: str):
        device = f"back-{encoding}"
        await world.know(device)
        ticket = await world.ticket(device, encoding=encoding)
        await world.restart()
        world.origin.stop()
        try:
            async with world.socket(device, ticket, encoding=encoding) as connection:
                welcome = await connection.begin()
                assert set(welcome.heads) == {"ops", f"~{device}"}
                assert welcome.ticket is None  # the one it has is as good
                await world.publish("while it is away")
                assert (await connection.next(Alert)).channel == "ops"
            with pytest.raises(Refused) as stranger:
                async with world.socket(device, encoding=encoding):
                    pass
            assert stranger.value.status == 503
        finally:
            world.origin.start()
            await world.tell()

    async def test_it_spares_the_origin_the_question(self, world: World):
        await world.know("spared")
        ticket = await world.ticket("spared")
        before = await world.asked("spared")
        await asyncio.sleep(0.1)  # beyond the cache
        async with world.socket("spared", ticket) as connection:
            await connection.begin()
        assert await world.asked("spared") == before

    async def test_it_is_not_passed_on_to_the_origin(self, world: World):
        await world.know("secretive")
        ticket = await world.ticket("secretive")
        await asyncio.sleep(0.1)
        async with world.socket("secretive", ticket[:-1]) as connection:  # void: the origin is asked
            await connection.begin()
        seen = (await world.origin.seen())["requests"]
        assert not [name for request in seen for name, _ in request["headers"] if name == "Fleetcast-Ticket"]

    async def test_a_stolen_one_is_worth_nothing(self, world: World):
        await world.know("owner", "thief")
        ticket = await world.ticket("owner")
        for token, device in (("thief", "owner"), ("nobody", "owner")):
            with pytest.raises(Refused) as refused:
                async with world.socket(device, ticket, token=token):
                    pass
            assert refused.value.status in (401, 403)
        async with world.socket("thief", ticket) as connection:
            assert "~thief" in (await connection.begin()).heads

    async def test_what_the_origin_said_since_is_not_undone_by_it(self, world: World):
        await world.know("grown")
        old = await world.ticket("grown")
        await world.know("grown", channel="new")
        await asyncio.sleep(0.1)
        async with world.socket("grown") as connection:  # judged anew
            assert "new" in (await connection.begin()).heads
        [published] = await world.publish("for the new channel", channel="new")
        async with world.socket("grown", old) as connection:
            assert set((await connection.begin()).heads) == {"new", "~grown"}
            assert (await connection.next(Alert)).offset == published["offset"]

    async def test_one_of_a_deleted_device_is_as_none(self, world: World):
        await world.know("reborn")
        ticket = await world.ticket("reborn")
        before = await world.gateway.call("GET", "/devices/reborn")
        await world.gateway.call("DELETE", "/devices/reborn")
        async with world.socket("reborn", ticket) as connection:
            assert (await connection.begin()).ticket is not None
        after = await world.gateway.call("GET", "/devices/reborn")
        assert after["enrolment_id"] != before["enrolment_id"]
        await world.gateway.call("DELETE", "/devices/reborn")
        del world.known["reborn"]
        await world.tell()
        await asyncio.sleep(0.1)
        async with world.socket("reborn", ticket) as connection:
            with pytest.raises(Exception, match="4500"):
                await connection.begin()

    async def test_a_disabled_device_is_refused_with_one(self, world: World):
        await world.know("off")
        ticket = await world.ticket("off")
        await world.gateway.call(
            "PATCH", "/devices/off", json={"is_enabled": False}, headers=await etag(world, "/devices/off")
        )
        async with world.socket("off", ticket) as connection:
            with pytest.raises(Exception, match="4503"):
                await connection.begin()

    async def test_a_polling_device_shows_it_with_every_request(self, world: World):
        await world.know("poller")
        ticket = await world.ticket("poller")
        world.origin.stop()
        try:
            async with world.poll("poller", ticket) as device:
                [welcome] = await device.begin()
                assert isinstance(welcome, Welcome)
                assert welcome.ticket is None
                await world.publish("polled by ticket")
                assert (await device.poll()).of(Alert)
                await asyncio.sleep(0.1)
                await device.poll()
        finally:
            world.origin.start()
            await world.tell()

    async def test_a_polling_device_whose_ticket_is_over_is_given_a_new_one(self, world: World):
        await world.know("renewed")
        async with world.poll("renewed", b"\x01no ticket of ours, or no more") as device:
            [welcome] = await device.begin()
            assert isinstance(welcome, Welcome)
            assert welcome.ticket is not None
            found: list[Ticket] = []
            cursor = None
            while not found:  # once the origin was asked again
                await asyncio.sleep(0.06)
                polled = await device.poll(cursor)
                found, cursor = polled.of(Ticket), polled.cursor
        async with world.socket("renewed", found[0].ticket) as connection:
            before = await world.asked("renewed")
            await connection.begin()
        assert await world.asked("renewed") == before


async def etag(world: World, path: str) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {world.gateway.token}"}
    url = f"{world.gateway.url}/api/v1/fleets/{FLEET}{path}"
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as answer:
        return {"If-Match": answer.headers["ETag"]}


class TestRevocation:
    async def test_a_token_taken_back_is_out_in_time_and_for_good(self, world: World):
        devices = ("rt-socket", "rt-poll", "rt-events", "rt-quiet", "rt-other")
        await world.know(*devices)
        ticket = await world.ticket("rt-socket")
        async with AsyncExitStack() as stack:
            socket = await stack.enter_async_context(world.socket("rt-socket"))
            await socket.begin()
            quiet = await stack.enter_async_context(world.socket("rt-quiet"))  # says no hello
            other = await stack.enter_async_context(world.socket("rt-other"))
            await other.begin()
            poller = await stack.enter_async_context(world.poll("rt-poll"))
            await poller.begin()
            poll = asyncio.create_task(poller.poll(wait_s=30))
            streamer = await stack.enter_async_context(world.poll("rt-events"))
            await streamer.begin()
            events = await stack.enter_async_context(streamer.events())
            await until(lambda: equals(world.metric("device_connections", transport="events"), 1))
            began = time.monotonic()
            for token in ("rt-socket", "rt-poll", "rt-events", "rt-quiet"):
                await world.revoke(token_sha256=sha256(token), reason="lost")
            assert await socket.ended() == CloseCode.CREDENTIAL_REVOKED
            assert await quiet.ended() == CloseCode.CREDENTIAL_REVOKED
            assert (await events.next(Goaway)).code == CloseCode.CREDENTIAL_REVOKED
            with pytest.raises(Refused) as refused:
                await poll
            assert refused.value.status == 409  # and the hello that it asks for is refused
            assert time.monotonic() - began < IN_TIME_S + LATE_S
            for attempt in (world.socket("rt-socket"), world.socket("rt-socket", ticket)):
                with pytest.raises(Refused) as refused:
                    async with attempt:
                        pass
                assert (refused.value.status, refused.value.code) == (401, "credential_revoked")
            with pytest.raises(Refused) as refused:
                await poller.begin()
            assert refused.value.status == 401
            await world.publish("to the others")
            await other.next(Alert)
        await world.restart()
        with pytest.raises(Refused) as refused:
            async with world.socket("rt-socket", ticket):
                pass
        assert refused.value.code == "credential_revoked"

    async def test_a_device_taken_back_is_closed_and_asked_about_again(self, world: World):
        await world.know("rd")
        ticket = await world.ticket("rd")
        async with world.socket("rd", ticket) as socket:
            await socket.begin()
            before = await world.asked("rd")
            await world.revoke(device_id="rd")
            assert await socket.ended() == CloseCode.CREDENTIAL_REVOKED
        await until(lambda: is_asked_about(world, ticket, "rd", before))
        del world.known["rd"]  # its origin took it back as well
        await world.tell()
        await asyncio.sleep(0.1)
        with pytest.raises(Refused) as refused:
            async with world.socket("rd", ticket):
                pass
        assert refused.value.status == 401

    async def test_another_fleets_token_is_not_ones_to_take_back(self, world: World):
        await api(world.gateway, "POST", "/revocations", json={"fleet": FLEET, "token_sha256": "00" * 32})
        await world.know("untouched")
        await world.ticket("untouched")


async def is_asked_about(world: World, ticket: bytes, device: str, before: int) -> bool:
    """Whether who shows ``ticket`` is admitted by the origin's word; until the feed was read, by nobody's."""
    try:
        async with world.socket(device, ticket) as connection:
            await connection.begin()
    except Refused as refused:
        if refused.status == 503:
            return False
        raise
    return await world.asked(device) > before


async def equals(value: Awaitable[float], expected: float) -> bool:
    return await value == expected


class TestStop:
    async def test_each_device_is_told_when_to_come_back_and_the_node_is_not_ready(self, world: World):
        names = [f"stop-{number}" for number in range(4)]
        await world.know(*names, "stop-poll", "stop-events", channel="stop")
        async with AsyncExitStack() as stack:
            sockets = []
            for name in names:
                sockets.append(await stack.enter_async_context(world.socket(name)))
                await sockets[-1].begin()
            # One does not answer the close frame, so the node waits for it, and says that it is not ready.
            stuck = sockets.pop()
            poller = await stack.enter_async_context(world.poll("stop-poll"))
            await poller.begin()
            poll = asyncio.create_task(poller.poll(wait_s=30))
            streamer = await stack.enter_async_context(world.poll("stop-events"))
            await streamer.begin()
            events = await stack.enter_async_context(streamer.events())
            [published] = await world.publish("the last", channel="stop")
            for socket in sockets:
                await socket.next(Alert)
                await socket.send(Ack(positions={"stop": Position(published["epoch"], published["offset"])}))
            await events.next(Alert)
            assert stuck._socket is not None
            stuck._socket.transport.pause_reading()

            status = asyncio.create_task(world.gateway.stop())
            for socket in sockets:
                goaway = await socket.next(Goaway)
                assert (goaway.code, goaway.retry_after_s in (0, 1)) == (4000, True)
                assert await socket.ended() == CloseCode.SHUTDOWN
            assert [type(message) for message in (await poll).messages][-1] in (Alert, Goaway)
            assert (await events.next(Goaway)).code == 4000
            assert await events.ended() == 1000
            ready, refused = await readiness(world), await refusal(world, names[0])
            assert (ready, refused.code) == (503, "draining")
            assert refused.retry_after_s is not None
            assert await status == 0
        await world.gateway.start()
        for name in names[:-1]:
            page = await world.gateway.call("GET", f"/devices/{name}/subscriptions")
            offsets = {item["channel"]: item["offset"] for item in page["items"]}
            assert offsets["stop"] == published["offset"]


async def readiness(world: World) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{world.gateway.url}/readyz") as answer:
        return answer.status


async def refusal(world: World, device: str) -> Refused:
    with pytest.raises(Refused) as refused:
        async with world.socket(device):
            pass
    return refused.value


class TestTheSDK:
    @pytest.mark.parametrize("transport", ["websocket", "longpoll"])
    async def test_comes_back_by_its_ticket_while_the_origin_is_away(self, world: World, transport: str):
        device = f"sdk-{transport}"
        await world.know(device)
        flash = MemoryFlash()
        async with sdk(world, device, flash, transport) as client:
            await client.wait_connected()
        await world.restart()
        world.origin.stop()
        try:
            async with sdk(world, device, MemoryFlash(flash.files), transport) as client:
                async with asyncio.timeout(WAIT_S):
                    await client.wait_connected()
        finally:
            world.origin.start()
            await world.tell()

    async def test_drops_it_once_it_is_revoked(self, world: World):
        await world.know("sdk-revoked")
        flash = MemoryFlash()
        async with sdk(world, "sdk-revoked", flash, "websocket") as client:
            await client.wait_connected()
            assert kept_ticket(flash)
            await world.revoke(token_sha256=sha256("sdk-revoked"))
            async with asyncio.timeout(WAIT_S):
                while client.status.is_connected or "4501" not in str(client.status.last_ending):
                    await asyncio.sleep(0.02)
        assert not kept_ticket(flash)


@asynccontextmanager
async def sdk(world: World, device: str, flash: MemoryFlash, transport: str) -> AsyncIterator[DeviceClient]:
    async with DeviceClient(
        url=world.gateway.url,
        fleet=FLEET,
        device_id=device,
        token=device,
        release_keys=[PrivateKey.generate().public],
        flash=flash,
        transport=transport,  # type: ignore[arg-type]
    ) as client:
        task = asyncio.create_task(client.run())
        try:
            yield client
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def kept_ticket(flash: MemoryFlash) -> bool:
    return StateStore(MemoryFlash(flash.files)).get("client/ticket") is not None


async def test_nodes_of_one_database_share_keys_and_revocations(
    tmp_path: Path, empty_postgresql_url: str, nursery: Nursery
) -> None:
    with Origin("forward_auth") as origin:
        async with AsyncExitStack() as stack:
            worlds = []
            for name in ("here", "there"):
                if worlds:
                    (tmp_path / name).mkdir()
                    shutil.copy(tmp_path / "here/operator.token", tmp_path / name)
                gateway = GatewayProcess(
                    tmp_path / name,
                    fleet=FLEET,
                    forward_auth_url=f"{origin.url}/auth",
                    database_url=empty_postgresql_url,
                    nursery=nursery,
                )
                worlds.append(World(await stack.enter_async_context(gateway), origin))
            here, there = worlds
            for world in worlds:
                await world.know("d-token", "d-device")
                world.known.update(here.known)
            tickets = {device: await here.ticket(device) for device in ("d-token", "d-device")}
            asked = len((await origin.seen())["requests"])
            sockets = {
                device: await stack.enter_async_context(there.socket(device, ticket))
                for device, ticket in tickets.items()
            }
            for socket in sockets.values():
                await socket.begin()
            assert len((await origin.seen())["requests"]) == asked
            began = time.monotonic()
            await here.revoke(token_sha256=sha256("d-token"))
            await here.revoke(device_id="d-device")
            for socket in sockets.values():
                assert await socket.ended() == CloseCode.CREDENTIAL_REVOKED
            assert time.monotonic() - began < IN_TIME_S + LATE_S
            with pytest.raises(Refused) as refused:
                async with there.socket("d-token", tickets["d-token"]):
                    pass
            assert refused.value.code == "credential_revoked"
            async with there.socket("d-device", tickets["d-device"]) as socket:
                await socket.begin()
            assert len((await origin.seen())["requests"]) == asked + 1


async def test_a_storm_is_taken_at_the_rate_and_ticket_holders_first(
    tmp_path: Path, nursery: Nursery
) -> None:
    names = [f"d{number}" for number in range(40)]
    with Origin("forward_auth") as origin:
        async with GatewayProcess(
            tmp_path,
            fleet=FLEET,
            forward_auth_url=f"{origin.url}/auth",
            settings={"device": {"accept_rate_per_s": 5, "accept_retry_max_s": 30.0}},
            nursery=nursery,
        ) as gateway:
            world = World(gateway, origin)
            await world.know(*names)
            ticket = await world.ticket("d0")
            found = await asyncio.gather(*(_tried(world, name) for name in names[1:]))
            refused = [one for one in found if isinstance(one, Refused)]
            assert len(refused) >= 30
            assert {(one.status, one.code) for one in refused} == {(503, "accept_rate")}
            waits = sorted(one.retry_after_s or 0 for one in refused)
            assert waits[0] == 1
            assert 6 <= waits[-1] <= 9  # 30 and more at five a second, each at a time of its own
            assert len(set(waits)) >= 6
            asked = len((await origin.seen())["requests"])
            async with world.socket("d0", ticket) as connection:
                await connection.begin()
            assert len((await origin.seen())["requests"]) == asked
            assert asked <= 12  # nothing was asked for who was refused
            assert await world.metric("device_not_accepted_total", reason="stranger") == len(refused)


async def _tried(world: World, name: str) -> Refused | None:
    try:
        async with world.socket(name) as connection:
            await connection.begin()
    except Refused as refused:
        return refused
    return None
