"""A ``Database``: one transaction for each call, the same on SQLite and PostgreSQL.

A query is a plain function of a Core connection. On PostgreSQL it runs under ``run_sync`` on a pooled
asyncpg connection, on SQLite in the one writer thread or in one of a few reader threads, each with a
connection of its own. A query may be called again after a deadlock: it only talks to its connection.

Third-party errors that mean "the database is away, full or too busy" leave as ``StorageUnavailableError``,
from here and nowhere else. What is left (``IntegrityError``, ``ProgrammingError``) is for the query's module
to expect, or our bug. How a schema is made is in ``schema``, what the dialects differ in is in ``dialect``.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import asyncpg
from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.errors import ConfigError, StorageUnavailableError
from gateway.storage.dialect import Fault, fault
from gateway.telemetry import Metrics

T = TypeVar("T")
DialectName = Literal["sqlite", "postgresql"]

_RETRY_DELAY_S: Final = 0.02  # doubled at each retry, and jittered
_FOREIGN: Final = (exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


@dataclass(frozen=True, slots=True)
class DatabaseLimits:
    """Bounds on what a node asks of its database.

    Attributes:
        pool_size, pool_overflow: PostgreSQL connections kept open, and opened above that while busy.
        pool_timeout_s: How long a query waits for a connection; then it is refused.
        readers: SQLite reader threads.
        waiting_max: Queries that may wait for a thread of SQLite, reads and writes apart; more are refused.
        busy_timeout_ms: How long SQLite waits for another process's transaction.
        lock_timeout_ms, statement_timeout_ms: PostgreSQL's own, for each statement.
        retries_max: How often a transaction is begun again after a deadlock or a serialization failure.
    """

    pool_size: int = 8
    pool_overflow: int = 8
    pool_timeout_s: float = 10.0
    readers: int = 2
    waiting_max: int = 2_000
    busy_timeout_ms: int = 5_000
    lock_timeout_ms: int = 4_000
    statement_timeout_ms: int = 5_000
    retries_max: int = 8

    def __post_init__(self) -> None:
        assert min(self.pool_size, self.readers) > 0, "a database needs a connection"
        assert self.lock_timeout_ms < self.statement_timeout_ms, "a lock is waited for within a statement"


class CommitUnknownError(StorageUnavailableError):
    """The database went away during COMMIT: the transaction may or may not be there."""


class Database(ABC):
    """Runs queries, each in a transaction of its own. Made by ``open_database``."""

    dialect: DialectName

    def __init__(self, limits: DatabaseLimits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Return ``query``'s result; all it reads is of one moment, and it cannot write.

        Raises:
            StorageUnavailableError: The database is away or too busy.
        """
        return await self._observed(self._read(query))

    async def write(self, command: Callable[[Connection], T]) -> T:
        """Return ``command``'s result once it is committed. If it raises, nothing of it is there.

        Raises:
            CommitUnknownError: Whether it is committed cannot be told.
            StorageUnavailableError: It is not: the database is away, full or too busy.
        """
        return await self._observed(self.transaction(command))

    @abstractmethod
    async def transaction(self, command: Callable[[Connection], T]) -> T:
        """As ``write``, without counting in ``db_query_seconds``: the batching writer has its own figure."""

    @abstractmethod
    async def _read(self, query: Callable[[Connection], T]) -> T: ...

    @abstractmethod
    async def close(self) -> None:
        """Wait for what runs and close every connection."""

    async def _observed(self, running: Awaitable[T]) -> T:
        begun = time.perf_counter()
        try:
            return await running
        except StorageUnavailableError:
            self._metrics.storage_failures.inc()
            raise
        finally:
            self._metrics.query_s.observe(time.perf_counter() - begun)


@asynccontextmanager
async def open_database(url: str, *, limits: DatabaseLimits, metrics: Metrics) -> AsyncIterator[Database]:
    """Open the database of ``url`` (``sqlite:///PATH`` or ``postgresql[+asyncpg]://…``) and close it again.

    PostgreSQL is not asked yet: a server that is away is met by the first query.

    Raises:
        ConfigError: The url names neither database.
    """
    database = _open(url, limits, metrics)
    try:
        yield database
    finally:
        await database.close()


