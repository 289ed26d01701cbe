"""RFC 6455 §4.2: judge the opening request and answer it. Pure; HTTP itself is the caller's.

No extension is ever accepted, so ``Sec-WebSocket-Extensions`` is not read. ``Origin`` is not judged either:
who may connect is decided by a bearer token, which a browser does not attach by itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.errors import ProtocolViolationError

VERSION: Final = "13"

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # §1.3
_KEY_SIZE: Final = 16
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")  # RFC 9110 §5.6.2
_UPGRADE_REQUIRED: Final = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


class HandshakeError(ProtocolViolationError):
    """The opening request is refused.

    Attributes:
        http_status: 400, 405 or 426.
        headers: What the answer must carry besides its body.
    """

    code = "websocket_handshake"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        http_status: int = 400,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(detail, code=code)
        self.http_status = http_status
        self.headers = headers


class Headers(Protocol):
    """The request's headers, names case-insensitive; repeated ones as they came (multidict's ``getall``)."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Handshake:
    """An opening request that holds.

    Attributes:
        accept: The value of ``Sec-WebSocket-Accept``.
        subprotocols: What the client offers, as it prefers them.
    """

    accept: str
    subprotocols: tuple[str, ...]

    def choose(self, supported: Collection[str]) -> str:
        """Return the subprotocol that the client prefers among those ``supported``.

        Raises:
            HandshakeError: It offers none of them (400, ``websocket_subprotocol``).
        """
        for offered in self.subprotocols:
            if offered in supported:
                return offered
        raise HandshakeError(
            f"offer one of the subprotocols {', '.join(sorted(supported))}", code="websocket_subprotocol"
        )

    def response(self, subprotocol: str | None) -> bytes:
        """Return the whole answer of §4.2.2: status line, headers, empty line."""
        assert subprotocol is None or subprotocol in self.subprotocols, "only what was offered (§4.2.2)"
        chosen = "" if subprotocol is None else f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
        return (
            "HTTP/1.1 101 Switching Protocols\r\n"
            "Upgrade: websocket\r\n"
            "Connection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {self.accept}\r\n"
            f"{chosen}\r\n"
        ).encode()


def parse_handshake(*, method: str, http_version: tuple[int, int], headers: Headers) -> Handshake:
    """Return the client's opening handshake (§4.2.1), checked in the order of that section.

    Raises:
        HandshakeError: It is not one, or not of version 13.
    """
    # 1. "An HTTP/1.1 or higher GET request"
    if method != "GET":
        raise HandshakeError("the opening request is a GET", http_status=405, headers=(("Allow", "GET"),))
    if http_version < (1, 1):
        raise HandshakeError("the opening request needs HTTP/1.1")
    # 3. and 4. The RFC allows other protocols beside it, but the HTTP parser in front of us hands the
    # connection over for exactly this one; with others it would read the first frames as a request.
    upgrade = _elements(headers, "Upgrade")
    if [element.lower() for element in upgrade] != ["websocket"]:
        raise HandshakeError(
            "Upgrade is not exactly websocket",
            http_status=426 if not upgrade else 400,
            headers=_UPGRADE_REQUIRED,
        )
    if "upgrade" not in (element.lower() for element in _elements(headers, "Connection")):
        raise HandshakeError("Connection does not name upgrade", http_status=426, headers=_UPGRADE_REQUIRED)
    # 5. "a base64-encoded value that, when decoded, is 16 bytes in length"
    key = _only(headers, "Sec-WebSocket-Key")
    try:
        size = len(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if size != _KEY_SIZE:
        raise HandshakeError("Sec-WebSocket-Key is not 16 bytes in base64")
    # 6. §4.4: the answer to another version names ours.
    if _only(headers, "Sec-WebSocket-Version") != VERSION:
        raise HandshakeError(
            "Sec-WebSocket-Version is not 13",
            code="websocket_version",
            http_status=426,
            headers=(*_UPGRADE_REQUIRED, ("Sec-WebSocket-Version", VERSION)),
        )
    # 8. "The elements that comprise this value MUST be non-empty strings … and MUST all be unique strings"
    subprotocols = tuple(_elements(headers, "Sec-WebSocket-Protocol"))
    if len(set(subprotocols)) != len(subprotocols) or not all(map(_TOKEN.match, subprotocols)):
        raise HandshakeError("Sec-WebSocket-Protocol is not a list of unique tokens")
    return Handshake(accept_key(key), subprotocols)


def accept_key(key: str) -> str:
    """Return the ``Sec-WebSocket-Accept`` that proves we read ``key`` (§4.2.2 5.4)."""
    # SHA-1 is what the RFC says; it is a checksum here, not a protection.
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def _elements(headers: Headers, name: str) -> list[str]:
    """Return a list header's elements over all its lines; empty ones do not count (RFC 9110 §5.6.1)."""
    elements = [element.strip(" \t") for line in headers.getall(name, ()) for element in line.split(",")]
    return [element for element in elements if element]


def _only(headers: Headers, name: str) -> str:
    """Return the value of a header that "MUST NOT appear more than once"; "" if there is none."""
    values = headers.getall(name, ())
    if len(values) > 1:
        raise HandshakeError(f"{name} is there {len(values)} times")
    return values[0].strip(" \t") if values else ""
