"""Images over HTTP: taken from operators, given to operators and devices, piece by piece.

An image is never in memory as a whole: an upload goes to ``ArtifactStore`` in pieces, a download is read as
fast as the client takes it. Blocking file work runs in threads, the number of transfers is bounded, and a
client that stands still for ``idle_timeout_s`` is cut off. Which fleet may see which image is a row, and
without it the answer is 404, whether the file is there or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Final, Protocol, TypeVar

from aiohttp import web

from gateway.clock import Clock
from gateway.edge import byterange
from gateway.edge.byterange import NotModified, NotSatisfiable, Part, PreconditionFailed, Whole
from gateway.edge.incoming import read_some, too_slow
from gateway.edge.problem import RequestError
from gateway.errors import LimitExceededError, UnavailableError
from gateway.fleet.acts import AuditEntry
from gateway.release import Artifact, ArtifactStore
from gateway.telemetry import Metrics, logger

T = TypeVar("T")

DEVICE_PATH: Final = "/v1/device/artifacts/{sha256}"
RECEIVED_PIECE_BYTES: Final = 256 * 1024  # to a thread at once
SENT_PIECE_BYTES: Final = 64 * 1024  # small, since a slow link must take one within ``idle_timeout_s``
OCTETS: Final = "application/octet-stream"

DeviceFleet = Callable[[web.Request], Awaitable[int]]
"""Return the key of the fleet whose device asks; raise what the device is to be told."""

_log = logger("artifacts")


class ArtifactRows(Protocol):
    """Which fleet has which image."""

    async def put_artifact(
        self,
        fleet_key: int,
        digest: bytes,
        size_bytes: int,
        *,
        now_ms: int,
        audit: AuditEntry | None = None,
    ) -> bool:
        """Record that the fleet has the image; return whether that is new."""
        ...

    async def artifact(self, fleet_key: int, digest: bytes) -> object:
        """Return the fleet's row of the image. Raises NotFoundError."""
        ...


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """Bounds on transfers.

    Attributes:
        uploads_max: Uploads at once; one more is answered 503.
        downloads_max: Downloads at once; one more is answered 503.
        idle_timeout_s: A peer that sends no byte, or does not take one piece, in this time is cut off: a link
            slower than 1.1 KB/s by the default.
        retry_after_s: Told with such a 503. A device does not count it as an attempt.
    """

    uploads_max: int = 4
    downloads_max: int = 64
    idle_timeout_s: float = 60.0
    retry_after_s: float = 10.0

    def __post_init__(self) -> None:
        assert self.uploads_max > 0, "no image could be brought"
        assert self.downloads_max > 0, "no image could be fetched"
        assert self.idle_timeout_s > 0, "nothing would be moved"


