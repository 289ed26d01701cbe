"""What operators changed, written in the transaction of the change (``fleet.acts``), and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from gateway.fleet.acts import Act, AuditEntry, AuditFilter, AuditRow, Replay
from gateway.storage.engine import Database
from gateway.storage.idempotency import claim, remember
from gateway.storage.pages import by_id
from gateway.storage.tables import audit, fleet

T = TypeVar("T")


class SQLAuditLog:
    """What the operator API lists."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def changes(
        self, filter: AuditFilter, *, before: int | None = None, limit: int = 100
    ) -> Sequence[AuditRow]:
        """Newest first; ``before`` is the id of the last row of the page before."""
        return await self._database.read(lambda conn: changes_before(conn, filter, before, limit))


def performed(conn: Connection, act: Act[T] | None, now_ms: int, do: Callable[[Connection], T]) -> T | Replay:
    """Return ``do``'s result, written down, or the answer that the same request was given before.

    Raises:
        ConflictError: (``idempotency_key_reused``) The key came with another request.
    """
    if act is None:
        return do(conn)
    replay = claim(conn, act.idempotency, now_ms=now_ms)
    if replay is not None:
        return replay
    result = do(conn)
    write_down(conn, act.entry(result))
    remember(conn, act.idempotency, result)
    return result


def audited(conn: Connection, entry: AuditEntry | None, do: Callable[[Connection], T]) -> T:
    """Return ``do``'s result, written down."""
    result = do(conn)
    if entry is not None:
        write_down(conn, entry)
    return result


def write_down(conn: Connection, entry: AuditEntry) -> None:
    conn.execute(
        insert(audit).values(
            at=entry.at,
            fleet_id=entry.fleet_key,
            token_id=entry.token_id,
            operator=entry.operator,
            operation=entry.operation,
            target=entry.target,
            details=dict(entry.details),
        )
    )


def changes_before(
    conn: Connection, filter: AuditFilter, before: int | None, limit: int
) -> Sequence[AuditRow]:
    query = select(audit, fleet.c.name).outerjoin(fleet, fleet.c.id == audit.c.fleet_id)
    query = by_id(query.where(*_conditions(filter)), audit.c.id, True, before)
    return [_row(row) for row in conn.execute(query.limit(limit))]


def forget_changes(conn: Connection, *, before: int, limit: int) -> int:
    """Delete at most ``limit`` rows of changes that were made before ``before``; return how many."""
    old = select(audit.c.id).where(audit.c.at < before).order_by(audit.c.at).limit(limit)
    return conn.execute(delete(audit).where(audit.c.id.in_(old))).rowcount


def _conditions(filter: AuditFilter) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = []
    if filter.fleet_key is not None:
        wanted.append(audit.c.fleet_id == filter.fleet_key)
    if filter.token_id is not None:
        wanted.append(audit.c.token_id == filter.token_id)
    if filter.operation is not None:
        wanted.append(audit.c.operation == filter.operation)
    if filter.target is not None:
        wanted.append(audit.c.target == filter.target)
    if filter.since is not None:
        wanted.append(audit.c.at >= filter.since)
    if filter.before is not None:
        wanted.append(audit.c.at < filter.before)
    return wanted


def _row(row: Any) -> AuditRow:
    entry = AuditEntry(
        at=row.at,
        fleet_key=row.fleet_id,
        token_id=row.token_id,
        operator=row.operator,
        operation=row.operation,
        target=row.target,
        details=row.details,
    )
    return AuditRow(row.id, row.name, entry)
