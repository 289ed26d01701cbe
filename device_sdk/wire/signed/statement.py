"""A statement: the gateway's time and what is current, signed for one nonce (PROTOCOL §7.5).

It moves the clock of a device that has none, and shows a device with one that no newer directive or root
document is being kept from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from device_sdk.errors import ExpiredError, StatementReplayedError, WrongDeviceError
from device_sdk.wire.cose import Keys
from device_sdk.wire.errors import MalformedError
from device_sdk.wire.keys import PrivateKey, Role
from device_sdk.wire.names import DeviceId, FleetName, parse_device_id, parse_fleet_name
from device_sdk.wire.signed.seal import (
    Fields,
    check_fleet,
    encode_fields,
    parse_bytes,
    parse_uint,
    seal,
    unseal,
)

NONCE_SIZE_MIN: Final = 16
NONCE_SIZE_MAX: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What the gateway's statement key vouches for. Times are milliseconds UTC.

    Attributes:
        latest_directive: Sequence of the newest directive signed for the device, 0 if none was.
        root_version: Version of the fleet's current root document, 0 if there is none.
        time: The gateway's clock when it signed.
    """

    fleet: FleetName
    device: DeviceId
    nonce: bytes
    latest_directive: int
    root_version: int
    time: int
    expires_at: int

    def check_fresh(self, now_ms: int) -> None:
        """Raise ExpiredError if its time is over at ``now_ms``, on a clock that it did not set."""
        if now_ms >= self.expires_at:
            raise ExpiredError("the statement's time is over")


def sign_statement(statement: Statement, key: PrivateKey) -> bytes:
    """Return the COSE_Sign1 that travels as ``welcome.statement``."""
    payload = encode_fields(
        {
            1: statement.fleet,
            2: statement.device,
            3: statement.nonce,
            4: statement.latest_directive,
            5: statement.root_version,
            6: statement.time,
            7: statement.expires_at,
        }
    )
    return seal(payload, key, role=Role.STATEMENT, fleet=statement.fleet)


def verify_statement(data: bytes, keys: Keys, *, fleet: str, device: str, nonce: bytes) -> Statement:
    """Return the statement once a statement key vouches for it, for this device and this nonce.

    Raises:
        WireError: Not a statement that one of ``keys`` signed for ``fleet``.
        WrongDeviceError: It names another device.
        StatementReplayedError: It answers another nonce.
    """
    fields = Fields(unseal(data, keys, role=Role.STATEMENT, fleet=fleet), "statement")
    statement = Statement(
        fleet=fields.required(1, parse_fleet_name),
        device=fields.required(2, parse_device_id),
        nonce=fields.required(3, parse_bytes(NONCE_SIZE_MIN, NONCE_SIZE_MAX)),
        latest_directive=fields.required(4, parse_uint),
        root_version=fields.required(5, parse_uint),
        time=fields.required(6, parse_uint),
        expires_at=fields.required(7, parse_uint),
    )
    check_fleet(statement.fleet, fleet)
    if statement.expires_at <= statement.time:
        raise MalformedError("statement: it expires before it is signed")
    if statement.device != device:
        raise WrongDeviceError("the statement names another device")
    if statement.nonce != nonce:
        raise StatementReplayedError("the statement answers another nonce")
    return statement
