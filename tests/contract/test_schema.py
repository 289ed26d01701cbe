"""Migrations: they make the tables that the code declares, on both databases."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from gateway.errors import StorageUnavailableError
from gateway.storage import DatabaseLimits, migrate, open_database, schema_state
from gateway.storage.schema import SchemaState
from gateway.storage.tables import metadata
from gateway.telemetry import Metrics


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/data/fleetcast.db"
    url: str = request.getfixturevalue("empty_postgresql_url")
    return url


async def ask(url: str, query: Any) -> Any:
    async with open_database(url, limits=DatabaseLimits(), metrics=Metrics()) as database:
        return await database.write(query)


def described(connection: Connection) -> dict[str, Any]:
    """What the database itself says of its tables."""
    seen = inspect(connection)
    found: dict[str, Any] = {}
    for table in seen.get_table_names():
        if table == "alembic_version":
            continue
        found[table] = {
            "columns": [
                (
                    c["name"],
                    str(c["type"]),
                    getattr(c["type"], "collation", None),
                    c["nullable"],
                    c["default"],
                )
                for c in seen.get_columns(table)
            ],
            "key": seen.get_pk_constraint(table),
            "foreign": sorted(seen.get_foreign_keys(table), key=lambda key: str(key["name"])),
            "unique": sorted(seen.get_unique_constraints(table), key=lambda key: str(key["name"])),
            "indexes": sorted(_index(index) for index in seen.get_indexes(table)),
        }
    return found


def _index(index: Any) -> tuple[str, ...]:
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return index["name"], str(index["column_names"]), str(index["unique"]), str(sorted(options.items()))


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return list(compare_metadata(context, metadata))


async def test_an_empty_database_is_migrated_to_what_the_code_declares(empty_url: str) -> None:
    before = await asyncio.to_thread(schema_state, empty_url)
    assert (before.current, before.is_current, before.is_known) == (None, False, True)
    after = await asyncio.to_thread(migrate, empty_url)
    assert after.is_current
    assert await asyncio.to_thread(schema_state, empty_url) == after
    assert await ask(empty_url, differences) == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_migrations_and_metadata_make_the_same_database(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "sqlite":
        migrated, created = f"sqlite:///{tmp_path}/migrated.db", request.getfixturevalue("sqlite_url")
    else:
        migrated = request.getfixturevalue("empty_postgresql_url")
        created = request.getfixturevalue("postgresql_url")
    await asyncio.to_thread(migrate, migrated)
    assert await ask(migrated, described) == await ask(created, described)


async def test_migrating_again_changes_nothing(empty_url: str) -> None:
    first = await asyncio.to_thread(migrate, empty_url)
    tables = await ask(empty_url, described)
    assert await asyncio.to_thread(migrate, empty_url) == first
    assert await ask(empty_url, described) == tables


async def test_processes_that_migrate_at_once_do_it_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        states = list(threads.map(migrate, [empty_url] * 4))
    assert {state.current for state in states} == {states[0].head}


async def test_a_database_of_a_newer_program_is_left_as_it_is(empty_url: str) -> None:
    await asyncio.to_thread(migrate, empty_url)
    await ask(empty_url, lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    state = await asyncio.to_thread(migrate, empty_url)
    assert (state.current, state.is_known, state.is_current) == ("9999", False, False)


async def test_every_step_can_be_taken_back(empty_url: str) -> None:
    from alembic import command

    from gateway.storage.schema import _config

    await asyncio.to_thread(migrate, empty_url)

    def downgrade(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    await ask(empty_url, downgrade)
    assert await ask(empty_url, described) == {}
    assert (await asyncio.to_thread(migrate, empty_url)).is_current


def test_a_server_that_is_away_is_storage_unavailable() -> None:
    with pytest.raises(StorageUnavailableError):
        schema_state("postgresql://nobody@127.0.0.1:1/nothing")


def test_a_state_is_current_at_the_head_only() -> None:
    assert SchemaState("0001", "0001", is_known=True).is_current
    assert not SchemaState(None, "0001", is_known=True).is_current
