"""One byte of an update's envelope, changed on the way. Pure."""

from __future__ import annotations

from random import Random

from device_sdk.wire.errors import WireError
from device_sdk.wire.keys import SIGNATURE_SIZE
from device_sdk.wire.suit.envelope import Envelope
from firmware_sim.scenario import TamperName


def tampered(envelope: bytes, what: TamperName, random: Random) -> bytes:
    """Return ``envelope`` with one byte changed.

    Args:
        what: ``signature``: a byte of a signature (a device says ``bad_signature``); ``manifest``: a byte of
            what is signed (``digest_mismatch``); ``any``: any byte at all.
    """
    start, size = _target(envelope, what)
    at = start + random.randrange(size)
    changed = bytearray(envelope)
    changed[at] ^= 1 << random.randrange(8)
    return bytes(changed)


def _target(envelope: bytes, what: TamperName) -> tuple[int, int]:
    """Return where the bytes are, and how many; the whole envelope if it is none."""
    whole = (0, len(envelope))
    try:
        parsed = Envelope.parse(envelope)
        blocks = parsed.authentication().blocks
    except WireError:
        return whole
    if what == "manifest":
        return envelope.rindex(parsed.manifest), len(parsed.manifest)
    if what == "signature" and blocks:
        return envelope.index(blocks[0]) + len(blocks[0]) - SIGNATURE_SIZE, SIGNATURE_SIZE
    return whole
