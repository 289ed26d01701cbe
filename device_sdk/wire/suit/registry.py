"""SUIT's numbers, those that are used here (draft-ietf-suit-manifest-37, "IANA Considerations")."""

from __future__ import annotations

import enum
from typing import Final

ENVELOPE_TAG: Final = 107
SHA256: Final = -16  # COSE algorithm of a SUIT_Digest
MANIFEST_VERSION: Final = 1


class EnvelopeMember(enum.IntEnum):
    """Keys of SUIT_Envelope; the last three are severable members of the manifest."""

    AUTHENTICATION_WRAPPER = 2
    MANIFEST = 3
    PAYLOAD_FETCH = 16
    INSTALL = 20
    TEXT = 23


class ManifestMember(enum.IntEnum):
    """Keys of SUIT_Manifest."""

    VERSION = 1
    SEQUENCE_NUMBER = 2
    COMMON = 3
    REFERENCE_URI = 4
    VALIDATE = 7
    LOAD = 8
    INVOKE = 9
    PAYLOAD_FETCH = 16
    INSTALL = 20
    TEXT = 23


class CommonMember(enum.IntEnum):
    """Keys of SUIT_Common."""

    COMPONENTS = 2
    SHARED_SEQUENCE = 4


class Command(enum.IntEnum):
    """Conditions and directives of a SUIT_Command_Sequence."""

    CONDITION_VENDOR_IDENTIFIER = 1
    CONDITION_CLASS_IDENTIFIER = 2
    CONDITION_IMAGE_MATCH = 3
    SET_COMPONENT_INDEX = 12
    OVERRIDE_PARAMETERS = 20
    FETCH = 21
    INVOKE = 23
    CONDITION_DEVICE_IDENTIFIER = 24


class Parameter(enum.IntEnum):
    """Keys of SUIT_Parameters."""

    VENDOR_IDENTIFIER = 1
    CLASS_IDENTIFIER = 2
    IMAGE_DIGEST = 3
    IMAGE_SIZE = 14
    URI = 21
    DEVICE_IDENTIFIER = 24


class Text(enum.IntEnum):
    """Keys of the text member: of a language's map, and of a component's map in it."""

    MANIFEST_DESCRIPTION = 1
    UPDATE_DESCRIPTION = 2
    COMPONENT_VERSION = 6


SEVERABLE: Final = frozenset({EnvelopeMember.PAYLOAD_FETCH, EnvelopeMember.INSTALL, EnvelopeMember.TEXT})
REPORTING_ALWAYS: Final = 15  # record success and failure, with system information: conditions
REPORTING_FAILURE: Final = 2  # record failure: directives
