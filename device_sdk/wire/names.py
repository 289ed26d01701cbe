"""Names that travel: what a fleet, a device and a channel may be called.

A name is 1..128 characters of ``[A-Za-z0-9._~:-]``; a device id at most 127, so that ``~<device_id>``,
the name of the device's own channel, is a name too. Only that channel starts with ``~``.
"""

from __future__ import annotations

import re
from typing import NewType

from device_sdk.wire.errors import MalformedError

FleetName = NewType("FleetName", str)
DeviceId = NewType("DeviceId", str)
ChannelName = NewType("ChannelName", str)

NAME_LEN_MAX = 128
DEVICE_ID_LEN_MAX = 127
_NAME = re.compile(r"[A-Za-z0-9._~:-]{1,128}\Z")


def parse_fleet_name(text: object) -> FleetName:
    """Return ``text`` as a fleet's name.

    Raises:
        MalformedError: Not 1..128 characters of the alphabet, or it starts with ``~``.
    """
    return FleetName(_plain_name(text, "fleet"))


def parse_device_id(text: object) -> DeviceId:
    """Return ``text`` as a device id, unique within its fleet.

    Raises:
        MalformedError: Not 1..127 characters of the alphabet, or it starts with ``~``.
    """
    name = _plain_name(text, "device_id")
    if len(name) > DEVICE_ID_LEN_MAX:
        raise MalformedError(f"device_id is longer than {DEVICE_ID_LEN_MAX}")
    return DeviceId(name)


def parse_channel_name(text: object) -> ChannelName:
    """Return ``text`` as a channel's name; a device's own channel (``~…``) is one.

    Raises:
        MalformedError: Not 1..128 characters of the alphabet.
    """
    if type(text) is not str or not _NAME.match(text):
        raise MalformedError("channel is not 1..128 of [A-Za-z0-9._~:-]")
    return ChannelName(text)


def own_channel(device_id: DeviceId) -> ChannelName:
    """Return the name of the channel that only ``device_id`` has (PROTOCOL: requeued and direct alerts)."""
    return ChannelName(f"~{device_id}")


def _plain_name(text: object, what: str) -> str:
    if type(text) is not str or not _NAME.match(text) or text[0] == "~":
        raise MalformedError(f"{what} is not 1..128 of [A-Za-z0-9._~:-], or starts with ~")
    return text
