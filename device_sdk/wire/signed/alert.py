"""An alert as it is signed: one message of a channel's log, at its position (PROTOCOL §1, §7.4).

The log keeps payload and signature apart, so that after a rotation of keys an old message is signed
anew; ``assemble_alert`` joins them to the COSE_Sign1 that travels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from device_sdk.errors import ExpiredError, MixAndMatchError
from device_sdk.wire import cose
from device_sdk.wire.cose import Keys
from device_sdk.wire.errors import MalformedError
from device_sdk.wire.keys import PrivateKey, Role
from device_sdk.wire.limits import ALERT_SIZE_MAX
from device_sdk.wire.names import ChannelName, FleetName, parse_channel_name, parse_fleet_name
from device_sdk.wire.signed.seal import (
    Fields,
    check_fleet,
    encode_fields,
    external_aad,
    parse_bytes,
    parse_epoch,
    parse_id,
    parse_text,
    parse_uint,
    unseal,
)

CONTENT_TYPE_LEN_MAX: Final = 128
KEY_LEN_MAX: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertPayload:
    """What the gateway's alert key vouches for. Times are milliseconds UTC.

    Attributes:
        id: UUIDv7, made before the insert; what a device de-duplicates by.
        key: A newer alert of the channel with the same key supersedes this one.
        original_id: The alert that this one repeats after it was dead-lettered (PROTOCOL §2.5).
    """

    fleet: FleetName
    channel: ChannelName
    epoch: int
    offset: int
    id: bytes
    issued_at: int
    content_type: str
    data: bytes
    expires_at: int | None = None
    key: str | None = None
    original_id: bytes | None = None

    def check_fresh(self, now_ms: int) -> None:
        """Raise ExpiredError if its time is over."""
        if self.expires_at is not None and now_ms >= self.expires_at:
            raise ExpiredError("the alert's time is over")


def alert_payload(alert: AlertPayload) -> bytes:
    """Return what is signed: deterministic CBOR (RFC 8949 §4.2.1)."""
    return encode_fields(
        {
            1: alert.fleet,
            2: alert.channel,
            3: alert.epoch,
            4: alert.offset,
            5: alert.id,
            6: alert.issued_at,
            7: alert.expires_at,
            8: alert.content_type,
            9: alert.data,
            10: alert.key,
            11: alert.original_id,
        }
    )


def sign_alert(payload: bytes, key: PrivateKey, fleet: str) -> bytes:
    """Return the 64 bytes that vouch for ``payload``; the headers follow from ``key``."""
    return cose.signature_of(payload, key, external_aad=external_aad(Role.ALERT, fleet))


def assemble_alert(payload: bytes, signature: bytes, *, kid: bytes, algorithm: int) -> bytes:
    """Return the COSE_Sign1 that travels as ``alert.body``."""
    return cose.assemble(payload, signature, kid=kid, algorithm=algorithm)


def parse_alert_payload(payload: bytes) -> AlertPayload:
    """Return the alert in ``payload``, which is authentic or our own.

    Raises:
        MalformedError, LimitError: Not an alert.
    """
    fields = Fields(payload, "alert")
    alert = AlertPayload(
        fleet=fields.required(1, parse_fleet_name),
        channel=fields.required(2, parse_channel_name),
        epoch=fields.required(3, parse_epoch),
        offset=fields.required(4, parse_uint),
        id=fields.required(5, parse_id),
        issued_at=fields.required(6, parse_uint),
        expires_at=fields.optional(7, parse_uint),
        content_type=fields.required(8, parse_text(CONTENT_TYPE_LEN_MAX)),
        data=fields.required(9, parse_bytes(0, ALERT_SIZE_MAX)),
        key=fields.optional(10, parse_text(KEY_LEN_MAX)),
        original_id=fields.optional(11, parse_id),
    )
    if alert.offset == 0:
        raise MalformedError("alert: offsets begin at 1")
    return alert


def verify_alert(
    data: bytes, keys: Keys, *, fleet: str, channel: str, epoch: int, offset: int
) -> AlertPayload:
    """Return the alert once an alert key vouches for it at this very position.

    Args:
        data: COSE_Sign1 as CBOR; untrusted.
        keys: The alert keys of the root document.
        fleet: The device's own.
        channel: With ``epoch`` and ``offset``: where the message that brought ``data`` says it stands.

    Raises:
        WireError: Not an alert that one of ``keys`` signed for ``fleet``.
        MixAndMatchError: Signed for another position: moved, or repeated as something new.
    """
    alert = parse_alert_payload(unseal(data, keys, role=Role.ALERT, fleet=fleet))
    check_fleet(alert.fleet, fleet)
    if (alert.channel, alert.epoch, alert.offset) != (channel, epoch, offset):
        raise MixAndMatchError("the alert is signed for another position")
    return alert
