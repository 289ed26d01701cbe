"""What the API answers: rows as JSON. Times are ms UTC, ids the text of a UUID, digests and kids hexadecimal.

A field that has nothing to say is null and never absent.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from device_sdk.wire.keys import Algorithm, PublicKey
from device_sdk.wire.signed.alert import AlertPayload, parse_alert_payload
from gateway.edge.operator.body import check_depth
from gateway.fleet.acts import AuditRow
from gateway.fleet.model import (
    Channel,
    DeadLetter,
    Delivery,
    Device,
    Fact,
    Fleet,
    Revocation,
    StoredMessage,
    Subscription,
)
from gateway.identity import OperatorToken, Scope
from gateway.ids import format_id
from gateway.release.service import ReleaseRow
from gateway.rollout import DeploymentRow, Rollout
from gateway.rollout.explain import Reason, ReasonCode

OnlineRole = Literal["alert", "directive", "statement"]

ALGORITHM_NAMES = {Algorithm.ED25519: "Ed25519", Algorithm.ESP256: "ESP256"}


class Result(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)


class FleetResult(Result):
    """A fleet."""

    name: str
    root_version: int = Field(description="0: no root document yet.")
    created_at: int

    @classmethod
    def of(cls, fleet: Fleet) -> FleetResult:
        return cls(name=fleet.name, root_version=fleet.root_version, created_at=fleet.created_at)


class ReleaseKeyResult(Result):
    """An offline key whose signature makes a release acceptable."""

    kid: str
    public_pem: str

    @classmethod
    def of(cls, kid: bytes, public_pem: str) -> ReleaseKeyResult:
        return cls(kid=kid.hex(), public_pem=public_pem)


class OnlineKeyResult(Result):
    """A key that the gateway signs with; the root document must name it."""

    role: OnlineRole
    kid: str
    algorithm: str = Field(description="Ed25519 or ESP256.")
    public_pem: str

    @classmethod
    def of(cls, role: OnlineRole, key: PublicKey) -> OnlineKeyResult:
        return cls(
            role=role,
            kid=key.kid.hex(),
            algorithm=ALGORITHM_NAMES[key.algorithm],
            public_pem=key.to_pem().decode(),
        )


class KeysResult(Result):
    """Who signs for a fleet."""

    online: list[OnlineKeyResult]
    root_version: int
    release_keys: list[ReleaseKeyResult]


class RootResult(Result):
    """A root document that was taken."""

    version: int
    expires_at: int


class ChannelResult(Result):
    """A channel."""

    name: str
    kind: Literal["alert", "update"]
    epoch: int = Field(description="Another one means that offsets begin anew.")
    head: int = Field(description="Offset of the newest alert; 0: none yet.")
    floor: int = Field(description="Alerts up to this offset are no longer kept.")
    starts_at_earliest: bool
    retention_age_s: int | None = Field(description="null: the gateway's.")
    retention_count: int | None = Field(description="null: the gateway's.")
    version: int
    created_at: int

    @classmethod
    def of(cls, channel: Channel) -> ChannelResult:
        return cls(
            name=channel.name,
            kind=channel.kind,
            epoch=channel.epoch,
            head=channel.head,
            floor=channel.floor,
            starts_at_earliest=channel.starts_at_earliest,
            retention_age_s=channel.retention_age_s,
            retention_count=channel.retention_count,
            version=channel.version,
            created_at=channel.created_at,
        )


class _Place(Result):
    by_origin: bool
    by_operator: bool
    epoch: int
    offset: int = Field(description="The device has everything up to it on its stable storage.")
    attempts: int = Field(description="How often the alert after `offset` was sent in vain.")
    created_at: int


class SubscriptionResult(_Place):
    """A device's place in a channel."""

    channel: str
    kind: Literal["alert", "update"]

    @classmethod
    def of(cls, subscription: Subscription) -> SubscriptionResult:
        return cls(channel=subscription.channel, kind=subscription.kind, **_place(subscription))


class SubscriberResult(_Place):
    """A device of a channel."""

    device_id: str

    @classmethod
    def of(cls, device_id: str, subscription: Subscription) -> SubscriberResult:
        return cls(device_id=device_id, **_place(subscription))


def _place(subscription: Subscription) -> dict[str, Any]:
    return {
        "by_origin": subscription.by_origin,
        "by_operator": subscription.by_operator,
        "epoch": subscription.epoch,
        "offset": subscription.offset,
        "attempts": subscription.attempts,
        "created_at": subscription.created_at,
    }


class InstalledResult(Result):
    """What a device said it runs."""

    sequence: int
    version: str
    digest: str = Field(description="SHA-256 of the manifest; empty if the factory installed it.")
    is_confirmed: bool


