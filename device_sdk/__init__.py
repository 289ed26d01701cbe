"""What a device imports to receive alerts and signed updates from a Fleetcast gateway.

Names are loaded when they are asked for: ``device_sdk.wire`` alone brings no HTTP client along.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_sdk.client import ClientLimits, ClientStatus, DeviceClient
    from device_sdk.clock import SystemClock
    from device_sdk.inbox import DeadLetter, Inbox, ReceivedAlert
    from device_sdk.outbox import UplinksFullError
    from device_sdk.store import FileFlash, MemoryFlash, StateStore, StoreError
    from device_sdk.update import Installer, RebootRequiredError, SlotInstaller
    from device_sdk.wire.keys import PublicKey

__all__ = [
    "ClientLimits",
    "ClientStatus",
    "DeadLetter",
    "DeviceClient",
    "FileFlash",
    "Inbox",
    "Installer",
    "MemoryFlash",
    "PublicKey",
    "RebootRequiredError",
    "ReceivedAlert",
    "SlotInstaller",
    "StateStore",
    "StoreError",
    "SystemClock",
    "UplinksFullError",
]

_MODULES = {
    "ClientLimits": "device_sdk.client",
    "ClientStatus": "device_sdk.client",
    "DeadLetter": "device_sdk.inbox",
    "DeviceClient": "device_sdk.client",
    "FileFlash": "device_sdk.store",
    "Inbox": "device_sdk.inbox",
    "Installer": "device_sdk.update",
    "MemoryFlash": "device_sdk.store",
    "PublicKey": "device_sdk.wire.keys",
    "RebootRequiredError": "device_sdk.update",
    "ReceivedAlert": "device_sdk.inbox",
    "SlotInstaller": "device_sdk.update",
    "StateStore": "device_sdk.store",
    "StoreError": "device_sdk.store",
    "SystemClock": "device_sdk.clock",
    "UplinksFullError": "device_sdk.outbox",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
