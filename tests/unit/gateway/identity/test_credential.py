from __future__ import annotations

import hashlib

import pytest

from gateway.errors import CredentialRefusedError
from gateway.identity import Credential


def credential(*headers: tuple[str, str]) -> Credential:
    return Credential.from_headers([("Authorization", "Bearer abc"), *headers])


@pytest.mark.parametrize(
    ("value", "token"),
    [("Bearer abc", "abc"), ("bearer  a.b-c_d~e+f/g==", "a.b-c_d~e+f/g=="), ("BEARER abc ", "abc")],
)
def test_a_bearer_token_is_read(value, token):
    assert Credential.from_headers([("authorization", value)]).token == token


@pytest.mark.parametrize(
    "value",
    [
        "",
        "abc",
        "Basic abc",
        "Bearer",
        "Bearer ",
        "Bearer a b",
        "Bearer a,b",
        "Bearer ä",
        "Bearer a\n",
        "Bearer =",
        "Bearerabc",
        f"Bearer {'a' * 8192}",
    ],
    ids=lambda value: value[:12],
)
def test_what_is_no_bearer_token_is_refused(value):
    with pytest.raises(CredentialRefusedError) as caught:
        Credential.from_headers([("Authorization", value)])
    assert caught.value.code == "credential_refused"
    assert value == "" or value not in str(caught.value)


def test_no_header_is_credential_missing():
    with pytest.raises(CredentialRefusedError) as caught:
        Credential.from_headers([("Cookie", "a=b")])
    assert caught.value.code == "credential_missing"


def test_two_authorization_headers_are_refused():
    with pytest.raises(CredentialRefusedError):
        Credential.from_headers([("Authorization", "Bearer a"), ("authorization", "Bearer b")])


def test_neither_token_nor_headers_are_shown():
    shown = repr(credential(("Cookie", "hunter2")))
    assert "abc" not in shown
    assert "hunter2" not in shown


def test_host_is_read_for_the_origin():
    assert credential(("host", "fleet.example.com")).host == "fleet.example.com"


class TestKey:
    def test_without_headers_it_is_the_sha256_of_the_token(self):
        assert credential().key() == credential().sha256 == hashlib.sha256(b"abc").digest()

    def test_named_headers_tell_questions_apart_and_others_do_not(self):
        one, other = credential(("X-Serial", "1"), ("X-Trace", "a")), credential(("x-serial", "2"))
        again = credential(("x-SERIAL", "1"), ("X-Trace", "b"))
        assert one.key(["X-Serial"]) != other.key(["X-Serial"])
        assert one.key(["X-Serial"]) == again.key(["X-Serial"])

    def test_values_cannot_be_shifted_from_one_header_to_the_next(self):
        names = ["A", "B"]
        keys = {
            credential(("A", "xy"), ("B", "z")).key(names),
            credential(("A", "x"), ("B", "yz")).key(names),
            credential(("A", "xyz")).key(names),
            credential(("B", "xyz")).key(names),
            credential(("A", "x"), ("A", "y"), ("B", "z")).key(names),
            credential().key(names),
        }
        assert len(keys) == 6

    def test_bytes_that_are_no_utf8_have_a_key_too(self):
        assert credential(("A", "\udcff")).key(["A"]) != credential(("A", "?")).key(["A"])


@pytest.mark.parametrize("value", ["Bearer abc", "bearer  a.b-c_d~e+f/g==", "BEARER abc "])
@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
def test_the_hash_of_a_packed_one_is_found_without_taking_it_apart(name, value):
    others = [("X-A", "authorization: Bearer other"), ("Fleetcast-Device", "d")]
    found = Credential.from_headers([*others, (name, value)], remote="::1", target="/v1")
    assert Credential.packed_sha256(found.packed()) == found.sha256
    assert Credential.unpacked(found.packed()) == found
