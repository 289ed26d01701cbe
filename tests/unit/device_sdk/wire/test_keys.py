from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from device_sdk.wire.errors import BadSignatureError, MalformedError, UnsupportedError
from device_sdk.wire.keys import Algorithm, PrivateKey, PublicKey, Role

# RFC 8032 §7.1, test 2: seed, public key, message, signature.
RFC_8032_SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
RFC_8032_PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
RFC_8032_MESSAGE = bytes.fromhex("72")
RFC_8032_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
BOTH = [Algorithm.ED25519, Algorithm.ESP256]


def test_ed25519_is_that_of_rfc_8032() -> None:
    key = PrivateKey.from_seed(RFC_8032_SEED)
    assert key.public.raw == RFC_8032_PUBLIC
    assert key.sign(RFC_8032_MESSAGE) == RFC_8032_SIGNATURE


def test_p256_signs_r_and_s_as_cose_has_them() -> None:
    key = PrivateKey.generate(Algorithm.ESP256)
    signature = key.sign(b"m")
    assert len(signature) == 64
    peer = serialization.load_pem_public_key(key.public.to_pem())
    assert isinstance(peer, ec.EllipticCurvePublicKey)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    peer.verify(encode_dss_signature(r, s), b"m", ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize(
    ("algorithm", "accepted", "refused"),
    [(Algorithm.ED25519, (-19, -8), (-9, -7, 5, 0)), (Algorithm.ESP256, (-9, -7), (-19, -8, 5, 0))],
)
def test_a_key_verifies_under_the_algorithms_of_its_kind_only(
    algorithm: Algorithm, accepted: tuple[int, ...], refused: tuple[int, ...]
) -> None:
    key = PrivateKey.generate(algorithm)
    signature = key.sign(b"m")
    for number in accepted:
        key.public.verify(number, signature, b"m")
    for number in refused:
        with pytest.raises(UnsupportedError):
            key.public.verify(number, signature, b"m")


@pytest.mark.parametrize("algorithm", BOTH)
@pytest.mark.parametrize(
    "signature",
    [b"", bytes(63), bytes(64), bytes(65), b"\xff" * 64],
    ids=["empty", "short", "zeros", "long", "ones"],
)
def test_what_is_no_signature_is_a_bad_one(algorithm: Algorithm, signature: bytes) -> None:
    key = PrivateKey.generate(algorithm).public
    with pytest.raises(BadSignatureError):
        key.verify(algorithm, signature, b"m")


@pytest.mark.parametrize("algorithm", BOTH)
def test_another_message_or_another_key_is_a_bad_signature(algorithm: Algorithm) -> None:
    key, other = PrivateKey.generate(algorithm), PrivateKey.generate(algorithm)
    with pytest.raises(BadSignatureError):
        key.public.verify(algorithm, key.sign(b"m"), b"n")
    with pytest.raises(BadSignatureError):
        other.public.verify(algorithm, key.sign(b"m"), b"m")


@pytest.mark.parametrize("algorithm", BOTH)
def test_kid_is_the_start_of_the_hash_of_the_spki(algorithm: Algorithm) -> None:
    key = PrivateKey.generate(algorithm)
    spki = serialization.load_pem_public_key(key.public.to_pem()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert key.kid == hashlib.sha256(spki).digest()[:8]


@pytest.mark.parametrize("algorithm", BOTH)
def test_public_keys_travel_raw_and_as_pem(algorithm: Algorithm) -> None:
    key = PrivateKey.generate(algorithm).public
    for other in (PublicKey.from_raw(key.algorithm, key.raw), PublicKey.from_pem(key.to_pem())):
        assert other == key
        assert hash(other) == hash(key)
        assert other.kid == key.kid


@pytest.mark.parametrize(
    ("algorithm", "raw", "error"),
    [
        (-19, bytes(31), MalformedError),
        (-19, b"", MalformedError),
        (-9, bytes(65), MalformedError),
        (-9, b"\x04" + bytes(64), MalformedError),
        (-9, b"\x04" + b"\xff" * 64, MalformedError),
        (-8, bytes(32), UnsupportedError),
        (-7, bytes(65), UnsupportedError),
        (-35, bytes(97), UnsupportedError),
    ],
)
def test_raw_bytes_that_are_no_key_are_refused(algorithm: int, raw: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        PublicKey.from_raw(algorithm, raw)


def test_a_compressed_point_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    compressed = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    with pytest.raises(MalformedError):
        PublicKey.from_raw(-9, compressed)


class TestFiles:
    @pytest.mark.parametrize("algorithm", BOTH)
    @pytest.mark.parametrize("password", [None, b"correct horse"])
    def test_a_saved_key_loads_again_and_only_its_owner_reads_it(
        self, tmp_path: Path, algorithm: Algorithm, password: bytes | None
    ) -> None:
        path = tmp_path / "key.pem"
        key = PrivateKey.generate(algorithm)
        key.save(path, password=password)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert PrivateKey.load(path, password=password).public == key.public
        public_path = tmp_path / "key.pub.pem"
        public_path.write_bytes(key.public.to_pem())
        assert PublicKey.load(public_path) == key.public
        assert (password is None) is (b"ENCRYPTED" not in path.read_bytes())

    def test_a_key_is_never_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        path.write_bytes(b"precious")
        with pytest.raises(FileExistsError):
            PrivateKey.generate().save(path)
        assert path.read_bytes() == b"precious"

    def test_a_wrong_missing_or_superfluous_password_is_malformed(self) -> None:
        key = PrivateKey.generate()
        for pem, password in (
            (key.to_pem(password=b"a"), b"b"),
            (key.to_pem(password=b"a"), None),
            (key.to_pem(), b"a"),
        ):
            with pytest.raises(MalformedError):
                PrivateKey.from_pem(pem, password=password)

    @pytest.mark.parametrize("pem", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff" * 100, bytes(20_000)])
    def test_what_is_no_pem_is_malformed(self, pem: bytes) -> None:
        with pytest.raises(MalformedError):
            PublicKey.from_pem(pem)
        with pytest.raises(MalformedError):
            PrivateKey.from_pem(pem)

    def test_a_private_key_is_no_public_one(self) -> None:
        with pytest.raises(MalformedError):
            PublicKey.from_pem(PrivateKey.generate().to_pem())

    @pytest.mark.parametrize(
        "other",
        [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
        ids=["P-384", "RSA"],
    )
    def test_other_kinds_of_key_are_unsupported(
        self, other: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    ) -> None:
        pem = other.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public_pem = other.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with pytest.raises(UnsupportedError):
            PrivateKey.from_pem(pem)
        with pytest.raises(UnsupportedError):
            PublicKey.from_pem(public_pem)


def test_generate_makes_only_what_is_emitted() -> None:
    with pytest.raises(UnsupportedError):
        PrivateKey.generate(Algorithm.EDDSA)


def test_a_repr_does_not_show_the_secret() -> None:
    secret = ed25519.Ed25519PrivateKey.from_private_bytes(RFC_8032_SEED)
    key = PrivateKey(secret)
    text = f"{key!r} {key} {key.public!r}"
    assert RFC_8032_SEED.hex() not in text
    assert repr(RFC_8032_SEED)[2:-1] not in text
    assert "kid=" in text


def test_roles_are_those_of_the_contract() -> None:
    assert {role.value for role in Role} == {"root", "release", "directive", "statement", "alert"}
