"""What commands print: JSON for programs, columns for people. Standard output is for answers only.

Tables are plain text of the width they need, the same on a terminal and in a pipe, so that ``grep`` and
``awk`` work on them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any


def print_json(value: object) -> None:
    """Print one JSON document, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """Print one JSON document on one line, and flush it: somebody may be reading along."""
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Print ``rows`` in columns under their names; ``empty`` goes to standard error if there are none."""
    texts = [tuple(_cell(value) for value in row) for row in rows]
    if not texts:
        if empty:
            note(empty)
        return
    heads = tuple(column.upper() for column in columns)
    widths = [max(len(line[index]) for line in (heads, *texts)) for index in range(len(heads))]
    for line in (heads, *texts):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def print_facts(facts: Mapping[str, object]) -> None:
    """Print one thing: a name and a value a line."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {_cell(value)}")


def note(text: str) -> None:
    """Say something that is not part of the answer."""
    print(text, file=sys.stderr)


def format_time(time_ms: int | None) -> str:
    """Return milliseconds UTC as ``2026-11-24 20:39:01Z``."""
    if time_ms is None:
        return "-"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def format_size(size_bytes: int) -> str:
    """Return bytes for people: ``812 B``, ``1.5 MiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def format_counts(counts: Mapping[str, int]) -> str:
    """Return ``committed 48, rejected 2``, without those that are zero."""
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "-"


def _cell(value: Any) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(_cell, value)) or "-"
        case dict():
            return ", ".join(f"{name}={_cell(item)}" for name, item in value.items()) or "-"
    # What devices and operators wrote must not be able to move the cursor.
    return "".join(character if character.isprintable() else "�" for character in str(value))
