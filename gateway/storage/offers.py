"""What devices are to be sent: deployments created, superseded, pushed again (PROTOCOL §6.4, §6.5).

Who should run what is decided by ``rollout.desired``; here its facts are read, under the locks that keep an
abort from being overtaken: the devices' rows FOR UPDATE, so that two nodes never offer to one device at once,
then the rollouts' rows FOR SHARE, which an abort takes FOR UPDATE; before them the turnstile, which keeps the
line. On SQLite BEGIN IMMEDIATE is all of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, and_, or_, select

from device_sdk.wire.messages import Installed
from gateway.ids import uuid7
from gateway.rollout.deployment import Deployment, State, supersede, time_out
from gateway.rollout.desired import Active, Candidate, Creation, Past, creation
from gateway.rollout.limits import UpdateLimits
from gateway.rollout.model import Push, Pushes
from gateway.rollout.rollout import RolloutState, is_admitted
from gateway.rollout.selector import Predicate, Subject, parse_selector, predicate
from gateway.storage.deployments import deployment_of, deployments_where, save_deployments
from gateway.storage.dialect import Columns, execute_rows, pass_turnstile
from gateway.storage.tables import deployment, device, fleet, release, rollout, subscription

_CANCELLING_MAX: Final = 16  # deployments that one device is told to cancel at once; the newest go first
_STANDING: Final = (RolloutState.RUNNING.value, RolloutState.PAUSED.value)
_SENDING: Final = (RolloutState.RUNNING.value, RolloutState.FINISHED.value)


@dataclass(frozen=True, slots=True)
class _Directive:
    """The times and the number of one directive."""

    sequence: int
    issued_at: int
    expires_at: int
    install_by: int


@dataclass(slots=True)
class _Facts:
    """What is known of some devices, by device; rollouts by id."""

    devices: Sequence[Any]
    rollouts: dict[bytes, Any]
    channels: dict[int, set[int]]
    active: dict[int, list[Any]]
    past: dict[int, dict[bytes, Past]]
    committed: dict[tuple[int, str], int]


@dataclass(slots=True)
class _Work:
    """What one transaction will write, gathered before anything is written."""

    created: list[tuple[Any, ...]] = field(default_factory=list)
    changed: dict[bytes, Deployment] = field(default_factory=dict)
    directives: dict[bytes, _Directive] = field(default_factory=dict)
    sequences: dict[int, int] = field(default_factory=dict)
    pushes: list[Push] = field(default_factory=list)
    states: list[State] = field(default_factory=list)


# --- questions ------------------------------------------------------------------------------------------


def concerned(conn: Connection, device_keys: Sequence[int]) -> list[int]:
    """Return those devices for which ``offer`` would find something. Nothing is locked or written."""
    rollouts = _rollouts(conn, device_keys, is_locking=False)
    if not rollouts:
        return []
    facts = _facts(conn, _devices(conn, device_keys, is_locking=False), rollouts, is_locking=False)
    return [
        row.id
        for row in facts.devices
        if any(_is_due(facts, row, one) for one in facts.active[row.id]) or _creations(facts, row)
    ]


def offer(conn: Connection, device_keys: Sequence[int], *, now_ms: int, limits: UpdateLimits) -> Pushes:
    """Create what these devices lack, and return what to push to them."""
    facts = _locked_facts(conn, device_keys)
    work = _Work()
    for row in facts.devices:
        superseded = set()
        for made in _creations(facts, row):
            _create(work, facts, row, made, now_ms, limits)
            if made.supersedes is not None:
                superseded.add(made.supersedes.deployment_id)
        for one in facts.active[row.id]:
            if one.id not in superseded and _is_due(facts, row, one):
                is_new_boot = one.boot_id != row.boot_id
                _push_again(work, facts, row, one, now_ms, limits, is_attempt=is_new_boot)
    _save(conn, work)
    return Pushes(tuple(work.pushes), tuple(work.states))


def redeliver(
    conn: Connection, device_key: int, deployment_id: bytes, *, now_ms: int, limits: UpdateLimits
) -> Pushes:
    """Count one more attempt of a deployment that was not acknowledged, if it may be sent."""
    facts = _locked_facts(conn, [device_key])
    work = _Work()
    for row in facts.devices:
        for one in facts.active[row.id]:
            if one.id == deployment_id and _is_due(facts, row, one):
                _push_again(work, facts, row, one, now_ms, limits, is_attempt=True)
    _save(conn, work)
    return Pushes(tuple(work.pushes), tuple(work.states))


def cancelling(conn: Connection, device_keys: Sequence[int], *, now_ms: int) -> list[tuple[int, bytes]]:
    """Return (device, deployment) for what these devices are to be told to cancel, the newest first.

    What a device may no longer begin to install needs no word.
    """
    found: list[tuple[int, bytes]] = []
    counts: dict[int, int] = defaultdict(int)
    query = (
        select(deployment.c.device_key, deployment.c.id)
        .where(
            deployment.c.device_key.in_(device_keys),
            deployment.c.is_cancelling,
            or_(deployment.c.is_active, deployment.c.directive_install_by > now_ms),
        )
        .order_by(deployment.c.id.desc())
        .limit(_CANCELLING_MAX * max(len(device_keys), 1))
    )
    for row in conn.execute(query):
        counts[row.device_key] += 1
        if counts[row.device_key] <= _CANCELLING_MAX:
            found.append((row.device_key, row.id))
    return found


# --- facts ----------------------------------------------------------------------------------------------


def _locked_facts(conn: Connection, device_keys: Sequence[int]) -> _Facts:
    pass_turnstile(conn, is_closing=False)
    devices = _devices(conn, device_keys, is_locking=True)
    rollouts = _rollouts(conn, [row.id for row in devices], is_locking=True)
    return _facts(conn, devices, rollouts, is_locking=True)


def _devices(conn: Connection, device_keys: Sequence[int], *, is_locking: bool) -> Sequence[Any]:
    query = (
        select(
            device.c.id,
            device.c.device_id,
            device.c.enrolment_id,
            device.c.bucket,
            device.c.origin,
            device.c.reported,
            device.c.tags,
            device.c.installed,
            device.c.boot_id,
            device.c.directive_sequence,
            fleet.c.name.label("fleet"),
        )
        .join(fleet, fleet.c.id == device.c.fleet_id)
        .where(device.c.id.in_(device_keys), device.c.is_enabled)
        .order_by(device.c.id)
    )
    return conn.execute(query.with_for_update(of=device) if is_locking else query).all()


def _rollouts(conn: Connection, device_keys: Sequence[int], *, is_locking: bool) -> dict[bytes, Any]:
    """Return the rollouts that stand in these devices' channels, and those of their active deployments."""
    channels = select(subscription.c.channel_id).where(subscription.c.device_key.in_(device_keys))
    active = select(deployment.c.rollout_id).where(
        deployment.c.device_key.in_(device_keys), deployment.c.is_active
    )
    query = (
        select(rollout, release.c.manifest_digest)
        .join(release, release.c.id == rollout.c.release_id)
        .where(
            or_(
                and_(rollout.c.channel_id.in_(channels), rollout.c.state.in_(_STANDING)),
                rollout.c.id.in_(active),
            )
        )
        .order_by(rollout.c.id)
    )
    if is_locking:
        query = query.with_for_update(read=True, of=rollout)
    return {row.id: row for row in conn.execute(query)}


