"""A scenario: which devices there are, what they get, what goes wrong, and how each should end. Pure.

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
CLOCKS: Final = ("trusted", "none", "resets")
DOWNLOADS: Final = ("genuine", "endless", "oversized", "slow", "other", "truncated")

TransportName = Literal["websocket", "longpoll", "auto"]
EncodingName = Literal["cbor", "json"]
TamperName = Literal["nothing", "signature", "manifest", "any"]
ClockName = Literal["trusted", "none", "resets"]
DownloadName = Literal["genuine", "endless", "oversized", "slow", "other", "truncated"]
ATTACKS: Final = (
    "forged_directive",
    "unknown_signer",
    "alert_as_directive",
    "truncated_directive",
    "other_device",
    "renamed_deployment",
    "replayed_update",
    "mixed_manifest",
    "truncated_manifest",
    "forged_cancel",
    "late_cancel",
    "forged_root",
    "forged_statement",
    "forged_receipt",
    "forged_alert",
    "moved_alert",
    "truncated_alert",
    "repeated_alert",
)
"""What a hostile gateway does; ``attacks`` has each."""
AttackName = str


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
class ClockFaults:
    """What a device's clock says.

    Attributes:
        kind: ``trusted``; ``none``, time comes from the gateway's signed statements alone; ``resets``, a
            clock without a battery: 1970 at each boot.
        jumps: How often it leaps, at most.
        jump_s: By how much; below 0: back.
        jump_every_s: How long from one leap to the next, and to the first.
    """

    kind: ClockName = "trusted"
    jumps: int = 0
    jump_s: Range = (-86_400, -3_600)
    jump_every_s: Range = (1, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileGateway:
    """What stands between a device and its gateway, and lies.

    Attributes:
        attacks: Of ``ATTACKS``: those that make something up take turns, those that change something genuine
            do so when it passes.
        rounds: How often each is tried.
        every_s: How long from one that makes something up to the next.
        download: What is served instead of images.
    """

    attacks: tuple[AttackName, ...] = ()
    rounds: int = 1
    every_s: Range = (0.05, 0.2)
    download: DownloadName = "genuine"

    @property
    def is_there(self) -> bool:
        """Whether there is one."""
        return bool(self.attacks) or self.download != "genuine"


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
        rate_window_s: Over how long the SDK measures that a download is too slow.
    """

    name: str
    count: int | None = None
    share: float = 1.0
    transports: Mapping[TransportName, int] = field(default_factory=lambda: {"websocket": 1})
    encodings: Mapping[EncodingName, int] = field(default_factory=lambda: {"cbor": 1})
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    sequence: int = 0
    version: str = ""
    start_within_s: float = 1.0
    rate_window_s: float = 300.0
    clock: ClockFaults = field(default_factory=ClockFaults)
    link: LinkFaults = field(default_factory=LinkFaults)
    flash: FlashFaults = field(default_factory=FlashFaults)
    boot: BootFaults = field(default_factory=BootFaults)
    gateway: HostileGateway = field(default_factory=HostileGateway)
    expect: Expectation = field(default_factory=Expectation)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertTraffic:
    """Alerts that the run sends as the operator, to one channel.

    Attributes:
        from_s, until_s: When, after the run begins.
        every_s: From one to the next.
        size_bytes: Of the text.
        ttl_s: 0: without.
    """

    channel: str = "ops"
    from_s: float = 1.0
    until_s: float = 10.0
    every_s: Range = (1, 1)
    size_bytes: Range = (16, 200)
    ttl_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStart:
    """A rollout that the run starts as the operator.

    Attributes:
        release: Which of the releases that it was given, from 1.
    """

    at_s: float = 1.0
    channel: str = "firmware"
    percent: int = 100
    release: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """All links of some groups break at once, without a close frame.

    Attributes:
        for_s: How long no connection can be made; drawn for each device.
        groups: Their names; none: all.
    """

    at_s: float = 1.0
    for_s: Range = (1, 1)
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole simulation.

    Attributes:
        duration_s: The run ends then at the latest.
        lasts_s: It does not end sooner.
        id_prefix: Devices are called this and their number.
        vendor, device_class, component: What manifests are matched with.
    """

    name: str
    description: str = ""
    seed: int = 1
    devices: int
    duration_s: float = 60.0
    lasts_s: float = 0.0
    id_prefix: str = "sim-"
    vendor: str = "acme.example"
    device_class: str = "tc3"
    component: str = "main"
    groups: tuple[Group, ...]
    alerts: tuple[AlertTraffic, ...] = ()
    rollouts: tuple[RolloutStart, ...] = ()
    outages: tuple[Outage, ...] = ()

    @property
    def quiet_after_s(self) -> float:
        """When nothing that happens to the devices by the clock is still to come."""
        return max(self.lasts_s, *(outage.at_s + outage.for_s[1] for outage in self.outages), 0.0)


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
