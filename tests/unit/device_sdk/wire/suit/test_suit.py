"""What is refused, clause by clause; the examples of the draft are in test_vectors."""

from __future__ import annotations

import hashlib
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.errors import IncompatibleDeviceError, WrongDeviceError
from device_sdk.wire import cose
from device_sdk.wire.cose import AuthenticBytes
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
from device_sdk.wire.suit import Envelope, Manifest, SUITDigest, authenticate, check_target, component_name

KEY = PrivateKey.from_seed(bytes(range(32)))
SECOND = PrivateKey.generate(Algorithm.ESP256)
STRANGER = PrivateKey.from_seed(bytes(32))
KEYS = {KEY.kid: KEY.public, SECOND.kid: SECOND.public}
VENDOR, CLASS, DEVICE = bytes([1] * 16), bytes([2] * 16), bytes([3] * 16)
IMAGE = bytes([4] * 32)


def dumps(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)


SHARED = [20, {1: VENDOR, 2: CLASS, 3: dumps([-16, IMAGE]), 14: 100}, 1, 15, 2, 15]
INSTALL = [20, {21: "https://example.com/i.bin"}, 21, 2, 3, 15]


def common(shared: object = None, components: object = None) -> bytes:
    return dumps(
        {
            2: [[b"main", b"app"]] if components is None else components,
            4: dumps(SHARED if shared is None else shared),
        }
    )


def members(**changes: object) -> dict[int, Any]:
    """A manifest's members; ``k7=…`` changes member 7, ``k7=...`` (Ellipsis) drops it."""
    found: dict[int, Any] = {1: 1, 2: 5, 3: common(), 7: dumps([3, 15]), 20: dumps(INSTALL)}
    for name, value in changes.items():
        found[int(name[1:])] = value
    return {key: value for key, value in found.items() if value is not ...}


def parse(manifest: object, severed: dict[int, bytes] | None = None) -> Manifest:
    return Manifest.parse(AuthenticBytes(dumps(manifest)), severed or {})


def shared_with(**parameters: object) -> bytes:
    changed = dict(SHARED[1])  # type: ignore[call-overload]
    for name, value in parameters.items():
        changed[int(name[1:])] = value
    return common([20, {k: v for k, v in changed.items() if v is not ...}, *SHARED[2:]])


def envelope(manifest: bytes, *keys: PrivateKey, severed: dict[int, bytes] | None = None) -> Envelope:
    digest = SUITDigest.of_member(manifest).encode()
    blocks = [cose.sign1(digest, key, is_detached=True) for key in keys]
    return Envelope(dumps([digest, *blocks]), manifest, severed or {})


MANIFEST = dumps(members())


class TestEnvelope:
    def test_its_tag_may_be_left_out(self) -> None:
        data = envelope(MANIFEST, KEY).serialize()
        assert Envelope.parse(data[2:]) == Envelope.parse(data)

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            ([], MalformedError),
            ({}, MalformedError),
            ({2: b""}, MalformedError),
            ({3: b""}, MalformedError),
            ({2: [], 3: b""}, MalformedError),
            ({2: b"", 3: {}}, MalformedError),
            ({2: b"", 3: b"", 20: []}, MalformedError),
            ({2: b"", 3: b"", 1: b""}, UnsupportedError),
            ({2: b"", 3: b"", 7: b""}, UnsupportedError),
            ({2: b"", 3: b"", -1: b""}, UnsupportedError),
            ({2: b"", 3: b"", "#firmware": b""}, UnsupportedError),
            ({2: b"", 3: b"", b"": b""}, UnsupportedError),
        ],
        ids=repr,
    )
    def test_other_members_are_refused(self, content: object, error: type[WireError]) -> None:
        with pytest.raises(error):
            Envelope.parse(b"\xd8\x6b" + dumps(content))

    def test_the_largest_size_is_refused_unread(self) -> None:
        with pytest.raises(LimitError):
            Envelope.parse(bytes(128 * 1024 + 1))

    def test_another_tag_is_malformed(self) -> None:
        with pytest.raises(MalformedError):
            Envelope.parse(b"\xd8\x6c" + envelope(MANIFEST, KEY).serialize()[2:])


