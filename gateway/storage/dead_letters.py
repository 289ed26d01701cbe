"""Alerts that were given up for a device, for operators to look at. They are written in ``facts``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select, update

from device_sdk.wire.names import ChannelName, DeviceId
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.filters import DeadLetterFilter
from gateway.fleet.model import DeadLetter
from gateway.storage.pages import by_id
from gateway.storage.tables import channel, dead_letter, device

_QUERY = (
    select(dead_letter, device.c.device_id, channel.c.name)
    .join(device, device.c.id == dead_letter.c.device_key)
    .join(channel, channel.c.id == dead_letter.c.channel_id)
)


def dead_letters_beyond(
    connection: Connection,
    fleet_key: int,
    filter: DeadLetterFilter,
    is_newest_first: bool,
    beyond: int | None,
    limit: int,
) -> Sequence[DeadLetter]:
    """In the order in which they were given up, or the other way round."""
    query = _QUERY.where(device.c.fleet_id == fleet_key, *_conditions(filter))
    query = by_id(query, dead_letter.c.id, is_newest_first, beyond)
    return [_dead_letter(row) for row in connection.execute(query.limit(limit))]


def dead_letter_by_id(connection: Connection, fleet_key: int, id: int) -> DeadLetter:
    query = _QUERY.where(device.c.fleet_id == fleet_key, dead_letter.c.id == id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("no such dead letter")
    return _dead_letter(row)


def mark_requeued(connection: Connection, id: int, message_id: bytes) -> None:
    """Say by which alert it is sent again. Raises ConflictError (``already_requeued``), NotFoundError."""
    marked = connection.execute(
        update(dead_letter)
        .where(dead_letter.c.id == id, dead_letter.c.requeued_as.is_(None))
        .values(requeued_as=message_id)
    )
    if marked.rowcount:
        return
    if connection.scalar(select(dead_letter.c.id).where(dead_letter.c.id == id)) is None:
        raise NotFoundError("no such dead letter")
    raise ConflictError("it was requeued before; requeued_as is the alert", code="already_requeued")


def _conditions(filter: DeadLetterFilter) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = []
    if filter.device_id is not None:
        wanted.append(device.c.device_id == filter.device_id)
    if filter.channel is not None:
        wanted.append(channel.c.name == filter.channel)
    if filter.reason is not None:
        wanted.append(dead_letter.c.reason == filter.reason)
    if filter.is_requeued is not None:
        wanted.append(dead_letter.c.requeued_as.is_not(None) == filter.is_requeued)
    if filter.since is not None:
        wanted.append(dead_letter.c.at >= filter.since)
    if filter.before is not None:
        wanted.append(dead_letter.c.at < filter.before)
    return wanted


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
