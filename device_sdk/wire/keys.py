"""Signing keys: Ed25519 and P-256, their COSE algorithms, their names and their files.

What a key signs, and the headers around it, is in ``cose``. A key's name, its ``kid``, is the first 8
bytes of the SHA-256 of its public half as SubjectPublicKeyInfo in DER; anybody can compute it::

    openssl pkey -pubin -in release.pub.pem -outform DER | sha256sum | cut -c1-16

A kid finds a key, it proves nothing: trust comes from the mapping it is looked up in.
"""

from __future__ import annotations

import enum
import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from device_sdk.wire.errors import BadSignatureError, MalformedError, UnsupportedError

KID_SIZE: Final = 8
SIGNATURE_SIZE: Final = 64  # of both kinds: R || S, or r || s
PEM_SIZE_MAX: Final = 16 * 1024


class Role(enum.StrEnum):
    """What a key may sign (PROTOCOL §7.4). A kid stands under one role only."""

    ROOT = "root"  # offline: the root document
    RELEASE = "release"  # offline: SUIT manifests
    DIRECTIVE = "directive"  # online: who installs what, and until when
    STATEMENT = "statement"  # online: the time and the latest directive, for one nonce
    ALERT = "alert"  # online: alerts


class Algorithm(enum.IntEnum):
    """COSE algorithms (RFC 9053 §2, RFC 9864 §2). The fully specified two are emitted."""

    ES256 = -7
    EDDSA = -8
    ESP256 = -9
    ED25519 = -19


class PublicKey:
    """The public half of a signing key. Equal by value, immutable."""

    __slots__ = ("_key", "algorithm", "algorithms", "kid", "raw")

    def __init__(self, key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey) -> None:
        """Wrap ``key``; callers outside this module use ``from_pem`` or ``from_raw``.

        Raises:
            UnsupportedError: Neither Ed25519 nor P-256.
        """
        if isinstance(key, ed25519.Ed25519PublicKey):
            self.algorithm = Algorithm.ED25519
            self.algorithms = frozenset({Algorithm.ED25519, Algorithm.EDDSA})
            self.raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        elif isinstance(key.curve, ec.SECP256R1):
            self.algorithm = Algorithm.ESP256
            self.algorithms = frozenset({Algorithm.ESP256, Algorithm.ES256})
            self.raw = key.public_bytes(
                serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
            )
        else:
            raise UnsupportedError("a key is Ed25519 or P-256")
        self._key = key
        self.kid = hashlib.sha256(self._spki()).digest()[:KID_SIZE]

    @classmethod
    def from_raw(cls, algorithm: int, raw: bytes) -> PublicKey:
        """Return the key of ``raw``: 32 bytes (RFC 8032) or 65 (0x04 || x || y), as ``PublicKey.raw`` is.

        Raises:
            UnsupportedError: Neither -19 nor -9.
            MalformedError: Not a key of that algorithm.
        """
        try:
            if algorithm == Algorithm.ED25519:
                return cls(ed25519.Ed25519PublicKey.from_public_bytes(raw))
            if algorithm == Algorithm.ESP256:
                if len(raw) != 65:
                    raise MalformedError("a P-256 key is an uncompressed point")
                return cls(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw))
        except ValueError as error:
            raise MalformedError("not a public key") from error
        raise UnsupportedError("a key's algorithm is -19 or -9")

    @classmethod
    def from_pem(cls, pem: bytes) -> PublicKey:
        """Return the key of a PEM ``PUBLIC KEY``.

        Raises:
            MalformedError: Not PEM of a public key.
            UnsupportedError: Another kind of key.
        """
        if len(pem) > PEM_SIZE_MAX:
            raise MalformedError("not a PEM public key")
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise MalformedError("not a PEM public key") from error
        if not isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey):
            raise UnsupportedError("a key is Ed25519 or P-256")
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Return the key in the file ``path``; as ``from_pem``, and OSError."""
        return cls.from_pem(path.read_bytes())

    def to_pem(self) -> bytes:
        """Return the key as PEM ``PUBLIC KEY``."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verify(self, algorithm: int, signature: bytes, message: bytes) -> None:
        """Return if ``signature`` is this key's over ``message``.

        Raises:
            UnsupportedError: ``algorithm`` does not fit the kind of key.
            BadSignatureError: It is not.
        """
        if algorithm not in self.algorithms:
            raise UnsupportedError("the algorithm does not fit the key")
        if len(signature) != SIGNATURE_SIZE:
            raise BadSignatureError("a signature is 64 bytes")
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(signature, message)
            else:
                r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
                self._key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise BadSignatureError("the signature does not verify") from error

    def _spki(self) -> bytes:
        return self._key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and (other.algorithm, other.raw) == (self.algorithm, self.raw)

    def __hash__(self) -> int:
        return hash((self.algorithm, self.raw))

    def __repr__(self) -> str:
        return f"<PublicKey {self.algorithm.name} kid={self.kid.hex()}>"


