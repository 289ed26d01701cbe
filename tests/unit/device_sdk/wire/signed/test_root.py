from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.errors import ExpiredError, RollbackError
from device_sdk.wire import cose
from device_sdk.wire.errors import (
    BadSignatureError,
    LimitError,
    MalformedError,
    UnknownKeyError,
    UnsupportedError,
    WireError,
)
from device_sdk.wire.keys import Algorithm, PrivateKey, PublicKey, Role
from device_sdk.wire.names import FleetName
from device_sdk.wire.signed import RootDocument, RootKey, sign_root, verify_root

FLEET = FleetName("acme")
RELEASE = PrivateKey.from_seed(bytes([1] * 32))
DIRECTIVE = PrivateKey.from_seed(bytes([2] * 32))
STATEMENT = PrivateKey.from_seed(bytes([3] * 32))
ALERT = PrivateKey.generate(Algorithm.ESP256)
RELEASE_2 = PrivateKey.from_seed(bytes([4] * 32))
AAD = b"fleetcast.v1/root/acme"

ROOT = RootDocument(
    fleet=FLEET,
    version=3,
    issued_at=1_800_000_000_000,
    expires_at=1_830_000_000_000,
    keys=(
        RootKey(Role.RELEASE, RELEASE.public),
        RootKey(Role.DIRECTIVE, DIRECTIVE.public),
        RootKey(Role.STATEMENT, STATEMENT.public),
        RootKey(Role.ALERT, ALERT.public),
    ),
    thresholds={Role.RELEASE: 1},
)


def read(data: bytes, *, version_min: int = 1, fleet: str = FLEET) -> RootDocument:
    return verify_root(data, [RELEASE.public], fleet=fleet, version_min=version_min)


def fields() -> dict[int, Any]:
    found = cbor2.loads(cbor2.loads(sign_root(ROOT, RELEASE)).value[2])
    assert isinstance(found, dict)
    return found


def sign_fields(value: object) -> bytes:
    return cose.sign1(cbor2.dumps(value, canonical=True), RELEASE, external_aad=AAD)


def key_fields(key: PublicKey, role: int) -> dict[int, Any]:
    return {1: key.kid, 2: role, 3: int(key.algorithm), 4: key.raw}


def test_the_release_key_alone_endorses_the_online_keys() -> None:
    root = read(sign_root(ROOT, RELEASE))
    assert root == ROOT
    assert root.keys_of(Role.DIRECTIVE) == {DIRECTIVE.kid: DIRECTIVE.public}
    assert root.keys_of(Role.ALERT) == {ALERT.kid: ALERT.public}
    assert root.keys_of(Role.ROOT) == {}


def test_the_integer_keys_are_those_of_the_reference() -> None:
    assert fields() == {
        1: "acme",
        2: 3,
        3: 1_800_000_000_000,
        4: 1_830_000_000_000,
        5: [
            key_fields(RELEASE.public, 2),
            key_fields(DIRECTIVE.public, 3),
            key_fields(STATEMENT.public, 4),
            key_fields(ALERT.public, 5),
        ],
        6: {2: 1},
    }


def test_anchors_may_be_the_root_keys_of_the_version_before() -> None:
    data = sign_root(ROOT, RELEASE)
    assert verify_root(data, {RELEASE.kid: RELEASE.public}, fleet=FLEET, version_min=2) == ROOT
    with pytest.raises(UnknownKeyError):
        verify_root(data, {RELEASE_2.kid: RELEASE_2.public}, fleet=FLEET, version_min=2)


def test_a_stranger_endorses_nothing() -> None:
    with pytest.raises(UnknownKeyError):
        read(sign_root(ROOT, RELEASE_2))


def test_another_fleets_root_is_a_bad_signature() -> None:
    with pytest.raises(BadSignatureError):
        read(sign_root(ROOT, RELEASE), fleet="acme2")


def test_a_release_keys_signature_over_something_else_is_no_root() -> None:
    payload = cbor2.dumps(fields(), canonical=True)
    with pytest.raises(BadSignatureError):
        read(cose.sign1(payload, RELEASE))


def test_a_lower_version_is_a_rollback_and_an_equal_one_is_not() -> None:
    data = sign_root(ROOT, RELEASE)
    assert read(data, version_min=3).version == 3
    with pytest.raises(RollbackError) as caught:
        read(data, version_min=4)
    assert (caught.value.actual, caught.value.floor) == (3, 4)


def test_an_expired_root_still_verifies_and_says_so_when_asked() -> None:
    root = read(sign_root(ROOT, RELEASE))
    root.check_fresh(ROOT.expires_at - 1)
    with pytest.raises(ExpiredError):
        root.check_fresh(ROOT.expires_at)


def test_every_bit_flipped_is_refused() -> None:
    data = sign_root(ROOT, RELEASE)
    for index in range(len(data)):
        flipped = bytearray(data)
        flipped[index] ^= 1 << index % 8
        with pytest.raises(WireError):
            read(bytes(flipped))


