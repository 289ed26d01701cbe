"""The power goes at every write of a whole update, and the device goes on from its flash.

State and slots are on one flash, which loses what was not synced in every way that a flash may. After each
loss the gateway sends again what was not acknowledged, and the device must end as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from device_sdk.store import MemoryFlash, PowerLossError
from device_sdk.update import RebootRequiredError, UpdateLimits
from tests.unit.device_sdk.update.world import IMAGE, World, envelope, root

OLD = b"the image before"
# Few bytes between checkpoints and few to a write, so that the cuts fall everywhere.
LIMITS = UpdateLimits(checkpoint_bytes=256, progress_interval_s=0.001)


class CountingFlash(MemoryFlash):
    """Notes how much energy was spent before and after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[int] = []

    def append(self, name: str, data: bytes) -> None:
        super().append(name, data)
        self.marks.append(self.spent)

    def replace(self, name: str, data: bytes) -> None:
        super().replace(name, data)
        self.marks.append(self.spent)

    def sync(self, name: str) -> None:
        super().sync(name)
        self.marks.append(self.spent)


def world_on(flash: MemoryFlash, *, is_healthy: bool = True, tries: int = 3) -> World:
    world = World(flash=flash, limits=LIMITS, is_healthy=lambda: is_healthy, tries=tries)
    world.server.images = {"/image": IMAGE, "/old": OLD}
    world.on_report = lambda report: world.clock.advance(1)
    return world


async def prepared() -> dict[str, bytes]:
    """A flash on which an earlier update is committed and recorded, so that both slots are of interest."""
    world = world_on(MemoryFlash())
    world.open_trusting()
    old = envelope(OLD, sequence=3, uri="/old")
    await world.agent.receive_update(world.update(8, sequence=50, manifest=old))
    await world.work()
    world.record_all()
    return world.flash.files


async def run(world: World) -> None:
    """Boot, take the update as the gateway sends it until it is acknowledged, and work to the end."""
    world.open()
    assert world.agent.adopt_roots([root()]) is None
    if ("committed", None) not in world.told():
        assert await world.agent.receive_update(world.update())
    await world.work()


def assert_whole(world: World) -> None:
    """Whatever happened, a whole image runs."""
    assert world.running_image() in (OLD, IMAGE)
    if world.agent.installed()["main"].is_confirmed:
        expected = {3: OLD, 5: IMAGE}
        assert world.running_image() == expected[world.agent.installed()["main"].sequence]


def cuts(marks: list[int]) -> Iterator[int]:
    """Yield the energies at which each operation is cut before, in, and just before its end."""
    before = 0
    for mark in marks:
        yield from sorted({before, (before + mark) // 2, mark - 1})
        before = mark


@pytest.mark.parametrize("is_healthy", [True, False])
async def test_power_lost_at_any_write_of_an_update_changes_nothing_about_its_end(is_healthy: bool) -> None:
    files = await prepared()
    clean = CountingFlash()
    for name, data in files.items():
        clean.replace(name, data)
    clean.marks.clear()
    clean.spent = 0
    await run(world_on(clean, is_healthy=is_healthy))
    assert len(clean.marks) > 30
    outcome = ("committed", None) if is_healthy else ("rolled_back", "boot_failed")
    losses = 0
    for energy in cuts(clean.marks):
        world = world_on(MemoryFlash(files, energy=energy), is_healthy=is_healthy)
        with pytest.raises(PowerLossError):
            await run(world)
        for after in world.flash.aftermaths():
            losses += 1
            again = world_on(after, is_healthy=is_healthy)
            again.open()
            assert_whole(again)
            await run(again)
            assert again.told()[-1] == outcome, energy
            assert again.told().count(outcome) == 1
            assert again.running_image() == (IMAGE if is_healthy else OLD)
            [floor] = again.floors().values()
            assert isinstance(floor, list)
            assert floor[0] == (5 if is_healthy else 3)
            numbers = [report.seq for report in again.agent.pending_reports()]
            assert numbers == sorted(set(numbers))
    assert losses > 100


@pytest.mark.parametrize("seed", range(40))
async def test_power_lost_again_and_again_delays_and_does_no_more(seed: int) -> None:
    random = Random(seed)
    flash = MemoryFlash(await prepared())
    for attempt in range(200):
        flash.set_energy(random.randrange(40 + 40 * attempt))
        world = world_on(flash, tries=1000)
        world.boots = attempt + 1  # report ids are random; here they are numbered by boot
        try:
            await run(world)
        except PowerLossError:
            flash = flash.after_power_loss(random)
            continue
        break
    else:
        raise AssertionError(f"seed {seed}: it never ends")
    flash.set_energy(None)
    assert world.told()[-1] == ("committed", None)
    assert world.running_image() == IMAGE
    assert len({report.id for report in world.agent.pending_reports()}) == len(world.agent.pending_reports())


async def test_a_cancel_that_was_taken_holds_whatever_the_power_does() -> None:
    files = await prepared()
    clean = CountingFlash()
    for name, data in files.items():
        clean.replace(name, data)
    clean.marks.clear()
    clean.spent = 0

    async def take_and_cancel(world: World) -> bool:
        world.open()
        world.agent.adopt_roots([root()])
        await world.agent.receive_update(world.update())
        world.agent.cancel(world.update().deployment)
        return True

    await take_and_cancel(world_on(clean))
    for energy in cuts(clean.marks):
        world = world_on(MemoryFlash(files, energy=energy))
        with pytest.raises(PowerLossError):
            await take_and_cancel(world)
        for after in world.flash.aftermaths():
            again = world_on(after)
            await take_and_cancel(again)
            await again.work()
            assert again.told() == [("cancelled", None)]
            assert again.running_image() == OLD


async def test_a_reboot_in_every_step_goes_on_without_a_second_notice() -> None:
    for step in ("received", "verified", "downloading", "installing", "rebooting"):
        world = world_on(MemoryFlash(await prepared()))
        world.open_trusting()
        assert await world.agent.receive_update(world.update())

        class Stop(BaseException):
            pass

        def stop(report: object, step: str = step, stop: type[BaseException] = Stop) -> None:
            if getattr(report, "state", None) == step:
                raise stop

        if step != "received":
            world.on_report = stop
            with pytest.raises((Stop, RebootRequiredError)):
                await world.agent.work()
        world.on_report = lambda report: None
        world.open()
        await world.work()
        assert world.told()[-1] == ("committed", None)
        assert world.running_image() == IMAGE
