"""Releases and artifacts: the queries, and ``SQLReleaseStore`` that runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, literal, select

from device_sdk.wire.names import ChannelName
from gateway.errors import NotFoundError
from gateway.fleet.acts import Act, AuditEntry, Replay
from gateway.release.service import ArtifactRow, ReleaseRow, Trust
from gateway.storage.audit import audited, performed
from gateway.storage.dialect import insert
from gateway.storage.engine import Database
from gateway.storage.pages import by_id
from gateway.storage.tables import artifact, fleet, release, release_key

_NO_ENVELOPE: Final = literal(b"").label("envelope")
_SUMMARY: Final = [column for column in release.c if column is not release.c.envelope]


class SQLReleaseStore:
    """A ``ReleaseStore`` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def trust(self, fleet_key: int) -> Trust:
        return await self._database.read(lambda conn: trust(conn, fleet_key))

    async def add_release(
        self, row: ReleaseRow, *, act: Act[ReleaseRow] | None = None
    ) -> ReleaseRow | Replay:
        return await self._database.write(
            lambda conn: performed(conn, act, row.created_at, lambda conn: add_release(conn, row))
        )

    async def release(self, fleet_key: int, release_id: bytes) -> ReleaseRow:
        return await self._database.read(
            lambda conn: release_where(conn, fleet_key, release.c.id == release_id)
        )

    async def release_by_digest(self, fleet_key: int, manifest_digest: bytes) -> ReleaseRow:
        return await self._database.read(
            lambda conn: release_where(conn, fleet_key, release.c.manifest_digest == manifest_digest)
        )

    async def releases(
        self,
        fleet_key: int,
        *,
        component: str | None = None,
        is_newest_first: bool = False,
        after: bytes | None = None,
        limit: int = 100,
    ) -> Sequence[ReleaseRow]:
        return await self._database.read(
            lambda conn: releases(conn, fleet_key, component, is_newest_first, after, limit)
        )

    async def add_artifact(self, row: ArtifactRow, *, audit: AuditEntry | None = None) -> bool:
        return await self._database.write(
            lambda conn: audited(conn, audit, lambda conn: add_artifact(conn, row))
        )

    async def artifact(self, fleet_key: int, digest: bytes) -> ArtifactRow:
        return await self._database.read(lambda conn: artifact_of(conn, fleet_key, digest))


def trust(conn: Connection, fleet_key: int) -> Trust:
    """Return what the fleet's releases are judged by."""
    keys = conn.execute(
        select(release_key.c.kid, release_key.c.public_pem).where(release_key.c.fleet_id == fleet_key)
    )
    document = conn.execute(select(fleet.c.root_document).where(fleet.c.id == fleet_key)).scalar_one_or_none()
    return Trust({row.kid: row.public_pem for row in keys}, document)


def add_release(conn: Connection, row: ReleaseRow) -> ReleaseRow:
    """Insert the release unless the fleet has one of the same manifest; return what it has."""
    added = conn.execute(
        insert(conn, release)
        .values(
            id=row.id,
            fleet_id=row.fleet_key,
            name=row.name,
            version=row.version,
            component=row.component,
            sequence=row.sequence,
            vendor_id=row.vendor_id,
            class_id=row.class_id,
            manifest_digest=row.manifest_digest,
            image_digest=row.image_digest,
            image_size=row.image_size,
            uri=row.uri,
            kid=row.kid,
            envelope=row.envelope,
            created_at=row.created_at,
        )
        .on_conflict_do_nothing(index_elements=["fleet_id", "manifest_digest"])
    )
    if added.rowcount == 0:
        row = release_where(conn, row.fleet_key, release.c.manifest_digest == row.manifest_digest)
    return row


def release_where(conn: Connection, fleet_key: int, condition: Any) -> ReleaseRow:
    """Return the fleet's one release that ``condition`` names."""
    row = conn.execute(select(release).where(release.c.fleet_id == fleet_key, condition)).one_or_none()
    if row is None:
        raise NotFoundError("no such release")
    return _release(row)


def releases(
    conn: Connection,
    fleet_key: int,
    component: str | None,
    is_newest_first: bool,
    after: bytes | None,
    limit: int,
) -> list[ReleaseRow]:
    """Return releases without their envelopes, by id."""
    query = select(*_SUMMARY, _NO_ENVELOPE).where(release.c.fleet_id == fleet_key)
    if component is not None:
        query = query.where(release.c.component == component)
    query = by_id(query, release.c.id, is_newest_first, after)
    return [_release(row) for row in conn.execute(query.limit(limit))]


def add_artifact(conn: Connection, row: ArtifactRow) -> bool:
    """Let the fleet fetch an image; return whether that is new."""
    added = conn.execute(
        insert(conn, artifact)
        .values(
            digest=row.digest, fleet_id=row.fleet_key, size_bytes=row.size_bytes, created_at=row.created_at
        )
        .on_conflict_do_nothing()
    )
    return added.rowcount == 1


def artifact_of(conn: Connection, fleet_key: int, digest: bytes) -> ArtifactRow:
    """Return the fleet's image."""
    row = conn.execute(
        select(artifact).where(artifact.c.digest == digest, artifact.c.fleet_id == fleet_key)
    ).one_or_none()
    if row is None:
        raise NotFoundError("no such artifact")
    return ArtifactRow(row.fleet_id, row.digest, row.size_bytes, row.created_at)


def _release(row: Any) -> ReleaseRow:
    return ReleaseRow(
        id=row.id,
        fleet_key=row.fleet_id,
        name=row.name,
        version=row.version,
        component=ChannelName(row.component),
        sequence=row.sequence,
        vendor_id=row.vendor_id,
        class_id=row.class_id,
        manifest_digest=row.manifest_digest,
        image_digest=row.image_digest,
        image_size=row.image_size,
        uri=row.uri,
        kid=row.kid,
        envelope=row.envelope,
        created_at=row.created_at,
    )
