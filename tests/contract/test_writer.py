"""The batching writer: what ``HotWriter`` promises, on both databases."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, insert, select

from gateway.clock import FakeClock
from gateway.errors import ConflictError, StorageUnavailableError
from gateway.fleet.facts import Adopted, Attempted, Disconnected, IntervalClosed
from gateway.storage import BatchWriter, CommitUnknownError, Database
from gateway.storage.tables import fleet
from gateway.telemetry import Metrics

T = TypeVar("T")


def names(connection: Connection) -> list[str]:
    return list(connection.scalars(select(fleet.c.name).order_by(fleet.c.id)))


class Recorder:
    """A handler that writes each write's number as a fleet's name, so that order and presence show."""

    def __init__(self) -> None:
        self.flushes: list[list[str]] = []

    def handlers(self) -> dict[type, Any]:
        return {
            Disconnected: lambda c, writes: self._handle(c, "disconnected", [w.at for w in writes]),
            Attempted: lambda c, writes: self._handle(c, "attempted", [w.attempts for w in writes]),
            Adopted: lambda c, writes: self._handle(c, "adopted", [w.offset for w in writes]),
            IntervalClosed: lambda c, writes: [ConflictError("no", code="refused")] * len(writes),
        }

    def _handle(self, connection: Connection, name: str, numbers: Sequence[int]) -> list[Any]:
        results: list[Any] = []
        for number in numbers:
            connection.execute(insert(fleet).values(name=f"{name}{number}", created_at=0))
            results.append(number * 10)
        self.flushes.append([f"{name}{number}" for number in numbers])
        return results


def attempted(number: int) -> Attempted:
    return Attempted(1, 1, number)


class Gate:
    """A database in front of the real one: it can be away, be held, and lose a COMMIT's outcome."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.failures: list[StorageUnavailableError | None] = []
        self.poison: int | None = None  # an attempt that this database never takes
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()
        self.transactions = 0

    async def transaction(self, command: Callable[[Connection], T]) -> T:
        self.transactions += 1
        self.entered.set()
        await self.open.wait()
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, CommitUnknownError):
            await self._database.transaction(command)
        if failure is not None:
            raise failure
        if self.poison is not None:
            return await self._database.transaction(lambda c: self._refusing(c, command))
        return await self._database.transaction(command)

    def _refusing(self, connection: Connection, command: Callable[[Connection], T]) -> T:
        result = command(connection)
        if f"attempted{self.poison}" in names(connection):
            raise StorageUnavailableError("a timeout that only this one meets")
        return result


class Bench:
    def __init__(self, database: Database, clock: FakeClock, metrics: Metrics) -> None:
        self.database = database
        self.gate = Gate(database)
        self.recorder = Recorder()
        self.metrics = metrics
        self.writer = self.make(clock)
        self.running: asyncio.Task[None] | None = None

    def make(self, clock: FakeClock, **limits: Any) -> BatchWriter:
        bounds = {"flush_interval_ms": 0, "flush_rows_max": 100, "queue_rows_max": 10} | limits
        return BatchWriter(
            self.gate,  # type: ignore[arg-type]
            clock=clock,
            metrics=self.metrics,
            handlers=self.recorder.handlers(),
            **bounds,
        )

    def start(self) -> None:
        self.running = asyncio.create_task(self.writer.run(), name="writer")

    async def names(self) -> list[str]:
        return await self.database.read(names)

    def sample(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"fleetcast_{name}")


@pytest.fixture
async def bench(database: Database, clock: FakeClock, metrics: Metrics) -> AsyncIterator[Bench]:
    bench = Bench(database, clock, metrics)
    yield bench
    bench.gate.open.set()
    await bench.writer.close()
    if bench.running is not None:
        await bench.running


async def test_a_write_is_there_when_its_future_is_done(bench: Bench) -> None:
    bench.start()
    assert await bench.writer.commit(attempted(1)) == 10
    assert await bench.names() == ["attempted1"]


