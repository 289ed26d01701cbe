from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.wire import cbor
from gateway.edge.operator.cursor import decode_cursor, encode_cursor
from gateway.edge.problem import RequestError

names = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


places = st.tuples(st.integers(-1, 2**53 - 1), st.integers(0, 2**53 - 1))


@given(st.one_of(st.text(names, max_size=128), st.integers(0, 2**53 - 1), st.binary(max_size=32), places))
def test_a_cursor_comes_back_as_what_it_was_made_of(after: str | int | bytes | tuple[int, int]) -> None:
    assert decode_cursor(encode_cursor("x.list", after), "x.list", type(after)) == after


def raw(value: object) -> str:
    return base64.urlsafe_b64encode(cbor.encode(value)).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "AAAA",
        "ä",
        encode_cursor("y.list", "a"),
        encode_cursor("x.list", 1),
        encode_cursor("x.list", "a") + "A",
        encode_cursor("x.list", "a") + "=",
        raw(["x.list"]),
        raw(["x.list", "a", "b"]),
        raw(["x.list", "a\0"]),
        raw(["x.list", ["a"]]),
        raw({"x.list": "a"}),
        raw(["x.list", "a" * 600]),
        "A" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_cursor_of_this_list_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode_cursor(text, "x.list", str)
    assert (refused.value.status, refused.value.code) == (400, "bad_cursor")


@pytest.mark.parametrize("after", [[1], [1, "a"], [1, 2, 3], [-2, 1], [True, 1], 1])
def test_places_that_no_list_has(after: object) -> None:
    with pytest.raises(RequestError):
        decode_cursor(raw(["x.list", after]), "x.list", tuple[int, int])


@pytest.mark.parametrize("after", [True, -1, 2**53, 2**64 - 1])
def test_numbers_that_no_list_has(after: int) -> None:
    with pytest.raises(RequestError):
        decode_cursor(raw(["x.list", after]), "x.list", int)
