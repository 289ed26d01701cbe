"""Databases for tests: a private PostgreSQL for the session, a fresh database for each test.

``database`` runs a test on SQLite and on PostgreSQL. ``make test`` starts the server and names it in
FLEETCAST_TEST_POSTGRES_URL; without that the first test that needs one starts it (xdist's workers share it)
and the last one to finish stops it. Where PostgreSQL cannot be had, tests that need it fail and say what
to do.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
import structlog
from hypothesis import HealthCheck, settings
from sqlalchemy.engine import make_url

from gateway.clock import FakeClock
from gateway.storage.engine import Database, DatabaseLimits, open_database, parse_url
from gateway.storage.tables import metadata
from gateway.telemetry import Metrics
from tests.harness.nursery import Nursery

T = TypeVar("T")
# How long an example takes says more of the machine than of the code; pytest-timeout bounds the whole test.
settings.register_profile("fleetcast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fleetcast")

POSTGRES = Path(__file__).resolve().parent.parent / "ops/dev/postgres"


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """A test that configures logs writes them to a stream that ends with it: the next begins without."""
    root = logging.getLogger()
    level = root.level
    yield
    if structlog.is_configured():
        root.handlers[:] = [one for one in root.handlers if not type(one).__module__.startswith("gateway.")]
        root.setLevel(level)
        structlog.reset_defaults()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where gateways are started fast."""
    with Nursery() as running:
        yield running


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a server whose databases are the tests' own."""
    given = os.environ.get("FLEETCAST_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(8)
    state = Path(tempfile.gettempdir()) / f"fleetcast-test-{run}.json"
    with _locked(state) as shared:
        if not shared:
            shared |= _start_server()
        shared["users"] = shared.get("users", 0) + 1
    yield shared["url"]
    with _locked(state) as shared:
        shared["users"] -= 1
        if not shared["users"]:
            _postgres("remove", shared["folder"] + "/pg")
            os.rmdir(shared["folder"])
            state.unlink()


@pytest.fixture(scope="session")
def postgresql_template(postgres_server: str) -> Iterator[str]:
    """Name of a database with all tables, to be copied."""
    name = f"template_{secrets.token_hex(6)}"
    _elsewhere(_execute(postgres_server, f"CREATE DATABASE {name}"))
    _elsewhere(_create_tables(_named(postgres_server, name)))
    yield name
    _elsewhere(_execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def postgresql_database(postgres_server: str, postgresql_template: str) -> Iterator[_Emptied]:
    """A database that the tests of a worker have one after the other, emptied in between."""
    emptied = _Emptied(postgres_server, postgresql_template)
    yield emptied
    emptied.drop()


@pytest.fixture
def postgresql_url(postgresql_database: _Emptied) -> str:
    """URL of a PostgreSQL database with all tables, as if it were fresh."""
    return postgresql_database.url()


@pytest.fixture
def empty_postgresql_url(postgres_server: str) -> Iterator[str]:
    """URL of a fresh PostgreSQL database without tables."""
    name = f"test_{secrets.token_hex(6)}"
    _elsewhere(_execute(postgres_server, f"CREATE DATABASE {name}"))
    yield _named(postgres_server, name)
    _elsewhere(_execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "template.db"
    _elsewhere(_create_tables(f"sqlite:///{path}"))
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """URL of a fresh SQLite file with all tables."""
    shutil.copy(sqlite_template, tmp_path / "fleetcast.db")
    return f"sqlite:///{tmp_path}/fleetcast.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh database with all tables, of both kinds in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def database(database_url: str, metrics: Metrics) -> AsyncIterator[Database]:
    async with open_database(database_url, limits=DatabaseLimits(), metrics=metrics) as database:
        yield database


class _Emptied:
    """One database, emptied for each test: 10 ms, where a copy of the template takes 150.

    What a test did to its tables (another column, a dropped one) ends the database; the next gets a new copy.
    """

    def __init__(self, server: str, template: str) -> None:
        self._server = server
        self._template = template
        self._name: str | None = None
        self._shape = ""

    def url(self) -> str:
        if self._name is not None and _elsewhere(_emptied(_named(self._server, self._name))) != self._shape:
            self.drop()
        if self._name is None:
            self._name = f"test_{secrets.token_hex(6)}"
            copy = f"CREATE DATABASE {self._name} TEMPLATE {self._template}"
            _elsewhere(_execute(self._server, copy))
            self._shape = _elsewhere(_emptied(_named(self._server, self._name)))
        return _named(self._server, self._name)

    def drop(self) -> None:
        if self._name is not None:
            _elsewhere(_execute(self._server, f"DROP DATABASE {self._name} WITH (FORCE)"))
            self._name = None


# What the last test left: its connections, its rows, where its sequences stood.
_LEAVE_ALONE = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_SHAPE = """
SELECT coalesce(string_agg(table_name || '.' || column_name || ':' || data_type, ',' ORDER BY 1), '')
FROM (SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'
      ORDER BY table_name, column_name) AS c
"""
_EMPTY = """
DO $$
DECLARE one record; is_filled boolean;
BEGIN
    SET LOCAL session_replication_role = replica;  -- foreign keys are not asked: everything goes
    FOR one IN SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I)', one.name) INTO is_filled;
        IF is_filled THEN EXECUTE format('DELETE FROM %I', one.name); END IF;
    END LOOP;
    FOR one IN SELECT sequencename AS name FROM pg_sequences WHERE schemaname = 'public'
               AND last_value IS NOT NULL LOOP
        PERFORM setval(quote_ident(one.name), 1, false);
    END LOOP;
END $$
"""


async def _emptied(url: str) -> str:
    """Empty the database; return what its tables look like."""
    plain = parse_url(url).set(drivername="postgresql")
    connection = await asyncpg.connect(plain.render_as_string(hide_password=False))
    try:
        await connection.fetch(_LEAVE_ALONE)
        await connection.execute(_EMPTY)
        shape: str = await connection.fetchval(_SHAPE)
        return shape
    finally:
        await connection.close()


async def _create_tables(url: str) -> None:
    async with open_database(url, limits=DatabaseLimits(), metrics=Metrics()) as database:
        await database.write(metadata.create_all)


async def _execute(url: str, statement: str) -> None:
    plain = parse_url(url).set(drivername="postgresql", database="postgres")
    connection = await asyncpg.connect(plain.render_as_string(hide_password=False))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _named(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def _elsewhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` in a thread with a loop of its own: the test's loop is not ours to use."""
    run: Callable[[Coroutine[Any, Any, T]], T] = asyncio.run
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run, coroutine).result()


def _start_server() -> dict[str, Any]:
    folder = tempfile.mkdtemp(prefix="fleetcast-pg-")
    os.chmod(folder, 0o755)  # the server runs as another user and must get through
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = _postgres("start", folder + "/pg", str(port))
    return {"folder": folder, "url": url}


def _postgres(*arguments: str) -> str:
    done = subprocess.run(
        [str(POSTGRES), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"FSYNC": "off"},
        check=False,
    )
    if done.returncode:
        pytest.fail(f"PostgreSQL is needed by this test and could not be started: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def _locked(path: Path) -> Iterator[dict[str, Any]]:
    """What the session's processes share, held by one of them at a time; written back at the end."""
    lock = path.with_suffix(".lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shared: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        try:
            yield shared
        finally:
            if shared.get("users"):
                path.write_text(json.dumps(shared))
            else:
                lock.unlink()
