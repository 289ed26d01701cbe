"""The log in memory: one read for all who wait, the tail as it is published, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from device_sdk.wire.messages import Alert, decode_cbor, decode_json
from device_sdk.wire.names import ChannelName, FleetName
from gateway.errors import NotFoundError, StorageUnavailableError, UnavailableError
from gateway.fleet.log import BLOCK_LEN, AlertLog, Block, LogItem, Signed
from gateway.fleet.model import LogRange, StoredMessage
from gateway.telemetry import Metrics

FLEET = FleetName("acme")
OPS = ChannelName("ops")
ID = 1
EPOCH = 7


def stored(offset: int, *, key: str | None = None, superseded_by: int | None = None) -> StoredMessage:
    return StoredMessage(
        channel_id=ID,
        offset=offset,
        id=offset.to_bytes(16, "big"),
        payload=b"payload of %d" % offset,
        signature=b"s" * 64,
        kid=b"k" * 32,
        key=key,
        superseded_by=superseded_by,
        original_id=None,
        accepted_at=offset,
        expires_at=None,
    )


class Store:
    """A channel's rows. A read sees what is there when it begins, and returns once it is let go."""

    def __init__(self) -> None:
        self.rows: dict[int, StoredMessage] = {}
        self.epoch = EPOCH
        self.floor = 0
        self.reads: list[tuple[int, int]] = []
        self.gates: list[asyncio.Event] = []
        self.is_held = False
        self.error: Exception | None = None
        self.at_once_max = 0
        self._at_once = 0

    def commit(self, *messages: StoredMessage) -> None:
        for message in messages:
            if message.key is not None:
                for row in self.rows.values():
                    if row.key == message.key:
                        self.rows[row.offset] = replace(row, superseded_by=message.offset)
            self.rows[message.offset] = message

    async def log_range(self, channel_id: int, first: int, last: int) -> LogRange:
        assert channel_id == ID
        self.reads.append((first, last))
        self._at_once += 1
        self.at_once_max = max(self.at_once_max, self._at_once)
        rows = tuple(row for at, row in sorted(self.rows.items()) if max(first, self.floor + 1) <= at <= last)
        found = LogRange(self.epoch, max(self.rows, default=0), self.floor, rows)
        gate = asyncio.Event()
        self.gates.append(gate)
        try:
            if self.is_held:
                await gate.wait()
            if self.error is not None:
                raise self.error
            return found
        finally:
            self._at_once -= 1


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def log(store: Store) -> AlertLog:
    return made(store)


def made(store: Store, *, size_bytes_max: int = 1 << 20, reads_max: int = 4) -> AlertLog:
    return AlertLog(
        store,
        resign=lambda _, __, message: Signed(message.payload, message.signature, message.kid, -19),
        metrics=Metrics(),
        size_bytes_max=size_bytes_max,
        reads_max=reads_max,
    )


def items(log: AlertLog, *messages: StoredMessage) -> Sequence[LogItem]:
    return [log.item(FLEET, OPS, EPOCH, message) for message in messages]


async def block(log: AlertLog, offset: int, *, epoch: int = EPOCH) -> Block:
    return await log.block(FLEET, OPS, ID, epoch, offset)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class TestBlock:
    async def test_is_aligned_and_holds_what_the_log_holds(self, store: Store, log: AlertLog) -> None:
        store.commit(*map(stored, range(1, 601)))
        found = await block(log, 300)
        assert (found.first, found.last, found.upto) == (BLOCK_LEN + 1, 2 * BLOCK_LEN, 2 * BLOCK_LEN)
        assert list(found.items) == list(range(BLOCK_LEN + 1, 2 * BLOCK_LEN + 1))
        last = await block(log, 600)
        assert (last.upto, last.last) == (600, 3 * BLOCK_LEN)

    async def test_is_read_once_and_then_remembered(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1), stored(2))
        assert log.cached(ID, EPOCH, 1) is None
        found = await block(log, 1)
        assert log.cached(ID, EPOCH, 2) is found
        assert await block(log, 2) is found
        assert len(store.reads) == 1

    async def test_of_pruned_offsets_says_where_the_log_begins(self, store: Store, log: AlertLog) -> None:
        store.commit(*map(stored, range(1, 6)))
        store.floor = 3
        found = await block(log, 1)
        assert (found.floor, list(found.items)) == (3, [4, 5])

    async def test_of_another_epoch_is_not_found_and_not_kept(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1))
        store.epoch = EPOCH + 1
        with pytest.raises(NotFoundError):
            await block(log, 1)
        assert log.cached(ID, EPOCH, 1) is None
        assert (await block(log, 1, epoch=EPOCH + 1)).upto == 1

    async def test_above_the_head_is_unavailable(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1))
        with pytest.raises(UnavailableError) as caught:
            await block(log, 2)
        assert caught.value.code == "log_short"


