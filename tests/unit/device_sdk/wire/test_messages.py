"""Golden vectors of fleetcast.v1. Their bytes were written from the CDDL, not by ``messages``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from device_sdk.wire.errors import LimitError, MalformedError, WireError
from device_sdk.wire.limits import BATCH_LEN_MAX, BATCH_SIZE_MAX, FRAME_SIZE_MAX
from device_sdk.wire.messages import (
    SCHEMA,
    Ack,
    Error,
    Position,
    decode_base64url,
    decode_batch_cbor,
    decode_batch_json,
    decode_cbor,
    decode_json,
    encode_base64url,
    encode_batch_cbor,
    encode_batch_json,
    encode_cbor,
    encode_json,
)

DATA = Path(__file__).parents[3] / "data" / "fleetcast-v1"


def load(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text())


def cases(rows: Any, encoding: str) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in rows if encoding in row]


TYPES = [name for _, name, _ in SCHEMA.values()]
VECTORS = [pytest.param(row, id=f"{name}: {row['name']}") for name in TYPES for row in load(name)["vectors"]]
ACK = Ack(positions={"ops": Position(7, 12)})


class TestGoldenVectors:
    @pytest.mark.parametrize("row", VECTORS)
    def test_both_encodings_say_the_same(self, row: Any) -> None:
        message = decode_cbor(bytes.fromhex(row["cbor"]))
        assert message is not None
        assert decode_json(row["json"]) == message

    @pytest.mark.parametrize("row", VECTORS)
    def test_cbor_is_written_to_the_byte(self, row: Any) -> None:
        message = decode_json(row["json"])
        assert message is not None
        assert encode_cbor(message).hex() == row["cbor"]

    @pytest.mark.parametrize("row", VECTORS)
    def test_json_is_written_to_the_character(self, row: Any) -> None:
        message = decode_cbor(bytes.fromhex(row["cbor"]))
        assert message is not None
        assert encode_json(message) == row["json"]

    @pytest.mark.parametrize("name", TYPES)
    def test_every_field_of_a_type_occurs_in_its_vectors(self, name: str) -> None:
        fields = next(fields for _, n, fields in SCHEMA.values() if n == name)
        seen = {key for row in load(name)["vectors"] for key in json.loads(row["json"])}
        assert seen == {"type"} | {field.name for field in fields}


class TestNewerPeers:
    @pytest.mark.parametrize("row", cases(load("tolerated"), "cbor"))
    def test_what_a_later_version_adds_is_passed_over(self, row: Any) -> None:
        same_as = row["same_as"]
        from_cbor = decode_cbor(bytes.fromhex(row["cbor"]))
        from_json = decode_json(row["json"])
        assert from_cbor == (same_as and decode_cbor(bytes.fromhex(same_as["cbor"])))
        assert from_json == (same_as and decode_json(same_as["json"]))

    def test_an_unknown_type_is_left_out_of_a_batch(self) -> None:
        assert decode_batch_cbor(bytes.fromhex("82a10015") + encode_cbor(ACK)) == [ACK]
        assert decode_batch_json(f'[{{"type":"song"}},{encode_json(ACK)}]') == [ACK]


class TestRefusals:
    @pytest.mark.parametrize("row", cases(load("refused"), "cbor"))
    def test_malformed_cbor_is_refused(self, row: Any) -> None:
        with pytest.raises(WireError):
            decode_cbor(bytes.fromhex(row["cbor"]))

    @pytest.mark.parametrize("row", cases(load("refused"), "json"))
    def test_malformed_json_is_refused(self, row: Any) -> None:
        with pytest.raises(WireError):
            decode_json(row["json"])

    @pytest.mark.parametrize("row", VECTORS)
    def test_a_message_cut_short_anywhere_is_refused(self, row: Any) -> None:
        data = bytes.fromhex(row["cbor"])
        for size in range(len(data)):
            with pytest.raises(MalformedError):
                decode_cbor(data[:size])
        for size in range(len(row["json"])):
            with pytest.raises(MalformedError):
                decode_json(row["json"][:size])

    def test_nesting_beyond_the_parser_is_malformed_json(self) -> None:
        with pytest.raises(MalformedError):
            decode_json("[" * 100_000)

    def test_a_message_larger_than_a_frame_is_too_large(self) -> None:
        with pytest.raises(LimitError) as caught:
            decode_cbor(bytes(FRAME_SIZE_MAX + 1))
        assert caught.value.allowed == FRAME_SIZE_MAX
        with pytest.raises(LimitError):
            decode_json(" " * (FRAME_SIZE_MAX + 1))

    @pytest.mark.parametrize("character", ["\\ud800", "\\udfff", "\\u0000"])
    def test_text_that_no_database_stores_is_refused(self, character: str) -> None:
        with pytest.raises(MalformedError):
            decode_json(f'{{"type":"error","code":"x","ref":"a{character}b"}}')

    def test_a_surrogate_pair_is_a_character(self) -> None:
        assert decode_json('{"type":"error","code":"x","ref":"\\ud83d\\ude00"}') == Error("x", "😀")


class TestBatches:
    @pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, BATCH_LEN_MAX])
    def test_a_batch_of_any_length_comes_back(self, count: int) -> None:
        messages = [Ack(positions={"ops": Position(7, n)}) for n in range(count)]
        assert decode_batch_cbor(encode_batch_cbor(messages)) == messages
        assert decode_batch_json(encode_batch_json(messages)) == messages

    def test_a_single_message_needs_no_array(self) -> None:
        assert decode_batch_cbor(encode_cbor(ACK)) == [ACK]
        assert decode_batch_json(encode_json(ACK)) == [ACK]

    def test_one_message_too_many_is_refused(self) -> None:
        many = b"\x99\x01\x2d" + encode_cbor(ACK) * (BATCH_LEN_MAX + 1)
        with pytest.raises(LimitError):
            decode_batch_cbor(many)
        with pytest.raises(LimitError):
            decode_batch_json("[" + ",".join([encode_json(ACK)] * (BATCH_LEN_MAX + 1)) + "]")

    def test_a_batch_of_too_many_bytes_is_refused(self) -> None:
        with pytest.raises(LimitError):
            decode_batch_cbor(bytes(BATCH_SIZE_MAX + 1))
        with pytest.raises(LimitError):
            decode_batch_json(" " * (BATCH_SIZE_MAX + 1))

    def test_one_malformed_message_refuses_the_batch(self) -> None:
        with pytest.raises(MalformedError):
            decode_batch_cbor(b"\x82" + encode_cbor(ACK) + b"\xa1\x00\x02")


class TestBase64URL:
    # RFC 4648 §10, without the padding
    @pytest.mark.parametrize(
        ("data", "text"),
        [(b"", ""), (b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (b"\xfb\xff", "-_8")],
    )
    def test_vectors(self, data: bytes, text: str) -> None:
        assert encode_base64url(data) == text
        assert decode_base64url(text) == data

    @pytest.mark.parametrize("text", ["Zg==", "Zh", "Z", "Zm8\n", "+/8", "é", 7, None, b"Zg"])
    def test_any_other_spelling_is_refused(self, text: object) -> None:
        with pytest.raises(MalformedError):
            decode_base64url(text)
