"""Alerts that were given up for a device, for operators to look at. They are written in ``facts``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, update

from device_sdk.wire.names import ChannelName, DeviceId
from gateway.errors import NotFoundError
from gateway.fleet.model import DeadLetter
from gateway.storage.tables import channel, dead_letter, device

_QUERY = (
    select(dead_letter, device.c.device_id, channel.c.name)
    .join(device, device.c.id == dead_letter.c.device_key)
    .join(channel, channel.c.id == dead_letter.c.channel_id)
)


def dead_letters_after(
    connection: Connection, fleet_key: int, device_key: int | None, after: int, limit: int
) -> Sequence[DeadLetter]:
    """Oldest first."""
    query = _QUERY.where(device.c.fleet_id == fleet_key, dead_letter.c.id > after)
    if device_key is not None:
        query = query.where(dead_letter.c.device_key == device_key)
    return [_dead_letter(row) for row in connection.execute(query.order_by(dead_letter.c.id).limit(limit))]


def dead_letter_by_id(connection: Connection, fleet_key: int, id: int) -> DeadLetter:
    query = _QUERY.where(device.c.fleet_id == fleet_key, dead_letter.c.id == id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("no such dead letter")
    return _dead_letter(row)


def mark_requeued(connection: Connection, id: int, message_id: bytes) -> None:
    marked = connection.execute(
        update(dead_letter).where(dead_letter.c.id == id).values(requeued_as=message_id)
    )
    if not marked.rowcount:
        raise NotFoundError("no such dead letter")


def _dead_letter(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        id=row.id,
        device_key=row.device_key,
        device_id=DeviceId(row.device_id),
        channel_id=row.channel_id,
        channel=ChannelName(row.name),
        epoch=row.epoch,
        offset=row.offset,
        message_id=row.message_id,
        reason=row.reason,
        code=row.code,
        attempts=row.attempts,
        at=row.at,
        requeued_as=row.requeued_as,
    )