class DeviceResult(Result):
    """A device."""

    device_id: str
    enrolment_id: str
    is_enabled: bool
    tags: list[str]
    origin: dict[str, Any] = Field(description="Attributes by the origin's word.")
    reported: dict[str, Any] = Field(description="Attributes by the device's own word.")
    installed: dict[str, InstalledResult] = Field(description="By component.")
    bucket: int = Field(description="0..2³²−1, random: when a share of a rollout reaches it.")
    root_version: int
    enrolled_at: int
    last_seen_at: int | None = Field(description="null: never connected.")
    is_connected: bool = Field(description="Whether it is connected to this node.")
    version: int

    @classmethod
    def of(cls, device: Device, *, is_connected: bool = False) -> DeviceResult:
        return cls(
            device_id=device.device_id,
            enrolment_id=format_id(device.enrolment_id),
            is_enabled=device.is_enabled,
            tags=list(device.tags),
            origin=dict(device.origin),
            reported=dict(device.reported),
            installed={
                component: InstalledResult(
                    sequence=installed.sequence,
                    version=installed.version,
                    digest=installed.digest.hex(),
                    is_confirmed=installed.is_confirmed,
                )
                for component, installed in device.installed.items()
            },
            bucket=device.bucket,
            root_version=device.root_version,
            enrolled_at=device.enrolled_at,
            last_seen_at=device.last_seen_at,
            is_connected=is_connected,
            version=device.version,
        )


class AlertResult(Result):
    """An alert that is committed."""

    id: str
    channel: str
    epoch: int
    offset: int
    accepted_at: int
    expires_at: int | None

    @classmethod
    def of(cls, channel: Channel, message: StoredMessage) -> AlertResult:
        return cls(**_alert(channel, message))


class ListedAlertResult(AlertResult):
    """An alert as a list shows it."""

    content_type: str
    size_bytes: int
    key: str | None
    superseded_by: int | None = Field(description="Offset of the newer alert with the same key.")
    original_id: str | None = Field(description="The alert that this one repeats.")

    @classmethod
    def of(cls, channel: Channel, message: StoredMessage) -> ListedAlertResult:
        return cls(**_listed(channel, message, parse_alert_payload(message.payload)))


class WholeAlertResult(ListedAlertResult):
    """An alert with what it says."""

    data: str = Field(description="base64url, unpadded.")
    text: str | None = Field(description="`data` as text, if its content type is text.")
    json_: Any = Field(alias="json", description="`data` decoded, if its content type is JSON.")

    @classmethod
    def of(cls, channel: Channel, message: StoredMessage) -> WholeAlertResult:
        payload = parse_alert_payload(message.payload)
        return cls(
            **_listed(channel, message, payload),
            data=base64.urlsafe_b64encode(payload.data).decode().rstrip("="),
            text=_text(payload),
            json=_json(payload),
        )


def _alert(channel: Channel, message: StoredMessage) -> dict[str, Any]:
    return {
        "id": format_id(message.id),
        "channel": channel.name,
        "epoch": channel.epoch,
        "offset": message.offset,
        "accepted_at": message.accepted_at,
        "expires_at": message.expires_at,
    }


def _listed(channel: Channel, message: StoredMessage, payload: AlertPayload) -> dict[str, Any]:
    return {
        **_alert(channel, message),
        "content_type": payload.content_type,
        "size_bytes": len(payload.data),
        "key": message.key,
        "superseded_by": message.superseded_by,
        "original_id": None if message.original_id is None else format_id(message.original_id),
    }


def _text(payload: AlertPayload) -> str | None:
    if not payload.content_type.startswith("text/"):
        return None
    try:
        return payload.data.decode()
    except UnicodeDecodeError:
        return None


def _json(payload: AlertPayload) -> object:
    media_type = payload.content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        return None
    try:
        value: object = json.loads(payload.data)
        check_depth(value)
    except (ValueError, RecursionError):
        return None
    return value


class DeliveryResult(Result):
    """What became of one alert on one device."""

    device_id: str
    accepted_at: int = Field(description="When it was committed.")
    sent_at: int | None = Field(description="When it was first written to the device's connection.")
    attempts: int = Field(description="How often it was written; 0: never.")
    received_at: int | None = Field(description="When the device's acknowledgement was committed.")
    dead_letter: str | None = Field(description="Why it was given up: nacked, expired or attempts.")

    @classmethod
    def of(cls, message: StoredMessage, delivery: Delivery) -> DeliveryResult:
        return cls(
            device_id=delivery.device_id,
            accepted_at=message.accepted_at,
            sent_at=delivery.sent_at,
            attempts=delivery.attempts,
            received_at=delivery.received_at,
            dead_letter=delivery.dead_letter,
        )


