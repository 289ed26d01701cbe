"""What devices say of their deployments: acknowledgements, reports, and the evidence of a hello.

``HANDLERS`` apply hot writes in the batching writer's transactions. How a report changes a deployment is
``rollout.deployment``; here rows are read under a lock, folded and written, a whole flush at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, or_, select

from device_sdk.wire.messages import Hello
from gateway.fleet.facts import DeploymentReceived, Reported
from gateway.rollout.deployment import Deployment, State, conclude, fold, infer, receive
from gateway.rollout.model import ReportOutcome
from gateway.storage import offers
from gateway.storage.deployments import deployment_of, locked_deployments, save_deployments
from gateway.storage.dialect import Columns, execute_rows, padded
from gateway.storage.tables import deployment, release, report

REPORTS_MAX: Final = 1000  # kept of one deployment; above it progress is refused, an outcome never

_OUTCOMES: Final = frozenset({"committed", "rolled_back", "failed", "rejected", "cancelled"})
_REPORT: Final[Columns] = (
    ("device_key", "bigint"),
    ("report_id", "bytea"),
    ("deployment_id", "bytea"),
    ("seq", "bigint"),
    ("state", "text"),
    ("progress", "integer"),
    ("code", "text"),
    ("detail", "text"),
    ("status", "text"),
    ("at", "bigint"),
)
_NAMES: Final = ", ".join(name for name, _ in _REPORT)
# Without a WHERE, SQLite reads ON CONFLICT as a join's condition.
_INSERT: Final = f"""INSERT INTO report ({_NAMES}) SELECT {_NAMES} FROM incoming WHERE true
    ON CONFLICT DO NOTHING RETURNING device_key, report_id"""


def apply_received(conn: Connection, writes: Sequence[DeploymentReceived]) -> Sequence[bool]:
    """Record acknowledgements; return for each whether it was news."""
    rows = locked_deployments(conn, {write.deployment_id for write in writes})
    folded = {id_: deployment_of(row) for id_, row in rows.items()}
    changed: dict[bytes, Deployment] = {}
    results = []
    for write in writes:
        before = folded.get(write.deployment_id)
        if before is None or rows[write.deployment_id].device_key != write.device_key:
            results.append(False)
            continue
        after = receive(before, write.at)
        results.append(before.received_at is None)
        if after is not before:
            folded[write.deployment_id] = changed[write.deployment_id] = after
    save_deployments(conn, changed)
    return results


def apply_reports(conn: Connection, writes: Sequence[Reported]) -> Sequence[ReportOutcome]:
    """Append reports and fold them; return what each device is told."""
    rows = locked_deployments(conn, {write.report.deployment for write in writes})
    folded = {id_: deployment_of(row) for id_, row in rows.items()}
    counts = _report_counts(conn, list(rows))
    outcomes: list[ReportOutcome | None] = [None] * len(writes)
    fresh: dict[tuple[int, bytes], int] = {}
    for index, write in enumerate(writes):
        row = rows.get(write.report.deployment)
        if row is None or row.device_key != write.device_key:
            outcomes[index] = ReportOutcome("refused", "unknown_deployment")
        elif counts[row.id] >= REPORTS_MAX and write.report.state not in _OUTCOMES:
            outcomes[index] = ReportOutcome("refused", "too_many_reports")
        elif fresh.setdefault((write.device_key, write.report.id), index) == index:
            counts[row.id] += 1
    added = _append(conn, [writes[index] for index in fresh.values()])
    changed: dict[bytes, Deployment] = {}
    # In the order of their numbers, whatever the order in which they came (PROTOCOL §4.6).
    for key, index in sorted(fresh.items(), key=lambda item: writes[item[1]].report.seq):
        if key in added:
            outcomes[index] = _fold(folded, changed, writes[index])
    save_deployments(conn, changed)
    return [
        outcome or ReportOutcome("duplicate", cancel=folded[writes[index].report.deployment].is_cancelling)
        for index, outcome in enumerate(outcomes)
    ]


HANDLERS: Final[Mapping[type, Callable[[Connection, Sequence[Any]], Sequence[Any]]]] = {
    DeploymentReceived: apply_received,
    Reported: apply_reports,
}


def evidence(conn: Connection, device_key: int, hello: Hello, now_ms: int) -> tuple[bytes, ...]:
    """Conclude from a hello what became of the device's deployments; return those that it ended."""
    return (evidence_of(conn, {device_key: hello}, now_ms) or {}).get(device_key, ())


