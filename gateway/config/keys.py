"""The configuration's keys as a flat list: what ``load`` matches names against and ``describe`` prints."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from gateway.config.model import Config
from gateway.config.section import Section

_UNITS: Final[Mapping[str, str]] = {
    "_per_s": "a second",
    "_ms": "milliseconds",
    "_s": "seconds",
    "_bytes": "bytes",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key: ``path`` is ``section.key`` or ``section.table.key``."""

    path: str
    field: FieldInfo
    type: Any

    @property
    def table(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def variable(self) -> str:
        """The environment variable that sets this key."""
        return "FLEETCAST_" + self.path.replace(".", "_").upper()

    @property
    def is_required(self) -> bool:
        return self.field.is_required()

    @property
    def default(self) -> Any:
        """The default; None where there is none."""
        return None if self.is_required else self.field.default

    @property
    def is_list(self) -> bool:
        return get_origin(self.type) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a closed set; empty for other types."""
        return tuple(get_args(self.type)) if get_origin(self.type) is Literal else ()

    @property
    def unit(self) -> str:
        """The unit, as the end of the name has it; empty for plain values."""
        name = self.name.removesuffix("_max").removesuffix("_min").removesuffix("_default")
        for end, unit in _UNITS.items():
            if name.endswith(end) or self.name.endswith(end):
                return unit
        return ""

    @property
    def type_name(self) -> str:
        """The type in a reader's words."""
        if self.choices:
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        if self.is_list:
            return "list of strings"
        return {bool: "true or false", int: "whole number", float: "number", Path: "path"}.get(
            self.type, "string"
        )

    @property
    def bound(self) -> str:
        """The range, for example ``1..65535``; empty where there is none."""
        low, high = "", ""
        for mark in self.field.metadata:
            match mark:
                case annotated_types.Ge(ge=value):
                    low = f"{value}"
                case annotated_types.Gt(gt=value):
                    low = f"over {value}"
                case annotated_types.Le(le=value):
                    high = f"{value}"
                case _:
                    continue
        if low.startswith("over"):
            return f"{low}, at most {high}" if high else low
        return f"{low}..{high}" if low or high else ""


@cache
def keys() -> tuple[Key, ...]:
    """Every key, in the order of the model; tables inside a section come after its own keys."""
    return tuple(_keys("", Config))


@cache
def tables() -> Mapping[str, type[Section]]:
    """Every table by its dotted name, in the order of the model."""
    return dict(_tables("", Config))


def _keys(prefix: str, model: type[Section]) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        kind = _bare(field.annotation)
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _keys(f"{prefix}{name}.", kind)
        else:
            yield Key(f"{prefix}{name}", field, kind)


def _tables(prefix: str, model: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    for name, field in model.model_fields.items():
        kind = _bare(field.annotation)
        if isinstance(kind, type) and issubclass(kind, Section):
            yield f"{prefix}{name}", kind
            yield from _tables(f"{prefix}{name}.", kind)


def _bare(annotation: Any) -> Any:
    """Return the type without ``Annotated`` and without ``| None``."""
    while True:
        if get_origin(annotation) is typing.Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (typing.Union, types.UnionType):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        else:
            return annotation
