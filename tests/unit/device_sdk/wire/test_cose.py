from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.wire import cose
from device_sdk.wire.cose import Sign1, sign1, verify_sign1
from device_sdk.wire.errors import (
    BadSignatureError,
    LimitError,
    MalformedError,
    UnknownKeyError,
    UnsupportedError,
    WireError,
)
from device_sdk.wire.keys import Algorithm, PrivateKey, PublicKey

ED25519 = PrivateKey.from_seed(bytes(range(32)))
P256 = PrivateKey.generate(Algorithm.ESP256)
STRANGER = PrivateKey.from_seed(bytes(32))
PAYLOAD = b"payload"
AAD = b"fleetcast.v1/alert/acme"
both = pytest.mark.parametrize("key", [ED25519, P256], ids=["Ed25519", "P-256"])


def trusted(*keys: PrivateKey) -> dict[bytes, cose.PublicKey]:
    return {key.kid: key.public for key in keys}


def message(
    protected: object = None,
    unprotected: object = None,
    payload: object = PAYLOAD,
    signature: object = None,
    *,
    key: PrivateKey = ED25519,
) -> bytes:
    """A COSE_Sign1 put together by another library, so that it may be wrong anywhere."""
    header = {1: int(key.algorithm), 4: key.kid} if protected is None else protected
    encoded = header if isinstance(header, bytes) else cbor2.dumps(header, canonical=True)
    signed = cbor2.dumps(["Signature1", encoded, b"", payload])
    parts = [
        encoded,
        {} if unprotected is None else unprotected,
        payload,
        key.sign(signed) if signature is None else signature,
    ]
    return cbor2.dumps(cbor2.CBORTag(18, parts), canonical=True)


class TestStructure:
    """RFC 9052 §4.2, §4.4."""

    @both
    def test_sign1_is_four_members_under_tag_18(self, key: PrivateKey) -> None:
        decoded = cbor2.loads(sign1(PAYLOAD, key))
        assert decoded.tag == 18
        protected, unprotected, payload, signature = decoded.value
        assert cbor2.loads(protected) == {1: int(key.algorithm), 4: key.kid}
        assert unprotected == {}
        assert payload == PAYLOAD
        assert len(signature) == 64

    def test_sig_structure_has_the_context_the_header_the_aad_and_the_payload(self) -> None:
        assert cbor2.loads(cose.sig_structure(b"\xa0", PAYLOAD, AAD)) == ["Signature1", b"\xa0", AAD, PAYLOAD]

    @both
    def test_a_message_of_another_library_verifies(self, key: PrivateKey) -> None:
        assert verify_sign1(message(key=key), trusted(key)) == PAYLOAD

    def test_tag_18_may_be_left_out(self) -> None:
        assert verify_sign1(sign1(PAYLOAD, ED25519)[1:], trusted(ED25519)) == PAYLOAD

    @both
    def test_parts_kept_apart_join_to_the_same_message(self, key: PrivateKey) -> None:
        signature = cose.signature_of(PAYLOAD, key, external_aad=AAD)
        joined = cose.assemble(PAYLOAD, signature, kid=key.kid, algorithm=key.algorithm)
        assert verify_sign1(joined, trusted(key), external_aad=AAD) == PAYLOAD

    @both
    def test_a_detached_payload_is_verified_beside_the_message(self, key: PrivateKey) -> None:
        data = sign1(PAYLOAD, key, is_detached=True)
        assert cbor2.loads(data).value[2] is None
        assert verify_sign1(data, trusted(key), detached_payload=PAYLOAD) == PAYLOAD
        with pytest.raises(BadSignatureError):
            verify_sign1(data, trusted(key), detached_payload=b"other")

    @pytest.mark.parametrize(("is_detached", "beside"), [(True, None), (False, PAYLOAD)])
    def test_the_payload_is_in_one_place(self, is_detached: bool, beside: bytes | None) -> None:
        data = sign1(PAYLOAD, ED25519, is_detached=is_detached)
        with pytest.raises(MalformedError):
            verify_sign1(data, trusted(ED25519), detached_payload=beside)

    def test_headers_that_are_not_known_are_signed_and_ignored(self) -> None:
        data = message({1: -19, 3: "text/plain", 4: ED25519.kid})
        assert verify_sign1(data, trusted(ED25519)) == PAYLOAD

    def test_a_kid_may_stand_unprotected(self) -> None:
        data = message({1: -19}, {4: ED25519.kid})
        assert verify_sign1(data, trusted(ED25519)) == PAYLOAD