async def test_writes_that_wait_are_one_transaction_applied_by_type_in_the_stated_order(
    bench: Bench,
) -> None:
    futures = [
        bench.writer.commit(write)
        for write in (Disconnected(1, 1), Adopted(1, 1, 2), attempted(3), Disconnected(1, 4), attempted(5))
    ]
    bench.start()
    assert await asyncio.gather(*futures) == [10, 20, 30, 40, 50]
    assert bench.gate.transactions == 1
    assert await bench.names() == ["attempted3", "attempted5", "adopted2", "disconnected1", "disconnected4"]
    assert bench.sample("db_flush_rows_sum") == 5
    assert bench.sample("db_queue_rows") == 0


async def test_a_flush_is_bounded_and_the_rest_follows_in_order(bench: Bench, clock: FakeClock) -> None:
    bench.writer = bench.make(clock, flush_rows_max=4)
    futures = [bench.writer.commit(attempted(number)) for number in range(9)]
    bench.start()
    await asyncio.gather(*futures)
    assert [len(flush) for flush in bench.recorder.flushes] == [4, 4, 1]
    assert await bench.names() == [f"attempted{number}" for number in range(9)]


async def test_a_full_flush_does_not_wait_for_the_interval(bench: Bench, clock: FakeClock) -> None:
    bench.writer = bench.make(clock, flush_interval_ms=3_600_000, flush_rows_max=2)
    bench.start()
    async with asyncio.timeout(30):
        await asyncio.gather(bench.writer.commit(attempted(1)), bench.writer.commit(attempted(2)))


async def test_writes_gather_for_the_interval(bench: Bench, clock: FakeClock) -> None:
    bench.writer = bench.make(clock, flush_interval_ms=20)
    bench.start()
    first = bench.writer.commit(attempted(1))
    for _ in range(10):
        await asyncio.sleep(0)
    second = bench.writer.commit(attempted(2))
    await asyncio.gather(first, second)
    assert bench.gate.transactions == 1


async def test_a_write_that_cannot_be_applied_fails_alone(bench: Bench) -> None:
    futures = [bench.writer.commit(attempted(number)) for number in (1, 2, 2, 3, 4)]
    bench.start()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["int", "int", "IntegrityError", "int", "int"]
    assert await bench.names() == [f"attempted{number}" for number in (1, 2, 3, 4)]


async def test_a_write_that_its_handler_refuses_fails_alone_in_the_same_transaction(bench: Bench) -> None:
    good, bad = bench.writer.commit(attempted(1)), bench.writer.commit(IntervalClosed(b"", 1, 1))
    bench.start()
    assert await good == 10
    with pytest.raises(ConflictError):
        await bad
    assert bench.gate.transactions == 1


async def test_a_future_that_nobody_waits_for_any_more_does_not_disturb(bench: Bench) -> None:
    first, second = bench.writer.commit(attempted(1)), bench.writer.commit(attempted(2))
    first.cancel()
    bench.start()
    assert await second == 20
    assert await bench.names() == ["attempted1", "attempted2"]


