"""What an operator does: written down, and done once, in the transaction of its effect.

``Idempotency`` is what makes a repeated request harmless, ``AuditEntry`` the row that says who changed what
and when, ``Act`` the two together. All are written by the store in the transaction of the change
(``gateway.storage.audit``), so there is never one without the other. What was refused changed nothing and
leaves no row; the log has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

AUDIT_AGE_MS: Final = 400 * 24 * 3600 * 1000  # how long a row of the audit is kept


@dataclass(frozen=True, slots=True)
class Idempotency(Generic[T]):
    """One POST that may be repeated: its row is written in the transaction of its effect.

    ``respond`` makes the answer (status, JSON body) of the effect's result; it is stored and given back to
    whoever repeats the request.
    """

    token_id: bytes
    key: str
    request_sha256: bytes
    respond: Callable[[T], tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Replay:
    """The answer that the same request was given before. Nothing was done this time."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change, as it was asked for.

    Attributes:
        fleet_key: None: about the node, or about all fleets.
        token_id, operator: Whose token it was, and what that was called.
        operation: ``noun.verb``.
        target: What was changed: its path in the API, below ``/api/v1``.
        details: What was asked for, without payloads and secrets.
    """

    at: int
    fleet_key: int | None
    token_id: bytes
    operator: str
    operation: str
    target: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Act(Generic[T]):
    """A change whose request may be repeated.

    Attributes:
        entry: Makes the audit's row of the effect.
        idempotency: None: the client did not ask for it.
    """

    entry: Callable[[T], AuditEntry]
    idempotency: Idempotency[T] | None = None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change that was made. ``id`` rises; ``fleet`` is a name."""

    id: int
    fleet: str | None
    entry: AuditEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which rows; None: whatever it is. Times in ms UTC: ``since`` included, ``before`` not."""

    fleet_key: int | None = None
    token_id: bytes | None = None
    operation: str | None = None
    target: str | None = None
    since: int | None = None
    before: int | None = None
