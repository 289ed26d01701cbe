"""The manifest: what the operator said is good, for whom, and where it is.

Takes only authenticated bytes. Whether this device is meant is ``target``; whether the sequence number is
high enough is the device's state, in ``device_sdk.update``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from device_sdk.wire import cbor
from device_sdk.wire.cose import AuthenticBytes
from device_sdk.wire.errors import MalformedError, UnsupportedError
from device_sdk.wire.limits import DETAIL_LEN_MAX, ENVELOPE_SIZE_MAX, INTEGER_MAX, VERSION_LEN_MAX
from device_sdk.wire.names import ChannelName, parse_channel_name
from device_sdk.wire.suit import commands
from device_sdk.wire.suit.digest import SUITDigest
from device_sdk.wire.suit.registry import (
    MANIFEST_VERSION,
    SEVERABLE,
    Command,
    CommonMember,
    ManifestMember,
    Parameter,
    Text,
)
from device_sdk.wire.suit.target import ComponentIdentifier, component_name

NO_SEVERED: Final[Mapping[int, bytes]] = MappingProxyType({})
SEGMENTS_MAX: Final = 8
_REFERENCE_URI_LEN_MAX: Final = 2048
_MEMBERS: Final = frozenset(ManifestMember)
_ONLY_URI: Final = frozenset({Parameter.URI})
_NOTHING: Final[frozenset[Parameter]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image for one component.

    Attributes:
        digest: SHA-256 of the bstr-wrapped manifest: what directives name it by.
        sequence_number: ``suit-manifest-sequence-number``; a recipient refuses a lower one.
        component_identifier: Its segments.
        component: The same as one name, 1..128 of names' alphabet.
        vendor_identifier: UUID, 16 bytes; ``suit-condition-vendor-identifier`` asks for it.
        class_identifier: UUID, 16 bytes; ``suit-condition-class-identifier`` asks for it.
        device_identifier: UUID, 16 bytes, if the manifest is for one device.
        image_digest: SHA-256, 32 bytes.
        image_size: Bytes.
        uri: Where the image is, absolute or relative to the gateway; None if nothing is fetched.
        reference_uri: Where the whole manifest is, if it says so.
        version: The component's version for people, from the text member.
        description: For people, from the text member.
        is_installable: It fetches an image and matches it afterwards. False too if the sequences that
            would say so were severed and are not here.
        is_invoked: It ends by running the image.
    """

    digest: bytes
    sequence_number: int
    component_identifier: ComponentIdentifier
    component: ChannelName
    vendor_identifier: bytes
    class_identifier: bytes
    device_identifier: bytes | None
    image_digest: bytes
    image_size: int
    uri: str | None
    reference_uri: str | None
    version: str | None
    description: str | None
    is_installable: bool
    is_invoked: bool

    @property
    def components(self) -> tuple[ComponentIdentifier, ...]:
        """Every component that the manifest names: this implementation supports one."""
        return (self.component_identifier,)

    @classmethod
    def parse(cls, data: AuthenticBytes, severed: Mapping[int, bytes] = NO_SEVERED) -> Manifest:
        """Return the manifest in ``data``.

        Args:
            data: SUIT_Manifest as CBOR, authenticated.
            severed: ``Envelope.severed``. Untrusted, and believed only where a digest in ``data`` says so.

        Raises:
            MalformedError: Not a manifest.
            DigestMismatchError: A severed member is not the one that was signed.
            UnsupportedError: It asks for what is not supported, or has no vendor, class, digest or size.
        """
        members = cbor.decode(data, size_max=ENVELOPE_SIZE_MAX)
        if not isinstance(members, dict):
            raise MalformedError("a manifest is a map")
        for key in members:
            if type(key) is not int or key not in _MEMBERS:
                raise UnsupportedError(f"manifest member {key!r}")
        if members.get(ManifestMember.VERSION) != MANIFEST_VERSION:
            raise UnsupportedError("another manifest version than 1")
        identifier, shared = _parse_common(members.get(ManifestMember.COMMON))
        sections = {key: _section(members, severed, key) for key in _SECTIONS}
        procedure = commands.Procedure()
        procedure.run(shared, allowed=commands.SHARED, settable=_SHARED_PARAMETERS)
        for key, (allowed, settable) in _SECTIONS.items():
            sequence = sections[key]
            if sequence is not None:
                procedure.run(sequence, allowed=allowed, settable=settable)
        text = _section(members, severed, ManifestMember.TEXT)
        version, description = _parse_text(text, identifier) if text is not None else (None, None)
        _check_asks(procedure)
        parameters = procedure.parameters
        return cls(
            digest=SUITDigest.of_member(data).value,
            sequence_number=_uint(members.get(ManifestMember.SEQUENCE_NUMBER)),
            component_identifier=identifier,
            component=parse_channel_name(component_name(identifier)),
            vendor_identifier=_bytes(parameters[Parameter.VENDOR_IDENTIFIER]),
            class_identifier=_bytes(parameters[Parameter.CLASS_IDENTIFIER]),
            device_identifier=(
                _bytes(parameters[Parameter.DEVICE_IDENTIFIER])
                if Parameter.DEVICE_IDENTIFIER in parameters
                else None
            ),
            image_digest=_bytes(parameters[Parameter.IMAGE_DIGEST]),
            image_size=_uint(parameters[Parameter.IMAGE_SIZE]),
            uri=_optional_text(parameters.get(Parameter.URI), _REFERENCE_URI_LEN_MAX),
            reference_uri=_optional_text(members.get(ManifestMember.REFERENCE_URI), _REFERENCE_URI_LEN_MAX),
            version=version,
            description=description,
            is_installable=procedure.is_fetched and procedure.is_matched,
            is_invoked=procedure.is_invoked,
        )