class PrivateKey:
    """A signing key. Its text and its repr never show the secret half."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> None:
        """Wrap ``key``; callers outside this module use ``generate``, ``from_seed`` or ``from_pem``.

        Raises:
            UnsupportedError: Neither Ed25519 nor P-256.
        """
        self.public = PublicKey(key.public_key())
        self._key = key

    @classmethod
    def generate(cls, algorithm: Algorithm = Algorithm.ED25519) -> PrivateKey:
        """Return a new key from the system's randomness.

        Raises:
            UnsupportedError: Neither -19 nor -9.
        """
        if algorithm is Algorithm.ED25519:
            return cls(ed25519.Ed25519PrivateKey.generate())
        if algorithm is Algorithm.ESP256:
            return cls(ec.generate_private_key(ec.SECP256R1()))
        raise UnsupportedError("a key's algorithm is -19 or -9")

    @classmethod
    def from_seed(cls, seed: bytes) -> PrivateKey:
        """Return the Ed25519 key of a 32-byte secret (RFC 8032 §5.1.5)."""
        assert len(seed) == 32, "an Ed25519 secret is 32 bytes"
        return cls(ed25519.Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes, *, password: bytes | None = None) -> PrivateKey:
        """Return the key of a PEM ``PRIVATE KEY``, encrypted or not.

        Raises:
            MalformedError: Not PEM of a private key, or the password is missing, superfluous or wrong.
            UnsupportedError: Another kind of key.
        """
        if len(pem) > PEM_SIZE_MAX:
            raise MalformedError("not a PEM private key")
        try:
            key = serialization.load_pem_private_key(pem, password)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise MalformedError("not a PEM private key, or not its password") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
            raise UnsupportedError("a key is Ed25519 or P-256")
        return cls(key)

    @classmethod
    def load(cls, path: Path, *, password: bytes | None = None) -> PrivateKey:
        """Return the key in the file ``path``; as ``from_pem``, and OSError."""
        return cls.from_pem(path.read_bytes(), password=password)

    @property
    def kid(self) -> bytes:
        """The public half's name."""
        return self.public.kid

    @property
    def algorithm(self) -> Algorithm:
        """What ``sign`` produces: -19 or -9."""
        return self.public.algorithm

    def sign(self, message: bytes) -> bytes:
        """Return 64 bytes: R || S (RFC 8032 §5.1.6) or r || s (RFC 9053 §2.1)."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def to_pem(self, *, password: bytes | None = None) -> bytes:
        """Return the key as PEM (PKCS #8), encrypted if there is a ``password``."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
        )

    def save(self, path: Path, *, password: bytes | None = None) -> None:
        """Write the key to the new file ``path``, mode 0600, and sync it.

        Raises:
            FileExistsError: There is a file. A key is never overwritten.
            OSError: As the file system has it.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(self.to_pem(password=password))
            file.flush()
            os.fsync(file.fileno())

    def __repr__(self) -> str:
        return f"<PrivateKey {self.algorithm.name} kid={self.kid.hex()}>"