class TestAuthenticate:
    """ "Authenticated Manifests"."""

    @pytest.mark.parametrize("key", [KEY, SECOND], ids=["Ed25519", "P-256"])
    def test_a_trusted_key_vouches_for_the_manifest(self, key: PrivateKey) -> None:
        assert authenticate(envelope(MANIFEST, key), KEYS) == MANIFEST

    def test_no_trusted_keys_refuse_everything(self) -> None:
        with pytest.raises(UnknownKeyError):
            authenticate(envelope(MANIFEST, KEY), {})

    def test_arbitrary_software_signed_by_a_stranger_is_refused(self) -> None:
        with pytest.raises(UnknownKeyError):
            authenticate(envelope(MANIFEST, STRANGER), KEYS)

    def test_a_strangers_signature_beside_a_trusted_one_is_passed_over(self) -> None:
        assert authenticate(envelope(MANIFEST, STRANGER, KEY), KEYS) == MANIFEST

    @pytest.mark.parametrize("key", [KEY, SECOND], ids=["Ed25519", "P-256"])
    def test_an_explicit_key_passes_over_a_signature_of_the_other_kind(self, key: PrivateKey) -> None:
        assert authenticate(envelope(MANIFEST, KEY, SECOND), [key.public]) == MANIFEST

    def test_a_stranger_under_a_trusted_kid_is_a_bad_signature(self) -> None:
        digest = SUITDigest.of_member(MANIFEST).encode()
        signature = cose.signature_of(digest, STRANGER)
        block = cose.assemble(None, signature, kid=KEY.kid, algorithm=-19)
        forged = Envelope(dumps([digest, block]), MANIFEST, {})
        with pytest.raises(BadSignatureError):
            authenticate(forged, KEYS)

    def test_a_bad_signature_is_not_made_good_by_another_one(self) -> None:
        good = envelope(MANIFEST, KEY).authentication()
        bad = cose.assemble(None, bytes(64), kid=SECOND.kid, algorithm=-9)
        both = Envelope(dumps([good.digest_encoded, good.blocks[0], bad]), MANIFEST, {})
        with pytest.raises(BadSignatureError):
            authenticate(both, KEYS)

    def test_another_manifest_under_good_signatures_is_a_digest_mismatch(self) -> None:
        other = Envelope(envelope(MANIFEST, KEY).wrapper, dumps(members(k2=6)), {})
        with pytest.raises(DigestMismatchError):
            authenticate(other, KEYS)

    def test_the_digest_includes_the_head_of_the_bstr(self) -> None:
        digest = dumps([-16, hashlib.sha256(MANIFEST).digest()])
        naive = Envelope(dumps([digest, cose.sign1(digest, KEY, is_detached=True)]), MANIFEST, {})
        with pytest.raises(DigestMismatchError):
            authenticate(naive, KEYS)

    def test_a_threshold_counts_distinct_keys(self) -> None:
        assert authenticate(envelope(MANIFEST, KEY, SECOND), KEYS, threshold=2) == MANIFEST
        for too_few in (
            envelope(MANIFEST, KEY),
            envelope(MANIFEST, KEY, KEY),
            envelope(MANIFEST, KEY, STRANGER),
        ):
            with pytest.raises(UnknownKeyError):
                authenticate(too_few, KEYS, threshold=2)

    def test_a_signature_with_the_payload_in_it_is_malformed(self) -> None:
        digest = SUITDigest.of_member(MANIFEST).encode()
        attached = Envelope(dumps([digest, cose.sign1(digest, KEY)]), MANIFEST, {})
        with pytest.raises(MalformedError):
            authenticate(attached, KEYS)

    def test_a_signature_made_for_another_role_is_refused(self) -> None:
        digest = SUITDigest.of_member(MANIFEST).encode()
        block = cose.sign1(digest, KEY, is_detached=True, external_aad=b"fleetcast.v1/directive/acme")
        with pytest.raises(BadSignatureError):
            authenticate(Envelope(dumps([digest, block]), MANIFEST, {}), KEYS)

    @pytest.mark.parametrize(
        ("wrapper", "error"),
        [
            (b"", MalformedError),
            (dumps({}), MalformedError),
            (dumps([]), MalformedError),
            (dumps([[-16, bytes(32)]]), MalformedError),
            (dumps([b""]), MalformedError),
            (dumps([dumps([-16])]), MalformedError),
            (dumps([dumps([-16, bytes(31)])]), MalformedError),
            (dumps([dumps([-16, "text"])]), MalformedError),
            (dumps([dumps([True, bytes(32)])]), MalformedError),
            (dumps([dumps([-43, bytes(48)])]), UnsupportedError),
            (dumps([dumps([-16, bytes(32)]), 5]), MalformedError),
            (dumps([dumps([-16, bytes(32)]), b""]), UnsupportedError),
            (dumps([dumps([-16, bytes(32)]), b"\xd1\x80"]), UnsupportedError),
            (dumps([dumps([-16, bytes(32)]), b"\xd2\x80"]), MalformedError),
            (dumps([dumps([-16, bytes(32)]), *[b"\xd2\x80"] * 9]), LimitError),
        ],
    )
    def test_other_wrappers_are_refused(self, wrapper: bytes, error: type[WireError]) -> None:
        with pytest.raises(error):
            authenticate(Envelope(wrapper, MANIFEST, {}), KEYS)


