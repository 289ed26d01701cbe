"""Uplinks are given on in order, a few times, within bounds, and each is answered."""

from __future__ import annotations

import asyncio
import random

import pytest

from device_sdk.wire.limits import UPLINK_SIZE_MAX
from device_sdk.wire.messages import Error, Recorded, Uplink
from device_sdk.wire.names import DeviceId, FleetName
from gateway.errors import OriginUnavailableError
from gateway.session.uplinks import NoUplinks, UplinkLimits, Uplinks
from gateway.telemetry import Metrics

ACME, D1, D2 = FleetName("acme"), DeviceId("d1"), DeviceId("d2")
AWAY = OriginUnavailableError("away")


def uplink(number: int, *, size: int = 4, best_effort: bool = False) -> Uplink:
    return Uplink(number.to_bytes(16, "big"), "text/plain", bytes(size), best_effort)


class MemoryBackend:
    """Takes what it gets, or does as it is told for the next ones; ``gate`` holds it up."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.given: list[tuple[str, int]] = []
        self.running = 0
        self.running_max = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def take(self, fleet: FleetName, device_id: DeviceId, uplink: Uplink) -> bool:
        self.given.append((device_id, uplink.id[-1]))
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer


class Desk:
    def __init__(self, *answers: bool | Exception, **limits: float) -> None:
        self.backend = MemoryBackend(*answers)
        self.metrics = Metrics()
        self.waits: list[float] = []
        self.uplinks = Uplinks(
            self.backend,
            limits=UplinkLimits(**limits),  # type: ignore[arg-type]
            metrics=self.metrics,
            random=random.Random(1),
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)

    def start(self, one: Uplink, device: DeviceId = D1) -> asyncio.Task[Recorded | Error]:
        return asyncio.create_task(self.uplinks.deliver(ACME, device, one))

    def count(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("fleetcast_uplinks_total", {"outcome": outcome})


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class TestAnswers:
    async def test_what_the_backend_took_is_recorded(self):
        desk = Desk()
        assert await desk.start(uplink(1)) == Recorded(uplink(1).id, "recorded")
        assert desk.count("recorded") == 1

    async def test_what_it_refused_for_good_is_refused(self):
        desk = Desk(False)
        assert await desk.start(uplink(1)) == Recorded(uplink(1).id, "refused", "uplink_refused")
        assert desk.backend.given == [("d1", 1)]

    async def test_what_it_could_not_take_is_tried_again_and_recorded(self):
        desk = Desk(AWAY, AWAY, True)
        assert await desk.start(uplink(1)) == Recorded(uplink(1).id, "recorded")
        assert 0.25 <= desk.waits[0] <= 0.5 <= desk.waits[1] <= 1.0

    async def test_attempts_spent_leave_it_to_the_device(self):
        desk = Desk(AWAY, AWAY, AWAY, AWAY)
        assert await desk.start(uplink(1)) == Error("uplink_unavailable", uplink(1).id.hex())
        assert len(desk.backend.given) == 3
        assert desk.count("unavailable") == 1

    async def test_a_backend_that_is_left_alone_is_not_waited_for(self):
        desk = Desk(OriginUnavailableError("open", code="origin_circuit_open"))
        assert await desk.start(uplink(1)) == Error("uplink_unavailable", uplink(1).id.hex())
        assert (len(desk.backend.given), desk.waits) == (1, [])

    async def test_one_of_best_effort_is_tried_once_and_then_over(self):
        desk = Desk(AWAY)
        one = uplink(1, best_effort=True)
        assert await desk.start(one) == Recorded(one.id, "refused", "uplink_unavailable")
        assert len(desk.backend.given) == 1

    async def test_without_a_backend_the_device_keeps_it(self):
        found = await NoUplinks().deliver(ACME, D1, uplink(1))
        assert found == Error("uplink_unconfigured", uplink(1).id.hex())


class TestOrder:
    async def test_a_devices_are_given_on_one_after_the_other(self):
        desk = Desk(AWAY, True, True)
        tasks = [desk.start(uplink(number)) for number in (1, 2, 3)]
        await asyncio.gather(*tasks)
        assert [number for _, number in desk.backend.given] == [1, 1, 2, 3]
        assert desk.backend.running_max == 1

    async def test_devices_do_not_wait_for_each_other(self):
        desk = Desk()
        desk.backend.gate.clear()
        tasks = [desk.start(uplink(1), D1), desk.start(uplink(2), D2)]
        await settle()
        assert desk.backend.running == 2
        desk.backend.gate.set()
        await asyncio.gather(*tasks)

    async def test_a_repeat_of_one_under_way_is_not_given_on_twice(self):
        desk = Desk()
        desk.backend.gate.clear()
        tasks = [desk.start(uplink(1)) for _ in range(3)]
        await settle()
        desk.backend.gate.set()
        assert set(await asyncio.gather(*tasks)) == {Recorded(uplink(1).id, "recorded")}
        assert len(desk.backend.given) == 1
        assert await desk.start(uplink(1)) == Recorded(uplink(1).id, "recorded")
        assert len(desk.backend.given) == 2  # the backend knows it by its id

    async def test_who_waits_with_one_that_is_given_up_comes_again(self):
        desk = Desk()
        desk.backend.gate.clear()
        first = desk.start(uplink(1))
        await settle()
        second = desk.start(uplink(1))
        await settle()
        first.cancel()
        assert await second == Error("uplink_unavailable", uplink(1).id.hex())


class TestBounds:
    @pytest.mark.parametrize(
        ("limits", "sizes"),
        [
            ({"device_queue_len_max": 2}, [4, 4]),
            ({"queue_len_max": 2}, [4, 4]),
            ({"queue_size_bytes_max": UPLINK_SIZE_MAX}, [UPLINK_SIZE_MAX - 3]),
        ],
    )
    async def test_at_the_bound_a_device_is_told_to_come_again(self, limits, sizes):
        desk = Desk(**limits)
        desk.backend.gate.clear()
        tasks = [desk.start(uplink(number, size=size)) for number, size in enumerate(sizes)]
        await settle()
        assert await desk.start(uplink(9)) == Error("uplink_busy", uplink(9).id.hex())
        best = uplink(8, best_effort=True)
        assert await desk.start(best) == Recorded(best.id, "refused", "uplink_busy")
        desk.backend.gate.set()
        await asyncio.gather(*tasks)
        assert await desk.start(uplink(9)) == Recorded(uplink(9).id, "recorded")

    async def test_with_the_backend_are_so_many_at_once(self):
        desk = Desk(concurrency_max=3)
        desk.backend.gate.clear()
        tasks = [desk.start(uplink(1), DeviceId(f"d{number}")) for number in range(10)]
        await settle()
        assert desk.backend.running == 3
        desk.backend.gate.set()
        await asyncio.gather(*tasks)
        assert desk.backend.running_max == 3

    async def test_nothing_is_kept_of_a_device_that_is_quiet(self):
        desk = Desk(AWAY, False)
        await desk.start(uplink(1))
        cancelled = desk.start(uplink(2))
        desk.backend.gate.clear()
        await settle()
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert desk.uplinks._lines == {}
        assert desk.metrics.registry.get_sample_value("fleetcast_uplinks_waiting") == 0
