"""From authoring to acceptance: what is signed is what a device reads, and refusals say why."""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.wire import cose
from device_sdk.wire.errors import (
    BadSignatureError,
    DigestMismatchError,
    LimitError,
    MalformedError,
    UnknownKeyError,
    UnsupportedError,
    WireError,
)
from device_sdk.wire.keys import Algorithm, PrivateKey
from device_sdk.wire.suit import Envelope, SUITDigest
from device_sdk.wire.suit.target import class_identifier, vendor_identifier
from gateway.errors import ConflictError
from gateway.release import (
    ReleaseContent,
    accept_release,
    append_signature,
    author_envelope,
    inspect_release,
    sign_envelope,
)

KEY = PrivateKey.from_seed(bytes(range(32)))
SECOND = PrivateKey.generate(Algorithm.ESP256)
STRANGER = PrivateKey.from_seed(bytes(32))
KEYS = {KEY.kid: KEY.public, SECOND.kid: SECOND.public}
VENDOR = vendor_identifier("acme.example")

CONTENT = ReleaseContent(
    vendor_identifier=VENDOR,
    class_identifier=class_identifier(VENDOR, "tc3"),
    component="main:app",
    sequence_number=1_800_000_000,
    image_digest=hashlib.sha256(b"image").digest(),
    image_size=5,
    uri="/v1/artifacts/sha256/" + hashlib.sha256(b"image").hexdigest(),
    version="1.4.0",
    description="Fixes the pump",
)
BARE = dataclasses.replace(CONTENT, version=None, description=None)
UNSIGNED = author_envelope(CONTENT)
SIGNED = sign_envelope(UNSIGNED, [KEY])


class TestAuthor:
    def test_identifiers_are_uuid5_of_domain_and_class(self) -> None:
        vendor = uuid.uuid5(uuid.NAMESPACE_DNS, "acme.example")
        assert vendor.bytes == CONTENT.vendor_identifier
        assert uuid.uuid5(vendor, "tc3").bytes == CONTENT.class_identifier

    def test_another_library_reads_the_drafts_template(self) -> None:
        tag = cbor2.loads(author_envelope(BARE))
        assert tag.tag == 107
        manifest = cbor2.loads(tag.value[3])
        shared = cbor2.loads(cbor2.loads(manifest[3])[4])
        digest = cbor2.dumps([-16, CONTENT.image_digest])
        assert manifest.keys() == {1, 2, 3, 7, 20}
        assert (manifest[1], manifest[2]) == (1, 1_800_000_000)
        assert cbor2.loads(manifest[3])[2] == [[b"main", b"app"]]
        assert shared == [
            20,
            {1: CONTENT.vendor_identifier, 2: CONTENT.class_identifier, 3: digest, 14: 5},
            *(1, 15, 2, 15),
        ]
        assert cbor2.loads(manifest[7]) == [3, 15]
        assert cbor2.loads(manifest[20]) == [20, {21: CONTENT.uri}, 21, 2, 3, 15]
        wrapper = cbor2.loads(tag.value[2])
        member = cbor2.dumps(tag.value[3])
        assert [cbor2.loads(item) for item in wrapper] == [[-16, hashlib.sha256(member).digest()]]

    @pytest.mark.parametrize(
        "content",
        [CONTENT, BARE, dataclasses.replace(CONTENT, device_identifier=bytes(range(16)))],
        ids=["with text", "bare", "for one device"],
    )
    def test_a_release_says_what_was_authored(self, content: ReleaseContent) -> None:
        release = accept_release(sign_envelope(author_envelope(content), [KEY]), KEYS)
        for field in dataclasses.fields(content):
            assert getattr(release.manifest, field.name) == getattr(content, field.name)
        assert release.manifest.is_installable

    def test_the_same_content_is_the_same_envelope(self) -> None:
        assert author_envelope(dataclasses.replace(CONTENT)) == UNSIGNED

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"vendor_identifier": bytes(15)}, MalformedError),
            ({"class_identifier": b""}, MalformedError),
            ({"device_identifier": bytes(17)}, MalformedError),
            ({"component": ""}, MalformedError),
            ({"component": "a b"}, MalformedError),
            ({"component": "a::b"}, MalformedError),
            ({"component": "0x00"}, MalformedError),
            ({"component": ".."}, MalformedError),
            ({"component": ":".join("abcdefghi")}, MalformedError),
            ({"component": "a" * 129}, MalformedError),
            ({"sequence_number": -1}, MalformedError),
            ({"sequence_number": 2**53}, MalformedError),
            ({"sequence_number": 2**64 - 1}, MalformedError),
            ({"image_digest": bytes(31)}, MalformedError),
            ({"image_size": -1}, MalformedError),
            ({"uri": ""}, MalformedError),
            ({"uri": "https://example.com/a b"}, MalformedError),
            ({"uri": "#image"}, UnsupportedError),
            ({"version": "1" * 129}, MalformedError),
            ({"description": "x" * 1025}, MalformedError),
        ],
        ids=repr,
    )
    def test_what_a_device_would_not_read_so_is_not_authored(
        self, change: dict[str, Any], error: type[WireError]
    ) -> None:
        with pytest.raises(error):
            author_envelope(dataclasses.replace(CONTENT, **change))


