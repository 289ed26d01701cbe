"""Links between pages lead somewhere, and rules that the sources cite are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SOURCES = [path for name in ("device_sdk", "gateway", "firmware_sim") for path in (ROOT / name).rglob("*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_every_rule_that_the_sources_cite_is_on_the_page() -> None:
    rules = set()
    for number, section in re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## |\Z)", PROTOCOL, re.M | re.S):
        rules.add(number)
        rules |= {f"{number}.{rule}" for rule in re.findall(r"^(\d+)\. ", section, re.M)}
    cited = {
        rule
        for path in SOURCES
        for cited in re.findall(r"PROTOCOL ((?:§[\d.]*\d[, ;]*(?:and )?)+)", path.read_text())
        for rule in re.findall(r"§([\d.]*\d)", cited)
    }
    assert len(cited) > 20, "they are found"
    assert cited - rules == set()
