"""Credentials that were taken back: a feed that every node reads by sequence (PROTOCOL §5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from device_sdk.wire.names import DeviceId, FleetName
from gateway.fleet.acts import Act, Replay
from gateway.fleet.model import Fleet, Revocation
from gateway.storage.audit import performed
from gateway.storage.dialect import take_turn
from gateway.storage.engine import Database
from gateway.storage.tables import fleet, revocation


class SQLRevocationStore:
    """Revocations on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        assert (token_sha256 is None) != (device_id is None), "it is one or the other"

        def add(conn: Connection) -> Revocation:
            return add_revocation(
                conn,
                fleet,
                token_sha256=token_sha256,
                device_id=device_id,
                reason=reason,
                at=now_ms,
                token_id=token_id,
                operator=operator,
            )

        return await self._database.write(lambda conn: performed(conn, act, now_ms, add))

    async def revocations(
        self, *, fleet_key: int | None = None, after: int = 0, limit: int = 100
    ) -> Sequence[Revocation]:
        """By rising sequence; of one fleet or of all."""
        return await self._database.read(lambda conn: revocations_after(conn, fleet_key, after, limit))

    async def last_sequence(self) -> int:
        """Return the sequence of the last one; 0: there is none."""
        return await self._database.read(last_sequence)


def add_revocation(conn: Connection, at_fleet: Fleet, **columns: Any) -> Revocation:
    """Add one, with the next sequence."""
    # One at a time, until the COMMIT: a reader that saw a number would else miss one below it.
    take_turn(conn)
    sequence = last_sequence(conn) + 1
    conn.execute(insert(revocation).values(sequence=sequence, fleet_id=at_fleet.key, **columns))
    return Revocation(sequence=sequence, fleet_key=at_fleet.key, fleet=at_fleet.name, **columns)


def last_sequence(conn: Connection) -> int:
    return conn.scalar(select(func.max(revocation.c.sequence))) or 0


def revocations_after(
    conn: Connection, fleet_key: int | None, after: int, limit: int
) -> Sequence[Revocation]:
    query = (
        select(revocation, fleet.c.name)
        .join(fleet, fleet.c.id == revocation.c.fleet_id)
        .where(revocation.c.sequence > after)
    )
    if fleet_key is not None:
        query = query.where(revocation.c.fleet_id == fleet_key)
    return [_revocation(row) for row in conn.execute(query.order_by(revocation.c.sequence).limit(limit))]


def _revocation(row: Row[Any]) -> Revocation:
    return Revocation(
        sequence=row.sequence,
        fleet_key=row.fleet_id,
        fleet=FleetName(row.name),
        token_sha256=row.token_sha256,
        device_id=None if row.device_id is None else DeviceId(row.device_id),
        reason=row.reason,
        at=row.at,
        token_id=row.token_id,
        operator=row.operator,
    )