class TestSign:
    @pytest.mark.parametrize("key", [KEY, SECOND], ids=["Ed25519", "P-256"])
    def test_a_signature_is_one_detached_block_that_names_its_key(self, key: PrivateKey) -> None:
        wrapper = cbor2.loads(cbor2.loads(sign_envelope(UNSIGNED, [key])).value[2])
        assert len(wrapper) == 2
        protected, unprotected, payload, _ = cbor2.loads(wrapper[1]).value
        assert cbor2.loads(protected) == {1: int(key.algorithm), 4: key.kid}
        assert (unprotected, payload) == ({}, None)

    def test_signing_changes_nothing_but_the_wrapper(self) -> None:
        before, after = Envelope.parse(UNSIGNED), Envelope.parse(SIGNED)
        assert (after.manifest, after.severed) == (before.manifest, before.severed)

    def test_keys_sign_one_after_the_other_or_together(self) -> None:
        for data in (sign_envelope(SIGNED, [SECOND]), sign_envelope(UNSIGNED, [KEY, SECOND])):
            assert accept_release(data, KEYS, threshold=2).kids == (KEY.kid, SECOND.kid)

    @pytest.mark.parametrize(("data", "keys"), [(SIGNED, [KEY]), (UNSIGNED, [KEY, KEY])])
    def test_a_key_signs_once(self, data: bytes, keys: list[PrivateKey]) -> None:
        with pytest.raises(ConflictError) as caught:
            sign_envelope(data, keys)
        assert caught.value.code == "already_signed"

    def test_a_digest_of_another_manifest_is_not_signed(self) -> None:
        envelope = Envelope.parse(UNSIGNED)
        other = Envelope(envelope.wrapper, envelope.manifest + b"\x00", {}).serialize()
        with pytest.raises(DigestMismatchError):
            sign_envelope(other, [KEY])

    def test_a_signature_made_elsewhere_is_appended(self) -> None:
        digest = Envelope.parse(UNSIGNED).authentication().digest_encoded
        signature = cose.sign1(digest, KEY, is_detached=True)
        assert append_signature(UNSIGNED, signature) == SIGNED
        with pytest.raises(ConflictError):
            append_signature(SIGNED, signature)
        with pytest.raises(MalformedError):
            append_signature(UNSIGNED, b"signature")
        with pytest.raises(UnsupportedError):
            append_signature(UNSIGNED, signature[1:])  # SUIT wants the tag

    def test_signatures_have_a_limit(self) -> None:
        keys = [PrivateKey.from_seed(bytes([n] * 32)) for n in range(9)]
        full = sign_envelope(UNSIGNED, keys[:8])
        with pytest.raises(LimitError):
            sign_envelope(full, keys[8:])
        digest = Envelope.parse(UNSIGNED).authentication().digest_encoded
        with pytest.raises(LimitError):
            append_signature(full, cose.sign1(digest, keys[8], is_detached=True))


