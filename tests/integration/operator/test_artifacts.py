"""Images over real connections: both ways, in ranges, within bounds, for operators and for devices."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from aiohttp import ClientPayloadError, ClientSession, web
from aiohttp.typedefs import Handler

from gateway.clock import FakeClock
from gateway.edge.artifacts import ArtifactTransfers, TransferLimits, device_routes
from gateway.edge.problem import problem_middleware
from gateway.errors import CredentialRefusedError, NotFoundError, UnavailableError
from gateway.release import ArtifactLimits, ArtifactStore
from gateway.telemetry import Metrics

IMAGE = b"".join(number.to_bytes(4, "big") for number in range(200_000))  # several pieces, and a bit
DIGEST = hashlib.sha256(IMAGE).hexdigest()
EMPTY = hashlib.sha256(b"").hexdigest()
FLEETS = {"token-acme": 1, "token-other": 2}


class Rows:
    """Which fleet has which image, in memory."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, bytes], int] = {}

    async def put_artifact(self, fleet_key: int, digest: bytes, size_bytes: int, **_: Any) -> bool:
        is_new = (fleet_key, digest) not in self.found
        self.found[fleet_key, digest] = size_bytes
        return is_new

    async def artifact(self, fleet_key: int, digest: bytes) -> int:
        if (fleet_key, digest) not in self.found:
            raise NotFoundError("no such artifact")
        return self.found[fleet_key, digest]


async def fleet_of(request: web.Request) -> int:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if token not in FLEETS:
        raise CredentialRefusedError("no")
    return FLEETS[token]


