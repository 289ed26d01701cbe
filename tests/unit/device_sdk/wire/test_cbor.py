from __future__ import annotations

import datetime
import re

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.wire import cbor
from device_sdk.wire.errors import LimitError, MalformedError, WireError

SIZE_MAX = 4096

# RFC 8949 appendix A, those that are deterministic and of plain types.
APPENDIX_A = [
    ("00", 0),
    ("17", 23),
    ("1818", 24),
    ("1903e8", 1000),
    ("1bffffffffffffffff", 2**64 - 1),
    ("20", -1),
    ("3903e7", -1000),
    ("3bffffffffffffffff", -(2**64)),
    ("f90000", 0.0),
    ("f93e00", 1.5),
    ("fb3ff199999999999a", 1.1),
    ("fa47c35000", 100000.0),
    ("f97c00", float("inf")),
    ("f4", False),
    ("f5", True),
    ("f6", None),
    ("40", b""),
    ("4401020304", b"\x01\x02\x03\x04"),
    ("60", ""),
    ("62c3bc", "ü"),
    ("80", []),
    ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("a0", {}),
    ("a201020304", {1: 2, 3: 4}),
    ("a26161016162820203", {"a": 1, "b": [2, 3]}),
]

REFUSED = {
    "nothing": "",
    "half a head": "19",
    "half a string": "4401",
    "string of 2^62 bytes": "5b4000000000000000",
    "array of 2^32 items": "9b0000000100000000",
    "map of 2^32 pairs": "bb0000000100000000",
    "trailing byte": "0000",
    "integer in a long form": "1800",
    "negative integer in a long form": "3800",
    "length in a long form": "580101",
    "map length in a long form": "b800",
    "float in a long form": "fb3ff8000000000000",
    "not-a-number with a payload": "fb7ff8000000000001",
    "indefinite bytes": "5f4100ff",
    "indefinite text": "7f6100ff",
    "indefinite array": "9fff",
    "indefinite map": "bfff",
    "lone break": "ff",
    "reserved length": "1c",
    "repeated key": "a201010102",
    "1 and 1.0 as keys": "a20101f93c0002",
    "unsorted integer keys": "a202000100",
    "unsorted text keys": "a2616200616100",
    "shorter key first across signs": "a22000186400",
    "true as a key": "a1f500",
    "float as a key": "a1f93c0000",
    "null as a key": "a1f600",
    "bad UTF-8": "61ff",
    "undefined": "f7",
    "simple value": "e0",
    "two-byte simple value below 32": "f810",
    "date as text": "c074323031332d30332d32315432303a30343a30305a",
    "date as number": "c11a514b67b0",
    "bignum of one byte": "c24101",
    "bignum": "c249010000000000000000",
    "negative bignum": "c349010000000000000000",
    "decimal with exponent 10^9": "c4821a3b9aca0001",
    "bigfloat": "c5822003",
    "rational": "d81e820102",
    "regular expression": "d82363612e62",
    "MIME message": "d8246161",
    "UUID": "d82550" + 16 * "00",
    "set": "d901028101",
    "IP address": "d9010444c00a0a01",
    "shared reference": "d81c81d81d00",
    "string reference": "d90100824461616161d81900",
    "self-described": "d9d9f700",
    "COSE_Sign1's tag": "d284",
    "SUIT's tag": "d86ba0",
    "tag of nobody": "d9ffff00",
}


@pytest.mark.parametrize(("encoded", "value"), APPENDIX_A)
def test_appendix_a_of_rfc_8949_reads_and_writes(encoded: str, value: object) -> None:
    decoded = cbor.decode(bytes.fromhex(encoded), size_max=SIZE_MAX)
    assert decoded == value
    assert type(decoded) is type(value)
    assert cbor.encode(value).hex() == encoded


@pytest.mark.parametrize("encoded", REFUSED.values(), ids=REFUSED.keys())
def test_what_the_library_would_let_by_is_malformed(encoded: str) -> None:
    with pytest.raises(MalformedError):
        cbor.decode(bytes.fromhex(encoded), size_max=SIZE_MAX)


@pytest.mark.parametrize(("depth", "is_read"), [(16, True), (17, False), (100_000, False)])
def test_depth_is_bounded(depth: int, is_read: bool) -> None:
    data = b"\x81" * depth + b"\x00"
    if is_read:
        cbor.decode(data, size_max=len(data))
    else:
        with pytest.raises(MalformedError):
            cbor.decode(data, size_max=len(data))


