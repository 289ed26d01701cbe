"""How devices stand in their channels: position, the channel at that moment, what was sent, what is dead.

A connection begins from it (``connect``), and a session reads it again when its subscriptions change. Set
queries: as many statements for five hundred devices as for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, select

from device_sdk.wire.names import ChannelName
from gateway.errors import NotFoundError
from gateway.fleet.model import ConnectedSubscription
from gateway.storage.dialect import Columns, execute_rows, padded
from gateway.storage.tables import channel, dead_letter, device, subscription

DEAD_MAX: Final = (
    10_000  # dead letters above a device's position that one query returns, lowest offsets first
)

_S = subscription.c
_QUERY: Final = (
    select(
        subscription,
        channel.c.name,
        channel.c.kind,
        channel.c.epoch.label("channel_epoch"),
        channel.c.head,
        channel.c.floor,
    )
    .join(channel, channel.c.id == _S.channel_id)
    .where(_S.device_key.in_(bindparam("devices", expanding=True)))
    .order_by(_S.device_key, channel.c.name)
)


def connected_subscriptions(connection: Connection, device_key: int) -> Sequence[ConnectedSubscription]:
    """Return the subscriptions of one device. Raises NotFoundError: it is gone."""
    if connection.scalar(select(device.c.id).where(device.c.id == device_key)) is None:
        raise NotFoundError("the device is gone")
    return standing(connection, subscription_rows(connection, [device_key]))


def subscription_rows(connection: Connection, device_keys: Sequence[int]) -> Sequence[Row[Any]]:
    """Return rows of subscription and channel, by device and channel name."""
    return connection.execute(_QUERY, {"devices": padded(device_keys)}).all()


def standing(connection: Connection, rows: Sequence[Row[Any]]) -> list[ConnectedSubscription]:
    """Return what ``rows`` of ``subscription_rows`` say, with what was sent and is dead, in their order."""
    behind = [row for row in rows if row.kind == "alert" and row.head > row.offset]
    sent = _sent_next(connection, behind)
    dead = _dead(connection, behind)
    return [
        ConnectedSubscription(
            id=row.id,
            channel_id=row.channel_id,
            channel=ChannelName(row.name),
            kind=row.kind,
            epoch=row.epoch,
            offset=row.offset,
            stuck_offset=row.stuck_offset,
            attempts=row.attempts,
            channel_epoch=row.channel_epoch,
            head=row.head,
            floor=row.floor,
            was_sent=row.id in sent or row.stuck_offset == row.offset + 1,
            dead=dead.get(row.id, frozenset()),
        )
        for row in rows
    ]


# For an UPDATE of ``live_interval AS v``: of an interval that its session never closed, what is proved is
# what the device acknowledged.
CLOSE_BY_PROOF: Final = """last = COALESCE((
        SELECT CASE WHEN s."offset" >= v.first THEN s."offset" ELSE v.first - 1 END
        FROM subscription AS s
        WHERE s.device_key = v.device_key AND s.channel_id = v.channel_id AND s.epoch = v.epoch),
        v.first - 1)"""

_NEXT: Final[Columns] = (
    ("id", "bigint"),
    ("device_key", "bigint"),
    ("channel_id", "bigint"),
    ("epoch", "bigint"),
    ("next", "bigint"),
)
# A live interval that is still open was left by a node that stopped, or belongs to the session that this
# connection displaces: either way the alert was on its way.
_WAS_SENT: Final = """
    SELECT i.id FROM incoming AS i
    WHERE EXISTS (SELECT 1 FROM live_interval AS v
                  WHERE v.channel_id = i.channel_id AND v.device_key = i.device_key AND v.epoch = i.epoch
                    AND v.first <= i.next AND (v.last IS NULL OR v.last >= i.next))
       OR EXISTS (SELECT 1 FROM delivery_fact AS f
                  WHERE f.channel_id = i.channel_id AND f.device_key = i.device_key AND f.fact = 1
                    AND f.epoch = i.epoch AND f.last >= i.next AND f.first <= i.next)"""


def _sent_next(connection: Connection, behind: Sequence[Row[Any]]) -> set[int]:
    rows = [(row.id, row.device_key, row.channel_id, row.epoch, row.offset + 1) for row in behind]
    return {row.id for row in execute_rows(connection, _NEXT, rows, _WAS_SENT)}


def _dead(connection: Connection, behind: Sequence[Row[Any]]) -> Mapping[int, frozenset[int]]:
    if not behind:
        return {}
    rows = connection.execute(
        select(_S.id, dead_letter.c.offset)
        .join(
            dead_letter,
            (dead_letter.c.device_key == _S.device_key)
            & (dead_letter.c.channel_id == _S.channel_id)
            & (dead_letter.c.epoch == _S.epoch)
            & (dead_letter.c.offset > _S.offset),
        )
        .where(_S.id.in_([row.id for row in behind]))
        .order_by(dead_letter.c.offset)
        .limit(DEAD_MAX)
    )
    found: dict[int, set[int]] = {}
    for row in rows:
        found.setdefault(row.id, set()).add(row.offset)
    return {key: frozenset(offsets) for key, offsets in found.items()}
