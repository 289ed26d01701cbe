"""The reference page is the program's own."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.cli import program
from gateway.cli.reference import reference

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "cli.md"


def test_page_is_current() -> None:
    assert PAGE.read_text() == reference(), "python -m gateway.cli.reference > docs/reference/cli.md"


def test_every_code_of_the_program_is_listed() -> None:
    sources = "".join(path.read_text() for path in Path(program.__file__).parent.glob("*.py"))
    page = reference()
    codes = set(re.findall(r'code="(\w+)"', sources))
    assert "unreachable" in codes
    assert {code for code in codes if f"| `{code}` |" not in page} == set()


def test_every_option_says_what_it_means() -> None:
    commands = reference().partition("## fleetcast serve")[2]
    rows = [line for line in commands.splitlines() if line.startswith("| `-")]
    assert len(rows) > 100
    meanings = [re.split(r"(?<!\\)\|", row)[2].strip() for row in rows]
    assert [row for row, meaning in zip(rows, meanings, strict=True) if not meaning] == []
