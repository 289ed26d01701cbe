from __future__ import annotations

import asyncio

import pytest

from gateway.clock import FakeClock
from gateway.edge.operator.lately import Lately
from gateway.errors import NotFoundError


class Source:
    """Values that can be asked for, and how often that was done."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.reads: list[str] = []

    async def read(self, key: str) -> int | None:
        self.reads.append(key)
        return self.values.get(key)


@pytest.fixture
def source() -> Source:
    return Source()


def cache(clock: FakeClock, *, entries_max: int = 10) -> Lately[str, int]:
    return Lately(clock=clock, keep_s=5.0, entries_max=entries_max)


async def test_a_value_is_read_once_in_keep_s(clock: FakeClock, source: Source) -> None:
    lately = cache(clock)
    source.values["a"] = 1
    assert await lately.value("a", lambda: source.read("a")) == 1
    source.values["a"] = 2
    clock.advance(4.999)
    assert await lately.value("a", lambda: source.read("a")) == 1
    clock.advance(0.001)
    assert await lately.value("a", lambda: source.read("a")) == 2
    assert source.reads == ["a", "a"]


async def test_what_is_not_there_is_asked_for_every_time(clock: FakeClock, source: Source) -> None:
    lately = cache(clock)
    assert await lately.value("a", lambda: source.read("a")) is None
    source.values["a"] = 1
    assert await lately.value("a", lambda: source.read("a")) == 1


async def test_what_went_away_is_not_kept(clock: FakeClock, source: Source) -> None:
    lately = cache(clock)
    source.values["a"] = 1
    await lately.value("a", lambda: source.read("a"))
    del source.values["a"]
    clock.advance(5)
    assert await lately.value("a", lambda: source.read("a")) is None


async def test_the_oldest_goes_when_it_is_full(clock: FakeClock, source: Source) -> None:
    lately = cache(clock, entries_max=2)
    source.values |= {"a": 1, "b": 2, "c": 3}
    for key in ("a", "b", "c", "b", "c", "a"):
        await lately.value(key, lambda key=key: source.read(key))
    assert source.reads == ["a", "b", "c", "a"]


async def test_forgotten_is_read_again(clock: FakeClock, source: Source) -> None:
    lately = cache(clock)
    source.values["a"] = 1
    await lately.value("a", lambda: source.read("a"))
    lately.forget("a")
    lately.forget("never there")
    await lately.value("a", lambda: source.read("a"))
    assert source.reads == ["a", "a"]


async def test_a_value_is_as_old_as_its_read_began(clock: FakeClock, source: Source) -> None:
    lately = cache(clock)
    source.values["a"] = 1
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> int | None:
        started.set()
        await go_on.wait()
        return await source.read("a")

    first = asyncio.create_task(lately.value("a", slow))
    await started.wait()
    clock.advance(5)
    go_on.set()
    assert await first == 1
    await lately.value("a", lambda: source.read("a"))
    assert source.reads == ["a", "a"]


async def test_an_error_is_not_kept(clock: FakeClock, source: Source) -> None:
    lately = cache(clock)

    async def fail() -> int | None:
        raise NotFoundError

    with pytest.raises(NotFoundError):
        await lately.value("a", fail)
    source.values["a"] = 1
    assert await lately.value("a", lambda: source.read("a")) == 1
