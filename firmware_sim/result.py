"""What came of a simulation, as one JSON object. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firmware_sim.device import VirtualDevice
from firmware_sim.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The fleet at one moment.

    Attributes:
        states: Devices by the state of their newest deployment; ``idle`` without one.
        refused: Devices whose newest deployment did not commit, by code (its state, if it has none).
        faults: By kind.
        unmet: What is missing, by device.
    """

    scenario: str
    seed: int
    seconds: float
    devices: int
    connected: int
    states: dict[str, int]
    refused: dict[str, int]
    alerts: int
    devices_alerted: int
    disorders: int
    latencies_ms: Sequence[float]
    welcomes: dict[str, int]
    boots: int
    faults: dict[str, int]
    crashes: dict[str, str]
    unmet: dict[str, str]

    @classmethod
    def of(cls, scenario: Scenario, seed: int, devices: Sequence[VirtualDevice], seconds: float) -> Result:
        """Return the result of ``devices`` as they are now."""
        records = [device.record for device in devices]
        latencies = sorted(latency for record in records for latency in record.latencies_ms)
        return cls(
            scenario=scenario.name,
            seed=seed,
            seconds=seconds,
            devices=len(devices),
            connected=sum(record.is_connected for record in records),
            states=dict(Counter(record.state for record in records)),
            refused=dict(
                Counter(
                    record.last.code or record.last.state
                    for record in records
                    if record.is_refusal and record.last is not None
                )
            ),
            alerts=sum(record.alerts for record in records),
            devices_alerted=sum(record.alerts > 0 for record in records),
            disorders=sum(record.disorders for record in records),
            latencies_ms=latencies,
            welcomes=dict(sum((record.welcomes for record in records), Counter())),
            boots=sum(record.boots for record in records),
            faults=dict(sum((record.trace.counts for record in records), Counter())),
            crashes={
                device.plan.device_id: device.record.crash
                for device in devices
                if device.record.crash is not None
            },
            unmet={device.plan.device_id: missing for device in devices if (missing := device.unmet)},
        )

    @property
    def is_met(self) -> bool:
        """Whether every device is as the scenario expects."""
        return not self.unmet

    def document(self) -> dict[str, Any]:
        """Return the JSON object (docs/reference/simulator.md)."""
        welcomes = sum(self.welcomes.values())
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "devices": self.devices,
            "states": dict(sorted(self.states.items())),
            "refused": dict(sorted(self.refused.items())),
            "alerts_received": self.alerts,
            "devices_alerted": self.devices_alerted,
            "alerts_in_order": self.disorders == 0,
            "received_p50_ms": percentile(self.latencies_ms, 50),
            "received_p99_ms": percentile(self.latencies_ms, 99),
            "connections": dict(sorted(self.welcomes.items())),
            "reconnects": max(0, welcomes - self.devices),
            "boots": self.boots,
            "faults": dict(sorted(self.faults.items())),
            "crashes": self.crashes,
            "unmet": self.unmet,
            "ok": self.is_met,
        }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the value that ``percent`` of the sorted ``values`` do not exceed; None of none."""
    if not values:
        return None
    index = min(len(values) - 1, int(len(values) * percent / 100))
    return round(values[index], 3)