PEER: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "data" / "cose.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("vector", PEER["vectors"], ids=lambda vector: f"alg {vector['alg']}")
class TestIndependentPeer:
    def test_its_message_verifies(self, vector: dict[str, Any]) -> None:
        key = PublicKey.from_pem(vector["public_key_pem"].encode())
        data, aad = bytes.fromhex(vector["sign1_hex"]), bytes.fromhex(vector["external_aad_hex"])
        assert key.kid.hex() == vector["kid_hex"]
        assert verify_sign1(data, {key.kid: key}, external_aad=aad).hex() == vector["payload_hex"]
        assert Sign1.parse(data).algorithm == vector["alg"]

    def test_one_bit_changed_anywhere_is_refused(self, vector: dict[str, Any]) -> None:
        key = PublicKey.from_pem(vector["public_key_pem"].encode())
        data, aad = bytes.fromhex(vector["sign1_hex"]), bytes.fromhex(vector["external_aad_hex"])
        for index in range(len(data)):
            changed = bytearray(data)
            changed[index] ^= 1 << index % 8
            with pytest.raises(WireError):
                verify_sign1(bytes(changed), {key.kid: key}, external_aad=aad)


MALFORMED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no array": lambda: b"\xd2\xa0",
    "three members": lambda: cbor2.dumps([b"\xa0", {}, b""]),
    "five members": lambda: cbor2.dumps([b"\xa0", {}, b"", bytes(64), 0]),
    "protected is a map": lambda: cbor2.dumps([{1: -19}, {}, b"", bytes(64)]),
    "protected is empty": lambda: message(b""),
    "protected is an array": lambda: message(b"\x80"),
    "protected has no alg": lambda: message({4: ED25519.kid}),
    "protected in a long form": lambda: message(bytes.fromhex("a1180132")),
    "protected with trailing bytes": lambda: message(bytes.fromhex("a1013200")),
    "alg only unprotected": lambda: message({4: ED25519.kid}, {1: -19}),
    "alg is text": lambda: message({1: "EdDSA"}),
    "alg is true": lambda: message({1: True}),
    "unprotected is an array": lambda: message(unprotected=[]),
    "unprotected is null": lambda: cbor2.dumps([b"\xa1\x01\x32", None, b"", bytes(64)]),
    "payload is text": lambda: message(payload="text"),
    "signature is null": lambda: cbor2.dumps([b"\xa1\x01\x32", {}, b"", None]),
    "signature is text": lambda: message(signature="text"),
    "kid is text": lambda: message({1: -19, 4: "kid"}),
    "kid of 65 bytes": lambda: message({1: -19, 4: bytes(65)}),
    "kid in both headers": lambda: message(None, {4: ED25519.kid}),
    "alg in both headers": lambda: message(None, {1: -19}),
    "two tags": lambda: b"\xd2" + sign1(PAYLOAD, ED25519),
    "COSE_Sign's tag": lambda: b"\xd8\x62" + sign1(PAYLOAD, ED25519)[1:],
    "trailing byte": lambda: sign1(PAYLOAD, ED25519) + b"\x00",
    "cut short": lambda: sign1(PAYLOAD, ED25519)[:-1],
}


