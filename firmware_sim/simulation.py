"""A whole fleet, from switching on to what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from device_sdk import PublicKey
from device_sdk.store import PowerLossError
from device_sdk.transport.http import parse_gateway_url
from device_sdk.wire.errors import MalformedError
from device_sdk.wire.names import parse_fleet_name
from firmware_sim.attacks import Notebook
from firmware_sim.device import Provision, Surroundings, VirtualDevice
from firmware_sim.dice import Dice, between
from firmware_sim.errors import ScenarioError
from firmware_sim.genuine import Releases
from firmware_sim.meter import Series
from firmware_sim.operator import Operator
from firmware_sim.result import Result
from firmware_sim.scenario import Outage, Scenario, plan
from firmware_sim.trace import Event

TICK_S: Final = 0.1
SHOW_S: Final = 0.25


class Simulation:
    """The devices of a scenario, against one gateway.

    Args:
        tokens: One for each device, by id.
        seed: Instead of the scenario's.
        only: The id of the one device that is switched on.
        operator: Does what the scenario does as the operator; None: somebody else does.
        sink: Told each event of each device.

    Raises:
        ScenarioError: A device has no token, or nobody could be at ``url`` or of ``fleet``.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        url: str,
        fleet: str,
        tokens: Mapping[str, str],
        release_keys: Sequence[PublicKey],
        seed: int | None = None,
        only: str | None = None,
        operator: Operator | None = None,
        sink: Callable[[str, Event], None] | None = None,
    ) -> None:
        self.scenario = scenario
        self.seed = scenario.seed if seed is None else seed
        try:
            parse_gateway_url(url)
            parse_fleet_name(fleet)
        except (ValueError, MalformedError) as error:
            raise ScenarioError([str(error)]) from error
        plans = [one for one in plan(scenario) if only in (None, one.device_id)]
        if not plans:
            raise ScenarioError([f"the scenario has no device {only}"])
        missing = [one.device_id for one in plans if one.device_id not in tokens]
        if missing:
            raise ScenarioError([f"{len(missing)} devices have no token, for example {missing[0]}"])
        self.series = Series()
        self._started_at = time.monotonic()
        surroundings = Surroundings(
            releases=Releases(release_keys),
            series=self.series,
            notebook=Notebook(),
            now_s=self.now_s,
            sink=sink,
        )
        self.devices = [
            VirtualDevice(
                one,
                scenario,
                Provision(url=url, fleet=fleet, token=tokens[one.device_id], release_keys=release_keys),
                surroundings,
                seed=self.seed,
            )
            for one in plans
        ]
        self._operator = operator

    def now_s(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self._started_at

    async def run(
        self,
        stop: asyncio.Event,
        *,
        show: Callable[[Result], None] | None = None,
        has_end: bool = True,
    ) -> Result:
        """Run until every device is as expected, the scenario's time is over, or ``stop`` is set.

        Args:
            show: Shown the state of things, some times a second. A result costs some milliseconds for each
                thousand devices: without somebody to show it to, none is made before the end.
            has_end: False: until ``stop`` and no sooner.
        """
        self._started_at = time.monotonic()
        tasks = [
            asyncio.create_task(device.run(), name=f"sim[{device.plan.device_id}]") for device in self.devices
        ]
        others = [
            asyncio.create_task(self._break_links(outage, number), name=f"sim.outage[{number}]")
            for number, outage in enumerate(self.scenario.outages)
        ]
        if self._operator is not None:
            others.append(asyncio.create_task(self._operator.run(self.now_s), name="sim.operator"))
        shown_at_s = 0.0
        try:
            while not (stop.is_set() or (has_end and self._is_over(others))):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await stop.wait()
                now_s = self.now_s()
                if self.series.is_due(now_s):
                    self._sample(now_s)
                if show is not None and now_s >= shown_at_s + SHOW_S:
                    shown_at_s = now_s
                    show(self.result())
            for device in self.devices:
                device.check()
            self._sample(self.now_s())
            for task in others:
                if task.done():
                    task.result()  # a fault of ours
            return self.result()
        finally:
            for task in (*others, *tasks):
                task.cancel()
            await asyncio.gather(*others, *tasks, return_exceptions=True)

    def _is_over(self, others: Sequence[asyncio.Task[None]]) -> bool:
        """Return whether the scenario's time is over, or everything is as expected and nothing is to come."""
        now_s = self.now_s()
        if now_s >= self.scenario.duration_s:
            return True
        if now_s < self.scenario.quiet_after_s or not all(task.done() for task in others):
            return False
        return all(device.unmet is None for device in self.devices)

    async def _break_links(self, outage: Outage, number: int) -> None:
        """Take the network from the devices that ``outage`` is about, at its time."""
        await asyncio.sleep(max(0.0, outage.at_s - self.now_s()))
        for device in self.devices:
            if not outage.groups or device.plan.group.name in outage.groups:
                random = Dice(self.seed, device.plan.device_id).stream("outage", number)
                device.lose_network(between(random, outage.for_s))

    def _sample(self, now_s: float) -> None:
        phases = Counter(device.record.phase for device in self.devices)
        states = Counter(device.record.state for device in self.devices)
        self.series.sample(now_s, phases, states)

    def result(self) -> Result:
        """Return how the fleet is now."""
        return Result.of(
            self.scenario,
            self.seed,
            self.devices,
            self.now_s(),
            self.series,
            alerts_sent=None if self._operator is None else self._operator.sent,
        )


def write_flash(devices: Sequence[VirtualDevice], directory: Path) -> None:
    """Write each device's slots and boot records to ``directory/<device id>/``, as they are now.

    The directory is there with all of it or, if there was none before, not at all.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
    for device in devices:
        folder = new / device.plan.device_id
        folder.mkdir()
        slots = device.flash.slots
        with contextlib.suppress(PowerLossError):  # without power there is nothing to read
            for name in slots.names():
                (folder / name).write_bytes(slots.read(name, 0, slots.size(name)))
    if directory.exists():
        shutil.rmtree(directory)
    new.rename(directory)
