"""For whom a manifest is: vendor, class, device and component.

The gateway asks the same before it offers a release to a device that cannot ask for itself (PROTOCOL
§7.7).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection
from typing import TYPE_CHECKING

from device_sdk.errors import IncompatibleDeviceError, WrongDeviceError

if TYPE_CHECKING:
    from device_sdk.wire.suit.manifest import Manifest

ComponentIdentifier = tuple[bytes, ...]

# Neither "." nor "..": a name may become a file's.
_PLAIN_SEGMENT = re.compile(rb"(?!0x|\.{1,2}\Z)[A-Za-z0-9._~-]+\Z")


def vendor_identifier(domain: str) -> bytes:
    """Return the vendor's UUID: UUID5 of its domain (draft-ietf-suit-manifest-37, "suit-parameter-…")."""
    return uuid.uuid5(uuid.NAMESPACE_DNS, domain).bytes


def class_identifier(vendor: bytes, name: str) -> bytes:
    """Return the UUID of the class ``name`` of devices of ``vendor``: UUID5 in the vendor's name space."""
    return uuid.uuid5(uuid.UUID(bytes=vendor), name).bytes


def component_name(identifier: ComponentIdentifier) -> str:
    """Return the segments as one name, joined by colons; no two identifiers share one.

    A segment of ``[A-Za-z0-9._~-]`` stands for itself, any other, and those that begin with ``0x`` or are
    one dot or two, as ``0x`` and its hexadecimal digits.
    """
    return ":".join(
        segment.decode() if _PLAIN_SEGMENT.match(segment) else f"0x{segment.hex()}" for segment in identifier
    )


def check_target(
    manifest: Manifest,
    *,
    vendor: bytes,
    device_class: bytes,
    device: bytes | None = None,
    components: Collection[str] | None = None,
) -> None:
    """Return if ``manifest`` is for this device.

    Args:
        manifest: Authenticated.
        vendor: The device's own vendor UUID, 16 bytes.
        device_class: The device's own class UUID, 16 bytes.
        device: The device's own UUID, if it has one.
        components: Names of the components it can install, if that is known.

    Raises:
        IncompatibleDeviceError: Another vendor, another class, or no such component.
        WrongDeviceError: For one device, and not this one.
    """
    if manifest.vendor_identifier != vendor:
        raise IncompatibleDeviceError("another vendor")
    if manifest.class_identifier != device_class:
        raise IncompatibleDeviceError("another class of devices")
    if manifest.device_identifier is not None and manifest.device_identifier != device:
        raise WrongDeviceError("the manifest is for another device")
    if components is not None and manifest.component not in components:
        raise IncompatibleDeviceError("no such component")
