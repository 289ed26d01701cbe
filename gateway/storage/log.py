"""The log of a channel: appending and reading. Offsets commit in order (PROTOCOL §1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from device_sdk.wire.names import ChannelName, FleetName
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.filters import AlertFilter
from gateway.fleet.model import Appended, Channel, Draft, LogRange, StoredMessage
from gateway.fleet.store import Seal
from gateway.storage.channels import channel_of
from gateway.storage.pages import by_id
from gateway.storage.tables import channel, fleet, message

RANGE_LEN_MAX: Final = 300


def append(
    connection: Connection,
    fleet_key: int,
    name: ChannelName,
    drafts: Sequence[Draft],
    *,
    now_ms: int,
    kid: bytes,
    seal: Seal,
) -> Appended:
    """Take the next offsets and insert the messages; the head's row lock makes commit order offset order."""
    assert drafts, "an append has something to append"
    row = connection.execute(
        update(channel)
        .where(channel.c.fleet_id == fleet_key, channel.c.name == name)
        .values(head=channel.c.head + len(drafts))
        .returning(channel)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"no channel {name}")
    at = channel_of(row)
    if at.kind != "alert":
        raise ConflictError(f"{name} is a channel of updates", code="wrong_kind")
    fleet_name = FleetName(connection.scalars(select(fleet.c.name).where(fleet.c.id == fleet_key)).one())
    first = at.head - len(drafts) + 1
    messages = []
    for offset, draft in enumerate(drafts, first):
        payload, signature = seal(fleet_name, name, at.epoch, offset, draft)
        messages.append(_sealed(at, offset, draft, payload, signature, kid, now_ms))
    messages = _supersede(connection, at, messages)
    try:
        connection.execute(insert(message), [_values(one) for one in messages])
    except IntegrityError as error:
        raise ConflictError("a message with that id is there", code="message_exists") from error
    return Appended(channel=at, messages=tuple(messages))


def _supersede(connection: Connection, at: Channel, messages: list[StoredMessage]) -> list[StoredMessage]:
    """Retire older messages with the keys of these, in the log and among themselves."""
    newest: dict[str, int] = {}
    result = []
    for one in reversed(messages):
        if one.key is None:
            result.append(one)
            continue
        by = newest.get(one.key)
        newest[one.key] = one.offset
        result.append(one if by is None else _superseded(one, by))
    for key, offset in newest.items():  # the first of these with the key: it is what follows the stored one
        connection.execute(
            update(message)
            .where(
                message.c.channel_id == at.id,
                message.c.key == key,
                message.c.key.is_not(None),  # lets the planner use the partial index
                message.c.superseded_by.is_(None),
                message.c.offset < offset,
            )
            .values(superseded_by=offset)
        )
    return result[::-1]


def appended_before(
    connection: Connection, fleet_key: int, name: ChannelName, ids: Sequence[bytes]
) -> Appended | None:
    """Return the messages ``ids`` if they are in the log: the outcome of a COMMIT that nobody saw."""
    row = connection.execute(
        select(channel).where(channel.c.fleet_id == fleet_key, channel.c.name == name)
    ).one_or_none()
    if row is None:
        return None
    query = select(message).where(message.c.id.in_(ids), message.c.channel_id == row.id)
    messages = [message_of(found) for found in connection.execute(query.order_by(message.c.offset))]
    return Appended(channel_of(row), tuple(messages)) if len(messages) == len(ids) else None


def log_range(connection: Connection, channel_id: int, first: int, last: int) -> LogRange:
    query = select(channel.c.epoch, channel.c.head, channel.c.floor).where(channel.c.id == channel_id)
    at = connection.execute(query).one_or_none()
    if at is None:
        raise NotFoundError("the channel is gone")
    rows = connection.execute(
        select(message)
        .where(
            message.c.channel_id == channel_id,
            message.c.offset >= max(first, at.floor + 1),
            message.c.offset <= last,
        )
        .order_by(message.c.offset)
        .limit(RANGE_LEN_MAX)
    )
    return LogRange(at.epoch, at.head, at.floor, tuple(message_of(row) for row in rows))


def message_by_id(connection: Connection, fleet_key: int, message_id: bytes) -> tuple[Channel, StoredMessage]:
    found = connection.execute(
        select(message)
        .join(channel, channel.c.id == message.c.channel_id)
        .where(
            message.c.id == message_id,
            channel.c.fleet_id == fleet_key,
            message.c.offset > channel.c.floor,
        )
    ).one_or_none()
    if found is None:
        raise NotFoundError("no such alert")
    at = connection.execute(select(channel).where(channel.c.id == found.channel_id)).one()
    return channel_of(at), message_of(found)


def messages_beyond(
    connection: Connection,
    channel_id: int,
    filter: AlertFilter,
    is_oldest_first: bool,
    beyond: int | None,
    limit: int,
) -> Sequence[StoredMessage]:
    query = (
        select(message)
        .join(channel, channel.c.id == message.c.channel_id)
        .where(message.c.channel_id == channel_id, message.c.offset > channel.c.floor)
    )
    if filter.accepted_since is not None:
        query = query.where(message.c.accepted_at >= filter.accepted_since)
    if filter.accepted_before is not None:
        query = query.where(message.c.accepted_at < filter.accepted_before)
    if filter.key is not None:
        query = query.where(message.c.key == filter.key)
    query = by_id(query, message.c.offset, not is_oldest_first, beyond)
    return [message_of(row) for row in connection.execute(query.limit(limit))]


def message_of(row: Row[Any]) -> StoredMessage:
    return StoredMessage(
        channel_id=row.channel_id,
        offset=row.offset,
        id=row.id,
        payload=row.payload,
        signature=row.signature,
        kid=row.kid,
        key=row.key,
        superseded_by=row.superseded_by,
        original_id=row.original_id,
        accepted_at=row.accepted_at,
        expires_at=row.expires_at,
    )


def _sealed(
    at: Channel, offset: int, draft: Draft, payload: bytes, signature: bytes, kid: bytes, now_ms: int
) -> StoredMessage:
    return StoredMessage(
        channel_id=at.id,
        offset=offset,
        id=draft.id,
        payload=payload,
        signature=signature,
        kid=kid,
        key=draft.key,
        superseded_by=None,
        original_id=draft.original_id,
        accepted_at=now_ms,
        expires_at=draft.expires_at,
    )


def _superseded(one: StoredMessage, by: int) -> StoredMessage:
    return StoredMessage(**_values(one) | {"superseded_by": by})


def _values(one: StoredMessage) -> dict[str, Any]:
    return {name: getattr(one, name) for name in StoredMessage.__slots__}
