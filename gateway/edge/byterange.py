"""Conditions and ranges of a download (RFC 9110 §13, §14), for a representation whose ETag is strong. Pure.

Several ranges in one request are answered with the whole: a client may ask for many overlapping ones, and no
update agent needs it. There is no Last-Modified, so conditions by date are never met.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(r"bytes=\s*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))\s*\Z", re.IGNORECASE)
_ENTITY_TAG: Final = re.compile(r'(W/)?("[^"\x00-\x20\x7f]*")')


@dataclass(frozen=True, slots=True)
class Whole:
    """200: all of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """206: ``size_bytes`` from ``start``, at least one."""

    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NotModified:
    """304: the client has it."""


@dataclass(frozen=True, slots=True)
class PreconditionFailed:
    """412: it is not what If-Match names."""


@dataclass(frozen=True, slots=True)
class NotSatisfiable:
    """416: the range begins behind its end."""


Selection = Whole | Part | NotModified | PreconditionFailed | NotSatisfiable


def select(headers: Mapping[str, str], *, method: str, etag: str, size_bytes: int) -> Selection:
    """Return what to answer, by RFC 9110 §13.2.2's order.

    Args:
        headers: Of the request, looked up without regard to case.
        method: GET or HEAD; ranges are defined for GET alone (§14.2).
        etag: The representation's, quoted and strong.
        size_bytes: The representation's.
    """
    if_match = headers.get("If-Match")
    if if_match is not None and not _matches(if_match, etag, is_weak=False):
        return PreconditionFailed()
    if_none_match = headers.get("If-None-Match")
    if if_none_match is not None and _matches(if_none_match, etag, is_weak=True):
        return NotModified()
    range_ = headers.get("Range")
    if method != "GET" or range_ is None:
        return Whole()
    # "If the validator does not match, the server SHOULD ignore the Range" (§13.1.5); only a strong one can.
    if headers.get("If-Range", etag).strip() != etag:
        return Whole()
    return _part(range_, size_bytes)


def _part(range_: str, size_bytes: int) -> Selection:
    found = _RANGE.match(range_)
    if found is None:  # "A server MUST ignore a Range it does not understand" (§14.2)
        return Whole()
    first, last, suffix = found.groups()
    if suffix is not None:
        length = min(int(suffix), size_bytes)
        return Part(size_bytes - length, length) if length else NotSatisfiable()
    start = int(first)
    end = min(int(last), size_bytes - 1) if last else size_bytes - 1
    if last and int(last) < start:  # invalid, and so ignored (§14.1.1)
        return Whole()
    return Part(start, end - start + 1) if start < size_bytes else NotSatisfiable()


def _matches(condition: str, etag: str, *, is_weak: bool) -> bool:
    if condition.strip() == "*":
        return True
    return any(value == etag and (is_weak or not weak) for weak, value in _ENTITY_TAG.findall(condition))
