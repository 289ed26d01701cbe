"""CBOR as the contract allows it: deterministic (RFC 8949 §4.2.1), plain types only, bounded.

Every other module of ``wire`` reads and writes CBOR through these functions. What the library would let
by (trailing bytes, long forms, repeated keys, tags that build objects or share references) is refused
here. Nothing here knows a message.

A value is None, bool, int of 64 bits, float, bytes, str, list or dict; keys are int, str, bytes, or, as
SUIT's text member has them, a tuple of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

import cbor2

from device_sdk.wire.errors import LimitError, MalformedError

DEPTH_MAX: Final = 16

# Not one of these is ever built: a regular expression, a shared reference or a string reference (1 MiB of
# them can stand for 10 GiB) costs before any check of ours could see it.
_BUILT_IN_TAGS: Final = (
    *range(6),
    *(25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799),
)
_INT_MIN: Final = -(2**64)
_INT_MAX: Final = 2**64 - 1
_HEAD_SIZES: Final = ((24, 1), (25, 2), (26, 4), (27, 8))
_EXACT_SCALARS: Final = frozenset({type(None), bool, int, bytes, str})
_SCALARS: Final = frozenset({type(None), bool, int, float, bytes, str})


def decode(data: bytes, *, size_max: int, depth_max: int = DEPTH_MAX) -> object:
    """Return the one item that ``data`` encodes; lists and dicts are fresh and mutable.

    Args:
        data: CBOR, deterministic (RFC 8949 §4.2.1).
        size_max: Bytes; more is refused before anything is read.
        depth_max: Containers inside each other.

    Raises:
        LimitError: More than ``size_max`` bytes.
        MalformedError: Anything else: not CBOR, nested too deeply, a repeated key, an indefinite length,
            a tag, an undefined or other simple value, trailing bytes, or another encoding of this value
            than the deterministic one.
    """
    if len(data) > size_max:
        raise LimitError("cbor", len(data), size_max)
    try:
        value: object = cbor2.loads(
            data,
            tag_hook=_refuse_tag,
            semantic_decoders=_SEMANTIC_DECODERS,
            max_depth=depth_max,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        )
        # One comparison refuses long forms, unsorted keys and trailing bytes. Where the keys are seen to
        # be in order the library need not sort them: 4 instead of 8 us for an ack.
        is_deterministic = (cbor2.dumps(value) if _is_in_order(value) else encode(value)) == data
    except (cbor2.CBORDecodeError, TypeError, ValueError, RecursionError) as error:
        raise MalformedError("not CBOR of the contract") from error
    if not is_deterministic:
        raise MalformedError("not deterministic CBOR")
    return value


def encode(value: object) -> bytes:
    """Return ``value`` as deterministic CBOR (RFC 8949 §4.2.1).

    Raises:
        TypeError: Something in ``value`` is not one of the plain types.
        ValueError: An integer of more than 64 bits.
    """
    if _is_order_shared(value):
        return cbor2.dumps(value, canonical=True)
    return _encode_sorted(value)


def strip_tag(data: bytes, tag: int) -> bytes:
    """Return ``data`` without the leading ``tag`` if it has that one (RFC 8949 §3.4).

    COSE_Sign1 (18) and the SUIT envelope (107) may travel with their tag or bare; ``decode`` refuses tags.
    """
    head = _head(6, tag)
    return data[len(head) :] if data.startswith(head) else data


def byte_string(content: bytes) -> bytes:
    """Return ``content`` with the head of a byte string: what SUIT hashes (``bstr .cbor``)."""
    return _head(2, len(content)) + content


def _refuse_tag(*_: object) -> NoReturn:
    raise ValueError("tags are not part of the contract")


_SEMANTIC_DECODERS: Final = dict.fromkeys(_BUILT_IN_TAGS, _refuse_tag)


def _is_in_order(value: object) -> bool:
    """Return whether ``value`` is surely plain and its keys surely sorted, as those of our messages are.

    False means that it takes ``encode`` to know. Floats do: the library shortens them only there.
    """
    kind = type(value)
    if kind in _EXACT_SCALARS:
        return True
    if kind is list:
        return all(map(_is_in_order, value))  # type: ignore[call-overload]
    if kind is not dict:
        return False
    number = -1
    text = ""
    for key, item in value.items():  # type: ignore[attr-defined]
        if type(key) is int and number < key < 24 and not text:
            number = key
        elif type(key) is str and key.isascii() and (len(key), key) > (len(text), text):
            text = key
        else:
            return False
        if not _is_in_order(item):
            return False
    return True


def _is_order_shared(value: object) -> bool:
    """Return whether the library's order of keys (shorter first) is the bytewise one throughout.

    It is while the keys of each map are all of -24..23, or all text; others take the slow way.
    Checks the types on its way, since the library would encode a date or a pattern.
    """
    kind = type(value)
    if kind in _SCALARS:
        if kind is int and not _INT_MIN <= value <= _INT_MAX:  # type: ignore[operator]
            raise ValueError("an integer of more than 64 bits")
        return True
    if isinstance(value, list | tuple):
        is_shared = True
        for item in value:  # no short cut: every type is checked
            is_shared = _is_order_shared(item) and is_shared
        return is_shared
    if not isinstance(value, Mapping):
        raise TypeError(f"{kind.__name__} is not part of the contract")
    is_small = is_text = True
    for key in value:
        key_kind = type(key)
        is_small = is_small and key_kind is int and -24 <= key < 24
        is_text = is_text and key_kind is str
    if not (is_small or is_text):
        for key in value:
            if type(key) not in (int, str, bytes, tuple):
                raise TypeError(f"{type(key).__name__} is not a key")
            _is_order_shared(key)
    is_shared = is_small or is_text
    for item in value.values():
        is_shared = _is_order_shared(item) and is_shared
    return is_shared


def _encode_sorted(value: object) -> bytes:
    if isinstance(value, Mapping):
        pairs = sorted((_encode_sorted(key), _encode_sorted(item)) for key, item in value.items())
        return b"".join([_head(5, len(pairs)), *(part for pair in pairs for part in pair)])
    if isinstance(value, list | tuple):
        return b"".join([_head(4, len(value)), *map(_encode_sorted, value)])
    return cbor2.dumps(value, canonical=True)


def _head(major: int, argument: int) -> bytes:
    """Return the shortest head of a data item (RFC 8949 §3)."""
    if argument < 24:
        return bytes([major << 5 | argument])
    info, size = next(pair for pair in _HEAD_SIZES if argument < 1 << 8 * pair[1])
    return bytes([major << 5 | info]) + argument.to_bytes(size, "big")
