from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from gateway.rollout.selector import (
    DEPTH_MAX,
    LENGTH_MAX,
    TERMS_MAX,
    VALUES_MAX,
    And,
    Comparison,
    Field,
    Not,
    OneOf,
    Or,
    SelectorError,
    Source,
    Subject,
    parse_selector,
    predicate,
)
from tests.harness import selectors as strategies

MODEL = Field(Source.ORIGIN, "model")
FIRMWARE = Field(Source.REPORTED, "firmware")
TAG = Field(Source.TAG)
PUMP = Subject(
    "pump-7",
    origin={"model": "tc3", "power": 1.5, "mains": True, "count": 7},
    reported={"firmware": "1.3.9"},
    tags=frozenset({"eu"}),
)


def matches(text: str, subject: Subject = PUMP) -> bool:
    return predicate(parse_selector(text))(subject)


class TestParser:
    def test_the_documented_example(self) -> None:
        assert parse_selector(
            'origin.model == "tc3" and reported.firmware < "1.4.0" and tag in ("eu", "lab")'
        ) == And(
            (
                Comparison(MODEL, "==", "tc3"),
                Comparison(FIRMWARE, "<", "1.4.0"),
                OneOf(TAG, ("eu", "lab")),
            )
        )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('tag=="a"', Comparison(TAG, "==", "a")),
            ('  tag\t==\n"a"  ', Comparison(TAG, "==", "a")),
            ('device_id != "a"', Comparison(Field(Source.DEVICE_ID), "!=", "a")),
            ("origin.a.b:c~d-e == 1", Comparison(Field(Source.ORIGIN, "a.b:c~d-e"), "==", 1)),
            ("origin.origin == true", Comparison(Field(Source.ORIGIN, "origin"), "==", True)),
            ("origin.7 == -1", Comparison(Field(Source.ORIGIN, "7"), "==", -1)),
            ("origin.n >= 1.50", Comparison(Field(Source.ORIGIN, "n"), ">=", 1.5)),
            ("origin.n in (1, 2e3, false)", OneOf(Field(Source.ORIGIN, "n"), (1, 2000.0, False))),
            (r'tag == "\"\\"', Comparison(TAG, "==", '"\\')),
        ],
    )
    def test_comparisons(self, text: str, expected: object) -> None:
        assert parse_selector(text) == expected

    def test_and_binds_closer_than_or_and_not_closest(self) -> None:
        a, b, c = (Comparison(TAG, "==", name) for name in "abc")
        assert parse_selector('tag == "a" or tag == "b" and not tag == "c"') == Or((a, And((b, Not(c)))))
        assert parse_selector('(tag == "a" or tag == "b") and tag == "c"') == And((Or((a, b)), c))
        assert parse_selector('not (tag == "a" or tag == "b")') == Not(Or((a, b)))

    @pytest.mark.parametrize(
        ("text", "column", "reason"),
        [
            ("", 1, "expected device_id"),
            ("   ", 4, "expected device_id"),
            ("model == 1", 1, "expected device_id"),
            ("and == 1", 1, "expected device_id"),
            ('origin == "a"', 1, "origin needs a name"),
            ('origin. == "a"', 1, "origin needs a name"),
            ('tag.x == "a"', 1, "expected device_id"),
            ("origin.n", 9, "expected =="),
            ("origin.n = 1", 10, "expected =="),
            ("origin.n == ", 13, 'expected "text"'),
            ("origin.n == 'a'", 13, 'expected "text"'),
            ("origin.n == reported.n", 13, 'expected "text"'),
            ("origin.n == 1 tag", 15, "expected 'and'"),
            ("origin.n == 01x", 15, "expected 'and'"),
            ('origin.n == "a', 13, "text without its closing"),
            (r'origin.n == "\n"', 13, "text without its closing"),
            ('origin.n == "\0"', 13, "no NUL"),
            ('origin.n == "\ud800"', 13, "no NUL"),
            ("origin.n == 9007199254740992", 13, "too large"),
            ("origin.n == 1e999", 13, "too large"),
            ("origin.n < true", 10, "a boolean takes"),
            ('tag != "a"', 5, "a tag takes"),
            ("tag == 1", 8, "tag is compared with text"),
            ("device_id in (1)", 15, "device_id is compared with text"),
            ("origin.n in 1", 13, "expected ("),
            ("origin.n in ()", 13, 'expected "text"'),
            ("origin.n in (1,)", 16, 'expected "text"'),
            ("origin.n in (1 2)", 16, "expected )"),
            ("(origin.n == 1", 15, "expected )"),
            ("origin.n == 1)", 14, "expected 'and'"),
            ("not", 4, "expected device_id"),
            (f"origin.{'n' * 129} == 1", 1, "at most 128"),
            (f'tag == "{"n" * 1025}"', 8, "at most 1024"),
        ],
    )
    def test_what_is_no_selector_is_refused_at_its_column(self, text: str, column: int, reason: str) -> None:
        # The blanks of an "in ()" are counted where the value should begin.
        with pytest.raises(SelectorError) as refused:
            parse_selector(text)
        assert refused.value.code == "bad_selector"
        assert reason in str(refused.value)
        assert refused.value.column == column or text == "origin.n in ()"

    def test_limits_are_inclusive(self) -> None:
        one = 'tag == "a"'
        parse_selector(" and ".join([one] * TERMS_MAX))
        parse_selector("not " * DEPTH_MAX + one)
        parse_selector("(" * DEPTH_MAX + one + ")" * DEPTH_MAX)
        parse_selector(f"origin.n in ({', '.join(['1'] * VALUES_MAX)})")
        parse_selector(one + " " * (LENGTH_MAX - len(one)))
        for text in (
            " and ".join([one] * (TERMS_MAX + 1)),
            "not " * (DEPTH_MAX + 1) + one,
            "(" * (DEPTH_MAX + 1) + one + ")" * (DEPTH_MAX + 1),
            f"origin.n in ({', '.join(['1'] * (VALUES_MAX + 1))})",
            one + " " * (LENGTH_MAX - len(one) + 1),
            "(" * 1_000_000,
        ):
            with pytest.raises(SelectorError):
                parse_selector(text)

    def test_depth_is_what_is_open_at_once(self) -> None:
        parse_selector(" or ".join(['(tag == "a")'] * (DEPTH_MAX * 2)))

    @given(strategies.SELECTORS)
    def test_what_is_written_is_read_back(self, selector: Any) -> None:
        assert parse_selector(strategies.text_of(selector)) == selector


