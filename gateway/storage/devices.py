"""Devices as operators see and change them. What a connection changes is in ``connect``."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, select, update

from device_sdk.wire.messages import Installed
from device_sdk.wire.names import DeviceId, own_channel
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.model import Device
from gateway.ids import random_uint32
from gateway.storage import dialect
from gateway.storage.channels import ensure_channels
from gateway.storage.subscriptions import add_subscriptions
from gateway.storage.tables import channel, device

CHANGEABLE = frozenset({"tags", "is_enabled"})


def create_device(
    connection: Connection, fleet_key: int, device_id: DeviceId, tags: Sequence[str], now_ms: int
) -> Device:
    """Enrol a device ahead of its first connection, with its own channel."""
    row = connection.execute(
        dialect.insert(connection, device)
        .values(
            fleet_id=fleet_key,
            device_id=device_id,
            enrolment_id=secrets.token_bytes(16),
            bucket=random_uint32(),
            origin={},
            reported={},
            tags=list(tags),
            installed={},
            enrolled_at=now_ms,
        )
        .on_conflict_do_nothing()
        .returning(device)
    ).one_or_none()
    if row is None:
        raise ConflictError(f"there is a device {device_id}", code="device_exists")
    own = own_channel(device_id)
    channels = ensure_channels(connection, {(fleet_key, own): "alert"}, now_ms)
    add_subscriptions(connection, [(row.id, channels[fleet_key, own], True, False)], now_ms)
    return device_of(row)


def device_by_id(connection: Connection, fleet_key: int, device_id: DeviceId) -> Device:
    row = connection.execute(select(device).where(_named(fleet_key, device_id))).one_or_none()
    if row is None:
        raise NotFoundError(f"no device {device_id}")
    return device_of(row)


def devices_after(connection: Connection, fleet_key: int, after: str, limit: int) -> Sequence[Device]:
    query = select(device).where(device.c.fleet_id == fleet_key, device.c.device_id > after)
    return [device_of(row) for row in connection.execute(query.order_by(device.c.device_id).limit(limit))]


def update_device(
    connection: Connection,
    fleet_key: int,
    device_id: DeviceId,
    changes: Mapping[str, Any],
    version: int | None,
) -> Device:
    assert changes.keys() <= CHANGEABLE, "the edge knows what may be changed"
    wanted = _named(fleet_key, device_id)
    row = connection.execute(
        update(device)
        .where(wanted if version is None else and_(wanted, device.c.version == version))
        .values(**changes, version=device.c.version + 1)
        .returning(device)
    ).one_or_none()
    if row is None:
        stored = device_by_id(connection, fleet_key, device_id)
        raise ConflictError(f"the device is at version {stored.version}", code="stale_version")
    return device_of(row)


def delete_device(connection: Connection, fleet_key: int, device_id: DeviceId) -> Device:
    """Its subscriptions, deployments, reports, dead letters and own channel go with it."""
    row = connection.execute(
        delete(device).where(_named(fleet_key, device_id)).returning(device)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"no device {device_id}")
    connection.execute(
        delete(channel).where(channel.c.fleet_id == fleet_key, channel.c.name == own_channel(device_id))
    )
    return device_of(row)


def device_of(row: Row[Any]) -> Device:
    return Device(
        key=row.id,
        fleet_key=row.fleet_id,
        device_id=DeviceId(row.device_id),
        enrolment_id=row.enrolment_id,
        bucket=row.bucket,
        is_enabled=row.is_enabled,
        origin=row.origin,
        reported=row.reported,
        tags=tuple(row.tags),
        installed={
            component: Installed(sequence, version, bytes.fromhex(digest), is_confirmed)
            for component, (sequence, version, digest, is_confirmed) in row.installed.items()
        },
        directive_sequence=row.directive_sequence,
        root_version=row.root_version,
        enrolled_at=row.enrolled_at,
        last_seen_at=row.last_seen_at,
        version=row.version,
    )


def installed_json(installed: Mapping[str, Installed]) -> dict[str, Any]:
    """Return what the column ``installed`` holds."""
    return {
        component: [item.sequence, item.version, item.digest.hex(), item.is_confirmed]
        for component, item in installed.items()
    }


def json_text(value: object) -> str:
    """Return a JSON column's text, for statements that Core does not make."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _named(fleet_key: int, device_id: DeviceId) -> Any:
    return and_(device.c.fleet_id == fleet_key, device.c.device_id == device_id)