class DeadLetterResult(Result):
    """An alert that was given up for one device."""

    id: str
    device_id: str
    channel: str
    epoch: int
    offset: int
    alert_id: str
    reason: str = Field(description="nacked, expired or attempts.")
    code: str | None = Field(description="The device's, if it refused the alert.")
    attempts: int
    at: int
    requeued_as: str | None = Field(description="The alert that repeats it.")

    @classmethod
    def of(cls, dead: DeadLetter, *, requeued_as: bytes | None = None) -> DeadLetterResult:
        requeued_as = requeued_as or dead.requeued_as
        return cls(
            id=str(dead.id),
            device_id=dead.device_id,
            channel=dead.channel,
            epoch=dead.epoch,
            offset=dead.offset,
            alert_id=format_id(dead.message_id),
            reason=dead.reason,
            code=dead.code,
            attempts=dead.attempts,
            at=dead.at,
            requeued_as=None if requeued_as is None else format_id(requeued_as),
        )


class FactResult(Result):
    """One thing that is known of a message."""

    fact: Literal["accepted", "sent", "received", "verified", "report", "outcome", "dead_letter"]
    at: int
    attempt: int | None = Field(description="Of `sent`: which; of `dead_letter`: how many there were.")
    state: str | None = Field(description="Of `report` and `outcome`; of `dead_letter` the reason.")
    progress: int | None
    code: str | None
    detail: str | None

    @classmethod
    def of(cls, fact: Fact) -> FactResult:
        return cls(
            fact=fact.fact,  # type: ignore[arg-type]
            at=fact.at,
            attempt=fact.attempt,
            state=fact.state,
            progress=fact.progress,
            code=fact.code,
            detail=fact.detail,
        )


class ReasonResult(Result):
    """One reason why a device does not run a release."""

    code: ReasonCode = Field(description="Stable; codes.md lists them.")
    detail: str = Field(description="A sentence for people.")
    rollout_id: str | None
    deployment_id: str | None
    at: int | None = Field(description="Since when, or when next.")
    facts: dict[str, Any] = Field(description="The figures behind it.")

    @classmethod
    def of(cls, reason: Reason) -> ReasonResult:
        return cls(
            code=reason.code,
            detail=reason.detail,
            rollout_id=None if reason.rollout_id is None else format_id(reason.rollout_id),
            deployment_id=None if reason.deployment_id is None else format_id(reason.deployment_id),
            at=reason.at,
            facts={
                name: format_id(value) if isinstance(value, bytes) else value
                for name, value in reason.facts.items()
            },
        )


class ExplanationResult(Result):
    """Why a device does not run a release."""

    device_id: str
    release_id: str
    rollout_id: str | None = Field(description="The one rollout that was asked about.")
    is_running: bool = Field(description="It does run it, confirmed.")
    reasons: list[ReasonResult] = Field(description="At least one; the device's own first.")

    @classmethod
    def of(
        cls, device_id: str, release_id: bytes, rollout_id: bytes | None, reasons: Sequence[Reason]
    ) -> ExplanationResult:
        return cls(
            device_id=device_id,
            release_id=format_id(release_id),
            rollout_id=None if rollout_id is None else format_id(rollout_id),
            is_running=reasons[0].code is ReasonCode.ALREADY_INSTALLED,
            reasons=[ReasonResult.of(reason) for reason in reasons],
        )


class TokenResult(Result):
    """An operator's token, without its secret."""

    id: str
    name: str = Field(description="Whose it is, for people.")
    fleet: str | None = Field(description="null: all fleets.")
    scopes: list[Scope]
    created_at: int
    expires_at: int | None = Field(description="null: never.")
    revoked_at: int | None = Field(description="null: it is good.")

    @classmethod
    def of(cls, token: OperatorToken) -> TokenResult:
        return cls(**_token(token))


class NewTokenResult(TokenResult):
    """An operator's token, this once with its secret."""

    secret: str | None = Field(
        description="Shown this once. null in the answer to a repeated request: revoke it, make another."
    )

    @classmethod
    def of(cls, token: OperatorToken, *, secret: str | None = None) -> NewTokenResult:
        return cls(**_token(token), secret=secret)


def _token(token: OperatorToken) -> dict[str, Any]:
    return {
        "id": format_id(token.id),
        "name": token.name,
        "fleet": token.fleet,
        "scopes": sorted(token.scopes),
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
    }


class RevocationResult(Result):
    """A credential of devices that was taken back."""

    sequence: int = Field(description="Rises in the order of commits.")
    fleet: str
    token_sha256: str | None = Field(description="Of the bearer token; null: it is about a device.")
    device_id: str | None = Field(description="Whose credentials; null: it is about one token.")
    reason: str | None
    at: int
    operator: str = Field(description="Whose token it was that did it.")

    @classmethod
    def of(cls, revocation: Revocation) -> RevocationResult:
        sha256 = revocation.token_sha256
        return cls(
            sequence=revocation.sequence,
            fleet=revocation.fleet,
            token_sha256=None if sha256 is None else sha256.hex(),
            device_id=revocation.device_id,
            reason=revocation.reason,
            at=revocation.at,
            operator=revocation.operator,
        )


