"""The seal, and the three objects that the gateway signs online; the root document has its own file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.errors import (
    ExpiredError,
    InstallByPassedError,
    MixAndMatchError,
    StatementReplayedError,
    WrongDeviceError,
)
from device_sdk.wire import cose
from device_sdk.wire.errors import (
    BadSignatureError,
    LimitError,
    MalformedError,
    UnknownKeyError,
    WireError,
)
from device_sdk.wire.keys import Algorithm, PrivateKey, Role
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from device_sdk.wire.signed import (
    AlertPayload,
    Directive,
    Statement,
    alert_payload,
    assemble_alert,
    external_aad,
    sign_alert,
    sign_directive,
    sign_statement,
    verify_alert,
    verify_directive,
    verify_statement,
)

FLEET, OTHER_FLEET = FleetName("acme"), FleetName("acme2")
DEVICE = DeviceId("d-1")
KEY = PrivateKey.from_seed(bytes(range(32)))
STRANGER = PrivateKey.from_seed(bytes(32))
KEYS = {KEY.kid: KEY.public}
NONCE = bytes(range(16))

ALERT = AlertPayload(
    fleet=FLEET,
    channel=ChannelName("alerts"),
    epoch=2**32 - 1,
    offset=7,
    id=bytes(range(16)),
    issued_at=1_800_000_000_000,
    expires_at=1_800_000_060_000,
    content_type="text/plain",
    data=b"frost at night",
    key="weather",
    original_id=bytes(16),
)
DIRECTIVE = Directive(
    fleet=FLEET,
    device=DEVICE,
    enrolment=bytes(16),
    deployment=bytes(range(16)),
    manifest_digest=bytes(32),
    sequence=1_800_000_001,
    issued_at=1_800_000_000_000,
    expires_at=1_800_003_600_000,
    install_by=1_800_604_800_000,
    component=ChannelName("firmware"),
)
STATEMENT = Statement(
    fleet=FLEET,
    device=DEVICE,
    nonce=NONCE,
    latest_directive=9,
    root_version=3,
    time=1_800_000_000_000,
    expires_at=1_800_000_060_000,
)


def signed_alert(alert: AlertPayload = ALERT, key: PrivateKey = KEY) -> bytes:
    payload = alert_payload(alert)
    signature = sign_alert(payload, key, alert.fleet)
    return assemble_alert(payload, signature, kid=key.kid, algorithm=key.algorithm)


def read_alert(data: bytes, keys: cose.Keys = KEYS, fleet: str = FLEET) -> AlertPayload:
    return verify_alert(data, keys, fleet=fleet, channel="alerts", epoch=2**32 - 1, offset=7)


def read_directive(data: bytes, keys: cose.Keys = KEYS, fleet: str = FLEET) -> Directive:
    return verify_directive(data, keys, fleet=fleet, device=DEVICE)


def read_statement(data: bytes, keys: cose.Keys = KEYS, fleet: str = FLEET) -> Statement:
    return verify_statement(data, keys, fleet=fleet, device=DEVICE, nonce=NONCE)


def sign_by_role(role: Role, payload: bytes, *, fleet: str = FLEET, key: PrivateKey = KEY) -> bytes:
    return cose.sign1(payload, key, external_aad=f"fleetcast.v1/{role.value}/{fleet}".encode())


Read = Callable[..., Any]
OBJECTS: dict[Role, tuple[Any, Callable[..., bytes], Read]] = {
    Role.ALERT: (ALERT, lambda value, key=KEY: signed_alert(value, key), read_alert),
    Role.DIRECTIVE: (DIRECTIVE, lambda value, key=KEY: sign_directive(value, key), read_directive),
    Role.STATEMENT: (STATEMENT, lambda value, key=KEY: sign_statement(value, key), read_statement),
}
every_object = pytest.mark.parametrize(("value", "sign", "read"), OBJECTS.values(), ids=OBJECTS.keys())


@every_object
class TestSeal:
    @pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ESP256])
    def test_what_is_signed_reads_back(self, value: Any, sign: Any, read: Read, algorithm: Algorithm) -> None:
        key = PrivateKey.generate(algorithm)
        assert read(sign(value, key), {key.kid: key.public}) == value

    def test_a_key_of_another_role_is_unknown(self, value: Any, sign: Any, read: Read) -> None:
        with pytest.raises(UnknownKeyError):
            read(sign(value, STRANGER))

    def test_another_fleet_is_a_bad_signature(self, value: Any, sign: Any, read: Read) -> None:
        with pytest.raises(BadSignatureError):
            read(sign(value), fleet=OTHER_FLEET)

    def test_every_bit_flipped_is_refused(self, value: Any, sign: Any, read: Read) -> None:
        data = sign(value)
        for index in range(len(data)):
            flipped = bytearray(data)
            flipped[index] ^= 1 << index % 8
            with pytest.raises(WireError):
                read(bytes(flipped))

    def test_one_payload_and_one_signature_have_one_form(self, value: Any, sign: Any, read: Read) -> None:
        data = sign(value)
        tag = cbor2.loads(data)
        protected, _, payload, signature = tag.value
        bare = data[1:]
        unprotected = cbor2.dumps(cbor2.CBORTag(18, [protected, {99: 0}, payload, signature]))
        for other in (bare, unprotected):
            with pytest.raises(MalformedError):
                read(other)

    def test_other_headers_are_refused_even_if_signed(self, value: Any, sign: Any, read: Read) -> None:
        role = next(role for role, entry in OBJECTS.items() if entry[2] is read)
        payload = cbor2.loads(sign(value)).value[2]
        for header in ({1: -19, 3: 0, 4: KEY.kid}, {1: -19}):
            protected = cbor2.dumps(header, canonical=True)
            signature = KEY.sign(cbor2.dumps(["Signature1", protected, external_aad(role, FLEET), payload]))
            with pytest.raises(MalformedError):
                read(cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature])), [KEY.public])

    def test_an_object_is_never_read_as_another(self, value: Any, sign: Any, read: Read) -> None:
        data = sign(value)
        for _, _, other_read in OBJECTS.values():
            if other_read is not read:
                with pytest.raises(BadSignatureError):
                    other_read(data)

    def test_a_payload_that_names_another_fleet_is_malformed(self, value: Any, sign: Any, read: Read) -> None:
        role = next(role for role, entry in OBJECTS.items() if entry[2] is read)
        payload = cbor2.loads(sign(dataclasses.replace(value, fleet=OTHER_FLEET))).value[2]
        with pytest.raises(MalformedError):
            read(sign_by_role(role, payload))

    def test_unknown_keys_are_ignored(self, value: Any, sign: Any, read: Read) -> None:
        role = next(role for role, entry in OBJECTS.items() if entry[2] is read)
        fields = cbor2.loads(cbor2.loads(sign(value)).value[2])
        payload = cbor2.dumps({**fields, 23: ["later"]}, canonical=True)
        assert read(sign_by_role(role, payload)) == value


def test_external_aad_is_that_of_the_contract() -> None:
    assert external_aad(Role.ALERT, "acme") == b"fleetcast.v1/alert/acme"
    assert external_aad(Role.ROOT, "acme") == b"fleetcast.v1/root/acme"


def fields_of(role: Role) -> dict[int, Any]:
    value, sign, _ = OBJECTS[role]
    fields = cbor2.loads(cbor2.loads(sign(value)).value[2])
    assert isinstance(fields, dict)
    return fields


def test_the_integer_keys_are_those_of_the_reference() -> None:
    assert fields_of(Role.ALERT) == {
        1: "acme", 2: "alerts", 3: 2**32 - 1, 4: 7, 5: bytes(range(16)), 6: 1_800_000_000_000,
        7: 1_800_000_060_000, 8: "text/plain", 9: b"frost at night", 10: "weather", 11: bytes(16),
    }  # fmt: skip
    assert fields_of(Role.DIRECTIVE) == {
        1: "acme", 2: "d-1", 3: bytes(16), 4: bytes(range(16)), 5: bytes(32), 6: 1_800_000_001,
        7: 1_800_000_000_000, 8: 1_800_003_600_000, 9: 1_800_604_800_000, 10: "firmware",
    }  # fmt: skip
    assert fields_of(Role.STATEMENT) == {
        1: "acme", 2: "d-1", 3: NONCE, 4: 9, 5: 3, 6: 1_800_000_000_000, 7: 1_800_000_060_000,
    }  # fmt: skip


REQUIRED = {Role.ALERT: (1, 2, 3, 4, 5, 6, 8, 9), Role.DIRECTIVE: range(1, 11), Role.STATEMENT: range(1, 8)}


@pytest.mark.parametrize(("role", "key"), [(role, key) for role, keys in REQUIRED.items() for key in keys])
def test_a_missing_field_is_malformed(role: Role, key: int) -> None:
    fields = fields_of(role)
    del fields[key]
    with pytest.raises(MalformedError):
        OBJECTS[role][2](sign_by_role(role, cbor2.dumps(fields, canonical=True)))


@pytest.mark.parametrize(("role", "key"), [(role, key) for role in OBJECTS for key in fields_of(role)])
@pytest.mark.parametrize("wrong", [None, True, -1, 2**53, 1.5, [], {}], ids=repr)
def test_a_field_of_another_type_or_range_is_malformed(role: Role, key: int, wrong: object) -> None:
    fields = {**fields_of(role), key: wrong}
    with pytest.raises(MalformedError):
        OBJECTS[role][2](sign_by_role(role, cbor2.dumps(fields, canonical=True)))


@pytest.mark.parametrize(
    ("role", "key", "wrong", "error"),
    [
        (Role.ALERT, 3, 2**32, MalformedError),
        (Role.ALERT, 4, 0, MalformedError),
        (Role.ALERT, 5, bytes(15), MalformedError),
        (Role.ALERT, 5, bytes(17), LimitError),
        (Role.ALERT, 8, "", MalformedError),
        (Role.ALERT, 8, "x" * 129, LimitError),
        (Role.ALERT, 9, bytes(64 * 1024 + 1), LimitError),
        (Role.ALERT, 10, "x" * 129, LimitError),
        (Role.ALERT, 2, "no spaces", MalformedError),
        (Role.DIRECTIVE, 2, "~d-1", MalformedError),
        (Role.DIRECTIVE, 5, bytes(31), MalformedError),
        (Role.DIRECTIVE, 8, 1_800_000_000_000, MalformedError),
        (Role.DIRECTIVE, 10, "../etc/passwd", MalformedError),
        (Role.STATEMENT, 3, bytes(15), MalformedError),
        (Role.STATEMENT, 3, bytes(33), LimitError),
        (Role.STATEMENT, 7, 1_800_000_000_000, MalformedError),
    ],
)
def test_a_field_out_of_its_bounds_is_refused(
    role: Role, key: int, wrong: object, error: type[WireError]
) -> None:
    fields = {**fields_of(role), key: wrong}
    with pytest.raises(error):
        OBJECTS[role][2](sign_by_role(role, cbor2.dumps(fields, canonical=True)))


@pytest.mark.parametrize("payload", [b"", b"\x80", b"\xa1\x61\x61\x00", b"\xa1\x18\x01\x00", b"\xbf\xff"])
@pytest.mark.parametrize("role", OBJECTS)
def test_a_signed_payload_that_is_no_map_of_integer_keys_is_malformed(role: Role, payload: bytes) -> None:
    with pytest.raises(MalformedError):
        OBJECTS[role][2](sign_by_role(role, payload))


class TestAlert:
    @pytest.mark.parametrize(
        ("channel", "epoch", "offset"),
        [("other", 2**32 - 1, 7), ("alerts", 1, 7), ("alerts", 2**32 - 1, 8)],
        ids=["channel", "epoch", "offset"],
    )
    def test_a_good_alert_moved_to_another_position_is_refused(
        self, channel: str, epoch: int, offset: int
    ) -> None:
        with pytest.raises(MixAndMatchError):
            verify_alert(signed_alert(), KEYS, fleet=FLEET, channel=channel, epoch=epoch, offset=offset)

    def test_optional_fields_may_be_left_out(self) -> None:
        alert = dataclasses.replace(ALERT, expires_at=None, key=None, original_id=None)
        assert cbor2.loads(alert_payload(alert)).keys() == set(REQUIRED[Role.ALERT])
        assert read_alert(signed_alert(alert)) == alert

    def test_data_of_the_largest_size_travels(self) -> None:
        alert = dataclasses.replace(ALERT, data=bytes(64 * 1024))
        assert read_alert(signed_alert(alert)).data == alert.data

    def test_signing_anew_after_a_rotation_keeps_the_payload(self) -> None:
        payload = alert_payload(ALERT)
        new = PrivateKey.generate(Algorithm.ESP256)
        data = assemble_alert(payload, sign_alert(payload, new, FLEET), kid=new.kid, algorithm=new.algorithm)
        assert read_alert(data, {new.kid: new.public}) == ALERT
        with pytest.raises(UnknownKeyError):
            read_alert(data)

    def test_expiry_is_exclusive(self) -> None:
        assert ALERT.expires_at is not None
        ALERT.check_fresh(ALERT.expires_at - 1)
        with pytest.raises(ExpiredError):
            ALERT.check_fresh(ALERT.expires_at)
        dataclasses.replace(ALERT, expires_at=None).check_fresh(2**53)


class TestDirective:
    def test_another_devices_directive_is_refused(self) -> None:
        with pytest.raises(WrongDeviceError):
            verify_directive(sign_directive(DIRECTIVE, KEY), KEYS, fleet=FLEET, device="d-2")

    def test_its_digest_is_of_the_signed_payload(self) -> None:
        data = sign_directive(DIRECTIVE, KEY)
        assert read_directive(data).digest == hashlib.sha256(cbor2.loads(data).value[2]).digest()

    def test_its_digest_does_not_depend_on_the_signature(self) -> None:
        key = PrivateKey.generate(Algorithm.ESP256)  # signs anew with other random bits
        first, second = sign_directive(DIRECTIVE, key), sign_directive(DIRECTIVE, key)
        assert first != second
        keys = {key.kid: key.public}
        assert read_directive(first, keys).digest == read_directive(second, keys).digest

    def test_windows_are_exclusive_at_their_end(self) -> None:
        DIRECTIVE.check_fresh(DIRECTIVE.expires_at - 1)
        DIRECTIVE.check_install_by(DIRECTIVE.install_by - 1)
        with pytest.raises(ExpiredError):
            DIRECTIVE.check_fresh(DIRECTIVE.expires_at)
        with pytest.raises(InstallByPassedError):
            DIRECTIVE.check_install_by(DIRECTIVE.install_by)

    def test_another_manifest_is_mix_and_match(self) -> None:
        DIRECTIVE.check_manifest(digest=bytes(32), component="firmware")
        with pytest.raises(MixAndMatchError):
            DIRECTIVE.check_manifest(digest=b"\x01" + bytes(31), component="firmware")
        with pytest.raises(MixAndMatchError):
            DIRECTIVE.check_manifest(digest=bytes(32), component="bootloader")


class TestStatement:
    def test_another_devices_statement_is_refused(self) -> None:
        data = sign_statement(STATEMENT, KEY)
        with pytest.raises(WrongDeviceError):
            verify_statement(data, KEYS, fleet=FLEET, device="d-2", nonce=NONCE)

    def test_a_statement_for_another_nonce_is_a_replay(self) -> None:
        data = sign_statement(STATEMENT, KEY)
        with pytest.raises(StatementReplayedError) as caught:
            verify_statement(data, KEYS, fleet=FLEET, device=DEVICE, nonce=bytes(16))
        assert caught.value.code == "statement_replayed"

    def test_expiry_is_exclusive(self) -> None:
        STATEMENT.check_fresh(STATEMENT.expires_at - 1)
        with pytest.raises(ExpiredError):
            STATEMENT.check_fresh(STATEMENT.expires_at)


@pytest.mark.parametrize("role", OBJECTS)
@given(data=st.data())
def test_whatever_a_signer_signs_raises_nothing_but_wire_errors(role: Role, data: st.DataObject) -> None:
    item = st.none() | st.integers(-5, 2**60) | st.binary(max_size=33) | st.text(max_size=5)
    mutated = data.draw(st.dictionaries(st.integers(1, 12), item | st.lists(item, max_size=2), max_size=3))
    payload = cbor2.dumps({**fields_of(role), **mutated}, canonical=True)
    with contextlib.suppress(WireError, MixAndMatchError, WrongDeviceError, StatementReplayedError):
        OBJECTS[role][2](sign_by_role(role, payload))


def test_the_codes_of_refusals_are_those_of_the_contract() -> None:
    assert (ExpiredError.code, WrongDeviceError.code, MixAndMatchError.code) == (
        "expired",
        "wrong_device",
        "mix_and_match",
    )
