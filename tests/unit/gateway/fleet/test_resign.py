"""What a stored alert's signature is worth when the key or the epoch is no longer the one it names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from device_sdk.errors import MixAndMatchError
from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.names import ChannelName, FleetName
from device_sdk.wire.signed import AlertPayload, assemble_alert, verify_alert
from gateway.fleet.alerts import AlertSigner
from gateway.fleet.log import Signed
from gateway.fleet.model import Draft, StoredMessage
from gateway.telemetry import Metrics

ACME, OPS = FleetName("acme"), ChannelName("ops")
OLD, NEW = (PrivateKey.from_seed(bytes([number] * 32)) for number in (1, 2))
DRAFT = Draft(id=b"i" * 16, content_type="text/plain", data=b"close", issued_at=5, expires_at=9, key="valve")


def stored(key: PrivateKey, *, epoch: int) -> StoredMessage:
    payload, signature = AlertSigner(key, Metrics()).seal(ACME, OPS, epoch, 3, DRAFT)
    return StoredMessage(
        channel_id=1,
        offset=3,
        id=DRAFT.id,
        payload=payload,
        signature=signature,
        kid=key.kid,
        key=DRAFT.key,
        superseded_by=None,
        original_id=None,
        accepted_at=5,
        expires_at=9,
    )


def verified(signed: Signed, key: PrivateKey, *, epoch: int) -> AlertPayload:
    body = assemble_alert(signed.payload, signed.signature, kid=signed.kid, algorithm=signed.algorithm)
    return verify_alert(body, {key.kid: key.public}, fleet=ACME, channel=OPS, epoch=epoch, offset=3)


def test_the_signature_in_the_log_is_used_while_the_key_is_in_force() -> None:
    metrics, message = Metrics(), stored(OLD, epoch=7)
    signed = AlertSigner(OLD, metrics).resign(ACME, 7, message)
    assert (signed.payload, signed.signature) == (message.payload, message.signature)
    assert b'fleetcast_signatures_total{role="alert"} 0.0' in metrics.render()


def test_after_a_rotation_an_old_alert_is_signed_anew_and_says_the_same() -> None:
    message = stored(OLD, epoch=7)
    signed = AlertSigner(NEW, Metrics()).resign(ACME, 7, message)
    assert signed.payload == message.payload
    assert verified(signed, NEW, epoch=7).data == b"close"


def test_after_a_restored_backup_an_alert_is_signed_for_its_new_epoch() -> None:
    message = replace(stored(OLD, epoch=7), kid=b"")  # as `fleetcast db restored` leaves it
    signed = AlertSigner(OLD, Metrics()).resign(ACME, 8, message)
    alert = verified(signed, OLD, epoch=8)
    assert (alert.id, alert.data, alert.key, alert.expires_at) == (DRAFT.id, b"close", "valve", 9)
    with pytest.raises(MixAndMatchError):
        verified(signed, OLD, epoch=7)
