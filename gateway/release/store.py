"""Where images are: files named by their SHA-256, written once, never changed.

Plain blocking file I/O: callers on an event loop go through a thread. Nothing is visible under a digest
before every byte of it is on the disk and hashed.

    directory/ab/abcdef…   an image
    directory/tmp/…        being written; what is left there after a crash is swept at the start
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from device_sdk.wire.errors import DigestMismatchError
from gateway.errors import LimitExceededError, NotFoundError

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class ArtifactLimits:
    """Bounds on one image.

    Attributes:
        artifact_size_bytes_max: A longer upload is refused at the first byte over it.
    """

    artifact_size_bytes_max: int = 1 << 30

    def __post_init__(self) -> None:
        assert self.artifact_size_bytes_max > 0, "a store for nothing"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A stored image: ``digest`` is its SHA-256 in lower-case hexadecimal."""

    digest: str
    size_bytes: int


class ArtifactStore:
    """Content-addressed files under one directory. Safe for several threads and several processes.

    Args:
        directory: Made if it is not there, mode 0750; on one file system.
        limits: Bounds on one image.
    """

    def __init__(self, directory: Path, limits: ArtifactLimits | None = None) -> None:
        self._directory = directory
        self._tmp = directory / "tmp"
        self._limits = limits or ArtifactLimits()
        self._tmp.mkdir(mode=0o750, parents=True, exist_ok=True)

    @property
    def limits(self) -> ArtifactLimits:
        """The bounds on one image."""
        return self._limits

    def sweep(self, *, modified_before_ms: int) -> int:
        """Remove what crashed uploads left, return how many files that were.

        Args:
            modified_before_ms: Milliseconds UTC; a file written to since then may be an upload of another
                process and stays.
        """
        count = 0
        for path in self._tmp.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns // 1_000_000 < modified_before_ms:
                    path.unlink()
                    count += 1
        return count

    def writer(self) -> ArtifactWriter:
        """Return a writer for one upload; use it in a ``with`` block, which drops what is not committed."""
        return ArtifactWriter(self, self._tmp / secrets.token_hex(16), self._limits)

    def find(self, digest: str) -> Artifact:
        """Return the image ``digest``.

        Raises:
            NotFoundError: There is none, or ``digest`` is not 64 lower-case hexadecimal digits.
        """
        try:
            return Artifact(digest, self.path(digest).stat().st_size)
        except FileNotFoundError:
            raise NotFoundError("no such artifact") from None

    def open(self, digest: str) -> BinaryIO:
        """Return the image ``digest``, open for reading at any position; the caller closes it.

        Raises:
            NotFoundError: As ``find``.
        """
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise NotFoundError("no such artifact") from None

    def read(self, digest: str, *, start: int, size_max: int) -> bytes:
        """Return up to ``size_max`` bytes of the image from ``start``; fewer only at its end.

        Raises:
            NotFoundError: As ``find``.
        """
        assert start >= 0, "ranges are resolved before"
        with self.open(digest) as file:
            file.seek(start)
            return file.read(size_max)

    def delete(self, digest: str) -> None:
        """Remove the image ``digest``; those who have it open read on.

        Raises:
            NotFoundError: As ``find``.
        """
        try:
            self.path(digest).unlink()
        except FileNotFoundError:
            raise NotFoundError("no such artifact") from None

    def path(self, digest: str) -> Path:
        """Return where ``digest`` is or would be.

        Raises:
            NotFoundError: Not 64 lower-case hexadecimal digits, so never a path of the caller's making.
        """
        if not _DIGEST.match(digest):
            raise NotFoundError("no such artifact")
        return self._directory / digest[:2] / digest


class ArtifactWriter:
    """One upload: ``write`` its pieces, then ``commit``. Made by ``ArtifactStore.writer``."""

    def __init__(self, store: ArtifactStore, path: Path, limits: ArtifactLimits) -> None:
        self._store = store
        self._path = path
        self._limits = limits
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._file: BinaryIO | None = path.open("xb")

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._size_bytes

    def write(self, piece: bytes) -> None:
        """Append ``piece``.

        Raises:
            LimitExceededError: The image is longer than ``artifact_size_bytes_max``; it is dropped.
            OSError: As the file system has it: no space, most of all.
        """
        assert self._file is not None, "committed or dropped before"
        size_bytes = self._size_bytes + len(piece)
        if size_bytes > self._limits.artifact_size_bytes_max:
            self.drop()
            raise LimitExceededError(
                "artifact_size_bytes_max", size_bytes, self._limits.artifact_size_bytes_max
            )
        self._file.write(piece)
        self._hash.update(piece)
        self._size_bytes = size_bytes

    def commit(self, *, digest: str | None = None) -> Artifact:
        """Put the image under its digest, durably; a second copy of an image is dropped.

        Args:
            digest: What the caller was promised, lower-case hexadecimal SHA-256.

        Raises:
            DigestMismatchError: The bytes are others; they are dropped.
        """
        assert self._file is not None, "committed or dropped before"
        actual = self._hash.hexdigest()
        if digest is not None and digest != actual:
            self.drop()
            raise DigestMismatchError("the artifact is not the one that was announced")
        self._file.flush()
        os.fsync(self._file.fileno())
        target = self._store.path(actual)
        target.parent.mkdir(mode=0o750, exist_ok=True)
        self._path.rename(target)  # the same bytes, if there was a file
        self._file.close()
        self._file = None
        # The names, too, must outlive a loss of power: the file's, and that of its directory.
        _sync_directory(target.parent)
        _sync_directory(target.parent.parent)
        return Artifact(actual, self._size_bytes)

    def drop(self) -> None:
        """Forget the upload; once committed, do nothing."""
        if self._file is None:
            return
        file, self._file = self._file, None
        self._path.unlink(missing_ok=True)
        # Closing flushes, and a full disk fails that too; the file is gone either way.
        with contextlib.suppress(OSError):
            file.close()

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