# Made once: it is read for every flush of hellos, most of which find nothing.
_OPEN_TO_EVIDENCE: Final = (
    select(deployment, release.c.manifest_digest)
    .join(release, release.c.id == deployment.c.release_id)
    .where(
        deployment.c.device_key.in_(bindparam("devices", expanding=True)),
        or_(
            deployment.c.is_active,
            deployment.c.is_cancelling,
            deployment.c.state == State.TIMED_OUT.value,
        ),
    )
    .order_by(deployment.c.id)
    .with_for_update(of=deployment)
)


def evidence_of(
    conn: Connection, hellos: Mapping[int, Hello], now_ms: int
) -> dict[int, tuple[bytes, ...]] | None:
    """As ``evidence``, for many devices at once: one read, and a write only if something follows.

    None: none of them has a deployment that a hello says anything of, nor one that is to be cancelled.
    """
    ended: dict[int, list[bytes]] = defaultdict(list)
    changed: dict[bytes, Deployment] = {}
    rows = conn.execute(_OPEN_TO_EVIDENCE, {"devices": padded(hellos)}).all()
    if not rows:
        return None
    for row in rows:
        hello, before = hellos[row.device_key], deployment_of(row)
        outcome, is_forgotten = infer(
            before,
            hello,
            component=row.component,
            manifest_digest=row.manifest_digest,
            directive_sequence=row.directive_sequence,
        )
        after = before
        if outcome is not None:
            after = conclude(before, outcome, now_ms)
            if before.is_active:
                ended[row.device_key].append(row.id)
        elif is_forgotten != before.is_forgotten:
            after = replace(before, is_forgotten=is_forgotten)
        elif before.is_cancelling and not before.is_active and hello.last_directive > row.directive_sequence:
            after = replace(before, is_cancelling=False)  # it has gone on to a newer one
        if after is not before:
            changed[row.id] = after
    save_deployments(conn, changed)
    return {key: tuple(ids) for key, ids in ended.items()}


def cancelling(conn: Connection, device_key: int, now_ms: int = 0) -> tuple[bytes, ...]:
    """Return the deployments that the device is to be told to cancel, the newest first."""
    return tuple(id_ for _, id_ in offers.cancelling(conn, [device_key], now_ms=now_ms))


def _report_counts(conn: Connection, deployment_ids: Sequence[bytes]) -> dict[bytes, int]:
    counts: dict[bytes, int] = defaultdict(int)
    for row in conn.execute(
        select(report.c.deployment_id, func.count().label("n"))
        .where(report.c.deployment_id.in_(deployment_ids))
        .group_by(report.c.deployment_id)
    ):
        counts[row.deployment_id] = row.n
    return counts


def _append(conn: Connection, writes: Sequence[Reported]) -> set[tuple[int, bytes]]:
    """Insert reports; return (device, report id) of those that were not there."""
    rows = [
        (
            write.device_key,
            write.report.id,
            write.report.deployment,
            write.report.seq,
            write.report.state,
            write.report.progress,
            write.report.code,
            write.report.detail,
            "recorded",
            write.at,
        )
        for write in writes
    ]
    return {(row[0], row[1]) for row in execute_rows(conn, _REPORT, rows, _INSERT)}


def _fold(
    folded: dict[bytes, Deployment], changed: dict[bytes, Deployment], write: Reported
) -> ReportOutcome:
    id_ = write.report.deployment
    before = folded[id_]
    after = fold(before, write.report, boot_id=write.boot_id, now_ms=write.at)
    if after is not before:
        folded[id_] = changed[id_] = after
    return ReportOutcome(
        "recorded",
        ended=before.is_active and not after.is_active,
        cancel=after.is_cancelling,
        entered=after.state if after.state is not before.state else None,
    )
