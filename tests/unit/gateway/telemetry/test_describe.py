"""docs/reference/metrics.md says what a node exports."""

from __future__ import annotations

from pathlib import Path

from gateway.telemetry.describe import reference

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "metrics.md"


def test_the_page_is_what_the_code_makes() -> None:
    assert PAGE.read_text() == reference(), "python -m gateway.telemetry > docs/reference/metrics.md"


def test_closed_sets_of_labels_are_named_and_open_ones_described() -> None:
    page = reference()
    assert "| `fleetcast_reports_total` | counter | `status`: `recorded`, `duplicate`, `refused` |" in page
    assert "`route`: the pattern of a route" in page
    assert "`le`" not in page
