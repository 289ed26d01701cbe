"""An installer for two slots in files, with the boot record that a bootloader would keep.

The slot that runs is never written. What goes into the other one is usable at no moment but after ``seal``
read it back, and runs for good only after ``confirm``; a power loss at any byte leaves a record that names
a whole image. What a bootloader decides is in ``boot_record``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from device_sdk.errors import InstallFailedError, NoSpaceError
from device_sdk.update import boot_record
from device_sdk.update.boot_record import BootRecord, Content, Slot, SlotState
from device_sdk.update.ports import Boot, Image, RebootRequiredError
from device_sdk.wire.messages import Installed
from device_sdk.wire.names import parse_channel_name

TRIES: Final = 3
_READ_SIZE: Final = 256 * 1024
_PLAIN_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}\Z")


class SlotFiles(Protocol):
    """The file operations that slots need. Names are 1..64 of ``[a-z0-9._-]``.

    Promised: ``replace`` is atomic and on stable storage when it returns; ``sync`` returns once the file
    is on stable storage; what was appended since may be lost, torn, or zeros.
    """

    def size(self, name: str) -> int:
        """Return the file's bytes; 0 if there is none."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on; empty at the end."""

    def append(self, name: str, data: bytes) -> None:
        """Write ``data`` behind the end of the file, which is made if there is none."""

    def truncate(self, name: str, size: int) -> None:
        """Keep the first ``size`` bytes."""

    def sync(self, name: str) -> None:
        """Put the file on stable storage."""

    def replace(self, name: str, data: bytes) -> None:
        """Make ``data`` the whole content of the file, atomically and durably."""

    def free_bytes(self) -> int:
        """Return how much more fits."""


class DirectorySlotFiles:
    """``SlotFiles`` in a directory of a file system, which is made if there is none."""

    def __init__(self, directory: Path | str) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Return where the file is."""
        return self._directory / name

    def size(self, name: str) -> int:
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, name: str, offset: int, size: int) -> bytes:
        try:
            with self.path(name).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:
            return b""

    def append(self, name: str, data: bytes) -> None:
        with self.path(name).open("ab", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]

    def truncate(self, name: str, size: int) -> None:
        with self.path(name).open("ab") as file:
            file.truncate(size)

    def sync(self, name: str) -> None:
        with self.path(name).open("ab") as file:
            os.fsync(file.fileno())
        self._sync_directory()

    def replace(self, name: str, data: bytes) -> None:
        temporary = self.path(f"{name}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path(name))
        self._sync_directory()

    def free_bytes(self) -> int:
        found = os.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


async def _refuse_to_reboot(component: str) -> None:
    raise RebootRequiredError(component)


async def _trust(component: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Factory:
    """What slot A holds before the first update: sequence and version as the factory's image has them."""

    sequence: int = 0
    version: str = ""


