"""What leaves the database, and when: old alerts and their facts, answers to repeated requests, dead letters.

A channel's floor is committed before its rows go (PROTOCOL §1.6), so that a device finds either the alert or
the word that it was pruned. Every step is bounded in rows; whoever calls comes back for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, delete, exists, func, or_, select, update

from gateway.storage.dialect import Columns, execute_rows
from gateway.storage.standing import CLOSE_BY_PROOF
from gateway.storage.tables import channel, dead_letter, delivery_fact, device, live_interval, message

CHANNELS_MAX: Final = 200  # channels looked at in one step


@dataclass(frozen=True, slots=True)
class Raised:
    """A floor to raise: everything up to and including ``floor`` goes."""

    channel_id: int
    floor: int


def raise_floors(
    connection: Connection, *, now_ms: int, age_s: int, count: int, rows_max: int
) -> Sequence[Raised]:
    """Raise floors as age and count ask, together by at most ``rows_max`` offsets; return what was raised."""
    raised = _floors(connection, now_ms=now_ms, age_s=age_s, count=count, rows_max=rows_max)
    for one in raised:
        connection.execute(
            update(channel)
            .where(channel.c.id == one.channel_id, channel.c.floor < one.floor)
            .values(floor=one.floor)
        )
    return raised


def _floors(
    connection: Connection, *, now_ms: int, age_s: int, count: int, rows_max: int
) -> Sequence[Raised]:
    cutoff = now_ms - func.coalesce(channel.c.retention_age_s, age_s) * 1000
    kept = func.coalesce(channel.c.retention_count, count)
    oldest = (
        select(message.c.accepted_at)
        .where(message.c.channel_id == channel.c.id, message.c.offset > channel.c.floor)
        .order_by(message.c.offset)
        .limit(1)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(channel.c.id, channel.c.head, channel.c.floor, cutoff.label("cutoff"), kept.label("kept"))
        .where(
            channel.c.kind == "alert",
            channel.c.head > channel.c.floor,
            or_(channel.c.head - channel.c.floor > kept, oldest < cutoff),
        )
        .order_by(channel.c.id)
        .limit(CHANNELS_MAX)
    ).all()
    raised = []
    for row in rows:
        by_count = row.head - row.kept
        # Offsets are walked in order, not found by time: after a jump of the clock an old one waits.
        floor = max(by_count, _aged(connection, row, rows_max), row.floor)
        floor = min(floor, row.floor + rows_max)
        if floor > row.floor:
            raised.append(Raised(row.id, floor))
            rows_max -= floor - row.floor
        if rows_max <= 0:
            break
    return raised


def _aged(connection: Connection, row: Any, rows_max: int) -> int:
    """Return the highest offset before the first alert that is young enough to stay."""
    oldest = (
        select(message.c.offset, message.c.accepted_at)
        .where(message.c.channel_id == row.id, message.c.offset > row.floor)
        .order_by(message.c.offset)
        .limit(rows_max)
        .subquery()
    )
    young = connection.scalar(select(func.min(oldest.c.offset)).where(oldest.c.accepted_at >= row.cutoff))
    if young is not None:
        return int(young) - 1
    return int(connection.scalar(select(func.max(oldest.c.offset))) or row.floor)


def delete_messages(connection: Connection, raised: Sequence[Raised]) -> None:
    for one in raised:
        connection.execute(
            delete(message).where(message.c.channel_id == one.channel_id, message.c.offset <= one.floor)
        )


def delete_facts(connection: Connection, *, after: int, rows_max: int) -> int:
    """Delete, of ``rows_max`` facts above id ``after``, those of alerts, devices or channels that are gone.

    Return the id to go on from; 0: the end was reached. Facts of a channel that keeps its alerts longer stay
    and are passed over, which is why it goes round.
    """
    last, found = _window(connection, after, rows_max)
    if last is None:
        return 0
    connection.execute(
        delete(delivery_fact).where(
            delivery_fact.c.id > after, delivery_fact.c.id <= last, _is_over(delivery_fact)
        )
    )
    return int(last) if found == rows_max else 0


def delete_intervals(connection: Connection, *, rows_max: int, opened_before: int) -> None:
    """Delete old closed live intervals, all of whose alerts are gone."""
    old = (
        select(live_interval.c.id)
        .where(
            live_interval.c.opened_at < opened_before,
            live_interval.c.last.is_not(None),
            _is_over(live_interval),
        )
        .order_by(live_interval.c.opened_at)
        .limit(rows_max)
    )
    connection.execute(delete(live_interval).where(live_interval.c.id.in_(old)))


def delete_dead_letters(connection: Connection, *, before: int, rows_max: int) -> None:
    oldest = select(dead_letter.c.id).order_by(dead_letter.c.id).limit(rows_max)
    connection.execute(delete(dead_letter).where(dead_letter.c.id.in_(oldest), dead_letter.c.at < before))


def close_left_intervals(connection: Connection, *, now_ms: int, rows_max: int) -> int:
    """Close live intervals that a node left open when it stopped; return how many."""
    left = select(live_interval.c.id).where(live_interval.c.last.is_(None)).limit(rows_max)
    rows = [(id, now_ms) for id in connection.scalars(left)]
    execute_rows(connection, _LEFT, rows, _CLOSE_LEFT)
    return len(rows)


_LEFT: Final[Columns] = (("id", "bytea"), ("at", "bigint"))
_CLOSE_LEFT: Final = f"""
    UPDATE live_interval AS v SET closed_at = incoming.at, {CLOSE_BY_PROOF}
    FROM incoming WHERE v.id = incoming.id AND v.last IS NULL"""


def _window(connection: Connection, after: int, rows_max: int) -> tuple[int | None, int]:
    window = (
        select(delivery_fact.c.id)
        .where(delivery_fact.c.id > after)
        .order_by(delivery_fact.c.id)
        .limit(rows_max)
        .subquery()
    )
    row = connection.execute(select(func.max(window.c.id), func.count()).select_from(window)).one()
    return row[0], row[1]


def _is_over(table: Any) -> Any:
    """What it is about cannot be asked for any more: pruned, of another epoch, deleted."""
    return or_(
        ~exists().where(
            and_(
                channel.c.id == table.c.channel_id,
                channel.c.epoch == table.c.epoch,
                channel.c.floor < table.c.last,
            )
        ),
        ~exists().where(device.c.id == table.c.device_key),
    )