def _facts(
    conn: Connection, devices: Sequence[Any], rollouts: dict[bytes, Any], *, is_locking: bool
) -> _Facts:
    keys = [row.id for row in devices]
    facts = _Facts(devices, rollouts, defaultdict(set), defaultdict(list), defaultdict(dict), {})
    if not rollouts:
        return facts
    for row in conn.execute(
        select(subscription.c.device_key, subscription.c.channel_id).where(
            subscription.c.device_key.in_(keys),
            subscription.c.channel_id.in_({row.channel_id for row in rollouts.values()}),
        )
    ):
        facts.channels[row.device_key].add(row.channel_id)
    are_active = (deployment.c.device_key.in_(keys), deployment.c.is_active)
    for row in deployments_where(conn, *are_active, is_locking=is_locking):
        facts.active[row.device_key].append(row)
    ended = (
        select(
            deployment.c.device_key,
            deployment.c.rollout_id,
            deployment.c.attempt,
            deployment.c.state,
            deployment.c.code,
            deployment.c.component,
            release.c.sequence,
        )
        .join(release, release.c.id == deployment.c.release_id)
        .where(
            deployment.c.device_key.in_(keys),
            ~deployment.c.is_active,
            or_(
                deployment.c.rollout_id.in_(list(rollouts)),
                deployment.c.state == State.COMMITTED.value,
            ),
        )
        .order_by(deployment.c.attempt)
    )
    for one in conn.execute(ended):
        facts.past[one.device_key][one.rollout_id] = Past(one.attempt, State(one.state), one.code)
        if one.state == State.COMMITTED.value:
            component = (one.device_key, one.component)
            facts.committed[component] = max(one.sequence, facts.committed.get(component, 0))
    return facts