def _open(url: str, limits: DatabaseLimits, metrics: Metrics) -> Database:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _SQLite(parsed, limits, metrics)
    return _PostgreSQL(parsed, limits, metrics)


def parse_url(url: str) -> URL:
    """Return ``url`` with the driver and the options that this gateway uses.

    libpq's ``sslmode`` is understood. Raises ConfigError.
    """
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise ConfigError(["database.url is not a database URL"]) from error
    if parsed.drivername == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError(["database.url: an embedded database needs a file: sqlite:///PATH"])
        return parsed
    if parsed.drivername not in ("postgresql", "postgresql+asyncpg"):
        raise ConfigError(["database.url must start with sqlite:///, postgresql:// or postgresql+asyncpg://"])
    query = dict(parsed.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def sqlite_engine(url: URL, *, begin: str, busy_timeout_ms: int, query_only: bool = False) -> Engine:
    """Return an engine that keeps no connection and begins each transaction with the statement ``begin``.

    The file is made mode 0600 if it is not there.
    """
    path = Path(str(url.database))
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    engine = create_engine(
        url,
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "cached_statements": 16, "isolation_level": None},
    )
    pragmas = [
        f"busy_timeout={busy_timeout_ms}",
        "journal_mode=WAL",
        "synchronous=FULL",  # a 2xx means on the disk, not in the kernel
        "foreign_keys=ON",
        "wal_autocheckpoint=4000",
        "journal_size_limit=67108864",
        "cache_size=-4096",
        "temp_store=MEMORY",
        f"query_only={'ON' if query_only else 'OFF'}",
    ]

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        # The driver's own BEGIN is deferred: two writers would meet at their first write, too late to wait.
        connection.exec_driver_sql(begin)

    return engine


# A thread that comes back from SQLite waits this long for the interpreter while the event loop is busy; by
# default 5 ms, several times a transaction.
_SWITCH_INTERVAL_S: Final = 0.001


class _SQLite(Database):
    """One file, one writer thread, a few reader threads; with WAL none of them waits for another."""

    dialect: DialectName = "sqlite"

    def __init__(self, url: URL, limits: DatabaseLimits, metrics: Metrics) -> None:
        super().__init__(limits, metrics)
        try:
            writer = sqlite_engine(url, begin="BEGIN IMMEDIATE", busy_timeout_ms=limits.busy_timeout_ms)
            reader = sqlite_engine(
                url, begin="BEGIN", busy_timeout_ms=limits.busy_timeout_ms, query_only=True
            )
        except OSError as error:
            raise StorageUnavailableError(f"the database file cannot be made: {error.strerror}") from error
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        self._writer = _Threads(writer, 1, limits.waiting_max, "sqlite-writer")
        self._readers = _Threads(reader, limits.readers, limits.waiting_max, "sqlite-reader")

    async def transaction(self, command: Callable[[Connection], T]) -> T:
        return await self._writer.run(command, commit=True)

    async def _read(self, query: Callable[[Connection], T]) -> T:
        return await self._readers.run(query, commit=False)

    async def close(self) -> None:
        await self._readers.close()
        await self._writer.close()  # the last to close checkpoints the log into the file


