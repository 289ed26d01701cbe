"""What came of a simulation, as one JSON object. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from firmware_sim.device import VirtualDevice
from firmware_sim.invariants import Broken, Invariant
from firmware_sim.meter import Series
from firmware_sim.scenario import Scenario

BROKEN_SHOWN_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The fleet at one moment.

    Attributes:
        states: Devices by the state of their newest deployment; ``idle`` without one.
        phases: Devices by what they do.
        refused: Devices whose newest deployment did not commit, by code (its state, if it has none).
        welcomes: Connections, by transport.
        failed: Attempts to connect that came to nothing, by reason.
        reconnects: Connections beyond each device's first.
        faults: By kind.
        unmet: What is missing, by device.
        checks, breaks: By invariant: how often it was looked at, and did not hold.
        broken: The first of those.
        attacks: By name: how often tried, and how answered.
    """

    scenario: str
    seed: int
    seconds: float
    devices: int
    states: dict[str, int]
    phases: dict[str, int]
    refused: dict[str, int]
    alerts: int
    alerts_sent: int | None
    devices_alerted: int
    welcomes: dict[str, int]
    failed: dict[str, int]
    reconnects: int
    statements: int
    boots: int
    faults: dict[str, int]
    crashes: dict[str, str]
    unmet: dict[str, str]
    checks: dict[Invariant, int]
    breaks: dict[Invariant, int]
    broken: Sequence[Broken]
    attacks: dict[str, dict[str, Any]]
    series: Series = field(repr=False)
    latency_ms: tuple[float | None, float | None]

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        seed: int,
        devices: Sequence[VirtualDevice],
        seconds: float,
        series: Series,
        *,
        alerts_sent: int | None = None,
    ) -> Result:
        """Return the result of ``devices`` as they are now.

        Args:
            alerts_sent: By the run itself; None: it sent none.
        """
        records = [device.record for device in devices]
        watched = [device.invariants for device in devices]
        total = series.total.latency
        return cls(
            scenario=scenario.name,
            seed=seed,
            seconds=seconds,
            devices=len(devices),
            states=dict(Counter(record.state for record in records)),
            phases=dict(Counter(record.phase for record in records)),
            refused=dict(
                Counter(
                    record.last.code or record.last.state
                    for record in records
                    if record.is_refusal and record.last is not None
                )
            ),
            alerts=sum(record.alerts for record in records),
            alerts_sent=alerts_sent,
            devices_alerted=sum(record.alerts > 0 for record in records),
            welcomes=_total(record.welcomes for record in records),
            failed=_total(record.failed for record in records),
            reconnects=sum(max(0, record.welcomes.total() - 1) for record in records),
            statements=sum(record.statements for record in records),
            boots=sum(record.boots for record in records),
            faults=_total(device.trace.counts for device in devices),
            crashes={
                device.plan.device_id: device.record.crash
                for device in devices
                if device.record.crash is not None
            },
            unmet={device.plan.device_id: missing for device in devices if (missing := device.unmet)},
            checks=_total(one.checks for one in watched),
            breaks=_total(one.counts for one in watched),
            broken=[broken for one in watched for broken in one.broken][:BROKEN_SHOWN_MAX],
            attacks=_attacks(devices),
            series=series,
            latency_ms=(total.percentile(50), total.percentile(99)),
        )

    @property
    def connected(self) -> int:
        """Devices that the gateway has welcomed, and whose connection there is."""
        return self.phases.get("connected", 0)

    @property
    def is_met(self) -> bool:
        """Whether every device is as the scenario expects."""
        return not self.unmet

    @property
    def is_ok(self) -> bool:
        """Whether it is, and every invariant held."""
        return self.is_met and not any(self.breaks.values())

    @property
    def is_in_order(self) -> bool:
        """Whether each alert was handled once, in order."""
        return not (self.breaks.get(Invariant.ALERTS_IN_ORDER) or self.breaks.get(Invariant.ALERTS_ONCE))

    def document(self) -> dict[str, Any]:
        """Return the JSON object (docs/reference/simulator.md)."""
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "devices": self.devices,
            "states": _sorted(self.states),
            "refused": _sorted(self.refused),
            "alerts_sent": self.alerts_sent,
            "alerts_received": self.alerts,
            "devices_alerted": self.devices_alerted,
            "alerts_in_order": self.is_in_order,
            "received_p50_ms": self.latency_ms[0],
            "received_p99_ms": self.latency_ms[1],
            "connections": _sorted(self.welcomes),
            "connect_failures": _sorted(self.failed),
            "reconnects": self.reconnects,
            "statements": self.statements,
            "boots": self.boots,
            "faults": _sorted(self.faults),
            "attacks": self.attacks,
            "crashes": self.crashes,
            "unmet": self.unmet,
            "invariants": {
                one.value: {"checks": self.checks.get(one, 0), "broken": self.breaks.get(one, 0)}
                for one in Invariant
            },
            "broken": [one.document() for one in self.broken],
            "ok": self.is_ok,
        }


def _total(counters: Iterable[Counter[Any]]) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for counter in counters:
        if counter:
            total.update(counter)
    return dict(total)


def _attacks(devices: Sequence[VirtualDevice]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for device in devices:
        if device.attacker is None:
            continue
        for name, one in device.attacker.document().items():
            whole = found.setdefault(name, {"tried": 0, "answers": {}})
            whole["tried"] += one["tried"]
            for code, count in one["answers"].items():
                whole["answers"][code] = whole["answers"].get(code, 0) + count
    return dict(sorted(found.items()))


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
