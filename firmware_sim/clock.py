"""A device's clock, as good or bad as its scenario says: trusted, absent, reset at each boot, set by leaps.

The time that passes is real; what is wrong is what the clock on the wall says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from firmware_sim.dice import Dice, between
from firmware_sim.scenario import ClockFaults
from firmware_sim.trace import Trace


class VirtualClock:
    """``device_sdk.update.DeviceClock`` with faults.

    Args:
        monotonic_s, wall_ns: The clocks of this machine.
    """

    def __init__(
        self,
        faults: ClockFaults,
        *,
        dice: Dice,
        trace: Trace,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.monotonic = monotonic_s
        self._wall_ns = wall_ns
        self._faults = faults
        self._dice = dice
        self._trace = trace
        self._offset_ms = 0.0
        self._booted_at = self.monotonic()
        self._jumps = 0
        self._next_jump_at = float("inf")
        self._plan_jump()

    def wall_ms(self) -> int | None:
        if self._faults.kind == "none":
            return None
        self._jump_if_due()
        if self._faults.kind == "resets":
            now_ms = (self.monotonic() - self._booted_at) * 1000
        else:
            now_ms = self._wall_ns() / 1_000_000
        return max(0, int(now_ms + self._offset_ms))

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)

    def boot(self) -> None:
        """The device starts: a clock without a battery begins at 1970."""
        self._booted_at = self.monotonic()
        if self._faults.kind == "resets":
            self._offset_ms = 0.0

    def _plan_jump(self) -> None:
        if self._jumps < self._faults.jumps:
            random = self._dice.stream("clock", self._jumps)
            self._next_jump_at = self.monotonic() + between(random, self._faults.jump_every_s)
        else:
            self._next_jump_at = float("inf")

    def _jump_if_due(self) -> None:
        while self.monotonic() >= self._next_jump_at:
            jump_s = between(self._dice.stream("clock", self._jumps, "by"), self._faults.jump_s)
            self._jumps += 1
            self._offset_ms += jump_s * 1000
            self._trace.note("clock_jump", f"jump {self._jumps}, by {jump_s:.0f} s")
            self._plan_jump()
