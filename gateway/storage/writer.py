"""The batching writer: what hot paths write, committed together every few milliseconds.

A flush is one transaction. In it writes are grouped by type and the groups applied in ``ORDER``, each by one
handler that gets the whole group and uses set statements. What each type does to the rows is in ``hot`` and
``reports``; this module knows queues, futures and failure.

If the database is away, writes that somebody waits for are refused at once, and the others (positions, facts)
stay and are tried again: they can be repeated without harm. If a flush fails by anything else, it is halved
until the one bad write fails alone. A write that the database refuses while it takes others (a timeout that
only this one meets) must not stop the queue for ever: transactions shrink with each failure, and one write
that fails alone, three times, on a database that answers is dropped.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, select

from gateway.clock import Clock
from gateway.errors import StorageUnavailableError
from gateway.fleet.facts import (
    Adopted,
    Attempted,
    Connect,
    DeadLettered,
    DeploymentReceived,
    Disconnected,
    HotWrite,
    IntervalClosed,
    IntervalOpened,
    Judged,
    Received,
    Reported,
    Sent,
)
from gateway.storage.engine import Database
from gateway.telemetry import Metrics, SparseLog, logger

T = TypeVar("T")

Handler = Callable[[Connection, Sequence[Any]], Sequence[Any]]
"""Applies writes of one type; returns a result for each, an exception for one that is refused alone."""

ORDER: Final[tuple[type, ...]] = (
    Connect,
    Judged,
    IntervalOpened,
    Sent,
    Attempted,
    DeadLettered,
    Adopted,
    Received,
    IntervalClosed,
    DeploymentReceived,
    Reported,
    Disconnected,
)

# Producers stop at ``queue_rows_max``; one that does not must not take the node's memory with it.
_OVERFLOW_MAX: Final = 4
_GATHER_TIMES: Final = 3
_GATHER_MAX_S: Final = 0.025
_FAILURES_ALONE_MAX: Final = 3
_RETRY_DELAY_S: Final = (0.1, 0.2, 0.5, 1.0)


@dataclass(slots=True)
class _Entry:
    write: HotWrite
    future: asyncio.Future[Any] | None


class BatchWriter:
    """A ``HotWriter``. ``run`` is its loop; ``close`` flushes what waits and ends it.

    Args:
        flush_interval_ms: How long the first write of a flush waits for others. Longer under load, when some
            came during the flush before: three times as long as that took, at most 25 ms. The statements of a
            flush cost the same whatever it holds, so fewer flushes leave more of the CPU to the loop.
        flush_rows_max: So many that wait are flushed at once. A transaction takes up to four times as many:
            under load each costs the loop the same few wake-ups, whatever it holds.
        queue_rows_max: Writes that may wait (``is_full``). At four times that, ``put`` drops.
        handlers: One for each type that will be written.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        metrics: Metrics,
        flush_interval_ms: float,
        flush_rows_max: int,
        queue_rows_max: int,
        handlers: Mapping[type, Handler],
    ) -> None:
        assert set(handlers) <= set(ORDER), "a write has its place in the order"
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._flush_interval_s = self._gather_s = flush_interval_ms / 1000
        self._flush_rows_max = flush_rows_max
        self._queue_rows_max = queue_rows_max
        self._handlers = handlers
        self._queue: deque[_Entry] = deque()
        self._log = SparseLog(logger(__name__))
        self._some = asyncio.Event()  # something waits, or the end is near
        self._enough = asyncio.Event()  # a whole flush waits, or the end is near
        self._room = asyncio.Event()  # the queue is at most half full
        self._room.set()
        self._finished = asyncio.Event()
        self._rows_max = flush_rows_max  # of the next transaction: fewer after a failure
        self._failures_alone = 0  # of the oldest write, in a row
        self._has_answered = False  # the database, after the last of them
        self._is_running = False
        self._transaction_began: float | None = None
        self._closing = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return len(self._queue) >= self._queue_rows_max

    @property
    def stuck_s(self) -> float:
        """For how long there has been no progress: the age of the transaction under way.

        Without end once ``run`` has ended. A database that is away is progress: each try fails in time.
        """
        if self._finished.is_set():
            return math.inf
        began = self._transaction_began
        return 0.0 if began is None else self._clock.monotonic() - began

    def put(self, write: HotWrite) -> None:
        if self._closing.is_set() or len(self._queue) >= self._queue_rows_max * _OVERFLOW_MAX:
            self._lost(write, "the writer is closed" if self._closing.is_set() else "the queue overflowed")
            return
        self._add(_Entry(write, None))

    def commit(self, write: HotWrite) -> asyncio.Future[Any]:
        if self._closing.is_set():
            raise StorageUnavailableError("the node is stopping", retry_after_s=1)
        if self.is_full:
            self._metrics.storage_failures.inc()
            raise StorageUnavailableError("too many writes wait for the database", retry_after_s=1)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._add(_Entry(write, future))
        return future

    async def drained(self) -> None:
        await self._room.wait()

    async def run(self) -> None:
        """Flush until closed. Cancelled, it refuses what waits: call ``close`` first to have it committed."""
        assert not self._is_running, "one loop"
        self._is_running = True
        failures = 0
        try:
            while await self._gathered():
                if await self._flush():
                    failures = 0
                    continue
                if self._closing.is_set():
                    break
                await self._drop_poison()
                await self._pause(_RETRY_DELAY_S[min(failures, len(_RETRY_DELAY_S) - 1)])
                failures += 1
        finally:
            self._closing.set()
            self._refuse(list(self._queue), StorageUnavailableError("the node is stopping", retry_after_s=1))
            for entry in self._queue:
                if entry.future is None:
                    self._lost(entry.write, "the node stopped while the database was away")
            self._queue.clear()
            self._took()
            self._finished.set()

    async def close(self) -> None:
        """Take no more writes, commit those that wait, end ``run``. The caller bounds how long it waits."""
        self._closing.set()
        self._some.set()
        self._enough.set()
        if self._is_running:
            await self._finished.wait()
        else:
            await self.run()

    def _add(self, entry: _Entry) -> None:
        queue = self._queue
        queue.append(entry)
        waiting = len(queue)
        if waiting == 1:
            self._some.set()
        if waiting >= self._flush_rows_max:
            self._enough.set()
        if waiting * 2 > self._queue_rows_max:
            self._room.clear()

    async def _gathered(self) -> bool:
        """Wait until a flush is due; return False at the end."""
        await self._some.wait()
        if self._gather_s and not self._enough.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._gather_s):
                    await self._enough.wait()
        return bool(self._queue)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _flush(self) -> bool:
        """Commit the oldest writes; return False if the database is away."""
        count = min(len(self._queue), self._rows_max)
        entries = [self._queue.popleft() for _ in range(count)]
        self._metrics.queue_rows.set(len(self._queue))
        self._metrics.flush_rows.observe(count)
        begun = self._clock.monotonic()
        parts = [entries]
        try:
            while parts:
                part = parts.pop()
                try:
                    await self._transact(part, parts)
                except BaseException:
                    parts.append(part)
                    raise
        except StorageUnavailableError as error:
            left = [entry for part in reversed(parts) for entry in part]
            self._refuse(left, error)
            self._queue.extendleft(reversed([entry for entry in left if entry.future is None]))
            self._rows_max = max(1, count // 4)
            self._failures_alone = self._failures_alone + 1 if count == 1 else 0
            self._log.warning("storage_unavailable", begun, detail=error.detail, waiting=len(self._queue))
            return False
        except BaseException:
            left = [entry for part in reversed(parts) for entry in part]
            self._queue.extendleft(reversed(left))  # ``run`` refuses them
            raise
        finally:
            took_s = self._clock.monotonic() - begun
            self._metrics.flush_s.observe(took_s)
            self._gather_s = self._flush_interval_s
            if self._queue and self._gather_s:
                self._gather_s = max(self._gather_s, min(_GATHER_TIMES * took_s, _GATHER_MAX_S))
            self._took()
        self._rows_max = min(self._rows_max * 4, self._flush_rows_max)
        self._failures_alone = 0
        self._has_answered = False
        return True

    async def _drop_poison(self) -> None:
        """Drop the oldest write if it kept failing alone while the database answers without it.

        It answers before the write failed and after: once alone may be an outage that is just over.
        """
        if self._failures_alone < _FAILURES_ALONE_MAX or not self._queue:
            return
        try:
            await self._commit(lambda connection: connection.execute(select(1)).scalar())
        except StorageUnavailableError:
            self._has_answered = False
            return
        if self._has_answered:
            self._lost(self._queue.popleft().write, "the database refuses it")
            self._failures_alone = 0
            self._took()
        self._has_answered = not self._has_answered

    async def _transact(self, part: list[_Entry], parts: list[list[_Entry]]) -> None:
        writes = [entry.write for entry in part]
        try:
            results = await self._commit(lambda connection: self._apply(connection, writes))
        except StorageUnavailableError:
            raise
        except Exception as error:
            if len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
                return
            results = [error]
            logger(__name__).exception("hot_write_failed", write=type(writes[0]).__name__)
        for entry, result in zip(part, results, strict=True):
            _settle(entry, result)

    async def _commit(self, command: Callable[[Connection], T]) -> T:
        self._transaction_began = self._clock.monotonic()
        try:
            return await self._database.transaction(command)
        finally:
            self._transaction_began = None

    def _apply(self, connection: Connection, writes: Sequence[HotWrite]) -> list[Any]:
        places: dict[type, list[int]] = {}
        for index, write in enumerate(writes):
            places.setdefault(type(write), []).append(index)
        results: list[Any] = [None] * len(writes)
        for kind in ORDER:
            indexes = places.pop(kind, None)
            if indexes is None:
                continue
            found = self._handlers[kind](connection, [writes[index] for index in indexes])
            for index, result in zip(indexes, found, strict=True):
                results[index] = result
        assert not places, "every write has its place in the order"
        return results

    def _refuse(self, entries: Sequence[_Entry], error: StorageUnavailableError) -> None:
        for entry in entries:
            if entry.future is not None:
                self._metrics.storage_failures.inc()
                if not entry.future.done():
                    entry.future.set_exception(
                        StorageUnavailableError(error.detail, retry_after_s=error.retry_after_s)
                    )

    def _took(self) -> None:
        waiting = len(self._queue)
        self._metrics.queue_rows.set(waiting)
        if waiting * 2 <= self._queue_rows_max:
            self._room.set()
        if not self._closing.is_set():
            if waiting == 0:
                self._some.clear()
            if waiting < self._flush_rows_max:
                self._enough.clear()

    def _lost(self, write: HotWrite, why: str) -> None:
        self._metrics.storage_failures.inc()
        self._log.warning("hot_write_lost", self._clock.monotonic(), write=type(write).__name__, why=why)


def _settle(entry: _Entry, result: object) -> None:
    future = entry.future
    if future is None or future.done():  # nobody waits, or not any more
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
