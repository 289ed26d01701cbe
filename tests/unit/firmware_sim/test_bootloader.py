"""Images on trial that panic or are sick are given up; those that were confirmed start."""

from __future__ import annotations

import hashlib
from typing import Any

from device_sdk.update import Boot, Factory, Image, SlotInstaller
from firmware_sim.bootloader import Bootloader
from firmware_sim.dice import Dice
from firmware_sim.flash import VirtualFlash
from firmware_sim.scenario import BootFaults
from firmware_sim.trace import Trace

CONTENT = b"image" * 100
IMAGE = Image(
    digest=hashlib.sha256(CONTENT).digest(),
    size=len(CONTENT),
    manifest_digest=bytes(32),
    sequence=5,
    version="1.4.0",
)


class World:
    def __init__(self, **faults: Any) -> None:
        self.flash = VirtualFlash()
        self.trace = Trace()
        self.bootloader = Bootloader(
            self.flash,
            component="main",
            factory=Factory(3, "1.3.0"),
            faults=BootFaults(**faults),
            dice=Dice(1, "dev-1"),
            trace=self.trace,
        )

    async def install(self) -> SlotInstaller:
        installer = self.bootloader.boot()
        assert installer is not None
        await installer.begin("main", IMAGE)
        await installer.append("main", CONTENT)
        await installer.seal("main", IMAGE)
        await installer.activate("main", IMAGE)
        return installer


def test_factory_image_always_starts() -> None:
    world = World(panic=1.0)
    for _ in range(5):
        installer = world.bootloader.boot()
        assert installer is not None
        assert installer.running()["main"][:2] == (3, "1.3.0")
    assert (world.bootloader.boots, world.trace.faults) == (5, [])


async def test_image_that_panics_is_given_up_and_the_old_one_starts() -> None:
    world = World(panic=1.0)
    await world.install()
    started = [world.bootloader.boot() for _ in range(4)]
    assert started[:3] == [None, None, None]
    assert started[3] is not None
    assert started[3].running()["main"].sequence == 3
    assert started[3].boot("main", IMAGE) is Boot.ROLLED_BACK
    assert world.trace.counts == {"panic": 3}


async def test_sick_image_starts_and_says_so_at_every_look() -> None:
    world = World(sick=1.0)
    await world.install()
    installer = world.bootloader.boot()
    assert installer is not None
    assert installer.boot("main", IMAGE) is Boot.TRIAL
    assert not await installer.is_healthy("main")
    assert not await installer.is_healthy("main")


async def test_healthy_image_is_confirmed_and_starts_from_then_on() -> None:
    world = World(panic=0.0)
    await world.install()
    installer = world.bootloader.boot()
    assert installer is not None
    assert await installer.is_healthy("main")
    await installer.confirm("main", IMAGE)
    again = world.bootloader.boot()
    assert again is not None
    assert again.running()["main"].sequence == 5
