"""Operators: their tokens, scopes and what a scope allows.

A token is ``fct_`` and 43 characters of base64url (256 random bits). The database holds its SHA-256 only; a
fast hash is right because there is nothing to guess. A token belongs to one fleet or to all of them.
"""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from device_sdk.wire.names import FleetName
from gateway.errors import (
    CredentialExpiredError,
    CredentialRefusedError,
    CredentialRevokedError,
    PermissionDeniedError,
)

PREFIX: Final = "fct_"
_TOKEN: Final = re.compile(r"fct_[A-Za-z0-9_-]{43}\Z")


class Scope(enum.StrEnum):
    """What a token may do, within its fleet. Every scope includes ``READ``; ``ADMIN`` includes all."""

    READ = "read"  # look at everything of the fleet but tokens
    PUBLISH = "publish"  # send alerts, requeue dead letters
    DEVICES = "devices"  # devices, channels, subscriptions
    RELEASES = "releases"  # upload releases and artifacts
    ROLLOUTS = "rollouts"  # start, widen, pause, resume, abort
    ADMIN = "admin"  # fleets, tokens, keys, root documents


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """A token's row. Times are ms UTC; ``fleet`` None: every fleet."""

    id: bytes
    name: str
    sha256: bytes
    fleet: FleetName | None
    scopes: frozenset[Scope]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True)
class Operator:
    """Who asks, once the token is found good. Only ``authenticate`` makes one."""

    token_id: bytes
    name: str
    fleet: FleetName | None
    scopes: frozenset[Scope]


class OperatorTokenStore(Protocol):
    """Where tokens are. ``storage`` implements it."""

    async def operator_token(self, sha256: bytes) -> OperatorToken | None:
        """Return the token with that hash, revoked and expired ones too; None if there is none."""
        ...


def new_token() -> str:
    """Return a new secret; show it once, store ``token_sha256`` of it."""
    return PREFIX + secrets.token_urlsafe(32)


def token_sha256(token: str) -> bytes:
    """Return the hash that ``token`` is stored and looked up under.

    Raises:
        CredentialRefusedError: Not of the form of an operator token, so there is nothing to look up.
    """
    if not _TOKEN.match(token):
        raise CredentialRefusedError("not an operator token")
    return hashlib.sha256(token.encode()).digest()


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes called ``names``.

    Raises:
        ValueError: A name is no scope's, or there is none at all; the text lists the scopes.
    """
    try:
        scopes = frozenset(Scope(name) for name in names)
    except ValueError as error:
        raise ValueError(f"a scope is one of {', '.join(Scope)}") from error
    if not scopes:
        raise ValueError(f"at least one scope of {', '.join(Scope)}")
    return scopes


def authenticate(token: OperatorToken | None, *, now_ms: int) -> Operator:
    """Return who presents ``token``, as the store found it.

    Raises:
        CredentialRefusedError: There is no such token.
        CredentialRevokedError: It was revoked.
        CredentialExpiredError: Its time is over.
    """
    if token is None:
        raise CredentialRefusedError("no such token")
    if token.revoked_at is not None:
        raise CredentialRevokedError("the token was revoked")
    if token.expires_at is not None and now_ms >= token.expires_at:
        raise CredentialExpiredError("the token has expired")
    return Operator(token.id, token.name, token.fleet, token.scopes)


def authorise(operator: Operator, scope: Scope, fleet: FleetName | None) -> Operator:
    """Return ``operator`` if it may do ``scope`` in ``fleet``.

    Args:
        fleet: The fleet the request is about; None: it is about more than one, or about the node.

    Raises:
        PermissionDeniedError: Without that scope, or for another fleet. The answer is the same whether or not
            such a fleet exists.
    """
    if operator.fleet is not None and operator.fleet != fleet:
        raise PermissionDeniedError("the token is for another fleet")
    if scope is not Scope.READ and scope not in operator.scopes and Scope.ADMIN not in operator.scopes:
        raise PermissionDeniedError(f"the token has no scope {scope}")
    assert operator.scopes, "a token has a scope, and every scope includes read"
    return operator
