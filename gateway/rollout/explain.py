"""Why a device does not run a release: every reason that stands, each with a stable code and a sentence.

Pure: ``gateway.storage.explain`` reads the facts, all of one moment. What is due is asked of ``desired``, the
function that decides it for devices, so that an explanation and what happens cannot drift apart.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from device_sdk.wire.messages import Installed
from gateway.rollout.deployment import SUPERSEDABLE, State
from gateway.rollout.desired import Active, Candidate, Past, creation, may_come_again
from gateway.rollout.model import DeploymentRow
from gateway.rollout.rollout import Rollout, RolloutState, effective_bucket, is_admitted
from gateway.rollout.selector import (
    And,
    Comparison,
    Field,
    Not,
    OneOf,
    Or,
    Selector,
    Source,
    Subject,
    Value,
    parse_selector,
    predicate,
)


class ReasonCode(enum.StrEnum):
    """Stable; docs/reference/codes.md lists them."""

    ALREADY_INSTALLED = "already_installed"
    NOT_CONFIRMED = "not_confirmed"
    NEWER_INSTALLED = "newer_installed"
    NEWER_COMMITTED = "newer_committed"
    DEVICE_DISABLED = "device_disabled"
    NEVER_SEEN = "never_seen"
    OFFLINE = "offline"
    NO_ROLLOUT = "no_rollout"
    ROLLOUT_PAUSED = "rollout_paused"
    ROLLOUT_FINISHED = "rollout_finished"
    ROLLOUT_ABORTED = "rollout_aborted"
    NOT_SUBSCRIBED = "not_subscribed"
    NOT_ADMITTED = "not_admitted"
    SELECTOR_MISMATCH = "selector_mismatch"
    OUTRANKED = "outranked"
    AWAITING_ACKNOWLEDGEMENT = "awaiting_acknowledgement"
    IN_PROGRESS = "in_progress"
    AWAITING_OUTCOME = "awaiting_outcome"
    CANCELLING = "cancelling"
    REJECTED = "rejected"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    COMMITTED_BEFORE = "committed_before"
    DUE = "due"


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason.

    Attributes:
        detail: A sentence for people.
        at: Since when, or when next, in ms UTC.
        facts: The figures behind it.
    """

    code: ReasonCode
    detail: str
    rollout_id: bytes | None = None
    deployment_id: bytes | None = None
    at: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFacts:
    """A rollout of the release's component, as it concerns the device.

    Attributes:
        is_subscribed: The device is in the rollout's channel.
        past: Its last deployment on the device that has ended.
    """

    rollout: Rollout
    manifest_digest: bytes
    is_subscribed: bool
    past: DeploymentRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known of one device and one release.

    Attributes:
        last_seen_at: None: it never connected.
        bucket: Its own, not yet shifted.
        installed: Of the release's component; None: it did not say.
        active: The component's deployment without an outcome.
        committed_sequence: The highest release of the component that the device committed.
        rollouts: Those of this release, and what competes with them for the component.
    """

    device_key: int
    subject: Subject
    is_enabled: bool
    last_seen_at: int | None
    bucket: int
    installed: Installed | None
    release_id: bytes
    component: str
    sequence: int
    manifest_digest: bytes
    active: DeploymentRow | None
    committed_sequence: int | None
    rollouts: tuple[RolloutFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What the node knows and the database does not.

    Attributes:
        next_attempt_at: When the update that is not acknowledged is sent again, ms UTC.
    """

    is_connected: bool
    next_attempt_at: int | None = None
    attempts_max: int


