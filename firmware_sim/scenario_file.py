"""The scenario file, TOML: read whole, every problem in it told at once. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from device_sdk.wire.errors import MalformedError
from device_sdk.wire.messages import Attribute
from device_sdk.wire.names import parse_channel_name, parse_device_id
from firmware_sim.dice import Range
from firmware_sim.errors import ScenarioError
from firmware_sim.scenario import (
    CLOCKS,
    DEVICES_MAX,
    ENCODINGS,
    STATES,
    TAMPERS,
    TRANSPORTS,
    BootFaults,
    ClockName,
    EncodingName,
    Expectation,
    FlashFaults,
    Group,
    LinkFaults,
    Scenario,
    TamperName,
    TransportName,
    sizes,
)


def parse_scenario(text: str, *, devices: int | None = None) -> Scenario:
    """Return the scenario in ``text``, TOML.

    Args:
        devices: Instead of the file's number.

    Raises:
        ScenarioError: It is not one.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError([f"not TOML: {error}"]) from error
    problems: list[str] = []
    top = _Table(document, "", problems)
    name = top.text("name", "scenario")
    found = Scenario(
        name=name,
        description=top.text("description", ""),
        seed=top.whole("seed", 1, 0, 2**63),
        devices=devices if devices is not None else top.whole("devices", 10, 1, DEVICES_MAX),
        duration_s=top.number("duration_s", 60.0, 0.1, 30 * 86_400),
        id_prefix=top.text("id_prefix", "sim-"),
        vendor=top.text("vendor", "acme.example"),
        device_class=top.text("class", "tc3"),
        component=top.text("component", "main"),
        groups=tuple(_group(table) for table in top.tables("group")),
    )
    top.known.add("devices")
    top.end()
    _check_names(found, problems)
    if not problems:
        sizes(found, problems)
    if problems:
        raise ScenarioError(problems)
    return found


class _Table:
    """One table of the file: values are taken out one by one, and what is left at the end is a problem."""

    def __init__(self, values: Mapping[str, Any], path: str, problems: list[str]) -> None:
        self._values = values
        self._path = path
        self._problems = problems
        self.known: set[str] = set()

    def has(self, key: str) -> bool:
        return key in self._values

    def problem(self, key: str, text: str) -> None:
        self._problems.append(f"{self._path}{key}: {text}")

    def text(self, key: str, default: str) -> str:
        value = self._take(key, default)
        if isinstance(value, str):
            return value
        self.problem(key, "a string")
        return default

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        value = self._take(key, default)
        if type(value) is int and low <= value <= high:
            return value
        self.problem(key, f"a whole number, {low}..{high}")
        return default

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._take(key, default)
        if type(value) in (int, float) and low <= value <= high:
            return float(value)
        self.problem(key, f"a number, {low:g}..{high:g}")
        return default

    def chance(self, key: str) -> float:
        return self.number(key, 0.0, 0, 1)

    def span(self, key: str, default: Range) -> Range:
        value = self._take(key, default)
        if type(value) in (int, float) and value >= 0:
            return (float(value), float(value))
        match value:
            case [int() | float() as low, int() | float() as high] if 0 <= low <= high:
                return (float(low), float(high))
        self.problem(key, "a number, or [lowest, highest], from 0")
        return default

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        value = self._take(key, default)
        if value in choices:
            return str(value)
        self.problem(key, f"one of {', '.join(choices)}")
        return default

    def weights(self, key: str, default: Mapping[str, int], choices: Sequence[str]) -> dict[str, int]:
        value = self._take(key, default)
        if isinstance(value, str):
            value = {value: 1}
        if isinstance(value, Mapping) and all(
            name in choices and type(weight) is int and 0 <= weight <= 1000 for name, weight in value.items()
        ):
            found = {name: weight for name, weight in value.items() if weight}
            if found:
                return found
        self.problem(key, f"one of {', '.join(choices)}, or whole numbers for some of them")
        return dict(default)

    def attributes(self, key: str) -> dict[str, Attribute]:
        value = self._take(key, {})
        if isinstance(value, Mapping) and all(isinstance(one, str | int | float) for one in value.values()):
            return dict(value)
        self.problem(key, "a table of strings, numbers and booleans")
        return {}

    def table(self, key: str) -> _Table:
        value = self._take(key, {})
        if not isinstance(value, Mapping):
            self.problem(key, "a table")
            value = {}
        return _Table(value, f"{self._path}{key}.", self._problems)

    def tables(self, key: str) -> list[_Table]:
        value = self._take(key, None)
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            return [
                _Table(one, f"{self._path}{key}[{number}].", self._problems)
                for number, one in enumerate(value, 1)
            ]
        self.problem(key, f"at least one [[{key}]]")
        return []

    def states(self, key: str) -> tuple[str, ...]:
        value = self._take(key, [])
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list) and all(one in STATES for one in value):
            return tuple(value)
        self.problem(key, f"one or some of {', '.join(STATES)}")
        return ()

    def end(self) -> None:
        for key in self._values.keys() - self.known:
            self.problem(key, "no such key")

    def _take(self, key: str, default: Any) -> Any:
        self.known.add(key)
        return self._values.get(key, default)


