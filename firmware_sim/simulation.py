"""A whole fleet, from switching on to what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from device_sdk import PublicKey
from device_sdk.store import PowerLossError
from device_sdk.transport.http import parse_gateway_url
from device_sdk.wire.errors import MalformedError
from device_sdk.wire.names import parse_fleet_name
from firmware_sim.device import Provision, VirtualDevice
from firmware_sim.errors import ScenarioError
from firmware_sim.result import Result
from firmware_sim.scenario import Scenario, plan

TICK_S: Final = 0.1


class Simulation:
    """The devices of a scenario, against one gateway.

    Args:
        tokens: One for each device, by id.
        seed: Instead of the scenario's.

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
    ) -> None:
        self.scenario = scenario
        self.seed = scenario.seed if seed is None else seed
        try:
            parse_gateway_url(url)
            parse_fleet_name(fleet)
        except (ValueError, MalformedError) as error:
            raise ScenarioError([str(error)]) from error
        plans = plan(scenario)
        missing = [one.device_id for one in plans if one.device_id not in tokens]
        if missing:
            raise ScenarioError([f"{len(missing)} devices have no token, for example {missing[0]}"])
        self.devices = [
            VirtualDevice(
                one,
                scenario,
                Provision(url=url, fleet=fleet, token=tokens[one.device_id], release_keys=release_keys),
                seed=self.seed,
            )
            for one in plans
        ]
        self._started_at = time.monotonic()

    async def run(
        self,
        stop: asyncio.Event,
        *,
        on_tick: Callable[[Result], None] = lambda result: None,
        has_end: bool = True,
    ) -> Result:
        """Run until every device is as expected, the scenario's time is over, or ``stop`` is set.

        Args:
            on_tick: Shown the state of things, some times a second.
            has_end: False: until ``stop`` and no sooner.
        """
        self._started_at = time.monotonic()
        tasks = [
            asyncio.create_task(device.run(), name=f"sim[{device.plan.device_id}]") for device in self.devices
        ]
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await stop.wait()
                result = self.result()
                on_tick(result)
                is_over = result.is_met or result.seconds >= self.scenario.duration_s
                if stop.is_set() or (has_end and is_over):
                    return result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def result(self) -> Result:
        """Return how the fleet is now."""
        return Result.of(self.scenario, self.seed, self.devices, time.monotonic() - self._started_at)


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
