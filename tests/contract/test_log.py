"""The log (PROTOCOL §1) on both databases."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from device_sdk.wire.names import ChannelName, FleetName
from gateway.errors import ConflictError, NotFoundError, StorageUnavailableError
from gateway.fleet.acts import Replay
from gateway.fleet.filters import AlertFilter
from gateway.fleet.model import Appended, Draft
from gateway.ids import uuid7
from gateway.storage.engine import CommitUnknownError
from gateway.storage.tables import idempotency as idempotency_table
from gateway.storage.tables import message
from tests.contract.world import KID, OPS, World, draft, seal
from tests.harness.acts import act


async def test_offsets_begin_at_one_and_the_payload_is_sealed_with_them(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    assert (channel.head, channel.floor) == (0, 0)
    first = await world.publish(fleet, data=b"a")
    both = await world.publish(fleet, count=2, data=b"b")
    assert [one.offset for one in first.messages + both.messages] == [1, 2, 3]
    assert both.channel.head == 3
    assert both.messages[1].payload == f"acme/ops/{channel.epoch}/3/b".encode()
    assert both.messages[1].signature == b"signature of 3"
    assert both.messages[1].accepted_at == world.now
    found = await world.store.log_range(channel.id, 1, 256)
    assert found.messages == first.messages + both.messages
    assert (found.epoch, found.head, found.floor) == (channel.epoch, 3, 0)


async def test_parallel_appends_give_contiguous_offsets_in_commit_order(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    appended = await asyncio.gather(*(world.publish(fleet, count=1 + n % 3) for n in range(40)))
    offsets = sorted(one.offset for one in (m for a in appended for m in a.messages))
    assert offsets == list(range(1, len(offsets) + 1))
    assert (await world.store.channel(fleet.key, OPS)).head == len(offsets)
    for one in appended:
        assert [m.offset for m in one.messages] == list(
            range(one.messages[0].offset, one.channel.head + 1)
        ), "a batch is not interleaved with another"
    assert len((await world.store.log_range(channel.id, 1, 300)).messages) == len(offsets)


async def test_readers_never_pass_an_offset_that_commits_later(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    done = False

    async def look() -> None:
        while not done:
            found = await world.store.log_range(channel.id, 1, 300)
            assert [m.offset for m in found.messages] == list(range(1, found.head + 1))

    looking = [asyncio.create_task(look()) for _ in range(2)]
    await asyncio.gather(*(world.publish(fleet) for _ in range(60)))
    done = True
    await asyncio.gather(*looking)


async def test_a_failed_append_leaves_no_hole(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    await world.publish(fleet)

    def broken(*_: object) -> tuple[bytes, bytes]:
        raise RuntimeError("the key is gone")

    with pytest.raises(RuntimeError):
        await world.store.append(fleet.key, OPS, [draft()], now_ms=0, kid=KID, seal=broken)
    assert (await world.store.channel(fleet.key, OPS)).head == 1
    assert (await world.publish(fleet)).messages[0].offset == 2
    assert [m.offset for m in (await world.store.log_range(channel.id, 1, 9)).messages] == [1, 2]


async def test_an_id_is_appended_once(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    once = draft()
    await world.store.append(fleet.key, OPS, [once], now_ms=0, kid=KID, seal=seal)
    with pytest.raises(ConflictError) as refused:
        await world.store.append(fleet.key, OPS, [once], now_ms=0, kid=KID, seal=seal)
    assert refused.value.code == "message_exists"
    assert (await world.store.channel(fleet.key, OPS)).head == 1


async def test_updates_have_no_log(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet, "firmware", "update")
    with pytest.raises(ConflictError) as refused:
        await world.publish(fleet, "firmware")
    assert refused.value.code == "wrong_kind"
    assert (await world.store.channel(fleet.key, ChannelName("firmware"))).head == 0


async def test_an_unknown_channel_and_another_fleets_are_not_found(world: World) -> None:
    fleet, other = await world.fleet(), await world.fleet("other")
    await world.channel(fleet)
    with pytest.raises(NotFoundError):
        await world.publish(fleet, "nowhere")
    with pytest.raises(NotFoundError):
        await world.publish(other, OPS)


async def test_a_newer_alert_with_the_key_supersedes_the_older_one_only(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    for key in ("door", "window", None, "door"):
        await world.publish(fleet, key=key)
    found = await world.store.log_range(channel.id, 1, 9)
    assert [m.superseded_by for m in found.messages] == [4, None, None, None]
    await world.publish(fleet, key="door")
    found = await world.store.log_range(channel.id, 1, 9)
    assert [m.superseded_by for m in found.messages] == [4, None, None, 5, None]


async def test_keys_supersede_within_one_append(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    await world.publish(fleet, key="door")
    drafts = [draft(key="door"), draft(), draft(key="door"), draft(key="door")]
    await world.store.append(fleet.key, OPS, drafts, now_ms=0, kid=KID, seal=seal)
    found = await world.store.log_range(channel.id, 1, 9)
    assert [m.superseded_by for m in found.messages] == [2, 4, None, 5, None]


async def test_a_key_supersedes_in_its_own_channel_only(world: World) -> None:
    fleet = await world.fleet()
    ops, other = await world.channel(fleet), await world.channel(fleet, "other")
    await world.publish(fleet, OPS, key="door")
    await world.publish(fleet, "other", key="door")
    for channel in (ops, other):
        (only,) = (await world.store.log_range(channel.id, 1, 9)).messages
        assert only.superseded_by is None


async def test_an_alert_is_found_by_id_within_its_fleet(world: World) -> None:
    fleet, other = await world.fleet(), await world.fleet("other")
    await world.channel(fleet)
    (one,) = (await world.publish(fleet)).messages
    channel, found = await world.store.message(fleet.key, one.id)
    assert (channel.name, found) == (OPS, one)
    with pytest.raises(NotFoundError):
        await world.store.message(other.key, one.id)
    with pytest.raises(NotFoundError):
        await world.store.message(fleet.key, uuid7(0))


async def test_messages_are_listed_newest_first_and_paged(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    await world.publish(fleet, count=5)
    page = await world.store.messages(channel.id, beyond=None, limit=2)
    assert [m.offset for m in page] == [5, 4]
    page = await world.store.messages(channel.id, beyond=4, limit=9)
    assert [m.offset for m in page] == [3, 2, 1]
    page = await world.store.messages(channel.id, is_oldest_first=True, beyond=2, limit=2)
    assert [m.offset for m in page] == [3, 4]


async def test_messages_are_found_by_their_time_and_key(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    times = []
    for key in ("a", "b", None):
        await world.publish(fleet, key=key)
        times.append(world.now)
        world.clock.advance(1)

    async def found(**wanted: Any) -> list[int]:
        page = await world.store.messages(channel.id, filter=AlertFilter(**wanted), beyond=None, limit=9)
        return [message.offset for message in page]

    assert await found(accepted_since=times[1]) == [3, 2]
    assert await found(accepted_before=times[1]) == [1]
    assert await found(key="b") == [2]


async def test_a_range_is_bounded(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    await world.publish(fleet, count=310)
    found = await world.store.log_range(channel.id, 1, 310)
    assert [m.offset for m in found.messages] == list(range(1, 301))
    assert found.head == 310


async def append_once(world: World, fleet_key: int, **fields: bytes) -> Appended | Replay:
    return await world.store.append(
        fleet_key,
        OPS,
        [draft()],
        now_ms=world.now,
        kid=KID,
        seal=seal,
        act=act(lambda made: (201, b"%d" % made.messages[0].offset), **fields),
    )


async def test_a_repeated_request_gets_its_answer_again_and_appends_nothing(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    assert isinstance(await append_once(world, fleet.key), Appended)
    assert await append_once(world, fleet.key) == Replay(201, b"1")
    assert (await world.store.channel(fleet.key, OPS)).head == 1


async def test_repetitions_at_once_append_once(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    answers = await asyncio.gather(*(append_once(world, fleet.key) for _ in range(8)))
    assert sum(isinstance(answer, Appended) for answer in answers) == 1
    assert answers.count(Replay(201, b"1")) == 7
    assert (await world.store.channel(fleet.key, OPS)).head == 1


async def test_a_key_with_another_request_is_a_conflict(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    await append_once(world, fleet.key)
    with pytest.raises(ConflictError) as refused:
        await append_once(world, fleet.key, request=b"x" * 32)
    assert refused.value.code == "idempotency_key_reused"
    assert (await world.store.channel(fleet.key, OPS)).head == 1


async def test_a_refused_request_keeps_no_answer(world: World) -> None:
    fleet = await world.fleet()
    with pytest.raises(NotFoundError):
        await append_once(world, fleet.key)
    count = select(func.count()).select_from(idempotency_table)
    assert await world.database.read(lambda c: c.scalar(count)) == 0
    await world.channel(fleet)
    assert isinstance(await append_once(world, fleet.key), Appended)


class LosesItsCommit:
    """A database whose COMMIT's outcome is not seen: it happened, or it did not."""

    def __init__(self, world: World, *, happened: bool) -> None:
        self._database = world.database
        self._happened = happened
        self.writes = 0

    async def read(self, query):  # type: ignore[no-untyped-def]
        return await self._database.read(query)

    async def write(self, command):  # type: ignore[no-untyped-def]
        self.writes += 1
        if self._happened:
            await self._database.write(command)
        raise CommitUnknownError("the connection was lost during COMMIT")


async def test_an_append_of_unknown_outcome_is_looked_up_and_never_repeated(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    one: Draft = draft()
    database = LosesItsCommit(world, happened=True)
    store = type(world.store)(database)  # type: ignore[arg-type]
    appended = await store.append(fleet.key, OPS, [one], now_ms=7, kid=KID, seal=seal)
    assert isinstance(appended, Appended)
    assert [m.id for m in appended.messages] == [one.id]
    assert database.writes == 1
    database = LosesItsCommit(world, happened=False)
    store = type(world.store)(database)  # type: ignore[arg-type]
    with pytest.raises(StorageUnavailableError):
        await store.append(fleet.key, OPS, [draft()], now_ms=7, kid=KID, seal=seal)
    assert database.writes == 1

    def count(connection: Connection) -> int | None:
        return connection.scalar(select(func.count()).select_from(message))

    assert await world.database.read(count) == 1


async def test_the_fleets_name_is_given_to_the_seal(world: World) -> None:
    fleet = await world.fleet("other")
    await world.channel(fleet)
    (one,) = (await world.publish(fleet)).messages
    assert one.payload.startswith(FleetName("other/ops/").encode())