class TestManifest:
    def test_it_says_what_it_was_made_to_say(self) -> None:
        manifest = parse(members(k4="https://example.com/m.suit"))
        assert manifest.sequence_number == 5
        assert manifest.component == "main:app"
        assert (manifest.vendor_identifier, manifest.class_identifier) == (VENDOR, CLASS)
        assert (manifest.image_digest, manifest.image_size) == (IMAGE, 100)
        assert manifest.uri == "https://example.com/i.bin"
        assert manifest.reference_uri == "https://example.com/m.suit"
        assert manifest.is_installable

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"k1": ...}, UnsupportedError),
            ({"k1": 2}, UnsupportedError),
            ({"k1": "1"}, UnsupportedError),
            ({"k2": ...}, MalformedError),
            ({"k2": -1}, MalformedError),
            ({"k2": 2**53}, MalformedError),
            ({"k2": True}, MalformedError),
            ({"k3": ...}, MalformedError),
            ({"k3": {}}, MalformedError),
            ({"k3": b"\x80"}, MalformedError),
            ({"k4": 4}, MalformedError),
            ({"k5": b""}, UnsupportedError),
            ({"k24": b""}, UnsupportedError),
            ({"k-1": b""}, UnsupportedError),
            ({"k7": []}, MalformedError),
            ({"k7": None}, MalformedError),
            ({"k7": [-16, bytes(32)]}, MalformedError),  # validate is not severable
            ({"k20": [-43, bytes(48)]}, UnsupportedError),
            ({"k20": "text"}, MalformedError),
            ({"k23": 5}, MalformedError),
        ],
        ids=repr,
    )
    def test_members_are_strictly_typed(self, changes: dict[str, object], error: type[WireError]) -> None:
        with pytest.raises(error):
            parse(members(**changes))

    @pytest.mark.parametrize("data", [b"", b"\x80", dumps(members()) + b"\x00", dumps({"1": 1})])
    def test_what_is_no_map_of_integers_is_refused(self, data: bytes) -> None:
        with pytest.raises(WireError):
            Manifest.parse(AuthenticBytes(data))

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            (dumps({2: [[b"a"]]}), UnsupportedError),
            (dumps({4: dumps(SHARED)}), MalformedError),
            (dumps({2: [[b"a"]], 4: SHARED}), MalformedError),
            (dumps({1: b"", 2: [[b"a"]], 4: dumps(SHARED)}), UnsupportedError),
            (common(components=[]), MalformedError),
            (common(components=[[]]), MalformedError),
            (common(components=[["text"]]), MalformedError),
            (common(components=[b"a"]), MalformedError),
            (common(components=[[b"a"] * 9]), MalformedError),
            (common(components=[[b"a" * 129]]), MalformedError),
            (common(components=[[b"a"], [b"b"]]), UnsupportedError),
        ],
    )
    def test_common_names_one_component_and_for_whom(self, content: bytes, error: type[WireError]) -> None:
        with pytest.raises(error):
            parse(members(k3=content))


