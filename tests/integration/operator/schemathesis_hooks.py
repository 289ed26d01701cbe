"""Loaded by schemathesis: how signed objects are written and read. They are bytes of formats of their own."""

from __future__ import annotations

from typing import Any

import schemathesis

SIGNED = ("application/cose", "application/suit-envelope+cose")


@schemathesis.serializer(*SIGNED)
def as_bytes(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.deserializer("application/octet-stream", *SIGNED)
def of_bytes(_context: Any, response: Any) -> str:
    return f"{len(response.content)} bytes"
