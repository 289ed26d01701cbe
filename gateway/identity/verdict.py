"""What the operator's origin says about a credential, and the strict reading of it in its four forms.

The forms: a JSON document, response headers, an RFC 7662 answer, the claims of a JWT; each is shown in
docs/reference/identity.md. Keys that are not ours are ignored, since the origin's answer may serve others
too; what is ours must be right, because half a verdict would quietly take channels from a device. A malformed
answer is never a refusal (PROTOCOL §4.8): the caller turns ``MalformedError`` into "unknown".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from sys import intern
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, cast

from device_sdk.wire.errors import MalformedError
from device_sdk.wire.limits import ATTRIBUTE_LEN_MAX, ATTRIBUTES_MAX, CHANNELS_MAX, INTEGER_MAX
from device_sdk.wire.names import (
    ChannelName,
    DeviceId,
    FleetName,
    parse_channel_name,
    parse_device_id,
    parse_fleet_name,
)

ChannelKind = Literal["alert", "update"]
AttributeValue = str | int | float | bool

# The device's own channel, ~<device_id>, is the last of the channels a device may have.
GRANTS_MAX: Final = CHANNELS_MAX - 1

ANSWER_SIZE_BYTES_MAX: Final = 64 * 1024  # a verdict in JSON or a claims set; longer is malformed

_KINDS: Final = ("alert", "update")
_SHARED_LEN_MAX: Final = 4096
_SHARED: Final[dict[tuple[ChannelGrant, ...], tuple[ChannelGrant, ...]]] = {}
_NO_ATTRIBUTES: Final[Mapping[str, AttributeValue]] = MappingProxyType({})


class ChannelGrant(NamedTuple):
    """A channel that the device has by the origin's word."""

    name: ChannelName
    kind: ChannelKind


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who a credential is.

    Attributes:
        device_id: Unique in the fleet.
        fleet: The tenant.
        channels: At most ``GRANTS_MAX``, each name once, sorted by name; never the device's own channel.
        attributes: The ``origin.*`` attributes, authoritative.
        expires_at: End of the credential, ms UTC; None: the origin named none.
        judged_at: When the origin said so, ms UTC.
        cache_s: How long the origin lets it be reused; None: it does not say. This and what is around it are
            about the answer, not in it: equal verdicts may differ in them.
        seen: Of the feed of revocations, what this node had read when it asked.
        issued_at: When the credential was made, ms UTC; None: not said, or no longer of interest.
    """

    device_id: DeviceId
    fleet: FleetName
    channels: tuple[ChannelGrant, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=lambda: _NO_ATTRIBUTES)
    expires_at: int | None = None
    judged_at: int = field(default=0, compare=False)
    cache_s: float | None = field(default=None, compare=False)
    seen: int = field(default=0, compare=False)
    issued_at: int | None = field(default=None, compare=False)

    def grants_as(self, other: Verdict) -> bool:
        """Return whether both surely mean the same channels and attributes."""
        if isinstance(self, ResumedVerdict) or isinstance(other, ResumedVerdict):
            return False
        return (self.channels, self.attributes) == (other.channels, other.attributes)


@dataclass(frozen=True, slots=True)
class ResumedVerdict(Verdict):
    """What a ticket says: who, by the origin's word of ``judged_at``, and until when.

    What the device has, channels and attributes, is not in it: the database has what the origin said last,
    and that may be newer than the ticket.

    Attributes:
        enrolment_id: As which the device must still be enrolled; empty once that was looked up.
    """

    enrolment_id: bytes = b""


def parse_json(raw: bytes) -> object:
    """Return the document in ``raw``: JSON, UTF-8, no key twice in one object, no NaN or Infinity.

    Raises:
        MalformedError: Anything else, or longer than ``ANSWER_SIZE_BYTES_MAX``.
    """
    if len(raw) > ANSWER_SIZE_BYTES_MAX:
        raise MalformedError("the document is too long")
    try:
        return cast(object, json.loads(raw, object_pairs_hook=_object_once, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        raise MalformedError("not a JSON document") from error


def parse_verdict(document: object) -> Verdict:
    """Return the verdict in the JSON form: ``{device_id, fleet, channels, attributes, expires_at}``.

    ``channels`` is a list of ``{name, kind}``; it, ``attributes`` and ``expires_at`` (ms UTC) may be
    absent or null.

    Raises:
        MalformedError: Another type, name, kind or range than the form allows.
    """
    fields = _mapping(document, "the verdict")
    return _verdict(fields, device_key="device_id", expires_at=_milliseconds(fields.get("expires_at")))


def parse_claims(document: object) -> Verdict:
    """Return the verdict in an RFC 7662 answer or a JWT's claims.

    They are ``sub, fleet, channels, attributes, exp, iat``.

    ``exp`` is a NumericDate: seconds, perhaps with a fraction (RFC 7519 §2); so is ``iat``, or it
    is ignored. Whether the answer is active, or the token well signed and in its time, is the caller's
    business.

    Raises:
        MalformedError: As ``parse_verdict``.
    """
    fields = _mapping(document, "the claims")
    try:
        issued_at = _numeric_date(fields.get("iat"))
    except MalformedError:
        issued_at = None  # it is of use to us, and not needed
    verdict = _verdict(fields, device_key="sub", expires_at=_numeric_date(fields.get("exp")))
    return verdict if issued_at is None else replace(verdict, issued_at=issued_at)


def parse_verdict_headers(headers: Mapping[str, str]) -> Verdict:
    """Return the verdict in response headers.

    ``Fleetcast-Device`` and ``Fleetcast-Fleet`` are required; ``Fleetcast-Channels`` is a list such as
    ``alert:ops, update:firmware``; ``Fleetcast-Attributes`` a JSON object; ``Fleetcast-Expires`` ms UTC.

    Args:
        headers: Looked up with the spelling above; give a case-insensitive mapping. Repeated
            ``Fleetcast-Channels`` are for the caller to join with commas (RFC 9110 §5.3).

    Raises:
        MalformedError: As ``parse_verdict``.
    """
    attributes: object = None
    if "Fleetcast-Attributes" in headers:
        attributes = parse_json(headers["Fleetcast-Attributes"].encode())
    expires = headers.get("Fleetcast-Expires")
    if expires is not None and not (expires.isascii() and expires.isdigit() and len(expires) <= 16):
        raise MalformedError("Fleetcast-Expires is not milliseconds UTC")
    fields = {
        "device_id": headers.get("Fleetcast-Device"),
        "fleet": headers.get("Fleetcast-Fleet"),
        "channels": [
            _listed_channel(item) for item in headers.get("Fleetcast-Channels", "").split(",") if item.strip()
        ],
        "attributes": attributes,
    }
    return _verdict(
        fields,
        device_key="device_id",
        expires_at=_milliseconds(int(expires) if expires is not None else None),
    )


def _verdict(fields: Mapping[str, object], *, device_key: str, expires_at: int | None) -> Verdict:
    return Verdict(
        device_id=parse_device_id(fields.get(device_key)),
        fleet=FleetName(intern(parse_fleet_name(fields.get("fleet")))),
        channels=_channels(fields.get("channels")),
        attributes=_attributes(fields.get("attributes")),
        expires_at=expires_at,
    )


def _listed_channel(item: str) -> object:
    # A name may hold colons itself; a kind never does.
    kind, _, name = item.strip().partition(":")
    return {"kind": kind, "name": name}


def _channels(value: object) -> tuple[ChannelGrant, ...]:
    if value is None:
        return ()
    if type(value) is not list or len(value) > GRANTS_MAX:
        raise MalformedError(f"channels is not a list of at most {GRANTS_MAX}")
    kinds: dict[ChannelName, ChannelKind] = {}
    for item in value:
        fields = _mapping(item, "a channel")
        name, kind = parse_channel_name(fields.get("name")), fields.get("kind")
        if name.startswith("~"):
            raise MalformedError("only a device's own channel starts with ~, and every device has it")
        if kind not in _KINDS:
            raise MalformedError("a channel's kind is alert or update")
        if kinds.setdefault(name, kind) != kind:
            raise MalformedError("a channel is named with two kinds")
    grants = tuple(ChannelGrant(name, kinds[name]) for name in sorted(kinds))
    # The devices of a fleet mostly have the same channels: they share one tuple.
    if len(_SHARED) >= _SHARED_LEN_MAX:
        _SHARED.clear()
    return _SHARED.setdefault(grants, grants)


def _attributes(value: object) -> Mapping[str, AttributeValue]:
    if value is None:
        return _NO_ATTRIBUTES
    fields = _mapping(value, "attributes")
    if len(fields) > ATTRIBUTES_MAX:
        raise MalformedError(f"more than {ATTRIBUTES_MAX} attributes")
    if not fields:
        return _NO_ATTRIBUTES
    return {
        intern(parse_channel_name(name)): _attribute(attribute)
        for name, attribute in fields.items()
        if attribute is not None
    }


def _attribute(value: object) -> AttributeValue:
    match value:
        case bool():
            return value
        case str() if len(value) <= ATTRIBUTE_LEN_MAX and value.isprintable():
            return value
        case int() if abs(value) <= INTEGER_MAX:
            return value
        case float() if math.isfinite(value):
            return value
    raise MalformedError(
        f"an attribute is printable text of at most {ATTRIBUTE_LEN_MAX}, a finite number or a boolean"
    )


def _milliseconds(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise MalformedError("expires_at is not milliseconds UTC")
    return value


def _numeric_date(value: object) -> int | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= cast(float, value) <= INTEGER_MAX // 1000:
        raise MalformedError("exp is not a NumericDate")
    return int(cast(float, value) * 1000)


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if type(value) is not dict:
        raise MalformedError(f"{what} is not an object")
    return cast("dict[str, object]", value)


def _object_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
