"""The row of a deployment and the ``Deployment`` that is folded, either way. Queries are next door.

Locks are taken in one order everywhere: turnstile, device, rollout, deployment; and within each by id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, select

from gateway.rollout.deployment import Deployment, State
from gateway.storage.dialect import Columns, execute_rows
from gateway.storage.tables import deployment

_FOLDED: Final[Columns] = (
    ("id", "bytea"),
    ("state", "text"),
    ("is_active", "boolean"),
    ("is_cancelling", "boolean"),
    ("is_inferred", "boolean"),
    ("is_forgotten", "boolean"),
    ("sends", "integer"),
    ("report_seq", "bigint"),
    ("progress", "integer"),
    ("code", "text"),
    ("detail", "text"),
    ("boot_id", "bytea"),
    ("received_at", "bigint"),
    ("verified_at", "bigint"),
    ("ended_at", "bigint"),
    ("updated_at", "bigint"),
)
_ASSIGNMENTS: Final = ", ".join(f"{name} = incoming.{name}" for name, _ in _FOLDED[1:])
_UPDATE: Final = f"UPDATE deployment SET {_ASSIGNMENTS} FROM incoming WHERE deployment.id = incoming.id"


def deployment_of(row: Any) -> Deployment:
    """Return what is folded of a row that has every column of the table."""
    return Deployment(
        state=State(row.state),
        is_cancelling=row.is_cancelling,
        is_inferred=row.is_inferred,
        is_forgotten=row.is_forgotten,
        sends=row.sends,
        report_seq=row.report_seq,
        progress=row.progress,
        code=row.code,
        detail=row.detail,
        boot_id=row.boot_id,
        received_at=row.received_at,
        verified_at=row.verified_at,
        ended_at=row.ended_at,
        updated_at=row.updated_at,
    )


def save_deployments(conn: Connection, changed: Mapping[bytes, Deployment]) -> None:
    """Write deployments by id; their rows are locked."""
    rows = [
        (
            id_,
            one.state.value,
            one.is_active,
            one.is_cancelling,
            one.is_inferred,
            one.is_forgotten,
            one.sends,
            one.report_seq,
            one.progress,
            one.code,
            one.detail,
            one.boot_id,
            one.received_at,
            one.verified_at,
            one.ended_at,
            one.updated_at,
        )
        for id_, one in changed.items()
    ]
    execute_rows(conn, _FOLDED, rows, _UPDATE)


def locked_deployments(conn: Connection, ids: Collection[bytes]) -> dict[bytes, Any]:
    """Return the rows of ``ids`` that there are, locked against other writers, by id."""
    return {row.id: row for row in deployments_where(conn, deployment.c.id.in_(ids), is_locking=True)}


def deployments_where(
    conn: Connection, *conditions: ColumnElement[bool], is_locking: bool = False
) -> Sequence[Any]:
    """Return whole rows in the order of their ids, locked against other writers if that is asked for."""
    query = select(deployment).where(*conditions).order_by(deployment.c.id)
    return conn.execute(query.with_for_update() if is_locking else query).all()
