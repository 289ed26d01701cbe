"""The facts of one alert for each device that should have it, read back from ranges (PROTOCOL §3.4).

Sent: in a live interval that holds the offset the alert was sent when it was accepted (or when the interval
opened, if that was a moment later); pages and redeliveries are rows. Received: the first ack that reaches it.
One query a page: each device's facts are found by index, so a page costs its length, not the log's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, ScalarSelect, and_, case, func, or_, select

from device_sdk.wire.names import DeviceId
from gateway.errors import NotFoundError
from gateway.fleet.model import Delivery
from gateway.storage.facts import RECEIVED, SENT
from gateway.storage.tables import (
    channel,
    dead_letter,
    delivery_fact,
    device,
    live_interval,
    message,
    subscription,
)

_INTERVAL: Final = live_interval.c
_FACT: Final = delivery_fact.c


def deliveries_after(
    connection: Connection, channel_id: int, epoch: int, offset: int, after: str, limit: int
) -> Sequence[Delivery]:
    """By device id; a device whose subscription began after the alert has no facts of it."""
    at = connection.execute(
        select(channel.c.fleet_id, message.c.accepted_at)
        .join(message, message.c.channel_id == channel.c.id)
        .where(channel.c.id == channel_id, channel.c.epoch == epoch, message.c.offset == offset)
    ).one_or_none()
    if at is None:
        raise NotFoundError("no such alert")
    page = (
        select(device.c.id, device.c.device_id)
        .join(subscription, subscription.c.device_key == device.c.id)
        .where(
            device.c.fleet_id == at.fleet_id,
            device.c.device_id > after,
            subscription.c.channel_id == channel_id,
        )
        .order_by(device.c.device_id)
        .limit(limit)
        .cte("page")
    )
    live = _covering(_INTERVAL, page, channel_id, epoch, offset)
    sent = and_(_covering(_FACT, page, channel_id, epoch, offset), _FACT.fact == SENT)
    rows = connection.execute(
        select(
            page.c.device_id,
            _scalar(select(func.min(_later(at.accepted_at))).where(live)).label("live_at"),
            _scalar(select(func.count()).select_from(live_interval).where(live)).label("live_count"),
            _scalar(select(func.min(_FACT.at)).where(sent)).label("sent_at"),
            _scalar(select(func.count()).select_from(delivery_fact).where(sent)).label("sent_count"),
            _received(page, channel_id, epoch, offset).label("received_at"),
            dead_letter.c.reason,
        )
        .select_from(page)
        .outerjoin(
            dead_letter,
            and_(
                dead_letter.c.device_key == page.c.id,
                dead_letter.c.channel_id == channel_id,
                dead_letter.c.epoch == epoch,
                dead_letter.c.offset == offset,
            ),
        )
        .order_by(page.c.device_id)
    )
    return [
        Delivery(
            device_id=DeviceId(row.device_id),
            sent_at=min((at for at in (row.live_at, row.sent_at) if at is not None), default=None),
            # Facts of what was sent follow the sending: a node that was killed in between never wrote them.
            attempts=max(row.live_count + row.sent_count, 0 if row.received_at is None else 1),
            received_at=row.received_at,
            dead_letter=row.reason,
        )
        for row in rows
    ]


def _covering(columns: Any, page: Any, channel_id: int, epoch: int, offset: int) -> Any:
    return and_(
        columns.channel_id == channel_id,
        columns.device_key == page.c.id,
        columns.epoch == epoch,
        columns.first <= offset,
        or_(columns.last.is_(None), columns.last >= offset)
        if columns is _INTERVAL
        else columns.last >= offset,
    )


def _later(accepted_at: int) -> Any:
    opened_at = _INTERVAL.opened_at
    return case((opened_at > accepted_at, opened_at), else_=accepted_at)


def _received(page: Any, channel_id: int, epoch: int, offset: int) -> ScalarSelect[Any]:
    # Positions only rise, so the fact with the lowest end that reaches the offset is the earliest.
    first = (
        select(case((_FACT.first <= offset, _FACT.at)))
        .where(
            _FACT.channel_id == channel_id,
            _FACT.device_key == page.c.id,
            _FACT.fact == RECEIVED,
            _FACT.last >= offset,
            _FACT.epoch == epoch,
        )
        .order_by(_FACT.last)
        .limit(1)
    )
    return _scalar(first)


def _scalar(query: Any) -> ScalarSelect[Any]:
    scalar: ScalarSelect[Any] = query.scalar_subquery()
    return scalar
