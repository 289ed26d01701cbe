"""Rows of rollouts and deployments as the store returns them, and what it passes to the services."""

from __future__ import annotations

from dataclasses import dataclass

from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.rollout.deployment import State
from gateway.rollout.rollout import Rollout, RolloutState


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRollout:
    """What an operator asks for, checked. ``shift`` is random, drawn before."""

    id: bytes
    release_id: bytes
    channel: ChannelName
    percent: int
    selector: str | None
    name: str | None
    priority: int
    shift: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFilter:
    """Which rollouts of a fleet; None: whatever it is."""

    state: RolloutState | None = None
    channel: str | None = None
    release_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """A rollout after an action, and how many of its deployments that cancelled at once."""

    rollout: Rollout
    cancelled_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRow:
    """A deployment for an operator's eyes. Times in ms UTC; None: not yet."""

    id: bytes
    rollout_id: bytes
    release_id: bytes
    device_key: int
    device_id: DeviceId
    component: str
    attempt: int
    state: State
    progress: int | None
    code: str | None
    detail: str | None
    is_cancelling: bool
    is_inferred: bool
    sends: int
    notified_at: int
    sent_at: int | None
    received_at: int | None
    verified_at: int | None
    ended_at: int | None
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """A deployment to write to a device's connection, with all that its directive says. Committed."""

    device_key: int
    device_id: DeviceId
    fleet: FleetName
    enrolment_id: bytes
    deployment_id: bytes
    release_id: bytes
    manifest_digest: bytes
    component: ChannelName
    directive_sequence: int
    issued_at: int
    expires_at: int
    install_by: int
    attempt: int
    superseded: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Pushes:
    """What one transaction found to push, and what it moved: ``states`` that deployments entered."""

    pushes: tuple[Push, ...] = ()
    states: tuple[State, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """A deployment to push, signed.

    Attributes:
        directive: COSE_Sign1.
        manifest: SUIT envelope.
        attempt: From 1.
        superseded: Deployments that the device is to cancel.
    """

    device_key: int
    deployment_id: bytes
    component: str
    directive: bytes
    manifest: bytes
    attempt: int
    superseded: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """What a report came to.

    Attributes:
        status: ``recorded``, ``duplicate`` or ``refused``: what the device is told.
        code: Why it was refused.
        ended: The deployment ended with it: ask for offers again.
        cancel: The device is to be told to cancel the deployment.
        entered: The state that the deployment entered, if it did.
    """

    status: str
    code: str | None = None
    ended: bool = False
    cancel: bool = False
    entered: State | None = None