def explain(facts: Facts, connection: Connection, *, rollout_id: bytes | None = None) -> tuple[Reason, ...]:
    """Return why the device does not run the release, the device's own reasons first.

    Args:
        rollout_id: By this rollout; None: by any of the release.

    Returns:
        At least one reason. ``already_installed`` stands alone.
    """
    installed = facts.installed
    if installed is not None and installed.digest == facts.manifest_digest and installed.is_confirmed:
        detail = f"it runs the release: component {facts.component} is at sequence {facts.sequence}"
        return (Reason(ReasonCode.ALREADY_INSTALLED, detail, facts={"sequence": facts.sequence}),)
    reasons = [*_of_device(facts, connection), *_of_installed(facts)]
    active = facts.active
    if active is not None and active.release_id == facts.release_id:
        return (*reasons, *_of_active(facts, active, connection))
    wanted = [
        one
        for one in facts.rollouts
        if one.rollout.release_id == facts.release_id and rollout_id in (None, one.rollout.id)
    ]
    if not wanted:
        reasons.append(Reason(ReasonCode.NO_ROLLOUT, "no rollout sends this release"))
    for one in wanted:
        reasons += _of_rollout(facts, one, connection)
    assert reasons, "what does not run is due, or something stands in its way"
    return tuple(reasons)


# --- the device -----------------------------------------------------------------------------------------


def _of_device(facts: Facts, connection: Connection) -> Iterator[Reason]:
    if not facts.is_enabled:
        yield Reason(ReasonCode.DEVICE_DISABLED, "an operator disabled the device; it is refused")
    if facts.last_seen_at is None:
        yield Reason(ReasonCode.NEVER_SEEN, "the device has never connected")
    elif not connection.is_connected:
        yield Reason(
            ReasonCode.OFFLINE, "the device is not connected; at is when it last was", at=facts.last_seen_at
        )


def _of_installed(facts: Facts) -> Iterator[Reason]:
    installed = facts.installed
    figures = {"sequence": facts.sequence}
    if installed is not None and installed.digest == facts.manifest_digest:
        yield Reason(ReasonCode.NOT_CONFIRMED, "it runs the release, and has not confirmed it yet")
    elif installed is not None and installed.sequence > facts.sequence:
        yield Reason(
            ReasonCode.NEWER_INSTALLED,
            f"it runs sequence {installed.sequence} ({installed.version}), and installs no lower one",
            facts=figures | {"installed_sequence": installed.sequence},
        )
    if facts.committed_sequence is not None and facts.committed_sequence > facts.sequence:
        yield Reason(
            ReasonCode.NEWER_COMMITTED,
            f"it has committed sequence {facts.committed_sequence}, and is not offered a lower one",
            facts=figures | {"committed_sequence": facts.committed_sequence},
        )


# --- a rollout ------------------------------------------------------------------------------------------


def _of_rollout(facts: Facts, one: RolloutFacts, connection: Connection) -> list[Reason]:
    rollout, active = one.rollout, facts.active
    reasons = list(_of_state(rollout))
    if one.past is not None and not may_come_again(_past(one.past)):
        return [*reasons, _of_past(one.past, rollout)]
    if rollout.state in (RolloutState.FINISHED, RolloutState.ABORTED):
        return reasons
    reasons += _of_channel(one)
    if one.past is None:
        reasons += _of_admission(facts, rollout)
    reasons += _of_precedence(facts, one)
    if active is not None and active.state not in SUPERSEDABLE:
        reasons.append(
            Reason(
                ReasonCode.AWAITING_OUTCOME,
                f"another release is being installed ({active.state}); its outcome comes first",
                rollout.id,
                active.id,
                active.updated_at,
                {"state": active.state.value},
            )
        )
    if facts.is_enabled and not reasons and _is_due(facts, one):
        when = "now" if connection.is_connected else "when the device connects"
        reasons.append(Reason(ReasonCode.DUE, f"nothing stands in the way: it is sent {when}", rollout.id))
    return reasons


_STATES: Final[Mapping[RolloutState, tuple[ReasonCode, str]]] = {
    RolloutState.PAUSED: (ReasonCode.ROLLOUT_PAUSED, "the rollout is paused: nothing is sent"),
    RolloutState.FINISHED: (
        ReasonCode.ROLLOUT_FINISHED,
        "the rollout is finished: it admits nobody more",
    ),
    RolloutState.ABORTED: (ReasonCode.ROLLOUT_ABORTED, "the rollout was aborted"),
}


def _of_state(rollout: Rollout) -> Iterator[Reason]:
    if rollout.state in _STATES:
        code, detail = _STATES[rollout.state]
        yield Reason(code, detail, rollout.id, at=rollout.updated_at)


