"""What the operator API asks of services: no more than its handlers use."""

from __future__ import annotations

from typing import Protocol

from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.names import ChannelName
from gateway.fleet.model import Appended, Fleet
from gateway.fleet.store import Idempotency, Replay


class DeviceSessions(Protocol):
    """Tell this node's sessions what an operator changed.

    Called after the change is committed, and only a hint: a session that misses it finds the change at its
    next hello. Nothing here waits or raises, and what is not connected here is passed over.
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


class AlertService(Protocol):
    """Append alerts to a channel's log; ``gateway.fleet.alerts`` implements it."""

    async def publish(
        self,
        fleet: Fleet,
        channel: ChannelName,
        *,
        data: bytes,
        content_type: str,
        ttl_s: int | None,
        key: str | None,
        original_id: bytes | None = None,
        idempotency: Idempotency[Appended] | None = None,
    ) -> Appended | Replay:
        """Return the alert once it is committed.

        Raises NotFoundError, ConflictError (``wrong_kind``, ``idempotency_key_reused``).
        """
        ...


class OnlineKeys(Protocol):
    """The keys that this gateway signs with."""

    @property
    def alert(self) -> PrivateKey: ...

    @property
    def directive(self) -> PrivateKey: ...

    @property
    def statement(self) -> PrivateKey: ...
