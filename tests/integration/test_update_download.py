"""The update agent over real HTTP and real files: honest, absent, busy, cutting and lying servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from aiohttp import web

from device_sdk.store import FileFlash, StateStore
from device_sdk.transport.download import HTTPFetch
from device_sdk.transport.http import Endpoint, open_session, parse_gateway_url
from device_sdk.update import RebootRequiredError, SlotInstaller, UpdateAgent, UpdateLimits
from device_sdk.wire.messages import Report
from tests.unit.device_sdk.update.world import (
    CLASS,
    DEVICE,
    FLEET,
    IMAGE,
    RELEASE,
    VENDOR,
    FakeClock,
    World,
    envelope,
    root,
)

BIG = bytes(range(256)) * 2048  # 512 KiB
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """An HTTP server of one image, and of what ``script`` has, request by request."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.script: list[Handler] = []
        self.ranges: list[str | None] = []
        self.tokens: list[str | None] = []
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Server]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.addresses
        self.url = "http://{}:{}".format(*runner.addresses[0][:2])
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.ranges.append(request.headers.get("Range"))
        self.tokens.append(request.headers.get("Authorization"))
        if self.script:
            return await self.script.pop(0)(request)
        return await self.honest(request)

    async def honest(self, request: web.Request) -> web.StreamResponse:
        start = request.http_range.start or 0
        if start >= len(self.image) and start:
            return web.Response(status=416)
        is_same = request.headers.get("If-Range") in (None, '"1"')
        headers = {"ETag": '"1"'}
        if not start or not is_same:
            return web.Response(body=self.image, headers=headers)
        headers["Content-Range"] = f"bytes {start}-{len(self.image) - 1}/{len(self.image)}"
        return web.Response(status=206, body=self.image[start:], headers=headers)

    def cutting(self, size: int) -> Handler:
        """Answer with everything, and break the connection after ``size`` bytes."""

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"ETag": '"1"'})
            response.content_length = len(self.image)
            await response.prepare(request)
            await response.write(self.image[:size])
            # Time for the bytes to be read before the reset overtakes them.
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()
            return response

        return handler


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(64 * 1024))


async def busy(request: web.Request) -> web.StreamResponse:
    return web.Response(status=503, headers={"Retry-After": "7"})


class Device:
    """An agent on real files, restarted as often as it asks for."""

    def __init__(self, directory: Path, server: Server, image: bytes) -> None:
        self.directory = directory
        self.server = server
        self.clock = FakeClock()
        self.update = World().update(manifest=envelope(image, uri="/images/1"))
        self.random = Random(1)
        self.limits = UpdateLimits(checkpoint_bytes=128 * 1024, attempts_max=4)

    @asynccontextmanager
    async def boot(self) -> AsyncIterator[UpdateAgent]:
        async def token() -> str:
            return "secret"

        endpoint = Endpoint(url=parse_gateway_url(self.server.url), fleet=FLEET, device_id=DEVICE)
        async with open_session() as session:
            with FileFlash(self.directory / "state") as flash:
                self.installer = SlotInstaller(self.directory / "slots")
                agent = UpdateAgent(
                    state=StateStore(flash),
                    fleet=FLEET,
                    device_id=DEVICE,
                    anchors=[RELEASE.public],
                    vendor=VENDOR,
                    device_class=CLASS,
                    installer=self.installer,
                    fetch=HTTPFetch(session, endpoint, token),
                    clock=self.clock,
                    send_report=lambda report: None,
                    limits=self.limits,
                    random=self.random.randbytes,
                )
                yield agent

    async def run(self) -> list[Report]:
        for boot in range(5):
            async with self.boot() as agent:
                if boot == 0:
                    assert agent.adopt_roots([root()]) is None
                    assert await agent.receive_update(self.update)
                try:
                    await agent.work()
                except RebootRequiredError:
                    continue
                return list(agent.pending_reports())
        raise AssertionError("it boots for ever")

    def running(self) -> bytes:
        return (self.directory / "slots" / self.installer.running_file("main")).read_bytes()


@pytest.mark.parametrize("image", [IMAGE, BIG], ids=len)
async def test_the_slot_s_bytes_are_the_artifact_s(tmp_path: Path, image: bytes) -> None:
    async with Server(image).serving() as server:
        device = Device(tmp_path, server, image)
        assert (await device.run())[-1].state == "committed"
        assert device.running() == image
        assert server.tokens == ["Bearer secret"]


async def test_a_broken_connection_is_gone_on_with_by_range(tmp_path: Path) -> None:
    async with Server(BIG).serving() as server:
        server.script = [server.cutting(300 * 1024)]
        device = Device(tmp_path, server, BIG)
        assert (await device.run())[-1].state == "committed"
        assert device.running() == BIG
        assert server.ranges[0] is None
        assert server.ranges[1] is not None
        assert server.ranges[1].startswith("bytes=")
        assert len(server.ranges) == 2


async def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path) -> None:
    async with Server(IMAGE).serving() as server:
        server.script = [busy] * 6
        device = Device(tmp_path, server, IMAGE)
        assert (await device.run())[-1].state == "committed"
        assert device.clock.slept == [7.0] * 6


async def test_endless_data_ends_at_the_signed_size(tmp_path: Path) -> None:
    async with Server(BIG).serving() as server:
        server.script = [endless]
        device = Device(tmp_path, server, BIG)
        report = (await device.run())[-1]
        assert (report.state, report.code) == ("failed", "too_large")
        assert (tmp_path / "slots" / "main.b").stat().st_size == 0


async def test_wrong_bytes_are_refused(tmp_path: Path) -> None:
    async with Server(bytes(len(BIG))).serving() as server:
        device = Device(tmp_path, server, BIG)
        report = (await device.run())[-1]
        assert (report.state, report.code) == ("failed", "image_digest_mismatch")
        assert len(server.ranges) == 1


async def test_an_image_that_became_shorter_is_fetched_anew_and_refused(tmp_path: Path) -> None:
    async with Server(BIG).serving() as server:

        async def gone(request: web.Request) -> web.StreamResponse:
            return web.Response(status=416)

        server.script = [server.cutting(300 * 1024), gone]
        device = Device(tmp_path, server, BIG)
        assert (await device.run())[-1].state == "committed"
        assert server.ranges[-1] is None


async def test_a_server_that_is_not_there_is_no_failed_attempt(tmp_path: Path) -> None:
    async with Server(IMAGE).serving() as server:
        device = Device(tmp_path, server, IMAGE)
    # Nobody listens on its port now.
    device.limits = UpdateLimits(attempts_max=1)
    report = (await device.run())[-1]
    assert (report.state, report.code) == ("failed", "install_by_passed")
    assert len(device.clock.slept) > 100
