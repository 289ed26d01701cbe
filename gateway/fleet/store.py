"""The ports to what is stored of a fleet; ``gateway.storage`` implements them. A method is one transaction.

Every implementation promises, and ``tests/contract`` checks on SQLite and PostgreSQL:

* A write that returned is committed. A failure of the database is ``StorageUnavailableError``.
* A read sees every write that returned before it began.
* Lists are bounded by ``limit`` and ordered by what ``after`` names, exclusively.
* What is given as ``act`` or ``audit`` is written down in the transaction of the change; an ``act`` that was
  done before changes nothing and is answered with its ``Replay``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.fleet.acts import Act, AuditEntry, Replay
from gateway.fleet.filters import AlertFilter, DeadLetterFilter, DeviceFilter, DeviceOrder, DevicePlace
from gateway.fleet.model import (
    Appended,
    Channel,
    ConnectedSubscription,
    DeadLetter,
    Delivery,
    Device,
    Draft,
    Fleet,
    LogRange,
    StoredMessage,
    Subscription,
)
from gateway.identity import ChannelKind, OperatorToken

Seal = Callable[[FleetName, ChannelName, int, int, Draft], tuple[bytes, bytes]]
"""(fleet, channel, epoch, offset, draft) → (payload, signature)."""


class FleetStore(Protocol):
    """Fleets, channels, devices, subscriptions, the log, dead letters, operator tokens."""

    # fleets
    async def create_fleet(
        self, name: FleetName, *, now_ms: int, act: Act[Fleet] | None = None
    ) -> Fleet | Replay:
        """Raises ConflictError (``fleet_exists``, ``idempotency_key_reused``)."""
        ...

    async def fleet(self, name: FleetName) -> Fleet:
        """Raises NotFoundError."""
        ...

    async def fleets(self, *, after: str = "", limit: int = 100) -> Sequence[Fleet]: ...

    async def put_release_key(
        self, fleet_key: int, kid: bytes, public_pem: str, *, now_ms: int, audit: AuditEntry | None = None
    ) -> bool:
        """Return whether it is new."""
        ...

    async def release_keys(self, fleet_key: int) -> Mapping[bytes, str]:
        """Return PEM by kid."""
        ...

    async def delete_release_key(
        self, fleet_key: int, kid: bytes, *, audit: AuditEntry | None = None
    ) -> None: ...

    async def root_document(self, fleet_key: int) -> tuple[int, bytes | None]: ...

    async def put_root_document(
        self,
        fleet_key: int,
        version: int,
        document: bytes,
        *,
        seen_version: int | None = None,
        audit: AuditEntry | None = None,
    ) -> None:
        """Raises ConflictError: ``root_version`` unless ``version`` is higher than the stored one,
        ``stale_version`` unless the stored one is ``seen_version``."""
        ...

    # channels
    async def create_channel(
        self,
        fleet_key: int,
        name: ChannelName,
        kind: ChannelKind,
        *,
        now_ms: int,
        starts_at_earliest: bool = False,
        retention_age_s: int | None = None,
        retention_count: int | None = None,
        act: Act[Channel] | None = None,
    ) -> Channel | Replay:
        """Raises ConflictError (``channel_exists``, ``idempotency_key_reused``)."""
        ...

    async def channel(self, fleet_key: int, name: ChannelName) -> Channel: ...

    async def channels(self, fleet_key: int, *, after: str = "", limit: int = 100) -> Sequence[Channel]:
        """Without the devices' own channels (``~…``)."""
        ...

    async def update_channel(
        self,
        fleet_key: int,
        name: ChannelName,
        changes: Mapping[str, Any],
        *,
        version: int | None,
        audit: AuditEntry | None = None,
    ) -> Channel:
        """``changes``: retention_age_s, retention_count, starts_at_earliest.

        Raises ConflictError (``stale_version``).
        """
        ...

    async def delete_channel(
        self,
        fleet_key: int,
        name: ChannelName,
        *,
        version: int | None = None,
        audit: AuditEntry | None = None,
    ) -> Channel:
        """Subscriptions and messages go with it.

        Raises ConflictError: ``channel_in_use``, a rollout names it; ``stale_version``.
        """
        ...

    # devices
    async def create_device(
        self,
        fleet_key: int,
        device_id: DeviceId,
        *,
        tags: Sequence[str] = (),
        now_ms: int,
        act: Act[Device] | None = None,
    ) -> Device | Replay:
        """Raises ConflictError (``device_exists``, ``idempotency_key_reused``)."""
        ...

    async def device(self, fleet_key: int, device_id: DeviceId) -> Device: ...

    async def devices(
        self,
        fleet_key: int,
        *,
        filter: DeviceFilter | None = None,
        order: DeviceOrder | None = None,
        after: DevicePlace | None = None,
        limit: int = 100,
    ) -> Sequence[Device]:
        """By device id, unless ``order`` says otherwise; ``after`` is of the order's kind."""
        ...

    async def update_device(
        self,
        fleet_key: int,
        device_id: DeviceId,
        changes: Mapping[str, Any],
        *,
        version: int | None,
        audit: AuditEntry | None = None,
    ) -> Device:
        """``changes``: tags, is_enabled. Raises ConflictError (``stale_version``)."""
        ...

    async def delete_device(
        self,
        fleet_key: int,
        device_id: DeviceId,
        *,
        version: int | None = None,
        audit: AuditEntry | None = None,
    ) -> Device:
        """Raises ConflictError (``stale_version``)."""
        ...

    # subscriptions
    async def subscriptions(self, device_key: int) -> Sequence[Subscription]: ...

    async def connected_subscriptions(self, device_key: int) -> Sequence[ConnectedSubscription]:
        """Return the subscriptions as a hello would find them. Raises NotFoundError: the device is gone."""
        ...

    async def subscribers(
        self, channel_id: int, *, after: int = 0, limit: int = 100
    ) -> Sequence[tuple[DeviceId, Subscription]]:
        """By device key."""
        ...

    async def subscribe(
        self, device_key: int, channel_id: int, *, now_ms: int, audit: AuditEntry | None = None
    ) -> Subscription:
        """By the operator; one the origin made stays the origin's too."""
        ...

    async def unsubscribe(self, device_key: int, channel_id: int, *, audit: AuditEntry | None = None) -> bool:
        """Return whether it ended: the origin may still want it."""
        ...

    # the log
    async def append(
        self,
        fleet_key: int,
        channel: ChannelName,
        drafts: Sequence[Draft],
        *,
        now_ms: int,
        kid: bytes,
        seal: Seal,
        requeues: int | None = None,
        act: Act[Appended] | None = None,
    ) -> Appended | Replay:
        """Append in one transaction: head, rows, superseding by key, idempotency (PROTOCOL §1.1, §1.2).

        Args:
            requeues: The dead letter that the one message sends again; it is marked in the same transaction.

        Raises NotFoundError, ConflictError (``wrong_kind``, ``idempotency_key_reused``,
        ``already_requeued``).
        """
        ...

    async def log_range(self, channel_id: int, first: int, last: int) -> LogRange:
        """Raises NotFoundError if the channel is gone. At most 300 messages."""
        ...

    async def message(self, fleet_key: int, message_id: bytes) -> tuple[Channel, StoredMessage]: ...

    async def messages(
        self,
        channel_id: int,
        *,
        filter: AlertFilter | None = None,
        is_oldest_first: bool = False,
        beyond: int | None,
        limit: int,
    ) -> Sequence[StoredMessage]:
        """Newest first, unless it is said; from the offset ``beyond``, exclusively."""
        ...

    async def deliveries(
        self, channel_id: int, epoch: int, offset: int, *, after: str = "", limit: int = 100
    ) -> Sequence[Delivery]:
        """The facts of one message for each device subscribed to its channel, by device id."""
        ...

    async def prune(
        self, *, now_ms: int, age_s: int, count: int, dead_letter_age_s: int, rows_max: int
    ) -> Sequence[tuple[int, int]]:
        """Raise floors first, then delete at most ``rows_max`` rows of a kind; return (channel id, floor).

        Facts of alerts that are gone, old answers and dead letters as old as ``dead_letter_age_s`` go too.
        Call it again while it raised something.
        """
        ...

    async def close_intervals(self, *, now_ms: int) -> int:
        """Close live intervals that a node left open when it was killed; return how many.

        For the start of the only node: an open interval claims that its device is being sent what is
        published. What is proved of it is what the device acknowledged.
        """
        ...

    # dead letters
    async def dead_letters(
        self,
        fleet_key: int,
        *,
        filter: DeadLetterFilter | None = None,
        is_newest_first: bool = False,
        beyond: int | None = None,
        limit: int = 100,
    ) -> Sequence[DeadLetter]:
        """Oldest first, unless it is said; from the id ``beyond``, exclusively."""
        ...

    async def dead_letter(self, fleet_key: int, id: int) -> DeadLetter:
        """Raises NotFoundError."""
        ...

    # operators
    async def create_operator_token(self, token: OperatorToken) -> None: ...

    async def operator_token(self, sha256: bytes) -> OperatorToken | None: ...
