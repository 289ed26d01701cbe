"""Making a manifest: one image for one component, by the draft's download and install templates.

draft-ietf-suit-manifest-37, "Compatibility Check Template" and "Firmware Download Template". Nothing here
holds a key; ``sign`` appends the signatures.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_sdk.wire import cbor
from device_sdk.wire.cose import AuthenticBytes
from device_sdk.wire.errors import MalformedError
from device_sdk.wire.names import parse_channel_name
from device_sdk.wire.suit.digest import SHA256_SIZE, SUITDigest
from device_sdk.wire.suit.envelope import Envelope
from device_sdk.wire.suit.manifest import Manifest
from device_sdk.wire.suit.registry import (
    MANIFEST_VERSION,
    REPORTING_ALWAYS,
    REPORTING_FAILURE,
    Command,
    CommonMember,
    ManifestMember,
    Parameter,
    Text,
)

UUID_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseContent:
    """What an operator says about one image.

    Attributes:
        vendor_identifier: UUID, 16 bytes; ``target.vendor_identifier`` makes it of a domain.
        class_identifier: UUID, 16 bytes; ``target.class_identifier`` makes it of a name.
        component: 1..128 of ``[A-Za-z0-9._~:-]``; colons part the segments of the identifier.
        sequence_number: Higher than every earlier one for this component and class; UTC seconds will do.
        image_digest: SHA-256, 32 bytes.
        image_size: Bytes.
        uri: Where devices fetch the image: absolute, or relative to the gateway.
        device_identifier: UUID, 16 bytes, if only one device may install it.
        version: For people, up to 128 characters.
        description: For people, up to 1,024 characters.
    """

    vendor_identifier: bytes
    class_identifier: bytes
    component: str
    sequence_number: int
    image_digest: bytes
    image_size: int
    uri: str
    device_identifier: bytes | None = None
    version: str | None = None
    description: str | None = None


def author_envelope(content: ReleaseContent) -> bytes:
    """Return an unsigned SUIT envelope that says ``content``, tag 107, deterministic CBOR.

    Raises:
        MalformedError: ``content`` is out of its bounds, or would not be read as what it says.
        UnsupportedError: As ``Manifest.parse`` (a URI beginning with ``#``).
    """
    manifest = _encode_manifest(content)
    digest = SUITDigest.of_member(manifest)
    wrapper = cbor.encode([digest.encode()])
    _check_reads_back(content, manifest)
    return Envelope(wrapper, manifest, {}).serialize()


def _encode_manifest(content: ReleaseContent) -> bytes:
    identifier = tuple(segment.encode() for segment in parse_channel_name(content.component).split(":"))
    if len(content.image_digest) != SHA256_SIZE:
        raise MalformedError("an image digest is a SHA-256, 32 bytes")
    parameters: dict[int, object] = {
        Parameter.VENDOR_IDENTIFIER.value: content.vendor_identifier,
        Parameter.CLASS_IDENTIFIER.value: content.class_identifier,
        Parameter.IMAGE_DIGEST.value: SUITDigest(content.image_digest).encode(),
        Parameter.IMAGE_SIZE.value: content.image_size,
    }
    conditions = [Command.CONDITION_VENDOR_IDENTIFIER, Command.CONDITION_CLASS_IDENTIFIER]
    if content.device_identifier is not None:
        parameters[Parameter.DEVICE_IDENTIFIER.value] = content.device_identifier
        conditions.append(Command.CONDITION_DEVICE_IDENTIFIER)
    shared: list[object] = [Command.OVERRIDE_PARAMETERS.value, parameters]
    for condition in conditions:
        shared += [condition.value, REPORTING_ALWAYS]
    match = [Command.CONDITION_IMAGE_MATCH.value, REPORTING_ALWAYS]
    fetch = [
        *(Command.OVERRIDE_PARAMETERS.value, {Parameter.URI.value: content.uri}),
        *(Command.FETCH.value, REPORTING_FAILURE),
    ]
    common = {
        CommonMember.COMPONENTS.value: [list(identifier)],
        CommonMember.SHARED_SEQUENCE.value: cbor.encode(shared),
    }
    members: dict[int, object] = {
        ManifestMember.VERSION.value: MANIFEST_VERSION,
        ManifestMember.SEQUENCE_NUMBER.value: content.sequence_number,
        ManifestMember.COMMON.value: cbor.encode(common),
        ManifestMember.VALIDATE.value: cbor.encode(match),
        ManifestMember.INSTALL.value: cbor.encode([*fetch, *match]),
    }
    texts: dict[object, object] = {}
    if content.description is not None:
        texts[Text.UPDATE_DESCRIPTION.value] = content.description
    if content.version is not None:
        texts[identifier] = {Text.COMPONENT_VERSION.value: content.version}
    if texts:
        members[ManifestMember.TEXT.value] = cbor.encode({"en": texts})
    return cbor.encode(members)


def _check_reads_back(content: ReleaseContent, data: bytes) -> None:
    """Raise unless a device reads in ``data`` what the operator wrote in ``content``."""
    manifest = Manifest.parse(AuthenticBytes(data))  # our own bytes: nobody else vouches for them yet
    read = ReleaseContent(
        vendor_identifier=manifest.vendor_identifier,
        class_identifier=manifest.class_identifier,
        component=manifest.component,
        sequence_number=manifest.sequence_number,
        image_digest=manifest.image_digest,
        image_size=manifest.image_size,
        uri=manifest.uri or "",
        device_identifier=manifest.device_identifier,
        version=manifest.version,
        description=manifest.description,
    )
    if read != content:
        raise MalformedError("the manifest would not say what was asked for")
    assert manifest.is_installable, "the template fetches and matches"
