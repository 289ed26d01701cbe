"""After a backup was restored: new epochs for all, nothing else forgotten (PROTOCOL §1.7)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select

from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.errors import ConflictError, StorageUnavailableError
from gateway.fleet.facts import DeadLettered, IntervalClosed, IntervalOpened, Received, Sent
from gateway.fleet.model import Fact, Fleet
from gateway.storage import Database, SQLFleetStore
from gateway.storage.backup import check_unused, copy_database
from gateway.storage.engine import DatabaseLimits, open_database
from gateway.storage.epochs import _FOLLOW, renew_epochs
from gateway.storage.message_facts import alert_facts
from gateway.storage.tables import channel, metadata
from gateway.telemetry import Metrics
from tests.contract.world import World, standing_in


async def test_every_channel_of_every_fleet_gets_another_epoch(world: World) -> None:
    for name in ("acme", "zeta"):
        fleet = await world.fleet(name)
        await world.channel(fleet, "ops")
        await world.channel(fleet, "firmware", kind="update")
        await world.connect(fleet=name)
    before = await epochs(world)
    assert len(before) == 6, "the devices' own, too"
    assert await world.database.write(renew_epochs) == 6
    after = await epochs(world)
    assert after.keys() == before.keys()
    assert all(after[key] != before[key] for key in before)
    assert len(set(after.values())) == 6


async def test_more_channels_than_one_statement_takes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.storage.epochs._PAGE_LEN", 3)
    fleet = await world.fleet()
    for number in range(7):
        await world.channel(fleet, f"c{number}")
    before = await epochs(world)
    assert await world.database.write(renew_epochs) == 7
    after = await epochs(world)
    assert [key for key in before if before[key] == after[key]] == []


async def test_a_device_stands_where_the_backup_has_it_and_its_own_epoch_is_wrong(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    connected = await world.connect(channels={"ops": "alert"})
    await world.publish(fleet, count=3)
    at = standing_in(connected, "ops")
    await world.commit(Received(at.id, connected.device_key, at.channel_id, at.epoch, 1, 2))
    await world.database.write(renew_epochs)
    again = standing_in(
        await world.connect(channels={"ops": "alert"}, positions={"ops": (at.epoch, 3)}), "ops"
    )
    assert again.epoch == again.channel_epoch != at.epoch
    assert (again.offset, again.head) == (2, 3), "what it says in the old epoch is no ack"


async def test_dead_letters_and_facts_stay_with_their_alerts(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    connected = await world.connect(channels={"ops": "alert"})
    published = await world.publish(fleet, count=3)
    at = standing_in(connected, "ops")
    key, where = connected.device_key, (at.channel_id, at.epoch)
    await world.commit(
        IntervalOpened(b"i" * 16, key, *where, 3, world.now),
        Sent(key, *where, 1, 2, 1, world.now),
        DeadLettered(key, *where, 2, published.messages[1].id, "nacked", "too_hot", 1, world.now),
        Received(at.id, key, *where, 1, 1),
        IntervalClosed(b"i" * 16, 3, world.now),
    )
    before = [await deliveries(world, at.channel_id, at.epoch, offset) for offset in (1, 2, 3)]
    facts = [await facts_of(world, fleet, message.id) for message in published.messages]
    assert before[0][0].received_at is not None
    assert [one.fact for one in facts[0]] == ["accepted", "sent", "received"]
    await world.database.write(renew_epochs)
    (epoch,) = {standing_in(await world.connect(channels={"ops": "alert"}), "ops").channel_epoch}
    after = [await deliveries(world, at.channel_id, epoch, offset) for offset in (1, 2, 3)]
    assert after == before
    assert [await facts_of(world, fleet, message.id) for message in published.messages] == facts
    again = standing_in(await world.connect(channels={"ops": "alert"}), "ops")
    assert again.dead == {2}, "what was given up is not sent again"


async def test_stored_signatures_vouch_for_nothing_any_more(world: World) -> None:
    fleet = await world.fleet()
    made = await world.channel(fleet)
    await world.publish(fleet, count=2)
    await world.database.write(renew_epochs)
    found = await world.store.log_range(made.id, 1, 2)
    assert [(one.offset, one.kid) for one in found.messages] == [(1, b""), (2, b"")]
    await world.publish(fleet)
    found = await world.store.log_range(made.id, 1, 3)
    assert found.messages[2].kid != b""


async def test_the_log_goes_on_where_the_backup_ends(world: World) -> None:
    fleet = await world.fleet()
    made = await world.channel(fleet)
    await world.publish(fleet, count=2)
    await world.database.write(renew_epochs)
    appended = await world.publish(fleet)
    assert appended.messages[0].offset == 3
    assert appended.channel.epoch != made.epoch


def test_every_table_that_names_an_epoch_follows() -> None:
    named = {
        table.name for table in metadata.tables.values() if {"channel_id", "epoch"} <= set(table.c.keys())
    }
    assert named == {statement.split()[1] for statement in _FOLLOW}


async def test_it_is_all_or_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    before = await epochs(world)
    monkeypatch.setattr("gateway.storage.epochs._VOID", "UPDATE nothing SET nothing = 1")
    with pytest.raises(Exception, match="nothing"):
        await world.database.write(renew_epochs)
    assert await epochs(world) == before


async def test_a_gateway_that_runs_on_postgresql_is_noticed(postgresql_url: str, metrics: Metrics) -> None:
    async with (
        open_database(postgresql_url, limits=DatabaseLimits(), metrics=metrics) as gateway,
        open_database(postgresql_url, limits=DatabaseLimits(), metrics=metrics) as command,
    ):
        await gateway.read(lambda connection: connection.scalar(select(1)))
        with pytest.raises(ConflictError) as caught:
            await command.write(renew_epochs)
    assert caught.value.code == "database_in_use"


class TestEmbedded:
    async def test_a_gateway_that_runs_is_noticed(self, sqlite_url: str, metrics: Metrics) -> None:
        check_unused(sqlite_url)
        async with open_database(sqlite_url, limits=DatabaseLimits(), metrics=metrics) as gateway:
            await gateway.read(lambda connection: connection.scalar(select(1)))
            with pytest.raises(ConflictError) as caught:
                await asyncio.to_thread(check_unused, sqlite_url)
            assert caught.value.code == "database_in_use"
        check_unused(sqlite_url)

    async def test_a_copy_is_whole_and_of_one_moment_beside_writers(
        self, sqlite_url: str, tmp_path: Path, metrics: Metrics
    ) -> None:
        target = tmp_path / "copy.db"
        async with open_database(sqlite_url, limits=DatabaseLimits(), metrics=metrics) as database:
            await fill(database)
            writing = asyncio.create_task(fill(database, first=1_000))
            size = await asyncio.to_thread(copy_database, sqlite_url, target)
            await writing
        assert target.stat().st_mode & 0o777 == 0o600
        assert size == target.stat().st_size > 0
        engine = create_engine(f"sqlite:///{target}")
        with engine.connect() as connection:
            count = connection.scalar(select(func.count()).select_from(channel))
        engine.dispose()
        assert count is not None
        assert 100 <= count <= 200
        assert not target.with_name("copy.db-wal").exists()

    def test_nothing_is_overwritten_and_nothing_half_is_left(self, sqlite_url: str, tmp_path: Path) -> None:
        target = tmp_path / "copy.db"
        target.write_text("mine")
        with pytest.raises(FileExistsError):
            copy_database(sqlite_url, target)
        assert target.read_text() == "mine"
        for url in (f"sqlite:///{tmp_path}/none.db", f"sqlite:///{target}"):
            with pytest.raises(StorageUnavailableError):
                copy_database(url, tmp_path / "other.db")
            assert not (tmp_path / "other.db").exists()

    def test_postgresql_is_left_to_its_own_program(self, tmp_path: Path) -> None:
        with pytest.raises(ConflictError) as caught:
            copy_database("postgresql://nobody@127.0.0.1:1/x", tmp_path / "copy.db")
        assert caught.value.code == "not_embedded"
        assert list(tmp_path.iterdir()) == []
        check_unused("postgresql://nobody@127.0.0.1:1/x")


async def epochs(world: World) -> dict[int, int]:
    rows = await world.database.read(lambda c: c.execute(select(channel.c.id, channel.c.epoch)).all())
    return {row.id: row.epoch for row in rows}


async def facts_of(world: World, fleet: Fleet, message_id: bytes) -> list[Fact]:
    return await world.database.read(lambda c: alert_facts(c, fleet.key, message_id, DeviceId("d1")))


async def deliveries(world: World, channel_id: int, epoch: int, offset: int) -> list[object]:
    return list(await world.store.deliveries(channel_id, epoch, offset))


async def fill(database: Database, *, first: int = 0) -> None:
    """Commit a hundred channels, one after another."""
    store = SQLFleetStore(database)
    fleet = await store.create_fleet(FleetName(f"f{first}"), now_ms=0)
    for number in range(first, first + 100):
        await store.create_channel(fleet.key, ChannelName(f"c{number}"), "alert", now_ms=0)
