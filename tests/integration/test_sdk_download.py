"""Fetching images: resumed by Range, honest about what came, and the token for the gateway only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from device_sdk.transport.download import HTTPFetch
from device_sdk.transport.http import Endpoint, open_session
from device_sdk.update.ports import FetchBusyError, FetchError
from tests.integration.sdk_gateway import FakeGateway
from tests.unit.device_sdk.update import world

IMAGE = bytes(range(256)) * 1_000
PATH = "/v1/device/artifacts/image"


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as running:
        running.artifacts["image"] = IMAGE
        yield running


@pytest.fixture
async def fetch(gateway: FakeGateway) -> AsyncIterator[HTTPFetch]:
    async def token() -> str:
        return "good"

    endpoint = Endpoint(
        url=URL(gateway.url),
        fleet=world.FLEET,
        device_id=world.DEVICE,
        connect_timeout_s=5,
        io_timeout_s=0.2,
    )
    async with open_session() as session:
        yield HTTPFetch(session, endpoint, token)


async def read(fetch: HTTPFetch, uri: str, *, offset: int = 0, etag: str | None = None):
    async with fetch.fetch(uri, offset=offset, etag=etag) as fetched:
        return fetched, b"".join([chunk async for chunk in fetched.chunks])


class TestRange:
    async def test_a_whole_image_with_its_size_and_validator(self, fetch):
        fetched, data = await read(fetch, PATH)
        assert (fetched.offset, fetched.size, fetched.etag) == (0, len(IMAGE), '"1"')
        assert data == IMAGE

    async def test_the_rest_of_an_image(self, fetch):
        fetched, data = await read(fetch, PATH, offset=1_000, etag='"1"')
        assert (fetched.offset, fetched.size) == (1_000, len(IMAGE))
        assert data == IMAGE[1_000:]

    async def test_another_entity_comes_from_its_beginning(self, fetch):
        fetched, data = await read(fetch, PATH, offset=1_000, etag='"old"')
        assert (fetched.offset, data) == (0, IMAGE)

    async def test_a_range_that_is_not_there_is_an_error(self, fetch):
        with pytest.raises(FetchError, match="416"):
            await read(fetch, PATH, offset=len(IMAGE))


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "headers", "seconds"), [(503, {"Retry-After": "7"}, 7.0), (429, {}, None)]
    )
    async def test_a_busy_server_is_no_failure(self, gateway, fetch, status, headers, seconds):
        gateway.answers[PATH] = [(status, headers)]
        with pytest.raises(FetchBusyError) as caught:
            await read(fetch, PATH)
        assert caught.value.retry_after_s == seconds

    @pytest.mark.parametrize("status", [401, 404, 500, 204])
    async def test_any_other_status_is_one(self, gateway, fetch, status):
        gateway.answers[PATH] = [(status, {})]
        with pytest.raises(FetchError) as caught:
            await read(fetch, PATH)
        assert not isinstance(caught.value, FetchBusyError)

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Content-Range": "bytes 0-9/10"},
            {"Content-Range": "bytes */10"},
            {"Content-Range": "bytes 5-9/10", "Content-Encoding": "gzip"},
        ],
    )
    async def test_a_range_that_was_not_asked_for_is_refused(self, gateway, fetch, headers):
        gateway.answers[PATH] = [(206, headers)]
        with pytest.raises(FetchError):
            await read(fetch, PATH, offset=5)

    async def test_a_gateway_that_is_not_there(self, gateway, fetch):
        await gateway.__aexit__()
        with pytest.raises(FetchError):
            await read(fetch, PATH)


class Elsewhere:
    """Another server: it notes the headers it gets, and stops in the middle of ``/stalled``."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []

    async def image(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        return web.Response(body=IMAGE, headers={"ETag": 'W/"weak"'})

    async def cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(IMAGE))})
        await response.prepare(request)
        await response.write(IMAGE[:1_000])
        assert request.transport is not None
        request.transport.abort()
        return response


@pytest.fixture
async def elsewhere() -> AsyncIterator[tuple[Elsewhere, str]]:
    server = Elsewhere()
    app = web.Application()
    app.router.add_get("/image", server.image)
    app.router.add_get("/cut", server.cut)
    async with TestServer(app) as running:
        yield server, str(running.make_url("")).rstrip("/")


class TestElsewhere:
    async def test_another_server_never_sees_the_token(self, fetch, elsewhere):
        server, url = elsewhere
        fetched, data = await read(fetch, f"{url}/image")
        assert data == IMAGE
        assert fetched.etag is None, "a weak validator cannot resume"
        assert not {"Authorization", "Fleetcast-Device"} & server.headers[0].keys()

    async def test_nor_does_one_that_the_gateway_redirects_to(self, gateway, fetch, elsewhere):
        server, url = elsewhere
        gateway.answers[PATH] = [(302, {"Location": f"{url}/image"})]
        assert (await read(fetch, PATH))[1] == IMAGE
        assert "Authorization" not in server.headers[0]

    async def test_a_connection_cut_in_the_middle_is_a_failure_that_can_be_resumed(self, fetch, elsewhere):
        _, url = elsewhere
        got: list[bytes] = []

        async def download() -> None:
            async with fetch.fetch(f"{url}/cut", offset=0, etag=None) as fetched:
                async for chunk in fetched.chunks:
                    got.append(chunk)

        with pytest.raises(FetchError):
            await download()
        assert b"".join(got) == IMAGE[:1_000]
