"""A scenario: which devices there are, what goes wrong with them, and how each should end. Pure.

How it is written in a file is ``scenario_file``, and docs/reference/simulator.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from device_sdk.wire.messages import Attribute
from firmware_sim.dice import Range

DEVICES_MAX: Final = 100_000
STATES: Final = ("committed", "rolled_back", "failed", "rejected", "cancelled")
TRANSPORTS: Final = ("websocket", "longpoll", "auto")
ENCODINGS: Final = ("cbor", "json")
TAMPERS: Final = ("nothing", "signature", "manifest", "any")
CLOCKS: Final = ("trusted", "none")

TransportName = Literal["websocket", "longpoll", "auto"]
EncodingName = Literal["cbor", "json"]
TamperName = Literal["nothing", "signature", "manifest", "any"]
ClockName = Literal["trusted", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFaults:
    """What a device's link does. Chances are 0..1, each drawn for each message unless said otherwise.

    Attributes:
        delay_ms: Added to everything that comes and goes.
        cut: The connection breaks; the message is lost.
        drop: Nothing comes through any more, for ``silence_s``; then the connection breaks.
        duplicate: The message comes twice.
        reorder: For each group of messages, by long-poll alone: what one request may overtake does.
        refuse: For each attempt to connect: it fails.
        offline_s: After a break, how long no connection can be made.
        download_cut: For each chunk of a download: the answer ends.
        chunk_delay_ms: Before each chunk of a download.
        tamper: What the link changes in every update, by one byte.
    """

    delay_ms: Range = (0, 0)
    cut: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    refuse: float = 0.0
    silence_s: Range = (0.2, 2.0)
    offline_s: Range = (0.0, 0.5)
    download_cut: float = 0.0
    chunk_delay_ms: Range = (0, 0)
    tamper: TamperName = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashFaults:
    """What a device's flash and power do.

    Attributes:
        capacity_bytes: Of all its files.
        power_cuts: How often the power goes, at most.
        power_cut_bytes: Bytes written between two cuts; a sync, a rename and a removal count as one.
        off_s: How long it stays away.
        write_fails: Chance that a write fails with EIO, a part of it done.
    """

    capacity_bytes: int = 64 * 1024 * 1024
    power_cuts: int = 0
    power_cut_bytes: Range = (1_000, 400_000)
    off_s: Range = (0.05, 0.5)
    write_fails: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFaults:
    """How a device starts.

    Attributes:
        boot_s: How long that takes.
        panic: Chance that a boot of an image on trial never comes up: the watchdog boots again.
        sick: Chance that an image on trial comes up and does not work.
    """

    boot_s: Range = (0.02, 0.2)
    panic: float = 0.0
    sick: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """How a device of a group should end; what is not said is not asked.

    Attributes:
        states: One of these is the state of its last deployment, and the gateway recorded it.
        code: The refusal that it reported.
        alerts_min: Alerts that it handled, each once and in order.
    """

    states: tuple[str, ...] = ()
    code: str | None = None
    alerts_min: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Devices that are alike.

    Attributes:
        count: How many; None: ``share`` of those that groups with a count leave.
        transports, encodings: Weights; devices take turns.
        sequence, version: Of the image that the factory installed.
        start_within_s: Devices are switched on within so long.
    """

    name: str
    count: int | None = None
    share: float = 1.0
    transports: Mapping[TransportName, int] = field(default_factory=lambda: {"websocket": 1})
    encodings: Mapping[EncodingName, int] = field(default_factory=lambda: {"cbor": 1})
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    clock: ClockName = "trusted"
    sequence: int = 0
    version: str = ""
    start_within_s: float = 1.0
    link: LinkFaults = field(default_factory=LinkFaults)
    flash: FlashFaults = field(default_factory=FlashFaults)
    boot: BootFaults = field(default_factory=BootFaults)
    expect: Expectation = field(default_factory=Expectation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole simulation.

    Attributes:
        duration_s: The run ends then at the latest.
        id_prefix: Devices are called this and their number.
        vendor, device_class, component: What manifests are matched with.
    """

    name: str
    description: str = ""
    seed: int = 1
    devices: int
    duration_s: float = 60.0
    id_prefix: str = "sim-"
    vendor: str = "acme.example"
    device_class: str = "tc3"
    component: str = "main"
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """One device of a scenario."""

    device_id: str
    group: Group
    transport: TransportName
    encoding: EncodingName


def plan(scenario: Scenario) -> list[DevicePlan]:
    """Return the scenario's devices, group by group."""
    plans: list[DevicePlan] = []
    for group, size in zip(scenario.groups, sizes(scenario, []), strict=True):
        transports = turns(group.transports, size)
        encodings = turns(group.encodings, size)
        for transport, encoding in zip(transports, encodings, strict=True):
            number = len(plans) + 1
            plans.append(
                DevicePlan(
                    device_id=f"{scenario.id_prefix}{number:04}",
                    group=group,
                    transport=transport,
                    encoding=encoding,
                )
            )
    return plans


def sizes(scenario: Scenario, problems: list[str]) -> list[int]:
    """Return how many devices each group has; what does not fit is a line in ``problems``."""
    counted = sum(group.count or 0 for group in scenario.groups)
    rest = scenario.devices - counted
    shares = [group.share if group.count is None else 0.0 for group in scenario.groups]
    if rest < 0:
        problems.append(f"devices: {scenario.devices}, and the groups count {counted}")
    elif rest > 0 and not any(shares):
        problems.append(f"devices: {scenario.devices}, and the groups count only {counted}")
    result = []
    given = 0
    total = sum(shares) or 1.0
    so_far = 0.0
    for group, share in zip(scenario.groups, shares, strict=True):
        if group.count is not None:
            result.append(group.count)
            continue
        so_far += share
        upto = round(max(rest, 0) * so_far / total)
        result.append(upto - given)
        given = upto
    return result


def turns(weights: Mapping[Any, int], count: int) -> list[Any]:
    """Return ``count`` names, each as often as its weight says, well mixed.

    Each time the one that lags furthest behind its share is next.
    """
    total = sum(weights.values())
    used = dict.fromkeys(weights, 0)
    result = []
    for number in range(1, count + 1):
        name = max(weights, key=lambda name: weights[name] * number / total - used[name])
        used[name] += 1
        result.append(name)
    return result
