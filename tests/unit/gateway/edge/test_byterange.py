from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.edge.byterange import (
    NotModified,
    NotSatisfiable,
    Part,
    PreconditionFailed,
    Selection,
    Whole,
    select,
)

ETAG = '"abc"'


def selected(headers: dict[str, str], *, method: str = "GET", size_bytes: int = 100) -> Selection:
    return select(CIMultiDict(headers), method=method, etag=ETAG, size_bytes=size_bytes)


@pytest.mark.parametrize(
    ("range_", "expected"),
    [
        ("bytes=0-0", Part(0, 1)),
        ("bytes=0-99", Part(0, 100)),
        ("bytes=10-19", Part(10, 10)),
        ("bytes=10-", Part(10, 90)),
        ("bytes=99-", Part(99, 1)),
        ("bytes=90-1000", Part(90, 10)),
        ("bytes=-1", Part(99, 1)),
        ("bytes=-100", Part(0, 100)),
        ("bytes=-1000", Part(0, 100)),
        ("Bytes=0-1", Part(0, 2)),
        ("bytes=100-", NotSatisfiable()),
        ("bytes=100-200", NotSatisfiable()),
        ("bytes=-0", NotSatisfiable()),
        # What is not understood is ignored (RFC 9110 §14.2), and so is more than one range.
        ("bytes=20-10", Whole()),
        ("bytes=0-1,5-6", Whole()),
        ("bytes=", Whole()),
        ("bytes=-", Whole()),
        ("bytes=a-b", Whole()),
        ("items=0-1", Whole()),
        ("bytes=0-1x", Whole()),
        ("bytes=" + "9" * 19 + "-", Whole()),
    ],
)
def test_a_range_selects(range_: str, expected: Selection) -> None:
    assert selected({"Range": range_}) == expected


def test_no_range_of_nothing_can_be_satisfied() -> None:
    assert selected({"Range": "bytes=0-"}, size_bytes=0) == NotSatisfiable()
    assert selected({"Range": "bytes=-5"}, size_bytes=0) == NotSatisfiable()
    assert selected({}, size_bytes=0) == Whole()


def test_head_knows_no_ranges() -> None:
    assert selected({"Range": "bytes=0-1"}, method="HEAD") == Whole()


@pytest.mark.parametrize(
    ("if_range", "expected"),
    [
        (ETAG, Part(0, 2)),
        ('"other"', Whole()),
        ('W/"abc"', Whole()),
        ("Tue, 24 Nov 2026 20:00:00 GMT", Whole()),
    ],
)
def test_only_the_same_strong_etag_keeps_the_range(if_range: str, expected: Selection) -> None:
    assert selected({"Range": "bytes=0-1", "If-Range": if_range}) == expected


@pytest.mark.parametrize("condition", [ETAG, "*", 'W/"abc"', '"x", "abc"', ' "x" ,  W/"abc" '])
def test_what_the_client_has_is_not_sent_again(condition: str) -> None:
    assert selected({"If-None-Match": condition, "Range": "bytes=0-1"}) == NotModified()
    assert selected({"If-None-Match": condition}, method="HEAD") == NotModified()


@pytest.mark.parametrize("condition", ['"x"', "", "abc", '"ab', 'W/"x"'])
def test_what_the_client_has_not_is_sent(condition: str) -> None:
    assert selected({"If-None-Match": condition}) == Whole()


@pytest.mark.parametrize("condition", ['"x"', 'W/"abc"', ""])
def test_if_match_asks_for_the_same_strong_etag_before_all_else(condition: str) -> None:
    assert selected({"If-Match": condition, "If-None-Match": "*"}) == PreconditionFailed()


@pytest.mark.parametrize("condition", [ETAG, "*", '"x", "abc"'])
def test_if_match_that_holds_changes_nothing(condition: str) -> None:
    assert selected({"If-Match": condition, "Range": "bytes=0-1"}) == Part(0, 2)


@given(st.text(alphabet="bytes=0123456789-, ", max_size=24), st.integers(0, 50))
def test_a_part_is_never_outside_of_the_whole(range_: str, size_bytes: int) -> None:
    selection = selected({"Range": range_}, size_bytes=size_bytes)
    if isinstance(selection, Part):
        assert selection.size_bytes > 0
        assert selection.start >= 0
        assert selection.start + selection.size_bytes <= size_bytes
