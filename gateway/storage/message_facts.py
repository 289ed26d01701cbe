"""All that is known of one alert on one device, or of one deployment, as facts with their times.

An alert's facts are ranges (PROTOCOL §3.4): those that hold its offset are its own. A deployment's are
columns of its row, and the reports that came. Both lists are in the order of time, and bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, or_, select

from device_sdk.wire.names import DeviceId
from gateway.errors import NotFoundError
from gateway.fleet.model import Channel, Fact, StoredMessage
from gateway.storage.engine import Database
from gateway.storage.facts import RECEIVED
from gateway.storage.log import message_by_id
from gateway.storage.rollouts import deployment_row
from gateway.storage.tables import (
    dead_letter,
    delivery_fact,
    device,
    live_interval,
    report,
    subscription,
)

FACTS_MAX: Final = 2_000  # of one kind; a deployment keeps 1,000 reports


class SQLMessageFacts:
    """Facts of alerts and deployments on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_alert(self, fleet_key: int, message_id: bytes, device_id: DeviceId) -> Sequence[Fact]:
        """Raises NotFoundError: no such alert, or no such device in its channel."""
        return await self._database.read(lambda conn: alert_facts(conn, fleet_key, message_id, device_id))

    async def of_deployment(self, fleet_key: int, deployment_id: bytes) -> Sequence[Fact]:
        """Raises NotFoundError."""
        return await self._database.read(lambda conn: deployment_facts(conn, fleet_key, deployment_id))


def alert_facts(conn: Connection, fleet_key: int, message_id: bytes, device_id: DeviceId) -> list[Fact]:
    channel, message = message_by_id(conn, fleet_key, message_id)
    device_key = conn.scalar(
        select(subscription.c.device_key)
        .join(device, device.c.id == subscription.c.device_key)
        .where(
            device.c.fleet_id == fleet_key,
            device.c.device_id == device_id,
            subscription.c.channel_id == channel.id,
        )
    )
    if device_key is None:
        raise NotFoundError("no such device in the alert's channel")
    facts = [
        Fact(fact="accepted", at=message.accepted_at),
        *_sent(conn, channel, message, device_key),
        *_received(conn, channel, message, device_key),
        *_given_up(conn, channel, message, device_key),
    ]
    return sorted(facts, key=lambda fact: fact.at)


def deployment_facts(conn: Connection, fleet_key: int, deployment_id: bytes) -> list[Fact]:
    one = deployment_row(conn, fleet_key, deployment_id)
    facts = [Fact(fact="accepted", at=one.notified_at)]
    if one.sent_at is not None:
        facts.append(Fact(fact="sent", at=one.sent_at, attempt=one.sends))
    if one.received_at is not None:
        facts.append(Fact(fact="received", at=one.received_at))
    if one.verified_at is not None:
        facts.append(Fact(fact="verified", at=one.verified_at))
    rows = conn.execute(
        select(report)
        .where(report.c.deployment_id == deployment_id, report.c.device_key == one.device_key)
        .order_by(report.c.seq)
        .limit(FACTS_MAX)
    )
    facts += [
        Fact(
            fact="report",
            at=row.at,
            state=row.state,
            progress=row.progress,
            code=row.code or row.status_code,
            detail=row.detail,
        )
        for row in rows
    ]
    if one.ended_at is not None:
        facts.append(
            Fact(fact="outcome", at=one.ended_at, state=one.state.value, code=one.code, detail=one.detail)
        )
    return sorted(facts, key=lambda fact: fact.at)


def _sent(conn: Connection, channel: Channel, message: StoredMessage, device_key: int) -> Iterator[Fact]:
    interval, fact = live_interval.c, delivery_fact.c
    for row in conn.execute(
        select(interval.opened_at)
        .where(*_covering(interval, channel, device_key, message))
        .where(or_(interval.last.is_(None), interval.last >= message.offset))
        .limit(FACTS_MAX)
    ):
        yield Fact(fact="sent", at=max(row.opened_at, message.accepted_at), attempt=1)
    for row in conn.execute(
        select(fact.at, fact.attempt)
        .where(*_covering(fact, channel, device_key, message))
        .where(fact.last >= message.offset, fact.fact != RECEIVED)
        .order_by(fact.id)
        .limit(FACTS_MAX)
    ):
        yield Fact(fact="sent", at=row.at, attempt=row.attempt)


def _received(conn: Connection, channel: Channel, message: StoredMessage, device_key: int) -> Iterator[Fact]:
    # Positions only rise: the fact with the lowest end that reaches the offset is the one that tells of it.
    fact = delivery_fact.c
    row = conn.execute(
        select(fact.at, fact.first)
        .where(
            fact.channel_id == channel.id,
            fact.device_key == device_key,
            fact.epoch == channel.epoch,
            fact.fact == RECEIVED,
            fact.last >= message.offset,
        )
        .order_by(fact.last)
        .limit(1)
    ).one_or_none()
    if row is not None and row.first <= message.offset:
        yield Fact(fact="received", at=row.at)


def _given_up(conn: Connection, channel: Channel, message: StoredMessage, device_key: int) -> Iterator[Fact]:
    dead = dead_letter.c
    row = conn.execute(
        select(dead.at, dead.reason, dead.code, dead.attempts).where(
            dead.device_key == device_key,
            dead.channel_id == channel.id,
            dead.message_id == message.id,
        )
    ).one_or_none()
    if row is not None:
        yield Fact(fact="dead_letter", at=row.at, attempt=row.attempts, state=row.reason, code=row.code)


def _covering(columns: Any, channel: Channel, device_key: int, message: StoredMessage) -> tuple[Any, ...]:
    # An alert is of its channel's epoch. What it was signed for may be another: `fleetcast db restored`.
    return (
        columns.channel_id == channel.id,
        columns.device_key == device_key,
        columns.epoch == channel.epoch,
        columns.first <= message.offset,
    )