class GatedStore(ArtifactStore):
    """A store whose ``open`` waits while ``gate`` is closed; ``opening`` says that it was called."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ArtifactLimits(artifact_size_bytes_max=32 << 20))
        self.gate, self.opening = threading.Event(), threading.Event()
        self.gate.set()

    def open(self, digest: str) -> BinaryIO:
        self.opening.set()
        assert self.gate.wait(30)
        return super().open(digest)


class Node:
    """Transfers on a server of their own; PUT is at the devices' path, for want of an operator.

    ``ended`` has how each request ended, before it became an answer.
    """

    def __init__(self, directory: Path, clock: FakeClock, limits: TransferLimits) -> None:
        self.metrics = Metrics()
        self.rows = Rows()
        self.store = GatedStore(directory)
        self.tmp = directory / "tmp"
        self.transfers = ArtifactTransfers(
            self.store, self.rows, clock=clock, metrics=self.metrics, limits=limits
        )
        self.app = web.Application(
            middlewares=[problem_middleware(metrics=self.metrics, clock=clock), self._watch]
        )
        self.app.add_routes(
            [
                *device_routes(self.transfers, fleet_of),
                web.put("/v1/device/artifacts/{sha256}", self._put),
            ]
        )
        self.ended: asyncio.Queue[BaseException | None] = asyncio.Queue()
        self.port = 0

    async def _put(self, request: web.Request) -> web.Response:
        fleet_key, digest = await fleet_of(request), request.match_info["sha256"]
        _, is_new = await self.transfers.receive(request, fleet_key, digest)
        return web.Response(status=201 if is_new else 200)

    @web.middleware
    async def _watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except BaseException as error:
            self.ended.put_nowait(error)
            raise
        self.ended.put_nowait(None)
        return response

    def hold(self, digest: str = DIGEST, image: bytes = IMAGE, fleet_key: int = 1) -> None:
        """Have the image without an upload."""
        with self.store.writer() as writer:
            writer.write(image)
            writer.commit(digest=digest)
        self.rows.found[fleet_key, bytes.fromhex(digest)] = len(image)

    def ask(self, method: str, digest: str = DIGEST, *, token: str = "token-acme", **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {token}"} | options.pop("headers", {})
        url = f"http://127.0.0.1:{self.port}/v1/device/artifacts/{digest}"
        return self.http.request(method, url, headers=headers, **options)

    async def open(self, *, handler_cancellation: bool) -> None:
        self.runner = web.AppRunner(
            self.app, handler_cancellation=handler_cancellation, access_log=None, shutdown_timeout=1
        )
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.port = self.runner.addresses[0][1]
        self.http = ClientSession()

    async def close(self) -> None:
        await self.http.close()
        await self.runner.cleanup()

    async def put(self, image: bytes, digest: str, *, token: str = "token-acme") -> int:
        async with self.ask("PUT", digest, data=pieces(image), token=token) as response:
            return response.status


async def pieces(image: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(image), 100_000):
        yield image[start : start + 100_000]


Start = Callable[..., Awaitable[Node]]


@pytest.fixture
async def start(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Start]:
    nodes: list[Node] = []

    async def start_node(*, handler_cancellation: bool = False, **limits: Any) -> Node:
        node = Node(tmp_path / "artifacts", clock, TransferLimits(**limits))
        await node.open(handler_cancellation=handler_cancellation)
        nodes.append(node)
        return node

    yield start_node
    for node in nodes:
        await node.close()


class TestUpload:
    async def test_an_image_comes_back_byte_for_byte(self, start: Start) -> None:
        node = await start()
        assert await node.put(IMAGE, DIGEST) == 201
        assert await node.put(IMAGE, DIGEST) == 200
        async with node.ask("GET") as response:
            assert response.status == 200
            assert await response.read() == IMAGE
        assert b"fleetcast_artifact_bytes_total 800000.0" in node.metrics.render()
        assert list(node.tmp.iterdir()) == []

    async def test_an_empty_image_is_one_too(self, start: Start) -> None:
        node = await start()
        assert await node.put(b"", EMPTY) == 201
        async with node.ask("GET", EMPTY) as response:
            assert (response.status, await response.read()) == (200, b"")

    async def test_other_bytes_than_the_digest_s_leave_nothing(self, start: Start) -> None:
        node = await start()
        async with node.ask("PUT", DIGEST, data=pieces(IMAGE[:-1])) as response:
            assert (response.status, (await response.json())["code"]) == (400, "digest_mismatch")
        assert node.rows.found == {}
        assert [path for path in node.tmp.parent.rglob("*") if path.is_file()] == []

    async def test_a_name_that_is_no_digest_is_refused_before_a_byte(self, start: Start) -> None:
        node = await start()
        for name in ("x", DIGEST.upper(), "..%2f..%2fetc%2fpasswd"):
            assert await node.put(b"", name) == 404
        assert list(node.tmp.iterdir()) == []

    async def test_a_longer_one_is_cut_off_at_the_bound(self, start: Start) -> None:
        node = await start()
        image = bytes((32 << 20) + 1)
        digest = hashlib.sha256(image).hexdigest()
        assert await node.put(image, digest) == 413  # chunked: nobody knows before it is over
        assert list(node.tmp.iterdir()) == []
        assert node.rows.found == {}

    @pytest.mark.parametrize("is_cancelled", [False, True])
    async def test_a_client_that_goes_away_leaves_nothing(self, start: Start, is_cancelled: bool) -> None:
        node = await start(handler_cancellation=is_cancelled)
        _, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(
            f"PUT /v1/device/artifacts/{DIGEST} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-acme\r\n"
            f"Content-Length: {len(IMAGE)}\r\n\r\n".encode()
            + IMAGE[:300_000]
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(10):
            error = await node.ended.get()
        assert isinstance(error, asyncio.CancelledError if is_cancelled else ConnectionError)
        assert list(node.tmp.iterdir()) == []
        assert node.rows.found == {}
        assert await node.put(IMAGE, DIGEST) == 201

    async def test_a_client_that_sends_nothing_is_not_waited_for(self, start: Start) -> None:
        node = await start(idle_timeout_s=0.05)
        _, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(
            f"PUT /v1/device/artifacts/{DIGEST} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-acme\r\n"
            f"Content-Length: {len(IMAGE)}\r\n\r\n".encode()
        )
        async with asyncio.timeout(10):
            error = await node.ended.get()
        assert getattr(error, "code", None) == "body_timeout"
        assert list(node.tmp.iterdir()) == []
        writer.close()
        await writer.wait_closed()

    async def test_uploads_are_bounded(self, start: Start) -> None:
        node = await start(uploads_max=1)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield IMAGE[:300_000]
            begun.set()
            await go_on.wait()
            yield IMAGE[300_000:]

        async def upload() -> int:
            async with node.ask("PUT", data=slowly()) as response:
                return int(response.status)

        first = asyncio.create_task(upload())
        await begun.wait()
        while not list(node.tmp.iterdir()):  # it holds the slot once its file is there
            await asyncio.sleep(0)
        async with node.ask("PUT", EMPTY) as refused:
            assert (refused.status, (await refused.json())["code"]) == (503, "artifact_uploads_busy")
            assert int(refused.headers["Retry-After"]) > 0
        go_on.set()
        assert await first == 201
        assert await node.put(b"", EMPTY) == 201

    async def test_a_disk_that_takes_nothing_is_503(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = await start()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("gateway.release.store.os.fsync", full)
        async with node.ask("PUT", data=pieces(IMAGE)) as response:
            assert (response.status, (await response.json())["code"]) == (503, "artifact_store_unavailable")
        assert list(node.tmp.iterdir()) == []
        assert node.rows.found == {}


class TestDownload:
    async def test_ranges(self, start: Start) -> None:
        node = await start()
        node.hold()
        for range_, first, end in (
            ("bytes=0-0", 0, 1),
            ("bytes=300000-", 300_000, 800_000),
            ("bytes=262143-262144", 262_143, 262_145),
            ("bytes=-10", 799_990, 800_000),
            ("bytes=100-900000", 100, 800_000),
        ):
            async with node.ask("GET", headers={"Range": range_}) as response:
                assert response.status == 206
                assert response.headers["Content-Range"] == f"bytes {first}-{end - 1}/800000"
                assert response.headers["Content-Length"] == str(end - first)
                assert await response.read() == IMAGE[first:end]

    async def test_the_whole_has_a_strong_etag_and_says_that_ranges_are_taken(self, start: Start) -> None:
        node = await start()
        node.hold()
        async with node.ask("GET") as response:
            assert response.headers["ETag"] == f'"{DIGEST}"'
            assert response.headers["Accept-Ranges"] == "bytes"
            assert response.headers["Content-Type"] == "application/octet-stream"
            assert response.headers["Content-Length"] == "800000"
            assert "Content-Encoding" not in response.headers
        async with node.ask("GET", headers={"Range": "bytes=0-1,4-5"}) as response:
            assert (response.status, len(await response.read())) == (200, 800_000)

    async def test_beyond_the_end_is_416_with_the_length(self, start: Start) -> None:
        node = await start()
        node.hold()
        async with node.ask("GET", headers={"Range": "bytes=800000-"}) as response:
            assert response.status == 416
            assert response.headers["Content-Range"] == "bytes */800000"
            assert (await response.json())["code"] == "range_not_satisfiable"

    async def test_head_tells_the_length_and_sends_nothing(self, start: Start) -> None:
        node = await start(downloads_max=1)
        node.hold()
        async with node.ask("HEAD", headers={"Range": "bytes=0-1"}) as response:
            assert (response.status, response.headers["Content-Length"]) == (200, "800000")
            assert await response.read() == b""

    async def test_conditions(self, start: Start) -> None:
        node = await start()
        node.hold()
        etag = f'"{DIGEST}"'
        for headers, status in (
            ({"If-None-Match": etag}, 304),
            ({"If-None-Match": '"x"'}, 200),
            ({"If-Match": '"x"'}, 412),
            ({"If-Match": etag, "Range": "bytes=0-1"}, 206),
            ({"If-Range": etag, "Range": "bytes=0-1"}, 206),
            ({"If-Range": '"x"', "Range": "bytes=0-1"}, 200),
        ):
            async with node.ask("GET", headers=headers) as response:
                assert response.status == status, headers
                assert response.headers.get("ETag", etag) == etag

    async def test_a_download_that_broke_goes_on_where_it_ended(self, start: Start) -> None:
        node = await start()
        node.hold()
        async with node.ask("GET") as response:
            head = await response.content.readexactly(123_456)
        headers = {"Range": f"bytes={len(head)}-", "If-Range": f'"{DIGEST}"'}
        async with node.ask("GET", headers=headers) as response:
            assert response.status == 206
            assert head + await response.read() == IMAGE

    async def test_what_another_fleet_has_is_not_there(self, start: Start) -> None:
        node = await start()
        node.hold()
        for method in ("GET", "HEAD"):
            async with node.ask(method, token="token-other") as response:
                assert response.status == 404
        assert await node.put(IMAGE, DIGEST, token="token-other") == 201
        async with node.ask("GET", token="token-other") as response:
            assert response.status == 200

    async def test_a_stranger_is_401_and_told_no_more(self, start: Start) -> None:
        node = await start()
        node.hold()
        async with node.ask("GET", token="x") as response:
            document = await response.json()
            assert (response.status, document["code"]) == (401, "credential_refused")
            assert "detail" not in document

    async def test_a_row_without_its_file_is_not_there(self, start: Start) -> None:
        node = await start()
        node.hold()
        node.store.delete(DIGEST)
        async with node.ask("GET") as response:
            assert response.status == 404


class TestBounds:
    async def test_downloads_are_bounded_and_a_slot_comes_back(self, start: Start) -> None:
        node = await start(downloads_max=1, retry_after_s=7)
        node.hold()
        node.store.gate.clear()
        first = asyncio.create_task(node.ask("GET"))
        await asyncio.to_thread(node.store.opening.wait)
        async with node.ask("GET") as refused:
            assert (refused.status, (await refused.json())["code"]) == (503, "artifacts_busy")
            assert refused.headers["Retry-After"] == "7"
        node.store.gate.set()
        async with await first as response:
            assert await response.read() == IMAGE
        assert [type(await node.ended.get()) for _ in range(2)] == [UnavailableError, type(None)]
        async with node.ask("GET") as response:
            assert await response.read() == IMAGE

    async def test_a_client_that_reads_nothing_is_cut_off_and_its_slot_is_free(self, start: Start) -> None:
        node = await start(idle_timeout_s=0.05, downloads_max=1)
        image = bytes(24 << 20)  # more than the kernel holds for a connection
        digest = hashlib.sha256(image).hexdigest()
        node.hold(digest, image)
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.transport.pause_reading()
        writer.write(
            f"GET /v1/device/artifacts/{digest} HTTP/1.1\r\nHost: x\r\n"
            "Authorization: Bearer token-acme\r\n\r\n".encode()
        )
        async with asyncio.timeout(30):
            assert await node.ended.get() is None
        writer.transport.resume_reading()
        with contextlib.suppress(ConnectionError):
            assert len(await reader.read(-1)) < len(image)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        node.hold()
        async with node.ask("GET", headers={"Range": "bytes=0-0"}) as response:
            assert response.status == 206

    async def test_a_file_that_became_shorter_is_cut_off(self, start: Start) -> None:
        node = await start()
        node.hold()
        node.store.gate.clear()
        asked = asyncio.create_task(node.ask("GET"))
        await asyncio.to_thread(node.store.opening.wait)
        os.truncate(node.store.path(DIGEST), 400_000)
        node.store.gate.set()
        async with await asked as response:
            with pytest.raises(ClientPayloadError):
                await response.read()
