"""The scenario file, TOML: read whole, every problem in it told at once. Pure.

docs/reference/simulator.md has each key; ``known_keys`` is what it is held against.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from device_sdk.wire.errors import MalformedError
from device_sdk.wire.messages import Attribute
from device_sdk.wire.names import parse_channel_name, parse_device_id
from firmware_sim.dice import Range
from firmware_sim.errors import ScenarioError
from firmware_sim.scenario import (
    ATTACKS,
    CLOCKS,
    DEVICES_MAX,
    DOWNLOADS,
    ENCODINGS,
    STATES,
    TAMPERS,
    TRANSPORTS,
    AlertTraffic,
    BootFaults,
    ClockFaults,
    ClockName,
    DownloadName,
    EncodingName,
    Expectation,
    FlashFaults,
    Group,
    HostileGateway,
    LinkFaults,
    Outage,
    RolloutStart,
    Scenario,
    TamperName,
    TransportName,
    sizes,
)

DAY_S: Final = 86_400.0
_CENTURY_S: Final = 36_525 * DAY_S


class Key(NamedTuple):
    """One key of a scenario file.

    Attributes:
        path: With the tables it is in, ``group.link.cut``.
        default: As it is written in a file; empty: there is none.
        bound: Lowest and highest value as they are written; empty: it is no number.
    """

    path: str
    default: str
    bound: str


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
    reading = _Reading()
    scenario = _scenario(_Table(document, "", reading), devices)
    _check_names(scenario, reading.problems)
    if not reading.problems:
        sizes(scenario, reading.problems)
    if reading.problems:
        raise ScenarioError(reading.problems)
    return scenario


def known_keys() -> list[Key]:
    """Return every key that a file may have, in the order of the reference."""
    reading = _Reading()
    empty: dict[str, Any] = {key: [{}] for key in ("group", "outage", "alert", "rollout")}
    _scenario(_Table(empty, "", reading), None)
    return list(dict.fromkeys(reading.keys))


class _Reading:
    """What reading a file brings up: problems, and the keys that were asked for."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.keys: list[Key] = []


class _Table:
    """One table of the file: values are taken out one by one, and what is left at the end is a problem."""

    def __init__(self, values: Mapping[str, Any], path: str, reading: _Reading) -> None:
        self._values = values
        self._path = path
        self._reading = reading
        self._known: set[str] = set()

    def has(self, key: str) -> bool:
        return key in self._values

    def problem(self, key: str, text: str) -> None:
        self._reading.problems.append(f"{self._path}{key}: {text}")

    def text(self, key: str, default: str) -> str:
        value = self._take(key, default)
        if isinstance(value, str):
            return value
        self.problem(key, "a string")
        return default

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        value = self._take(key, default, low, high)
        if type(value) is int and low <= value <= high:
            return value
        self.problem(key, f"a whole number, {low}..{high}")
        return default

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._take(key, default, low, high)
        if type(value) in (int, float) and low <= value <= high:
            return float(value)
        self.problem(key, f"a number, {low:g}..{high:g}")
        return default

    def chance(self, key: str) -> float:
        return self.number(key, 0.0, 0, 1)

    def span(self, key: str, default: Range, low: float, high: float) -> Range:
        value = self._take(key, default, low, high)
        if type(value) in (int, float):
            value = (value, value)
        if (
            isinstance(value, list | tuple)
            and len(value) == 2
            and all(type(n) in (int, float) for n in value)
        ):
            lowest, highest = float(value[0]), float(value[1])
            if low <= lowest <= highest <= high:
                return (lowest, highest)
        self.problem(key, f"a number, or [lowest, highest], {_plain(low)}..{_plain(high)}")
        return default

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        value = self._take(key, default)
        if value in choices:
            return str(value)
        self.problem(key, f"one of {', '.join(choices)}{_nearest(value, choices)}")
        return default

    def some(self, key: str, choices: Sequence[str], *, all_word: str | None = None) -> tuple[str, ...]:
        """Return one or some of ``choices``; ``all_word`` is all of them."""
        value = self._take(key, [])
        if value == all_word and value is not None:
            return tuple(choices)
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list) and all(one in choices for one in value):
            return tuple(value)
        wrong = next((one for one in value if one not in choices), None) if isinstance(value, list) else None
        self.problem(key, f"one or some of {', '.join(choices)}{_nearest(wrong, choices)}")
        return ()

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key, [])
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
        self.problem(key, "an array of strings")
        return ()

    def weights(self, key: str, default: Mapping[str, int], choices: Sequence[str]) -> dict[str, int]:
        value = self._take(key, next(iter(default)))
        if isinstance(value, str):
            value = {value: 1}
        if isinstance(value, Mapping) and all(
            name in choices and type(weight) is int and 0 <= weight <= 1000 for name, weight in value.items()
        ):
            found = {name: weight for name, weight in value.items() if weight}
            if found:
                return found
        wrong = (
            next((name for name in value if name not in choices), None)
            if isinstance(value, Mapping)
            else None
        )
        self.problem(
            key, f"one of {', '.join(choices)}, or whole numbers for some of them{_nearest(wrong, choices)}"
        )
        return dict(default)

    def attributes(self, key: str) -> dict[str, Attribute]:
        value = self._take(key, {})
        if isinstance(value, Mapping) and all(isinstance(one, str | int | float) for one in value.values()):
            return dict(value)
        self.problem(key, "a table of strings, numbers and booleans")
        return {}

    def channel(self, key: str, default: str) -> str:
        value = self.text(key, default)
        try:
            parse_channel_name(value)
        except MalformedError:
            self.problem(key, "1..128 of [A-Za-z0-9._~:-]")
        return value

    def table(self, key: str, *, word: str | None = None) -> _Table:
        """Return the table ``key``; a string there is the value of ``word`` in it."""
        self._known.add(key)
        value = self._values.get(key, {})
        if word is not None and isinstance(value, str):
            value = {word: value}
        if not isinstance(value, Mapping):
            self.problem(key, "a table")
            value = {}
        return _Table(value, f"{self._path}{key}.", self._reading)

    def tables(self, key: str, *, is_needed: bool = False) -> list[_Table]:
        self._known.add(key)
        value = self._values.get(key, [])
        if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
            if value or not is_needed:
                return [
                    _Table(one, f"{self._path}{key}[{number}].", self._reading)
                    for number, one in enumerate(value, 1)
                ]
            self.problem(key, f"at least one [[{key}]]")
            return []
        self.problem(key, f"at least one [[{key}]]" if is_needed else f"tables, [[{key}]]")
        return []

    def end(self) -> None:
        for key in sorted(self._values.keys() - self._known):
            self.problem(key, f"no such key{_nearest(key, sorted(self._known), 0.7)}")

    def _take(self, key: str, default: Any, low: float | None = None, high: float | None = None) -> Any:
        self._known.add(key)
        path = "".join(part for part in f"{self._path}{key}" if part not in "0123456789[]")
        bound = "" if low is None or high is None else f"{_plain(low)}..{_plain(high)}"
        self._reading.keys.append(Key(path, _written(default), bound))
        return self._values.get(key, default)


