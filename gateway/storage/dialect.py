"""All that SQLite and PostgreSQL do differently. No other module asks which of them it talks to.

``FOR UPDATE`` and ``FOR SHARE`` need nothing here: SQLAlchemy leaves them out for SQLite, where BEGIN
IMMEDIATE has locked everything already.

The hot statements take their rows as one table, ``incoming``: arrays unfolded by ``unnest`` on PostgreSQL, a
VALUES list on SQLite. One statement for 500 rows, because ``executemany`` on SQLite takes and gives back
Python's interpreter lock for each row, which beside a busy event loop costs up to 5 ms a row.
"""

from __future__ import annotations

import enum
import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy import Boolean, ColumnElement, Connection, Float, String, Table, Text, exc, literal
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

T = TypeVar("T")

# Rows of one VALUES list. Each length is a statement of its own in the driver's cache, at half a KiB a row,
# so there are few of them, and lists are filled up with rows of NULL.
_LIST_LENGTHS: Final = (1, 4, 16, 64, 256)


class Fault(enum.Enum):
    """What a database's error means to the caller."""

    OURS = "ours"  # a constraint that the caller expects, or a bug
    COLLISION = "collision"  # deadlock, serialization failure: begin again
    BUSY = "busy"  # full, locked, timed out: the transaction is not there
    AWAY = "away"  # the connection broke: a COMMIT under way may have worked


_SQLITE_BUSY: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_PERM,
    }
)
_SQLITE_AWAY: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

# SQLSTATE classes: connection exception, operator intervention (shutdown), system error.
_STATES_AWAY: Final = ("08", "57P", "58")
# Insufficient resources, statement_timeout, lock_timeout, a server that became a standby.
_STATES_BUSY: Final = ("53", "57014", "55P03", "25006")
_STATES_COLLISION: Final = ("40001", "40P01")


def fault(error: BaseException) -> Fault:
    """Return what ``error`` of SQLAlchemy, a driver or the operating system means."""
    if isinstance(error, exc.TimeoutError):
        return Fault.BUSY
    if isinstance(error, OSError):  # refused, reset, timed out on our side
        return Fault.AWAY
    original = getattr(error, "orig", error)
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        primary = code & 0xFF
        if primary in _SQLITE_BUSY:
            return Fault.BUSY
        return Fault.AWAY if primary in _SQLITE_AWAY else Fault.OURS
    state = getattr(original, "sqlstate", None)
    if isinstance(state, str):
        if state.startswith(_STATES_COLLISION):
            return Fault.COLLISION
        if state.startswith(_STATES_BUSY):
            return Fault.BUSY
        return Fault.AWAY if state.startswith(_STATES_AWAY) else Fault.OURS
    if getattr(error, "connection_invalidated", False) or isinstance(error, asyncpg.InterfaceError):
        return Fault.AWAY
    return Fault.AWAY if isinstance(error, exc.InterfaceError) else Fault.OURS