async def test_at_the_bound_commit_refuses_at_once_and_put_still_takes(bench: Bench) -> None:
    for number in range(10):
        assert not bench.writer.is_full
        bench.writer.put(attempted(number))
    assert bench.writer.is_full
    with pytest.raises(StorageUnavailableError):
        bench.writer.commit(attempted(99))
    bench.writer.put(attempted(10))
    waiting = asyncio.create_task(bench.writer.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    bench.start()
    await waiting
    assert not bench.writer.is_full
    await bench.writer.close()
    assert await bench.names() == [f"attempted{number}" for number in range(11)]


async def test_a_producer_that_ignores_the_bound_cannot_fill_the_memory(bench: Bench) -> None:
    for number in range(100):
        bench.writer.put(attempted(number))
    await bench.writer.close()
    assert len(await bench.names()) == 40
    assert bench.sample("db_failures_total") == 60


async def test_while_the_database_is_away_who_waits_is_refused_and_facts_are_kept(bench: Bench) -> None:
    bench.gate.failures = [StorageUnavailableError("away")]
    bench.writer.put(attempted(1))
    asked = bench.writer.commit(attempted(2))
    bench.writer.put(attempted(3))
    bench.start()
    with pytest.raises(StorageUnavailableError):
        await asked
    assert await bench.names() == []
    assert await bench.writer.commit(attempted(4)) == 40
    assert await bench.names() == ["attempted1", "attempted3", "attempted4"]


async def test_a_write_that_only_the_database_refuses_does_not_stop_the_others_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.storage.writer._RETRY_DELAY_S", (0.0,))
    bench.gate.poison = 5
    for number in range(10):
        bench.writer.put(attempted(number))
    bench.start()
    async with asyncio.timeout(60):
        await bench.writer.drained()
        while len(await bench.names()) < 9:
            await asyncio.sleep(0)
    assert await bench.names() == [f"attempted{number}" for number in range(10) if number != 5]
    assert bench.sample("db_failures_total") == 1


async def test_an_outage_that_ends_between_two_attempts_costs_no_write(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.storage.writer._RETRY_DELAY_S", (0.0,))
    away = StorageUnavailableError("away")
    # The write fails alone, and alone, and the question whether the database is there is the first to be
    # answered again.
    bench.gate.failures = [away, away, away]
    bench.writer.put(attempted(1))
    bench.start()
    async with asyncio.timeout(60):
        while bench.gate.transactions < 5:
            await asyncio.sleep(0)
    assert await bench.writer.commit(attempted(2)) == 20
    assert await bench.names() == ["attempted1", "attempted2"]


async def test_a_commit_of_unknown_outcome_is_an_unavailable_storage(bench: Bench) -> None:
    bench.gate.failures = [CommitUnknownError("lost")]
    asked = bench.writer.commit(attempted(1))
    bench.start()
    with pytest.raises(StorageUnavailableError):
        await asked
    assert await bench.names() == ["attempted1"], "it may be there"


async def test_close_commits_what_waits_and_refuses_what_comes_later(bench: Bench) -> None:
    bench.gate.open.clear()
    bench.start()
    first = bench.writer.commit(attempted(1))
    await bench.gate.entered.wait()
    second = bench.writer.commit(attempted(2))
    bench.writer.put(attempted(3))
    closing = asyncio.create_task(bench.writer.close())
    await asyncio.sleep(0)
    with pytest.raises(StorageUnavailableError):
        bench.writer.commit(attempted(4))
    bench.writer.put(attempted(5))
    bench.gate.open.set()
    await closing
    assert (first.result(), second.result()) == (10, 20)
    assert await bench.names() == ["attempted1", "attempted2", "attempted3"]


async def test_close_does_not_wait_for_a_database_that_is_away(bench: Bench) -> None:
    bench.gate.failures = [StorageUnavailableError("away")] * 100
    bench.start()
    bench.writer.put(attempted(1))
    await bench.gate.entered.wait()
    async with asyncio.timeout(30):
        await bench.writer.close()
    assert await bench.names() == []


async def test_a_cancelled_writer_refuses_what_waits(bench: Bench) -> None:
    bench.gate.open.clear()
    bench.start()
    first = bench.writer.commit(attempted(1))
    await bench.gate.entered.wait()
    second = bench.writer.commit(attempted(2))
    assert bench.running is not None
    bench.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bench.running
    for future in (first, second):
        with pytest.raises(StorageUnavailableError):
            await future
    bench.running = None
    bench.writer = bench.make(FakeClock())


async def test_a_transaction_under_way_is_no_progress_and_one_that_failed_is(
    bench: Bench, clock: FakeClock
) -> None:
    bench.start()
    assert bench.writer.stuck_s == 0.0
    bench.gate.open.clear()
    writing = bench.writer.commit(attempted(1))
    await bench.gate.entered.wait()
    clock.advance(31)
    assert bench.writer.stuck_s == 31.0
    bench.gate.failures.append(StorageUnavailableError("away"))
    bench.gate.open.set()
    with pytest.raises(StorageUnavailableError):
        await writing
    assert bench.writer.stuck_s == 0.0
    await bench.writer.close()
    assert bench.writer.stuck_s == math.inf
