"""The data of a report: result, series, groups, what happened when, and how to run it again. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from firmware_sim.device import VirtualDevice
from firmware_sim.result import Result
from firmware_sim.scenario import Expectation, Scenario

MARKS_MAX: Final = 50


def report_document(
    scenario: Scenario, result: Result, devices: Sequence[VirtualDevice], command: Sequence[str]
) -> dict[str, Any]:
    """Return the report of a run that is over (docs/reference/simulator.md).

    Args:
        command: The words that repeat the run.
    """
    return {
        "name": scenario.name,
        "description": scenario.description,
        "command": list(command),
        "result": result.document(),
        "groups": [
            {
                "name": group.name,
                "devices": len(members),
                "expected": expectation(group.expect),
                "states": dict(sorted(Counter(device.record.state for device in members).items())),
                "unmet": sum(device.unmet is not None for device in members),
            }
            for group in scenario.groups
            if (members := [device for device in devices if device.plan.group is group])
        ],
        "marks": _marks(scenario, has_operator=result.alerts_sent is not None),
        "series": result.series.document(),
    }


def expectation(expected: Expectation) -> str:
    """Return what is expected of a device, in words."""
    words = " or ".join(expected.states) or "anything"
    if expected.code:
        words += f" with {expected.code}"
    if expected.alerts_min:
        words += f", {expected.alerts_min} alerts"
    return words


def _marks(scenario: Scenario, *, has_operator: bool) -> list[dict[str, Any]]:
    """Return what happens to the fleet by the clock."""
    marks = [{"at_s": outage.at_s, "what": "outage"} for outage in scenario.outages]
    if has_operator:
        marks += [
            {"at_s": rollout.at_s, "what": f"rollout {rollout.release}"} for rollout in scenario.rollouts
        ]
    return sorted(marks, key=lambda mark: float(str(mark["at_s"])))[:MARKS_MAX]