# --- decisions ------------------------------------------------------------------------------------------


def _creations(facts: _Facts, row: Any) -> list[Creation]:
    """Return the deployments that a device lacks, at most one for each component."""
    active = {one.component: one for one in facts.active[row.id]}
    past = facts.past[row.id]
    pinned = past.keys() | {one.rollout_id for one in active.values()}
    candidates: dict[str, list[Candidate]] = defaultdict(list)
    subject = None
    for found in facts.rollouts.values():
        if found.channel_id not in facts.channels[row.id]:
            continue
        if found.id not in pinned:
            if found.state not in _STANDING or not is_admitted(
                row.bucket, shift=found.shift, boundary=found.boundary
            ):
                continue
            if found.selector is not None:
                subject = subject or _subject(row)
                if not _predicate(found.selector)(subject):
                    continue
        candidates[found.component].append(_candidate(found))
    made = (
        creation(
            some,
            active=_active(active.get(component)),
            past=past,
            installed=_installed(row.installed.get(component)),
            committed_sequence=facts.committed.get((row.id, component)),
        )
        for component, some in candidates.items()
    )
    return [one for one in made if one is not None]


def _is_due(facts: _Facts, row: Any, one: Any) -> bool:
    """Whether an active deployment is to be sent to its device again."""
    found = facts.rollouts.get(one.rollout_id)
    return (
        found is not None
        and found.state in _SENDING
        and found.channel_id in facts.channels[row.id]
        and not one.is_cancelling
        and (one.state == State.NOTIFIED.value or one.is_forgotten)
    )


def _subject(row: Any) -> Subject:
    return Subject(row.device_id, row.origin, row.reported, frozenset(row.tags))


@lru_cache(maxsize=256)
def _predicate(text: str) -> Predicate:
    return predicate(parse_selector(text))


def _candidate(row: Any) -> Candidate:
    return Candidate(
        row.id,
        RolloutState(row.state),
        row.priority,
        row.sequence,
        row.release_id,
        row.component,
        row.manifest_digest,
    )


def _active(row: Any) -> Active | None:
    return None if row is None else Active(row.id, row.release_id, State(row.state))


def _installed(entry: Any) -> Installed | None:
    if entry is None:
        return None
    sequence, version, digest, is_confirmed = entry
    return Installed(sequence, version, bytes.fromhex(digest), is_confirmed)


# --- effects --------------------------------------------------------------------------------------------


def _create(work: _Work, facts: _Facts, row: Any, made: Creation, now_ms: int, limits: UpdateLimits) -> None:
    superseded: tuple[bytes, ...] = ()
    if made.supersedes is not None:
        old = next(one for one in facts.active[row.id] if one.id == made.supersedes.deployment_id)
        ended = supersede(deployment_of(old), now_ms)
        assert ended.state is State.SUPERSEDED, "desired asks the table first"
        work.changed[old.id] = ended
        work.states.append(State.SUPERSEDED)
        superseded = (old.id,) if ended.is_cancelling else ()
    found = facts.rollouts[made.candidate.rollout_id]
    directive = _directive(work, row, now_ms, limits)
    id_ = uuid7(now_ms)
    work.created.append(
        (
            id_,
            found.id,
            found.release_id,
            row.id,
            found.component,
            made.attempt,
            State.NOTIFIED.value,
            True,
            directive.sequence,
            directive.issued_at,
            directive.expires_at,
            directive.install_by,
            1,
            row.boot_id,
            now_ms,
            now_ms,
            now_ms,
        )
    )
    work.states.append(State.NOTIFIED)
    work.pushes.append(_push(row, found, id_, directive, attempt=1, superseded=superseded))


