"""What the signed objects share: the seal around a payload, and how a payload's fields are read.

The seal is stricter than COSE_Sign1 asks: tag 18, nothing unprotected, no other header than alg and kid.
So one payload and one signature have one encoding, and two receivers who hash a directive agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from device_sdk.wire import cbor, cose
from device_sdk.wire.cose import AuthenticBytes, Keys
from device_sdk.wire.errors import LimitError, MalformedError
from device_sdk.wire.keys import PrivateKey, Role
from device_sdk.wire.limits import INTEGER_MAX, SIGNED_SIZE_MAX

T = TypeVar("T")

ID_SIZE: Final = 16
_TAG_18: Final = b"\xd2"


def external_aad(role: Role, fleet: str) -> bytes:
    """Return what binds a signature to a role and a fleet (PROTOCOL §7.4)."""
    return f"fleetcast.v1/{role.value}/{fleet}".encode()


def seal(payload: bytes, key: PrivateKey, *, role: Role, fleet: str) -> bytes:
    """Return the COSE_Sign1 of ``payload``."""
    return cose.sign1(payload, key, external_aad=external_aad(role, fleet))


def unseal(data: bytes, keys: Keys, *, role: Role, fleet: str) -> AuthenticBytes:
    """Return the payload of ``data`` once a key of ``role`` vouches for it, for ``fleet``.

    Raises:
        WireError: As ``cose.verify_sign1``; a signature for another role or fleet is a bad one.
        MalformedError: Another form than ``seal`` makes.
    """
    sign1 = cose.Sign1.parse(data, size_max=SIGNED_SIZE_MAX)
    if (
        not data.startswith(_TAG_18)
        or sign1.unprotected
        or sign1.kid is None
        or sign1.protected != cose.protected_header(sign1.kid, sign1.algorithm)
    ):
        raise MalformedError("a signed object has tag 18 and the headers alg and kid, protected")
    payload, _ = sign1.verify(keys, external_aad=external_aad(role, fleet))
    return payload


class Fields:
    """The map in a payload, read field by field. Unknown keys are ignored, known ones strictly typed.

    Args:
        payload: CBOR, deterministic; authentic, and nevertheless not believed to be well formed.
        what: The object's name, for errors.
    """

    __slots__ = ("_map", "_what")

    def __init__(self, payload: bytes | Mapping[object, object], what: str) -> None:
        decoded = (
            cbor.decode(payload, size_max=SIGNED_SIZE_MAX, depth_max=6)
            if isinstance(payload, bytes)
            else payload
        )
        if not isinstance(decoded, Mapping) or any(type(key) is not int for key in decoded):
            raise MalformedError(f"{what}: not a map with integer keys")
        self._map = decoded
        self._what = what

    def required(self, key: int, parse: Callable[[object], T]) -> T:
        """Return the field ``key`` as ``parse`` has it.

        Raises:
            MalformedError: It is missing, or not what it must be.
            LimitError: It is larger than it may be.
        """
        if key not in self._map:
            raise MalformedError(f"{self._what}: key {key} is missing")
        try:
            return parse(self._map[key])
        except MalformedError as error:
            raise MalformedError(f"{self._what}: key {key}: {error}") from None

    def optional(self, key: int, parse: Callable[[object], T]) -> T | None:
        """Return the field ``key`` as ``required``, or None if it is not there."""
        return self.required(key, parse) if key in self._map else None


def parse_uint(value: object) -> int:
    """Return ``value`` if it is an integer of 0..2⁵³−1."""
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise MalformedError("not an integer of 0..2^53-1")
    return value


def parse_epoch(value: object) -> int:
    """Return ``value`` if it is an integer of 32 bits."""
    if type(value) is not int or not 0 <= value < 2**32:
        raise MalformedError("not an integer of 32 bits")
    return value


def parse_bytes(size_min: int, size_max: int) -> Callable[[object], bytes]:
    """Return a parser of byte strings of ``size_min``..``size_max`` bytes."""

    def parse(value: object) -> bytes:
        if type(value) is not bytes or len(value) < size_min:
            raise MalformedError(f"not a byte string of {size_min} bytes or more")
        if len(value) > size_max:
            raise LimitError("byte_string", len(value), size_max)
        return value

    return parse


def parse_text(len_max: int) -> Callable[[object], str]:
    """Return a parser of texts of 1..``len_max`` characters."""

    def parse(value: object) -> str:
        if type(value) is not str or not value:
            raise MalformedError("not a text")
        if len(value) > len_max:
            raise LimitError("text", len(value), len_max)
        return value

    return parse


parse_id = parse_bytes(ID_SIZE, ID_SIZE)
parse_sha256 = parse_bytes(32, 32)


def encode_fields(fields: Mapping[int, object]) -> bytes:
    """Return a payload: ``fields`` without those that are None, deterministic CBOR (RFC 8949 §4.2.1)."""
    return cbor.encode({key: value for key, value in fields.items() if value is not None})


def check_fleet(actual: str, fleet: str) -> None:
    """Raise MalformedError unless the payload repeats the fleet it is signed for.

    The external_aad already said so: a difference is a signer's fault, not an attack.
    """
    if actual != fleet:
        raise MalformedError("the payload names another fleet than it was signed for")