def _scenario(top: _Table, devices: int | None) -> Scenario:
    scenario = Scenario(
        name=top.text("name", "scenario"),
        description=top.text("description", ""),
        seed=top.whole("seed", 1, 0, 2**63),
        devices=top.whole("devices", 10, 1, DEVICES_MAX) if devices is None else devices,
        duration_s=top.number("duration_s", 60.0, 0.1, 30 * DAY_S),
        lasts_s=top.number("lasts_s", 0.0, 0, 30 * DAY_S),
        id_prefix=top.text("id_prefix", "sim-"),
        vendor=top.text("vendor", "acme.example"),
        device_class=top.text("class", "tc3"),
        component=top.text("component", "main"),
        groups=tuple(_group(table) for table in top.tables("group", is_needed=True)),
        outages=tuple(_outage(table) for table in top.tables("outage")),
        alerts=tuple(_alerts(table) for table in top.tables("alert")),
        rollouts=tuple(_rollout(table) for table in top.tables("rollout")),
    )
    if devices is not None:
        top.whole("devices", 10, 1, DEVICES_MAX)
    top.end()
    return scenario


def _group(table: _Table) -> Group:
    default = Group(name="")
    if table.has("count") and table.has("share"):
        table.problem("share", "count or share, not both")
    count = table.whole("count", 0, 0, DEVICES_MAX)
    group = Group(
        name=table.text("name", "devices"),
        count=count if table.has("count") else None,
        share=table.number("share", 1.0, 0, 1_000_000),
        transports=cast("dict[TransportName, int]", table.weights("transport", {"websocket": 1}, TRANSPORTS)),
        encodings=cast("dict[EncodingName, int]", table.weights("encoding", {"cbor": 1}, ENCODINGS)),
        attributes=table.attributes("attributes"),
        sequence=table.whole("sequence", 0, 0, 2**53 - 1),
        version=table.text("version", ""),
        start_within_s=table.number("start_within_s", default.start_within_s, 0, DAY_S),
        rate_window_s=table.number("rate_window_s", default.rate_window_s, 0.1, DAY_S),
        clock=_clock(table.table("clock", word="kind")),
        link=_link(table.table("link")),
        flash=_flash(table.table("flash")),
        boot=_boot(table.table("boot")),
        gateway=_gateway(table.table("gateway")),
        expect=_expect(table.table("expect")),
    )
    table.end()
    return group


def _clock(table: _Table) -> ClockFaults:
    default = ClockFaults()
    found = ClockFaults(
        kind=cast("ClockName", table.choice("kind", default.kind, CLOCKS)),
        jumps=table.whole("jumps", 0, 0, 1_000_000),
        jump_s=table.span("jump_s", default.jump_s, -_CENTURY_S, _CENTURY_S),
        jump_every_s=table.span("jump_every_s", default.jump_every_s, 0.1, DAY_S),
    )
    table.end()
    return found


