"""What a fleet is made of, as the store returns it: fleets, channels, devices, subscriptions, messages.

Rows, not behaviour: frozen, times in ms UTC, ids as 16 raw bytes. Integer keys are the database's own and
never leave the gateway. Delivery is ``gateway.session``; what hot paths write is in ``facts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_sdk.wire.messages import Installed
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.identity import AttributeValue, ChannelKind


@dataclass(frozen=True, slots=True)
class Fleet:
    """The tenant: it owns devices, channels, operator tokens and signing roots."""

    key: int
    name: FleetName
    root_version: int
    created_at: int


@dataclass(frozen=True, slots=True)
class Channel:
    """A log of alerts, or a name that rollouts are aimed at.

    Attributes:
        kind: ``alert`` or ``update``.
        epoch: Random 32 bits; another one means that history cannot be proved to be the same.
        head: The last committed offset; 0: none yet.
        floor: Offsets up to and including this one are pruned.
        starts_at_earliest: New subscriptions begin at ``floor`` instead of ``head``.
        retention_age_s, retention_count: None: the configuration's.
        version: Rises with every change by an operator; the ETag.
    """

    id: int
    fleet_key: int
    name: ChannelName
    kind: ChannelKind
    epoch: int
    head: int
    floor: int
    starts_at_earliest: bool
    retention_age_s: int | None
    retention_count: int | None
    version: int
    created_at: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a fleet, enrolled on its first accepted connection or ahead by the API."""

    key: int
    fleet_key: int
    device_id: DeviceId
    enrolment_id: bytes
    bucket: int
    is_enabled: bool
    origin: Mapping[str, AttributeValue]
    reported: Mapping[str, AttributeValue]
    tags: tuple[str, ...]
    installed: Mapping[str, Installed]
    directive_sequence: int
    root_version: int
    enrolled_at: int
    last_seen_at: int | None
    version: int


@dataclass(frozen=True, slots=True)
class Subscription:
    """A device's place in a channel: everything up to ``offset`` of ``epoch`` is on its stable storage."""

    id: int
    device_key: int
    channel_id: int
    channel: ChannelName
    kind: ChannelKind
    by_origin: bool
    by_operator: bool
    epoch: int
    offset: int
    stuck_offset: int
    attempts: int
    created_at: int


@dataclass(frozen=True, slots=True)
class Draft:
    """An alert before it has its place in a log. ``id`` is a UUIDv7 made before the insert."""

    id: bytes
    content_type: str
    data: bytes
    issued_at: int
    expires_at: int | None = None
    key: str | None = None
    original_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One row of a log. ``payload`` is what is signed, ``signature`` is by the key ``kid``."""

    channel_id: int
    offset: int
    id: bytes
    payload: bytes
    signature: bytes
    kid: bytes
    key: str | None
    superseded_by: int | None
    original_id: bytes | None
    accepted_at: int
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class LogRange:
    """What the log holds of the offsets that were asked for, at one moment.

    Attributes:
        messages: By rising offset; those up to ``floor`` are gone.
    """

    epoch: int
    head: int
    floor: int
    messages: tuple[StoredMessage, ...]


@dataclass(frozen=True, slots=True)
class Appended:
    """Messages that are committed: the channel as it is after them, with their first offset."""

    channel: Channel
    messages: tuple[StoredMessage, ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An alert that was given up for one device."""

    id: int
    device_key: int
    device_id: DeviceId
    channel_id: int
    channel: ChannelName
    epoch: int
    offset: int
    message_id: bytes
    reason: str  # nacked | expired | attempts
    code: str | None
    attempts: int
    at: int
    requeued_as: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is known of one alert and one device, or of one deployment.

    Attributes:
        fact: ``accepted``, ``sent``, ``received``, ``verified``, ``report``, ``outcome`` or ``dead_letter``.
        attempt: Of ``sent``, from 1; of a ``dead_letter``, how many there were.
        state: Of a ``report`` and of an ``outcome``.
        code: Why, where it was a refusal or a failure.
    """

    fact: str
    at: int
    attempt: int | None = None
    state: str | None = None
    progress: int | None = None
    code: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A credential that was taken back: one token, or all that a device has now.

    Attributes:
        sequence: Rises, in the order of commits: who has read up to one has missed none below it.
        token_sha256: Of a device's bearer token; None: it is about ``device_id``.
        operator: What the token of the operator was called.
    """

    sequence: int
    fleet_key: int
    fleet: FleetName
    token_sha256: bytes | None
    device_id: DeviceId | None
    reason: str | None
    at: int
    token_id: bytes
    operator: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """The facts of one alert for one device. Times in ms UTC; None: not (yet) known.

    Attributes:
        attempts: How often it was written to a connection, as far as facts tell; at least 1 if received.
        sent_at: First time.
    """

    device_id: DeviceId
    sent_at: int | None
    attempts: int
    received_at: int | None
    dead_letter: str | None = None


@dataclass(frozen=True, slots=True)
class ConnectedSubscription:
    """A subscription as a connecting device finds it, with the channel's state of the same moment.

    Attributes:
        was_sent: The alert after ``offset`` was written to this device before.
        dead: Offsets above ``offset`` that were given up for this device.
    """

    id: int
    channel_id: int
    channel: ChannelName
    kind: ChannelKind
    epoch: int  # of the stored position
    offset: int
    stuck_offset: int
    attempts: int
    channel_epoch: int
    head: int
    floor: int
    was_sent: bool = False
    dead: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Connected:
    """What is known of a device that has just said hello. Its channels are in order of their names.

    Attributes:
        previous_boot_id: None on the first connection.
        root_document: The fleet's, if the device holds an older one.
        cancelling: Deployments to cancel on the device: their end is not confirmed yet.
        ended: Deployments that the hello's evidence ended (PROTOCOL §4.6).
    """

    fleet_key: int
    device_key: int
    enrolment_id: bytes
    directive_sequence: int
    previous_boot_id: bytes | None
    subscriptions: tuple[ConnectedSubscription, ...]
    root_version: int
    root_document: bytes | None
    cancelling: tuple[bytes, ...] = ()
    ended: tuple[bytes, ...] = ()
