"""What operators do: written down with it, and done once; their tokens; and what they take back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select

from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.acts import AuditFilter, Replay
from gateway.fleet.model import Fleet
from gateway.identity import OperatorToken, Scope
from gateway.ids import uuid7
from gateway.storage.audit import SQLAuditLog
from gateway.storage.revocations import SQLRevocationStore
from gateway.storage.tables import revocation
from gateway.storage.tokens import SQLTokenStore
from tests.contract.world import ACME, OPS, World
from tests.harness.acts import TOKEN_ID, act, entry

D1 = DeviceId("d1")


async def changes(world: World, **wanted: Any) -> list[str]:
    rows = await SQLAuditLog(world.database).changes(AuditFilter(**wanted))
    return [row.entry.operation for row in rows]


class TestAudit:
    async def test_a_change_and_its_row_are_there_together(self, world: World) -> None:
        fleet = await world.fleet()
        made = await world.store.create_device(
            fleet.key, D1, now_ms=1, act=act(fleet_key=fleet.key, details={"tags": ["eu"]})
        )
        (row,) = await SQLAuditLog(world.database).changes(AuditFilter())
        assert (row.fleet, row.entry.token_id, row.entry.operator) == (ACME, TOKEN_ID, "alice")
        assert (row.entry.at, row.entry.target, row.entry.details) == (5, "things/7", {"tags": ["eu"]})
        assert made == await world.store.device(fleet.key, D1)

    async def test_what_was_refused_or_done_before_leaves_no_row(self, world: World) -> None:
        fleet = await world.fleet()
        await world.store.create_device(fleet.key, D1, now_ms=1, act=act())
        with pytest.raises(ConflictError):
            await world.store.create_device(fleet.key, D1, now_ms=1, act=act(key="other"))
        again = await world.store.create_device(fleet.key, D1, now_ms=1, act=act())
        assert again == Replay(201, b"{}")
        assert await changes(world) == ["things.make"]

    async def test_every_way_of_changing_writes_its_row(self, world: World) -> None:
        store, key = world.store, (await world.fleet()).key
        device, ops = (
            await store.create_device(key, D1, now_ms=1),
            await world.channel(await world.fleet("b")),
        )
        await world.channel(await store.fleet(ACME))
        ways: dict[str, Callable[..., Any]] = {
            "put_key": lambda **w: store.put_release_key(key, b"k" * 8, "pem", now_ms=1, **w),
            "delete_key": lambda **w: store.delete_release_key(key, b"k" * 8, **w),
            "put_root": lambda **w: store.put_root_document(key, 1, b"root", **w),
            "change_channel": lambda **w: store.update_channel(key, OPS, {}, version=None, **w),
            "subscribe": lambda **w: store.subscribe(device.key, ops.id, now_ms=1, **w),
            "unsubscribe": lambda **w: store.unsubscribe(device.key, ops.id, **w),
            "delete_channel": lambda **w: store.delete_channel(key, OPS, **w),
            "change_device": lambda **w: store.update_device(key, D1, {}, version=None, **w),
            "delete_device": lambda **w: store.delete_device(key, D1, **w),
        }
        for name, change in ways.items():
            await change(audit=entry(name))
        await store.create_fleet(FleetName("c"), now_ms=1, act=act(operation="create_fleet", key=None))
        await store.create_channel(key, OPS, "alert", now_ms=1, act=act(operation="create_channel", key=None))
        assert (await changes(world))[::-1] == [*ways, "create_fleet", "create_channel"]

    async def test_rows_are_found_by_who_what_and_when(self, world: World) -> None:
        acme, other = await world.fleet(), await world.fleet("other")
        for number, fleet in enumerate((acme, other, acme)):
            await world.store.put_release_key(
                fleet.key,
                bytes([number] * 8),
                "pem",
                now_ms=1,
                audit=replace(
                    entry(f"op.{number}", fleet_key=fleet.key),
                    at=number,
                    token_id=bytes([number]) * 16,
                    target=f"t/{number}",
                ),
            )
        assert await changes(world) == ["op.2", "op.1", "op.0"]
        assert await changes(world, fleet_key=acme.key) == ["op.2", "op.0"]
        assert await changes(world, token_id=b"\1" * 16) == await changes(world, target="t/1") == ["op.1"]
        assert await changes(world, operation="op.0") == await changes(world, before=1) == ["op.0"]
        assert await changes(world, since=1) == ["op.2", "op.1"]
        log = SQLAuditLog(world.database)
        (first,) = await log.changes(AuditFilter(), limit=1)
        rest = await log.changes(AuditFilter(), before=first.id)
        assert [row.entry.operation for row in (first, *rest)] == ["op.2", "op.1", "op.0"]


class TestVersions:
    async def test_what_changed_since_is_not_deleted(self, world: World) -> None:
        fleet = await world.fleet()
        channel = await world.channel(fleet)
        device = await world.store.create_device(fleet.key, D1, now_ms=1)
        with pytest.raises(ConflictError) as refused:
            await world.store.delete_channel(fleet.key, OPS, version=channel.version + 1)
        assert refused.value.code == "stale_version"
        with pytest.raises(ConflictError) as refused:
            await world.store.delete_device(fleet.key, D1, version=device.version + 1)
        assert refused.value.code == "stale_version"
        with pytest.raises(NotFoundError):
            await world.store.delete_device(fleet.key, DeviceId("no"), version=1)
        assert await world.store.channel(fleet.key, OPS) == channel
        assert await world.store.device(fleet.key, D1) == device
        await world.store.delete_channel(fleet.key, OPS, version=channel.version)
        await world.store.delete_device(fleet.key, D1, version=device.version)

    async def test_a_root_document_is_put_over_the_one_that_was_seen(self, world: World) -> None:
        fleet = await world.fleet()
        await world.store.put_root_document(fleet.key, 3, b"three", seen_version=0)
        with pytest.raises(ConflictError) as refused:
            await world.store.put_root_document(fleet.key, 4, b"four", seen_version=2)
        assert refused.value.code == "stale_version"
        with pytest.raises(ConflictError) as refused:
            await world.store.put_root_document(fleet.key, 3, b"again", seen_version=3)
        assert refused.value.code == "root_version"
        assert await world.store.root_document(fleet.key) == (3, b"three")


def token(number: int, fleet: str | None = ACME) -> OperatorToken:
    return OperatorToken(
        id=uuid7(number),
        name=f"t{number}",
        sha256=bytes([number]) * 32,
        fleet=None if fleet is None else FleetName(fleet),
        scopes=frozenset({Scope.READ, Scope.PUBLISH}),
        created_at=number,
    )


class TestTokens:
    async def test_a_fleet_s_tokens_are_seen_by_that_fleet_and_by_all(self, world: World) -> None:
        await world.fleet()
        await world.fleet("other")
        store = SQLTokenStore(world.database)
        made = [token(1), token(2, "other"), token(3, None)]
        for one in made:
            assert await store.create(one) == one
        assert await store.tokens(None) == made
        assert await store.tokens(ACME) == [made[0]]
        assert await store.tokens(None, after=made[0].id, limit=1) == [made[1]]
        assert await store.token(ACME, made[0].id) == made[0]
        for fleet, id in ((ACME, made[1].id), (ACME, made[2].id), (None, uuid7(9))):
            with pytest.raises(NotFoundError):
                await store.token(fleet, id)

    async def test_a_token_is_revoked_once_and_by_those_who_see_it(self, world: World) -> None:
        await world.fleet()
        store, one = SQLTokenStore(world.database), token(1)
        await store.create(one)
        with pytest.raises(NotFoundError):
            await store.revoke(FleetName("other"), one.id, now_ms=7, act=act(key=None))
        assert await changes(world) == []
        revoked = await store.revoke(ACME, one.id, now_ms=7, act=act(key=None))
        assert revoked == replace(one, revoked_at=7)
        assert await store.revoke(None, one.id, now_ms=9) == revoked
        assert await world.store.operator_token(one.sha256) == revoked
        assert await changes(world) == ["things.make"]

    async def test_a_repeated_request_makes_one_token(self, world: World) -> None:
        await world.fleet()
        store = SQLTokenStore(world.database)
        await store.create(token(1), act=act())
        assert await store.create(token(2), act=act()) == Replay(201, b"{}")
        assert len(await store.tokens(None)) == 1

    async def test_a_token_of_no_fleet_is_not_made(self, world: World) -> None:
        with pytest.raises(NotFoundError):
            await SQLTokenStore(world.database).create(token(1, "nowhere"), act=act())
        assert await changes(world) == []


class TestRevocations:
    async def revoke(self, world: World, fleet: Fleet, **what: Any) -> Any:
        given = {"token_sha256": None, "device_id": None, "reason": None} | what
        return await SQLRevocationStore(world.database).revoke(
            fleet, now_ms=world.now, token_id=TOKEN_ID, operator="alice", **given
        )

    async def test_they_come_back_in_the_order_of_their_sequence(self, world: World) -> None:
        acme, other = await world.fleet(), await world.fleet("other")
        store = SQLRevocationStore(world.database)
        assert await store.last_sequence() == 0
        made = [
            await self.revoke(world, acme, token_sha256=b"s" * 32, reason="stolen"),
            await self.revoke(world, other, device_id=D1),
            await self.revoke(world, acme, device_id=D1),
        ]
        assert [one.sequence for one in made] == [1, 2, 3]
        assert await store.revocations() == made
        assert await store.revocations(fleet_key=acme.key) == [made[0], made[2]]
        assert await store.revocations(after=1, limit=1) == [made[1]]
        assert await store.last_sequence() == 3
        assert (made[0].fleet, made[0].token_sha256, made[0].device_id) == (ACME, b"s" * 32, None)

    async def test_those_at_once_get_a_number_each_without_a_gap(self, world: World) -> None:
        fleet = await world.fleet()
        made = await asyncio.gather(*(self.revoke(world, fleet, device_id=D1) for _ in range(8)))
        assert sorted(one.sequence for one in made) == list(range(1, 9))

    async def test_a_repeated_request_revokes_once(self, world: World) -> None:
        fleet = await world.fleet()
        await self.revoke(world, fleet, device_id=D1, act=act())
        assert await self.revoke(world, fleet, device_id=D1, act=act()) == Replay(201, b"{}")
        count = select(func.count()).select_from(revocation)
        assert await world.database.read(lambda conn: conn.scalar(count)) == 1
        assert await changes(world) == ["things.make"]


async def test_a_channel_of_a_name_is_made_once_for_a_repeated_request(world: World) -> None:
    fleet = await world.fleet()
    made = await world.store.create_channel(
        fleet.key, ChannelName("a"), "alert", now_ms=1, act=act(lambda one: (201, one.name.encode()))
    )
    again = await world.store.create_channel(
        fleet.key, ChannelName("a"), "alert", now_ms=2, act=act(lambda one: (201, one.name.encode()))
    )
    assert again == Replay(201, b"a")
    assert await world.store.channels(fleet.key) == [made]
