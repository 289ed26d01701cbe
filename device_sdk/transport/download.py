"""Fetching images over HTTP, from the gateway or from where the operator keeps them: ``update.Fetch``.

Caps, the minimum rate, digests and when to try again are the update agent's.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import aiohttp
from yarl import URL

from device_sdk.transport.http import Endpoint, retry_after_s
from device_sdk.update.ports import (
    FetchBusyError,
    Fetched,
    FetchError,
    FetchRangeError,
    FetchUnreachableError,
)

CHUNK_BYTES: Final = 64 * 1024
_REDIRECTS_MAX: Final = 5
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16}|\*)\Z")
_STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]{0,256}"\Z')


class HTTPFetch:
    """``Fetch`` over HTTP, resumed by Range (RFC 9110 §14). The token goes to the gateway and nowhere else.

    Args:
        session: Stays the caller's.
        token: Gives the bearer token for requests to the gateway.
    """

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, token: Callable[[], Awaitable[str]]
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._token = token

    def fetch(self, uri: str, *, offset: int, etag: str | None) -> AbstractAsyncContextManager[Fetched]:
        return self._fetch(uri, offset, etag)

    @asynccontextmanager
    async def _fetch(self, uri: str, offset: int, etag: str | None) -> AsyncIterator[Fetched]:
        url = resolve(self._endpoint.url, uri)
        headers = {}
        if url.origin() == self._endpoint.url.origin():
            headers = self._endpoint.headers(await self._token())
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if etag is not None:
                headers["If-Range"] = etag
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=self._endpoint.connect_timeout_s,
            sock_read=self._endpoint.connect_timeout_s + self._endpoint.io_timeout_s,
        )
        try:
            # aiohttp drops Authorization when a redirect leads to another origin.
            async with self._session.get(
                url, headers=headers, timeout=timeout, max_redirects=_REDIRECTS_MAX
            ) as response:
                yield _fetched(response, offset)
        except aiohttp.ClientConnectorError as error:
            raise FetchUnreachableError(f"{type(error).__name__}") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise FetchError(f"{type(error).__name__}") from error


def resolve(gateway: URL, uri: str) -> URL:
    """Return the absolute URL of a manifest's ``uri``; a path, with or without a slash, is the gateway's.

    Raises:
        FetchError: Not a URL of http or https, or one with credentials in it.
    """
    try:
        reference = URL(uri)
        if reference.absolute:  # with a host; ``//host/path`` is, too
            url = gateway.join(reference)
        else:
            base = gateway.with_path(gateway.path.rstrip("/") + "/")
            url = base.join(URL(uri.lstrip("/")))
    except ValueError as error:
        raise FetchError("not a URI") from error
    if url.scheme not in ("http", "https") or not url.host or url.user or url.password:
        raise FetchError("not a URI of http or https")
    return url


def _fetched(response: aiohttp.ClientResponse, offset: int) -> Fetched:
    """Return the answer as it may be used.

    Raises:
        FetchBusyError, FetchError: It may not.
    """
    if response.status in (429, 503):
        raise FetchBusyError(retry_after_s(response.headers.get("Retry-After")))
    if response.status == 416:
        raise FetchRangeError("status 416")
    if response.status not in (200, 206):
        raise FetchError(f"status {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise FetchError("the image is compressed, and nobody asked for that")
    size = response.content_length
    start = 0
    if response.status == 206:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            raise FetchError("another range than was asked for")
        start = offset
        size = None if match[3] == "*" else int(match[3])
    etag = response.headers.get("ETag", "")
    return Fetched(
        offset=start,
        size=size,
        etag=etag if _STRONG_ETAG.match(etag) else None,
        chunks=_chunks(response),
    )


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            yield chunk
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise FetchError(f"{type(error).__name__}") from error
