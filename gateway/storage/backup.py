"""A copy of the embedded database while the gateway runs. PostgreSQL brings its own (``pg_dump``)."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from gateway.errors import ConflictError, StorageUnavailableError
from gateway.storage.engine import parse_url

_BUSY_TIMEOUT_S: Final = 5.0


def copy_database(url: str, target: Path) -> int:
    """Write what is committed in ``url`` to the new file ``target``, mode 0600; return its size.

    It is of one moment, and writers go on meanwhile. It is on stable storage, was read back and found whole.

    Raises:
        ConflictError: ``url`` is PostgreSQL.
        FileExistsError: ``target`` is there; it is not overwritten.
        StorageUnavailableError: The database cannot be read, or the copy not be written.
    """
    source = _file_of(url)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        _copy(source, target)
    except BaseException as error:
        target.unlink()
        if isinstance(error, sqlite3.Error):
            raise StorageUnavailableError(f"the database cannot be copied: {error}") from error
        raise
    return target.stat().st_size


def _copy(source: Path, target: Path) -> None:
    with (
        closing(
            sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)
        ) as reader,
        closing(sqlite3.connect(target)) as writer,
    ):
        reader.backup(writer)  # in one step: a snapshot, and no start over at each commit meanwhile
        writer.execute("PRAGMA journal_mode=DELETE")  # one file, whole by itself
        found = writer.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise StorageUnavailableError(f"the copy is damaged, and so is the database: {found}")
    with target.open("rb") as file:
        os.fsync(file.fileno())


def check_unused(url: str) -> None:
    """Raise ConflictError if a process has the embedded database of ``url`` open; PostgreSQL is not asked."""
    if not url.startswith("sqlite"):
        return
    with closing(sqlite3.connect(_file_of(url), timeout=0, isolation_level=None)) as connection:
        connection.execute(
            "PRAGMA locking_mode=EXCLUSIVE"
        )  # each connection that is open holds a shared lock
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise ConflictError(
                "a gateway has the database open; stop it first", code="database_in_use"
            ) from error
        connection.execute("ROLLBACK")


def _file_of(url: str) -> Path:
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise ConflictError("PostgreSQL is copied by its own pg_dump", code="not_embedded")
    assert parsed.database is not None, "parse_url wants a file"
    return Path(parsed.database)
