"""Updates on the device: trust state, the procedure from notice to confirmation, download, slots.

Knows no connection: the client hands messages in and takes reports out. What is stored lives under the
keys ``trust/`` and ``update/`` of the state store. docs/reference/device-update.md has the rules.
"""

from device_sdk.update.agent import UpdateAgent
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.ports import (
    Boot,
    DeviceClock,
    Fetch,
    FetchBusyError,
    Fetched,
    FetchError,
    FetchRangeError,
    FetchUnreachableError,
    Image,
    Installer,
    RebootRequiredError,
    StateStore,
)
from device_sdk.update.procedure import Job, Step
from device_sdk.update.slots import DirectorySlotFiles, Factory, SlotFiles, SlotInstaller

__all__ = [
    "Boot",
    "DeviceClock",
    "DirectorySlotFiles",
    "Factory",
    "Fetch",
    "FetchBusyError",
    "FetchError",
    "FetchRangeError",
    "FetchUnreachableError",
    "Fetched",
    "Image",
    "Installer",
    "Job",
    "RebootRequiredError",
    "SlotFiles",
    "SlotInstaller",
    "StateStore",
    "Step",
    "UpdateAgent",
    "UpdateLimits",
]
