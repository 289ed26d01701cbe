"""What can be wrong with a device's own memory. None of these is a peer's fault."""

from __future__ import annotations


class StoreError(Exception):
    """The durable state cannot be read or written."""

    code = "store"


class FlashError(StoreError):
    """A write or a sync failed. The state is as it was before; the next commit writes it out anew."""

    code = "flash"


class CorruptStateError(StoreError):
    """What was committed is damaged.

    The store refuses to open: going on from an older state would repeat alerts, lower the floors that stop
    rollbacks and forget an update in hand. Restore the state, or provision the device again by removing
    the file.
    """

    code = "corrupt_state"


class StateFullError(StoreError):
    """The change would make the state larger than its bound; nothing was changed."""

    code = "state_full"

    def __init__(self, limit: str, actual: int, allowed: int) -> None:
        super().__init__(limit, actual, allowed)
        self.limit = limit
        self.actual = actual
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.limit}: {self.actual} is over {self.allowed}"


class FlashInUseError(StoreError):
    """Another process has this directory open."""

    code = "flash_in_use"


class PowerLossError(BaseException):
    """A simulated loss of power: the program is over, so nothing that catches ``Exception`` catches it."""
