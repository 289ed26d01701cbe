"""A flash in memory that loses power at a byte of your choice: for tests and simulated devices.

It promises exactly what ``Flash`` promises and no more, so that code which trusts unsynced bytes fails
here. Every byte written and every sync, rename and removal is one unit of energy; with the last one spent
``PowerLossError`` is raised, and ``aftermaths`` gives every kind of content the next boot may find.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from random import Random

from device_sdk.store.errors import PowerLossError

_Contents = list[bytes | None]  # of one file; None: there is no file


class MemoryFlash:
    """``Flash`` in a dict.

    Args:
        files: What is on it, durably.
        energy: Units until the power goes; None: never by itself.
    """

    def __init__(self, files: Mapping[str, bytes] | None = None, *, energy: int | None = None) -> None:
        self._durable: dict[str, bytes] = dict(files or {})
        self._visible: dict[str, bytes] = dict(self._durable)
        self._renamed: dict[str, bytes | None] = {}  # name: its durable content if the rename is lost
        self._energy = energy
        self.is_dead = False
        self.spent = 0

    @property
    def files(self) -> dict[str, bytes]:
        """What a process would read now, by name."""
        return dict(self._visible)

    def read(self, name: str) -> bytes | None:
        self._check_power()
        return self._visible.get(name)

    def append(self, name: str, data: bytes) -> None:
        written = self._spend(len(data))
        self._visible[name] = self._visible.get(name, b"") + data[:written]
        if written < len(data):
            self.cut_power()

    def replace(self, name: str, data: bytes) -> None:
        # The temporary file's bytes and its sync: what is cut there is never seen under this name.
        self._spend_or_die(len(data) + 1)
        self._spend_or_die(1)
        self._renamed[name] = self._durable.get(name)
        self._visible[name] = self._durable[name] = data
        self._spend_or_die(1)  # the directory's sync
        del self._renamed[name]

    def sync(self, name: str) -> None:
        self._spend_or_die(1)
        if name in self._visible:
            self._durable[name] = self._visible[name]

    def remove(self, name: str) -> None:
        self._spend_or_die(1)
        self._visible.pop(name, None)
        self._durable.pop(name, None)

    def list(self) -> list[str]:
        self._check_power()
        return sorted(self._visible)

    def set_energy(self, energy: int | None) -> None:
        """Lose power after ``energy`` more units, or (None) not by itself."""
        self._energy = energy

    def cut_power(self) -> None:
        """Lose power now.

        Raises:
            PowerLossError: Always, and from every method from now on.
        """
        self.is_dead = True
        raise PowerLossError

    def aftermaths(self) -> Iterator[MemoryFlash]:
        """Yield what the next boot may find: each kind of loss for each file that has something unsynced."""
        choices = []
        for name in sorted(self._visible.keys() | self._durable.keys()):
            contents = self._contents_after(name)
            choices.append([(name, content) for content in contents])
        for combination in itertools.product(*choices):
            yield MemoryFlash({name: content for name, content in combination if content is not None})

    def after_power_loss(self, random: Random) -> MemoryFlash:
        """Return one of ``aftermaths``, with the tear at a byte that ``random`` chooses."""
        files = {}
        for name in sorted(self._visible.keys() | self._durable.keys()):
            contents = self._contents_after(name)
            durable = self._durable.get(name, b"")
            tail = self._visible.get(name, b"")[len(durable) :]
            if tail:
                contents.append(durable + tail[: random.randrange(len(tail) + 1)])
            content = random.choice(contents)
            if content is not None:
                files[name] = content
        return MemoryFlash(files)

    def _contents_after(self, name: str) -> _Contents:
        if name in self._renamed:
            return [self._renamed[name], self._durable[name]]
        durable, visible = self._durable.get(name), self._visible.get(name)
        if durable == visible:
            return [durable]
        start = durable or b""
        tail = (visible or b"")[len(start) :]
        half = len(tail) // 2
        return [durable, visible, start + bytes(len(tail)), start + bytes(half) + tail[half:]]

    def _spend(self, units: int) -> int:
        """Return how many of ``units`` the energy left is enough for."""
        self._check_power()
        granted = units if self._energy is None else min(units, self._energy)
        if self._energy is not None:
            self._energy -= granted
        self.spent += granted
        return granted

    def _spend_or_die(self, units: int) -> None:
        if self._spend(units) < units:
            self.cut_power()

    def _check_power(self) -> None:
        if self.is_dead:
            raise PowerLossError
