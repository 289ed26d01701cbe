"""Releases offline: what is created, signed and inspected, and with which exit status it is refused."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from device_sdk.wire import cbor
from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.suit.envelope import Envelope
from gateway.release import accept_release

Run = Callable[..., Result]

IMAGE = b"an image" * 1000
KEY = PrivateKey.from_seed(bytes(range(32)))
STRANGER = PrivateKey.from_seed(bytes(32))


class Desk:
    """An operator's folder with an image, keys, and a signed release."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self.image.write_bytes(IMAGE)
        for name, key in (("release", KEY), ("stranger", STRANGER)):
            key.save(folder / f"{name}.pem")
            (folder / f"{name}.pub.pem").write_bytes(key.public.to_pem())

    @property
    def image(self) -> Path:
        return self.folder / "image.bin"

    @property
    def envelope(self) -> Path:
        return self.folder / "release.suit"

    def create(self, *arguments: object) -> Result:
        return self.run(
            *("release", "create", "--image", self.image, "--vendor", "acme.example", "--class", "tc3"),
            *("--component", "main:app", "--output", self.envelope, *arguments),
        )

    def sign(self, key: str = "release") -> Result:
        return self.run(
            *("release", "sign", self.envelope, "--key", self.folder / f"{key}.pem"),
            *("--output", self.envelope),
        )

    def inspect(self, *arguments: object, key: str = "release") -> Result:
        return self.run(
            "release", "inspect", self.envelope, "--key", self.folder / f"{key}.pub.pem", *arguments
        )

    def inspect_json(self, *arguments: object, key: str = "release") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.inspect("--json", *arguments, key=key).stdout)
        return found


@pytest.fixture
def desk(run: Run, tmp_path: Path) -> Desk:
    return Desk(run, tmp_path)


@pytest.fixture
def signed(desk: Desk) -> Desk:
    assert desk.create("--sequence", "7", "--version", "1.4.0").exit_code == 0
    assert desk.sign().exit_code == 0
    return desk


class TestCreate:
    def test_envelope_says_what_was_asked(self, signed: Desk) -> None:
        manifest = accept_release(signed.envelope.read_bytes(), {KEY.kid: KEY.public}).manifest
        vendor = uuid.uuid5(uuid.NAMESPACE_DNS, "acme.example")
        digest = hashlib.sha256(IMAGE)
        assert manifest.vendor_identifier == vendor.bytes
        assert manifest.class_identifier == uuid.uuid5(vendor, "tc3").bytes
        assert (manifest.component, manifest.sequence_number, manifest.version) == ("main:app", 7, "1.4.0")
        assert (manifest.image_digest, manifest.image_size) == (digest.digest(), len(IMAGE))
        assert manifest.uri == f"/v1/device/artifacts/{digest.hexdigest()}"

    def test_auto_sequence_is_the_time_in_seconds(self, desk: Desk) -> None:
        before = int(time.time())
        shown = json.loads(desk.create("--json").stdout)
        assert before <= shown["sequence"] <= time.time()

    def test_uri_and_device_are_the_operators(self, desk: Desk) -> None:
        device = uuid.uuid4()
        shown = json.loads(
            desk.create("--uri", "https://cdn.example/i", "--device-uuid", device, "--json").stdout
        )
        assert (shown["uri"], shown["device_id"]) == ("https://cdn.example/i", str(device))

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--sequence", "soon"),
            ("--sequence", "-1"),
            ("--sequence", str(2**64)),
            ("--device-uuid", "17"),
            ("--uri", "#local"),
            ("--version", "x" * 129),
            ("--component", "no spaces"),
        ],
    )
    def test_what_no_release_can_say_is_wrong_usage_and_writes_nothing(
        self, desk: Desk, arguments: tuple[str, str]
    ) -> None:
        result = desk.create(*arguments)
        assert result.exit_code == 2
        assert not desk.envelope.exists()


class TestSign:
    def test_second_signature_is_added(self, signed: Desk) -> None:
        assert signed.sign("stranger").exit_code == 0
        for key in ("release", "stranger"):
            assert signed.inspect(key=key).exit_code == 0

    def test_key_signs_once(self, signed: Desk) -> None:
        before = signed.envelope.read_bytes()
        result = signed.sign()
        assert result.exit_code == 1
        assert "[already_signed]" in result.stderr
        assert signed.envelope.read_bytes() == before

    def test_tampered_manifest_is_not_signed(self, desk: Desk) -> None:
        desk.create()
        envelope = Envelope.parse(desk.envelope.read_bytes())
        tampered = Envelope(envelope.wrapper, envelope.manifest[:-1] + b"\x00", {}).serialize()
        desk.envelope.write_bytes(tampered)
        result = desk.sign()
        assert result.exit_code == 3
        assert "[digest_mismatch]" in result.stderr
        assert desk.envelope.read_bytes() == tampered

    def test_public_key_cannot_sign(self, desk: Desk) -> None:
        desk.create()
        before = desk.envelope.read_bytes()
        assert desk.sign("release.pub").exit_code == 2
        assert desk.envelope.read_bytes() == before


