"""The draft's own examples: they read, the signed ones verify, and no byte of them can be changed."""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path
from typing import Any

import pytest

from device_sdk.wire import cbor, cose
from device_sdk.wire.cose import AuthenticBytes
from device_sdk.wire.errors import UnknownKeyError, WireError
from device_sdk.wire.keys import PrivateKey, PublicKey
from device_sdk.wire.suit import Envelope, Manifest, authenticate
from device_sdk.wire.suit.target import class_identifier, vendor_identifier

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[4] / "data" / "suit.json").read_text(encoding="utf-8")
)
KEY = PublicKey.from_pem(VECTORS["public_key_pem"].encode())
UNSIGNED = {f"example {v['n']}": bytes.fromhex(v["unsigned_hex"]) for v in VECTORS["vectors"]}
SIGNED = {f"example {v['n']}": bytes.fromhex(v["signed_hex"]) for v in VECTORS["vectors"]}
SEVERED = bytes.fromhex(VECTORS["vectors"][2]["extra"][0])
DERIVED = {f"alg {v['alg']}": v for v in VECTORS["derived_ed25519_of_example1"]}
ALL_SIGNED = {**SIGNED, "example 2 with its severed members": SEVERED}


def read(data: bytes, key: PublicKey = KEY) -> Manifest:
    envelope = Envelope.parse(data)
    return Manifest.parse(authenticate(envelope, [key]), envelope.severed)


def read_unsigned(data: bytes) -> Manifest:
    envelope = Envelope.parse(data)
    return Manifest.parse(AuthenticBytes(envelope.manifest), envelope.severed)


@pytest.mark.parametrize("data", [*UNSIGNED.values(), *ALL_SIGNED.values()])
def test_an_example_serializes_to_the_bytes_it_came_as(data: bytes) -> None:
    envelope = Envelope.parse(data)
    assert envelope.serialize() == data
    assert envelope.authentication().serialize() == envelope.wrapper


@pytest.mark.parametrize("name", UNSIGNED)
def test_signed_and_unsigned_say_the_same(name: str) -> None:
    assert read(SIGNED[name]) == read_unsigned(UNSIGNED[name])


@pytest.mark.parametrize("name", UNSIGNED)
def test_the_digest_is_over_the_manifest_with_the_head_of_its_bstr(name: str) -> None:
    authentication = Envelope.parse(UNSIGNED[name]).authentication()
    assert authentication.digest.value == read_unsigned(UNSIGNED[name]).digest


@pytest.mark.parametrize("data", UNSIGNED.values(), ids=UNSIGNED.keys())
def test_an_unsigned_envelope_is_nobodys_word(data: bytes) -> None:
    with pytest.raises(UnknownKeyError):
        authenticate(Envelope.parse(data), [KEY])


@pytest.mark.parametrize("data", ALL_SIGNED.values(), ids=ALL_SIGNED.keys())
def test_every_example_is_for_the_drafts_vendor_class_and_image(data: bytes) -> None:
    manifest = read(data)
    assert manifest.vendor_identifier.hex() == "fa6b4a53d5ad5fdfbe9de663e4d41ffe"
    assert manifest.class_identifier.hex() == "1492af1425695e48bf429b2d51f2ab45"
    assert manifest.image_digest.hex() == ("00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210")
    assert manifest.image_size == 34768
    assert manifest.component_identifier == (b"\x00",)
    assert manifest.components == ((b"\x00",),)
    assert manifest.component == "0x00"
    assert manifest.device_identifier is None


def test_the_drafts_vendor_follows_from_its_domain() -> None:
    assert vendor_identifier("arm.com").hex() == "fa6b4a53d5ad5fdfbe9de663e4d41ffe"


def test_a_class_is_named_within_its_vendor() -> None:
    # RFC 9562 §5.5 by way of the standard library
    vendor = uuid.uuid5(uuid.NAMESPACE_DNS, "acme.example")
    assert class_identifier(vendor.bytes, "tc3") == uuid.uuid5(vendor, "tc3").bytes