_SHARED_PARAMETERS: Final = frozenset(Parameter)
# In the order in which a recipient runs them: update procedure, then invocation procedure.
_SECTIONS: Final[Mapping[ManifestMember, tuple[frozenset[Command], frozenset[Parameter]]]] = {
    ManifestMember.PAYLOAD_FETCH: (commands.FETCHING, _ONLY_URI),
    ManifestMember.INSTALL: (commands.FETCHING, _ONLY_URI),
    ManifestMember.VALIDATE: (commands.VALIDATING, _NOTHING),
    ManifestMember.LOAD: (commands.LOADING, _NOTHING),
    ManifestMember.INVOKE: (commands.INVOKING, _NOTHING),
}


def _parse_common(data: object) -> tuple[ComponentIdentifier, bytes]:
    common = cbor.decode(_bytes(data), size_max=ENVELOPE_SIZE_MAX)
    if not isinstance(common, dict):
        raise MalformedError("common is a map")
    if common.keys() - set(CommonMember):
        raise UnsupportedError("common holds more than components and the shared sequence")
    shared = common.get(CommonMember.SHARED_SEQUENCE)
    if shared is None:
        raise UnsupportedError("no shared sequence, so nothing says for whom this is")
    match common.get(CommonMember.COMPONENTS):
        case [list(segments)]:
            pass
        case [_, _, *_]:
            raise UnsupportedError("more than one component")
        case _:
            raise MalformedError("components are an array of arrays")
    if not 1 <= len(segments) <= SEGMENTS_MAX or any(type(segment) is not bytes for segment in segments):
        raise MalformedError(f"a component identifier is 1..{SEGMENTS_MAX} byte strings")
    return tuple(segments), _bytes(shared)


def _section(members: Mapping[object, object], severed: Mapping[int, bytes], key: int) -> bytes | None:
    """Return a section's bytes, from the manifest or, if it was severed, from beside it.

    None if there is none, or if only its digest is here.
    """
    value = members.get(key)
    beside = severed.get(key)
    if isinstance(value, list) and key in SEVERABLE:
        digest = SUITDigest.from_item(value)
        return None if beside is None else digest.check_member(beside)
    if beside is not None:
        raise MalformedError(f"member {key} is beside the manifest, which does not say so")
    return None if value is None and key not in members else _bytes(value)


def _parse_text(data: bytes, identifier: ComponentIdentifier) -> tuple[str | None, str | None]:
    """Return the component's version and a description, in the first language that is there."""
    languages = cbor.decode(data, size_max=ENVELOPE_SIZE_MAX)
    if not isinstance(languages, dict) or not languages:
        raise MalformedError("text is a map of languages")
    version = description = None
    for language, texts in languages.items():
        if type(language) is not str or not isinstance(texts, dict):
            raise MalformedError("text is a map of languages")
        about = texts.get(identifier, {})
        if not isinstance(about, dict):
            raise MalformedError("a component's text is a map")
        version = version or _optional_text(about.get(Text.COMPONENT_VERSION), VERSION_LEN_MAX)
        # Nobody acts on a description: a long one is cut, not refused.
        for key in (Text.UPDATE_DESCRIPTION, Text.MANIFEST_DESCRIPTION):
            said = _optional_text(texts.get(key), ENVELOPE_SIZE_MAX)
            description = description or (said and said[:DETAIL_LEN_MAX])
    return version, description


def _check_asks(procedure: commands.Procedure) -> None:
    """Raise unless the manifest says for whom it is and what the image is."""
    asked = procedure.conditions
    if not {Command.CONDITION_VENDOR_IDENTIFIER, Command.CONDITION_CLASS_IDENTIFIER} <= asked:
        raise UnsupportedError("no condition on vendor and class")
    if (
        Parameter.DEVICE_IDENTIFIER in procedure.parameters
        and Command.CONDITION_DEVICE_IDENTIFIER not in asked
    ):
        raise UnsupportedError("a device identifier without its condition")
    if not {Parameter.IMAGE_DIGEST, Parameter.IMAGE_SIZE} <= procedure.parameters.keys():
        raise UnsupportedError("no image digest and size")


def _uint(value: object) -> int:
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise MalformedError("not an integer of 0..2^53-1")
    return value


def _bytes(value: object) -> bytes:
    if type(value) is not bytes:
        raise MalformedError("not a byte string")
    return value


def _optional_text(value: object, len_max: int) -> str | None:
    if value is not None and (type(value) is not str or len(value) > len_max):
        raise MalformedError(f"not a text of at most {len_max} characters")
    return value