class ArtifactTransfers:
    """Move images between connections and the store.

    Args:
        executor: Threads for file work; None: the loop's.
    """

    def __init__(
        self,
        store: ArtifactStore,
        rows: ArtifactRows,
        *,
        clock: Clock,
        metrics: Metrics,
        limits: TransferLimits | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._store = store
        self._rows = rows
        self._clock = clock
        self._metrics = metrics
        self._limits = limits or TransferLimits()
        self._executor = executor
        self._uploads = _Slots("artifact_uploads_busy", self._limits.uploads_max, self._limits.retry_after_s)
        self._downloads = _Slots("artifacts_busy", self._limits.downloads_max, self._limits.retry_after_s)

    async def receive(
        self, request: web.Request, fleet_key: int, digest: str, *, audit: AuditEntry | None = None
    ) -> tuple[Artifact, bool]:
        """Store the request's body as the image ``digest`` of the fleet; return it, and whether it is new.

        Raises:
            DigestMismatchError: The body is another image; it is dropped.
            LimitExceededError: It is too long.
            RequestError: It did not come in time.
            UnavailableError: Too many uploads, or the disk does not take it.
        """
        self._store.path(digest)  # NotFoundError before a byte is read
        with self._uploads.one():
            artifact = await self._write(request, digest)
        is_new = await self._rows.put_artifact(
            fleet_key,
            bytes.fromhex(digest),
            artifact.size_bytes,
            now_ms=self._clock.now_ms(),
            audit=audit,
        )
        return artifact, is_new

    async def send(self, request: web.Request, fleet_key: int, digest: str) -> web.StreamResponse:
        """Answer a GET or HEAD of the image ``digest``: 200, 206 or 304.

        Raises:
            NotFoundError: The fleet has no such image.
            RequestError: 412 or 416.
            UnavailableError: Too many downloads.
        """
        path = self._store.path(digest)  # NotFoundError unless it is a digest
        await self._rows.artifact(fleet_key, bytes.fromhex(digest))
        artifact = await self._thread(self._store.find, digest)
        etag = f'"{path.name}"'
        selection = byterange.select(
            request.headers, method=request.method, etag=etag, size_bytes=artifact.size_bytes
        )
        headers = {
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=31536000, immutable",
            "X-Content-Type-Options": "nosniff",
        }
        match selection:
            case NotModified():
                return web.Response(status=304, headers=headers)
            case PreconditionFailed():
                raise RequestError(412, "precondition_failed", "If-Match names another image.")
            case NotSatisfiable():
                raise RequestError(
                    416,
                    "range_not_satisfiable",
                    f"The image is {artifact.size_bytes} bytes long.",
                    headers={"Content-Range": f"bytes */{artifact.size_bytes}"},
                )
            case Whole():
                response = web.StreamResponse(headers=headers)
                part = Part(0, artifact.size_bytes)
            case Part(start=start, size_bytes=size_bytes) as part:
                end = start + size_bytes - 1
                content_range = f"bytes {start}-{end}/{artifact.size_bytes}"
                response = web.StreamResponse(status=206, headers={**headers, "Content-Range": content_range})
        response.content_type = OCTETS
        response.content_length = part.size_bytes
        if request.method == "HEAD" or part.size_bytes == 0:
            await response.prepare(request)
            return response
        with self._downloads.one():
            return await self._stream(request, response, digest, part)

    async def _write(self, request: web.Request, digest: str) -> Artifact:
        allowed = self._store.limits.artifact_size_bytes_max
        announced = request.content_length
        if announced is not None and announced > allowed:
            raise LimitExceededError("artifact_size_bytes_max", announced, allowed)
        opened = ExitStack()  # what a thread opened is dropped, whoever was cancelled meanwhile
        try:
            writer = await self._file_work(lambda: opened.enter_context(self._store.writer()))
            async for piece in self._pieces(request):
                await self._file_work(writer.write, piece)
            return await self._file_work(partial(writer.commit, digest=digest))
        finally:
            await asyncio.shield(self._thread(opened.close))

    async def _pieces(self, request: web.Request) -> AsyncIterator[bytes]:
        """Yield the body in pieces of about ``RECEIVED_PIECE_BYTES``, each a trip to a thread."""
        gathered = bytearray()
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_timeout_s):
                    block = await read_some(request)
            except TimeoutError as error:
                raise too_slow(self._limits.idle_timeout_s) from error
            gathered += block
            if gathered and (not block or len(gathered) >= RECEIVED_PIECE_BYTES):
                yield bytes(gathered)
                gathered.clear()
            if not block:
                return

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, digest: str, part: Part
    ) -> web.StreamResponse:
        opened = ExitStack()
        try:
            file = await self._thread(lambda: opened.enter_context(self._store.open(digest)))
            await response.prepare(request)
            left, start = part.size_bytes, part.start
            while left > 0:
                piece = await self._thread(_read, file, start, min(left, SENT_PIECE_BYTES))
                if not piece:
                    raise OSError("the file ended early")
                async with asyncio.timeout(self._limits.idle_timeout_s):
                    await response.write(piece)
                self._metrics.artifact_bytes.inc(len(piece))
                left -= len(piece)
                start += len(piece)
            await response.write_eof()
        except OSError as error:  # TimeoutError is one
            if not response.prepared:
                raise
            # The answer has begun, so the only honest end is a cut: the client sees that bytes are missing.
            if not isinstance(error, ConnectionError):
                _log.warning("download_cut", digest=digest, error=type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
        finally:
            await asyncio.shield(self._thread(opened.close))
        return response

    async def _file_work(self, work: Callable[..., T], *args: object) -> T:
        try:
            return await self._thread(work, *args)
        except OSError as error:
            _log.error("artifact_not_stored", error=str(error))
            raise UnavailableError(
                "the gateway's disk does not take the image", code="artifact_store_unavailable"
            ) from error

    async def _thread(self, work: Callable[..., T], *args: object) -> T:
        """Run ``work`` in a thread; a cancelled caller still waits for it, so that nobody shares its file."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, partial(work, *args))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # looked at: the caller is gone
            raise


def device_routes(transfers: ArtifactTransfers, fleet_of: DeviceFleet) -> list[web.RouteDef]:
    """Return ``GET`` and ``HEAD`` of images for devices; ``fleet_of`` judges who asks."""

    async def handle(request: web.Request) -> web.StreamResponse:
        fleet_key = await fleet_of(request)
        return await transfers.send(request, fleet_key, request.match_info["sha256"])

    return [web.get(DEVICE_PATH, handle, allow_head=False), web.head(DEVICE_PATH, handle)]


class _Slots:
    """At most ``slots_max`` at once. Nobody waits: coming again costs less than a connection that is held."""

    def __init__(self, code: str, slots_max: int, retry_after_s: float) -> None:
        self._code = code
        self._free = slots_max
        self._retry_after_s = retry_after_s

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one slot. Raises UnavailableError."""
        if self._free == 0:
            raise UnavailableError(
                "as many images as allowed are on their way",
                code=self._code,
                retry_after_s=self._retry_after_s,
            )
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


def _read(file: BinaryIO, start: int, size_bytes: int) -> bytes:
    file.seek(start)
    return file.read(size_bytes)
