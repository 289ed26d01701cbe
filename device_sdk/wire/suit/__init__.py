"""SUIT manifests: what the operator signs offline (``SPECIFICATION``).

``Envelope.parse`` reads the outer map, ``authenticate`` asks the keys, ``Manifest.parse`` accepts nothing
that was not authenticated, ``check_target`` asks whether this device is meant. Making and signing
envelopes is ``gateway.release``.

Supported is what one image for one component needs: shared sequence with vendor, class and device
conditions, fetch by URI, image match, invoke; manifest members severed or not; SHA-256; COSE_Sign1.
Everything else of the draft is refused as ``unsupported``, never skipped.
"""

from typing import Final

from device_sdk.wire.suit.digest import SUITDigest
from device_sdk.wire.suit.envelope import Envelope, authenticate
from device_sdk.wire.suit.manifest import Manifest
from device_sdk.wire.suit.target import check_target, component_name

SPECIFICATION: Final = "draft-ietf-suit-manifest-37"

__all__ = [
    "SPECIFICATION",
    "Envelope",
    "Manifest",
    "SUITDigest",
    "authenticate",
    "check_target",
    "component_name",
]
