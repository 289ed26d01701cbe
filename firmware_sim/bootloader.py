"""A device's bootloader: what it starts, and what does not come up.

The decision between two slots is the SDK's own (``device_sdk.update.boot_record``); here are the boots that
fail. Only an image on trial fails: one that was confirmed has shown that it works.
"""

from __future__ import annotations

from device_sdk.update import Factory, SlotInstaller
from firmware_sim.dice import Dice
from firmware_sim.flash import VirtualFlash
from firmware_sim.scenario import BootFaults
from firmware_sim.trace import Trace


class Bootloader:
    """The boots of one device.

    Args:
        factory: What slot A holds before the first update.
    """

    def __init__(
        self,
        flash: VirtualFlash,
        *,
        component: str,
        factory: Factory,
        faults: BootFaults,
        dice: Dice,
        trace: Trace,
    ) -> None:
        self._flash = flash
        self._component = component
        self._factory = factory
        self._faults = faults
        self._dice = dice
        self._trace = trace
        self._trials = 0
        self.boots = 0

    def boot(self) -> SlotInstaller | None:
        """Start what the boot record says; None if it never comes up and the watchdog has to boot again."""
        self.boots += 1
        installer = SlotInstaller(
            self._flash.slots,
            components=(self._component,),
            is_healthy=self._is_healthy,
            factory={self._component: self._factory},
        )
        if installer.running()[self._component].is_confirmed:
            return installer
        self._trials += 1
        if self._dice.stream("boot", self._trials).random() < self._faults.panic:
            self._trace.note("panic", f"trial {self._trials}")
            return None
        return installer

    async def _is_healthy(self, component: str) -> bool:
        if self._dice.stream("health", self._trials).random() < self._faults.sick:
            self._trace.note("sick", f"trial {self._trials}")
            return False
        return True
