"""The messages of ``fleetcast.v1`` and their two encodings; ``fleetcast-v1.cddl`` is the contract.

Each message is a frozen dataclass. ``SCHEMA`` says, in one table, its type number and its fields: the CBOR
key, the JSON name (the attribute's), the kind, and whether it may be absent. Encoding and decoding are loops
over that table, so the two encodings cannot drift apart.

CBOR: one deterministic map with integer keys, key 0 the type. JSON: the same fields by name, ``type`` the
message's name, bytes as unpadded base64url. Unknown keys are ignored and an unknown type is ``None``;
a known field that is malformed refuses the message. Signed objects travel as opaque byte strings: what is
inside them is ``device_sdk.wire.signed`` and ``device_sdk.wire.suit``.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from device_sdk.wire import cbor
from device_sdk.wire.errors import LimitError, MalformedError
from device_sdk.wire.limits import (
    ATTRIBUTE_LEN_MAX,
    ATTRIBUTES_MAX,
    BATCH_LEN_MAX,
    BATCH_SIZE_MAX,
    CHANNELS_MAX,
    CODE_LEN_MAX,
    COMPONENTS_MAX,
    DETAIL_LEN_MAX,
    ENVELOPE_SIZE_MAX,
    FRAME_SIZE_MAX,
    INTEGER_MAX,
    ROOTS_MAX,
    SIGNED_SIZE_MAX,
    TICKET_SIZE_MAX,
    UPLINK_SIZE_MAX,
    VERSION_LEN_MAX,
    WINDOW_MAX,
)
from device_sdk.wire.names import parse_channel_name, parse_device_id, parse_fleet_name

CBOR_SUBPROTOCOL: Final = "fleetcast.v1.cbor"
JSON_SUBPROTOCOL: Final = "fleetcast.v1.json"
PROTOCOL_VERSION: Final = 1

Attribute = str | int | float | bool


class Position(NamedTuple):
    """Everything up to and including ``offset`` of this ``epoch`` is on the device's stable storage."""

    epoch: int
    offset: int


class Installed(NamedTuple):
    """What a component runs now.

    ``sequence`` and ``digest`` are those of the SUIT manifest that put it there (0 and empty where the
    factory did); ``is_confirmed`` is false between the first boot into it and its confirmation.
    """

    sequence: int
    version: str
    digest: bytes
    is_confirmed: bool


@dataclass(frozen=True, slots=True)
class Hello:
    """Device → gateway, first on every connection."""

    protocol: int
    window: int
    boot_id: bytes
    positions: Mapping[str, Position] = field(default_factory=dict)
    installed: Mapping[str, Installed] = field(default_factory=dict)
    last_directive: int = 0
    root_version: int = 0
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    nonce: bytes | None = None
    ticket: bytes | None = None
    fleet: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    """Device → gateway: stored durably: cumulative positions, or one deployment.

    ``window`` replaces the hello's; 0 stops alerts until a later ack opens it again.
    """

    positions: Mapping[str, Position] = field(default_factory=dict)
    deployment: bytes | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Nack:
    """Device → gateway: this alert is refused for good, for the reason ``code``; the device has moved on."""

    channel: str
    epoch: int
    offset: int
    code: str


@dataclass(frozen=True, slots=True)
class Report:
    """Device → gateway: how a deployment goes; repeated until ``recorded``."""

    id: bytes
    deployment: bytes
    seq: int
    state: str
    progress: int | None = None
    code: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Uplink:
    """Device → gateway: a message for the operator's backend; repeated until ``recorded``.

    ``best_effort``: it is given to the backend once at most, and never repeated.
    """

    id: bytes
    content_type: str
    data: bytes
    best_effort: bool = False


@dataclass(frozen=True, slots=True)
class Welcome:
    """Gateway → device: the answer to ``hello``. ``server_time`` is a hint and never trusted."""

    session: bytes
    heads: Mapping[str, Position]
    heartbeat_s: int
    spread_s: int
    server_time: int
    ticket: bytes | None = None
    statement: bytes | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """Gateway → device: one message of a channel's log; ``body`` is a COSE_Sign1.

    ``attempt`` and ``waiting`` (how many more are behind it) come on a page or a redelivery only: what goes
    to live sessions is the same bytes for all.
    """

    channel: str
    epoch: int
    offset: int
    body: bytes
    attempt: int | None = None
    waiting: int | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """Gateway → device: install this. ``directive`` is a COSE_Sign1, ``manifest`` a SUIT envelope."""

    deployment: bytes
    directive: bytes
    manifest: bytes
    attempt: int | None = None
    waiting: int | None = None


