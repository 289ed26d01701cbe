"""The ring of keys that seal resume tickets: two, shared by all nodes (PROTOCOL §5.4)."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select

from gateway.identity import TicketKey
from gateway.storage.dialect import hold_ring
from gateway.storage.engine import Database
from gateway.storage.tables import ticket_key


class SQLTicketKeyStore:
    """``identity.TicketKeyStore`` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ring(self) -> Sequence[TicketKey]:
        return await self._database.read(ring)

    async def rotate(self, new: TicketKey, *, if_older_than: int) -> Sequence[TicketKey]:
        return await self._database.write(lambda conn: rotate(conn, new, if_older_than))


def ring(conn: Connection) -> Sequence[TicketKey]:
    """Return the keys in force, the oldest first."""
    query = select(ticket_key).order_by(ticket_key.c.created_at, ticket_key.c.id)
    return [TicketKey(row.id, row.secret, row.created_at) for row in conn.execute(query)]


def rotate(conn: Connection, new: TicketKey, if_older_than: int) -> Sequence[TicketKey]:
    """Add ``new`` and leave but the newest beside it, unless that was made after ``if_older_than``."""
    hold_ring(conn)
    found = ring(conn)
    if found and found[-1].created_at > if_older_than:
        return found
    conn.execute(delete(ticket_key).where(ticket_key.c.id.in_([key.id for key in found[:-1]])))
    conn.execute(insert(ticket_key).values(id=new.id, secret=new.secret, created_at=new.created_at))
    return [*found[-1:], new]
