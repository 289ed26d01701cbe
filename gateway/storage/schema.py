"""The schema's revisions: what a database has, what this program needs, and how to get from one to the other.

The revisions are in ``migrations/`` of the repository, in the wheel as ``gateway/storage/migrations``.
Alembic takes a second to import, so only the functions here import it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, exc

from gateway.errors import StorageUnavailableError
from gateway.storage.dialect import Fault, fault, lock_schema
from gateway.storage.engine import DatabaseLimits, parse_url, postgresql_engine, sqlite_engine

if TYPE_CHECKING:
    from alembic.config import Config

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SchemaState:
    """Attributes:
    current: The database's revision; None: it has no tables of ours.
    head: The revision that this program needs.
    is_known: ``current`` is one of this program's revisions (an older program finds a newer one unknown).
    """

    current: str | None
    head: str
    is_known: bool

    @property
    def is_current(self) -> bool:
        return self.current == self.head


def migrate(url: str) -> SchemaState:
    """Bring the schema of ``url`` to this program's revision, in one transaction; return what is there now.

    Blocks, and runs a loop of its own for PostgreSQL: call it in a thread where a loop is running. A database
    of a newer program is left as it is. Processes that migrate at the same time do it one after another.

    Raises:
        StorageUnavailableError: The database is away, or its tables were locked for too long.
    """
    return _run(url, _migrate)


def schema_state(url: str) -> SchemaState:
    """Return which revision the schema of ``url`` has. Blocks as ``migrate`` does, and raises the same."""
    return _run(url, _state)


def _run(url: str, query: Callable[[Connection], T]) -> T:
    parsed = parse_url(url)
    try:
        if parsed.get_backend_name() == "sqlite":
            engine = sqlite_engine(parsed, begin="BEGIN IMMEDIATE", busy_timeout_ms=5_000)
            try:
                with engine.begin() as connection:
                    return query(connection)
            finally:
                engine.dispose()

        async def run() -> T:
            engine = postgresql_engine(parsed, DatabaseLimits(pool_size=1, pool_overflow=0))
            try:
                async with engine.begin() as connection:
                    return await connection.run_sync(query)
            finally:
                await engine.dispose()

        return asyncio.run(run())
    except (exc.SQLAlchemyError, OSError) as error:
        if fault(error) is Fault.OURS:
            raise
        raise StorageUnavailableError(f"the database did not answer: {type(error).__name__}") from error


def _migrate(connection: Connection) -> SchemaState:
    from alembic import command

    lock_schema(connection)
    state = _state(connection)
    if state.is_current or not state.is_known:
        return state
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return _state(connection)


def _state(connection: Connection) -> SchemaState:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config())
    head = scripts.get_current_head()
    assert head is not None, "the wheel has migrations"
    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    return SchemaState(current=current, head=head, is_known=current is None or current in known)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _folder() -> Path:
    here = Path(__file__).resolve().parent
    packaged = here / "migrations"
    # In a checkout the folder stands at the root; only the wheel has it beside this module.
    return packaged if packaged.is_dir() else here.parent.parent / "migrations"
