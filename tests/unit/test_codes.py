"""docs/reference/codes.md is the registry of codes: here it is held against the sources."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from device_sdk.wire import messages
from device_sdk.wire.close_codes import CloseCode

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "codes.md").read_text()
SOURCES = [
    path for package in ("device_sdk", "gateway", "firmware_sim") for path in (ROOT / package).rglob("*.py")
]
# Calls that take a code by position, and at which.
_POSITION = {"Error": 0, "Nack": 3, "Recorded": 2, "RequestError": 1}
CODE = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")


def declared(tree: ast.AST) -> set[str]:
    """Return each literal that is a class's ``code``, a call's ``code=`` or of ``_POSITION``."""
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                if isinstance(statement, ast.Assign):
                    targets: list[ast.expr] = statement.targets
                elif isinstance(statement, ast.AnnAssign):
                    targets = [statement.target]
                else:
                    continue
                if any(isinstance(target, ast.Name) and target.id == "code" for target in targets):
                    found.append(statement.value)
        elif isinstance(node, ast.Call):
            found += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _POSITION and len(node.args) > _POSITION[name]:
                found.append(node.args[_POSITION[name]])
    return {item.value for item in found if isinstance(item, ast.Constant) and isinstance(item.value, str)}


def section(title: str) -> str:
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert match, title
    return match[1]


def rows(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", text, re.M)


TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
IN_SOURCES = {code for tree in TREES.values() for code in declared(tree)}
LITERALS = {
    node.value
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}
ON_PAGE = [code for code in rows(PAGE) if CODE.match(code)]


def test_every_code_in_the_sources_is_in_the_registry() -> None:
    assert IN_SOURCES - set(ON_PAGE) == set()


def test_every_code_in_the_registry_is_in_the_sources() -> None:
    assert set(ON_PAGE) - LITERALS == set()


def test_a_section_names_a_code_once() -> None:
    for part in re.split(r"^## ", PAGE, flags=re.M):
        found = rows(part)
        assert len(found) == len(set(found)), part.splitlines()[0]


def test_the_close_codes_are_the_registry_of_the_code() -> None:
    found = re.findall(r"^\| (\d{4}) \| `([A-Z_]+)` \|", section("Close codes"), re.M)
    assert [(int(number), name) for number, name in found] == [(int(code), code.name) for code in CloseCode]


@pytest.mark.parametrize(
    ("title", "codes"),
    [
        ("Reasons of an advance", messages.ADVANCE_REASONS),
        ("Reasons of a loss", messages.LOST_REASONS),
        ("What became of a report", messages.RECORDED_STATUSES),
        ("States that a device reports", messages.REPORT_STATES),
    ],
)
def test_the_closed_sets_of_the_wire_are_listed(title: str, codes: tuple[str, ...]) -> None:
    assert rows(section(title)) == list(codes)