def _group(table: _Table) -> Group:
    default = Group(name="")
    if table.has("count") and table.has("share"):
        table.problem("share", "count or share, not both")
    group = Group(
        name=table.text("name", "devices"),
        count=table.whole("count", 0, 0, DEVICES_MAX) if table.has("count") else None,
        share=table.number("share", 1.0, 0, 1_000_000),
        transports=cast("dict[TransportName, int]", table.weights("transport", {"websocket": 1}, TRANSPORTS)),
        encodings=cast("dict[EncodingName, int]", table.weights("encoding", {"cbor": 1}, ENCODINGS)),
        attributes=table.attributes("attributes"),
        clock=cast("ClockName", table.choice("clock", default.clock, CLOCKS)),
        sequence=table.whole("sequence", 0, 0, 2**53 - 1),
        version=table.text("version", ""),
        start_within_s=table.number("start_within_s", default.start_within_s, 0, 86_400),
        link=_link(table.table("link")),
        flash=_flash(table.table("flash")),
        boot=_boot(table.table("boot")),
        expect=_expect(table.table("expect")),
    )
    table.end()
    return group


def _link(table: _Table) -> LinkFaults:
    default = LinkFaults()
    found = LinkFaults(
        delay_ms=table.span("delay_ms", default.delay_ms),
        cut=table.chance("cut"),
        drop=table.chance("drop"),
        duplicate=table.chance("duplicate"),
        reorder=table.chance("reorder"),
        refuse=table.chance("refuse"),
        silence_s=table.span("silence_s", default.silence_s),
        offline_s=table.span("offline_s", default.offline_s),
        download_cut=table.chance("download_cut"),
        chunk_delay_ms=table.span("chunk_delay_ms", default.chunk_delay_ms),
        tamper=cast("TamperName", table.choice("tamper", default.tamper, TAMPERS)),
    )
    table.end()
    return found


def _flash(table: _Table) -> FlashFaults:
    default = FlashFaults()
    found = FlashFaults(
        capacity_bytes=table.whole("capacity_bytes", default.capacity_bytes, 65_536, 2**40),
        power_cuts=table.whole("power_cuts", 0, 0, 1_000_000),
        power_cut_bytes=table.span("power_cut_bytes", default.power_cut_bytes),
        off_s=table.span("off_s", default.off_s),
        write_fails=table.chance("write_fails"),
    )
    table.end()
    return found


def _boot(table: _Table) -> BootFaults:
    found = BootFaults(
        boot_s=table.span("boot_s", BootFaults().boot_s),
        panic=table.chance("panic"),
        sick=table.chance("sick"),
    )
    table.end()
    return found


def _expect(table: _Table) -> Expectation:
    code = table.text("code", "")
    found = Expectation(
        states=table.states("state"),
        code=code or None,
        alerts_min=table.whole("alerts_min", 0, 0, 1_000_000_000),
    )
    table.end()
    return found


def _check_names(scenario: Scenario, problems: list[str]) -> None:
    try:
        parse_device_id(f"{scenario.id_prefix}{DEVICES_MAX}")
    except MalformedError as error:
        problems.append(f"id_prefix: {error}")
    try:
        parse_channel_name(scenario.component)
    except MalformedError:
        problems.append("component: 1..128 of [A-Za-z0-9._~:-]")
    names = [group.name for group in scenario.groups]
    problems += [
        f"group: {name!r} is there twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