def _of_channel(one: RolloutFacts) -> Iterator[Reason]:
    if not one.is_subscribed:
        channel = one.rollout.channel
        detail = f"the device is not in the channel {channel}"
        yield Reason(ReasonCode.NOT_SUBSCRIBED, detail, one.rollout.id, facts={"channel": channel})


def _of_active(facts: Facts, active: DeploymentRow, connection: Connection) -> Iterator[Reason]:
    for one in facts.rollouts:
        if one.rollout.id == active.rollout_id:
            yield from _of_state(one.rollout)
            yield from _of_channel(one)
    yield _of_step(active, connection)


def _of_step(active: DeploymentRow, connection: Connection) -> Reason:
    if active.is_cancelling:
        return Reason(
            ReasonCode.CANCELLING,
            f"the device is asked to cancel, at {active.state}, and has not answered",
            active.rollout_id,
            active.id,
            active.updated_at,
            {"state": active.state.value},
        )
    if active.state is State.NOTIFIED:
        if connection.next_attempt_at is not None:
            when = "it is sent again at the time in at"
        elif connection.is_connected:
            when = "it is sent again"
        else:
            when = "it is sent again when the device connects"
        return Reason(
            ReasonCode.AWAITING_ACKNOWLEDGEMENT,
            f"sent, and not acknowledged: attempt {active.sends} of {connection.attempts_max}; {when}",
            active.rollout_id,
            active.id,
            connection.next_attempt_at,
            {"attempt": active.sends, "attempts_max": connection.attempts_max, "sent_at": active.sent_at},
        )
    progress = "" if active.progress is None else f", {active.progress} percent"
    return Reason(
        ReasonCode.IN_PROGRESS,
        f"the device is at it: {active.state}{progress}",
        active.rollout_id,
        active.id,
        active.updated_at,
        {"state": active.state.value, "progress": active.progress},
    )


_ENDED: Final[Mapping[State, tuple[ReasonCode, str]]] = {
    State.COMMITTED: (
        ReasonCode.COMMITTED_BEFORE,
        "it was committed, and the device runs something else now; a rollout sends once",
    ),
    State.REJECTED: (ReasonCode.REJECTED, "the device refused it"),
    State.FAILED: (ReasonCode.FAILED, "the device could not install it"),
    State.ROLLED_BACK: (ReasonCode.ROLLED_BACK, "it was installed, and the device went back to what it ran"),
    State.TIMED_OUT: (ReasonCode.TIMED_OUT, "it was given up: no acknowledgement after the last attempt"),
    State.CANCELLED: (ReasonCode.CANCELLED, "it was cancelled"),
}


def _of_past(past: DeploymentRow, rollout: Rollout) -> Reason:
    code, detail = _ENDED[past.state]
    why = f" ({past.code})" if past.code else ""
    return Reason(
        code,
        f"{detail}{why}",
        rollout.id,
        past.id,
        past.ended_at,
        {"code": past.code, "attempt": past.attempt, "sends": past.sends},
    )


def _of_admission(facts: Facts, rollout: Rollout) -> Iterator[Reason]:
    if not is_admitted(facts.bucket, shift=rollout.shift, boundary=rollout.boundary):
        place = effective_bucket(facts.bucket, rollout.shift)
        yield Reason(
            ReasonCode.NOT_ADMITTED,
            f"the rollout is at {rollout.percent} percent: its boundary is {rollout.boundary}, and the "
            f"device's place in it is {place}",
            rollout.id,
            facts={"place": place, "boundary": rollout.boundary, "percent": rollout.percent},
        )
    if rollout.selector is None:
        return
    selector = parse_selector(rollout.selector)
    if not predicate(selector)(facts.subject):
        term = unmet(selector, facts.subject)
        has = _what_it_has(term, facts.subject)
        yield Reason(
            ReasonCode.SELECTOR_MISMATCH,
            f"the rollout's selector asks for {text_of(term)}{has}",
            rollout.id,
            facts={"term": text_of(term), "selector": rollout.selector},
        )


