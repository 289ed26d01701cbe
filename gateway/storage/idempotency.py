"""Requests that may be repeated: their answer is stored in the transaction of their effect (PROTOCOL §1.2).

``claim`` first, ``remember`` last. Two equal requests at the same time: the second waits in ``claim`` until
the first has committed, and finds its answer; if the first failed, it takes its place. ``audit.performed`` is
the two around a command.
"""

from __future__ import annotations

from typing import Final, TypeVar

from sqlalchemy import Connection, delete, select, tuple_, update

from gateway.errors import ConflictError
from gateway.fleet.acts import Idempotency, Replay
from gateway.storage.dialect import insert
from gateway.storage.tables import idempotency

T = TypeVar("T")

IDEMPOTENCY_AGE_MS: Final = 24 * 3600 * 1000  # how long an answer is kept


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


def forget_answers(conn: Connection, *, before: int, limit: int) -> int:
    """Delete at most ``limit`` answers that were given before ``before``; return how many."""
    key = (idempotency.c.token_id, idempotency.c.key)
    old = (
        select(*key).where(idempotency.c.created_at < before).order_by(idempotency.c.created_at).limit(limit)
    )
    return conn.execute(delete(idempotency).where(tuple_(*key).in_(old))).rowcount