class TestSingleFlight:
    async def test_one_read_serves_all_who_wait(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1), stored(2))
        store.is_held = True
        waiting = [asyncio.create_task(block(log, offset)) for offset in (1, 2, 1)]
        await settle()
        store.gates[0].set()
        assert len({id(found) for found in await asyncio.gather(*waiting)}) == 1
        assert len(store.reads) == 1

    async def test_failure_is_everybodys_and_the_next_reads_again(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1))
        store.error = StorageUnavailableError("away")
        found = await asyncio.gather(block(log, 1), block(log, 1), return_exceptions=True)
        assert [type(error) for error in found] == [StorageUnavailableError] * 2
        assert len(store.reads) == 1
        store.error = None
        assert (await block(log, 1)).upto == 1

    async def test_one_who_goes_away_does_not_end_the_read_of_the_others(
        self, store: Store, log: AlertLog
    ) -> None:
        store.commit(stored(1))
        store.is_held = True
        first, second = asyncio.create_task(block(log, 1)), asyncio.create_task(block(log, 1))
        await settle()
        first.cancel()
        await settle()
        store.gates[0].set()
        assert (await second).upto == 1
        assert len(store.reads) == 1

    async def test_read_that_began_before_the_alert_was_committed_is_not_taken_for_a_short_log(
        self, store: Store, log: AlertLog
    ) -> None:
        store.commit(*map(stored, range(1, 6)))
        store.is_held = True
        early = asyncio.create_task(block(log, 3))
        await settle()
        store.commit(stored(6))
        late = asyncio.create_task(block(log, 6))
        await settle()
        store.is_held = False
        store.gates[0].set()
        assert (await early).upto == 5
        assert (await late).upto == 6
        assert len(store.reads) == 2

    async def test_asked_for_in_the_moment_in_which_an_older_read_ends_is_read_again(
        self, store: Store, log: AlertLog
    ) -> None:
        store.commit(*map(stored, range(1, 6)))
        store.is_held = True
        early = asyncio.create_task(block(log, 3))
        await settle()
        store.commit(stored(6))
        store.is_held = False
        store.gates[0].set()  # the read is the next to run, and ends
        late = asyncio.create_task(block(log, 6))  # runs after it, before anybody is told of its end
        assert (await late).upto == 6
        assert (await early).upto == 5

    async def test_as_many_reads_at_once_as_is_allowed(self, store: Store) -> None:
        log = made(store, reads_max=2)
        store.commit(*map(stored, range(1, 1300)))
        store.is_held = True
        waiting = [asyncio.create_task(block(log, offset)) for offset in range(1, 1300, BLOCK_LEN)]
        for _ in waiting:
            await settle()
            for gate in store.gates:
                gate.set()
        await asyncio.gather(*waiting)
        assert store.at_once_max == 2

    async def test_close_ends_reads_that_are_under_way(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1))
        store.is_held = True
        waiting = asyncio.create_task(block(log, 1))
        await settle()
        await log.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting


