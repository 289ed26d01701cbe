"""Identifiers the gateway makes: UUIDv7 (RFC 9562 §5.7), random epochs and buckets.

Ids are 16 raw bytes inside the gateway and on the CBOR wire, the usual hyphenated text in the operator API.
"""

from __future__ import annotations

import secrets
import uuid

from device_sdk.wire.errors import MalformedError


def uuid7(now_ms: int) -> bytes:
    """Return a new UUIDv7: 48 bits of ``now_ms``, the rest random."""
    assert 0 <= now_ms < 1 << 48, "milliseconds since 1970 fit 48 bits until the year 10889"
    random = int.from_bytes(secrets.token_bytes(10), "big")
    value = now_ms << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64 | 0b10 << 62 | random & ((1 << 62) - 1)
    return value.to_bytes(16, "big")


def format_id(raw: bytes) -> str:
    """Return 16 bytes as the hyphenated text of a UUID."""
    return str(uuid.UUID(bytes=raw))


def parse_id(text: str) -> bytes:
    """Return the 16 bytes of a UUID's text.

    Raises:
        MalformedError: Not a UUID.
    """
    try:
        return uuid.UUID(text).bytes
    except ValueError as error:
        raise MalformedError("not a UUID") from error


def random_uint32() -> int:
    """Return 32 random bits: a channel's epoch, a device's bucket, a rollout's shift."""
    return secrets.randbits(32)