def _of_precedence(facts: Facts, one: RolloutFacts) -> Iterator[Reason]:
    mine = _candidate(one)
    first = max(_candidates(facts), key=lambda candidate: candidate.precedence, default=None)
    if first is None or first.precedence <= mine.precedence:
        return
    # Another rollout that sends the same release is no obstacle, unless it is paused: then nothing is sent.
    if first.release_id != facts.release_id or first.state is not RolloutState.RUNNING:
        yield Reason(
            ReasonCode.OUTRANKED,
            f"another rollout goes first for {facts.component}: priority {first.priority}, sequence "
            f"{first.sequence}, {first.state}",
            one.rollout.id,
            facts={
                "by_rollout_id": first.rollout_id,
                "priority": first.priority,
                "sequence": first.sequence,
                "state": first.state.value,
            },
        )


# --- what is due ----------------------------------------------------------------------------------------


def _is_due(facts: Facts, one: RolloutFacts) -> bool:
    made = creation(
        _candidates(facts),
        active=_active(facts.active),
        past={other.rollout.id: _past(other.past) for other in facts.rollouts if other.past is not None},
        installed=facts.installed,
        committed_sequence=facts.committed_sequence,
    )
    return made is not None and made.candidate.release_id == one.rollout.release_id


def _candidates(facts: Facts) -> list[Candidate]:
    """Return the rollouts that apply to the device, as ``gateway.storage.offers`` finds them."""
    return [_candidate(one) for one in facts.rollouts if _applies(facts, one)]


def _applies(facts: Facts, one: RolloutFacts) -> bool:
    rollout = one.rollout
    is_active = facts.active is not None and facts.active.rollout_id == rollout.id
    is_standing = rollout.state in (RolloutState.RUNNING, RolloutState.PAUSED)
    if not one.is_subscribed or not (is_standing or is_active):
        return False
    if one.past is not None or is_active:
        return True
    if not is_admitted(facts.bucket, shift=rollout.shift, boundary=rollout.boundary):
        return False
    return rollout.selector is None or predicate(parse_selector(rollout.selector))(facts.subject)


def _candidate(one: RolloutFacts) -> Candidate:
    rollout = one.rollout
    return Candidate(
        rollout.id,
        rollout.state,
        rollout.priority,
        rollout.sequence,
        rollout.release_id,
        rollout.component,
        one.manifest_digest,
    )


def _active(row: DeploymentRow | None) -> Active | None:
    return None if row is None else Active(row.id, row.release_id, row.state)


def _past(row: DeploymentRow) -> Past:
    return Past(row.attempt, row.state, row.code)


# --- selectors ------------------------------------------------------------------------------------------


def unmet(selector: Selector, subject: Subject) -> Selector:
    """Return the smallest part of ``selector``, which ``subject`` does not meet, that says why not."""
    if isinstance(selector, And):
        for term in selector.terms:
            if not predicate(term)(subject):
                return unmet(term, subject)
    return selector


def text_of(selector: Selector) -> str:
    """Return a text that ``parse_selector`` reads as ``selector``."""
    match selector:
        case And(terms):
            return " and ".join(_inner(term, Or, And) for term in terms)
        case Or(terms):
            return " or ".join(_inner(term, Or) for term in terms)
        case Not(term):
            return f"not {_inner(term, And, Or)}"
        case OneOf(of, values):
            return f"{_name(of)} in ({', '.join(_literal(value) for value in values)})"
        case Comparison(of, operator, value):
            return f"{_name(of)} {operator} {_literal(value)}"


def _inner(term: Selector, *looser: type) -> str:
    return f"({text_of(term)})" if isinstance(term, looser) else text_of(term)


def _name(of: Field) -> str:
    return f"{of.source.value}.{of.name}" if of.name else of.source.value


def _literal(value: Value) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return json.dumps(value)


def _what_it_has(term: Selector, subject: Subject) -> str:
    if not isinstance(term, Comparison | OneOf):
        return ""
    match term.field.source:
        case Source.DEVICE_ID:
            return f"; the device is {subject.device_id}"
        case Source.TAG:
            return f"; its tags are {', '.join(sorted(subject.tags)) or 'none'}"
        case Source.ORIGIN | Source.REPORTED:
            of = subject.origin if term.field.source is Source.ORIGIN else subject.reported
            value = of.get(term.field.name)
            return f"; its {_name(term.field)} is {'not set' if value is None else _literal(value)}"
