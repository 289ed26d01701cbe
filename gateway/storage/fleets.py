"""Fleets, the release keys whose signatures they ask for, and their root documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, select, update

from device_sdk.wire.names import FleetName
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.model import Fleet
from gateway.storage import dialect
from gateway.storage.tables import fleet, release_key

_COLUMNS = (fleet.c.id, fleet.c.name, fleet.c.root_version, fleet.c.created_at)


def create_fleet(connection: Connection, name: FleetName, now_ms: int) -> Fleet:
    added = connection.execute(
        dialect.insert(connection, fleet)
        .values(name=name, created_at=now_ms)
        .on_conflict_do_nothing()
        .returning(*_COLUMNS)
    ).one_or_none()
    if added is None:
        raise ConflictError(f"there is a fleet {name}", code="fleet_exists")
    return _fleet(added)


def fleet_by_name(connection: Connection, name: FleetName) -> Fleet:
    row = connection.execute(select(*_COLUMNS).where(fleet.c.name == name)).one_or_none()
    if row is None:
        raise NotFoundError(f"no fleet {name}")
    return _fleet(row)


def fleets_after(connection: Connection, after: str, limit: int) -> Sequence[Fleet]:
    query = select(*_COLUMNS).where(fleet.c.name > after).order_by(fleet.c.name).limit(limit)
    return [_fleet(row) for row in connection.execute(query)]


def put_release_key(connection: Connection, fleet_key: int, kid: bytes, public_pem: str, now_ms: int) -> bool:
    added = connection.execute(
        dialect.insert(connection, release_key)
        .values(fleet_id=fleet_key, kid=kid, public_pem=public_pem, added_at=now_ms)
        .on_conflict_do_nothing()
    )
    return bool(added.rowcount)


def release_keys(connection: Connection, fleet_key: int) -> Mapping[bytes, str]:
    query = select(release_key.c.kid, release_key.c.public_pem).where(release_key.c.fleet_id == fleet_key)
    rows = connection.execute(query.order_by(release_key.c.added_at, release_key.c.kid))
    return {row.kid: row.public_pem for row in rows}


def delete_release_key(connection: Connection, fleet_key: int, kid: bytes) -> None:
    gone = connection.execute(
        delete(release_key).where(release_key.c.fleet_id == fleet_key, release_key.c.kid == kid)
    )
    if not gone.rowcount:
        raise NotFoundError("no such release key")


def root_document(connection: Connection, fleet_key: int) -> tuple[int, bytes | None]:
    query = select(fleet.c.root_version, fleet.c.root_document).where(fleet.c.id == fleet_key)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("no such fleet")
    return row.root_version, row.root_document


def put_root_document(
    connection: Connection, fleet_key: int, version: int, document: bytes, seen_version: int | None
) -> None:
    wanted = [fleet.c.id == fleet_key, fleet.c.root_version < version]
    if seen_version is not None:
        wanted.append(fleet.c.root_version == seen_version)
    raised = connection.execute(
        update(fleet).where(*wanted).values(root_version=version, root_document=document)
    )
    if not raised.rowcount:
        stored, _ = root_document(connection, fleet_key)
        if seen_version not in (None, stored):
            raise ConflictError(f"the root document is at version {stored}", code="stale_version")
        raise ConflictError(f"version {version} is not above {stored}", code="root_version")


def _fleet(row: Any) -> Fleet:
    return Fleet(row.id, FleetName(row.name), row.root_version, row.created_at)
