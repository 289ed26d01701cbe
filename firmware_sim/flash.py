"""A device's flash and its power: what was not synced may be lost, cut short or zeros once the power goes.

One flash holds everything of a device, so that one loss of power hits all of it: ``state`` is the SDK's
``Flash``, ``slots`` its ``SlotFiles``. Every byte written and every sync, rename and removal takes one unit
of energy; with the last unit spent the write stops where it is and PowerLossError ends the program.

Promised is what those two protocols promise, and no more: of the operations on a file since its last sync a
part survives, in order, and the last of that part may be torn.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

from device_sdk.store import PowerLossError

_Operation = bytes | int
"""Bytes appended, or the size that the file was cut to."""


class VirtualFlash:
    """The files of one device, in memory.

    Args:
        capacity_bytes: More does not fit: ENOSPC.
        fails: Asked at each write; True: it does a part of its work and raises EIO.
    """

    def __init__(self, *, capacity_bytes: int = 2**26, fails: Callable[[], bool] = lambda: False) -> None:
        self._files: dict[str, _File] = {}
        self._capacity_bytes = capacity_bytes
        self._fails = fails
        self._energy: int | None = None
        self.is_dead = False
        self.spent = 0
        self.state = StateFiles(self)
        self.slots = SlotFiles(self)

    # --- power --------------------------------------------------------------------------------------------

    def set_energy(self, energy: int | None) -> None:
        """Lose power after ``energy`` more units; None: not by itself."""
        self._energy = energy

    def cut_power(self) -> None:
        """Lose power now: every operation from now on raises PowerLossError."""
        self.is_dead = True

    def restore_power(self, random: Random) -> None:
        """Be what the next boot finds."""
        for name in sorted(self._files):
            if not self._files[name].settle(random):
                del self._files[name]
        self._energy = None
        self.is_dead = False

    # --- files --------------------------------------------------------------------------------------------

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with ``prefix``, sorted."""
        self._check_power()
        return sorted(name for name in self._files if name.startswith(prefix))

    def has(self, name: str) -> bool:
        self._check_power()
        return name in self._files

    def size(self, name: str) -> int:
        self._check_power()
        file = self._files.get(name)
        return 0 if file is None else file.size

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        self._check_power()
        file = self._files.get(name)
        return b"" if file is None else file.read(offset, size)

    def append(self, name: str, data: bytes) -> None:
        self._check_power()
        file = self._files.setdefault(name, _File())
        if len(data) > self.free_bytes():
            raise OSError(errno.ENOSPC, "the flash is full")
        is_failing = self._fails()
        wanted = len(data) // 2 if is_failing else len(data)
        granted = self._grant(wanted)
        file.append(data[:granted])
        if granted < wanted:
            self._die()
        if is_failing:
            raise OSError(errno.EIO, "a simulated fault of the flash")

    def truncate(self, name: str, size: int) -> None:
        self._spend(1)
        if name in self._files:
            self._files[name].truncate(size)

    def sync(self, name: str) -> None:
        self._spend(1)
        if name in self._files:
            self._files[name].sync()

    def replace(self, name: str, data: bytes) -> None:
        # The temporary file and its sync: what is cut there is never seen under this name.
        self._spend(len(data) + 1)
        if len(data) - self.size(name) > self.free_bytes():
            raise OSError(errno.ENOSPC, "the flash is full")
        if self._fails():
            raise OSError(errno.EIO, "a simulated fault of the flash")
        self._spend(1)
        old, self._files[name] = self._files.get(name), _File(data)
        # The rename is done and not yet stable: the power may go between the two.
        self._files[name].before = old if old is not None else _NO_FILE
        self._spend(1)
        self._files[name].before = None

    def remove(self, name: str) -> None:
        self._spend(1)
        self._files.pop(name, None)

    def free_bytes(self) -> int:
        self._check_power()
        return max(0, self._capacity_bytes - sum(file.size for file in self._files.values()))

    # --- energy -------------------------------------------------------------------------------------------

    def _spend(self, units: int) -> None:
        if self._grant(units) < units:
            self._die()

    def _grant(self, units: int) -> int:
        """Return how many of ``units`` the energy left is enough for."""
        self._check_power()
        granted = units if self._energy is None else min(units, self._energy)
        if self._energy is not None:
            self._energy -= granted
        self.spent += granted
        return granted

    def _die(self) -> None:
        self.cut_power()
        raise PowerLossError

    def _check_power(self) -> None:
        if self.is_dead:
            raise PowerLossError


