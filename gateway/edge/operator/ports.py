"""What the operator API asks of the live device sessions."""

from __future__ import annotations

from typing import Protocol


class DeviceSessions(Protocol):
    """Tell this node's sessions what an operator changed.

    Called after the change is committed, and only a hint: a session that misses it finds the change at its next
    hello. Nothing here waits or raises, and what is not connected here is passed over.
    """

    def subscriptions_changed(self, device_key: int) -> None:
        """The device's channels, or what its rollouts match it by (tags), are others than before."""
        ...

    def disabled(self, device_key: int) -> None:
        """The device was disabled or deleted: end its session (``CloseCode.DEVICE_DISABLED``)."""
        ...

    def channel_changed(self, channel_id: int) -> None:
        """The channel was changed or deleted; those who are subscribed to it read it again."""
        ...

    def root_changed(self, fleet_key: int) -> None:
        """The fleet has a new root document; its devices are to get it before the next signed object."""
        ...
