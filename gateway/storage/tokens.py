"""Operators' tokens: their hashes, never the tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, insert, select, update

from device_sdk.wire.names import FleetName
from gateway.errors import NotFoundError
from gateway.fleet.acts import Act, Replay
from gateway.identity import OperatorToken, parse_scopes
from gateway.storage.audit import performed
from gateway.storage.engine import Database
from gateway.storage.pages import by_id
from gateway.storage.tables import fleet, operator_token

_QUERY: Final = select(operator_token, fleet.c.name.label("fleet_name")).outerjoin(
    fleet, fleet.c.id == operator_token.c.fleet_id
)


class SQLTokenStore:
    """Tokens as operators work with them. A fleet's operators see the tokens of that fleet alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, token: OperatorToken, *, act: Act[OperatorToken] | None = None
    ) -> OperatorToken | Replay:
        """Raises NotFoundError: its fleet is not there."""

        def create(conn: Connection) -> OperatorToken:
            create_operator_token(conn, token)
            return token

        return await self._database.write(lambda conn: performed(conn, act, token.created_at, create))

    async def tokens(
        self, fleet: FleetName | None, *, after: bytes | None = None, limit: int = 100
    ) -> Sequence[OperatorToken]:
        """By id, oldest first; of the fleet, or of all (None)."""
        return await self._database.read(lambda conn: tokens_after(conn, fleet, after, limit))

    async def token(self, fleet: FleetName | None, token_id: bytes) -> OperatorToken:
        """Raises NotFoundError."""
        return await self._database.read(lambda conn: token_by_id(conn, fleet, token_id))

    async def revoke(
        self,
        fleet: FleetName | None,
        token_id: bytes,
        *,
        now_ms: int,
        act: Act[OperatorToken] | None = None,
    ) -> OperatorToken | Replay:
        """Take a token back; one that was keeps its time. Raises NotFoundError."""
        return await self._database.write(
            lambda conn: performed(
                conn, act, now_ms, lambda conn: revoke_token(conn, fleet, token_id, now_ms)
            )
        )


def create_operator_token(connection: Connection, token: OperatorToken) -> None:
    fleet_key = None
    if token.fleet is not None:
        fleet_key = connection.scalar(select(fleet.c.id).where(fleet.c.name == token.fleet))
        if fleet_key is None:
            raise NotFoundError(f"no fleet {token.fleet}")
    connection.execute(
        insert(operator_token).values(
            id=token.id,
            name=token.name,
            sha256=token.sha256,
            fleet_id=fleet_key,
            scopes=sorted(token.scopes),
            created_at=token.created_at,
            expires_at=token.expires_at,
            revoked_at=token.revoked_at,
        )
    )


def operator_token_by_hash(connection: Connection, sha256: bytes) -> OperatorToken | None:
    row = connection.execute(_QUERY.where(operator_token.c.sha256 == sha256)).one_or_none()
    return None if row is None else _token(row)


def tokens_after(
    connection: Connection, fleet_name: FleetName | None, after: bytes | None, limit: int
) -> Sequence[OperatorToken]:
    query = by_id(_QUERY.where(*_of(fleet_name)), operator_token.c.id, False, after)
    return [_token(row) for row in connection.execute(query.limit(limit))]


def token_by_id(connection: Connection, fleet_name: FleetName | None, token_id: bytes) -> OperatorToken:
    query = _QUERY.where(operator_token.c.id == token_id, *_of(fleet_name))
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("no such token")
    return _token(row)


def revoke_token(
    connection: Connection, fleet_name: FleetName | None, token_id: bytes, now_ms: int
) -> OperatorToken:
    token_by_id(connection, fleet_name, token_id)
    connection.execute(
        update(operator_token)
        .where(operator_token.c.id == token_id, operator_token.c.revoked_at.is_(None))
        .values(revoked_at=now_ms)
    )
    return token_by_id(connection, fleet_name, token_id)


def _of(fleet_name: FleetName | None) -> tuple[ColumnElement[bool], ...]:
    return () if fleet_name is None else (fleet.c.name == fleet_name,)


def _token(row: Row[Any]) -> OperatorToken:
    return OperatorToken(
        id=row.id,
        name=row.name,
        sha256=row.sha256,
        fleet=None if row.fleet_name is None else FleetName(row.fleet_name),
        scopes=parse_scopes(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
