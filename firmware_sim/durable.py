"""What is on a device's flash, read as its next boot would: trust, alerts that wait, refusals to be sent.

The SDK's own parts say which keys there are (``device_sdk.store.state``); nothing is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from device_sdk.inbox import nack_key
from device_sdk.store import StateStore
from device_sdk.wire import cbor
from device_sdk.wire.cose import Sign1
from device_sdk.wire.limits import SIGNED_SIZE_MAX
from device_sdk.wire.messages import Nack

APP_KEY: Final = "sim/last/"
"""Where the virtual device's handler keeps, by channel, [epoch, offset, alerts handled]."""
_FLOOR: Final = "trust/floor/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """What a device never goes below.

    Attributes:
        root_version: Of the root document in force; 0: none.
        directive: Sequence of the newest directive that was taken; 0: none.
        time_ms: No earlier time is believed.
        releases: By component and class: sequence and manifest digest of what was committed last.
    """

    root_version: int = 0
    directive: int = 0
    time_ms: int = 0
    releases: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)


def read_floors(store: StateStore) -> Floors:
    """Return the floors that are stored."""
    root_version = 0
    match store.get("trust/root"):
        case [bytes(document), list()]:
            root_version = signed_uint(document, 2)
    directive = 0
    match store.get("trust/counter"):
        case [int(directive), *_]:
            pass
    time_ms = 0
    match store.get("trust/time"):
        case [int(time_ms), int()]:
            pass
    releases: dict[str, tuple[int, bytes]] = {}
    for key, value in store.items(_FLOOR):
        match value:
            case [int(sequence), bytes(digest)]:
                releases[key.removeprefix(_FLOOR)] = (sequence, digest)
    return Floors(root_version=root_version, directive=directive, time_ms=time_ms, releases=releases)


def read_inbox(store: StateStore) -> set[tuple[str, int, int]]:
    """Return channel, epoch and offset of the alerts that wait for the application."""
    waiting: set[tuple[str, int, int]] = set()
    for _, value in store.items("inbox/"):
        match value:
            case [str(channel), int(epoch), int(offset), *_]:
                waiting.add((channel, epoch, offset))
    return waiting


def read_handled(store: StateStore) -> dict[str, tuple[int, int, int]]:
    """Return, by channel, the epoch and offset that were handled last, and how many alerts were."""
    handled: dict[str, tuple[int, int, int]] = {}
    for key, value in store.items(f"app/{APP_KEY}"):
        match value:
            case [int(epoch), int(offset), int(count)]:
                handled[key.removeprefix(f"app/{APP_KEY}")] = (epoch, offset, count)
    return handled


def has_nack(store: StateStore, channel: str, epoch: int, offset: int) -> bool:
    """Return whether a refusal of that alert waits to be sent."""
    nack = Nack(channel, epoch, offset, "malformed")  # the key is the same for every code
    return store.get(nack_key(nack)) is not None


def signed_map(data: bytes) -> Mapping[object, object]:
    """Return the payload of a signed object that is not SUIT, whoever signed it; empty if there is none.

    Raises:
        WireError: Not such an object.
    """
    payload = Sign1.parse(data).payload
    decoded = cbor.decode(payload or b"", size_max=SIGNED_SIZE_MAX, depth_max=6)
    return decoded if isinstance(decoded, Mapping) else {}


def signed_uint(data: bytes, key: int) -> int:
    """Return the number under ``key`` of a signed object; 0 if there is none."""
    value = signed_map(data).get(key)
    return value if isinstance(value, int) else 0
