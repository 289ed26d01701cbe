"""From a TOML file and the environment to a checked ``Config``, or to every problem at once.

The environment wins over the file: ``FLEETCAST_<SECTION>_<KEY>``, upper case, sets one key. Beside
``supervisor`` this is the only module of the gateway that reads the environment. Each value keeps its source
until it is checked, so that a problem can name the file or the variable, the key, and the fix.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.files import exposure, problems_of_files
from gateway.config.keys import Key, keys, tables
from gateway.config.model import Config
from gateway.config.relations import RELATIONS
from gateway.errors import ConfigError

PREFIX: Final = "FLEETCAST_"

# Variables of the command line client and of the test suite; they are not keys of the server.
RESERVED: Final = re.compile(r"FLEETCAST_(URL|TOKEN_FILE|FLEET|CONFIG|TEST_.*)\Z")

# Kubernetes gives every pod variables named after the services of its namespace. A service called
# "fleetcast" must not keep the gateway from starting.
_SERVICE_LINK: Final = re.compile(
    r".*_SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?\Z|.*_PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?\Z"
)

CONFIG_SIZE_BYTES_MAX: Final = 1024 * 1024


def load_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Return the configuration of ``path`` (none: only defaults) with the environment over it.

    Relative paths in it are taken from the current folder.

    Raises:
        ConfigError: With every problem found: unreadable file, bad TOML, unknown keys and variables, values
            of another type or outside their bounds, missing keys, broken relations, files that cannot be
            read, secrets that everybody can read. Relations are asked only of values that are good by
            themselves.
    """
    source = _Source(path, _read(path) if path is not None else {})
    problems = source.overlay(os.environ if environ is None else environ)
    try:
        config = Config.model_validate(source.data)
    except ValidationError as error:
        problems += [source.describe(item) for item in error.errors(include_url=False)]
        raise ConfigError(problems) from None
    problems += [source.place(key, what) for relation in RELATIONS for key, what in relation(config)]
    problems += [source.place(key, what) for key, what in problems_of_files(config)]
    problems += source.exposed_password(config)
    if problems:
        raise ConfigError(problems)
    return config


class _Source:
    """The merged values, and which variable set which key."""

    def __init__(self, path: Path | None, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data
        self._variables: dict[str, str] = {}

    def overlay(self, environ: Mapping[str, str]) -> list[str]:
        """Put the environment over the file; return what is wrong with the variables themselves."""
        known = {key.variable: key for key in keys()}
        problems = []
        for variable in sorted(name for name in environ if name.startswith(PREFIX)):
            text = environ[variable]
            key = known.get(variable)
            if key is not None:
                self._variables[key.path] = variable
                self._set(key, _parse(text, key))
            elif not _is_foreign(variable, text):
                problems.append(f"{variable}: no such key{_nearest(variable, known)}; unset it or correct it")
        return problems

    def _set(self, key: Key, value: object) -> None:
        table = self.data
        for name in key.table.split("."):
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                return  # the file has something else than a table there: reported with the file's values
            table = inner
        table[key.name] = value

    def exposed_password(self, config: Config) -> list[str]:
        """Return the problem of a password in a configuration file that everybody can read, if it is one."""
        if self.path is None or "database.url" in self._variables:
            return []
        what = exposure(self.path) if urlsplit(config.database.url or "").password else None
        return [self.place("database.url", f"holds a password, and {what}")] if what is not None else []

    def place(self, key: str, what: str) -> str:
        """Return a problem as a sentence that begins with where to look."""
        if key in self._variables:
            return f"{self._variables[key]} (key {key}): {what}"
        return f"{self.path or 'no configuration file'}: {key}: {what}"

    def describe(self, error: ErrorDetails) -> str:
        """Return pydantic's error as one of our sentences."""
        parts = [str(part) for part in error["loc"]]
        path = ".".join(parts)
        if error["type"] == "extra_forbidden":
            return self.place(path, f"no such key{_nearest_key(path)}; remove it or correct it")
        if path in tables():
            return self.place(path, f"must be a table; write [{path}] above its keys")
        key = _key_at(parts)
        article = "" if key.choices or key.type is bool else "a "
        expected = f"give {article}{key.type_name}" + (f" {key.bound}" if key.bound else "")
        if error["type"] == "missing":
            return self.place(key.path, f"is missing; {expected}, or set {key.variable}")
        value = error["input"]
        # Only what cannot be a secret is repeated.
        shown = f" (it is {value!r})" if key.choices or isinstance(value, int | float) else ""
        message = str(error["msg"]).removeprefix("Value error, ")
        return self.place(key.path, f"{message[:1].lower()}{message[1:]}{shown}; {expected}")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_SIZE_BYTES_MAX + 1)
        text = raw.decode()
        if len(raw) > CONFIG_SIZE_BYTES_MAX:
            raise ConfigError([f"{path}: over {CONFIG_SIZE_BYTES_MAX} bytes; is this the right file?"])
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            [f"{path}: {error.strerror}; name another file, or none for the defaults"]
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not TOML: {error}; correct that line"]) from error


def _parse(text: str, key: Key) -> object:
    """Return a variable's text as the value a file would have; what does not fit is left for the model.

    A list is a TOML array, or names separated by commas. A string is the text as it is.
    """
    if key.is_list and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if key.is_list or key.type in (bool, int, float):
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text
    return text


def _is_foreign(variable: str, text: str) -> bool:
    return (
        RESERVED.match(variable) is not None
        or _SERVICE_LINK.match(variable) is not None
        or (variable.endswith("_PORT") and text.startswith(("tcp://", "udp://", "sctp://")))
    )


def _key_at(parts: list[str]) -> Key:
    """Return the key that ``parts`` lead to or into (an item of a list is below its key)."""
    known = {key.path: key for key in keys()}
    for length in range(len(parts), 0, -1):
        key = known.get(".".join(parts[:length]))
        if key is not None:
            return key
    raise AssertionError(f"the model reported {parts}, which is no key")


def _nearest_key(path: str) -> str:
    """Return a suggestion for an unknown key or table: a sibling first, then a key of another table."""
    table, _, name = path.rpartition(".")
    every = [*(key.path for key in keys()), *tables()]
    siblings = {known.rpartition(".")[2]: known for known in every if known.rpartition(".")[0] == table}
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {siblings[near[0]]}?"
    elsewhere = [key.path for key in keys() if key.name == name]
    return f"; did you mean {elsewhere[0]}?" if elsewhere else _nearest(path, every)


def _nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