class TestCommands:
    @pytest.mark.parametrize(
        ("shared", "error"),
        [
            ([], MalformedError),
            ({}, MalformedError),
            (SHARED[:-1], MalformedError),
            ([20, {}, *SHARED[2:]], MalformedError),
            ([20, [], *SHARED[2:]], MalformedError),
            ([*SHARED, 3, 15], UnsupportedError),  # image match is not for the shared sequence here
            ([*SHARED, 24, 15], MalformedError),  # a condition without its parameter
            ([*SHARED, 1, 16], MalformedError),
            ([*SHARED, 1, -1], MalformedError),
            ([*SHARED, 1, None], MalformedError),
            ([*SHARED, 12, 1], UnsupportedError),
            ([*SHARED, 12, True], UnsupportedError),
            ([*SHARED, 12, [0]], UnsupportedError),
            ([*SHARED, 14, 15], UnsupportedError),
            ([*SHARED, 15, [b"", b""]], UnsupportedError),
            ([*SHARED, 22, 2], UnsupportedError),
            ([*SHARED, 32, b""], UnsupportedError),
            ([*SHARED, 19, {}], UnsupportedError),
            ([*SHARED, "fetch", 2], UnsupportedError),
            ([*SHARED, -1, 2], UnsupportedError),
            ([*SHARED, *[1, 15] * 70], UnsupportedError),
            (SHARED[:4], UnsupportedError),  # no class condition
            ([*SHARED[:2], 2, 15], UnsupportedError),  # no vendor condition
            (SHARED[:2], UnsupportedError),
        ],
        ids=repr,
    )
    def test_the_shared_sequence_asks_for_vendor_and_class(
        self, shared: object, error: type[WireError]
    ) -> None:
        with pytest.raises(error):
            parse(members(k3=common(shared)))

    @pytest.mark.parametrize(
        ("parameters", "error"),
        [
            ({"p1": ...}, MalformedError),
            ({"p1": bytes(15)}, MalformedError),
            ({"p1": "text"}, MalformedError),
            ({"p2": bytes(17)}, MalformedError),
            ({"p3": ...}, MalformedError),
            ({"p3": IMAGE}, MalformedError),
            ({"p3": [-16, IMAGE]}, MalformedError),
            ({"p3": dumps([-44, bytes(64)])}, UnsupportedError),
            ({"p14": ...}, UnsupportedError),
            ({"p14": -1}, MalformedError),
            ({"p14": 2**53}, MalformedError),
            ({"p14": b"\x64"}, MalformedError),
            ({"p12": True}, UnsupportedError),
            ({"p5": 1}, UnsupportedError),
            ({"p18": b"content"}, UnsupportedError),
            ({"p-1": 1}, UnsupportedError),
            ({"p24": DEVICE}, UnsupportedError),  # a device identifier nobody asks about
            ({"p21": ""}, MalformedError),
            ({"p21": "a b"}, MalformedError),
            ({"p21": "a\n"}, MalformedError),
            ({"p21": "x" * 2049}, MalformedError),
            ({"p21": b"uri"}, MalformedError),
            ({"p21": "#firmware"}, UnsupportedError),
        ],
        ids=repr,
    )
    def test_parameters_are_strictly_typed(
        self, parameters: dict[str, object], error: type[WireError]
    ) -> None:
        with pytest.raises(error):
            parse(members(k3=shared_with(**parameters)))

    @pytest.mark.parametrize(
        ("key", "sequence"),
        [
            (20, [20, {3: dumps([-16, bytes(32)])}, *INSTALL]),  # another digest after the conditions
            (20, [20, {14: 10**9}, *INSTALL]),
            (20, [20, {1: VENDOR}, *INSTALL]),
            (20, [*INSTALL, 23, 2]),
            (7, [20, {21: "https://evil.example/"}, 3, 15]),
            (7, [21, 2]),
            (9, [21, 2]),
            (9, [3, 15]),
            (8, [22, 2]),
            (8, [3, 15]),
        ],
    )
    def test_what_was_checked_cannot_change_in_a_later_section(self, key: int, sequence: object) -> None:
        with pytest.raises(UnsupportedError):
            parse(members(**{f"k{key}": dumps(sequence)}))

    @pytest.mark.parametrize(
        ("changes", "is_installable"),
        [
            ({}, True),
            ({"k7": ...}, True),
            ({"k20": ...}, False),
            ({"k20": dumps(INSTALL[:4])}, True),  # matched by validate
            ({"k20": dumps(INSTALL[:4]), "k7": ...}, False),  # fetched, never matched
            ({"k20": dumps([*INSTALL[:2], 3, 15, 21, 2]), "k7": ...}, False),  # matched too early
            ({"k16": dumps(INSTALL), "k20": ...}, True),
            ({"k20": dumps([20, {21: "x"}, 3, 15])}, False),  # nothing fetched
        ],
    )
    def test_it_is_installable_only_if_what_it_fetches_is_matched_afterwards(
        self, changes: dict[str, object], is_installable: bool
    ) -> None:
        assert parse(members(**changes)).is_installable is is_installable

    def test_a_fetch_needs_a_uri(self) -> None:
        with pytest.raises(MalformedError):
            parse(members(k20=dumps([21, 2, 3, 15])))

    def test_invoke_is_seen(self) -> None:
        assert parse(members(k9=dumps([12, 0, 23, 2]))).is_invoked
        assert not parse(members()).is_invoked


