"""Columns that line up, and text of devices that cannot take over a terminal."""

from __future__ import annotations

import pytest

from gateway.cli.output import format_counts, format_size, format_time, print_facts, print_table


def test_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "is on"), [("a", True), ("longer", None), ("b", ["x", "y"])])
    assert capsys.readouterr().out == "NAME    IS ON\na       yes\nlonger  -\nb       x, y\n"


def test_nothing_is_said_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [], empty="no fleets")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "no fleets\n")


def test_escape_sequences_of_devices_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"detail": "ok\x1b[2J\r\n\x9b", "origin": {"model": "a\tb"}})
    assert capsys.readouterr().out == "detail  ok�[2J���\norigin  model=a�b\n"


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 1024**4, "3072.0 GiB")]
)
def test_sizes_are_for_people(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


def test_times_are_utc() -> None:
    assert format_time(1_800_000_000_000) == "2027-01-15 08:00:00Z"
    assert format_time(None) == "-"


def test_counts_leave_out_what_is_none() -> None:
    assert format_counts({"committed": 48, "failed": 0, "rejected": 2}) == "committed 48, rejected 2"
    assert format_counts({}) == "-"
