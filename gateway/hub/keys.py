"""What a channel is called in the hub: typed, so that two kinds never share one (PROTOCOL §5.2).

A key is made by a constructor from what an authenticated principal has, never parsed from a peer's text.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from device_sdk.wire.names import ChannelName


class HubKey(NamedTuple):
    """A channel of one fleet and one kind. ``fleet`` is the fleet's integer key."""

    fleet: int
    kind: Literal["device", "grip"]
    name: str


def device_channel(fleet_key: int, name: ChannelName) -> HubKey:
    """Return the key of a channel that only the fleet log writes."""
    return HubKey(fleet_key, "device", name)