class StateFiles:
    """``device_sdk.store.Flash`` on a virtual flash."""

    _PREFIX = "state/"

    def __init__(self, flash: VirtualFlash) -> None:
        self._flash = flash

    def read(self, name: str) -> bytes | None:
        return self._flash.read(self._PREFIX + name) if self._flash.has(self._PREFIX + name) else None

    def append(self, name: str, data: bytes) -> None:
        self._flash.append(self._PREFIX + name, data)

    def replace(self, name: str, data: bytes) -> None:
        self._flash.replace(self._PREFIX + name, data)

    def sync(self, name: str) -> None:
        self._flash.sync(self._PREFIX + name)

    def remove(self, name: str) -> None:
        self._flash.remove(self._PREFIX + name)

    def list(self) -> list[str]:
        return [name.removeprefix(self._PREFIX) for name in self._flash.names(self._PREFIX)]


class SlotFiles:
    """``device_sdk.update.slots.SlotFiles`` on a virtual flash."""

    _PREFIX = "slots/"

    def __init__(self, flash: VirtualFlash) -> None:
        self._flash = flash

    def names(self) -> list[str]:
        return [name.removeprefix(self._PREFIX) for name in self._flash.names(self._PREFIX)]

    def size(self, name: str) -> int:
        return self._flash.size(self._PREFIX + name)

    def read(self, name: str, offset: int, size: int) -> bytes:
        return self._flash.read(self._PREFIX + name, offset, size)

    def append(self, name: str, data: bytes) -> None:
        self._flash.append(self._PREFIX + name, data)

    def truncate(self, name: str, size: int) -> None:
        self._flash.truncate(self._PREFIX + name, size)

    def sync(self, name: str) -> None:
        self._flash.sync(self._PREFIX + name)

    def replace(self, name: str, data: bytes) -> None:
        self._flash.replace(self._PREFIX + name, data)

    def free_bytes(self) -> int:
        return self._flash.free_bytes()


class _File:
    """A file: what is stable, and what was done since.

    Attributes:
        before: While a replacement is not yet stable: what the next boot finds if it is lost.
    """

    def __init__(self, stable: bytes = b"") -> None:
        self._stable = bytearray(stable)
        self._since: list[_Operation] = []
        self.before: _File | None = None
        self.size = len(stable)

    def read(self, offset: int, size: int | None) -> bytes:
        content = _applied(self._stable, self._since) if self._since else self._stable
        return bytes(content[offset : None if size is None else offset + size])

    def append(self, data: bytes) -> None:
        self._since.append(data)
        self.size += len(data)

    def truncate(self, size: int) -> None:
        if size < self.size:
            self._since.append(size)
            self.size = size

    def sync(self) -> None:
        for operation in self._since:
            _apply(self._stable, operation)
        self._since = []

    def settle(self, random: Random) -> bool:
        """Lose what a loss of power may take; return whether there is a file."""
        if self.before is not None and random.random() < 0.5:
            is_there = self.before is not _NO_FILE
            self._stable, self._since = self.before._stable, self.before._since
            self.before = None
            return is_there and self.settle(random)
        self.before = None
        self._since = _survivors(self._since, random)
        self.sync()
        self.size = len(self._stable)
        return True


def _survivors(operations: list[_Operation], random: Random) -> list[_Operation]:
    """Return the operations that reached the flash; the last may be torn, or its space full of zeros."""
    if not operations:
        return []
    kept = operations[: random.randrange(len(operations) + 1)]
    if kept and isinstance(kept[-1], bytes):
        data = kept[-1]
        at = random.randrange(len(data) + 1)
        match random.randrange(4):
            case 0:
                kept[-1] = data[:at]
            case 1:
                kept[-1] = bytes(at) + data[at:]
            case 2:
                kept[-1] = data[:at] + bytes(len(data) - at)
            case _:
                pass
    return kept


def _applied(stable: bytearray, operations: list[_Operation]) -> bytearray:
    content = bytearray(stable)
    for operation in operations:
        _apply(content, operation)
    return content


def _apply(content: bytearray, operation: _Operation) -> None:
    if isinstance(operation, bytes):
        content += operation
    else:
        del content[operation:]


_NO_FILE = _File()
