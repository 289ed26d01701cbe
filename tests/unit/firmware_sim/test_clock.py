"""A device's clock says what its scenario says, the same for the same seed."""

from __future__ import annotations

from typing import Any

from firmware_sim.clock import VirtualClock
from firmware_sim.dice import Dice
from firmware_sim.scenario import ClockFaults
from firmware_sim.trace import Trace

NOW_MS = 1_800_000_000_000


class World:
    def __init__(self, seed: int = 1, **faults: Any) -> None:
        self.passed_s = 0.0
        self.trace = Trace()
        self.clock = VirtualClock(
            ClockFaults(**faults),
            dice=Dice(seed, "dev-1"),
            trace=self.trace,
            monotonic_s=lambda: 100 + self.passed_s,
            wall_ns=lambda: int((NOW_MS + self.passed_s * 1000) * 1_000_000),
        )


def test_trusted_clock_is_right() -> None:
    world = World()
    world.passed_s = 5
    world.clock.boot()
    assert world.clock.wall_ms() == NOW_MS + 5_000
    assert world.clock.monotonic() == 105


def test_device_without_a_clock_has_none() -> None:
    assert World(kind="none").clock.wall_ms() is None


def test_clock_without_a_battery_begins_at_1970_at_each_boot() -> None:
    world = World(kind="resets")
    world.passed_s = 7
    assert world.clock.wall_ms() == 7_000
    world.clock.boot()
    assert world.clock.wall_ms() == 0
    world.passed_s = 9
    assert world.clock.wall_ms() == 2_000


def test_clock_leaps_as_often_as_the_scenario_says_and_each_time_from_where_it_is() -> None:
    world = World(jumps=2, jump_s=(-60, -60), jump_every_s=(10, 10))
    world.passed_s = 9
    assert world.clock.wall_ms() == NOW_MS + 9_000
    world.passed_s = 10
    assert world.clock.wall_ms() == NOW_MS + 10_000 - 60_000
    world.passed_s = 500
    assert world.clock.wall_ms() == NOW_MS + 500_000 - 120_000
    world.passed_s = 1000
    assert world.clock.wall_ms() == NOW_MS + 1_000_000 - 120_000
    assert world.trace.counts == {"clock_jump": 2}


def test_no_clock_is_before_1970() -> None:
    world = World(jumps=1, jump_s=(-3e9, -3e9), jump_every_s=(1, 1))
    world.passed_s = 2
    assert world.clock.wall_ms() == 0


def test_same_seed_has_the_same_leaps() -> None:
    said = []
    for seed in (1, 1, 2):
        world = World(seed=seed, jumps=5, jump_s=(-100, 100), jump_every_s=(1, 3))
        world.passed_s = 50
        said.append(world.clock.wall_ms())
    assert said[0] == said[1] != said[2]
