"""Where a page of a list ends, as text that only the gateway reads. It names its list: no other takes it."""

from __future__ import annotations

import base64
import binascii
from typing import Final, TypeVar

from device_sdk.wire import cbor
from device_sdk.wire.errors import WireError
from device_sdk.wire.limits import INTEGER_MAX
from gateway.edge.problem import RequestError

KeyT = TypeVar("KeyT", str, int, bytes)

CURSOR_LEN_MAX: Final = 512


def encode_cursor(operation: str, after: str | int | bytes) -> str:
    """Return the cursor of a page of ``operation`` that ends with the item ``after``."""
    return base64.urlsafe_b64encode(cbor.encode([operation, after])).decode().rstrip("=")


def decode_cursor(text: str, operation: str, key: type[KeyT]) -> KeyT:
    """Return what ``encode_cursor`` was given for ``operation``.

    Raises:
        RequestError: Not a cursor of this list.
    """
    try:
        if len(text) > CURSOR_LEN_MAX:
            raise ValueError("too long")
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        value = cbor.decode(raw, size_max=CURSOR_LEN_MAX, depth_max=1)
    except (WireError, ValueError, binascii.Error) as error:
        raise _not_a_cursor() from error
    if not isinstance(value, list) or len(value) != 2 or value[0] != operation or type(value[1]) is not key:
        raise _not_a_cursor()
    after: KeyT = value[1]
    if not _is_storable(after) or encode_cursor(operation, after) != text:  # one cursor, one text
        raise _not_a_cursor()
    return after


def _is_storable(after: str | int | bytes) -> bool:
    """Return whether a database takes it as an argument: none was made of anything else."""
    if isinstance(after, str):
        return "\0" not in after
    return not isinstance(after, int) or 0 <= after <= INTEGER_MAX


def _not_a_cursor() -> RequestError:
    return RequestError(
        400, "bad_cursor", "cursor is not one that this list gave; leave it out to begin at the start"
    )
