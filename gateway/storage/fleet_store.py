"""``SQLFleetStore``: the port ``FleetStore`` on a database. Each method is a query of the modules by noun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.errors import StorageUnavailableError
from gateway.fleet.acts import AUDIT_AGE_MS, Act, AuditEntry, Replay
from gateway.fleet.filters import AlertFilter, DeadLetterFilter, DeviceFilter, DeviceOrder, DevicePlace
from gateway.fleet.model import (
    Appended,
    Channel,
    ConnectedSubscription,
    DeadLetter,
    Delivery,
    Device,
    Draft,
    Fleet,
    LogRange,
    StoredMessage,
    Subscription,
)
from gateway.fleet.store import Seal
from gateway.identity import ChannelKind, OperatorToken
from gateway.storage import (
    channels,
    dead_letters,
    deliveries,
    devices,
    fleets,
    log,
    retention,
    standing,
    subscriptions,
    tokens,
)
from gateway.storage.audit import audited, forget_changes, performed
from gateway.storage.engine import CommitUnknownError, Database
from gateway.storage.idempotency import IDEMPOTENCY_AGE_MS, forget_answers

T = TypeVar("T")

LIST_LEN_MAX: Final = 1000  # items a list returns, whatever ``limit`` says
_FACT_WINDOWS_MAX: Final = 20  # transactions that one ``prune`` spends on facts, of which there are most
_INTERVALS_MAX: Final = 5_000  # live intervals closed in one transaction


class SQLFleetStore:
    """A ``FleetStore`` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._facts_after = 0  # how far the round of ``prune`` through the facts has come

    # --- fleets ---------------------------------------------------------------------------------------------

    async def create_fleet(
        self, name: FleetName, *, now_ms: int, act: Act[Fleet] | None = None
    ) -> Fleet | Replay:
        return await self._performed(act, now_ms, lambda conn: fleets.create_fleet(conn, name, now_ms))

    async def fleet(self, name: FleetName) -> Fleet:
        return await self._database.read(lambda conn: fleets.fleet_by_name(conn, name))

    async def fleets(self, *, after: str = "", limit: int = 100) -> Sequence[Fleet]:
        return await self._database.read(lambda conn: fleets.fleets_after(conn, after, _bounded(limit)))

    async def put_release_key(
        self, fleet_key: int, kid: bytes, public_pem: str, *, now_ms: int, audit: AuditEntry | None = None
    ) -> bool:
        return await self._audited(
            audit, lambda conn: fleets.put_release_key(conn, fleet_key, kid, public_pem, now_ms)
        )

    async def release_keys(self, fleet_key: int) -> Mapping[bytes, str]:
        return await self._database.read(lambda conn: fleets.release_keys(conn, fleet_key))

    async def delete_release_key(
        self, fleet_key: int, kid: bytes, *, audit: AuditEntry | None = None
    ) -> None:
        await self._audited(audit, lambda conn: fleets.delete_release_key(conn, fleet_key, kid))

    async def root_document(self, fleet_key: int) -> tuple[int, bytes | None]:
        return await self._database.read(lambda conn: fleets.root_document(conn, fleet_key))

    async def put_root_document(
        self,
        fleet_key: int,
        version: int,
        document: bytes,
        *,
        seen_version: int | None = None,
        audit: AuditEntry | None = None,
    ) -> None:
        await self._audited(
            audit,
            lambda conn: fleets.put_root_document(conn, fleet_key, version, document, seen_version),
        )

    # --- channels -------------------------------------------------------------------------------------------

    async def create_channel(
        self,
        fleet_key: int,
        name: ChannelName,
        kind: ChannelKind,
        *,
        now_ms: int,
        starts_at_earliest: bool = False,
        retention_age_s: int | None = None,
        retention_count: int | None = None,
        act: Act[Channel] | None = None,
    ) -> Channel | Replay:
        return await self._performed(
            act,
            now_ms,
            lambda conn: channels.create_channel(
                conn,
                fleet_key,
                name,
                kind,
                now_ms=now_ms,
                starts_at_earliest=starts_at_earliest,
                retention_age_s=retention_age_s,
                retention_count=retention_count,
            ),
        )

    async def channel(self, fleet_key: int, name: ChannelName) -> Channel:
        return await self._database.read(lambda conn: channels.channel_by_name(conn, fleet_key, name))

    async def channels(self, fleet_key: int, *, after: str = "", limit: int = 100) -> Sequence[Channel]:
        return await self._database.read(
            lambda conn: channels.channels_after(conn, fleet_key, after, _bounded(limit))
        )

    async def update_channel(
        self,
        fleet_key: int,
        name: ChannelName,
        changes: Mapping[str, Any],
        *,
        version: int | None,
        audit: AuditEntry | None = None,
    ) -> Channel:
        return await self._audited(
            audit, lambda conn: channels.update_channel(conn, fleet_key, name, changes, version)
        )

    async def delete_channel(
        self,
        fleet_key: int,
        name: ChannelName,
        *,
        version: int | None = None,
        audit: AuditEntry | None = None,
    ) -> Channel:
        return await self._audited(
            audit, lambda conn: channels.delete_channel(conn, fleet_key, name, version)
        )

    # --- devices --------------------------------------------------------------------------------------------

    async def create_device(
        self,
        fleet_key: int,
        device_id: DeviceId,
        *,
        tags: Sequence[str] = (),
        now_ms: int,
        act: Act[Device] | None = None,
    ) -> Device | Replay:
        return await self._performed(
            act, now_ms, lambda conn: devices.create_device(conn, fleet_key, device_id, tags, now_ms)
        )

    async def device(self, fleet_key: int, device_id: DeviceId) -> Device:
        return await self._database.read(lambda conn: devices.device_by_id(conn, fleet_key, device_id))

    async def devices(
        self,
        fleet_key: int,
        *,
        filter: DeviceFilter | None = None,
        order: DeviceOrder | None = None,
        after: DevicePlace | None = None,
        limit: int = 100,
    ) -> Sequence[Device]:
        return await self._database.read(
            lambda conn: devices.devices_after(
                conn, fleet_key, filter or DeviceFilter(), order or DeviceOrder(), after, _bounded(limit)
            )
        )

    async def update_device(
        self,
        fleet_key: int,
        device_id: DeviceId,
        changes: Mapping[str, Any],
        *,
        version: int | None,
        audit: AuditEntry | None = None,
    ) -> Device:
        return await self._audited(
            audit, lambda conn: devices.update_device(conn, fleet_key, device_id, changes, version)
        )

    async def delete_device(
        self,
        fleet_key: int,
        device_id: DeviceId,
        *,
        version: int | None = None,
        audit: AuditEntry | None = None,
    ) -> Device:
        return await self._audited(
            audit, lambda conn: devices.delete_device(conn, fleet_key, device_id, version)
        )

    # --- subscriptions --------------------------------------------------------------------------------------

    async def subscriptions(self, device_key: int) -> Sequence[Subscription]:
        return await self._database.read(lambda conn: subscriptions.subscriptions_of(conn, device_key))

    async def connected_subscriptions(self, device_key: int) -> Sequence[ConnectedSubscription]:
        return await self._database.read(lambda conn: standing.connected_subscriptions(conn, device_key))

    async def subscribers(
        self, channel_id: int, *, after: int = 0, limit: int = 100
    ) -> Sequence[tuple[DeviceId, Subscription]]:
        return await self._database.read(
            lambda conn: subscriptions.subscribers_after(conn, channel_id, after, _bounded(limit))
        )

    async def subscribe(
        self, device_key: int, channel_id: int, *, now_ms: int, audit: AuditEntry | None = None
    ) -> Subscription:
        return await self._audited(
            audit, lambda conn: subscriptions.subscribe(conn, device_key, channel_id, now_ms)
        )

    async def unsubscribe(self, device_key: int, channel_id: int, *, audit: AuditEntry | None = None) -> bool:
        return await self._audited(
            audit, lambda conn: subscriptions.unsubscribe(conn, device_key, channel_id)
        )

    # --- the log --------------------------------------------------------------------------------------------

    async def append(
        self,
        fleet_key: int,
        channel: ChannelName,
        drafts: Sequence[Draft],
        *,
        now_ms: int,
        kid: bytes,
        seal: Seal,
        requeues: int | None = None,
        act: Act[Appended] | None = None,
    ) -> Appended | Replay:
        def append(conn: Connection) -> Appended:
            if requeues is not None:
                dead_letters.mark_requeued(conn, requeues, drafts[0].id)
            return log.append(conn, fleet_key, channel, drafts, now_ms=now_ms, kid=kid, seal=seal)

        try:
            return await self._performed(act, now_ms, append)
        except CommitUnknownError as error:
            # Looked up by id, never repeated: a repetition could be appended twice (PROTOCOL §1.2).
            ids = [draft.id for draft in drafts]
            found = await self._database.read(lambda conn: log.appended_before(conn, fleet_key, channel, ids))
            if found is None:
                raise StorageUnavailableError("the append was not committed", retry_after_s=1) from error
            return found

    async def log_range(self, channel_id: int, first: int, last: int) -> LogRange:
        return await self._database.read(lambda conn: log.log_range(conn, channel_id, first, last))

    async def message(self, fleet_key: int, message_id: bytes) -> tuple[Channel, StoredMessage]:
        return await self._database.read(lambda conn: log.message_by_id(conn, fleet_key, message_id))

    async def messages(
        self,
        channel_id: int,
        *,
        filter: AlertFilter | None = None,
        is_oldest_first: bool = False,
        beyond: int | None,
        limit: int,
    ) -> Sequence[StoredMessage]:
        return await self._database.read(
            lambda conn: log.messages_beyond(
                conn, channel_id, filter or AlertFilter(), is_oldest_first, beyond, _bounded(limit)
            )
        )

    async def deliveries(
        self, channel_id: int, epoch: int, offset: int, *, after: str = "", limit: int = 100
    ) -> Sequence[Delivery]:
        return await self._database.read(
            lambda conn: deliveries.deliveries_after(conn, channel_id, epoch, offset, after, _bounded(limit))
        )

    async def prune(
        self, *, now_ms: int, age_s: int, count: int, dead_letter_age_s: int, rows_max: int
    ) -> Sequence[tuple[int, int]]:
        raised = await self._database.write(
            lambda conn: retention.raise_floors(
                conn, now_ms=now_ms, age_s=age_s, count=count, rows_max=rows_max
            )
        )
        await self._database.write(lambda conn: retention.delete_messages(conn, raised))
        for _ in range(_FACT_WINDOWS_MAX):
            self._facts_after = await self._database.write(
                lambda conn: retention.delete_facts(conn, after=self._facts_after, rows_max=rows_max)
            )
            if not self._facts_after:
                break
        await self._database.write(
            lambda conn: retention.delete_intervals(conn, rows_max=rows_max, opened_before=now_ms)
        )
        await self._database.write(
            lambda conn: retention.delete_dead_letters(
                conn, before=now_ms - dead_letter_age_s * 1000, rows_max=rows_max
            )
        )
        await self._database.write(
            lambda conn: forget_answers(conn, before=now_ms - IDEMPOTENCY_AGE_MS, limit=rows_max)
        )
        await self._database.write(
            lambda conn: forget_changes(conn, before=now_ms - AUDIT_AGE_MS, limit=rows_max)
        )
        return [(one.channel_id, one.floor) for one in raised]

    async def close_intervals(self, *, now_ms: int) -> int:
        total = 0
        while True:
            closed = await self._database.write(
                lambda conn: retention.close_left_intervals(conn, now_ms=now_ms, rows_max=_INTERVALS_MAX)
            )
            total += closed
            if closed < _INTERVALS_MAX:
                return total

    # --- dead letters ---------------------------------------------------------------------------------------

    async def dead_letters(
        self,
        fleet_key: int,
        *,
        filter: DeadLetterFilter | None = None,
        is_newest_first: bool = False,
        beyond: int | None = None,
        limit: int = 100,
    ) -> Sequence[DeadLetter]:
        return await self._database.read(
            lambda conn: dead_letters.dead_letters_beyond(
                conn, fleet_key, filter or DeadLetterFilter(), is_newest_first, beyond, _bounded(limit)
            )
        )

    async def dead_letter(self, fleet_key: int, id: int) -> DeadLetter:
        return await self._database.read(lambda conn: dead_letters.dead_letter_by_id(conn, fleet_key, id))

    # --- operators ------------------------------------------------------------------------------------------

    async def create_operator_token(self, token: OperatorToken) -> None:
        await self._database.write(lambda conn: tokens.create_operator_token(conn, token))

    async def operator_token(self, sha256: bytes) -> OperatorToken | None:
        return await self._database.read(lambda conn: tokens.operator_token_by_hash(conn, sha256))

    # --- both ways of changing ------------------------------------------------------------------------------

    async def _performed(self, act: Act[T] | None, now_ms: int, do: Callable[[Connection], T]) -> T | Replay:
        return await self._database.write(lambda conn: performed(conn, act, now_ms, do))

    async def _audited(self, entry: AuditEntry | None, do: Callable[[Connection], T]) -> T:
        return await self._database.write(lambda conn: audited(conn, entry, do))


def _bounded(limit: int) -> int:
    assert limit > 0, "a list of nothing"
    return min(limit, LIST_LEN_MAX)