class TestAppend:
    async def test_from_a_blocks_beginning_makes_the_tail(self, store: Store, log: AlertLog) -> None:
        log.append(ID, EPOCH, items(log, stored(1), stored(2)))
        found = log.cached(ID, EPOCH, 2)
        assert found is not None
        assert (found.upto, list(found.items)) == (2, [1, 2])
        assert store.reads == []

    async def test_in_the_middle_of_an_unknown_block_is_left_to_who_needs_it(
        self, store: Store, log: AlertLog
    ) -> None:
        store.commit(stored(1), stored(2))
        log.append(ID, EPOCH, items(log, stored(2)))
        assert log.cached(ID, EPOCH, 2) is None
        assert list((await block(log, 2)).items) == [1, 2]

    async def test_grows_a_block_that_was_read(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1))
        found = await block(log, 1)
        log.append(ID, EPOCH, items(log, stored(2)))
        assert found.upto == 2
        assert log.cached(ID, EPOCH, 2) is found

    async def test_out_of_turn_leaves_no_hole(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1), stored(2))
        log.append(ID, EPOCH, items(log, stored(2)))
        log.append(ID, EPOCH, items(log, stored(1)))
        assert log.cached(ID, EPOCH, 1) is not None
        assert log.cached(ID, EPOCH, 2) is None
        assert list((await block(log, 2)).items) == [1, 2]

    async def test_repeated_changes_nothing(self, log: AlertLog) -> None:
        log.append(ID, EPOCH, items(log, stored(1), stored(2)))
        log.append(ID, EPOCH, items(log, stored(1)))
        found = log.cached(ID, EPOCH, 1)
        assert found is not None
        assert (found.upto, len(found.items)) == (2, 2)

    async def test_goes_on_in_the_next_block(self, log: AlertLog) -> None:
        log.append(ID, EPOCH, items(log, *map(stored, range(1, BLOCK_LEN + 3))))
        first, second = log.cached(ID, EPOCH, 1), log.cached(ID, EPOCH, BLOCK_LEN + 1)
        assert first is not None
        assert second is not None
        assert (first.upto, second.upto) == (BLOCK_LEN, BLOCK_LEN + 2)

    async def test_while_the_block_is_read_the_longer_one_stays(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1))
        store.is_held = True
        reading = asyncio.create_task(block(log, 1))
        await settle()
        log.append(ID, EPOCH, items(log, stored(1), stored(2), stored(3)))
        store.gates[0].set()
        assert (await reading).upto == 3
        assert log.cached(ID, EPOCH, 3) is await reading


class TestSupersede:
    async def test_newer_one_with_the_key_retires_the_older_in_every_block(self, log: AlertLog) -> None:
        log.append(ID, EPOCH, items(log, stored(1, key="door"), stored(2, key="lamp")))
        log.append(ID, EPOCH, items(log, *map(stored, range(3, BLOCK_LEN + 1))))
        log.append(ID, EPOCH, items(log, stored(BLOCK_LEN + 1, key="door")))
        first, second = log.cached(ID, EPOCH, 1), log.cached(ID, EPOCH, BLOCK_LEN + 1)
        assert first is not None
        assert second is not None
        assert first.items[1].is_superseded
        assert not first.items[2].is_superseded
        assert not second.items[BLOCK_LEN + 1].is_superseded

    async def test_is_not_forgotten_by_a_read_that_began_before(self, store: Store, log: AlertLog) -> None:
        store.commit(stored(1, key="door"), stored(2))
        store.is_held = True
        reading = asyncio.create_task(block(log, 1))
        await settle()
        newer = stored(3, key="door")
        store.commit(newer)
        log.append(ID, EPOCH, items(log, newer))
        store.gates[0].set()
        found = await reading
        assert found.items[1].is_superseded
        assert not found.items[2].is_superseded

    async def test_of_another_epoch_retires_nothing(self, log: AlertLog) -> None:
        log.append(ID, EPOCH, items(log, stored(1, key="door")))
        log.append(ID, EPOCH + 1, items(log, stored(2, key="door")))
        found = log.cached(ID, EPOCH, 1)
        assert found is not None
        assert not found.items[1].is_superseded


