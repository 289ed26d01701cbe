"""Durable state on flash that survives a loss of power at any byte."""

from device_sdk.store.errors import (
    CorruptStateError,
    FlashError,
    FlashInUseError,
    PowerLossError,
    StateFullError,
    StoreError,
)
from device_sdk.store.flash import FileFlash, Flash
from device_sdk.store.memory import MemoryFlash
from device_sdk.store.state import StateStore, StoreLimits

__all__ = [
    "CorruptStateError",
    "FileFlash",
    "Flash",
    "FlashError",
    "FlashInUseError",
    "MemoryFlash",
    "PowerLossError",
    "StateFullError",
    "StateStore",
    "StoreError",
    "StoreLimits",
]
