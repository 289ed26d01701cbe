"""A deployment: one device and one release, as a table of transitions (PROTOCOL §6.4, §6.5, §4.6).

Everything that decides what becomes of a deployment is here: what the device reports, what its hello proves,
what operators and newer rollouts want. It knows no database: a ``Deployment`` and an event go in, a
``Deployment`` comes out. The picture in ``docs/reference/deployments.md`` is made from ``TRANSITIONS``.

* Progress moves forward only, and may skip. What is behind the state changes nothing.
* An outcome ends it. One that only the gateway decided (``timed_out``, ``cancelled``, ``superseded``), or
  that it inferred, gives way to the true one when the device reports it.
* Cancelling and superseding take effect up to ``downloading``. From ``installing`` on a cancel is a request,
  which the device answers with ``cancelled`` or with ``too_late``; what supersedes waits for the outcome.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from device_sdk.wire.messages import Hello, Report

TOO_LATE: Final = "too_late"  # a report's code: the cancel came when it could not be followed any more


class State(enum.StrEnum):
    """Active up to ``REBOOTING``; the others are outcomes."""

    NOTIFIED = "notified"
    RECEIVED = "received"
    VERIFIED = "verified"
    DOWNLOADING = "downloading"
    INSTALLING = "installing"
    REBOOTING = "rebooting"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"

    @property
    def is_active(self) -> bool:
        """Whether an outcome is still to come."""
        return self in _PROGRESS


class Event(enum.StrEnum):
    """What happens to a deployment. The first ten are reports, by the state they name."""

    RECEIVED = "received"
    VERIFIED = "verified"
    DOWNLOADING = "downloading"
    INSTALLING = "installing"
    REBOOTING = "rebooting"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    CANCEL = "cancel"  # the rollout was aborted
    SUPERSEDE = "supersede"  # a newer release goes first
    TIME_OUT = "time_out"  # its attempts are spent


_PROGRESS: Final = (
    State.NOTIFIED,
    State.RECEIVED,
    State.VERIFIED,
    State.DOWNLOADING,
    State.INSTALLING,
    State.REBOOTING,
)
_REPORTED_OUTCOMES: Final[Mapping[Event, State]] = {
    Event.COMMITTED: State.COMMITTED,
    Event.ROLLED_BACK: State.ROLLED_BACK,
    Event.FAILED: State.FAILED,
    Event.REJECTED: State.REJECTED,
    Event.CANCELLED: State.CANCELLED,
}
# What a device did although the gateway had given the deployment up.
_DONE_ANYWAY: Final[Mapping[Event, State]] = {
    Event.COMMITTED: State.COMMITTED,
    Event.ROLLED_BACK: State.ROLLED_BACK,
    Event.FAILED: State.FAILED,
}


def _from_progress(state: State) -> Mapping[Event, State]:
    reached = _PROGRESS.index(state)
    forward = {Event(later.value): later for later in _PROGRESS[max(reached, 1) :]}
    gateway: dict[Event, State] = {}
    if reached <= _PROGRESS.index(State.DOWNLOADING):
        gateway = {Event.CANCEL: State.CANCELLED, Event.SUPERSEDE: State.SUPERSEDED}
    else:
        gateway = {Event.CANCEL: state}  # a request: ``is_cancelling``
    if state is State.NOTIFIED:
        gateway[Event.TIME_OUT] = State.TIMED_OUT
    return MappingProxyType({**forward, **_REPORTED_OUTCOMES, **gateway})


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = MappingProxyType(
    {
        **{state: _from_progress(state) for state in _PROGRESS},
        State.COMMITTED: {},
        State.ROLLED_BACK: {},
        State.FAILED: {},
        State.REJECTED: {},
        State.TIMED_OUT: MappingProxyType(_REPORTED_OUTCOMES),
        State.CANCELLED: MappingProxyType(_DONE_ANYWAY),
        State.SUPERSEDED: MappingProxyType(_DONE_ANYWAY),
    }
)
"""State → event → next state. An event that is not there changes nothing."""

SUPERSEDABLE: Final = frozenset(s for s in State if Event.SUPERSEDE in TRANSITIONS[s])
CANCELLABLE: Final = frozenset(s for s in State if TRANSITIONS[s].get(Event.CANCEL) is State.CANCELLED)
_VERIFIED: Final = frozenset({*_PROGRESS[2:], State.COMMITTED, State.ROLLED_BACK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is folded. Times in ms UTC on the gateway's clock.

    Attributes:
        is_cancelling: The device is to be told to cancel and has not answered.
        is_inferred: The outcome follows from a hello; nobody reported it.
        is_forgotten: The device's last hello did not know the directive: it is sent again.
        sends: Attempts to push it.
        report_seq: The highest ``seq`` folded; -1: none.
        boot_id: The device's boot when it was last sent or when it reported rebooting.
    """

    state: State = State.NOTIFIED
    is_cancelling: bool = False
    is_inferred: bool = False
    is_forgotten: bool = False
    sends: int = 0
    report_seq: int = -1
    progress: int | None = None
    code: str | None = None
    detail: str | None = None
    boot_id: bytes | None = None
    received_at: int | None = None
    verified_at: int | None = None
    ended_at: int | None = None
    updated_at: int = 0

    @property
    def is_active(self) -> bool:
        """Whether an outcome is still to come."""
        return self.state.is_active


