from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.origin import Answer, OriginLimits


def answer(*headers: tuple[str, str]) -> Answer:
    return Answer(200, CIMultiDictProxy(CIMultiDict(headers)), b"")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("max-age=7", 7),
        ("private, Max-Age=7", 7),
        ("no-store", None),
        ("no-store, max-age=0", 0),
        ("max-age=", None),
        ("max-age=-1", None),
        ("max-age=1.5", None),
        ("max-age=" + "9" * 10, None),
        ("max-age=٣", None),
        ("", None),
    ],
)
def test_max_age_is_read_and_nonsense_is_not(value, seconds):
    assert answer(("Cache-Control", value)).cache_s == seconds


def test_max_age_is_found_in_a_second_header():
    assert answer(("Cache-Control", "private"), ("cache-control", "max-age=3")).cache_s == 3


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("77", 77),
        ("0", 0),
        ("99999", 300),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-1", None),
        ("1.5", None),
    ],
)
def test_retry_after_is_cut_to_its_bound(value, seconds):
    assert answer(("Retry-After", value)).retry_after_s(OriginLimits()) == seconds


def test_without_headers_nothing_is_said():
    assert answer().cache_s is None
    assert answer().retry_after_s(OriginLimits()) is None
