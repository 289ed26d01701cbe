"""COSE_Sign1 (RFC 9052 §4.2, §4.4): one signature over bytes that travel with it or apart from it.

What the bytes mean, and which ``external_aad`` binds them to a role, is in ``signed`` and ``suit``. The
algorithms are those of ``keys``. Protected headers are ``{1: alg, 4: kid}``; others than these are read
(they are signed) and ignored, but ``crit``, which asks for what is not done here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NewType

from device_sdk.wire import cbor
from device_sdk.wire.errors import BadSignatureError, MalformedError, UnknownKeyError, UnsupportedError
from device_sdk.wire.keys import Algorithm, PrivateKey, PublicKey
from device_sdk.wire.limits import SIGNED_SIZE_MAX

AuthenticBytes = NewType("AuthenticBytes", bytes)
"""Bytes that a trusted key vouched for. Only ``verify`` functions make them."""

Keys = Mapping[bytes, PublicKey] | Sequence[PublicKey]
"""Trusted keys: by kid, or given explicitly, and then a signature needs to name none."""

TAG: Final = 18
KID_SIZE_MAX: Final = 64
_ALG, _CRIT, _KID = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Sign1:
    """A COSE_Sign1, read and not yet verified.

    Attributes:
        protected: The protected header as it came, encoded.
        unprotected: Not signed: nothing but a kid is ever taken from it.
        payload: None if it travels apart.
    """

    protected: bytes
    algorithm: Algorithm
    kid: bytes | None
    unprotected: Mapping[object, object]
    payload: bytes | None
    signature: bytes

    @classmethod
    def parse(cls, data: bytes, *, size_max: int = SIGNED_SIZE_MAX) -> Sign1:
        """Return the message in ``data``: CBOR, deterministic, with tag 18 or bare.

        Raises:
            MalformedError: Not a COSE_Sign1.
            LimitError: More than ``size_max`` bytes.
            UnsupportedError: An algorithm that is not of ``keys``, or a critical header.
        """
        match cbor.decode(cbor.strip_tag(data, TAG), size_max=size_max, depth_max=6):
            case [bytes(protected), dict(unprotected), bytes() | None as payload, bytes(signature)]:
                pass
            case _:
                raise MalformedError("not a COSE_Sign1")
        header = cbor.decode(protected, size_max=len(protected), depth_max=4)
        if not isinstance(header, dict):
            raise MalformedError("a protected header is a map")
        # RFC 9052 §3: labels must not occur in both headers.
        if header.keys() & unprotected.keys():
            raise MalformedError("a label in both headers")
        if _CRIT in header or _CRIT in unprotected:
            raise UnsupportedError("critical headers")
        kid = header.get(_KID, unprotected.get(_KID))
        if kid is not None and (type(kid) is not bytes or len(kid) > KID_SIZE_MAX):
            raise MalformedError("a kid is a short byte string")
        return cls(protected, _algorithm(header.get(_ALG)), kid, unprotected, payload, signature)

    def verify(
        self, keys: Keys, *, external_aad: bytes = b"", detached_payload: bytes | None = None
    ) -> tuple[AuthenticBytes, PublicKey]:
        """Return the payload and the key that vouches for it; as ``verify_sign1``."""
        if (self.payload is None) is (detached_payload is None):
            raise MalformedError("the payload travels neither here nor apart, or twice")
        payload = self.payload if detached_payload is None else detached_payload
        assert payload is not None, "one of the two"
        candidates = self._candidates(keys)
        message = sig_structure(self.protected, payload, external_aad)
        usable = [key for key in candidates if self.algorithm in key.algorithms]
        if not usable:
            if self.kid is not None and all(key.kid != self.kid for key in candidates):
                raise UnknownKeyError("the kid is of no trusted key")
            raise UnsupportedError("the algorithm does not fit the key")
        for key in usable:
            try:
                key.verify(self.algorithm, self.signature, message)
            except BadSignatureError:
                continue
            return AuthenticBytes(payload), key
        if self.kid is not None and all(key.kid != self.kid for key in usable):
            raise UnknownKeyError("the kid is of no trusted key")
        raise BadSignatureError("the signature does not verify")

    def _candidates(self, keys: Keys) -> Sequence[PublicKey]:
        if isinstance(keys, Mapping):
            key = None if self.kid is None else keys.get(self.kid)
            candidates: Sequence[PublicKey] = () if key is None else (key,)
        else:
            # Keys given explicitly are few. One that is named goes first; the others are tried too, since
            # other tools make other kids.
            candidates = sorted(keys, key=lambda key: key.kid != self.kid)
        if not candidates:
            raise UnknownKeyError("the kid is of no trusted key")
        return candidates


def sign1(payload: bytes, key: PrivateKey, *, external_aad: bytes = b"", is_detached: bool = False) -> bytes:
    """Return a COSE_Sign1 with tag 18; without the payload in it if ``is_detached``."""
    signature = signature_of(payload, key, external_aad=external_aad)
    return assemble(None if is_detached else payload, signature, kid=key.kid, algorithm=key.algorithm)


def signature_of(payload: bytes, key: PrivateKey, *, external_aad: bytes = b"") -> bytes:
    """Return the 64 bytes that ``assemble`` puts beside ``payload``."""
    return key.sign(sig_structure(protected_header(key.kid, key.algorithm), payload, external_aad))


def assemble(payload: bytes | None, signature: bytes, *, kid: bytes, algorithm: int) -> bytes:
    """Return the COSE_Sign1, with tag 18, of parts that were kept apart."""
    message: list[object] = [protected_header(kid, algorithm), {}, payload, signature]
    return bytes([0xC0 | TAG]) + cbor.encode(message)


def protected_header(kid: bytes, algorithm: int) -> bytes:
    """Return ``{1: alg, 4: kid}`` as CBOR, deterministic (RFC 8949 §4.2.1)."""
    return cbor.encode({_ALG: int(algorithm), _KID: kid})


def verify_sign1(
    data: bytes, keys: Keys, *, external_aad: bytes = b"", detached_payload: bytes | None = None
) -> AuthenticBytes:
    """Return the payload of ``data`` once a trusted key vouches for it (RFC 9052 §4.4).

    Args:
        data: COSE_Sign1 as CBOR, deterministic, with tag 18 or bare; untrusted.
        keys: Trusted keys. An empty set refuses everything.
        external_aad: What signer and verifier agree on besides the bytes.
        detached_payload: The payload, if it travels apart; then ``data`` must not hold one.

    Raises:
        MalformedError: Not a COSE_Sign1, or the payload is where it should not be.
        LimitError: Over ``SIGNED_SIZE_MAX`` bytes.
        UnsupportedError: An algorithm that does not fit the key, or a critical header.
        UnknownKeyError: No trusted key is named (a key given explicitly needs no name).
        BadSignatureError: A trusted key's signature does not verify.
    """
    payload, _ = Sign1.parse(data).verify(keys, external_aad=external_aad, detached_payload=detached_payload)
    return payload


def sig_structure(protected: bytes, payload: bytes, external_aad: bytes) -> bytes:
    """Return what is signed: ``Sig_structure`` with context "Signature1" (RFC 9052 §4.4)."""
    return cbor.encode(["Signature1", protected, external_aad, payload])


def _algorithm(value: object) -> Algorithm:
    if type(value) is not int:
        raise MalformedError("alg is an integer in the protected header")
    try:
        return Algorithm(value)
    except ValueError as error:
        raise UnsupportedError(f"algorithm {value}") from error