def receive(deployment: Deployment, now_ms: int) -> Deployment:
    """Return the deployment after the device's acknowledgement: it is on its stable storage."""
    if deployment.received_at is None:
        deployment = replace(deployment, received_at=now_ms, updated_at=now_ms)
    if deployment.is_forgotten:
        deployment = replace(deployment, is_forgotten=False, updated_at=now_ms)
    return _move(deployment, Event.RECEIVED, now_ms)


def fold(deployment: Deployment, report: Report, *, boot_id: bytes, now_ms: int) -> Deployment:
    """Return the deployment after ``report``; the same one if that is stale (PROTOCOL §4.6).

    Reports may come in any order. One that is not above the highest ``seq`` changes nothing, unless it is an
    outcome and there is none yet: folded in order it would have ended the deployment.
    """
    try:
        event = Event(report.state)
    except ValueError:  # a state of a later version: ``unknown``
        return deployment
    is_outcome = event in _REPORTED_OUTCOMES
    lacks_outcome = deployment.is_active or deployment.is_inferred
    if report.seq <= deployment.report_seq and not (is_outcome and lacks_outcome):
        return deployment
    moved = _move(deployment, event, now_ms)
    is_news = moved is not deployment or TRANSITIONS[deployment.state].get(event) is deployment.state
    if is_news:
        moved = replace(
            moved,
            progress=report.progress if report.progress is not None else _kept_progress(deployment, moved),
            code=report.code,
            detail=report.detail,
            updated_at=now_ms,
        )
        if event is Event.REBOOTING:
            moved = replace(moved, boot_id=boot_id)
    if is_outcome or report.code == TOO_LATE:
        moved = replace(moved, is_cancelling=False)
    return replace(moved, report_seq=max(moved.report_seq, report.seq))


def infer(
    deployment: Deployment, hello: Hello, *, component: str, manifest_digest: bytes, directive_sequence: int
) -> tuple[State | None, bool]:
    """Return what ``hello`` proves: an outcome, and whether the device forgot the deployment.

    The target running and confirmed means ``committed``; another one after ``rebooting``, in another boot,
    ``rolled_back`` (PROTOCOL §4.6). A device that is in hand of an older directive than the one it
    acknowledged has lost its flash.
    """
    installed = hello.installed.get(component)
    if installed is not None:
        if installed.digest == manifest_digest:
            if installed.is_confirmed and TRANSITIONS[deployment.state].get(Event.COMMITTED):
                return State.COMMITTED, False
        elif deployment.state is State.REBOOTING and deployment.boot_id not in (None, hello.boot_id):
            return State.ROLLED_BACK, False
    is_forgotten = (
        deployment.is_active
        and deployment.state is not State.NOTIFIED
        and hello.last_directive < directive_sequence
    )
    return None, is_forgotten


def conclude(deployment: Deployment, outcome: State, now_ms: int) -> Deployment:
    """Return the deployment with an inferred outcome."""
    moved = _move(deployment, Event(outcome.value), now_ms)
    assert moved.state is outcome, "infer asks the table first"
    return replace(moved, is_inferred=True, is_cancelling=False, code=None, detail=None)


