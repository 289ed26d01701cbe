"""Changes by an operator, for tests of what is written with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.fleet.acts import Act, AuditEntry, Idempotency

TOKEN_ID = b"t" * 16


def entry(operation: str = "things.make", *, fleet_key: int | None = None, **fields: Any) -> AuditEntry:
    """Return the audit's row of a change."""
    given = {"at": 5, "token_id": TOKEN_ID, "operator": "alice", "target": "things/7"} | fields
    return AuditEntry(fleet_key=fleet_key, operation=operation, **given)


def act(
    respond: Callable[[Any], tuple[int, bytes]] = lambda _: (201, b"{}"),
    *,
    key: str | None = "k",
    request: bytes = b"r" * 32,
    **fields: Any,
) -> Act[Any]:
    """Return a change that its client may repeat with ``key``."""
    idempotency = None if key is None else Idempotency(TOKEN_ID, key, request, respond)
    return Act(lambda _: entry(**fields), idempotency)