@pytest.mark.parametrize("make", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_sign1_is_malformed(make: Callable[[], bytes]) -> None:
    with pytest.raises(MalformedError):
        verify_sign1(make(), trusted(ED25519))


def test_a_message_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(LimitError):
        verify_sign1(bytes(80 * 1024 + 1), trusted(ED25519))


class TestAlgorithms:
    @pytest.mark.parametrize("number", [-7, -9], ids=["ES256", "ESP256"])
    def test_p256_is_accepted_under_both_its_numbers(self, number: int) -> None:
        data = message({1: number, 4: P256.kid}, key=P256)
        assert verify_sign1(data, trusted(P256)) == PAYLOAD

    @pytest.mark.parametrize("number", [-8, -19], ids=["EdDSA", "Ed25519"])
    def test_ed25519_is_accepted_under_both_its_numbers(self, number: int) -> None:
        data = message({1: number, 4: ED25519.kid})
        assert verify_sign1(data, trusted(ED25519)) == PAYLOAD

    @pytest.mark.parametrize("number", [-7, -9, -35, -53, 5, 0, 1])
    def test_an_algorithm_that_does_not_fit_the_named_key_is_unsupported(self, number: int) -> None:
        with pytest.raises(UnsupportedError):
            verify_sign1(message({1: number, 4: ED25519.kid}), trusted(ED25519))

    @pytest.mark.parametrize("header", ["protected", "unprotected"])
    def test_critical_headers_are_unsupported(self, header: str) -> None:
        data = (
            message({1: -19, 2: [3], 3: 0, 4: ED25519.kid})
            if header == "protected"
            else message(None, {2: [3]})
        )
        with pytest.raises(UnsupportedError):
            verify_sign1(data, trusted(ED25519))


class TestKeys:
    def test_a_kid_of_no_trusted_key_is_unknown(self) -> None:
        with pytest.raises(UnknownKeyError):
            verify_sign1(sign1(PAYLOAD, STRANGER), trusted(ED25519, P256))

    def test_no_keys_refuse_everything(self) -> None:
        with pytest.raises(UnknownKeyError):
            verify_sign1(sign1(PAYLOAD, ED25519), {})
        with pytest.raises(UnknownKeyError):
            verify_sign1(sign1(PAYLOAD, ED25519), [])

    def test_keys_by_kid_need_a_kid(self) -> None:
        with pytest.raises(UnknownKeyError):
            verify_sign1(message({1: -19}), trusted(ED25519))

    def test_a_stranger_who_uses_a_trusted_kid_has_a_bad_signature(self) -> None:
        data = message({1: -19, 4: ED25519.kid}, key=STRANGER)
        with pytest.raises(BadSignatureError):
            verify_sign1(data, trusted(ED25519))

    def test_a_key_given_explicitly_needs_no_kid(self) -> None:
        assert verify_sign1(message({1: -19}), [STRANGER.public, P256.public, ED25519.public]) == PAYLOAD

    def test_a_key_given_explicitly_may_be_named_by_the_rule_of_another_tool(self) -> None:
        assert verify_sign1(message({1: -19, 4: b"theirs"}), [ED25519.public]) == PAYLOAD

    def test_explicit_keys_that_are_not_the_signers_say_what_is_wrong(self) -> None:
        with pytest.raises(BadSignatureError):
            verify_sign1(message({1: -19}), [STRANGER.public])
        with pytest.raises(UnknownKeyError):
            verify_sign1(sign1(PAYLOAD, ED25519), [STRANGER.public])
        with pytest.raises(UnsupportedError):
            verify_sign1(message({1: -19}), [P256.public])
        with pytest.raises(UnsupportedError):
            verify_sign1(message({1: -19, 4: P256.kid}), [P256.public])
        with pytest.raises(UnknownKeyError):
            verify_sign1(sign1(PAYLOAD, ED25519), [P256.public])

    @both
    def test_another_external_aad_is_a_bad_signature(self, key: PrivateKey) -> None:
        data = sign1(PAYLOAD, key, external_aad=AAD)
        assert verify_sign1(data, trusted(key), external_aad=AAD) == PAYLOAD
        for other in (b"", AAD + b"2", b"fleetcast.v1/directive/acme"):
            with pytest.raises(BadSignatureError):
                verify_sign1(data, trusted(key), external_aad=other)


@both
def test_every_bit_flipped_is_refused(key: PrivateKey) -> None:
    data = sign1(PAYLOAD, key, external_aad=AAD)
    for index in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[index] ^= 1 << bit
            with pytest.raises(WireError):
                verify_sign1(bytes(flipped), trusted(key), external_aad=AAD)


@given(st.binary(max_size=120))
def test_arbitrary_bytes_raise_nothing_but_wire_errors(data: bytes) -> None:
    with pytest.raises(WireError):
        Sign1.parse(data).verify(trusted(ED25519))


cbor_items = st.recursive(
    st.none() | st.integers(-20, 20) | st.binary(max_size=8) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(-2, 5) | st.text(max_size=2), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(cbor_items | st.binary(max_size=20), st.lists(cbor_items, min_size=3, max_size=3))
def test_arbitrary_members_raise_nothing_but_wire_errors(header: object, rest: list[object]) -> None:
    protected = header if isinstance(header, bytes) else cbor2.dumps(header, canonical=True)
    with pytest.raises(WireError):
        verify_sign1(cbor2.dumps([protected, *rest], canonical=True), trusted(ED25519))