class TestAccept:
    def test_a_release_keeps_the_bytes_that_came(self) -> None:
        release = accept_release(SIGNED, KEYS)
        assert release.envelope == SIGNED
        assert release.kids == (KEY.kid,)
        assert release.manifest.digest == SUITDigest.of_member(Envelope.parse(SIGNED).manifest).value

    def test_a_strangers_signature_is_not_counted(self) -> None:
        assert accept_release(sign_envelope(SIGNED, [STRANGER]), KEYS).kids == (KEY.kid,)

    def test_refusals_say_why(self) -> None:
        for data, error in (
            (UNSIGNED, UnknownKeyError),
            (sign_envelope(UNSIGNED, [STRANGER]), UnknownKeyError),
            (SIGNED.replace(b"1.4.0", b"1.5.0"), DigestMismatchError),
            (_with_signature(bytes(64)), BadSignatureError),
            (SIGNED[:-1], MalformedError),
            (b"", MalformedError),
            (bytes(128 * 1024 + 1), LimitError),
        ):
            with pytest.raises(error):
                accept_release(data, KEYS)

    def test_a_threshold_that_is_not_met_is_refused(self) -> None:
        with pytest.raises(UnknownKeyError):
            accept_release(SIGNED, KEYS, threshold=2)

    def test_a_signed_manifest_that_fetches_nothing_is_no_release(self) -> None:
        with pytest.raises(UnsupportedError):
            accept_release(_sign_manifest(_without_install()), KEYS)


class TestInspect:
    def test_an_accepted_release_has_no_code(self) -> None:
        inspection = inspect_release(SIGNED, [KEY.public])
        assert (inspection.code, inspection.reason) == (None, None)
        assert inspection.manifest is not None
        assert inspection.manifest.version == "1.4.0"
        assert [(fact.kid, fact.algorithm, fact.code) for fact in inspection.signatures] == [
            (KEY.kid, -19, None)
        ]

    @pytest.mark.parametrize(
        ("data", "code", "is_readable"),
        [
            (UNSIGNED, "unknown_key", True),
            (sign_envelope(UNSIGNED, [STRANGER]), "unknown_key", True),
            (SIGNED.replace(b"1.4.0", b"1.5.0"), "digest_mismatch", True),
            (SIGNED[:-1], "malformed", False),
            (b"not an envelope", "malformed", False),
            (bytes(128 * 1024 + 1), "too_large", False),
        ],
        ids=["unsigned", "stranger", "changed", "cut short", "other", "too large"],
    )
    def test_a_refused_one_has_the_stable_code(self, data: bytes, code: str, is_readable: bool) -> None:
        inspection = inspect_release(data, KEYS)
        assert inspection.code == code
        assert inspection.reason
        assert (inspection.manifest is not None) is is_readable

    def test_each_signature_has_its_own_verdict(self) -> None:
        digest = Envelope.parse(UNSIGNED).authentication().digest_encoded
        bad = cose.assemble(None, bytes(64), kid=SECOND.kid, algorithm=-9)
        data = append_signature(append_signature(SIGNED, bad), cose.sign1(digest, STRANGER, is_detached=True))
        inspection = inspect_release(data, KEYS)
        assert inspection.code == "bad_signature"
        assert [fact.code for fact in inspection.signatures] == [None, "bad_signature", "unknown_key"]

    def test_a_signed_manifest_that_fetches_nothing_is_shown_with_its_refusal(self) -> None:
        inspection = inspect_release(_sign_manifest(_without_install()), KEYS)
        assert inspection.code == "unsupported"
        assert inspection.manifest is not None

    @given(st.binary(max_size=100))
    def test_arbitrary_bytes_are_refused_with_a_code(self, data: bytes) -> None:
        assert inspect_release(data, KEYS).code is not None


def _with_signature(signature: bytes) -> bytes:
    return append_signature(UNSIGNED, cose.assemble(None, signature, kid=KEY.kid, algorithm=-19))


def _without_install() -> bytes:
    members = cbor2.loads(Envelope.parse(UNSIGNED).manifest)
    del members[20]
    return cbor2.dumps(members, canonical=True)


def _sign_manifest(manifest: bytes) -> bytes:
    digest = SUITDigest.of_member(manifest).encode()
    return sign_envelope(Envelope(cbor2.dumps([digest]), manifest, {}).serialize(), [KEY])
