"""The databases that a gateway writes to, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
from rig import HERE, BenchError, free_port

_POSTGRES = HERE.parent / "dev" / "postgres"
DIALECTS = ("sqlite", "postgresql")


@contextlib.contextmanager
def database(dialect: str) -> Iterator[str | None]:
    """Give the address of a new database; None: the gateway makes its own SQLite."""
    if dialect == "sqlite":
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="fcb-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # root hands the server to the user postgres
        started = subprocess.run(
            [_POSTGRES, "start", folder / "pg", str(free_port())], capture_output=True, text=True, check=False
        )
        if started.returncode:
            raise BenchError(started.stderr.strip())
        try:
            yield started.stdout.split()[-1]
        finally:
            subprocess.run([_POSTGRES, "remove", folder / "pg"], check=True)


def rows(url: str, query: str, **parameters: object) -> list[tuple[Any, ...]]:
    """Return what ``query`` finds; its parameters are ``:name``."""
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
            return list(connection.execute(query, parameters))
    return asyncio.run(_rows(url, query, parameters))


async def _rows(url: str, query: str, parameters: dict[str, object]) -> list[tuple[Any, ...]]:
    names = list(parameters)
    text = re.sub(r":([a-z]+)", lambda found: f"${names.index(found[1]) + 1}", query)
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(text, *parameters.values())]
    finally:
        await connection.close()
