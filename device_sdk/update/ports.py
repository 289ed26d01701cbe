"""What the update procedure needs of the device, as small protocols: state, clock, fetching, installing.

The rest of this package knows no file, socket or operating system. ``slots`` has an installer for two
slots in files; the state store is ``device_sdk.store``, the fetcher ``device_sdk.transport``.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from device_sdk.wire.messages import Installed


class StateStore(Protocol):
    """Durable state: keys with CBOR values, on stable storage.

    Promised: ``commit`` is all or nothing and on stable storage before it returns; a power loss at any
    byte leaves the state before or after it.
    """

    def get(self, key: str) -> object | None:
        """Return the value of ``key``, or None."""

    def items(self, prefix: str) -> Iterator[tuple[str, object]]:
        """Yield the keys that begin with ``prefix`` and their values."""

    def commit(self, changes: Mapping[str, object | None]) -> None:
        """Store ``changes``; None deletes."""


class DeviceClock(Protocol):
    """The device's time."""

    def monotonic(self) -> float:
        """Return seconds since some moment of this boot; it never goes back."""

    def wall_ms(self) -> int | None:
        """Return the device's own trusted clock, milliseconds UTC; None if it has none (PROTOCOL §7.5)."""

    async def sleep(self, delay_s: float) -> None:
        """Return after ``delay_s`` of ``monotonic``."""


class FetchError(Exception):
    """The image, or the rest of it, did not come: tried again with backoff."""


class FetchUnreachableError(FetchError):
    """There is no connection: a device that is offline is not counted as an attempt."""


class FetchRangeError(FetchError):
    """The server has no byte at the offset (416): what is on flash is not a part of what it has."""


class FetchBusyError(FetchError):
    """The server asks to come back later (503 or 429): not counted as an attempt (PROTOCOL §8.3).

    Args:
        retry_after_s: What it asked for; None: it did not say.
    """

    def __init__(self, retry_after_s: float | None = None) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"the server is busy, retry after {self.retry_after_s} s"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A server's answer. Nothing of it is believed: it is measured, capped and hashed.

    Attributes:
        offset: Where the first byte stands: what was asked for (206), or 0 from a server that ignored
            the range or has another entity now (200).
        size: Bytes of the whole image, if the server says so (Content-Range, Content-Length).
        etag: A strong validator, for the next ``If-Range``.
        chunks: The bytes, as they come. Ending early is no error here.
    """

    offset: int
    size: int | None
    etag: str | None
    chunks: AsyncIterator[bytes]


class Fetch(Protocol):
    """Fetching an image by its URI, absolute or relative to the gateway."""

    def fetch(self, uri: str, *, offset: int, etag: str | None) -> AbstractAsyncContextManager[Fetched]:
        """Return a context that asks for the bytes from ``offset`` on and closes the answer at its end.

        Args:
            uri: From the manifest.
            offset: If not 0: ``Range: bytes=<offset>-``.
            etag: If not None: ``If-Range``, so that another entity comes from its beginning.

        Raises:
            FetchBusyError: 503 or 429. On entering.
            FetchUnreachableError: No connection could be made. On entering.
            FetchRangeError: 416. On entering.
            FetchError: Any other failure, on entering or while reading. The credential that opens the
                gateway is sent to the gateway only.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What is to be installed, as the operator signed it.

    Attributes:
        digest: SHA-256 of the image.
        size: Bytes.
        manifest_digest: SHA-256 of the manifest.
        sequence: The manifest's.
        version: For people; may be empty.
    """

    digest: bytes
    size: int
    manifest_digest: bytes
    sequence: int
    version: str


class Boot(enum.Enum):
    """How far an image has come after it was written."""

    ABSENT = "absent"  # no slot holds it
    WRITTEN = "written"  # complete and verified; nobody told the bootloader
    PENDING = "pending"  # on trial from the next boot on
    TRIAL = "trial"  # running, not confirmed
    CONFIRMED = "confirmed"  # running for good
    CONDEMNED = "condemned"  # given up and still running: the next boot leaves it
    ROLLED_BACK = "rolled_back"  # given up; the other image runs


class RebootRequiredError(Exception):
    """The device has to start again before the update goes on, and the SDK cannot make it.

    Ends ``UpdateAgent.run``. Whoever runs the process restarts it; the procedure resumes from disk.
    """


class Installer(Protocol):
    """Where images go and how they are started. Every call may be repeated after a crash at any point.

    Errors are ``device_sdk.errors.UpdateError`` (the update fails with that code) or ``OSError`` (it fails
    as ``install_failed``).
    """

    @property
    def components(self) -> Collection[str]:
        """Names of the components that can be installed."""

    def running(self) -> Mapping[str, Installed]:
        """Return what each component runs now."""

    def capacity_bytes(self, component: str) -> int:
        """Return the largest image that fits."""

    async def begin(self, component: str, image: Image) -> int:
        """Prepare for writing ``image``; what the component runs is never touched.

        Returns:
            How many bytes of this very image are on stable storage already; writing goes on behind
            them. They are hashed again, not believed.
        """

    async def restart(self, component: str) -> None:
        """Drop every byte that was written of the image in hand; writing goes on at 0."""

    async def read(self, component: str, offset: int, size: int) -> bytes:
        """Return up to ``size`` of the bytes written from ``offset`` on; empty at their end."""

    async def append(self, component: str, data: bytes) -> None:
        """Write ``data`` behind what was written; NoSpaceError if it cannot."""

    async def sync(self, component: str) -> None:
        """Return once everything written is on stable storage, for ``begin`` to find after a crash."""

    async def seal(self, component: str, image: Image) -> None:
        """Check by reading back that ``image`` is written; from now on it can be activated."""

    async def activate(self, component: str, image: Image) -> None:
        """Put the sealed image on trial from the next boot on."""

    async def reboot(self, component: str) -> None:
        """Restart what runs ``component``.

        May not return at all, return once the other image runs, or raise RebootRequiredError.
        """

    def boot(self, component: str, image: Image) -> Boot:
        """Return how far ``image`` has come."""

    async def is_healthy(self, component: str) -> bool:
        """Return whether the image on trial works; it is confirmed then."""

    async def confirm(self, component: str, image: Image) -> None:
        """Make the image on trial the one that runs for good."""

    async def roll_back(self, component: str, image: Image) -> None:
        """Give the image up: no later boot starts it."""

    async def discard(self, component: str) -> None:
        """Drop what was written and neither activated nor confirmed."""