class TestContradictions:
    """What nobody should sign is refused by the signer and by the device."""

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"version": 0}, MalformedError),
            ({"expires_at": ROOT.issued_at}, MalformedError),
            (
                {"keys": (*ROOT.keys, RootKey(Role.ALERT, DIRECTIVE.public))},
                MalformedError,
            ),
            ({"keys": (RootKey(Role.DIRECTIVE, RELEASE.public),)}, MalformedError),
            ({"thresholds": {Role.RELEASE: 0}}, MalformedError),
            ({"thresholds": {Role.RELEASE: 2}}, MalformedError),
            ({"thresholds": {Role.DIRECTIVE: 2}}, MalformedError),
            (
                {
                    "keys": (*ROOT.keys, RootKey(Role.DIRECTIVE, RELEASE_2.public)),
                    "thresholds": {Role.DIRECTIVE: 2},
                },
                UnsupportedError,
            ),
        ],
        ids=[
            "version 0",
            "no life",
            "a kid under two roles",
            "the anchor online",
            "threshold 0",
            "threshold over the keys",
            "online threshold over the keys",
            "online threshold",
        ],
    )
    def test_the_signer_refuses(self, change: dict[str, Any], error: type[WireError]) -> None:
        with pytest.raises(error):
            sign_root(dataclasses.replace(ROOT, **change), RELEASE)

    def test_two_release_signatures_may_be_asked_for(self) -> None:
        root = dataclasses.replace(
            ROOT, keys=(*ROOT.keys, RootKey(Role.RELEASE, RELEASE_2.public)), thresholds={Role.RELEASE: 2}
        )
        assert read(sign_root(root, RELEASE)).threshold_of(Role.RELEASE) == 2
        assert root.threshold_of(Role.ALERT) == 1

    @pytest.mark.parametrize(
        "keys",
        [
            [key_fields(DIRECTIVE.public, 3), key_fields(DIRECTIVE.public, 4)],
            [key_fields(DIRECTIVE.public, 3), key_fields(DIRECTIVE.public, 3)],
            [key_fields(DIRECTIVE.public, 3), key_fields(DIRECTIVE.public, 9)],
            [{**key_fields(DIRECTIVE.public, 3), 1: ALERT.kid}],
            [{**key_fields(DIRECTIVE.public, 3), 1: DIRECTIVE.kid + b"\x00"}],
            [{**key_fields(DIRECTIVE.public, 3), 3: -9}],
            [{**key_fields(DIRECTIVE.public, 3), 3: "Ed25519"}],
            [{**key_fields(DIRECTIVE.public, 3), 4: bytes(31)}],
            [{1: DIRECTIVE.kid, 2: 3, 3: -19}],
            [key_fields(RELEASE.public, 5)],
            [b"\xa0"],
            {},
            "keys",
        ],
        ids=[
            "two roles",
            "twice",
            "a role of a later version beside a known one",
            "another key's kid",
            "long kid",
            "wrong algorithm",
            "named algorithm",
            "short key",
            "no key",
            "the anchor online",
            "no map",
            "map",
            "text",
        ],
    )
    def test_the_device_refuses_keys(self, keys: object) -> None:
        with pytest.raises(WireError):
            read(sign_fields({**fields(), 5: keys}))

    @pytest.mark.parametrize("thresholds", [{2: 0}, {2: 2}, {3: 2}, {2: True}, {"release": 1}, [], None])
    def test_the_device_refuses_thresholds(self, thresholds: object) -> None:
        with pytest.raises(WireError):
            read(sign_fields({**fields(), 6: thresholds}))

    def test_a_polymorphic_algorithm_names_no_key(self) -> None:
        with pytest.raises(UnsupportedError):
            read(sign_fields({**fields(), 5: [{**key_fields(DIRECTIVE.public, 3), 3: -8}]}))

    def test_more_keys_than_the_limit_are_refused(self) -> None:
        keys = [key_fields(PrivateKey.from_seed(bytes([n] * 32)).public, 5) for n in range(10, 43)]
        with pytest.raises(LimitError):
            read(sign_fields({**fields(), 5: keys}))

    @pytest.mark.parametrize("key", range(1, 7))
    def test_a_missing_field_is_malformed(self, key: int) -> None:
        found = fields()
        del found[key]
        with pytest.raises(MalformedError):
            read(sign_fields(found))


def test_roles_and_thresholds_of_a_later_version_are_passed_over() -> None:
    found = fields()
    found[5].append(key_fields(RELEASE_2.public, 9))
    found[6] = {2: 1, 9: 5}
    assert read(sign_fields(found)) == ROOT


@given(
    st.dictionaries(
        st.integers(1, 7),
        st.recursive(
            st.none() | st.integers(-20, 2**60) | st.binary(max_size=33) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.integers(0, 5) | st.text(max_size=2), inner, max_size=4)
            ),
            max_leaves=8,
        ),
        max_size=3,
    )
)
def test_whatever_an_anchor_signs_raises_nothing_but_wire_errors(mutated: dict[int, object]) -> None:
    with contextlib.suppress(WireError, RollbackError):
        read(sign_fields({**fields(), **mutated}))