class TestSevered:
    """ "Severable Elements"."""

    TEXT = dumps({"en": {2: "Fixes the pump", (b"main", b"app"): {6: "1.4.0"}}})

    @pytest.mark.parametrize("key", [16, 20, 23])
    def test_a_severed_member_is_read_once_its_digest_matches(self, key: int) -> None:
        content = self.TEXT if key == 23 else dumps(INSTALL)
        digest = [-16, SUITDigest.of_member(content).value]
        manifest = members(**{f"k{key}": digest})
        assert parse(manifest, {key: content}) != parse(manifest) or key == 16
        with pytest.raises(DigestMismatchError):
            parse(manifest, {key: content + b"\x00"})

    def test_a_severed_member_whose_digest_was_not_signed_is_malformed(self) -> None:
        with pytest.raises(MalformedError):
            parse(members(), {23: self.TEXT})
        with pytest.raises(MalformedError):
            parse(members(), {20: dumps(INSTALL)})

    def test_text_is_for_people(self) -> None:
        manifest = parse(members(k23=self.TEXT))
        assert (manifest.version, manifest.description) == ("1.4.0", "Fixes the pump")
        assert (parse(members()).version, parse(members()).description) == (None, None)

    def test_a_long_description_is_cut(self) -> None:
        manifest = parse(members(k23=dumps({"en": {1: "x" * 5000}})))
        assert manifest.description == "x" * 1024

    @pytest.mark.parametrize(
        "text",
        [
            [],
            {},
            {1: {}},
            {"en": []},
            {"en": {1: 5}},
            {"en": {(b"main", b"app"): "1.4.0"}},
            {"en": {(b"main", b"app"): {6: 140}}},
            {"en": {(b"main", b"app"): {6: "1" * 129}}},
        ],
        ids=repr,
    )
    def test_text_that_is_no_text_is_malformed(self, text: object) -> None:
        with pytest.raises(MalformedError):
            parse(members(k23=dumps(text)))