def _link(table: _Table) -> LinkFaults:
    default = LinkFaults()
    found = LinkFaults(
        delay_ms=table.span("delay_ms", default.delay_ms, 0, 600_000),
        cut=table.chance("cut"),
        drop=table.chance("drop"),
        silence_s=table.span("silence_s", default.silence_s, 0, DAY_S),
        offline_s=table.span("offline_s", default.offline_s, 0, DAY_S),
        refuse=table.chance("refuse"),
        duplicate=table.chance("duplicate"),
        reorder=table.chance("reorder"),
        download_cut=table.chance("download_cut"),
        chunk_delay_ms=table.span("chunk_delay_ms", default.chunk_delay_ms, 0, 600_000),
        tamper=cast("TamperName", table.choice("tamper", default.tamper, TAMPERS)),
    )
    table.end()
    return found


def _flash(table: _Table) -> FlashFaults:
    default = FlashFaults()
    found = FlashFaults(
        capacity_bytes=table.whole("capacity_bytes", default.capacity_bytes, 65_536, 2**40),
        power_cuts=table.whole("power_cuts", 0, 0, 1_000_000),
        power_cut_bytes=table.span("power_cut_bytes", default.power_cut_bytes, 0, 2**40),
        off_s=table.span("off_s", default.off_s, 0, DAY_S),
        write_fails=table.chance("write_fails"),
    )
    table.end()
    return found


def _boot(table: _Table) -> BootFaults:
    found = BootFaults(
        boot_s=table.span("boot_s", BootFaults().boot_s, 0, DAY_S),
        panic=table.chance("panic"),
        sick=table.chance("sick"),
    )
    table.end()
    return found


def _gateway(table: _Table) -> HostileGateway:
    default = HostileGateway()
    found = HostileGateway(
        attacks=table.some("attacks", ATTACKS, all_word="all"),
        rounds=table.whole("rounds", default.rounds, 1, 1000),
        every_s=table.span("every_s", default.every_s, 0.001, DAY_S),
        download=cast("DownloadName", table.choice("download", default.download, DOWNLOADS)),
    )
    table.end()
    return found


def _expect(table: _Table) -> Expectation:
    found = Expectation(
        states=table.some("state", STATES),
        code=table.text("code", "") or None,
        alerts_min=table.whole("alerts_min", 0, 0, 1_000_000_000),
    )
    table.end()
    return found


def _outage(table: _Table) -> Outage:
    default = Outage()
    found = Outage(
        at_s=table.number("at_s", default.at_s, 0, 30 * DAY_S),
        for_s=table.span("for_s", default.for_s, 0, DAY_S),
        groups=table.texts("groups"),
    )
    table.end()
    return found


def _alerts(table: _Table) -> AlertTraffic:
    default = AlertTraffic()
    found = AlertTraffic(
        channel=table.channel("channel", default.channel),
        from_s=table.number("from_s", default.from_s, 0, 30 * DAY_S),
        until_s=table.number("until_s", default.until_s, 0, 30 * DAY_S),
        every_s=table.span("every_s", default.every_s, 0.001, DAY_S),
        size_bytes=table.span("size_bytes", default.size_bytes, 1, 65_536),
        ttl_s=table.whole("ttl_s", default.ttl_s, 0, 31_536_000),
    )
    table.end()
    return found


def _rollout(table: _Table) -> RolloutStart:
    default = RolloutStart()
    found = RolloutStart(
        at_s=table.number("at_s", default.at_s, 0, 30 * DAY_S),
        channel=table.channel("channel", default.channel),
        percent=table.whole("percent", default.percent, 1, 100),
        release=table.whole("release", default.release, 1, 100),
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
    for number, outage in enumerate(scenario.outages, 1):
        for name in outage.groups:
            if name not in names:
                problems.append(f"outage[{number}].groups: no group is {name!r}{_nearest(name, names)}")
    for number, alerts in enumerate(scenario.alerts, 1):
        if alerts.until_s < alerts.from_s:
            problems.append(f"alert[{number}].until_s: before from_s")


def _nearest(wrong: object, known: Sequence[str], likeness_min: float = 0.6) -> str:
    """Return the end of a sentence that names what ``wrong`` was perhaps meant to be."""
    found = difflib.get_close_matches(wrong, known, 1, likeness_min) if isinstance(wrong, str) else []
    return f"; the nearest is {found[0]}" if found else ""


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def _written(value: object) -> str:
    """Return a default as it is written in a file."""
    match value:
        case tuple() if value and value[0] == value[1]:
            return _plain(value[0])
        case tuple():
            return f"[{', '.join(map(_plain, value))}]"
        case bool():
            return str(value).lower()
        case int() | float():
            return _plain(value)
        case str():
            return f'"{value}"'
        case []:
            return "[]"
        case _:
            return "{}"