class SlotInstaller:
    """``Installer`` over two files a component: ``<component>.a`` and ``<component>.b``.

    Opening it is a boot: the bootloader's decision is taken and stored (``start``). On a device whose own
    bootloader keeps the record, give ``is_boot=False`` and let it call ``boot_record.boot``.

    Args:
        files: Where the slots are: a directory, or another ``SlotFiles``.
        components: What can be installed.
        capacity_bytes: Size of a slot; None: what the file system has.
        reboot: Restarts the device. It may return once ``start`` was called, or never. Without one,
            RebootRequiredError ends the agent, and the next process is the next boot.
        is_healthy: Asked in the trial, at every boot of it, until it confirms or is given up.
        tries: Boots of a trial that may end without an answer.
        factory: What runs in slot A before the first update, by component.

    Raises:
        InstallFailedError: Both copies of a boot record are damaged.
        OSError: From the file system.
    """

    def __init__(
        self,
        files: SlotFiles | Path | str,
        *,
        components: Collection[str] = ("main",),
        capacity_bytes: int | None = None,
        reboot: Callable[[str], Awaitable[None]] = _refuse_to_reboot,
        is_healthy: Callable[[str], Awaitable[bool]] = _trust,
        tries: int = TRIES,
        factory: Mapping[str, Factory] | None = None,
        is_boot: bool = True,
    ) -> None:
        if tries < 1:
            raise ValueError("a trial needs at least one try")
        self._files = DirectorySlotFiles(files) if isinstance(files, Path | str) else files
        self._components: tuple[str, ...] = tuple(map(parse_channel_name, components))
        self._capacity_bytes = capacity_bytes
        self._reboot = reboot
        self._is_healthy = is_healthy
        self._tries = tries
        self._factory = dict(factory or {})
        self._records = {component: self._load(component) for component in self._components}
        if is_boot:
            self.start()

    def start(self) -> None:
        """Boot: choose for each component what runs, store the choice, and read the records anew."""
        for component in self._components:
            record = self._load(component)
            self._records[component] = record
            chosen = boot_record.boot(record)
            if chosen != record:
                self._store(component, chosen)

    # --- what runs ---

    @property
    def components(self) -> Collection[str]:
        """Names of the components that can be installed."""
        return self._components

    def running(self) -> Mapping[str, Installed]:
        """Return what each component runs now, by its manifest; sequence 0 where the factory put it."""
        return {component: self._running(component) for component in self._components}

    def running_file(self, component: str) -> str:
        """Return the name of the file with the image that runs."""
        return _slot_name(component, self._records[component].running)

    def capacity_bytes(self, component: str) -> int:
        """Return the largest image that fits into a slot now."""
        target = _slot_name(component, self._records[component].target)
        available = self._files.free_bytes() + self._files.size(target)
        return available if self._capacity_bytes is None else min(available, self._capacity_bytes)

    def boot(self, component: str, image: Image) -> Boot:
        """Return how far ``image`` has come."""
        record = self._records[component]
        target = record.target
        for slot in (target, record.active):
            if record.slots[slot].image == image:
                break
        else:
            return Boot.ABSENT
        is_running = record.running is slot
        match record.slots[slot].content:
            case Content.GOOD:
                return Boot.CONFIRMED if is_running else Boot.ROLLED_BACK
            case Content.BAD:
                return Boot.CONDEMNED if is_running else Boot.ROLLED_BACK
            case Content.SEALED if record.trial is slot:
                return Boot.TRIAL if is_running else Boot.PENDING
            case Content.SEALED:
                return Boot.WRITTEN
            case _:
                return Boot.ABSENT

    # --- writing ---

    async def begin(self, component: str, image: Image) -> int:
        """Mark the slot that does not run as being written; return how much of ``image`` is there.

        Bytes of the same image are kept: of an interrupted download, and of the release before last when
        a fleet is rolled back to it. ``Installer.begin`` says that they are hashed again.
        """
        record = self._records[component]
        target = record.target
        if record.trial is not None or record.running is target:
            raise InstallFailedError("a trial is not at its end")
        name = _slot_name(component, target)
        state = record.slots[target]
        kept = 0
        if state.image is not None and (state.image.digest, state.image.size) == (image.digest, image.size):
            # What is complete was synced whole; the file may have lost bytes nevertheless.
            is_whole = state.content is not Content.WRITING
            kept = min(image.size if is_whole else state.written, self._files.size(name))
        # The record first: at no moment does it call a slot whole that is being written.
        self._store(component, record.with_slot(target, SlotState(Content.WRITING, kept, image)))
        if self._files.size(name) > kept:
            self._files.truncate(name, kept)
        return kept

    async def restart(self, component: str) -> None:
        """Drop every byte that was written of the image in hand."""
        record, target, state = self._writing(component)
        self._store(component, record.with_slot(target, replace(state, written=0)))
        self._files.truncate(_slot_name(component, target), 0)

    async def read(self, component: str, offset: int, size: int) -> bytes:
        """Return up to ``size`` of the bytes written from ``offset`` on."""
        return self._files.read(_slot_name(component, self._records[component].target), offset, size)

    async def append(self, component: str, data: bytes) -> None:
        """Write ``data`` behind what was written.

        Raises:
            NoSpaceError: It does not fit.
        """
        _, target, _ = self._writing(component)
        try:
            self._files.append(_slot_name(component, target), data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError("the file system is full") from error
            raise

    async def sync(self, component: str) -> None:
        """Put what was written on stable storage, then say so in the record."""
        record, target, state = self._writing(component)
        name = _slot_name(component, target)
        self._files.sync(name)
        self._store(component, record.with_slot(target, replace(state, written=self._files.size(name))))

    async def seal(self, component: str, image: Image) -> None:
        """Read back what was written; the slot is whole if that is ``image``.

        Raises:
            InstallFailedError: It is not: the flash keeps other bytes than it was given.
        """
        record, target, state = self._writing(component)
        name = _slot_name(component, target)
        if state.image != image:
            raise InstallFailedError("the slot is being written with another image")
        self._files.sync(name)
        digest = hashlib.sha256()
        offset = 0
        while data := self._files.read(name, offset, _READ_SIZE):
            digest.update(data)
            offset += len(data)
            await asyncio.sleep(0)  # an image is long, and connections are alive
        if offset != image.size or digest.digest() != image.digest:
            raise InstallFailedError("the slot reads back other bytes than were written")
        self._store(component, record.with_slot(target, SlotState(Content.SEALED, offset, image)))

    async def discard(self, component: str) -> None:
        """Drop what was written and never put on trial."""
        record = self._records[component]
        target = record.target
        if record.trial is None and record.slots[target].content in (Content.WRITING, Content.SEALED):
            self._store(component, record.with_slot(target, SlotState()))
            with contextlib.suppress(OSError):  # the record says that the slot is empty
                self._files.truncate(_slot_name(component, target), 0)

    # --- trial ---

    async def activate(self, component: str, image: Image) -> None:
        """Put the sealed image on trial from the next boot on."""
        if self.boot(component, image) is Boot.WRITTEN:
            record = self._records[component]
            self._store(component, replace(record, trial=record.target, tries_left=self._tries))

    async def reboot(self, component: str) -> None:
        """Call the hook; as ``Installer.reboot``."""
        await self._reboot(component)

    async def is_healthy(self, component: str) -> bool:
        """Ask the hook whether the image on trial works."""
        return await self._is_healthy(component)

    async def confirm(self, component: str, image: Image) -> None:
        """Make the image on trial the one that runs for good, in one replacement of the record."""
        if self.boot(component, image) is Boot.TRIAL:
            record = self._records[component]
            slot = record.running
            confirmed = record.with_slot(slot, replace(record.slots[slot], content=Content.GOOD))
            self._store(component, replace(confirmed, active=slot, trial=None, tries_left=0))

    async def roll_back(self, component: str, image: Image) -> None:
        """Give the trial of ``image`` up: the next boot starts the other slot."""
        if self.boot(component, image) in (Boot.PENDING, Boot.TRIAL):
            self._store(component, boot_record.give_up(self._records[component]))

    # --- the record ---

    def _running(self, component: str) -> Installed:
        record = self._records[component]
        image = record.slots[record.running].image
        is_confirmed = record.running is record.active
        if image is None:
            factory = self._factory.get(component, Factory())
            return Installed(factory.sequence, factory.version, b"", is_confirmed)
        return Installed(image.sequence, image.version, image.manifest_digest, is_confirmed)

    def _writing(self, component: str) -> tuple[BootRecord, Slot, SlotState]:
        record = self._records[component]
        state = record.slots[record.target]
        if state.content is not Content.WRITING:
            raise InstallFailedError("no image is being written")
        return record, record.target, state

    def _load(self, component: str) -> BootRecord:
        copies = [self._files.read(name, 0, boot_record.RECORD_SIZE_MAX) for name in _record_names(component)]
        found = [record for copy in copies if (record := boot_record.decode(copy)) is not None]
        if not found:
            if any(copies):
                raise InstallFailedError(f"the boot record of {component} is damaged")
            return BootRecord()
        return max(found, key=lambda record: record.counter)

    def _store(self, component: str, record: BootRecord) -> None:
        numbered = replace(record, counter=self._records[component].counter + 1)
        # The copy that is written is never the newest: its loss loses this change alone.
        name = _record_names(component)[numbered.counter % 2]
        self._files.replace(name, boot_record.encode(numbered))
        self._records[component] = numbered


def _file_stem(component: str) -> str:
    if _PLAIN_NAME.match(component):
        return component
    return "x-" + hashlib.sha256(component.encode()).hexdigest()[:32]


def _slot_name(component: str, slot: Slot) -> str:
    return f"{_file_stem(component)}.{slot.value}"


def _record_names(component: str) -> tuple[str, str]:
    stem = _file_stem(component)
    return f"{stem}.boot.0", f"{stem}.boot.1"
