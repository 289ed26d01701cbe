"""The device's clock as the operating system has it."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """``update.DeviceClock`` of this machine.

    Args:
        is_wall_trusted: Whether the wall clock is set by something that nobody else can reach (an RTC, an
            authenticated NTS). If not, time comes from the gateway's signed statements (PROTOCOL §7.5).
    """

    def __init__(self, *, is_wall_trusted: bool = True) -> None:
        self._is_wall_trusted = is_wall_trusted

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int | None:
        return time.time_ns() // 1_000_000 if self._is_wall_trusted else None

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
