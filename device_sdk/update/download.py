"""Downloading an image into a slot: resumable, capped, not too slow, verified over the whole (SECURITY.md).

Nothing that a server says is believed. What is on flash is hashed again before it is added to, no byte past
the signed size is written, and an image whose digest is wrong is fetched anew once if it was pieced together
from several answers, else refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass

from device_sdk.errors import (
    DownloadFailedError,
    ImageDigestMismatchError,
    InstallFailedError,
    TooLargeError,
    TooSlowError,
)
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.ports import (
    DeviceClock,
    Fetch,
    FetchBusyError,
    Fetched,
    FetchError,
    FetchRangeError,
    FetchUnreachableError,
    Image,
    Installer,
)

_READ_SIZE = 256 * 1024


@dataclass(slots=True)
class Download:
    """The download of one image; ``run`` returns with all of it, verified, on stable storage.

    Attributes:
        etag: The validator of what is on flash, for ``If-Range``. None: unknown.
        uniform: Returns a number of [0, 1): jitter.
        keep_etag: Stores a validator before bytes under it are written.
        report_progress: Told how many bytes are there, after each chunk.
        check_time: Raises if it has become too late; asked before each attempt.
    """

    image: Image
    uri: str
    component: str
    installer: Installer
    fetch: Fetch
    clock: DeviceClock
    limits: UpdateLimits
    uniform: Callable[[], float]
    etag: str | None
    keep_etag: Callable[[str | None], None]
    report_progress: Callable[[int], None]
    check_time: Callable[[], None]

    async def run(self) -> None:
        """Fetch until the whole image is on stable storage and is the one that was signed.

        Raises:
            TooLargeError: The server has more than the manifest says.
            TooSlowError: It stayed under the minimum rate, ``slow_attempts_max`` times.
            DownloadFailedError: ``attempts_max`` attempts in a row brought nothing worth mentioning.
            ImageDigestMismatchError: The bytes are not the image.
            NoSpaceError: The slot is full.
            Whatever ``check_time`` raises.
        """
        writer = await _Writer.open(self.installer, self.component, self.image)
        if writer.size == 0:
            self.etag = None
        counts = _Counts(self.limits)
        may_restart = True
        while True:
            if writer.size == self.image.size:
                await writer.sync()
                if writer.digest() == self.image.digest:
                    return
                if not (writer.is_pieced and may_restart):
                    raise ImageDigestMismatchError("the image is not the one that was signed")
                may_restart = False
                await self._begin_anew(writer)
            self.check_time()
            before = writer.size
            try:
                await self._attempt(writer)
            except FetchBusyError as error:
                delay_s = error.retry_after_s if error.retry_after_s is not None else self.limits.busy_wait_s
                await self.clock.sleep(min(max(delay_s, 1.0), self.limits.busy_wait_max_s))
            except (FetchError, TooSlowError) as error:
                if isinstance(error, FetchRangeError):
                    await self._begin_anew(writer)
                failures = counts.failures_after(error, gained=writer.size - before)
                ceiling_s = min(self.limits.backoff_max_s, self.limits.backoff_s * 2 ** min(failures, 30))
                await self.clock.sleep(self.uniform() * ceiling_s)

    async def _begin_anew(self, writer: _Writer) -> None:
        self.etag = None
        await writer.restart()

    async def _attempt(self, writer: _Writer) -> None:
        """Take one answer as far as it goes.

        Raises:
            FetchError: It ended before the image did, or was silent for too long.
            TooSlowError, TooLargeError, NoSpaceError: As ``run``, for this answer.
        """
        async with AsyncExitStack() as stack:
            answer = await self._answer(stack, writer.size)
            if answer.size is not None and answer.size > self.image.size:
                raise TooLargeError(f"the server has {answer.size} bytes, {self.image.size} are signed")
            if answer.size is not None and answer.size < self.image.size:
                # Not this image: a portal's page, say. Nothing of it is written.
                raise FetchError(f"the server has {answer.size} bytes, {self.image.size} are signed")
            if answer.offset not in (0, writer.size):
                raise FetchError("a range that was not asked for")
            if answer.offset != writer.size:
                # The range was ignored, or the entity is another one: from the beginning.
                await writer.restart()
            elif writer.size:
                writer.is_pieced = True
            if answer.etag != self.etag:
                self.keep_etag(answer.etag)
                self.etag = answer.etag
            await self._take(answer.chunks, writer)
        if writer.size < self.image.size:
            raise FetchError(f"the answer ended at {writer.size} of {self.image.size} bytes")

    async def _answer(self, stack: AsyncExitStack, offset: int) -> Fetched:
        etag = self.etag if offset else None
        try:
            async with asyncio.timeout(self.limits.chunk_timeout_s):
                return await stack.enter_async_context(self.fetch.fetch(self.uri, offset=offset, etag=etag))
        except TimeoutError as error:
            raise FetchError("no answer") from error

    async def _take(self, chunks: AsyncIterator[bytes], writer: _Writer) -> None:
        window_from, window_size = self.clock.monotonic(), writer.size
        while writer.size < self.image.size:
            try:
                async with asyncio.timeout(self.limits.chunk_timeout_s):
                    chunk = await anext(chunks, None)
            except TimeoutError as error:
                raise FetchError("the server fell silent") from error
            if chunk is None:
                return
            if writer.size + len(chunk) > self.image.size:
                # Endless data: cut here, whatever the first bytes are.
                raise TooLargeError(f"the server sends more than the {self.image.size} bytes signed")
            await writer.append(chunk)
            if writer.unsynced >= self.limits.checkpoint_bytes:
                await writer.sync()
            self.report_progress(writer.size)
            elapsed_s = self.clock.monotonic() - window_from
            if elapsed_s >= self.limits.rate_window_s and writer.size < self.image.size:
                rate = (writer.size - window_size) / elapsed_s
                if rate < self.limits.rate_min_bytes_per_s:
                    raise TooSlowError(f"{rate:.0f} bytes/s over {elapsed_s:.0f} s")
                window_from, window_size = self.clock.monotonic(), writer.size


class _Counts:
    """How often it has failed, and for how long that goes on."""

    def __init__(self, limits: UpdateLimits) -> None:
        self._limits = limits
        self._failures = 0  # in a row, for the backoff
        self._attempts = 0
        self._slow_attempts = 0

    def failures_after(self, error: FetchError | TooSlowError, *, gained: int) -> int:
        """Count ``error``, which came after ``gained`` bytes; return the failures in a row.

        Raises:
            TooSlowError, DownloadFailedError: It was the last attempt.
        """
        if gained >= self._limits.attempt_progress_bytes:
            self._failures = self._attempts = 0
        self._failures += 1
        if isinstance(error, TooSlowError):
            self._slow_attempts += 1
            if self._slow_attempts >= self._limits.slow_attempts_max:
                raise error
        elif not isinstance(error, FetchUnreachableError):
            self._attempts += 1
            if self._attempts >= self._limits.attempts_max:
                raise DownloadFailedError(f"{self._attempts} attempts in a row failed") from error
        return self._failures


class _Writer:
    """What is in the slot, and the digest of it."""

    def __init__(self, installer: Installer, component: str) -> None:
        self._installer = installer
        self._component = component
        self._hash = hashlib.sha256()
        self.size = 0
        self.unsynced = 0
        self.is_pieced = False  # together from more than one answer

    @classmethod
    async def open(cls, installer: Installer, component: str, image: Image) -> _Writer:
        """Return the writer behind what of ``image`` is on flash, hashed again."""
        writer = cls(installer, component)
        with blamed_on_installer():
            kept = await installer.begin(component, image)
        while writer.size < kept:
            with blamed_on_installer():
                data = await installer.read(component, writer.size, min(_READ_SIZE, kept - writer.size))
            if not data:
                await writer.restart()
                break
            writer._hash.update(data)
            writer.size += len(data)
            await asyncio.sleep(0)  # an image is long, and connections are alive
        writer.is_pieced = writer.size > 0
        return writer

    async def append(self, data: bytes) -> None:
        with blamed_on_installer():
            await self._installer.append(self._component, data)
        self._hash.update(data)
        self.size += len(data)
        self.unsynced += len(data)

    async def sync(self) -> None:
        with blamed_on_installer():
            await self._installer.sync(self._component)
        self.unsynced = 0

    async def restart(self) -> None:
        with blamed_on_installer():
            await self._installer.restart(self._component)
        self._hash = hashlib.sha256()
        self.size = self.unsynced = 0
        self.is_pieced = False

    def digest(self) -> bytes:
        return self._hash.digest()


@contextmanager
def blamed_on_installer() -> Iterator[None]:
    """Turn an installer's OSError into the update's failure, before somebody takes it for the network's."""
    try:
        yield
    except OSError as error:
        raise InstallFailedError(str(error)) from error
