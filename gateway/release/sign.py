"""Signing envelopes, offline: each signature is one more block in the authentication wrapper."""

from __future__ import annotations

from collections.abc import Sequence

from device_sdk.wire.cose import Sign1, sign1
from device_sdk.wire.errors import LimitError
from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.suit.envelope import SIGNATURES_MAX, Authentication, Envelope
from gateway.errors import ConflictError


def sign_envelope(data: bytes, keys: Sequence[PrivateKey]) -> bytes:
    """Return the envelope in ``data`` with a signature by each of ``keys`` appended.

    Whoever signs vouches for all of it: the digest is checked over the manifest before, and severed
    members stay as they are.

    Raises:
        WireError: Not an envelope, or its digest is of another manifest.
        ConflictError: A key has already signed (``already_signed``).
        LimitError: More than ``SIGNATURES_MAX`` signatures.
    """
    envelope = Envelope.parse(data)
    authentication = envelope.authentication()
    authentication.digest.check_member(envelope.manifest)
    blocks = list(authentication.blocks)
    signed = {signature.kid for signature in authentication.signatures}
    for key in keys:
        if key.kid in signed:
            raise ConflictError(f"{key.kid.hex()} has already signed", code="already_signed")
        signed.add(key.kid)
        blocks.append(sign1(authentication.digest_encoded, key, is_detached=True))
    return _with_blocks(envelope, authentication, blocks)


def append_signature(data: bytes, signature: bytes) -> bytes:
    """Return the envelope in ``data`` with one more COSE_Sign1, made elsewhere (a hardware module).

    Whether it verifies is for ``accept_release``; here it only has to be one.

    Raises:
        WireError: Not an envelope, or not a COSE_Sign1.
        ConflictError: Its kid has already signed (``already_signed``).
    """
    envelope = Envelope.parse(data)
    authentication = envelope.authentication()
    kid = Sign1.parse(signature).kid
    if kid is not None and kid in {known.kid for known in authentication.signatures}:
        raise ConflictError(f"{kid.hex()} has already signed", code="already_signed")
    return _with_blocks(envelope, authentication, [*authentication.blocks, signature])


def _with_blocks(envelope: Envelope, authentication: Authentication, blocks: Sequence[bytes]) -> bytes:
    if len(blocks) > SIGNATURES_MAX:
        raise LimitError("signatures", len(blocks), SIGNATURES_MAX)
    signed = Authentication.parse(
        Authentication(authentication.digest_encoded, authentication.digest, tuple(blocks), ()).serialize()
    )
    return Envelope(signed.serialize(), envelope.manifest, envelope.severed).serialize()