class TestTarget:
    MANIFEST = parse(members())
    FOR_DEVICE = parse(members(k3=common([20, {**SHARED[1], 24: DEVICE}, *SHARED[2:], 24, 15])))  # type: ignore[dict-item]

    def test_the_device_it_is_for_is_let_through(self) -> None:
        check_target(self.MANIFEST, vendor=VENDOR, device_class=CLASS)
        check_target(self.MANIFEST, vendor=VENDOR, device_class=CLASS, device=DEVICE)
        check_target(self.MANIFEST, vendor=VENDOR, device_class=CLASS, components={"main:app"})
        check_target(self.FOR_DEVICE, vendor=VENDOR, device_class=CLASS, device=DEVICE)

    def test_another_vendor_class_or_component_is_incompatible(self) -> None:
        for vendor, device_class, components in (
            (CLASS, CLASS, None),
            (VENDOR, VENDOR, None),
            (VENDOR, CLASS, {"bootloader"}),
            (VENDOR, CLASS, set()),
        ):
            with pytest.raises(IncompatibleDeviceError) as caught:
                check_target(self.MANIFEST, vendor=vendor, device_class=device_class, components=components)
            assert caught.value.code == "incompatible"

    @pytest.mark.parametrize("device", [None, bytes(16)])
    def test_another_devices_manifest_is_refused(self, device: bytes | None) -> None:
        with pytest.raises(WrongDeviceError) as caught:
            check_target(self.FOR_DEVICE, vendor=VENDOR, device_class=CLASS, device=device)
        assert caught.value.code == "wrong_device"


segments = st.binary(max_size=3) | st.sampled_from([b"0x", b"0x00", b":", b"a"])


class TestComponentName:
    @pytest.mark.parametrize(
        ("identifier", "name"),
        [
            ((b"firmware",), "firmware"),
            ((b"main", b"app-1.2_3~"), "main:app-1.2_3~"),
            ((b"\x00",), "0x00"),
            ((b"0x00",), "0x30783030"),
            ((b"a:b",), "0x613a62"),
            ((b"a", b"b"), "a:b"),
            ((b"",), "0x"),
            ((b"..",), "0x2e2e"),
            ((b".",), "0x2e"),
            ((b"...", b".a"), "...:.a"),
            ((b"a/b",), "0x612f62"),
            ((b"a\n",), "0x610a"),
            (("ü".encode(),), "0xc3bc"),
        ],
    )
    def test_segments_stand_for_themselves_or_in_hexadecimal(
        self, identifier: tuple[bytes, ...], name: str
    ) -> None:
        assert component_name(identifier) == name

    @given(
        st.lists(
            st.binary(max_size=3) | st.sampled_from([b"0x", b"0x00", b":", b"a"]), min_size=1, max_size=3
        ),
        st.lists(
            st.binary(max_size=3) | st.sampled_from([b"0x", b"0x00", b":", b"a"]), min_size=1, max_size=3
        ),
    )
    def test_no_two_identifiers_share_a_name(self, one: list[bytes], other: list[bytes]) -> None:
        assert (component_name(tuple(one)) == component_name(tuple(other))) is (one == other)


items = st.recursive(
    st.none() | st.booleans() | st.integers(-50, 50) | st.binary(max_size=40) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.integers(-2, 26), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.integers(1, 24), items | items.map(dumps), max_size=3))
def test_whatever_an_operator_signs_raises_nothing_but_wire_errors(mutated: dict[int, Any]) -> None:
    try:
        parse({**members(), **mutated})
    except WireError:
        return


@given(st.lists(items, max_size=8), st.sampled_from([7, 8, 9, 16, 20]))
def test_arbitrary_sequences_raise_nothing_but_wire_errors(sequence: list[object], key: int) -> None:
    try:
        parse(members(**{f"k{key}": dumps(sequence)}))
    except WireError:
        return


@given(st.binary(max_size=200))
def test_arbitrary_envelopes_raise_nothing_but_wire_errors(data: bytes) -> None:
    with pytest.raises(WireError):
        authenticate(Envelope.parse(data), KEYS)