def _push_again(
    work: _Work, facts: _Facts, row: Any, one: Any, now_ms: int, limits: UpdateLimits, *, is_attempt: bool
) -> None:
    before = after = deployment_of(one)
    if is_attempt:
        if before.state is State.NOTIFIED and before.sends >= limits.attempts_max:
            work.changed[one.id] = time_out(before, now_ms)
            work.states.append(State.TIMED_OUT)
            return
        after = replace(after, sends=after.sends + 1, boot_id=row.boot_id, updated_at=now_ms)
        work.changed[one.id] = after
    directive = _Directive(
        one.directive_sequence, one.directive_issued_at, one.directive_expires_at, one.directive_install_by
    )
    if 2 * now_ms > directive.issued_at + directive.expires_at:
        directive = work.directives[one.id] = _directive(work, row, now_ms, limits)
    found = facts.rollouts[one.rollout_id]
    work.pushes.append(_push(row, found, one.id, directive, attempt=after.sends))


def _directive(work: _Work, row: Any, now_ms: int, limits: UpdateLimits) -> _Directive:
    """Return a new directive's number and times (PROTOCOL §7.2: a restored database is not behind)."""
    last = work.sequences.get(row.id, row.directive_sequence)
    sequence = work.sequences[row.id] = max(last, now_ms // 1000) + 1
    return _Directive(
        sequence, now_ms, now_ms + limits.directive_ttl_s * 1000, now_ms + limits.install_by_s * 1000
    )


def _push(
    row: Any,
    found: Any,
    deployment_id: bytes,
    directive: _Directive,
    *,
    attempt: int,
    superseded: tuple[bytes, ...] = (),
) -> Push:
    return Push(
        device_key=row.id,
        device_id=row.device_id,
        fleet=row.fleet,
        enrolment_id=row.enrolment_id,
        deployment_id=deployment_id,
        release_id=found.release_id,
        manifest_digest=found.manifest_digest,
        component=found.component,
        directive_sequence=directive.sequence,
        issued_at=directive.issued_at,
        expires_at=directive.expires_at,
        install_by=directive.install_by,
        attempt=attempt,
        superseded=superseded,
    )


_CREATED: Final[Columns] = (
    ("id", "bytea"),
    ("rollout_id", "bytea"),
    ("release_id", "bytea"),
    ("device_key", "bigint"),
    ("component", "text"),
    ("attempt", "integer"),
    ("state", "text"),
    ("is_active", "boolean"),
    ("directive_sequence", "bigint"),
    ("directive_issued_at", "bigint"),
    ("directive_expires_at", "bigint"),
    ("directive_install_by", "bigint"),
    ("sends", "integer"),
    ("boot_id", "bytea"),
    ("notified_at", "bigint"),
    ("sent_at", "bigint"),
    ("updated_at", "bigint"),
)
_NAMES: Final = ", ".join(name for name, _ in _CREATED)
_INSERT: Final = f"INSERT INTO deployment ({_NAMES}) SELECT {_NAMES} FROM incoming"
_SEQUENCES: Final[Columns] = (("id", "bigint"), ("sequence", "bigint"))
_DIRECTIVES: Final[Columns] = (
    ("id", "bytea"),
    ("sequence", "bigint"),
    ("issued_at", "bigint"),
    ("expires_at", "bigint"),
    ("install_by", "bigint"),
)


def _save(conn: Connection, work: _Work) -> None:
    # What is superseded goes first: a device has one active deployment for a component.
    save_deployments(conn, work.changed)
    execute_rows(conn, _CREATED, work.created, _INSERT)
    execute_rows(
        conn,
        _DIRECTIVES,
        [(id_, d.sequence, d.issued_at, d.expires_at, d.install_by) for id_, d in work.directives.items()],
        """UPDATE deployment SET directive_sequence = incoming.sequence,
            directive_issued_at = incoming.issued_at, directive_expires_at = incoming.expires_at,
            directive_install_by = incoming.install_by
            FROM incoming WHERE deployment.id = incoming.id""",
    )
    execute_rows(
        conn,
        _SEQUENCES,
        list(work.sequences.items()),
        """UPDATE device SET directive_sequence = incoming.sequence
            FROM incoming WHERE device.id = incoming.id""",
    )
