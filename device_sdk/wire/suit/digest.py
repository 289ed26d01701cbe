"""SUIT_Digest: an algorithm and what it gives. SHA-256 alone is supported."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from device_sdk.wire import cbor
from device_sdk.wire.errors import DigestMismatchError, MalformedError, UnsupportedError
from device_sdk.wire.suit.registry import SHA256

SHA256_SIZE = 32
_ENCODED_SIZE_MAX = 128


@dataclass(frozen=True, slots=True)
class SUITDigest:
    """SHA-256 of something, 32 bytes."""

    value: bytes

    @classmethod
    def of_member(cls, content: bytes) -> SUITDigest:
        """Return the digest of a manifest or a severed member: over its bytes *with* the bstr's head."""
        return cls(hashlib.sha256(cbor.byte_string(content)).digest())

    @classmethod
    def parse(cls, encoded: bytes) -> SUITDigest:
        """Return the digest that ``encoded`` holds, CBOR.

        Raises:
            MalformedError: Not a SUIT_Digest.
            UnsupportedError: Another algorithm than SHA-256.
        """
        return cls.from_item(cbor.decode(encoded, size_max=_ENCODED_SIZE_MAX, depth_max=2))

    @classmethod
    def from_item(cls, item: object) -> SUITDigest:
        """Return the digest of the decoded array ``[algorithm, bytes]``; as ``parse``."""
        match item:
            case [int(algorithm), bytes(value)] if type(algorithm) is int:
                pass
            case _:
                raise MalformedError("not a SUIT_Digest")
        if algorithm != SHA256:
            raise UnsupportedError(f"digest algorithm {algorithm}")
        if len(value) != SHA256_SIZE:
            raise MalformedError("a SHA-256 is 32 bytes")
        return cls(value)

    def encode(self) -> bytes:
        """Return ``[-16, bytes]`` as CBOR, deterministic (RFC 8949 §4.2.1)."""
        return cbor.encode([SHA256, self.value])

    def check_member(self, content: bytes) -> bytes:
        """Return ``content`` if this is the digest of that member.

        Raises:
            DigestMismatchError: It is not.
        """
        if not hmac.compare_digest(self.value, SUITDigest.of_member(content).value):
            raise DigestMismatchError("the digest is of other content")
        return content
