"""Messages of devices for the operator's backend: queued in bounds, tried a few times (PROTOCOL §4.7).

Nothing of them is stored here: a device repeats its uplink until it is told ``recorded``, which it is when
the backend took it. Each device's are given on one after the other, in the order in which they came; a
backend that fails is tried again after doubling waits, and then the device is told to try later. How the
backend is spoken to is the ``Backend`` port, which ``gateway.origin.uplink`` implements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

from device_sdk.wire.limits import UPLINK_SIZE_MAX
from device_sdk.wire.messages import Error, Recorded, Uplink
from device_sdk.wire.names import DeviceId, FleetName
from gateway.errors import OriginUnavailableError
from gateway.telemetry import Metrics

CIRCUIT_OPEN: Final = "origin_circuit_open"


class Backend(Protocol):
    """Where uplinks go."""

    async def take(self, fleet: FleetName, device_id: DeviceId, uplink: Uplink) -> bool:
        """Return True once the backend took ``uplink``, False if it refused it for good.

        Raises:
            OriginUnavailableError: It may take it later, or has and could not say so: it knows it by its id.
        """
        ...


class UplinkSink(Protocol):
    """What a session needs of ``Uplinks``."""

    async def deliver(self, fleet: FleetName, device_id: DeviceId, uplink: Uplink) -> Recorded | Error:
        """Return what the device is told."""
        ...


class NoUplinks:
    """The sink where no backend is configured: the device keeps what it has."""

    async def deliver(self, fleet: FleetName, device_id: DeviceId, uplink: Uplink) -> Recorded | Error:
        return _later(uplink, "uplink_unconfigured")


@dataclass(frozen=True, slots=True)
class UplinkLimits:
    """Bounds on uplinks under way; at each of them a device is told ``uplink_busy`` and comes again.

    Attributes:
        queue_len_max, queue_size_bytes_max: On the node.
        device_queue_len_max: Of one device.
        concurrency_max: With the backend at once.
        attempts_max: Until the device is told ``uplink_unavailable`` and comes again.
        retry_min_s, retry_max_s: Between two attempts: doubling from one to the other.
    """

    queue_len_max: int = 10_000
    queue_size_bytes_max: int = 64 * 1024 * 1024
    device_queue_len_max: int = 8
    concurrency_max: int = 32
    attempts_max: int = 3
    retry_min_s: float = 0.5
    retry_max_s: float = 5.0

    def __post_init__(self) -> None:
        assert self.queue_size_bytes_max >= UPLINK_SIZE_MAX, "the longest fits"
        assert min(self.queue_len_max, self.device_queue_len_max, self.concurrency_max) > 0, "one at least"
        assert self.attempts_max > 0, "nothing would ever be given on"
        assert 0 < self.retry_min_s <= self.retry_max_s, "it doubles from one to the other"


@dataclass(slots=True)
class _Line:
    """One device's uplinks under way, the first of them with the backend."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: dict[bytes, asyncio.Future[Recorded | Error]] = field(default_factory=dict)


class Uplinks:
    """The uplinks of one node.

    Args:
        sleep: ``asyncio.sleep``; a simulation brings its own.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        limits: UplinkLimits,
        metrics: Metrics,
        random: Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._backend = backend
        self._limits = limits
        self._metrics = metrics
        self._random = random
        self._sleep = sleep
        self._lines: dict[tuple[FleetName, DeviceId], _Line] = {}
        self._turns = asyncio.Semaphore(limits.concurrency_max)
        self._len = 0
        self._size_bytes = 0

    async def deliver(self, fleet: FleetName, device_id: DeviceId, uplink: Uplink) -> Recorded | Error:
        """Return what the device is told, once that is known.

        An uplink that is repeated while it is under way is not given on twice: both are told the same.
        """
        line = self._lines.get((fleet, device_id))
        if line is not None and (under_way := line.waiting.get(uplink.id)) is not None:
            return await asyncio.shield(under_way)
        if self._is_full(line, uplink):
            self._metrics.uplinks["busy"].inc()
            return _later(uplink, "uplink_busy")
        if line is None:
            line = self._lines[fleet, device_id] = _Line()
        answered: asyncio.Future[Recorded | Error] = asyncio.get_running_loop().create_future()
        line.waiting[uplink.id] = answered
        self._count(1, len(uplink.data))
        answer: Recorded | Error = _later(uplink, "uplink_unavailable")
        try:
            async with line.turn:
                answer = await self._give(fleet, device_id, uplink)
        finally:
            answered.set_result(answer)  # also of one that is given up: who waits with it tries later
            del line.waiting[uplink.id]
            if not line.waiting:
                del self._lines[fleet, device_id]
            self._count(-1, -len(uplink.data))
        return answer

    async def _give(self, fleet: FleetName, device_id: DeviceId, uplink: Uplink) -> Recorded | Error:
        """Try until the backend says something, or the attempts are spent."""
        limits = self._limits
        attempts = 1 if uplink.best_effort else limits.attempts_max
        for attempt in range(attempts):
            try:
                async with self._turns:
                    is_taken = await self._backend.take(fleet, device_id, uplink)
            except OriginUnavailableError as error:
                if attempt + 1 == attempts or error.code == CIRCUIT_OPEN:
                    break  # a backend that is left alone for a while is not waited for here
                wait_s = min(limits.retry_max_s, limits.retry_min_s * 2**attempt)
                await self._sleep(self._random.uniform(wait_s / 2, wait_s))
            else:
                self._metrics.uplinks["recorded" if is_taken else "refused"].inc()
                if is_taken:
                    return Recorded(uplink.id, "recorded")
                return Recorded(uplink.id, "refused", "uplink_refused")
        self._metrics.uplinks["unavailable"].inc()
        return _later(uplink, "uplink_unavailable")

    def _is_full(self, line: _Line | None, uplink: Uplink) -> bool:
        limits = self._limits
        return (
            self._len >= limits.queue_len_max
            or self._size_bytes + len(uplink.data) > limits.queue_size_bytes_max
            or (line is not None and len(line.waiting) >= limits.device_queue_len_max)
        )

    def _count(self, number: int, size_bytes: int) -> None:
        self._len += number
        self._size_bytes += size_bytes
        self._metrics.uplinks_waiting.set(self._len)


def _later(uplink: Uplink, code: str) -> Recorded | Error:
    """Return the answer to an uplink that was not given on: it comes again, unless that was its one try."""
    if uplink.best_effort:
        return Recorded(uplink.id, "refused", code)
    return Error(code=code, ref=uplink.id.hex())
