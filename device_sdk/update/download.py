"""Downloading an image into a slot: resumable, capped, not too slow, verified over the whole (DESIGN §6).

Nothing that a server says is believed. What is on flash is hashed again before it is added to, no byte past
the signed size is written, and an image whose digest is wrong is fetched anew once if it was pieced together
from several answers, else refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from device_sdk.errors import (
    DownloadFailedError,
    ImageDigestMismatchError,
    TooLargeError,
    TooSlowError,
)
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.ports import DeviceClock, Fetch, FetchBusyError, Fetched, FetchError, Image, Installer

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
        attempts = slow_attempts = 0
        may_restart = True
        while True:
            if writer.size == self.image.size:
                await writer.sync()
                if writer.digest() == self.image.digest:
                    return
                if not (writer.is_pieced and may_restart):
                    raise ImageDigestMismatchError("the image is not the one that was signed")
                may_restart = False
                self.etag = None
                await writer.restart()
            self.check_time()
            before = writer.size
            try:
                await self._attempt(writer)
                continue
            except FetchBusyError as error:
                delay_s = error.retry_after_s if error.retry_after_s is not None else self.limits.busy_wait_s
                await self.clock.sleep(min(max(delay_s, 1.0), self.limits.busy_wait_max_s))
                continue
            except TooSlowError:
                slow_attempts += 1
                if slow_attempts >= self.limits.slow_attempts_max:
                    raise
            except FetchError as error:
                if writer.size - before >= self.limits.attempt_progress_bytes:
                    attempts = 0
                attempts += 1
                if attempts >= self.limits.attempts_max:
                    raise DownloadFailedError(f"{attempts} attempts in a row failed") from error
            ceiling_s = min(self.limits.backoff_max_s, self.limits.backoff_s * 2 ** min(attempts, 30))
            await self.clock.sleep(self.uniform() * ceiling_s)

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
        kept = await installer.begin(component, image)
        while writer.size < kept:
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
        await self._installer.append(self._component, data)
        self._hash.update(data)
        self.size += len(data)
        self.unsynced += len(data)

    async def sync(self) -> None:
        await self._installer.sync(self._component)
        self.unsynced = 0

    async def restart(self) -> None:
        await self._installer.restart(self._component)
        self._hash = hashlib.sha256()
        self.size = self.unsynced = 0
        self.is_pieced = False

    def digest(self) -> bytes:
        return self._hash.digest()