class TestBound:
    async def test_least_recently_used_block_goes_first(self, store: Store) -> None:
        store.commit(*map(stored, range(1, 4 * BLOCK_LEN + 1)))
        size = (await block(made(store), 1)).size
        log = made(store, size_bytes_max=2 * size + size // 2)
        await block(log, 1)
        await block(log, BLOCK_LEN + 1)
        assert log.cached(ID, EPOCH, 1) is not None
        await block(log, 2 * BLOCK_LEN + 1)
        assert log.cached(ID, EPOCH, BLOCK_LEN + 1) is None
        assert log.cached(ID, EPOCH, 1) is not None

    async def test_tail_that_is_published_to_is_in_use(self, store: Store) -> None:
        store.commit(*map(stored, range(1, 3 * BLOCK_LEN + 1)))
        size = (await block(made(store), 1)).size
        log = made(store, size_bytes_max=2 * size + size // 2)
        tail = 3 * BLOCK_LEN + 1
        log.append(ID, EPOCH, items(log, stored(tail)))
        await block(log, 1)
        log.append(ID, EPOCH, items(log, stored(tail + 1)))
        await block(log, BLOCK_LEN + 1)
        log.append(ID, EPOCH, items(log, stored(tail + 2)))
        await block(log, 2 * BLOCK_LEN + 1)
        assert log.cached(ID, EPOCH, tail + 2) is not None

    async def test_newest_block_stays_whatever_its_size(self, store: Store) -> None:
        store.commit(*map(stored, range(1, 300)))
        log = made(store, size_bytes_max=1)
        await block(log, 1)
        found = await block(log, 299)
        assert log.cached(ID, EPOCH, 1) is None
        assert log.cached(ID, EPOCH, 299) is found

    async def test_block_that_is_gone_is_still_whole_for_who_has_it(self, store: Store) -> None:
        store.commit(*map(stored, range(1, 300)))
        log = made(store, size_bytes_max=1)
        first = await block(log, 1)
        await block(log, 299)
        assert len(first.items) == BLOCK_LEN

    async def test_forgotten_channel_is_read_anew_and_leaves_no_bytes_behind(
        self, store: Store, log: AlertLog
    ) -> None:
        store.commit(*map(stored, range(1, 300)))
        await block(log, 1)
        await block(log, 299)
        log.forget(ID)
        assert log.cached(ID, EPOCH, 1) is None
        assert log.cached(ID, EPOCH, 299) is None
        assert log.size_bytes == 0

    async def test_bytes_are_those_of_the_blocks(self, store: Store, log: AlertLog) -> None:
        store.commit(*map(stored, range(1, 300)))
        blocks = [await block(log, 1), await block(log, 299)]
        log.append(ID, EPOCH, items(log, stored(300), stored(301)))
        assert log.size_bytes == sum(found.size for found in blocks)


class TestItem:
    @pytest.mark.parametrize(("attempt", "waiting"), [(1, 0), (2, 23), (24, 24), (255, 70_000)])
    async def test_page_form_is_the_same_alert_with_attempt_and_waiting(
        self, log: AlertLog, attempt: int, waiting: int
    ) -> None:
        (item,) = items(log, stored(5))
        live = decode_cbor(item.cbor)
        assert isinstance(live, Alert)
        for message in (
            decode_cbor(item.encoded(is_json=False, attempt=attempt, waiting=waiting)),
            decode_json(item.encoded(is_json=True, attempt=attempt, waiting=waiting)),
        ):
            assert message == replace(live, attempt=attempt, waiting=waiting)

    async def test_head_is_the_logs_and_of_the_epoch(self, store: Store, log: AlertLog) -> None:
        assert await log.head(ID, EPOCH) == 0
        store.commit(stored(1), stored(2))
        assert await log.head(ID, EPOCH) == 2
        with pytest.raises(NotFoundError):
            await log.head(ID, EPOCH + 1)
