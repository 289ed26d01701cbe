"""Subscriptions: a device's place in a channel. Acks move it in ``facts``, connections in ``connect``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, func, select, update

from device_sdk.wire.limits import CHANNELS_MAX
from device_sdk.wire.names import ChannelName, DeviceId
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.model import Channel, Subscription
from gateway.storage import dialect
from gateway.storage.tables import channel, device, subscription

_COLUMNS: Final = (subscription, channel.c.name, channel.c.kind)
_JOINED: Final = subscription.join(channel, channel.c.id == subscription.c.channel_id)


def subscriptions_of(connection: Connection, device_key: int) -> Sequence[Subscription]:
    query = select(*_COLUMNS).select_from(_JOINED).where(subscription.c.device_key == device_key)
    rows = connection.execute(query.order_by(channel.c.name).limit(CHANNELS_MAX + 1))
    return [_subscription(row) for row in rows]


def subscribers_after(
    connection: Connection, channel_id: int, after: int, limit: int
) -> Sequence[tuple[DeviceId, Subscription]]:
    """By rising device key, which is what ``after`` names."""
    query = (
        select(*_COLUMNS, device.c.device_id)
        .select_from(_JOINED.join(device, device.c.id == subscription.c.device_key))
        .where(subscription.c.channel_id == channel_id, subscription.c.device_key > after)
        .order_by(subscription.c.device_key)
        .limit(limit)
    )
    return [(DeviceId(row.device_id), _subscription(row)) for row in connection.execute(query)]


def subscribe(connection: Connection, device_key: int, channel_id: int, now_ms: int) -> Subscription:
    # The device's row is locked, so that two at once do not pass the limit together.
    if connection.scalar(select(device.c.id).where(device.c.id == device_key).with_for_update()) is None:
        raise NotFoundError("no such device")
    found = connection.execute(
        update(subscription)
        .where(subscription.c.device_key == device_key, subscription.c.channel_id == channel_id)
        .values(by_operator=True)
    )
    if not found.rowcount:
        _add_for_operator(connection, device_key, channel_id, now_ms)
    query = select(*_COLUMNS).select_from(_JOINED)
    row = connection.execute(
        query.where(subscription.c.device_key == device_key, subscription.c.channel_id == channel_id)
    ).one()
    return _subscription(row)


def _add_for_operator(connection: Connection, device_key: int, channel_id: int, now_ms: int) -> None:
    counted = select(func.count()).where(subscription.c.device_key == device_key)
    if (connection.scalar(counted) or 0) >= CHANNELS_MAX:
        raise ConflictError(f"the device has {CHANNELS_MAX} channels", code="too_many_channels")
    row = connection.execute(select(channel).where(channel.c.id == channel_id)).one_or_none()
    if row is None:
        raise NotFoundError("no such channel")
    connection.execute(
        subscription.insert().values(
            device_key=device_key,
            channel_id=channel_id,
            by_origin=False,
            by_operator=True,
            epoch=row.epoch,
            offset=row.floor if row.starts_at_earliest else row.head,
            created_at=now_ms,
        )
    )


def unsubscribe(connection: Connection, device_key: int, channel_id: int) -> bool:
    """A device's own channel is the origin's in this sense: no operator ends it."""
    wanted = (subscription.c.device_key == device_key) & (subscription.c.channel_id == channel_id)
    ended = connection.execute(delete(subscription).where(wanted, subscription.c.by_origin.is_(False)))
    if ended.rowcount:
        return True
    kept = connection.execute(update(subscription).where(wanted).values(by_operator=False))
    if not kept.rowcount:
        raise NotFoundError("no such subscription")
    return False


def add_subscriptions(
    connection: Connection, wanted: Sequence[tuple[int, Channel, bool, bool]], now_ms: int
) -> None:
    """Add (device key, channel, by_origin, by_operator); one that is there already stays as it is.

    It starts at the head of this moment, or at the earliest message that is left (PROTOCOL §2.4).
    """
    rows = [
        (device_key, at.id, by_origin, by_operator, now_ms)
        for device_key, at, by_origin, by_operator in wanted
    ]
    dialect.execute_rows(connection, _NEW, rows, _ADD)


_NEW: dialect.Columns = (
    ("device_key", "bigint"),
    ("channel_id", "bigint"),
    ("by_origin", "boolean"),
    ("by_operator", "boolean"),
    ("created_at", "bigint"),
)
_ADD: Final = """
    INSERT INTO subscription (device_key, channel_id, by_origin, by_operator, epoch, "offset", created_at)
    SELECT incoming.device_key, c.id, incoming.by_origin, incoming.by_operator, c.epoch,
           CASE WHEN c.starts_at_earliest THEN c.floor ELSE c.head END, incoming.created_at
    FROM incoming JOIN channel AS c ON c.id = incoming.channel_id WHERE true
    ON CONFLICT DO NOTHING"""


def _subscription(row: Row[Any]) -> Subscription:
    return Subscription(
        id=row.id,
        device_key=row.device_key,
        channel_id=row.channel_id,
        channel=ChannelName(row.name),
        kind=row.kind,
        by_origin=row.by_origin,
        by_operator=row.by_operator,
        epoch=row.epoch,
        offset=row.offset,
        stuck_offset=row.stuck_offset,
        attempts=row.attempts,
        created_at=row.created_at,
    )