def cancel(deployment: Deployment, now_ms: int) -> Deployment:
    """Return the deployment after its rollout was aborted."""
    if Event.CANCEL not in TRANSITIONS[deployment.state]:
        return deployment
    moved = _move(deployment, Event.CANCEL, now_ms)
    # What was never written to a connection has nobody to tell.
    return replace(moved, is_cancelling=moved.sends > 0, updated_at=now_ms)


def supersede(deployment: Deployment, now_ms: int) -> Deployment:
    """Return the deployment after a newer release came for the device; the same one if it must wait."""
    moved = _move(deployment, Event.SUPERSEDE, now_ms)
    return deployment if moved is deployment else replace(moved, is_cancelling=moved.sends > 0)


def time_out(deployment: Deployment, now_ms: int) -> Deployment:
    """Return the deployment after its last attempt."""
    moved = _move(deployment, Event.TIME_OUT, now_ms)
    return deployment if moved is deployment else replace(moved, code="attempts")


def _move(deployment: Deployment, event: Event, now_ms: int) -> Deployment:
    """Return the deployment in its next state; the same object if nothing changes."""
    state = TRANSITIONS[deployment.state].get(event)
    if state is None and deployment.is_inferred:
        state = _REPORTED_OUTCOMES.get(event)  # what is reported outdoes what was inferred
    if state is None or (state is deployment.state and not deployment.is_inferred):
        return deployment
    return replace(
        deployment,
        state=state,
        is_inferred=False,
        is_forgotten=deployment.is_forgotten and state.is_active,
        received_at=_first(deployment.received_at, now_ms, event in _REPORTED),
        verified_at=_first(deployment.verified_at, now_ms, state in _VERIFIED),
        ended_at=None if state.is_active else _first(deployment.ended_at, now_ms, True),
        updated_at=now_ms,
    )


_REPORTED: Final = frozenset(Event) - {Event.CANCEL, Event.SUPERSEDE, Event.TIME_OUT}


def _first(at: int | None, now_ms: int, is_now: bool) -> int | None:
    return at if at is not None or not is_now else now_ms


def _kept_progress(before: Deployment, after: Deployment) -> int | None:
    # A percentage is of one step: a new step begins without.
    return before.progress if before.state is after.state else None


_GROUPS: Final = (("active", frozenset(_PROGRESS)), ("stoppable", CANCELLABLE & SUPERSEDABLE))


def mermaid() -> str:
    """Return ``TRANSITIONS`` as a Mermaid state diagram.

    What every state of a group does alike is one arrow from the group. Stays, and the arrows that skip a
    step, are left out.
    """
    steps = [
        (state, later)
        for state, later in pairwise(_PROGRESS)
        if TRANSITIONS[state].get(Event(later.value)) is later
    ]
    edges: dict[tuple[str, str], list[str]] = {}
    for state, events in TRANSITIONS.items():
        for event, after in events.items():
            if not after.is_active:
                edges.setdefault((_origin(state, event, after), after.value), []).append(event.value)
    lines = ["stateDiagram-v2", "    [*] --> active", "    state active {", "        [*] --> stoppable"]
    lines += ["        state stoppable {", "            [*] --> notified"]
    lines += [f"            {a} --> {b}: {b}" for a, b in steps if b in CANCELLABLE]
    lines += ["        }"]
    lines += [f"        {a} --> {b}: {b}" for a, b in steps if b not in CANCELLABLE]
    lines += ["    }"]
    lines += [
        f"    {before} --> {after}: {', '.join(dict.fromkeys(events))}"
        for (before, after), events in edges.items()
    ]
    lines += [f"    {state} --> [*]" for state in State if not state.is_active]
    return "\n".join(lines)


def _origin(state: State, event: Event, after: State) -> str:
    """Return the widest group whose states all do the same at ``event``, or the state itself."""
    for name, group in _GROUPS:
        if state in group and all(TRANSITIONS[other].get(event) is after for other in group):
            return name
    return state.value


def matrix() -> str:
    """Return ``TRANSITIONS`` as a Markdown table: a row for each state, a column for each event."""
    lines = ["| state | " + " | ".join(Event) + " |", "|---" * (len(Event) + 1) + "|"]
    for state, events in TRANSITIONS.items():
        cells = [events[event].value if event in events else "" for event in Event]
        lines.append(f"| **{state}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)
