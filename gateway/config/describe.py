"""The configuration for people: an example file, the effective values, the reference page.

All three are made from the model, so they cannot differ from what ``load`` accepts.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from gateway.config.keys import Key, keys, tables
from gateway.config.model import Config
from gateway.config.relations import value_of

_WIDTH: Final = 100


def example() -> str:
    """Return an example file: every key with its meaning, unit, bound, default; keys stand commented out.

    Loaded as it is, it means the defaults. A line that begins with ``#`` and no space is a key.
    """
    lines = _prose(
        "Fleetcast's configuration. Every key is here with its default or, where there is none, an example. "
        "Remove the # before a key to set it. An environment variable FLEETCAST_<SECTION>_<KEY> wins over "
        "the file. Relative paths are taken from the current folder. Secrets are files, never values."
    )
    for table, section in tables().items():
        is_optional = "." in table
        lines += ["", *_prose(section.__doc__ or ""), f"{'#' if is_optional else ''}[{table}]"]
        for key in _keys_of(table):
            lines += _prose(f"{key.field.description} {_facts(key)}")
            lines.append(f"#{key.name} = {_toml(_sample(key))}")
    return "\n".join(lines) + "\n"


def effective(config: Config) -> str:
    """Return what is in force as TOML, the password of the database's address hidden."""
    lines: list[str] = []
    for table in tables():
        if value_of(config, table) is None:
            continue
        lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
        for key in _keys_of(table):
            value = value_of(config, key.path)
            if key.path == "database.url":
                value = _without_password(value or config.database_url)
            lines.append(f"# {key.name} is not set" if value is None else f"{key.name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return docs/reference/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "`fleetcast serve --config FILE` reads one TOML file; without it everything has the default below.",
        "Each key can also be set by the environment variable in its row, which wins over the file. Lists in",
        "variables are TOML arrays or names separated by commas. Relative paths are taken from the current",
        "folder. Unknown keys and unknown `FLEETCAST_…` variables end the start with exit status 2, as any",
        "other problem does; all are reported at once. `fleetcast check-config` shows what is in force,",
        "`fleetcast check-config --example` prints a file with every key.",
        "",
        "This page is made from the model: `python -m gateway.config > docs/reference/configuration.md`.",
    ]
    for table, section in tables().items():
        lines += ["", f"## [{table}]", "", section.__doc__ or "", "", "| key | meaning | type | default |"]
        lines.append("|---|---|---|---|")
        for key in _keys_of(table):
            name = f"`{key.name}`<br>`{key.variable}`"
            lines.append(f"| {name} | {key.field.description} | {_type(key)} | {_default(key)} |")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _keys_of(table: str) -> Iterator[Key]:
    return (key for key in keys() if key.table == table)


def _type(key: Key) -> str:
    return ", ".join(part for part in (key.type_name, key.unit, key.bound) if part)


def _default(key: Key) -> str:
    if key.is_required:
        return "required"
    return "none" if key.default is None else f"`{_toml(key.default)}`"


def _facts(key: Key) -> str:
    default = "Required." if key.is_required else f"Default: {_default(key).strip('`')}."
    return f"({_type(key)}.) {default}"


def _sample(key: Key) -> object:
    if key.default is not None:
        return key.default
    assert key.field.examples, f"{key.path} has neither default nor example"
    return key.field.examples[0]


def _prose(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False
    )


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case tuple() | list():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case str() | Path():
            # JSON's escapes are among those of a TOML basic string; DEL alone must be escaped besides.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    raise AssertionError(f"no key holds a {type(value).__name__}")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    _, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))