@dataclass(frozen=True, slots=True)
class Advance:
    """Gateway → device: offsets ``first``..``last`` will not come; stored and acknowledged like an alert."""

    channel: str
    epoch: int
    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Gateway → device: history cannot be proved; adopt this position and go on from it."""

    channel: str
    epoch: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Gateway → device: stop this deployment if it is not yet installing."""

    deployment: bytes


@dataclass(frozen=True, slots=True)
class StatementMessage:
    """Gateway → device: a signed time and latest directive that echo the device's nonce."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Recorded:
    """Gateway → device: a report is committed, an uplink taken (or refused for good); repeat it no more."""

    id: bytes
    status: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """Gateway → device: channels added (each with the position it starts at) or removed while connected."""

    added: Mapping[str, Position] = field(default_factory=dict)
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Goaway:
    """Gateway → device: this connection will end; come back after ``retry_after_s``."""

    code: int
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class Error:
    """Either way: what ``ref`` names could not be accepted, and nothing was changed."""

    code: str
    ref: str | None = None


@dataclass(frozen=True, slots=True)
class Roots:
    """Gateway → device: root documents (COSE_Sign1) newer than the device's, oldest first."""

    roots: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Ticket:
    """Gateway → device: what to present when it comes back, in the place of what it had (PROTOCOL §5.4)."""

    ticket: bytes


FromDevice = Hello | Ack | Nack | Report | Uplink
FromGateway = (
    Welcome
    | Alert
    | Update
    | Advance
    | Lost
    | Cancel
    | StatementMessage
    | Recorded
    | Subscriptions
    | Goaway
    | Error
    | Roots
    | Ticket
)
Message = FromDevice | FromGateway
M = TypeVar("M")