class TestInspect:
    def test_verified_is_status_0(self, signed: Desk) -> None:
        result = signed.inspect()
        assert result.exit_code == 0
        assert result.stdout.startswith("verified\n")
        assert result.stderr == ""

    def test_json_tells_all_that_is_known(self, signed: Desk) -> None:
        found = signed.inspect_json()
        assert (found["verified"], found["code"], found["reason"]) == (True, None, None)
        assert found["signatures"] == [
            {"kid": KEY.kid.hex(), "algorithm": -19, "verified": True, "code": None}
        ]
        assert found["manifest"]["image_digest"] == hashlib.sha256(IMAGE).hexdigest()
        assert (found["manifest"]["sequence"], found["manifest"]["version"]) == (7, "1.4.0")

    def assert_refused(self, desk: Desk, code: str, *arguments: object, key: str = "release") -> None:
        result = desk.inspect(*arguments, key=key)
        assert result.exit_code == 3
        assert f"[{code}]" in result.stderr
        assert "verified" not in result.stdout
        found = desk.inspect_json(*arguments, key=key)
        assert (found["verified"], found["code"]) == (False, code)

    def test_unsigned_is_refused(self, desk: Desk) -> None:
        desk.create()
        self.assert_refused(desk, "unknown_key")

    def test_signed_by_a_stranger_is_refused(self, signed: Desk) -> None:
        self.assert_refused(signed, "unknown_key", key="stranger")

    def test_tampered_manifest_is_refused(self, signed: Desk) -> None:
        envelope = Envelope.parse(signed.envelope.read_bytes())
        manifest = envelope.manifest.replace(b"1.4.0", b"1.4.1")
        assert manifest != envelope.manifest
        signed.envelope.write_bytes(Envelope(envelope.wrapper, manifest, {}).serialize())
        self.assert_refused(signed, "digest_mismatch")

    def test_tampered_digest_is_refused(self, signed: Desk) -> None:
        """Mix and match: the digest of another manifest under the same signature."""
        envelope = Envelope.parse(signed.envelope.read_bytes())
        digest, *blocks = cbor.decode(envelope.wrapper, size_max=4096)  # type: ignore[misc]
        other = digest[:-1] + bytes([digest[-1] ^ 1])
        wrapper = cbor.encode([other, *blocks])
        signed.envelope.write_bytes(Envelope(wrapper, envelope.manifest, {}).serialize())
        self.assert_refused(signed, "bad_signature")

    def test_tampered_signature_is_refused(self, signed: Desk) -> None:
        data = signed.envelope.read_bytes()
        wrapper = Envelope.parse(data).wrapper
        signature = Envelope.parse(data).authentication().blocks[0][-64:]
        assert wrapper.count(signature) == 1
        signed.envelope.write_bytes(data.replace(signature, bytes([signature[0] ^ 1]) + signature[1:]))
        self.assert_refused(signed, "bad_signature")

    @pytest.mark.parametrize("length", [0, 1, 40])
    def test_truncated_is_refused(self, signed: Desk, length: int) -> None:
        signed.envelope.write_bytes(signed.envelope.read_bytes()[:length])
        self.assert_refused(signed, "malformed")

    def test_endless_file_is_refused(self, signed: Desk) -> None:
        signed.envelope.write_bytes(signed.envelope.read_bytes() + bytes(2 * 1024 * 1024))
        self.assert_refused(signed, "too_large")

    def test_another_image_is_refused(self, signed: Desk) -> None:
        assert signed.inspect("--image", signed.image).exit_code == 0
        signed.image.write_bytes(IMAGE[:-1] + b"?")
        self.assert_refused(signed, "digest_mismatch", "--image", signed.image)

    def test_threshold_asks_for_distinct_keys(self, signed: Desk) -> None:
        both = ("--key", signed.folder / "stranger.pub.pem", "--threshold", "2")
        self.assert_refused(signed, "unknown_key", *both)
        signed.sign("stranger")
        assert signed.inspect(*both).exit_code == 0

    @pytest.mark.parametrize(
        "arguments",
        [
            ("release", "inspect", "{folder}/release.suit"),
            ("release", "inspect", "--key", "{folder}/release.pub.pem"),
            ("release", "inspect", "{folder}/no.suit", "--key", "{folder}/release.pub.pem"),
            ("release", "inspect", "{folder}/release.suit", "--key", "{folder}/no.pem"),
            ("release", "inspect", "{folder}/release.suit", "--key", "{folder}/image.bin"),
            (
                *("release", "inspect", "{folder}/release.suit"),
                *("--key", "{folder}/release.pub.pem"),
                "--what",
            ),
            (
                *("release", "inspect", "{folder}/release.suit"),
                *("--key", "{folder}/release.pub.pem", "--key", "{folder}/release.pub.pem"),
                *("--threshold", "2"),
            ),
        ],
    )
    def test_wrong_usage_is_status_2(self, signed: Desk, arguments: tuple[str, ...]) -> None:
        result = signed.run(*(argument.format(folder=signed.folder) for argument in arguments))
        assert result.exit_code == 2
        assert "verified" not in result.stdout
