"""What the operator API asks of services: no more than its handlers use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.fleet.acts import Act, AuditFilter, AuditRow, Replay
from gateway.fleet.model import Appended, Fact, Fleet, Revocation
from gateway.identity import OperatorToken
from gateway.rollout.explain import Facts


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

    def revoked(
        self, fleet_key: int, *, device_key: int | None = None, token_sha256: bytes | None = None
    ) -> None:
        """A token, or all that the device has now, was taken back: end the sessions that stand on it
        (``CloseCode.CREDENTIAL_REVOKED``)."""
        ...

    def is_connected(self, device_key: int) -> bool:
        """Whether the device is connected to this node."""
        ...

    def connected(self, fleet_key: int) -> Collection[int]:
        """Return the keys of the fleet's devices that are connected to this node."""
        ...

    def next_attempt_s(self, device_key: int, deployment_id: bytes) -> float | None:
        """Return in how many seconds an update that is not acknowledged is sent again; None: not by us."""
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
        requeues: int | None = None,
        act: Act[Appended] | None = None,
    ) -> Appended | Replay:
        """Return the alert once it is committed.

        Raises NotFoundError, ConflictError (``wrong_kind``, ``already_requeued``,
        ``idempotency_key_reused``).
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


class DeviceCredentials(Protocol):
    """What this node believes of devices' credentials; ``identity.Identity``."""

    def revoke(self, token_sha256: bytes) -> None:
        """Refuse the token from now on, whatever the origin says."""
        ...

    def forget_device(self, fleet: FleetName, device_id: DeviceId) -> None:
        """Ask the origin anew for whatever the device presents."""
        ...


class AuditLog(Protocol):
    """What operators changed; ``gateway.storage.audit`` implements it."""

    async def changes(
        self, filter: AuditFilter, *, before: int | None = None, limit: int = 100
    ) -> Sequence[AuditRow]:
        """Newest first; ``before`` is the id of the last row of the page before."""
        ...


class TokenStore(Protocol):
    """Operators' tokens: of one fleet, or of all (None). ``gateway.storage.tokens`` implements it."""

    async def create(
        self, token: OperatorToken, *, act: Act[OperatorToken] | None = None
    ) -> OperatorToken | Replay:
        """Raises NotFoundError: its fleet is not there; ConflictError (``idempotency_key_reused``)."""
        ...

    async def tokens(
        self, fleet: FleetName | None, *, after: bytes | None = None, limit: int = 100
    ) -> Sequence[OperatorToken]:
        """By id, oldest first."""
        ...

    async def token(self, fleet: FleetName | None, token_id: bytes) -> OperatorToken:
        """Raises NotFoundError."""
        ...

    async def revoke(
        self,
        fleet: FleetName | None,
        token_id: bytes,
        *,
        now_ms: int,
        act: Act[OperatorToken] | None = None,
    ) -> OperatorToken | Replay:
        """Take a token back; one that was keeps its time. Raises NotFoundError."""
        ...


class RevocationStore(Protocol):
    """The feed of what was taken back; ``gateway.storage.revocations`` implements it."""

    async def revoke(
        self,
        fleet: Fleet,
        *,
        token_sha256: bytes | None,
        device_id: DeviceId | None,
        reason: str | None,
        now_ms: int,
        token_id: bytes,
        operator: str,
        act: Act[Revocation] | None = None,
    ) -> Revocation | Replay:
        """Exactly one of ``token_sha256`` and ``device_id``."""
        ...

    async def revocations(
        self, *, fleet_key: int | None = None, after: int = 0, limit: int = 100
    ) -> Sequence[Revocation]:
        """By rising sequence; of one fleet or of all."""
        ...


class RevocationFeed(Protocol):
    """How this node learns of revocations; ``identity.revocations`` implements it."""

    async def catch_up(self) -> None:
        """Read what is new. Raises StorageUnavailableError: not all of it; it is read again soon."""
        ...


class MessageFacts(Protocol):
    """All that is known of one message; ``gateway.storage.message_facts`` implements it."""

    async def of_alert(self, fleet_key: int, message_id: bytes, device_id: DeviceId) -> Sequence[Fact]:
        """In the order of time. Raises NotFoundError: no such alert, or no such device in its channel."""
        ...

    async def of_deployment(self, fleet_key: int, deployment_id: bytes) -> Sequence[Fact]:
        """In the order of time. Raises NotFoundError."""
        ...


class Explanations(Protocol):
    """The facts behind ``rollout.explain``; ``gateway.storage.explain`` implements it."""

    async def facts(self, fleet_key: int, device_id: DeviceId, release_id: bytes) -> Facts:
        """Raises NotFoundError: no such device, or no such release."""
        ...
