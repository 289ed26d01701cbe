from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from device_sdk.wire.errors import MalformedError
from gateway.origin.jwks import KEYS_MAX, parse_key_ring


def b64(number: int) -> str:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def ec_jwk(**changes: object) -> dict[str, object]:
    numbers = ec.derive_private_key(7, ec.SECP256R1()).public_key().public_numbers()
    x, y = (
        base64.urlsafe_b64encode(value.to_bytes(32, "big")).rstrip(b"=").decode()
        for value in (numbers.x, numbers.y)
    )
    return {"kty": "EC", "crv": "P-256", "kid": "k", "x": x, "y": y} | changes


def ring(*items: object):
    return parse_key_ring({"keys": list(items)}, number=1, asked_at=0.0)


def test_a_key_is_found_by_kid_and_algorithm():
    keys = ring(
        ec_jwk(kid="a", alg="ES256"),
        ec_jwk(kid="b"),
        {name: value for name, value in ec_jwk().items() if name != "kid"},
    )
    assert [key.kid for key in keys.candidates(kid="a", alg="ES256")] == ["a"]
    assert keys.candidates(kid="a", alg="RS256") == []
    assert [key.kid for key in keys.candidates(kid="b", alg="RS256")] == ["b"]  # its type refuses later
    assert keys.candidates(kid="c", alg="ES256") == []
    assert len(keys.candidates(kid=None, alg="ES256")) == 3


@pytest.mark.parametrize(("alg", "found"), [("Ed25519", 3), ("EdDSA", 2), ("ES256", 1)])
def test_eddsa_in_the_set_serves_tokens_that_say_ed25519_but_not_the_reverse(alg, found):
    okp = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    keys = ring({**okp, "alg": "EdDSA"}, {**okp, "alg": "Ed25519"}, okp)
    assert len(keys.candidates(kid=None, alg=alg)) == found


@pytest.mark.parametrize(
    "unusable",
    [
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "new"},
        {},
        "text",
        None,
        ec_jwk(use="enc"),
        ec_jwk(key_ops=["sign"]),
        ec_jwk(d="AQ"),
        ec_jwk(kid=7),
        ec_jwk(alg=["ES256"]),
        ec_jwk(x="AQ"),
        ec_jwk(x=None),
        ec_jwk(crv="P-1"),
        {"kty": "OKP", "crv": "Ed25519", "x": "AQ"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "e": "AQAB"},
    ],
    ids=str,
)
def test_unusable_keys_are_left_out_and_do_not_spoil_the_set(unusable):
    assert [key.kid for key in ring(unusable, ec_jwk()).keys] == ["k"]
    with pytest.raises(MalformedError):
        ring(unusable)


@pytest.mark.parametrize(("bits", "is_usable"), [(1024, False), (2048, True)])
def test_short_rsa_keys_are_left_out(bits, is_usable):
    numbers = rsa.generate_private_key(65537, bits).public_key().public_numbers()
    keys = ring(ec_jwk(), {"kty": "RSA", "kid": "rsa", "n": b64(numbers.n), "e": b64(numbers.e)})
    assert ("rsa" in [key.kid for key in keys.keys]) is is_usable


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": []}, "keys"])
def test_what_is_no_set_is_malformed(document):
    with pytest.raises(MalformedError):
        parse_key_ring(document, number=1, asked_at=0.0)


def test_a_set_without_end_is_cut():
    assert len(ring(*[ec_jwk(kid=str(n)) for n in range(500)]).keys) == KEYS_MAX