# --- kinds of field -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """How one field is checked and carried.

    ``parse`` takes the CBOR form (tuples may come as lists) and returns the attribute's value or raises
    ``MalformedError``. ``to_json``/``from_json`` translate where JSON has no byte string.
    """

    parse: Callable[[object], Any]
    to_cbor: Callable[[Any], object] = lambda value: value
    to_json: Callable[[Any], object] = lambda value: value
    from_json: Callable[[object], object] = lambda value: value


class Field(NamedTuple):
    key: int
    name: str
    kind: Kind
    is_optional: bool = False


def encode_base64url(data: bytes) -> str:
    """Return ``data`` as unpadded base64url (RFC 4648 §5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


_BASE64URL = re.compile(r"[A-Za-z0-9_-]*\Z")


def decode_base64url(text: object) -> bytes:
    """Return the bytes of unpadded base64url; the one canonical spelling only.

    Raises:
        MalformedError: Not a string, not the alphabet, or unused bits are set.
    """
    if type(text) is not str or not _BASE64URL.match(text):
        raise MalformedError("not unpadded base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise MalformedError("not unpadded base64url") from error
    if encode_base64url(data) != text:
        raise MalformedError("not canonical base64url")
    return data


def _uint(value: object, maximum: int = INTEGER_MAX) -> int:
    if type(value) is not int or not 0 <= value <= maximum:
        raise MalformedError(f"not an integer in 0..{maximum}")
    return value


def _bounded_uint(maximum: int) -> Kind:
    return Kind(lambda value: _uint(value, maximum))


def _bytes(value: object, minimum: int, maximum: int) -> bytes:
    if type(value) is not bytes:
        raise MalformedError("not a byte string")
    if len(value) > maximum:
        raise LimitError("byte string", len(value), maximum)
    if len(value) < minimum:
        raise MalformedError(f"a byte string shorter than {minimum}")
    return value


def _bytes_kind(minimum: int, maximum: int) -> Kind:
    return Kind(
        lambda value: _bytes(value, minimum, maximum), to_json=encode_base64url, from_json=decode_base64url
    )


# No database and no UTF-8 carries a lone surrogate, which JSON can spell; PostgreSQL stores no U+0000.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _text(value: object, maximum: int) -> str:
    if type(value) is not str or len(value) > maximum or _UNSTORABLE.search(value):
        raise MalformedError(f"not text of at most {maximum} characters")
    return value


_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")


def _code(value: object) -> str:
    if type(value) is not str or not _CODE.match(value):
        raise MalformedError(f"not a code: 1..{CODE_LEN_MAX} of [a-z0-9_], a letter first")
    return value


_MEDIA_TYPE = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?\Z")  # it becomes a header of HTTP


def _content_type(value: object) -> str:
    if type(value) is not str or not _MEDIA_TYPE.match(value):
        raise MalformedError("not a content type: 1..128 printable characters of ASCII")
    return value


def _bool(value: object) -> bool:
    if type(value) is not bool:
        raise MalformedError("not a boolean")
    return value


def _list(value: object, what: str) -> list[object] | tuple[object, ...]:
    if type(value) is not list and type(value) is not tuple:
        raise MalformedError(f"{what} is not an array")
    return value


def _position(value: object) -> Position:
    pair = _list(value, "position")
    if len(pair) != 2:
        raise MalformedError("a position is [epoch, offset]")
    return Position(_uint(pair[0], 2**32 - 1), _uint(pair[1]))


def _map(value: object, what: str, maximum: int) -> Mapping[object, object]:
    if not isinstance(value, Mapping):
        raise MalformedError(f"{what} is not a map")
    if len(value) > maximum:
        raise LimitError(what, len(value), maximum)
    return value


def _positions(value: object) -> dict[str, Position]:
    entries = _map(value, "positions", CHANNELS_MAX)
    return {parse_channel_name(name): _position(position) for name, position in entries.items()}


def _installed(value: object) -> dict[str, Installed]:
    found: dict[str, Installed] = {}
    for component, entry in _map(value, "installed", COMPONENTS_MAX).items():
        parts = _list(entry, "installed")
        if len(parts) != 4 or type(parts[3]) is not bool:
            raise MalformedError("installed is {component: [sequence, version, digest, is_confirmed]}")
        found[parse_channel_name(component)] = Installed(
            _uint(parts[0]), _text(parts[1], VERSION_LEN_MAX), _bytes(parts[2], 0, 32), parts[3]
        )
    return found


def _installed_to_json(value: Mapping[str, Installed]) -> object:
    return {
        name: [i.sequence, i.version, encode_base64url(i.digest), i.is_confirmed] for name, i in value.items()
    }


def _installed_from_json(value: object) -> object:
    result: dict[object, object] = {}
    for name, entry in _map(value, "installed", COMPONENTS_MAX).items():
        parts = list(_list(entry, "installed"))
        if len(parts) == 4:
            parts[2] = decode_base64url(parts[2])
        result[name] = parts
    return result


def _attributes(value: object) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for name, attribute in _map(value, "attributes", ATTRIBUTES_MAX).items():
        if type(attribute) is str:
            _text(attribute, ATTRIBUTE_LEN_MAX)
        elif type(attribute) is int:
            if abs(attribute) > INTEGER_MAX:
                raise MalformedError("an attribute's integer is over 2^53-1")
        elif type(attribute) is float:
            if attribute != attribute or attribute in (float("inf"), float("-inf")):
                raise MalformedError("an attribute is not a finite number")
        elif type(attribute) is not bool:
            raise MalformedError("an attribute is text, a number or a boolean")
        assert isinstance(attribute, str | int | float)
        found[parse_channel_name(name)] = attribute
    return found


def _roots(value: object) -> tuple[bytes, ...]:
    items = _list(value, "roots")
    if len(items) > ROOTS_MAX:
        raise LimitError("roots", len(items), ROOTS_MAX)
    return tuple(_bytes(item, 1, SIGNED_SIZE_MAX) for item in items)


def _names(value: object) -> tuple[str, ...]:
    items = _list(value, "names")
    if len(items) > CHANNELS_MAX:
        raise LimitError("names", len(items), CHANNELS_MAX)
    return tuple(parse_channel_name(item) for item in items)


def _enum(*names: str) -> Kind:
    """Text of a known set; a code that a later version added reads as ``unknown``."""
    known = frozenset(names)

    def parse(value: object) -> str:
        code = _code(value)
        return code if code in known else "unknown"

    return Kind(parse)


_UINT = Kind(_uint)
_UINT32 = _bounded_uint(2**32 - 1)
_ID = _bytes_kind(16, 16)
_SIGNED = _bytes_kind(1, SIGNED_SIZE_MAX)
_TICKET = _bytes_kind(1, TICKET_SIZE_MAX)
_CHANNEL = Kind(parse_channel_name)
_CODE_KIND = Kind(_code)
_DETAIL = Kind(lambda value: _text(value, DETAIL_LEN_MAX))
_REF = Kind(lambda value: _text(value, 256))
_POSITIONS = Kind(
    _positions, to_cbor=lambda value: {name: list(p) for name, p in value.items()}, to_json=dict
)
_INSTALLED = Kind(
    _installed,
    to_cbor=lambda value: {name: list(i) for name, i in value.items()},
    to_json=_installed_to_json,
    from_json=_installed_from_json,
)
_ROOTS_KIND = Kind(
    _roots,
    to_cbor=list,
    to_json=lambda value: [encode_base64url(item) for item in value],
    from_json=lambda value: [decode_base64url(item) for item in _list(value, "roots")],
)
_NAMES = Kind(_names, to_cbor=list, to_json=list)

ADVANCE_REASONS: Final = ("expired", "superseded", "pruned", "dead_letter")
LOST_REASONS: Final = ("epoch_changed", "ahead_of_head")
RECORDED_STATUSES: Final = ("recorded", "duplicate", "refused")
REPORT_STATES: Final = (
    "received",
    "verified",
    "downloading",
    "installing",
    "rebooting",
    "committed",
    "rolled_back",
    "failed",
    "rejected",
    "cancelled",
)

SCHEMA: Final[Mapping[type[Any], tuple[int, str, tuple[Field, ...]]]] = {
    Hello: (
        1,
        "hello",
        (
            Field(1, "protocol", _bounded_uint(255)),
            Field(2, "window", _bounded_uint(WINDOW_MAX)),
            Field(3, "boot_id", _ID),
            Field(4, "positions", _POSITIONS, True),
            Field(5, "installed", _INSTALLED, True),
            Field(6, "last_directive", _UINT, True),
            Field(7, "root_version", _UINT, True),
            Field(8, "attributes", Kind(_attributes, to_cbor=dict, to_json=dict), True),
            Field(9, "nonce", _bytes_kind(16, 32), True),
            Field(10, "ticket", _TICKET, True),
            Field(11, "fleet", Kind(parse_fleet_name), True),
            Field(12, "device", Kind(parse_device_id), True),
        ),
    ),
    Ack: (
        2,
        "ack",
        (
            Field(1, "positions", _POSITIONS, True),
            Field(2, "deployment", _ID, True),
            Field(3, "window", _bounded_uint(WINDOW_MAX), True),
        ),
    ),
    Nack: (
        3,
        "nack",
        (
            Field(1, "channel", _CHANNEL),
            Field(2, "epoch", _UINT32),
            Field(3, "offset", _UINT),
            Field(4, "code", _CODE_KIND),
        ),
    ),
    Report: (
        4,
        "report",
        (
            Field(1, "id", _ID),
            Field(2, "deployment", _ID),
            Field(3, "seq", _UINT),
            Field(4, "state", _enum(*REPORT_STATES)),
            Field(5, "progress", _bounded_uint(100), True),
            Field(6, "code", _CODE_KIND, True),
            Field(7, "detail", _DETAIL, True),
        ),
    ),
    Uplink: (
        5,
        "uplink",
        (
            Field(1, "id", _ID),
            Field(2, "content_type", Kind(_content_type)),
            Field(3, "data", _bytes_kind(0, UPLINK_SIZE_MAX)),
            Field(4, "best_effort", Kind(_bool), True),
        ),
    ),
    Welcome: (
        8,
        "welcome",
        (
            Field(1, "session", _ID),
            Field(2, "heads", _POSITIONS),
            Field(3, "heartbeat_s", _UINT),
            Field(4, "spread_s", _UINT),
            Field(5, "server_time", _UINT),
            Field(6, "ticket", _TICKET, True),
            Field(7, "statement", _SIGNED, True),
        ),
    ),
    Alert: (
        9,
        "alert",
        (
            Field(1, "channel", _CHANNEL),
            Field(2, "epoch", _UINT32),
            Field(3, "offset", _UINT),
            Field(4, "body", _SIGNED),
            Field(5, "attempt", _UINT, True),
            Field(6, "waiting", _UINT, True),
        ),
    ),
    Update: (
        10,
        "update",
        (
            Field(1, "deployment", _ID),
            Field(2, "directive", _SIGNED),
            Field(3, "manifest", _bytes_kind(1, ENVELOPE_SIZE_MAX)),
            Field(5, "attempt", _UINT, True),
            Field(6, "waiting", _UINT, True),
        ),
    ),
    Advance: (
        11,
        "advance",
        (
            Field(1, "channel", _CHANNEL),
            Field(2, "epoch", _UINT32),
            Field(3, "first", _UINT),
            Field(4, "last", _UINT),
            Field(5, "reason", _enum(*ADVANCE_REASONS)),
        ),
    ),
    Lost: (
        12,
        "lost",
        (
            Field(1, "channel", _CHANNEL),
            Field(2, "epoch", _UINT32),
            Field(3, "offset", _UINT),
            Field(4, "reason", _enum(*LOST_REASONS)),
        ),
    ),
    Cancel: (13, "cancel", (Field(1, "deployment", _ID),)),
    StatementMessage: (14, "statement", (Field(1, "body", _SIGNED),)),
    Recorded: (
        15,
        "recorded",
        (
            Field(1, "id", _ID),
            Field(2, "status", _enum(*RECORDED_STATUSES)),
            Field(3, "code", _CODE_KIND, True),
        ),
    ),
    Subscriptions: (
        16,
        "subscriptions",
        (Field(1, "added", _POSITIONS, True), Field(2, "removed", _NAMES, True)),
    ),
    Goaway: (17, "goaway", (Field(1, "code", _bounded_uint(4999)), Field(2, "retry_after_s", _UINT))),
    Error: (18, "error", (Field(1, "code", _CODE_KIND), Field(2, "ref", _REF, True))),
    Roots: (19, "roots", (Field(1, "roots", _ROOTS_KIND),)),
    Ticket: (20, "ticket", (Field(1, "ticket", _TICKET),)),
}
_BY_NUMBER: Final = {number: cls for cls, (number, _, _) in SCHEMA.items()}
_BY_NAME: Final = {name: cls for cls, (_, name, _) in SCHEMA.items()}
_DEFAULTS: Final = {
    cls: {
        f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        for f in dataclasses.fields(cls)
        if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
    }
    for cls in SCHEMA
}


# --- encodings ------------------------------------------------------------------------------------------


def encode_cbor(message: Message) -> bytes:
    """Return ``message`` as deterministic CBOR (RFC 8949 §4.2.1); absent optional fields are left out."""
    number, _, fields = SCHEMA[type(message)]
    defaults = _DEFAULTS[type(message)]
    out: dict[int, object] = {0: number}
    for key, name, kind, is_optional in fields:
        value = getattr(message, name)
        if not (is_optional and value == defaults[name]):
            out[key] = kind.to_cbor(value)
    return cbor.encode(out)


def encode_batch_cbor(messages: Sequence[Message]) -> bytes:
    """Return a CBOR array of messages: the body of the HTTP transports."""
    count = len(messages)
    assert count <= BATCH_LEN_MAX, "the caller pages"
    head = (
        bytes([0x80 | count])
        if count < 24
        else bytes([0x98, count])
        if count < 256
        else b"\x99" + count.to_bytes(2, "big")
    )
    return b"".join([head, *map(encode_cbor, messages)])


def encode_batch_json(messages: Sequence[Message]) -> str:
    """Return a JSON array of messages: the body of the HTTP transports."""
    return "[" + ",".join(encode_json(message) for message in messages) + "]"


def decode_batch_cbor(data: bytes, *, size_max: int = BATCH_SIZE_MAX) -> list[Message]:
    """Return the messages of a CBOR array (or of a single map), leaving out types that are not known.

    Raises:
        MalformedError: As ``decode_cbor``, for any of them.
        LimitError: Over ``size_max`` bytes or ``BATCH_LEN_MAX`` messages.
    """
    decoded = cbor.decode(data, size_max=size_max, depth_max=5)
    items = decoded if isinstance(decoded, list | tuple) else [decoded]
    if len(items) > BATCH_LEN_MAX:
        raise LimitError("batch", len(items), BATCH_LEN_MAX)
    return [message for item in items if (message := _from_cbor_map(item)) is not None]


def decode_batch_json(text: str | bytes, *, size_max: int = BATCH_SIZE_MAX) -> list[Message]:
    """Return the messages of a JSON array (or of a single object); as ``decode_batch_cbor``."""
    decoded = _load_json(text, size_max)
    items = decoded if isinstance(decoded, list) else [decoded]
    if len(items) > BATCH_LEN_MAX:
        raise LimitError("batch", len(items), BATCH_LEN_MAX)
    return [message for item in items if (message := _from_json_object(item)) is not None]


def decode_cbor(data: bytes, *, size_max: int = FRAME_SIZE_MAX) -> Message | None:
    """Return the message in ``data``, or None for a type that this version does not know.

    Raises:
        MalformedError: Not deterministic CBOR of the contract, or a known field is not what it must be.
        LimitError: Larger than ``size_max`` or one of the bounds in ``limits``.
    """
    return _from_cbor_map(cbor.decode(data, size_max=size_max, depth_max=4))


def _from_cbor_map(decoded: object) -> Message | None:
    if not isinstance(decoded, Mapping):
        raise MalformedError("a message is a map")
    if any(type(key) is not int for key in decoded):
        raise MalformedError("a message's keys are integers")
    number = decoded.get(0)
    if type(number) is not int:
        raise MalformedError("a message's key 0 is its type")
    cls = _BY_NUMBER.get(number)
    if cls is None:
        return None
    values: dict[str, Any] = {}
    for key, name, kind, is_optional in SCHEMA[cls][2]:
        if key in decoded:
            values[name] = _parse(kind, decoded[key], name)
        elif not is_optional:
            raise MalformedError(f"{SCHEMA[cls][1]}.{name} is missing")
    return _checked(cls(**values))


def encode_json(message: Message) -> str:
    """Return ``message`` as one JSON object without white space."""
    _, type_name, fields = SCHEMA[type(message)]
    defaults = _DEFAULTS[type(message)]
    out: dict[str, object] = {"type": type_name}
    for _, name, kind, is_optional in fields:
        value = getattr(message, name)
        if not (is_optional and value == defaults[name]):
            out[name] = kind.to_json(value)
    return json.dumps(out, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def decode_json(text: str | bytes, *, size_max: int = FRAME_SIZE_MAX) -> Message | None:
    """Return the message in ``text``; as ``decode_cbor``, for the JSON encoding.

    Raises:
        MalformedError: Not JSON, a duplicate name, or a known field is not what it must be.
        LimitError: Larger than ``size_max`` or one of the bounds in ``limits``.
    """
    return _from_json_object(_load_json(text, size_max))


def _load_json(text: str | bytes, size_max: int) -> object:
    if len(text) > size_max:
        raise LimitError("message", len(text), size_max)
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedError("not JSON") from error


def _from_json_object(decoded: object) -> Message | None:
    if not isinstance(decoded, dict):
        raise MalformedError("a message is an object")
    type_name = decoded.get("type")
    if type(type_name) is not str:
        raise MalformedError("a message's type is its name")
    cls = _BY_NAME.get(type_name)
    if cls is None:
        return None
    values: dict[str, Any] = {}
    for _, name, kind, is_optional in SCHEMA[cls][2]:
        if name in decoded:
            values[name] = _parse(kind, kind.from_json(decoded[name]), name)
        elif not is_optional:
            raise MalformedError(f"{type_name}.{name} is missing")
    return _checked(cls(**values))


def checked(message: M) -> M:
    """Return ``message`` if it can be said: its fields are what the contract allows.

    Raises:
        MalformedError, LimitError: As ``decode_cbor``.
    """
    for _, name, kind, is_optional in SCHEMA[type(message)][2]:
        value = getattr(message, name)
        if not (is_optional and value == _DEFAULTS[type(message)][name]):
            _parse(kind, value, name)
    return message


def _parse(kind: Kind, value: object, name: str) -> Any:
    try:
        return kind.parse(value)
    except MalformedError as error:
        raise MalformedError(f"{name}: {error}") from None


def _checked(message: Any) -> Message:
    """Return ``message`` if its fields agree with each other."""
    if isinstance(message, Advance) and not 1 <= message.first <= message.last:
        raise MalformedError("advance: 1 <= first <= last")
    if (
        isinstance(message, Ack)
        and not message.positions
        and message.deployment is None
        and message.window is None
    ):
        raise MalformedError("ack: names neither positions nor a deployment nor a window")
    assert isinstance(message, Message)
    return message


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedError("a JSON object names a field twice")
    return found


def _refuse_constant(name: str) -> object:
    raise MalformedError(f"{name} is not JSON")
