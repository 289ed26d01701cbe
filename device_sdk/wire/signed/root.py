"""The root document: which key may sign what for a fleet (PROTOCOL §7.4; SECURITY.md).

Signed offline by the operator. It brings the gateway's online keys to devices that were provisioned with
the operator's root key, or, in the simple deployment, with the release key alone; the external_aad keeps
the two uses of that one key apart. A document carries one signature, so every threshold is 1 but that
of releases, whose envelopes carry several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from device_sdk.errors import ExpiredError, RollbackError
from device_sdk.wire.cose import Keys
from device_sdk.wire.errors import LimitError, MalformedError, UnsupportedError
from device_sdk.wire.keys import KID_SIZE, PrivateKey, PublicKey, Role
from device_sdk.wire.names import FleetName, parse_fleet_name
from device_sdk.wire.signed.seal import (
    Fields,
    check_fleet,
    encode_fields,
    parse_bytes,
    parse_uint,
    seal,
    unseal,
)

KEYS_MAX: Final = 32
ROLE_NUMBERS: Final[Mapping[Role, int]] = {
    Role.ROOT: 1,
    Role.RELEASE: 2,
    Role.DIRECTIVE: 3,
    Role.STATEMENT: 4,
    Role.ALERT: 5,
}
_ROLES: Final = {number: role for role, number in ROLE_NUMBERS.items()}
_OFFLINE: Final = frozenset({Role.ROOT, Role.RELEASE})


@dataclass(frozen=True, slots=True)
class RootKey:
    """One key and the one role it has."""

    role: Role
    key: PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class RootDocument:
    """Which key may sign what. Times are milliseconds UTC.

    Attributes:
        version: From 1; a device never goes back to a lower one.
        thresholds: How many distinct keys must sign; a role that is not named needs one.
    """

    fleet: FleetName
    version: int
    issued_at: int
    expires_at: int
    keys: tuple[RootKey, ...]
    thresholds: Mapping[Role, int] = field(default_factory=dict)

    def keys_of(self, role: Role) -> dict[bytes, PublicKey]:
        """Return the keys of ``role`` by kid; empty if it has none."""
        return {entry.key.kid: entry.key for entry in self.keys if entry.role is role}

    def threshold_of(self, role: Role) -> int:
        """Return how many distinct keys of ``role`` must sign."""
        return self.thresholds.get(role, 1)

    def check_fresh(self, now_ms: int) -> None:
        """Raise ExpiredError if it no longer vouches for anything but its successor at ``now_ms``."""
        if now_ms >= self.expires_at:
            raise ExpiredError("the root document's time is over")


def sign_root(document: RootDocument, key: PrivateKey) -> bytes:
    """Return the COSE_Sign1 that travels in ``roots``.

    Raises:
        WireError: The document is one that ``verify_root`` refuses; nothing is signed.
    """
    _check(document, {key.kid})
    payload = encode_fields(
        {
            1: document.fleet,
            2: document.version,
            3: document.issued_at,
            4: document.expires_at,
            5: [
                {
                    1: entry.key.kid,
                    2: ROLE_NUMBERS[entry.role],
                    3: int(entry.key.algorithm),
                    4: entry.key.raw,
                }
                for entry in document.keys
            ],
            6: {ROLE_NUMBERS[role]: count for role, count in document.thresholds.items()},
        }
    )
    return seal(payload, key, role=Role.ROOT, fleet=document.fleet)


def verify_root(data: bytes, anchors: Keys, *, fleet: str, version_min: int = 1) -> RootDocument:
    """Return the root document once an anchor vouches for it.

    Its expiry is not looked at, since an expired one still verifies its successor: ``check_fresh``.

    Args:
        data: COSE_Sign1 as CBOR; untrusted.
        anchors: The keys the device was provisioned with, or the root keys of the version it holds.
        fleet: The device's own.
        version_min: The version the device holds; an equal one is let through.

    Raises:
        WireError: Not a root document that an anchor signed for ``fleet``, or one that contradicts
            itself: a kid under two roles, a kid that is not its key's, a threshold nobody can meet.
        RollbackError: A lower version than ``version_min``.
    """
    fields = Fields(unseal(data, anchors, role=Role.ROOT, fleet=fleet), "root")
    document = RootDocument(
        fleet=fields.required(1, parse_fleet_name),
        version=fields.required(2, parse_uint),
        issued_at=fields.required(3, parse_uint),
        expires_at=fields.required(4, parse_uint),
        keys=fields.required(5, _parse_keys),
        thresholds=fields.required(6, _parse_thresholds),
    )
    check_fleet(document.fleet, fleet)
    kids = anchors.keys() if isinstance(anchors, Mapping) else {anchor.kid for anchor in anchors}
    _check(document, set(kids))
    if document.version < version_min:
        raise RollbackError("root version", document.version, version_min)
    return document


def _parse_keys(value: object) -> tuple[RootKey, ...]:
    if not isinstance(value, list):
        raise MalformedError("not a list of keys")
    if len(value) > KEYS_MAX:
        raise LimitError("root_keys", len(value), KEYS_MAX)
    found = []
    kids = set()
    for item in value:
        fields = Fields(item, "root key")
        kid = fields.required(1, parse_bytes(KID_SIZE, KID_SIZE))
        # A kid is valid for one role (PROTOCOL §7.4), and so it stands here once.
        if kid in kids:
            raise MalformedError("a kid stands here twice")
        kids.add(kid)
        role = _ROLES.get(fields.required(2, parse_uint))
        if role is None:  # a role that a later version added
            continue
        key = PublicKey.from_raw(fields.required(3, _parse_int), fields.required(4, parse_bytes(1, 256)))
        if key.kid != kid:
            raise MalformedError("a kid is not its key's")
        found.append(RootKey(role, key))
    return tuple(found)


def _parse_thresholds(value: object) -> dict[Role, int]:
    if not isinstance(value, Mapping) or len(value) > KEYS_MAX:
        raise MalformedError("not a map of thresholds")
    found = {}
    for number, count in value.items():
        role = _ROLES.get(parse_uint(number))
        if role is not None:
            found[role] = parse_uint(count)
    return found


def _parse_int(value: object) -> int:
    if type(value) is not int:
        raise MalformedError("not an integer")
    return value


def _check(document: RootDocument, anchor_kids: set[bytes]) -> None:
    """Raise if ``document`` contradicts itself or gives an offline key an online role."""
    if document.version < 1:
        raise MalformedError("root: versions begin at 1")
    if document.expires_at <= document.issued_at:
        raise MalformedError("root: it expires before it is issued")
    kids = [entry.key.kid for entry in document.keys]
    if len(set(kids)) != len(kids):
        raise MalformedError("root: a kid under two roles")
    for entry in document.keys:
        if entry.role not in _OFFLINE and entry.key.kid in anchor_kids:
            raise MalformedError("root: an offline key in an online role")
    for role, count in document.thresholds.items():
        if not 1 <= count <= max(1, len(document.keys_of(role))):
            raise MalformedError(f"root: {count} signatures of {role.value} can never be")
        if count > 1 and role is not Role.RELEASE:
            raise UnsupportedError(f"root: more than one signature of {role.value}")
