"""One byte of an envelope is changed, and what a device says to it is known."""

from __future__ import annotations

from random import Random

import pytest

from device_sdk.wire.errors import BadSignatureError, DigestMismatchError, WireError
from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.suit import Envelope, authenticate
from firmware_sim.tamper import tampered
from gateway.release import ReleaseContent, author_envelope, sign_envelope

KEY = PrivateKey.from_seed(bytes([10] * 32))


@pytest.fixture(scope="module")
def envelope() -> bytes:
    content = ReleaseContent(
        vendor_identifier=bytes(16),
        class_identifier=bytes(16),
        component="main",
        sequence_number=3,
        image_digest=bytes(32),
        image_size=9,
        uri="/v1/device/artifacts/" + bytes(32).hex(),
    )
    return sign_envelope(author_envelope(content), [KEY])


def difference(one: bytes, other: bytes) -> int:
    assert len(one) == len(other)
    return sum(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("what", "error"),
    [("signature", BadSignatureError), ("manifest", DigestMismatchError), ("any", WireError)],
)
def test_one_byte_is_enough_to_be_refused(envelope: bytes, what: str, error: type[WireError]) -> None:
    authenticate(Envelope.parse(envelope), [KEY.public])
    for seed in range(100):
        changed = tampered(envelope, what, Random(seed))  # type: ignore[arg-type]
        assert difference(envelope, changed) == 1
        with pytest.raises(error):
            authenticate(Envelope.parse(changed), [KEY.public])


def test_what_is_no_envelope_is_changed_all_the_same() -> None:
    assert difference(b"no envelope", tampered(b"no envelope", "signature", Random(1))) == 1
