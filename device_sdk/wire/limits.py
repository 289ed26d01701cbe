"""How large things on the wire may be. Part of the contract: both ends refuse what is larger.

docs/reference/limits.md is the same table for people.
"""

from __future__ import annotations

from typing import Final

FRAME_SIZE_MAX: Final = 256 * 1024  # one WebSocket message, either way, bytes
HELLO_SIZE_MAX: Final = 16 * 1024
ALERT_SIZE_MAX: Final = 64 * 1024  # an alert's data, before signing
ENVELOPE_SIZE_MAX: Final = 128 * 1024  # a SUIT envelope
SIGNED_SIZE_MAX: Final = 80 * 1024  # any COSE_Sign1 of ours: an alert's data and its headers
UPLINK_SIZE_MAX: Final = 64 * 1024  # an uplink's data
TICKET_SIZE_MAX: Final = 2048
CHANNELS_MAX: Final = 64  # channels of one device
COMPONENTS_MAX: Final = 32  # installed components a hello names
ATTRIBUTES_MAX: Final = 64  # reported attributes
ATTRIBUTE_LEN_MAX: Final = 1024  # characters of one attribute's text
CODE_LEN_MAX: Final = 64  # a stable code
DETAIL_LEN_MAX: Final = 1024  # a report's free text
VERSION_LEN_MAX: Final = 128
ROOTS_MAX: Final = 32  # root documents in one message
INTEGER_MAX: Final = 2**53 - 1  # what a JSON number carries exactly
WINDOW_MAX: Final = 1024  # unacknowledged alerts a device may ask for
BATCH_LEN_MAX: Final = 300  # messages in one HTTP body, either way
BATCH_SIZE_MAX: Final = 1024 * 1024 + FRAME_SIZE_MAX  # a page is at most 1 MiB, then one more message
