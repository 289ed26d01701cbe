from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import IntegrityError

from gateway.errors import ConfigError, StorageUnavailableError
from gateway.storage.engine import Database, DatabaseLimits, open_database
from gateway.storage.tables import fleet
from gateway.telemetry import Metrics


def add_fleet(connection: Connection, name: str) -> None:
    connection.execute(insert(fleet).values(name=name, created_at=0))


def names(connection: Connection) -> list[str]:
    return list(connection.scalars(select(fleet.c.name).order_by(fleet.c.name)))


async def test_a_read_sees_every_write_that_returned(database: Database) -> None:
    for number in range(20):
        await database.write(lambda c, n=number: add_fleet(c, f"f{n:02}"))
        assert len(await database.read(names)) == number + 1


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    def command(connection: Connection) -> None:
        add_fleet(connection, "gone")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await database.write(command)
    assert await database.read(names) == []


async def test_a_constraint_is_the_callers_to_expect_and_ends_only_its_own_transaction(
    database: Database,
) -> None:
    await database.write(lambda c: add_fleet(c, "acme"))
    with pytest.raises(IntegrityError):
        await database.write(lambda c: add_fleet(c, "acme"))
    await database.write(lambda c: add_fleet(c, "other"))
    assert await database.read(names) == ["acme", "other"]


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(StorageUnavailableError) as refused:
        await database.read(lambda c: add_fleet(c, "acme"))
    assert "read" in str(refused.value.__cause__)
    assert "only" in str(refused.value.__cause__)
    assert await database.read(names) == []


async def test_all_a_read_sees_is_of_one_moment(database: Database) -> None:
    # The writer commits between the reader's two queries; the reader must not notice.
    await database.write(lambda c: add_fleet(c, "first"))
    looked, written = threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    signal = asyncio.Event()

    def query(connection: Connection) -> tuple[list[str], list[str]]:
        before = names(connection)
        if database.dialect == "sqlite":  # in a thread of its own
            loop.call_soon_threadsafe(signal.set)
            assert written.wait(10)
        else:
            from sqlalchemy.util import await_only

            signal.set()
            await_only(done.wait())
        looked.set()
        return before, names(connection)

    done = asyncio.Event()
    reading = asyncio.create_task(database.read(query))
    await signal.wait()
    await database.write(lambda c: add_fleet(c, "second"))
    written.set()
    done.set()
    assert await reading == (["first"], ["first"])
    assert await database.read(names) == ["first", "second"]


async def test_writes_at_once_are_all_there(database: Database) -> None:
    def raise_version(connection: Connection) -> None:
        key = connection.scalar(select(fleet.c.id).with_for_update())
        current = connection.scalar(select(fleet.c.root_version).where(fleet.c.id == key))
        connection.execute(fleet.update().values(root_version=current + 1))

    await database.write(lambda c: add_fleet(c, "acme"))
    await asyncio.gather(*(database.write(raise_version) for _ in range(50)))
    assert await database.read(lambda c: c.scalar(select(fleet.c.root_version))) == 50


async def test_opposite_lock_orders_end_well(database: Database) -> None:
    for name in ("a", "b"):
        await database.write(lambda c, n=name: add_fleet(c, n))

    def touch(first: str, second: str) -> Callable[[Connection], None]:
        def command(connection: Connection) -> None:
            for name in (first, second):
                connection.execute(
                    fleet.update().where(fleet.c.name == name).values(root_version=fleet.c.root_version + 1)
                )

        return command

    pairs = [touch("a", "b"), touch("b", "a")] * 2
    await asyncio.gather(*(database.write(pair) for pair in pairs))
    assert await database.read(lambda c: c.scalar(select(func.sum(fleet.c.root_version)))) == 8


async def test_a_server_that_is_away_is_storage_unavailable(metrics: Metrics) -> None:
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    async with open_database(url, limits=DatabaseLimits(), metrics=metrics) as database:
        with pytest.raises(StorageUnavailableError):
            await database.read(names)
        with pytest.raises(StorageUnavailableError):
            await database.write(lambda c: add_fleet(c, "acme"))
    assert metrics.registry.get_sample_value("fleetcast_db_failures_total") == 2


async def test_a_killed_connection_is_storage_unavailable_and_the_next_one_works(
    postgresql_url: str, metrics: Metrics
) -> None:
    async with open_database(postgresql_url, limits=DatabaseLimits(), metrics=metrics) as database:

        def suicide(connection: Connection) -> None:
            add_fleet(connection, "gone")
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(StorageUnavailableError):
            await database.write(suicide)
        assert await database.read(names) == []


async def test_an_exhausted_pool_is_storage_unavailable(postgresql_url: str, metrics: Metrics) -> None:
    limits = DatabaseLimits(pool_size=1, pool_overflow=0, pool_timeout_s=0.05)
    async with open_database(postgresql_url, limits=limits, metrics=metrics) as database:
        from sqlalchemy.util import await_only

        held, release = asyncio.Event(), asyncio.Event()

        def hold(connection: Connection) -> None:
            held.set()
            await_only(release.wait())

        holding = asyncio.create_task(database.read(hold))
        await held.wait()
        with pytest.raises(StorageUnavailableError):
            await database.read(names)
        release.set()
        await holding
        assert await database.read(names) == []


async def test_a_full_line_for_sqlite_is_storage_unavailable(sqlite_url: str, metrics: Metrics) -> None:
    async with open_database(sqlite_url, limits=DatabaseLimits(waiting_max=2), metrics=metrics) as database:
        release = threading.Event()
        running = [asyncio.create_task(database.write(lambda c: release.wait(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(StorageUnavailableError):
            await database.write(names)
        release.set()
        await asyncio.gather(*running)
        assert await database.write(names) == []


async def test_a_full_disk_is_storage_unavailable_and_leaves_nothing(
    sqlite_url: str, metrics: Metrics
) -> None:
    async with open_database(sqlite_url, limits=DatabaseLimits(), metrics=metrics) as database:

        def fill(connection: Connection) -> None:
            add_fleet(connection, "gone")
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
            for number in range(10_000):
                add_fleet(connection, f"{number:0100}")

        with pytest.raises(StorageUnavailableError):
            await database.write(fill)
        assert await database.read(names) == []


async def test_what_was_committed_to_sqlite_survives_another_open(sqlite_url: str, metrics: Metrics) -> None:
    async with open_database(sqlite_url, limits=DatabaseLimits(), metrics=metrics) as database:
        await database.write(lambda c: add_fleet(c, "acme"))

        def pragmas(connection: Connection) -> list[object]:
            wanted = ("journal_mode", "synchronous", "foreign_keys")
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in wanted]

        assert await database.write(pragmas) == ["wal", 2, 1]
    async with open_database(sqlite_url, limits=DatabaseLimits(), metrics=metrics) as database:
        assert await database.read(names) == ["acme"]


async def test_a_new_database_file_is_for_its_owner_only(tmp_path: Path, metrics: Metrics) -> None:
    url = f"sqlite:///{tmp_path}/data/new.db"
    async with open_database(url, limits=DatabaseLimits(), metrics=metrics) as database:
        await database.write(lambda c: c.exec_driver_sql("CREATE TABLE t (x)"))
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    assert modes == dict.fromkeys(["new.db", "new.db-wal", "new.db-shm"], 0o600)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://a/b", "nonsense"])
async def test_other_urls_are_refused_before_anything_is_made(url: str, metrics: Metrics) -> None:
    with pytest.raises(ConfigError):
        async with open_database(url, limits=DatabaseLimits(), metrics=metrics):
            pass
