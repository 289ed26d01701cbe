"""Operators' tokens: their hashes, never the tokens themselves."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from device_sdk.wire.names import FleetName
from gateway.errors import NotFoundError
from gateway.identity import OperatorToken, parse_scopes
from gateway.storage.tables import fleet, operator_token


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
    row = connection.execute(
        select(operator_token, fleet.c.name.label("fleet_name"))
        .outerjoin(fleet, fleet.c.id == operator_token.c.fleet_id)
        .where(operator_token.c.sha256 == sha256)
    ).one_or_none()
    if row is None:
        return None
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
