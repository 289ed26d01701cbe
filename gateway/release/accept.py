"""Judging an envelope: on upload, and for an operator who looks at one.

The checks and their order are the device's own (``wire.suit``): what is accepted here is what a device of
the class would accept, its own state aside.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_sdk.wire.cose import AuthenticBytes, Keys, Sign1
from device_sdk.wire.errors import UnsupportedError, WireError
from device_sdk.wire.suit.envelope import Envelope, authenticate
from device_sdk.wire.suit.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Release:
    """An envelope that trusted keys vouch for, and what it says.

    Attributes:
        envelope: As it came; devices get these bytes.
        manifest: ``manifest.digest`` is the release's name.
        kids: The keys that vouch for it.
    """

    envelope: bytes
    manifest: Manifest
    kids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SignatureFact:
    """One signature of an envelope, for an operator's eyes.

    Attributes:
        code: None if a trusted key's signature verifies, else why not (docs/reference/codes.md).
    """

    kid: bytes | None
    algorithm: int
    code: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What can be said about an envelope, accepted or not.

    Attributes:
        code: None if it is accepted, else the stable code of the refusal.
        reason: The refusal in words.
        manifest: What it says, if it can be read at all. Not authentic unless ``code`` is None.
    """

    code: str | None
    reason: str | None
    signatures: tuple[SignatureFact, ...]
    manifest: Manifest | None


def accept_release(data: bytes, keys: Keys, *, threshold: int = 1) -> Release:
    """Return the release in ``data`` once ``threshold`` of ``keys`` vouch for it.

    Raises:
        WireError: Unsigned, ill signed, malformed, or not supported; ``code`` says which.
        UnsupportedError: Signed, but devices could not install it: it fetches nothing, or its install
            sequence was severed and is not here.
    """
    envelope = Envelope.parse(data)
    manifest = Manifest.parse(authenticate(envelope, keys, threshold=threshold), envelope.severed)
    if not manifest.is_installable:
        raise UnsupportedError("the manifest does not fetch an image and match it")
    authentication = envelope.authentication()
    kids = tuple(
        signature.verify(keys, detached_payload=authentication.digest_encoded)[1].kid
        for signature in authentication.signatures
        if _refusal(signature, authentication.digest_encoded, keys) is None
    )
    return Release(data, manifest, kids)


def inspect_release(data: bytes, keys: Keys, *, threshold: int = 1) -> Inspection:
    """Return what can be said about ``data``; refusals are told, not raised."""
    code = reason = None
    try:
        accept_release(data, keys, threshold=threshold)
    except WireError as error:
        code, reason = error.code, str(error)
    return Inspection(code, reason, _signature_facts(data, keys), _read_unverified(data))


def _signature_facts(data: bytes, keys: Keys) -> tuple[SignatureFact, ...]:
    try:
        authentication = Envelope.parse(data).authentication()
    except WireError:
        return ()
    return tuple(
        SignatureFact(
            signature.kid,
            int(signature.algorithm),
            _refusal(signature, authentication.digest_encoded, keys),
        )
        for signature in authentication.signatures
    )


def _refusal(signature: Sign1, digest_encoded: bytes, keys: Keys) -> str | None:
    try:
        signature.verify(keys, detached_payload=digest_encoded)
    except WireError as error:
        return error.code
    return None


def _read_unverified(data: bytes) -> Manifest | None:
    """Return the manifest for showing only, whoever signed it."""
    try:
        envelope = Envelope.parse(data)
        return Manifest.parse(AuthenticBytes(envelope.manifest), envelope.severed)
    except WireError:
        return None