def test_size_is_bounded_inclusively() -> None:
    assert cbor.decode(b"\x41\x00", size_max=2) == b"\x00"
    with pytest.raises(LimitError) as caught:
        cbor.decode(b"\x41\x00", size_max=1)
    assert (caught.value.actual, caught.value.allowed) == (2, 1)


class TestOrderOfKeys:
    """RFC 8949 §4.2.1 is bytewise; the library's own order is shorter first."""

    @pytest.mark.parametrize(
        ("value", "encoded"),
        [
            ({-1: 0, 100: 0}, "a21864002000"),
            ({100: 0, -1: 0, 10: 0}, "a30a001864002000"),
            ({-25: 0, -1: 0}, "a22000381800"),
            ({"aa": 0, 1000: 0, "b": 0, b"": 0}, "a41903e800400061620062616100"),
            ({1: {-1: 0, 100: 0}}, "a101a21864002000"),
            ([{-1: 0, 100: 0}, {2: 0, 1: 0}], "82a21864002000a201000200"),
            ({(b"\x00",): 0, 3: 1}, "a2030181410000"),
            # appendix A's mixed map, as §4.2.1 lists it
            (
                {10: 0, 100: 0, -1: 0, "z": 0, "aa": 0, (100,): 0, (-1,): 0},
                "a70a001864002000617a006261610081186400812000",
            ),
        ],
    )
    def test_keys_are_sorted_by_their_encoding(self, value: object, encoded: str) -> None:
        data = bytes.fromhex(encoded)
        assert cbor.encode(value) == data
        assert cbor.decode(data, size_max=SIZE_MAX) == value


@pytest.mark.parametrize(
    "pairs",
    [
        [(2, 0), (1, 0)],
        [("b", 0), ("a", 0)],
        [("aa", 0), ("b", 0)],
        [("é", 0), ("z", 0)],
        [("a", 0), (1, 0)],
        [(-1, 0), (1, 0)],
        [(24, 0), (1, 0)],
        [(1, 0), (0, [{2: 0}])],
    ],
    ids=repr,
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_two_keys_have_one_order_at_any_depth(pairs: list[tuple[object, object]], depth: int) -> None:
    unsorted: object = dict(pairs)
    for _ in range(depth):
        unsorted = [{1: unsorted}]
    with pytest.raises(MalformedError):
        cbor.decode(cbor2.dumps(unsorted), size_max=SIZE_MAX)
    assert cbor.decode(cbor.encode(unsorted), size_max=SIZE_MAX) == unsorted


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        re.compile("a"),
        {1, 2},
        cbor2.CBORTag(18, []),
        object(),
        [[{1: object()}]],
        {True: 1},
        {1.0: 1},
    ],
)
def test_only_plain_types_are_encoded(value: object) -> None:
    with pytest.raises(TypeError):
        cbor.encode(value)


@pytest.mark.parametrize("value", [2**64, -(2**64) - 1, [2**64], {1: 2**64}, {2**64: 1}])
def test_integers_of_more_than_64_bits_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        cbor.encode(value)


def test_strip_tag_takes_the_one_tag_and_no_other() -> None:
    assert cbor.strip_tag(bytes.fromhex("d280"), 18) == b"\x80"
    assert cbor.strip_tag(bytes.fromhex("d86ba0"), 107) == b"\xa0"
    assert cbor.strip_tag(bytes.fromhex("d86ba0"), 18) == bytes.fromhex("d86ba0")
    assert cbor.strip_tag(b"\x80", 18) == b"\x80"


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65535, 65536])
def test_byte_string_writes_the_head_of_a_bstr(size: int) -> None:
    assert cbor.byte_string(bytes(size)) == cbor2.dumps(bytes(size))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.integers(-(2**64), 2**64 - 1) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(plain)
def test_what_is_encoded_decodes_to_the_same(value: object) -> None:
    assert cbor.decode(cbor.encode(value), size_max=1 << 20) == value


@given(plain)
def test_another_encoding_is_the_same_or_refused(value: object) -> None:
    encoded = cbor2.dumps(value)
    try:
        decoded = cbor.decode(encoded, size_max=1 << 20)
    except MalformedError:
        assert encoded != cbor.encode(value)
    else:
        assert encoded == cbor.encode(decoded)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_wire_errors(data: bytes) -> None:
    try:
        value = cbor.decode(data, size_max=100)
    except WireError:
        return
    assert cbor.encode(value) == data