class _Threads:
    """Threads with a connection each, and a bounded line in front of them."""

    def __init__(self, engine: Engine, count: int, waiting_max: int, name: str) -> None:
        self._engine = engine
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._waiting_max = waiting_max
        self._waiting = 0
        self._local = threading.local()
        self._connections: list[Connection] = []

    async def run(self, query: Callable[[Connection], T], *, commit: bool) -> T:
        if self._waiting >= self._waiting_max:
            raise StorageUnavailableError("too many queries wait for the embedded database", retry_after_s=1)
        self._waiting += 1
        try:
            future = self._executor.submit(self._transact, query, commit)
        except RuntimeError as error:
            self._waiting -= 1
            raise StorageUnavailableError("the database is closed") from error
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: _call_soon(loop, self._done))
        return await asyncio.wrap_future(future)

    def _done(self) -> None:
        self._waiting -= 1

    def _transact(self, query: Callable[[Connection], T], commit: bool) -> T:
        try:
            connection = self._connection()
            transaction = connection.begin()
        except _FOREIGN as error:
            raise _unavailable(error) from error
        try:
            result = query(connection)
        except BaseException as error:
            _roll_back(transaction)
            if isinstance(error, _FOREIGN) and fault(error) is not Fault.OURS:
                raise _unavailable(error) from error
            raise
        if not commit:
            _roll_back(transaction)
            return result
        try:
            transaction.commit()
        except _FOREIGN as error:
            _roll_back(transaction)
            match fault(error):
                case Fault.OURS:  # a deferred constraint
                    raise
                case Fault.AWAY:
                    raise CommitUnknownError("the database failed during COMMIT") from error
            raise _unavailable(error) from error
        return result

    def _connection(self) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._engine.connect()
            self._connections.append(connection)
        return connection

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)
        for connection in self._connections:
            with suppress(exc.SQLAlchemyError):
                connection.close()
        self._connections.clear()
        self._engine.dispose()


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop was closed while the thread was still at work
        loop.call_soon_threadsafe(callback)


def _roll_back(transaction: Any) -> None:
    # SQLite rolls back by itself on some errors, and then there is nothing left to roll back.
    with suppress(exc.SQLAlchemyError):
        transaction.rollback()


class _PostgreSQL(Database):
    """A server and a pool. Reads are REPEATABLE READ and read-only, writes READ COMMITTED with row locks."""

    dialect: DialectName = "postgresql"

    def __init__(self, url: URL, limits: DatabaseLimits, metrics: Metrics) -> None:
        super().__init__(limits, metrics)
        self._engine = postgresql_engine(url, limits)
        self._reading = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    async def _read(self, query: Callable[[Connection], T]) -> T:
        return await self._retried(query, self._reading, commit=False)

    async def transaction(self, command: Callable[[Connection], T]) -> T:
        return await self._retried(command, self._engine, commit=True)

    async def _retried(self, query: Callable[[Connection], T], engine: AsyncEngine, *, commit: bool) -> T:
        retries = 0
        while True:
            try:
                return await self._once(query, engine, commit=commit)
            except _FOREIGN as error:
                match fault(error):
                    case Fault.OURS:
                        raise
                    case Fault.COLLISION if retries < self._limits.retries_max:
                        retries += 1
                    case _:
                        raise _unavailable(error) from error
            await asyncio.sleep(_RETRY_DELAY_S * 2**retries * random.random())

    async def _once(self, query: Callable[[Connection], T], engine: AsyncEngine, *, commit: bool) -> T:
        async with engine.connect() as connection:
            result = await connection.run_sync(query)
            if not commit:
                return result
            try:
                await connection.commit()
            except _FOREIGN as error:
                if fault(error) is Fault.AWAY:
                    raise CommitUnknownError("the connection was lost during COMMIT") from error
                raise
            return result

    async def close(self) -> None:
        await self._engine.dispose()


def postgresql_engine(url: URL, limits: DatabaseLimits) -> AsyncEngine:
    """Return an engine on asyncpg with the limits set on the server's side and, wider, on ours."""
    statement_s = limits.statement_timeout_ms / 1000
    return create_async_engine(
        url,
        pool_size=limits.pool_size,
        max_overflow=limits.pool_overflow,
        pool_timeout=limits.pool_timeout_s,
        pool_recycle=1800,
        pool_use_lifo=True,
        connect_args={
            "timeout": limits.pool_timeout_s,
            # Where the network swallows packets, the server's own timeout never reaches us.
            "command_timeout": statement_s + 5,
            "server_settings": {
                "application_name": "fleetcast",
                "lock_timeout": str(limits.lock_timeout_ms),
                "statement_timeout": str(limits.statement_timeout_ms),
                "idle_in_transaction_session_timeout": "60000",
                "jit": "off",  # short queries only: compiling them costs more than running them
            },
        },
    )


def _unavailable(error: BaseException) -> StorageUnavailableError:
    if isinstance(error, exc.TimeoutError):
        return StorageUnavailableError("no connection of the pool became free", retry_after_s=1)
    return StorageUnavailableError(f"the database did not answer: {type(error).__name__}", retry_after_s=1)
