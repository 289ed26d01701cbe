"""docs/protocol.md: every rule names tests that there are, every number that the sources cite is there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/protocol.md").read_text()
SHOWN, _, NOT_YET = PAGE.partition("\n## Not yet\n")
NUMBER = r"\d\.\d{1,2}[a-z]?"


def rows(text: str) -> list[list[str]]:
    """Return the cells of every row of every table, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "§" and not set(row[0]) <= set("-|")]


RULES = rows(SHOWN)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the tests of a file as pytest names them: ``name`` or ``Class::name``."""
    return frozenset(_names(ast.parse(path.read_text()), ""))


def _names(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.ClassDef(name=name) if name.startswith("Test"):
                yield from _names(child, f"{prefix}{name}::")
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith("test"):
                yield f"{prefix}{name}"


@pytest.mark.parametrize("row", RULES, ids=lambda row: row[0])
def test_a_rule_is_a_number_a_sentence_and_a_test_that_exists(row: list[str]) -> None:
    number, rule, shown_by = row
    assert re.fullmatch(NUMBER, number), "a number"
    assert rule.endswith("."), "a sentence"
    named = re.findall(r"`(tests/[^`:]+)::([^`]+)`", shown_by)
    assert named, "a test"
    for path, name in named:
        assert (ROOT / path).is_file(), f"no {path}"
        assert name in names_in(ROOT / path), f"{path} has no {name}"


def test_what_is_not_there_yet_names_no_test() -> None:
    found = rows(NOT_YET)
    assert found
    for row in found:
        number, rule = row
        assert re.fullmatch(NUMBER, number)
        assert rule.endswith(".")
        assert "tests/" not in rule


def test_a_number_is_used_once() -> None:
    counted = Counter(row[0] for row in [*RULES, *rows(NOT_YET)])
    assert [number for number, count in counted.items() if count > 1] == []


def test_every_number_that_the_sources_cite_is_a_rule() -> None:
    numbers = {row[0].rstrip("abcdefghijklmnopqrstuvwxyz") for row in [*RULES, *rows(NOT_YET)]}
    known = numbers | {number.partition(".")[0] for number in numbers}
    cited = {
        number
        for folder in ("device_sdk", "firmware_sim", "gateway", "migrations", "ops", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for numbers in re.findall(r"PROTOCOL ((?:§[\d.]*\d[, ;]*(?:and )?)+)", path.read_text())
        for number in re.findall(r"§([\d.]*\d)", numbers)
    }
    assert len(cited) > 20, "they are found"
    assert cited - known == set()


def test_no_rule_is_only_promised() -> None:
    assert len(RULES) > 100
    assert all(len(row) == 3 and all(row) for row in RULES)
