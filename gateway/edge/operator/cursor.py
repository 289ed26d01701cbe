"""Where a page of a list ends, as text that only the gateway reads. It names its list: no other takes it."""

from __future__ import annotations

import base64
import binascii
from typing import Final, TypeVar, get_origin

from device_sdk.wire import cbor
from device_sdk.wire.errors import WireError
from device_sdk.wire.limits import INTEGER_MAX
from gateway.edge.problem import RequestError

Key = str | int | bytes | tuple[int, int]
KeyT = TypeVar("KeyT", str, int, bytes, tuple[int, int])

CURSOR_LEN_MAX: Final = 512


def encode_cursor(name: str, after: Key) -> str:
    """Return the cursor of a page of the list ``name`` that ends with the item ``after``."""
    value = list(after) if isinstance(after, tuple) else after
    return base64.urlsafe_b64encode(cbor.encode([name, value])).decode().rstrip("=")


def decode_cursor(text: str, name: str, kind: type[KeyT]) -> KeyT:
    """Return what ``encode_cursor`` was given for ``name``.

    Raises:
        RequestError: Not a cursor of this list.
    """
    try:
        if len(text) > CURSOR_LEN_MAX:
            raise ValueError("too long")
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        value = cbor.decode(raw, size_max=CURSOR_LEN_MAX, depth_max=2)
    except (WireError, ValueError, binascii.Error) as error:
        raise _not_a_cursor() from error
    if not isinstance(value, list) or len(value) != 2 or value[0] != name:
        raise _not_a_cursor()
    after = tuple(value[1]) if isinstance(value[1], list) else value[1]
    if (
        type(after) is not (get_origin(kind) or kind)
        or not _is_storable(after)
        or encode_cursor(name, after) != text
    ):
        raise _not_a_cursor()  # one cursor, one text
    return after


def _is_storable(after: Key) -> bool:
    """Return whether a database takes it as an argument: none was made of anything else."""
    match after:
        case str():
            return "\0" not in after
        case bytes():
            return True
        case tuple():
            parts: tuple[object, ...] = after  # as it came
            return len(parts) == 2 and all(_is_place(part) for part in parts)
        case int():
            return 0 <= after <= INTEGER_MAX


def _is_place(part: object) -> bool:
    return type(part) is int and -1 <= part <= INTEGER_MAX


def _not_a_cursor() -> RequestError:
    return RequestError(
        400, "bad_cursor", "cursor is not one that this list gave; leave it out to begin at the start"
    )
