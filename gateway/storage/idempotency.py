"""Requests that may be repeated: their answer is stored in the transaction of their effect (PROTOCOL §1.2).

``claim`` first, ``remember`` last. Two equal requests at the same time: the second waits in ``claim`` until
the first has committed, and finds its answer; if the first failed, it takes its place.
"""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Connection, select, update

from gateway.errors import ConflictError
from gateway.fleet.store import Idempotency, Replay
from gateway.storage.dialect import insert
from gateway.storage.tables import idempotency

T = TypeVar("T")


def claim(conn: Connection, request: Idempotency[T] | None, *, now_ms: int) -> Replay | None:
    """Take the request's key, or return the answer that the same request was given before.

    Raises:
        ConflictError: (``idempotency_key_reused``) The key came with another request.
    """
    if request is None:
        return None
    claimed = conn.execute(
        insert(conn, idempotency)
        .values(
            token_id=request.token_id,
            key=request.key,
            request_sha256=request.request_sha256,
            status=0,
            response=b"",
            created_at=now_ms,
        )
        .on_conflict_do_nothing()
    )
    if claimed.rowcount == 1:
        return None
    row = conn.execute(
        select(idempotency).where(
            idempotency.c.token_id == request.token_id, idempotency.c.key == request.key
        )
    ).one()
    if row.request_sha256 != request.request_sha256:
        raise ConflictError("the idempotency key was used for another request", code="idempotency_key_reused")
    return Replay(row.status, row.response)


def remember(conn: Connection, request: Idempotency[T] | None, effect: T) -> None:
    """Store the answer of a claimed request."""
    if request is None:
        return
    status, response = request.respond(effect)
    conn.execute(
        update(idempotency)
        .where(idempotency.c.token_id == request.token_id, idempotency.c.key == request.key)
        .values(status=status, response=response)
    )
