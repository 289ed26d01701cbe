"""Which keys of the configuration the gateway's code reads: a key that nobody reads is a promise not kept.

Found in the syntax trees: ``config.section.key`` and what was assigned from ``config.section``, and keys that
``config.section.limits(SomeLimits)`` hands over, if the field is read where it ends up.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path

from gateway.config.keys import keys

PACKAGE = Path(__file__).parents[2] / "gateway"


def keys_that_are_read() -> set[str]:
    """Return the paths of the keys that some module outside ``gateway.config`` reads."""
    trees = {
        path: ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
        if not path.is_relative_to(PACKAGE / "config")
    }
    loads = {name for tree in trees.values() for name in _fields_read(tree)}
    found = {"database.url", "database.password_file"}  # ``Config.database_url`` reads them
    for path, tree in trees.items():
        aliases = dict(_aliases(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (name := _path(node, aliases)):
                found.add(name)
            if isinstance(node, ast.Call) and (section := _limits_of(node, aliases)) is not None:
                names = _field_names(path, node)
                found |= {f"{section}.{name}" for name in names & loads}
    return found & {key.path for key in keys()}


def _path(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """Return what ``node`` is in the configuration: "" the whole, a section, a key; None: something else."""
    match node:
        case ast.Name(id="config") | ast.Attribute(attr="config"):
            return ""
        case ast.Name(id=name):
            return aliases.get(name)
        case ast.Attribute(value=value, attr=name):
            above = _path(value, aliases)
            return None if above is None else f"{above}.{name}".lstrip(".")
    return None


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            path = _path(node.value, {})
            if path:
                yield node.targets[0].id, path


def _limits_of(node: ast.Call, aliases: dict[str, str]) -> str | None:
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr == "limits":
        return _path(function.value, aliases)
    return None


def _field_names(path: Path, call: ast.Call) -> set[str]:
    """Return the fields of the dataclass in ``….limits(SomeLimits)``."""
    (name,) = call.args
    assert isinstance(name, ast.Name), "limits are named where they are filled"
    module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    cls = getattr(module, name.id, None) or _imported_in_function(path, name.id)
    return {field.name for field in dataclasses.fields(cls)}


def _imported_in_function(path: Path, name: str) -> type:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and any((it.asname or it.name) == name for it in node.names):
            assert node.module is not None
            found: type = getattr(importlib.import_module(node.module), name)
            return found
    raise AssertionError(f"{path} does not import {name}")


def _fields_read(tree: ast.Module) -> Iterator[str]:
    """Yield attributes that are read, but for the checks that a dataclass makes of itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Limits"):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Load):
                yield inner.attr
