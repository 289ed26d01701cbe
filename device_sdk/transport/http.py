"""What the transports share of HTTP: the session, who connects, bounded bodies, Retry-After."""

from __future__ import annotations

import email.utils
import ssl as ssl_module
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import aiohttp
from yarl import URL

from device_sdk.transport.link import LinkClosedError
from device_sdk.wire.limits import BATCH_SIZE_MAX
from device_sdk.wire.messages import (
    Message,
    decode_batch_cbor,
    decode_batch_json,
    encode_base64url,
    encode_batch_cbor,
    encode_batch_json,
)

Encoding = Literal["cbor", "json"]
USER_AGENT: Final = "fleetcast-device-sdk/1"
CONTENT_TYPES: Final[dict[Encoding, str]] = {"cbor": "application/cbor", "json": "application/json"}
TICKET_HEADER: Final = "Fleetcast-Ticket"
RETRY_AFTER_MAX_S: Final = 7 * 86_400.0
_BODY_CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a gateway is, and who this device says it is.

    Attributes:
        url: Of the gateway; its paths begin below this one's.
        encoding: Of messages.
        connect_timeout_s: Until a connection is open and its handshake over.
        io_timeout_s: Longest silence while a request or an answer is under way.
    """

    url: URL
    fleet: str
    device_id: str
    encoding: Encoding = "cbor"
    connect_timeout_s: float = 30.0
    io_timeout_s: float = 30.0

    def path(self, path: str) -> URL:
        """Return the URL of ``path``, which has no leading slash."""
        return self.url.with_path(f"{self.url.path.rstrip('/')}/{path}")

    def headers(self, token: str, ticket: bytes | None = None) -> dict[str, str]:
        """Return the headers that say who connects."""
        headers = {
            "Authorization": f"Bearer {token}",
            "Fleetcast-Fleet": self.fleet,
            "Fleetcast-Device": self.device_id,
        }
        if ticket is not None:
            headers[TICKET_HEADER] = encode_base64url(ticket)
        return headers


def parse_gateway_url(url: str) -> URL:
    """Return the URL of a gateway.

    Raises:
        ValueError: Not an absolute URL of http, https, ws or wss, or one with a query or credentials.
    """
    parsed = URL(url)
    scheme = {"ws": "http", "wss": "https"}.get(parsed.scheme, parsed.scheme)
    if scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"a gateway's URL begins with https:// or http://, not as {url!r}")
    if parsed.query_string or parsed.fragment or parsed.user or parsed.password:
        raise ValueError("a gateway's URL has no query, fragment or credentials")
    return parsed.with_scheme(scheme) if scheme != parsed.scheme else parsed


def open_session(*, ssl: ssl_module.SSLContext | None = None) -> aiohttp.ClientSession:
    """Return a session for one device: no cookies, nothing decompressed, few connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=8, ssl=ssl if ssl is not None else True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        auto_decompress=False,
    )


def retry_after_s(
    value: str | None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110 §10.2.3); None if there is none, or nonsense."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(RETRY_AFTER_MAX_S, float(value[:12]))
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return min(RETRY_AFTER_MAX_S, max(0.0, (at - now()).total_seconds()))


def is_unreachable(error: Exception) -> bool:
    """Return whether no connection came about at all: no other transport would do better."""
    return isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


def encode_batch(messages: Sequence[Message], encoding: Encoding) -> bytes:
    """Return the body that carries ``messages``."""
    return encode_batch_cbor(messages) if encoding == "cbor" else encode_batch_json(messages).encode()


def decode_batch(body: bytes, encoding: Encoding) -> list[Message]:
    """Return the messages of a body; WireError if it is not one."""
    return decode_batch_cbor(body) if encoding == "cbor" else decode_batch_json(body)


async def read_body(response: aiohttp.ClientResponse, size_max: int = BATCH_SIZE_MAX) -> bytes:
    """Return the body of ``response``.

    Raises:
        LinkClosedError: More than ``size_max`` bytes, or encoded.
    """
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise LinkClosedError("the answer is compressed, and nobody asked for that")
    parts: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_chunked(_BODY_CHUNK_BYTES):
        size += len(chunk)
        if size > size_max:
            raise LinkClosedError("the answer is too large")
        parts.append(chunk)
    return b"".join(parts)
