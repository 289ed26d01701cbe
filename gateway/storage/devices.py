"""Devices as operators see and change them. What a connection changes is in ``connect``."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    func,
    literal,
    not_,
    select,
    tuple_,
    update,
)

from device_sdk.wire.messages import Installed
from device_sdk.wire.names import DeviceId, own_channel
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.filters import DeviceFilter, DeviceOrder, DevicePlace
from gateway.fleet.model import Device
from gateway.ids import random_uint32
from gateway.rollout.selector import parse_selector
from gateway.storage import dialect
from gateway.storage.channels import ensure_channels
from gateway.storage.selectors import condition
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


def devices_after(
    connection: Connection,
    fleet_key: int,
    filter: DeviceFilter,
    order: DeviceOrder,
    after: DevicePlace | None,
    limit: int,
) -> Sequence[Device]:
    query = select(device).where(device.c.fleet_id == fleet_key, *_conditions(filter))
    # Integer keys are not shown to operators: they only make the order by time a total one.
    places: tuple[ColumnElement[Any], ...] = (device.c.device_id,)
    if order.by_last_seen:
        places = (func.coalesce(device.c.last_seen_at, -1), device.c.id)
    if after is not None:
        last = after if isinstance(after, tuple) else (after,)
        assert len(last) == len(places), "the place is one of this order"
        here, there = tuple_(*places), tuple_(*map(literal, last))
        query = query.where(here < there if order.is_descending else here > there)
    query = query.order_by(*(place.desc() if order.is_descending else place for place in places))
    return [device_of(row) for row in connection.execute(query.limit(limit))]


def _conditions(filter: DeviceFilter) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = []
    if filter.selector is not None:
        wanted.append(condition(parse_selector(filter.selector)))
    if filter.tag is not None:
        wanted.append(dialect.json_contains(device.c.tags, filter.tag))
    if filter.is_enabled is not None:
        wanted.append(device.c.is_enabled.is_(filter.is_enabled))
    if filter.seen_since is not None:
        wanted.append(device.c.last_seen_at >= filter.seen_since)
    if filter.seen_before is not None:
        wanted.append(func.coalesce(device.c.last_seen_at, -1) < filter.seen_before)
    if filter.is_connected is not None:
        is_one = dialect.is_among(device.c.id, filter.connected)
        wanted.append(is_one if filter.is_connected else not_(is_one))
    return wanted


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


def delete_device(connection: Connection, fleet_key: int, device_id: DeviceId, version: int | None) -> Device:
    """Its subscriptions, deployments, reports, dead letters and own channel go with it."""
    wanted = _named(fleet_key, device_id)
    row = connection.execute(
        delete(device)
        .where(wanted if version is None else and_(wanted, device.c.version == version))
        .returning(device)
    ).one_or_none()
    if row is None:
        stored = device_by_id(connection, fleet_key, device_id)
        raise ConflictError(f"the device is at version {stored.version}", code="stale_version")
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
    if value == {}:  # most devices say nothing of themselves
        return "{}"
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _named(fleet_key: int, device_id: DeviceId) -> Any:
    return and_(device.c.fleet_id == fleet_key, device.c.device_id == device_id)
