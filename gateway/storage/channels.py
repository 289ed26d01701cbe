"""Channels: logs of alerts, and names that rollouts are aimed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, select, update

from device_sdk.wire.names import ChannelName
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.model import Channel
from gateway.identity import ChannelKind
from gateway.ids import random_uint32
from gateway.storage import dialect
from gateway.storage.tables import channel, rollout

CHANGEABLE = frozenset({"retention_age_s", "retention_count", "starts_at_earliest"})


def create_channel(
    connection: Connection,
    fleet_key: int,
    name: ChannelName,
    kind: ChannelKind,
    *,
    now_ms: int,
    starts_at_earliest: bool,
    retention_age_s: int | None,
    retention_count: int | None,
) -> Channel:
    row = connection.execute(
        dialect.insert(connection, channel)
        .values(
            fleet_id=fleet_key,
            name=name,
            kind=kind,
            epoch=random_uint32(),
            starts_at_earliest=starts_at_earliest,
            retention_age_s=retention_age_s,
            retention_count=retention_count,
            created_at=now_ms,
        )
        .on_conflict_do_nothing()
        .returning(channel)
    ).one_or_none()
    if row is None:
        raise ConflictError(f"there is a channel {name}", code="channel_exists")
    return channel_of(row)


def channel_by_name(connection: Connection, fleet_key: int, name: ChannelName) -> Channel:
    row = connection.execute(select(channel).where(_named(fleet_key, name))).one_or_none()
    if row is None:
        raise NotFoundError(f"no channel {name}")
    return channel_of(row)


def channels_after(connection: Connection, fleet_key: int, after: str, limit: int) -> Sequence[Channel]:
    query = select(channel).where(
        channel.c.fleet_id == fleet_key,
        channel.c.name > after,
        channel.c.name < "~",  # the devices' own begin with it, and nothing sorts above them
    )
    return [channel_of(row) for row in connection.execute(query.order_by(channel.c.name).limit(limit))]


def update_channel(
    connection: Connection,
    fleet_key: int,
    name: ChannelName,
    changes: Mapping[str, Any],
    version: int | None,
) -> Channel:
    assert changes.keys() <= CHANGEABLE, "the edge knows what may be changed"
    wanted = _named(fleet_key, name)
    row = connection.execute(
        update(channel)
        .where(wanted if version is None else and_(wanted, channel.c.version == version))
        .values(**changes, version=channel.c.version + 1)
        .returning(channel)
    ).one_or_none()
    if row is None:
        stored = channel_by_name(connection, fleet_key, name)
        raise ConflictError(f"the channel is at version {stored.version}", code="stale_version")
    return channel_of(row)


def delete_channel(connection: Connection, fleet_key: int, name: ChannelName, version: int | None) -> Channel:
    found = connection.execute(select(channel).where(_named(fleet_key, name)).with_for_update()).one_or_none()
    if found is None:
        raise NotFoundError(f"no channel {name}")
    if version not in (None, found.version):
        raise ConflictError(f"the channel is at version {found.version}", code="stale_version")
    if connection.scalar(select(rollout.c.id).where(rollout.c.channel_id == found.id).limit(1)) is not None:
        raise ConflictError("a rollout names the channel", code="channel_in_use")
    connection.execute(delete(channel).where(channel.c.id == found.id))
    return channel_of(found)


def ensure_channels(
    connection: Connection, wanted: Mapping[tuple[int, ChannelName], ChannelKind], now_ms: int
) -> dict[tuple[int, str], Channel]:
    """Return the channels of these (fleet key, name), making those that are missing.

    A device's own channel starts at its earliest message: what was sent to the device before it came is meant
    for it. A channel of another kind than ``wanted`` is returned as it is.
    """
    found: dict[tuple[int, str], Channel] = {}
    names: dict[int, list[str]] = {}
    for fleet_key, name in sorted(wanted):
        names.setdefault(fleet_key, []).append(name)
    for fleet_key, of_fleet in names.items():
        found |= _channels_named(connection, fleet_key, of_fleet)
        missing = [name for name in of_fleet if (fleet_key, name) not in found]
        if not missing:
            continue
        rows = [
            (fleet_key, name, wanted[fleet_key, ChannelName(name)], random_uint32(), name[0] == "~", now_ms)
            for name in missing
        ]
        dialect.execute_rows(connection, _NEW, rows, _ADD)
        found |= _channels_named(connection, fleet_key, missing)
    return found


_NEW: dialect.Columns = (
    ("fleet_id", "bigint"),
    ("name", "text"),
    ("kind", "text"),
    ("epoch", "bigint"),
    ("starts_at_earliest", "boolean"),
    ("created_at", "bigint"),
)
_ADD = """INSERT INTO channel (fleet_id, name, kind, epoch, starts_at_earliest, created_at)
    SELECT fleet_id, name, kind, epoch, starts_at_earliest, created_at FROM incoming WHERE true
    ON CONFLICT DO NOTHING"""


def _channels_named(
    connection: Connection, fleet_key: int, names: Sequence[str]
) -> dict[tuple[int, str], Channel]:
    query = select(channel).where(channel.c.fleet_id == fleet_key, channel.c.name.in_(names))
    return {(fleet_key, row.name): channel_of(row) for row in connection.execute(query)}


def channel_of(row: Row[Any]) -> Channel:
    return Channel(
        id=row.id,
        fleet_key=row.fleet_id,
        name=ChannelName(row.name),
        kind=row.kind,
        epoch=row.epoch,
        head=row.head,
        floor=row.floor,
        starts_at_earliest=row.starts_at_earliest,
        retention_age_s=row.retention_age_s,
        retention_count=row.retention_count,
        version=row.version,
        created_at=row.created_at,
    )


def _named(fleet_key: int, name: ChannelName) -> Any:
    return and_(channel.c.fleet_id == fleet_key, channel.c.name == name)
