"""Downloads with faults, around the SDK's ``Fetch``: answers that end early, chunks that come late."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

from device_sdk.update import Fetch, Fetched, FetchError
from firmware_sim.dice import Dice, between
from firmware_sim.link import Clock
from firmware_sim.scenario import LinkFaults
from firmware_sim.trace import Trace


@dataclass(slots=True)
class DownloadState:
    """How many answers this device was given, over boots."""

    answers: int = 0


class FaultyFetch:
    """``Fetch`` over a link with ``faults``."""

    def __init__(
        self,
        inner: Fetch,
        *,
        faults: LinkFaults,
        dice: Dice,
        state: DownloadState,
        trace: Trace,
        clock: Clock,
    ) -> None:
        self._inner = inner
        self._faults = faults
        self._dice = dice
        self._state = state
        self._trace = trace
        self._clock = clock

    def fetch(self, uri: str, *, offset: int, etag: str | None) -> AbstractAsyncContextManager[Fetched]:
        return self._fetch(uri, offset, etag)

    @asynccontextmanager
    async def _fetch(self, uri: str, offset: int, etag: str | None) -> AsyncIterator[Fetched]:
        self._state.answers += 1
        number = self._state.answers
        async with self._inner.fetch(uri, offset=offset, etag=etag) as fetched:
            yield replace(fetched, chunks=self._chunks(fetched.chunks, number))

    async def _chunks(self, chunks: AsyncIterator[bytes], number: int) -> AsyncIterator[bytes]:
        random = self._dice.stream("download", number)
        count = 0
        async for chunk in chunks:
            count += 1
            is_cut = random.random() < self._faults.download_cut
            await self._clock.sleep(between(random, self._faults.chunk_delay_ms) / 1000)
            if is_cut:
                self._trace.note("download_cut", f"answer {number}, chunk {count}")
                raise FetchError("the link broke")
            yield chunk