class ChangeResult(Result):
    """Something that an operator changed."""

    id: int
    at: int
    fleet: str | None = Field(description="null: about the node, or about all fleets.")
    token_id: str
    operator: str = Field(description="What the token was called.")
    operation: str = Field(description="`noun.verb`, as in this page.")
    target: str = Field(description="What was changed: its path below /api/v1.")
    details: dict[str, Any] = Field(description="What was asked for, without payloads and secrets.")

    @classmethod
    def of(cls, row: AuditRow) -> ChangeResult:
        entry = row.entry
        return cls(
            id=row.id,
            at=entry.at,
            fleet=row.fleet,
            token_id=format_id(entry.token_id),
            operator=entry.operator,
            operation=entry.operation,
            target=entry.target,
            details=dict(entry.details),
        )


class ReleaseResult(Result):
    """A release: what its manifest says, once a release key vouched for it."""

    id: str
    name: str
    version: str
    component: str
    sequence: int = Field(description="A device installs no lower one than it has.")
    vendor_id: str
    class_id: str
    manifest_digest: str
    image_digest: str
    image_size: int
    uri: str
    kid: str = Field(description="The key that vouches for it; if several do, the first.")
    created_at: int

    @classmethod
    def of(cls, release: ReleaseRow) -> ReleaseResult:
        return cls(
            id=format_id(release.id),
            name=release.name,
            version=release.version,
            component=release.component,
            sequence=release.sequence,
            vendor_id=format_id(release.vendor_id),
            class_id=format_id(release.class_id),
            manifest_digest=release.manifest_digest.hex(),
            image_digest=release.image_digest.hex(),
            image_size=release.image_size,
            uri=release.uri,
            kid=release.kid.hex(),
            created_at=release.created_at,
        )


class ArtifactResult(Result):
    """An image that the gateway keeps."""

    sha256: str
    size_bytes: int


class RolloutResult(Result):
    """A rollout, and what has become of it."""

    id: str
    name: str
    state: str = Field(description="running, paused, finished or aborted.")
    channel: str
    release_id: str
    percent: int
    selector: str | None
    priority: int
    component: str
    sequence: int
    target_count: int | None = Field(
        description="Devices that match now, or that have a deployment of it; null in lists."
    )
    counts: dict[str, int] = Field(description="Deployments by state; states that none is in are left out.")
    created_at: int
    updated_at: int
    version: int

    @classmethod
    def of(cls, rollout: Rollout) -> RolloutResult:
        return cls(
            id=format_id(rollout.id),
            name=rollout.name,
            state=rollout.state.value,
            channel=rollout.channel,
            release_id=format_id(rollout.release_id),
            percent=rollout.percent,
            selector=rollout.selector,
            priority=rollout.priority,
            component=rollout.component,
            sequence=rollout.sequence,
            target_count=rollout.target_count,
            counts=dict(rollout.counts),
            created_at=rollout.created_at,
            updated_at=rollout.updated_at,
            version=rollout.version,
        )


class DeploymentResult(Result):
    """One device and one release. Times are null until they come."""

    id: str
    rollout_id: str
    release_id: str
    device_id: str
    component: str
    attempt: int
    state: str
    progress: int | None = Field(description="0..100, by the device's word.")
    code: str | None = Field(description="Why it ended as it did.")
    detail: str | None
    is_cancelling: bool = Field(description="The device is asked to cancel and has not answered.")
    is_inferred: bool = Field(description="The outcome is from what the device runs, not from a report.")
    sends: int = Field(description="How often it was pushed.")
    notified_at: int
    sent_at: int | None
    received_at: int | None
    verified_at: int | None
    ended_at: int | None
    updated_at: int

    @classmethod
    def of(cls, deployment: DeploymentRow) -> DeploymentResult:
        return cls(
            id=format_id(deployment.id),
            rollout_id=format_id(deployment.rollout_id),
            release_id=format_id(deployment.release_id),
            device_id=deployment.device_id,
            component=deployment.component,
            attempt=deployment.attempt,
            state=deployment.state.value,
            progress=deployment.progress,
            code=deployment.code,
            detail=deployment.detail,
            is_cancelling=deployment.is_cancelling,
            is_inferred=deployment.is_inferred,
            sends=deployment.sends,
            notified_at=deployment.notified_at,
            sent_at=deployment.sent_at,
            received_at=deployment.received_at,
            verified_at=deployment.verified_at,
            ended_at=deployment.ended_at,
            updated_at=deployment.updated_at,
        )
