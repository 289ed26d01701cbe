"""The envelope around a manifest, and the question whether a trusted key vouches for it.

Nothing inside the manifest is decoded here: the draft forbids that before the signature is verified, and
``Manifest.parse`` takes only what ``authenticate`` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from device_sdk.wire import cbor
from device_sdk.wire.cose import AuthenticBytes, Keys, Sign1
from device_sdk.wire.errors import LimitError, MalformedError, UnknownKeyError, UnsupportedError
from device_sdk.wire.limits import ENVELOPE_SIZE_MAX
from device_sdk.wire.suit.digest import SUITDigest
from device_sdk.wire.suit.registry import ENVELOPE_TAG, SEVERABLE, EnvelopeMember

SIGNATURES_MAX: Final = 8
_TAG_107: Final = b"\xd8\x6b"
_TAG_18: Final = b"\xd2"


@dataclass(frozen=True, slots=True)
class Envelope:
    """SUIT_Envelope, the outer map only. Every byte of it is untrusted.

    Attributes:
        wrapper: The authentication wrapper, encoded: a digest and the signatures over it.
        manifest: The manifest, encoded.
        severed: Members that travel beside the manifest, encoded, by their key.
    """

    wrapper: bytes
    manifest: bytes
    severed: Mapping[int, bytes]

    @classmethod
    def parse(cls, data: bytes) -> Envelope:
        """Return the envelope in ``data``: CBOR, deterministic, with tag 107 or bare.

        Raises:
            MalformedError: Not an envelope.
            LimitError: Over ``ENVELOPE_SIZE_MAX`` bytes.
            UnsupportedError: A member that is not known here, integrated payloads included.
        """
        if len(data) > ENVELOPE_SIZE_MAX:
            raise LimitError("envelope", len(data), ENVELOPE_SIZE_MAX)
        members = cbor.decode(cbor.strip_tag(data, ENVELOPE_TAG), size_max=ENVELOPE_SIZE_MAX, depth_max=2)
        if not isinstance(members, dict):
            raise MalformedError("an envelope is a map")
        found: dict[int, bytes] = {}
        for key, value in members.items():
            if type(key) is not int or key not in _MEMBERS:
                raise UnsupportedError(f"envelope member {key!r}")
            if type(value) is not bytes:
                raise MalformedError(f"envelope member {key} is a byte string")
            found[key] = value
        try:
            wrapper = found.pop(EnvelopeMember.AUTHENTICATION_WRAPPER)
            manifest = found.pop(EnvelopeMember.MANIFEST)
        except KeyError:
            raise MalformedError("an envelope holds an authentication wrapper and a manifest") from None
        return cls(wrapper, manifest, found)

    def serialize(self) -> bytes:
        """Return the envelope with tag 107, deterministic CBOR (RFC 8949 §4.2.1)."""
        members = {
            EnvelopeMember.AUTHENTICATION_WRAPPER: self.wrapper,
            EnvelopeMember.MANIFEST: self.manifest,
            **self.severed,
        }
        return _TAG_107 + cbor.encode({int(key): value for key, value in members.items()})

    def authentication(self) -> Authentication:
        """Return the authentication wrapper's parts, untrusted.

        Raises:
            MalformedError: Not an authentication wrapper.
            UnsupportedError: Another digest than SHA-256, or a block that is no COSE_Sign1.
            LimitError: More than ``SIGNATURES_MAX`` signatures.
        """
        return Authentication.parse(self.wrapper)


@dataclass(frozen=True, slots=True)
class Authentication:
    """SUIT_Authentication: a digest, and detached signatures over its encoding.

    Attributes:
        digest_encoded: The SUIT_Digest as it came: what the signatures are over.
        blocks: The COSE_Sign1 messages as they came.
        signatures: The same, read.
    """

    digest_encoded: bytes
    digest: SUITDigest
    blocks: tuple[bytes, ...]
    signatures: tuple[Sign1, ...]

    @classmethod
    def parse(cls, data: bytes) -> Authentication:
        """Return the parts of ``data``; as ``Envelope.authentication``."""
        items = cbor.decode(data, size_max=ENVELOPE_SIZE_MAX, depth_max=1)
        if not isinstance(items, list) or not items or any(type(item) is not bytes for item in items):
            raise MalformedError("an authentication wrapper is an array of byte strings")
        digest_encoded, *blocks = items
        if len(blocks) > SIGNATURES_MAX:
            raise LimitError("signatures", len(blocks), SIGNATURES_MAX)
        for block in blocks:
            if not block.startswith(_TAG_18):
                raise UnsupportedError("an authentication block that is no COSE_Sign1")
        return cls(
            digest_encoded,
            SUITDigest.parse(digest_encoded),
            tuple(blocks),
            tuple(Sign1.parse(block) for block in blocks),
        )

    def serialize(self) -> bytes:
        """Return the wrapper as CBOR, deterministic (RFC 8949 §4.2.1)."""
        return cbor.encode([self.digest_encoded, *self.blocks])


def authenticate(envelope: Envelope, keys: Keys, *, threshold: int = 1) -> AuthenticBytes:
    """Return the manifest's bytes once trusted keys vouch for them.

    draft-ietf-suit-manifest-37, "Authenticated Manifests". Two links, in order:

    1. COSE_Sign1 messages in the authentication wrapper verify over the SUIT_Digest (a detached payload;
       RFC 9052 §4.4). A signature by a key that is not trusted is no one's word and is passed over; one
       that names a trusted key and does not verify refuses the envelope.
    2. That digest is the digest of the bstr-wrapped manifest.

    Args:
        envelope: Untrusted; see ``Envelope.parse``.
        keys: The release keys. An empty set refuses everything.
        threshold: How many distinct keys must vouch.

    Raises:
        UnknownKeyError: Fewer signatures by trusted keys than ``threshold``.
        BadSignatureError: A trusted key's signature does not verify.
        DigestMismatchError: The signatures are good, but over another manifest.
        MalformedError, LimitError, UnsupportedError: As ``Envelope.authentication``.
    """
    assert threshold >= 1, "no threshold means no authentication"
    authentication = envelope.authentication()
    vouching = set()
    for signature in authentication.signatures:
        try:
            _, key = signature.verify(keys, detached_payload=authentication.digest_encoded)
        except UnknownKeyError:
            continue
        vouching.add(key)
    if len(vouching) < threshold:
        raise UnknownKeyError(f"{len(vouching)} of {threshold} trusted keys signed")
    authentication.digest.check_member(envelope.manifest)
    return AuthenticBytes(envelope.manifest)


_MEMBERS: Final = frozenset({EnvelopeMember.AUTHENTICATION_WRAPPER, EnvelopeMember.MANIFEST} | SEVERABLE)
