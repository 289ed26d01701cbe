"""Updates on the device: trust state, the procedure from notice to confirmation, download, slots.

Knows no connection: the client hands messages in and takes reports out. What is stored lives under the
keys ``trust/`` and ``update/`` of the state store. docs/reference/device-update.md has the rules.
"""

from device_sdk.update.limits import UpdateLimits
from device_sdk.update.ports import (
    Boot,
    DeviceClock,
    Fetch,
    FetchBusyError,
    Fetched,
    FetchError,
    Image,
    Installer,
    RebootRequiredError,
    StateStore,
)

__all__ = [
    "Boot",
    "DeviceClock",
    "Fetch",
    "FetchBusyError",
    "FetchError",
    "Fetched",
    "Image",
    "Installer",
    "RebootRequiredError",
    "StateStore",
    "UpdateLimits",
]
