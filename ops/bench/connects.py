"""New authenticated connections a second, each from the dial to the committed hello's welcome."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from node import Gateway
from rig import BenchError, Load, say


def connects(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Measure connections of devices that are new; that come back with tokens the origin must be asked about;
    that come back with tickets."""
    say(f"connects: {devices:,} devices, {rounds} rounds ...")
    with Gateway.started(folder / "connects") as gateway:
        with gateway.load(folder, devices, "device") as load:
            first = load.opened["connections_per_s"]
            _check_asked(gateway, devices, "new devices")
            strangers = _Returns(devices)
            for number in range(1, rounds + 1):
                strangers.measure(gateway, load, f"return {number}", asked=devices)
            holders = _Returns(devices)
            for _ in range(rounds):
                holders.measure(gateway, load, "resume", asked=0)
        if (taken := gateway.metric('fleetcast_device_accepted_total{lane="ticket"}')) != devices * rounds:
            raise BenchError(f"{taken:.0f} of {devices * rounds} tickets were good")
    say(f"  {first:,.0f} new, {strangers.rate:,.0f} known, {holders.rate:,.0f} with tickets a second")
    return {
        "connects_devices": devices,
        "connects_rounds": rounds,
        "new_device_connects_per_s": round(first),
        "connects_per_s": round(strangers.rate),
        "connect_cpu_us": round(strangers.cpu_us),
        "ticket_connects_per_s": round(holders.rate),
        "ticket_connect_cpu_us": round(holders.cpu_us),
    }


class _Returns:
    """Rounds of one kind."""

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._rates: list[float] = []
        self._cpu_us: list[float] = []

    @property
    def rate(self) -> float:
        return statistics.median(self._rates)

    @property
    def cpu_us(self) -> float:
        """CPU time of the gateway for each connection, in all its threads."""
        return statistics.median(self._cpu_us)

    def measure(self, gateway: Gateway, load: Load, order: str, *, asked: int) -> None:
        load("leave")
        gateway.wait_until_left()
        asked_before, cpu_before = gateway.origin.requests(), gateway.cpu_s()
        opened = load(order)
        self._cpu_us.append((gateway.cpu_s() - cpu_before) * 1e6 / self._devices)
        self._rates.append(opened["connections_per_s"])
        _check_asked(gateway, asked_before + asked, order)


def _check_asked(gateway: Gateway, expected: int, what: str) -> None:
    if (asked := gateway.origin.requests()) != expected:
        raise BenchError(f"{what}: the origin was asked {asked} times, not {expected}")