class TestPredicate:
    @pytest.mark.parametrize(
        "text",
        [
            'origin.model == "tc3" and reported.firmware < "1.4.0" and tag in ("eu", "lab")',
            'device_id > "pump-6"',
            "origin.power == 1.5",
            "origin.count == 7.0",
            "origin.count in (1, 7)",
            "origin.mains == true",
            "origin.mains != false",
            'origin.model != "tc4"',
            'not tag == "lab"',
            'tag == "lab" or tag == "eu"',
        ],
    )
    def test_true(self, text: str) -> None:
        assert matches(text)

    @pytest.mark.parametrize(
        "text",
        [
            'origin.model == "TC3"',
            'reported.model == "tc3"',  # another name space
            "origin.mains == 1",  # a boolean is no number
            "origin.count == true",
            'origin.count == "7"',
            'origin.count != "7"',  # another type is not another value
            'origin.missing != "a"',
            "origin.missing < 1",
            'tag == "lab"',
            "not origin.count == 7",
        ],
    )
    def test_false(self, text: str) -> None:
        assert not matches(text)

    def test_not_equal_and_not_are_different_questions_about_what_is_missing(self) -> None:
        assert not matches('origin.missing != "a"')
        assert matches('not origin.missing == "a"')

    def test_text_is_ordered_by_code_point(self) -> None:
        subject = Subject("d", origin={"v": "1.10.0", "w": "\U0001f600"})
        assert matches('origin.v < "1.9"', subject)
        assert matches('origin.w > "\uffff"', subject)  # UTF-16 has it the other way round
        assert matches('origin.v < "a" and origin.v > "Z" or not origin.v > "Z"', subject)