def test_example_0_boots_and_fetches_nothing() -> None:
    manifest = read(SIGNED["example 0"])
    assert (manifest.sequence_number, manifest.uri) == (0, None)
    assert manifest.is_invoked
    assert not manifest.is_installable


def test_example_1_fetches_and_installs() -> None:
    manifest = read(SIGNED["example 1"])
    assert (manifest.sequence_number, manifest.uri) == (1, "http://example.com/file.bin")
    assert manifest.is_installable
    assert not manifest.is_invoked


def test_example_2_is_installable_only_with_its_severed_members() -> None:
    without, whole = read(SIGNED["example 2"]), read(SEVERED)
    assert without.digest == whole.digest
    assert without.reference_uri == whole.reference_uri == "https://git.io/JJYoj"
    assert (without.uri, without.description, without.is_installable) == (None, None, False)
    assert whole.uri == "http://example.com/very/long/path/to/file/file.bin"
    assert whole.description is not None
    assert whole.description.startswith("## Example 2")
    assert whole.is_installable


@pytest.mark.parametrize("data", ALL_SIGNED.values(), ids=ALL_SIGNED.keys())
def test_one_bit_changed_anywhere_is_refused(data: bytes) -> None:
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1 << index % 8
        with pytest.raises(WireError):
            read(bytes(changed))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("data", SIGNED.values(), ids=SIGNED.keys())
def test_one_byte_changed_anywhere_to_anything_is_refused(data: bytes, seed: int) -> None:
    rng = random.Random(seed)
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= rng.randrange(1, 256)
        with pytest.raises(WireError):
            read(bytes(changed))


@pytest.mark.parametrize("data", ALL_SIGNED.values(), ids=ALL_SIGNED.keys())
def test_an_envelope_cut_short_or_with_more_after_it_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(WireError):
            read(data[:length])
    for more in (b"\x00", b"\xf6", data):
        with pytest.raises(WireError):
            read(data + more)


@pytest.mark.parametrize("seed", range(5))
def test_examples_spliced_together_are_refused(seed: int) -> None:
    """Mix and match: the wrapper of one, the manifest or the severed members of another."""
    rng = random.Random(seed)
    envelopes = [Envelope.parse(data) for data in ALL_SIGNED.values()]
    genuine = set(ALL_SIGNED.values())
    for _ in range(50):
        spliced = Envelope(
            rng.choice(envelopes).wrapper, rng.choice(envelopes).manifest, rng.choice(envelopes).severed
        ).serialize()
        if spliced in genuine:
            continue
        with pytest.raises(WireError):
            read(spliced)


@pytest.mark.parametrize("vector", DERIVED.values(), ids=DERIVED.keys())
class TestEd25519:
    def test_what_is_signed_is_byte_for_byte_the_vectors(self, vector: dict[str, Any]) -> None:
        envelope = Envelope.parse(bytes.fromhex(vector["signed_hex"]))
        authentication = envelope.authentication()
        protected = cbor.encode({1: vector["alg"]})
        structure = cose.sig_structure(protected, authentication.digest_encoded, b"")
        assert structure.hex() == vector["sig_structure_hex"]
        key = PrivateKey.from_seed(bytes.fromhex(vector["private_seed_hex"]))
        assert key.public.raw.hex() == vector["public_key_hex"]
        assert key.sign(structure) == authentication.signatures[0].signature

    def test_it_verifies_and_one_changed_byte_does_not(self, vector: dict[str, Any]) -> None:
        data = bytes.fromhex(vector["signed_hex"])
        key = PublicKey.from_raw(-19, bytes.fromhex(vector["public_key_hex"]))
        assert read(data, key) == read(SIGNED["example 1"])
        for index in range(len(data)):
            changed = bytearray(data)
            changed[index] ^= 1 << index % 8
            with pytest.raises(WireError):
                read(bytes(changed), key)
