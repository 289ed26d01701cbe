"""The installer over two slots: what runs is never touched, and nothing is whole before it was read back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from device_sdk.errors import InstallFailedError, NoSpaceError
from device_sdk.store import MemoryFlash
from device_sdk.update import Boot, DirectorySlotFiles, Factory, Image, RebootRequiredError, SlotInstaller
from tests.unit.device_sdk.update.world import FlashSlotFiles

OLD, NEW = b"old image", b"a newer image"


def image_of(data: bytes, sequence: int = 1) -> Image:
    digest = hashlib.sha256(data).digest()
    return Image(
        digest=digest, size=len(data), manifest_digest=bytes([sequence] * 32), sequence=sequence, version="v"
    )


class Device:
    def __init__(self) -> None:
        self.flash = MemoryFlash()
        self.boot()

    def boot(self, *, is_boot: bool = True) -> SlotInstaller:
        self.installer = SlotInstaller(FlashSlotFiles(self.flash), tries=2, is_boot=is_boot)
        return self.installer

    async def write(self, data: bytes, image: Image | None = None) -> Image:
        image = image or image_of(data)
        await self.installer.begin("main", image)
        await self.installer.append("main", data)
        await self.installer.sync("main")
        return image

    async def install(self, data: bytes, image: Image | None = None) -> Image:
        image = await self.write(data, image)
        await self.installer.seal("main", image)
        await self.installer.activate("main", image)
        return image

    async def run_for_good(self, data: bytes, image: Image | None = None) -> Image:
        image = await self.install(data, image)
        self.boot()
        await self.installer.confirm("main", image)
        return image

    def running(self) -> bytes:
        return self.flash.files.get(self.installer.running_file("main"), b"")


async def test_an_image_goes_from_absent_to_confirmed() -> None:
    device = Device()
    image = image_of(NEW)
    assert device.installer.boot("main", image) is Boot.ABSENT
    await device.write(NEW)
    assert device.installer.boot("main", image) is Boot.ABSENT
    await device.installer.seal("main", image)
    assert device.installer.boot("main", image) is Boot.WRITTEN
    await device.installer.activate("main", image)
    assert device.installer.boot("main", image) is Boot.PENDING
    assert device.installer.running()["main"].sequence == 0
    installer = device.boot()
    assert installer.boot("main", image) is Boot.TRIAL
    assert not installer.running()["main"].is_confirmed
    await installer.confirm("main", image)
    assert installer.boot("main", image) is Boot.CONFIRMED
    assert installer.running()["main"] == (1, "v", image.manifest_digest, True)
    assert device.running() == NEW
    assert device.boot().boot("main", image) is Boot.CONFIRMED


async def test_images_alternate_between_the_slots_and_the_one_that_runs_is_never_touched() -> None:
    device = Device()
    await device.run_for_good(OLD, image_of(OLD, 1))
    before = device.running()
    await device.install(NEW, image_of(NEW, 2))
    assert device.running() == before == OLD
    device.boot()
    assert device.running() == NEW


async def test_a_trial_that_never_answers_is_rolled_back_by_the_bootloader() -> None:
    device = Device()
    await device.run_for_good(OLD, image_of(OLD, 1))
    image = await device.install(NEW, image_of(NEW, 2))
    for _ in range(2):
        assert device.boot().boot("main", image) is Boot.TRIAL
    assert device.boot().boot("main", image) is Boot.ROLLED_BACK
    assert device.running() == OLD


async def test_a_trial_that_is_given_up_runs_until_the_next_boot_and_is_not_written_over() -> None:
    device = Device()
    image = await device.install(NEW)
    installer = device.boot()
    await installer.roll_back("main", image)
    assert installer.boot("main", image) is Boot.CONDEMNED
    with pytest.raises(InstallFailedError):
        await installer.begin("main", image_of(OLD, 2))
    assert device.boot().boot("main", image) is Boot.ROLLED_BACK


async def test_every_call_may_be_repeated() -> None:
    device = Device()
    image = await device.install(NEW)
    await device.installer.activate("main", image)
    installer = device.boot()
    await installer.confirm("main", image)
    before = dict(device.flash.files)
    await installer.confirm("main", image)
    await installer.activate("main", image)
    await installer.roll_back("main", image)
    await installer.discard("main")
    assert device.flash.files == before


async def test_nothing_is_begun_during_a_trial() -> None:
    device = Device()
    await device.install(NEW)
    with pytest.raises(InstallFailedError):
        await device.installer.begin("main", image_of(OLD, 2))
    device.boot()
    with pytest.raises(InstallFailedError):
        await device.installer.begin("main", image_of(OLD, 2))


class TestWriting:
    async def test_only_what_was_synced_is_there_after_a_restart(self) -> None:
        device = Device()
        image = await device.write(NEW)
        await device.installer.append("main", b"unsynced")
        assert await device.boot().begin("main", image) == len(NEW)
        assert device.flash.files["main.b"] == NEW

    async def test_another_image_begins_at_nothing(self) -> None:
        device = Device()
        await device.write(NEW)
        assert await device.installer.begin("main", image_of(OLD, 2)) == 0
        assert device.flash.files["main.b"] == b""

    async def test_the_image_before_last_needs_no_bytes(self) -> None:
        device = Device()
        await device.run_for_good(OLD, image_of(OLD, 1))
        await device.run_for_good(NEW, image_of(NEW, 2))
        back = image_of(OLD, 3)
        assert await device.installer.begin("main", back) == len(OLD)
        await device.installer.seal("main", back)

    async def test_a_file_that_lost_bytes_counts_for_what_it_has(self) -> None:
        device = Device()
        image = await device.write(NEW)
        device.flash.replace("main.b", NEW[:3])
        assert await device.boot().begin("main", image) == 3

    async def test_a_restart_begins_at_nothing(self) -> None:
        device = Device()
        image = await device.write(NEW)
        await device.installer.restart("main")
        assert await device.installer.read("main", 0, 100) == b""
        assert await device.boot().begin("main", image) == 0

    async def test_what_reads_back_wrong_is_not_sealed(self) -> None:
        device = Device()
        image = await device.write(NEW)
        device.flash.replace("main.b", NEW[:-1] + b"?")
        with pytest.raises(InstallFailedError):
            await device.installer.seal("main", image)
        assert device.installer.boot("main", image) is Boot.ABSENT

    async def test_a_part_is_not_sealed(self) -> None:
        device = Device()
        image = image_of(NEW)
        await device.write(NEW[:5], image)
        with pytest.raises(InstallFailedError):
            await device.installer.seal("main", image)

    async def test_another_image_than_was_begun_is_not_sealed(self) -> None:
        device = Device()
        await device.write(NEW)
        with pytest.raises(InstallFailedError):
            await device.installer.seal("main", image_of(OLD, 2))

    async def test_nothing_is_written_that_was_not_begun(self) -> None:
        device = Device()
        with pytest.raises(InstallFailedError):
            await device.installer.append("main", b"x")

    async def test_what_is_discarded_is_gone(self) -> None:
        device = Device()
        image = await device.write(NEW)
        await device.installer.discard("main")
        assert device.flash.files["main.b"] == b""
        assert await device.installer.begin("main", image) == 0

    async def test_a_trial_cannot_be_discarded(self) -> None:
        device = Device()
        image = await device.install(NEW)
        await device.installer.discard("main")
        assert device.installer.boot("main", image) is Boot.PENDING


class TestRecord:
    async def test_a_damaged_copy_costs_one_change(self) -> None:
        device = Device()
        await device.run_for_good(NEW)
        copies = [name for name in device.flash.files if ".boot." in name]
        assert len(copies) == 2
        for name in copies:
            flash = MemoryFlash(device.flash.files)
            flash.replace(name, b"damaged")
            installer = SlotInstaller(FlashSlotFiles(flash), is_boot=False)
            # Either the trial before it was confirmed, or the confirmed one: the same image.
            assert installer.running()["main"].sequence == 1

    async def test_two_damaged_copies_are_not_guessed_at(self) -> None:
        device = Device()
        await device.run_for_good(NEW)
        for name in device.flash.files:
            if ".boot." in name:
                device.flash.replace(name, b"damaged")
        with pytest.raises(InstallFailedError):
            device.boot()

    def test_the_factory_says_what_runs_first(self) -> None:
        installer = SlotInstaller(
            FlashSlotFiles(MemoryFlash()), factory={"main": Factory(sequence=3, version="3.0")}
        )
        assert installer.running()["main"] == (3, "3.0", b"", True)

    async def test_an_own_bootloader_s_choice_is_taken(self) -> None:
        device = Device()
        image = await device.install(NEW)
        assert device.boot(is_boot=False).boot("main", image) is Boot.PENDING

    def test_a_trial_needs_a_try(self) -> None:
        with pytest.raises(ValueError, match="try"):
            SlotInstaller(FlashSlotFiles(MemoryFlash()), tries=0)


class TestComponents:
    async def test_each_has_its_own_slots_whatever_its_name(self) -> None:
        flash = MemoryFlash()
        names = ("main", "Main", "main:app", "0x00", "a" * 128)
        installer = SlotInstaller(FlashSlotFiles(flash), components=names)
        assert tuple(installer.components) == names
        for sequence, name in enumerate(names, 1):
            image = image_of(NEW, sequence)
            await installer.begin(name, image)
            await installer.append(name, NEW)
            await installer.seal(name, image)
            await installer.activate(name, image)
        installer.start()
        running = installer.running()
        assert [running[name].sequence for name in names] == [1, 2, 3, 4, 5]
        assert all(len(name) <= 64 for name in flash.files)


class TestHooks:
    async def test_without_a_hook_a_reboot_ends_the_process(self) -> None:
        with pytest.raises(RebootRequiredError):
            await SlotInstaller(FlashSlotFiles(MemoryFlash())).reboot("main")

    async def test_without_a_hook_a_trial_is_healthy_when_it_has_come_so_far(self) -> None:
        assert await SlotInstaller(FlashSlotFiles(MemoryFlash())).is_healthy("main")


class TestDirectory:
    async def test_a_whole_install_in_files(self, tmp_path: Path) -> None:
        directory = tmp_path / "slots"
        installer = SlotInstaller(directory)
        image = image_of(NEW)
        await installer.begin("main", image)
        for byte in NEW:
            await installer.append("main", bytes([byte]))
        await installer.sync("main")
        await installer.seal("main", image)
        await installer.activate("main", image)
        installer = SlotInstaller(directory)
        await installer.confirm("main", image)
        assert (directory / installer.running_file("main")).read_bytes() == NEW
        assert oct(directory.stat().st_mode & 0o777) == "0o700"

    def test_the_capacity_is_what_the_file_system_has_or_less(self, tmp_path: Path) -> None:
        free = DirectorySlotFiles(tmp_path).free_bytes()
        assert 0 < SlotInstaller(tmp_path).capacity_bytes("main") <= free * 2
        assert SlotInstaller(tmp_path, capacity_bytes=10).capacity_bytes("main") == 10

    def test_a_file_that_is_not_there_is_empty(self, tmp_path: Path) -> None:
        files = DirectorySlotFiles(tmp_path)
        assert (files.size("x"), files.read("x", 0, 9)) == (0, b"")

    async def test_a_full_file_system_is_no_space(self, tmp_path: Path) -> None:
        files = DirectorySlotFiles(tmp_path)
        installer = SlotInstaller(files)
        await installer.begin("main", image_of(NEW))

        def full(name: str, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        files.append = full  # type: ignore[method-assign]
        with pytest.raises(NoSpaceError):
            await installer.append("main", NEW)
