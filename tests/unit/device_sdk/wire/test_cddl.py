"""The CDDL and ``messages.SCHEMA`` are one contract, written twice: here they are held against each other."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import pytest

from device_sdk.wire import limits
from device_sdk.wire.errors import WireError
from device_sdk.wire.messages import (
    ADVANCE_REASONS,
    LOST_REASONS,
    RECORDED_STATUSES,
    REPORT_STATES,
    SCHEMA,
    FromDevice,
    FromGateway,
)

CDDL = files("device_sdk.wire").joinpath("fleetcast-v1.cddl").read_text()
_MESSAGE = re.compile(r'^([a-z]+) = \{\n  0 => (\d+), +; type "([a-z]+)"[^\n]*\n(.*?)^\}', re.M | re.S)
_FIELD = re.compile(r"^  (\? )?(\d+) => ([a-z0-9-]+), +; ([a-z_]+): \S")
MESSAGES = {match[3]: match for match in _MESSAGE.finditer(CDDL)}

_ID = bytes(16)
_SIGNED = [b"\x00", bytes(limits.SIGNED_SIZE_MAX)], [b"", bytes(limits.SIGNED_SIZE_MAX + 1), "x", 1]
_CODES = ["x", "a_b9", "x" * 64]
_NO_CODES = ["", "9x", "_x", "X", "x" * 65, "x-y", b"x", None]
# For each type of the CDDL that a field has: values that it holds, and values just outside of it.
SAMPLES: dict[str, tuple[list[object], list[object]]] = {
    "uint8": ([0, 255], [-1, 256, "1", 1.0, True, None]),
    "uint32": ([0, 2**32 - 1], [-1, 2**32, "1", 1.0, True]),
    "uint53": ([0, 2**53 - 1], [-1, 2**53, "1", 1.0, True]),
    "percent": ([0, 100], [-1, 101, 1.0, True]),
    "window": ([0, limits.WINDOW_MAX], [-1, limits.WINDOW_MAX + 1, True]),
    "close-code": ([0, 4999], [-1, 5000]),
    "id": ([_ID], [_ID[1:], _ID + b"x", "0" * 16]),
    "nonce": ([bytes(16), bytes(32)], [bytes(15), bytes(33)]),
    "ticket-data": ([b"x", bytes(limits.TICKET_SIZE_MAX)], [b"", bytes(limits.TICKET_SIZE_MAX + 1), "x"]),
    "uplink-data": ([b"", bytes(limits.UPLINK_SIZE_MAX)], [bytes(limits.UPLINK_SIZE_MAX + 1), "x"]),
    "content-type": (
        ["a", "text/plain; charset=utf-8", "x" * 128],
        ["", " a", "a ", "a\r\nb: c", "a\n", "é", "x" * 129, b"a"],
    ),
    "bool": ([True, False], [0, 1, "true", None]),
    "signed": _SIGNED,
    "envelope": ([b"x", bytes(limits.ENVELOPE_SIZE_MAX)], [b"", bytes(limits.ENVELOPE_SIZE_MAX + 1)]),
    "name": (["a", "~a", "A9._~:-", "x" * 128], ["", "x" * 129, "a b", "ä", "a\n", b"a", 1]),
    "fleet-name": (["a", "a~b", "x" * 128], ["", "~a", "x" * 129, "a/b"]),
    "device-id": (["a", "a~b", "x" * 127], ["", "~a", "x" * 128, "a/b"]),
    "code": (list(_CODES), list(_NO_CODES)),
    "detail": (["", "é" * 1024], ["x" * 1025, "\0", b"x", 1]),
    "ref": (["", "é" * 256], ["x" * 257, b"x"]),
    "positions": (
        [{}, {"ops": [7, 12]}, {f"c{n}": (0, n) for n in range(limits.CHANNELS_MAX)}],
        [[], {"ops": 7}, {"ops": [7]}, {"o s": [7, 1]}, {f"c{n}": [0, n] for n in range(65)}],
    ),
    "names": ([[], ["ops", "~a"], ["x"] * 64], [["x"] * 65, "ops", [1], ["o s"]]),
    "root-list": ([[], [b"x"] * limits.ROOTS_MAX], [[b"x"] * (limits.ROOTS_MAX + 1), [b""], b"x", ["x"]]),
    "installed": (
        [{}, {"main": [0, "", b"", False]}, {"main": [2**53 - 1, "v" * 128, bytes(32), True]}],
        [
            {"main": [0, "", b""]},
            {"main": [0, "", b"", 0]},
            {"main": [0, "v" * 129, b"", True]},
            {"main": [0, "", bytes(33), True]},
            {f"c{n}": [0, "", b"", True] for n in range(33)},
        ],
    ),
    "attributes": (
        [{}, {"a": "x" * 1024, "b": -(2**53 - 1), "c": 0.5, "d": False}],
        [
            {"a": "x" * 1025},
            {"a": 2**53},
            {"a": float("nan")},
            {"a": float("inf")},
            {"a": None},
            {"a": []},
            {"a b": 1},
            {f"a{n}": 1 for n in range(65)},
        ],
    ),
    "report-state": (list(_CODES), list(_NO_CODES)),
    "advance-reason": (list(_CODES), list(_NO_CODES)),
    "lost-reason": (list(_CODES), list(_NO_CODES)),
    "recorded-status": (list(_CODES), list(_NO_CODES)),
}
SETS = {
    "report-state": REPORT_STATES,
    "advance-reason": ADVANCE_REASONS,
    "lost-reason": LOST_REASONS,
    "recorded-status": RECORDED_STATUSES,
}


def fields_of(name: str) -> list[tuple[int, str, str, bool]]:
    """Return (key, type, JSON name, is_optional) of each field of a message, as the CDDL has them."""
    found = []
    for line in MESSAGES[name][4].splitlines():
        match = _FIELD.match(line)
        assert match, f"{name}: a line of another form: {line}"
        found.append((int(match[2]), match[3], match[4], match[1] is not None))
    return found


def alternatives(rule: str) -> set[str]:
    match = re.search(rf"^{rule} = (.*?)(?=\n\S|\n\n)", CDDL, re.M | re.S)
    assert match, rule
    return {part.strip().strip('"') for part in match[1].split("/")}


def test_the_same_messages_stand_in_both() -> None:
    assert {(name, int(match[2])) for name, match in MESSAGES.items()} == {
        (name, number) for number, name, _ in SCHEMA.values()
    }
    assert all(match[1] == name for name, match in MESSAGES.items())


@pytest.mark.parametrize(
    ("rule", "union"), [("message-to-gateway", FromDevice), ("message-to-device", FromGateway)]
)
def test_each_direction_names_its_messages(rule: str, union: Any) -> None:
    ours = {SCHEMA[cls][1] for cls in union.__args__}
    assert alternatives(rule) == ours | {"error"}  # error goes either way


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_the_fields_of_a_message_are_the_same(name: str) -> None:
    schema = next(fields for _, n, fields in SCHEMA.values() if n == name)
    assert [(key, field, is_optional) for key, _, field, is_optional in fields_of(name)] == [
        (field.key, field.name, field.is_optional) for field in schema
    ]


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_the_fields_of_a_message_take_what_the_cddl_says(name: str) -> None:
    schema = {field.key: field.kind for _, n, fields in SCHEMA.values() if n == name for field in fields}
    for key, kind, field, _ in fields_of(name):
        accepted, refused = SAMPLES[kind]
        for value in accepted:
            schema[key].parse(value)
        for value in refused:
            with pytest.raises(WireError):
                assert schema[key].parse(value) is None, f"{name}.{field}"


@pytest.mark.parametrize("rule", sorted(SETS))
def test_a_closed_set_has_the_same_members_and_room_for_more(rule: str) -> None:
    assert alternatives(rule) == {*SETS[rule], "code"}


@pytest.mark.parametrize(
    ("rule", "maximum"),
    [
        ("signed = bytes .size (1..{})", limits.SIGNED_SIZE_MAX),
        ("envelope = bytes .size (1..{})", limits.ENVELOPE_SIZE_MAX),
        ("ticket-data = bytes .size (1..{})", limits.TICKET_SIZE_MAX),
        ("uplink-data = bytes .size (0..{})", limits.UPLINK_SIZE_MAX),
        ("window = 0..{}", limits.WINDOW_MAX),
        ("uint53 = 0..{}", limits.INTEGER_MAX),
        ("positions = {{0*{} name", limits.CHANNELS_MAX),
        ("installed = {{0*{} name", limits.COMPONENTS_MAX),
        ("attributes = {{0*{} name", limits.ATTRIBUTES_MAX),
        ("root-list = [0*{} signed", limits.ROOTS_MAX),
        ("batch = [0*{} message", limits.BATCH_LEN_MAX),
        ("=> bytes .size (0..{}),  ", limits.ALERT_SIZE_MAX),
    ],
)
def test_the_bounds_are_those_of_the_limits(rule: str, maximum: int) -> None:
    assert rule.format(maximum) in CDDL


def test_integers_of_a_message_fit_one_byte() -> None:
    for number, _, fields in SCHEMA.values():
        assert 0 < number < 24
        assert all(0 < field.key < 24 for field in fields)
        assert len({field.key for field in fields}) == len(fields)
