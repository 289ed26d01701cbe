"""How hot writes about alerts become rows: live intervals, pages, acks, attempts, dead letters.

Each handler gets all writes of its type in one flush and runs one statement for them, whatever their number.
A write about a device or a channel that was deleted meanwhile changes nothing. ``Connect`` is in ``connect``,
what is written about deployments in ``reports``; reading it all back is in ``deliveries``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection

from gateway.clock import Clock
from gateway.fleet.facts import (
    Adopted,
    Attempted,
    DeadLettered,
    Disconnected,
    IntervalClosed,
    IntervalOpened,
    Received,
    Sent,
)
from gateway.storage.dialect import Columns, execute_rows, move_positions
from gateway.storage.writer import Handler

SENT: Final = 1
RECEIVED: Final = 2


def fact_handlers(clock: Clock) -> Mapping[type, Handler]:
    """Return the handlers of this module. ``clock`` says when an ack was committed."""
    return {
        IntervalOpened: open_intervals,
        Sent: add_sent,
        Attempted: raise_attempts,
        DeadLettered: add_dead_letters,
        Adopted: adopt_positions,
        Received: lambda connection, writes: receive(connection, writes, clock.now_ms()),
        IntervalClosed: close_intervals,
        Disconnected: see_last,
    }


def open_intervals(connection: Connection, writes: Sequence[IntervalOpened]) -> Sequence[None]:
    rows = [(w.id, w.device_key, w.channel_id, w.epoch, w.first, w.at) for w in writes]
    execute_rows(connection, _INTERVAL, rows, _OPEN)
    return [None] * len(writes)


def close_intervals(connection: Connection, writes: Sequence[IntervalClosed]) -> Sequence[None]:
    execute_rows(connection, _CLOSED, [(w.id, w.last, w.at) for w in writes], _CLOSE)
    return [None] * len(writes)


def add_sent(connection: Connection, writes: Sequence[Sent]) -> Sequence[None]:
    rows = [(w.device_key, w.channel_id, w.epoch, w.first, w.last, w.attempt, w.at) for w in writes]
    execute_rows(connection, _SENT, rows, _ADD_SENT)
    return [None] * len(writes)


def receive(connection: Connection, writes: Sequence[Received], now_ms: int) -> Sequence[None]:
    """Acks of one subscription and epoch become one position and one fact.

    A device that adopted another epoch in between acknowledges in both; the one that is not the stored
    position's matches nothing.
    """
    ranges: dict[tuple[int, int], list[int]] = {}
    for w in writes:
        known = ranges.get((w.subscription_id, w.epoch))
        if known is None:
            ranges[w.subscription_id, w.epoch] = [w.device_key, w.channel_id, w.first, w.last]
            continue
        known[2] = min(known[2], w.first)
        known[3] = max(known[3], w.last)
    # In the order of the rows' keys: two nodes that write the same rows then meet in one order.
    move_positions(
        connection,
        [
            (subscription_id, device_key, channel_id, epoch, first, last, now_ms)
            for (subscription_id, epoch), (device_key, channel_id, first, last) in sorted(ranges.items())
        ],
    )
    return [None] * len(writes)


def raise_attempts(connection: Connection, writes: Sequence[Attempted]) -> Sequence[None]:
    last: dict[int, tuple[int, int]] = {}
    for w in writes:
        last[w.subscription_id] = max(last.get(w.subscription_id, (0, 0)), (w.stuck_offset, w.attempts))
    rows = [(key, stuck_offset, attempts) for key, (stuck_offset, attempts) in sorted(last.items())]
    execute_rows(connection, _ATTEMPT, rows, _RAISE_ATTEMPTS)
    return [None] * len(writes)


def add_dead_letters(connection: Connection, writes: Sequence[DeadLettered]) -> Sequence[None]:
    rows = [
        (w.device_key, w.channel_id, w.epoch, w.offset, w.message_id, w.reason, w.code, w.attempts, w.at)
        for w in writes
    ]
    execute_rows(connection, _DEAD, rows, _ADD_DEAD)
    return [None] * len(writes)


def adopt_positions(connection: Connection, writes: Sequence[Adopted]) -> Sequence[None]:
    last = {w.subscription_id: (w.epoch, w.offset) for w in writes}
    rows = [(key, epoch, offset) for key, (epoch, offset) in sorted(last.items())]
    execute_rows(connection, _POSITION, rows, _ADOPT)
    return [None] * len(writes)


def see_last(connection: Connection, writes: Sequence[Disconnected]) -> Sequence[None]:
    last: dict[int, int] = {}
    for w in writes:
        last[w.device_key] = max(last.get(w.device_key, 0), w.at)
    execute_rows(connection, _SEEN, sorted(last.items()), _SEE_LAST)
    return [None] * len(writes)


_INTERVAL: Final[Columns] = (
    ("id", "bytea"),
    ("device_key", "bigint"),
    ("channel_id", "bigint"),
    ("epoch", "bigint"),
    ("first", "bigint"),
    ("opened_at", "bigint"),
)
_OPEN: Final = """
    INSERT INTO live_interval (id, device_key, channel_id, epoch, first, opened_at)
    SELECT id, device_key, channel_id, epoch, first, opened_at FROM incoming WHERE true
    ON CONFLICT DO NOTHING"""

_CLOSED: Final[Columns] = (("id", "bytea"), ("last", "bigint"), ("closed_at", "bigint"))
# One that a later connection closed by what it could prove is closed again by who knows better.
_CLOSE: Final = """
    UPDATE live_interval SET last = incoming.last, closed_at = incoming.closed_at
    FROM incoming WHERE live_interval.id = incoming.id"""

_SENT: Final[Columns] = (
    ("device_key", "bigint"),
    ("channel_id", "bigint"),
    ("epoch", "bigint"),
    ("first", "bigint"),
    ("last", "bigint"),
    ("attempt", "integer"),
    ("at", "bigint"),
)
_ADD_SENT: Final = f"""
    INSERT INTO delivery_fact (device_key, channel_id, fact, epoch, first, last, attempt, at)
    SELECT device_key, channel_id, {SENT}, epoch, first, last, attempt, at FROM incoming"""

_ATTEMPT: Final[Columns] = (("id", "bigint"), ("stuck_offset", "bigint"), ("attempts", "integer"))
# An ack may have overtaken it: what is acknowledged is not stuck.
_RAISE_ATTEMPTS: Final = """
    UPDATE subscription AS s SET stuck_offset = incoming.stuck_offset,
        attempts = CASE WHEN s.stuck_offset = incoming.stuck_offset AND s.attempts > incoming.attempts
                        THEN s.attempts ELSE incoming.attempts END
    FROM incoming
    WHERE s.id = incoming.id AND s."offset" < incoming.stuck_offset
      AND s.stuck_offset <= incoming.stuck_offset"""

_DEAD: Final[Columns] = (
    ("device_key", "bigint"),
    ("channel_id", "bigint"),
    ("epoch", "bigint"),
    ("dead_offset", "bigint"),
    ("message_id", "bytea"),
    ("reason", "text"),
    ("code", "text"),
    ("attempts", "integer"),
    ("at", "bigint"),
)
_ADD_DEAD: Final = """
    INSERT INTO dead_letter
        (device_key, channel_id, epoch, "offset", message_id, reason, code, attempts, at)
    SELECT i.device_key, i.channel_id, i.epoch, i.dead_offset, i.message_id, i.reason, i.code,
           i.attempts, i.at
    FROM incoming AS i JOIN device AS d ON d.id = i.device_key JOIN channel AS c ON c.id = i.channel_id
    WHERE true
    ON CONFLICT DO NOTHING"""

_POSITION: Final[Columns] = (("id", "bigint"), ("epoch", "bigint"), ("position", "bigint"))
_ADOPT: Final = """
    UPDATE subscription SET epoch = incoming.epoch, "offset" = incoming.position,
        stuck_offset = 0, attempts = 0
    FROM incoming WHERE subscription.id = incoming.id"""

_SEEN: Final[Columns] = (("id", "bigint"), ("at", "bigint"))
_SEE_LAST: Final = """
    UPDATE device SET last_seen_at = incoming.at
    FROM incoming
    WHERE device.id = incoming.id AND (device.last_seen_at IS NULL OR device.last_seen_at < incoming.at)"""
