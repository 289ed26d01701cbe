"""The few file operations that durable state needs, and their implementation on a file system.

What is in the files is ``journal`` and ``state``. A flash of another kind (a raw partition, a simulated
one) implements ``Flash``; ``MemoryFlash`` is the one that loses power on purpose.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from device_sdk.store.errors import FlashInUseError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_TEMPORARY_SUFFIX: Final = ".tmp"
_LOCK_NAME: Final = "lock"


class Flash(Protocol):
    """Named files of bytes that survive a loss of power as far as they were synced.

    Names are 1..64 of ``[a-z0-9._-]``, no dot first. Every implementation promises, and its tests check:

    * after ``sync`` returns, everything appended to the file before is on stable storage;
    * what was appended and not synced may be lost, or torn at any byte, or its space full of zeros;
    * ``replace`` is atomic and durable when it returns: before that the file is wholly old or wholly new;
    * a method that raises OSError may have done nothing, a part or all of its work.
    """

    def read(self, name: str) -> bytes | None:
        """Return the content of the file as a process sees it now, None if there is no file."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """Add ``data`` at the end of the file, which is made if there is none."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Make ``data`` the whole content of the file, atomically, on stable storage."""
        ...

    def sync(self, name: str) -> None:
        """Put the file on stable storage."""
        ...

    def remove(self, name: str) -> None:
        """Remove the file durably; one that is not there is no error."""
        ...

    def list(self) -> list[str]:
        """Return the names of all files, sorted."""
        ...


class FileFlash:
    """``Flash`` in one directory, which it makes (mode 0700) and locks against a second process.

    Raises:
        FlashInUseError: Another process holds the directory.
        OSError: As the file system has it; so do all methods.
    """

    def __init__(self, directory: Path | str) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files: dict[str, int] = {}
        self._lock = os.open(self._directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise FlashInUseError(f"{self._directory} is in use by another process") from error
        # What a loss of power left of a replacement that did not come to its rename.
        for leftover in self._directory.glob(f"*{_TEMPORARY_SUFFIX}"):
            leftover.unlink()

    def read(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def append(self, name: str, data: bytes) -> None:
        _write_all(self._open(name), data)

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(file, data)
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(file)
        temporary.rename(path)
        self._close(name)  # it is open on the old content
        self._sync_directory()

    def sync(self, name: str) -> None:
        os.fsync(self._open(name))

    def remove(self, name: str) -> None:
        self._close(name)
        self._path(name).unlink(missing_ok=True)
        self._sync_directory()

    def list(self) -> list[str]:
        return sorted(
            path.name
            for path in self._directory.iterdir()
            if path.name != _LOCK_NAME and not path.name.endswith(_TEMPORARY_SUFFIX) and path.is_file()
        )

    def close(self) -> None:
        """Release the directory. The object is of no use afterwards; a second call does nothing."""
        for name in list(self._files):
            self._close(name)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, name: str) -> Path:
        assert _NAME.match(name), name
        assert name != _LOCK_NAME
        assert not name.endswith(_TEMPORARY_SUFFIX), name
        return self._directory / name

    def _open(self, name: str) -> int:
        """Return the file, open for appending.

        One descriptor serves writes and syncs: the kernel reports a failed write-back to those that were
        open when it failed.
        """
        assert self._lock >= 0, "the flash is closed"
        file = self._files.get(name)
        if file is None:
            path = self._path(name)
            is_new = not path.exists()
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._files[name] = file
            if is_new:
                self._sync_directory()
        return file

    def _close(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is not None:
            os.close(file)

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