def insert(connection: Connection, table: Table) -> Any:
    """Return an INSERT that knows ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    return postgresql.insert(table) if _is_postgresql(connection) else sqlite.insert(table)


Columns = tuple[tuple[str, str], ...]
"""Name and PostgreSQL type of each column of ``incoming``."""


def execute_rows(
    connection: Connection, columns: Columns, rows: Sequence[Sequence[object]], statement: str
) -> list[Any]:
    """Run ``statement`` once over ``rows``, which it sees as the table ``incoming``; return its rows, if any.

    The statement is SQL that both databases understand; only its table of rows is made here. SQLite gets them
    in parts of at most 256. The first column is never NULL.
    """
    found: list[Any] = []
    if not rows:
        return found
    if _is_postgresql(connection):
        arrays = tuple(list(column) for column in zip(*rows, strict=True))
        result = connection.exec_driver_sql(_unnest(columns, statement), arrays)
        return list(result) if result.returns_rows else found
    for part in _parts(rows, _LIST_LENGTHS[-1]):
        length = next(length for length in _LIST_LENGTHS if length >= len(part))
        values = [value for row in part for value in row]
        values += [None] * (length * len(columns) - len(values))
        result = connection.exec_driver_sql(_values(columns, statement, length), tuple(values))
        if result.returns_rows:
            found += result
    return found


POSITIONS: Final[Columns] = (
    ("id", "bigint"),
    ("device_key", "bigint"),
    ("channel_id", "bigint"),
    ("epoch", "bigint"),
    ("first", "bigint"),
    ("last", "bigint"),
    ("at", "bigint"),
)

# A position moves up only, in its own epoch, and never above the head. Attempts at what is acknowledged end.
_MOVES: Final = """
    s.id = incoming.id AND s.epoch = incoming.epoch AND s."offset" < incoming.last
    AND EXISTS (SELECT 1 FROM channel AS c WHERE c.id = s.channel_id AND c.head >= incoming.last)"""
_MOVE: Final = f"""UPDATE subscription AS s SET "offset" = incoming.last,
    attempts = CASE WHEN s.stuck_offset <= incoming.last THEN 0 ELSE s.attempts END,
    stuck_offset = CASE WHEN s.stuck_offset <= incoming.last THEN 0 ELSE s.stuck_offset END
    FROM incoming WHERE {_MOVES}"""
_FACT: Final = "INSERT INTO delivery_fact (device_key, channel_id, fact, epoch, first, last, at, attempt)"
_MOVE_AND_FACT: Final = f""", moved AS ({_MOVE} RETURNING incoming.*)
    {_FACT} SELECT device_key, channel_id, 2, epoch, first, last, at, 1 FROM moved"""
_FACT_OF_MOVING: Final = f"""{_FACT}
    SELECT incoming.device_key, incoming.channel_id, 2, incoming.epoch, incoming.first, incoming.last,
           incoming.at, 1
    FROM incoming JOIN subscription AS s ON {_MOVES}"""


def move_positions(connection: Connection, rows: Sequence[Sequence[object]]) -> None:
    """Move positions up and write a ``received`` fact for each that moved; ``POSITIONS`` names the columns.

    One row for each subscription. The hottest statement of all: PostgreSQL does both halves in one trip.
    """
    if _is_postgresql(connection):
        execute_rows(connection, POSITIONS, rows, _MOVE_AND_FACT)
        return
    execute_rows(connection, POSITIONS, rows, _FACT_OF_MOVING)  # before the update, which ends the condition
    execute_rows(connection, POSITIONS, rows, _MOVE)


def lock_schema(connection: Connection) -> None:
    """Let one process at a time change the schema; the lock ends with the transaction."""
    if _is_postgresql(connection):
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7163514288101)")


def pass_turnstile(connection: Connection, *, is_closing: bool) -> None:
    """Let those who offer updates pass together, and one who changes a rollout alone, in the order they come.

    Row locks keep no order on PostgreSQL: who shares one lets others share it, and while offers overlap
    without a pause an abort would wait for its own until it times out. SQLite has one writer, and its line.
    """
    if _is_postgresql(connection):
        kind = "" if is_closing else "_shared"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock{kind}(7163514288102)")


def take_turn(connection: Connection) -> None:
    """Let one transaction at a time add to the feed of revocations, so that its numbers commit in order."""
    if _is_postgresql(connection):
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7163514288103)")


def hold_ring(connection: Connection) -> None:
    """Let one transaction at a time change the ring of ticket keys."""
    if _is_postgresql(connection):
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7163514288104)")


def other_sessions(connection: Connection) -> int:
    """Return how many other connections gateways have to this database; SQLite does not know."""
    if not _is_postgresql(connection):
        return 0
    found = connection.exec_driver_sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'fleetcast' AND pid <> pg_backend_pid()"
    )
    return int(found.scalar_one())


def limit_statements(connection: Connection, *, lock_timeout_ms: int, statement_timeout_ms: int) -> None:
    """Bound how long each statement of this transaction waits and runs. SQLite has its busy timeout."""
    if _is_postgresql(connection):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {lock_timeout_ms:d}")
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {statement_timeout_ms:d}")


@lru_cache(maxsize=256)
def _unnest(columns: Columns, statement: str) -> str:
    names = ", ".join(name for name, _ in columns)
    arrays = ", ".join(f"${index}::{kind}[]" for index, (_, kind) in enumerate(columns, 1))
    return f"WITH incoming({names}) AS (SELECT * FROM unnest({arrays})) {statement}"


@lru_cache(maxsize=256)
def _values(columns: Columns, statement: str, length: int) -> str:
    names = ", ".join(name for name, _ in columns)
    row = "(" + ",".join("?" * len(columns)) + ")"
    rows = f"SELECT * FROM (VALUES {','.join([row] * length)}) WHERE column1 IS NOT NULL"
    return f"WITH incoming({names}) AS ({rows}) {statement}"


def _parts(rows: Sequence[Sequence[object]], size: int) -> Iterator[Sequence[Sequence[object]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


class _among(FunctionElement[bool]):
    """``_among(column, keys)``: whether it is in the JSON list of integers ``keys``."""

    type = Boolean()
    inherit_cache = True


def padded(keys: Iterable[T]) -> list[T]:
    """Return ``keys``, the last one repeated until their number is a power of two.

    For ``IN`` with an expanding parameter: each length is a statement of its own to prepare and keep. Unlike
    ``is_among`` it lets SQLite see that they are few: it looks them up, where else it would scan the table
    that an ORDER BY asks for.
    """
    found = list(keys)
    assert found, "an empty list asks for nothing"
    return found + found[-1:] * ((1 << (len(found) - 1).bit_length()) - len(found))


def is_among(column: ColumnElement[int], keys: Collection[int]) -> ColumnElement[bool]:
    """Return whether ``column`` is one of ``keys``: one argument, and one statement, for any number."""
    return _among(column, literal(json.dumps(sorted(keys)), Text()))


@compiles(_among, "sqlite")
def _sqlite_among(element: Any, compiler: Any, **kw: Any) -> str:
    column, keys = _arguments(element, compiler, **kw)
    return f"({column} IN (SELECT value FROM json_each({keys})))"


@compiles(_among, "postgresql")
def _postgresql_among(element: Any, compiler: Any, **kw: Any) -> str:
    column, keys = _arguments(element, compiler, **kw)
    # Not a subquery, so that one plan fits a list of any length.
    list_ = f"translate(CAST({keys} AS text), '[] ', '{{}}')"
    return f"({column} = ANY (CAST({list_} AS bigint[])))"


class json_kind(FunctionElement[str]):
    """``json_kind(column, name)``: string, number or boolean; NULL where the object has no such key."""

    type = String()
    inherit_cache = True


class json_text(FunctionElement[str]):
    """``json_text(column, name)``: the string under that key, compared by code point; else NULL."""

    type = Text()
    inherit_cache = True


class json_number(FunctionElement[float]):
    """``json_number(column, name)``: the number under that key; else NULL."""

    type = Float()
    inherit_cache = True


class json_boolean(FunctionElement[bool]):
    """``json_boolean(column, name)``: the boolean under that key; else NULL."""

    type = Boolean()
    inherit_cache = True


class json_contains(FunctionElement[bool]):
    """``json_contains(column, text)``: whether the list of strings in ``column`` has ``text``."""

    type = Boolean()
    inherit_cache = True


def _arguments(element: FunctionElement[Any], compiler: Any, **kw: Any) -> tuple[str, str]:
    column, name = _clauses(element)
    return compiler.process(column, **kw), compiler.process(name, **kw)


def _clauses(element: FunctionElement[Any]) -> Iterable[ColumnElement[Any]]:
    return tuple(element.clauses)


# A key may hold dots, so it is quoted in SQLite's path. Names have no quotes: ``[A-Za-z0-9._~:-]``.
_PATH: Final = "('$.\"' || {name} || '\"')"


@compiles(json_kind, "sqlite")
def _sqlite_kind(element: Any, compiler: Any, **kw: Any) -> str:
    column, name = _arguments(element, compiler, **kw)
    kind = f"json_type({column}, {_PATH.format(name=name)})"
    return (
        f"(CASE {kind} WHEN 'text' THEN 'string' WHEN 'integer' THEN 'number' WHEN 'real' THEN 'number'"
        " WHEN 'true' THEN 'boolean' WHEN 'false' THEN 'boolean' END)"
    )


@compiles(json_text, "sqlite")
def _sqlite_text(element: Any, compiler: Any, **kw: Any) -> str:
    column, name = _arguments(element, compiler, **kw)
    path = _PATH.format(name=name)
    return f"(CASE json_type({column}, {path}) WHEN 'text' THEN json_extract({column}, {path}) END)"


@compiles(json_number, "sqlite")
def _sqlite_number(element: Any, compiler: Any, **kw: Any) -> str:
    column, name = _arguments(element, compiler, **kw)
    path = _PATH.format(name=name)
    kind, value = f"json_type({column}, {path})", f"json_extract({column}, {path})"
    return f"(CASE WHEN {kind} IN ('integer', 'real') THEN {value} END)"


@compiles(json_boolean, "sqlite")
def _sqlite_boolean(element: Any, compiler: Any, **kw: Any) -> str:
    column, name = _arguments(element, compiler, **kw)
    return f"(CASE json_type({column}, {_PATH.format(name=name)}) WHEN 'true' THEN 1 WHEN 'false' THEN 0 END)"


@compiles(json_contains, "sqlite")
def _sqlite_contains(element: Any, compiler: Any, **kw: Any) -> str:
    column, text = _arguments(element, compiler, **kw)
    return f"EXISTS (SELECT 1 FROM json_each({column}) AS item WHERE item.value = {text})"


@compiles(json_kind, "postgresql")
def _postgresql_kind(element: Any, compiler: Any, **kw: Any) -> str:
    column, name = _arguments(element, compiler, **kw)
    return f"jsonb_typeof({column} -> CAST({name} AS text))"


@compiles(json_text, "postgresql")
def _postgresql_text(element: Any, compiler: Any, **kw: Any) -> str:
    column, name = _arguments(element, compiler, **kw)
    key = f"CAST({name} AS text)"
    return f"(CASE jsonb_typeof({column} -> {key}) WHEN 'string' THEN {column} ->> {key} END COLLATE \"C\")"


@compiles(json_number, "postgresql")
def _postgresql_number(element: Any, compiler: Any, **kw: Any) -> str:
    column, name = _arguments(element, compiler, **kw)
    key = f"CAST({name} AS text)"
    # CASE keeps the cast from being tried on what is no number; AND would not.
    return (
        f"(CASE jsonb_typeof({column} -> {key}) WHEN 'number'"
        f" THEN CAST({column} ->> {key} AS double precision) END)"
    )


@compiles(json_boolean, "postgresql")
def _postgresql_boolean(element: Any, compiler: Any, **kw: Any) -> str:
    column, name = _arguments(element, compiler, **kw)
    key = f"CAST({name} AS text)"
    value = f"CAST({column} ->> {key} AS boolean)"
    return f"(CASE jsonb_typeof({column} -> {key}) WHEN 'boolean' THEN {value} END)"


@compiles(json_contains, "postgresql")
def _postgresql_contains(element: Any, compiler: Any, **kw: Any) -> str:
    column, text = _arguments(element, compiler, **kw)
    return f"({column} @> jsonb_build_array(CAST({text} AS text)))"
