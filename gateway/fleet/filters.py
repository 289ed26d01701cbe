"""Which part of a long list is asked for, and in which order. None: whatever it is.

Times are ms UTC: ``…_since`` is included, ``…_before`` is not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFilter:
    """Which devices.

    Attributes:
        selector: Text of a selector (docs/reference/selectors.md), known to be one.
        seen_since, seen_before: By the last connection; a device that never connected was seen before all.
        is_connected: With ``connected``, the keys of the devices that are.
    """

    selector: str | None = None
    tag: str | None = None
    is_enabled: bool | None = None
    seen_since: int | None = None
    seen_before: int | None = None
    is_connected: bool | None = None
    connected: Collection[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOrder:
    """By device id, or by when they were last seen (those never seen first) and then by key."""

    by_last_seen: bool = False
    is_descending: bool = False


DevicePlace = str | tuple[int, int]
"""Where a page of devices ends: the last one's id; or, by last seen, its (time or -1, key)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertFilter:
    """Which alerts of a channel."""

    accepted_since: int | None = None
    accepted_before: int | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Which dead letters of a fleet."""

    device_id: str | None = None
    channel: str | None = None
    reason: str | None = None
    is_requeued: bool | None = None
    since: int | None = None
    before: int | None = None
