"""Acks, attempts, dead letters, live intervals (PROTOCOL §2, §3.3, §3.4), and the deliveries read back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from device_sdk.wire.names import DeviceId
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.facts import (
    Adopted,
    Attempted,
    DeadLettered,
    Disconnected,
    IntervalClosed,
    IntervalOpened,
    Received,
    Sent,
)
from gateway.fleet.filters import DeadLetterFilter
from gateway.fleet.model import Connected, Delivery, Fleet, Subscription
from gateway.storage.tables import dead_letter, delivery_fact, live_interval
from tests.contract.world import ACME, OPS, World, standing_in


class Stage:
    """A fleet with a channel, and devices that are connected to it."""

    def __init__(self, world: World, connected: dict[str, Connected]) -> None:
        self.world = world
        self.connected = connected

    def received(
        self, last: int, *, first: int = 1, device: str = "d1", epoch: int | None = None
    ) -> Received:
        ops = standing_in(self.connected[device], OPS)
        key = self.connected[device].device_key
        return Received(
            ops.id, key, ops.channel_id, ops.channel_epoch if epoch is None else epoch, first, last
        )

    def about(self, device: str = "d1") -> dict[str, int]:
        ops = standing_in(self.connected[device], OPS)
        return {
            "device_key": self.connected[device].device_key,
            "channel_id": ops.channel_id,
            "epoch": ops.channel_epoch,
        }

    def dead_letter(self, offset: int, *, device: str = "d1", reason: str = "expired") -> DeadLettered:
        return DeadLettered(
            **self.about(device),
            offset=offset,
            message_id=b"m" * 16,
            reason=reason,
            code="too_hot",
            attempts=2,
            at=8,
        )

    async def fleet(self) -> Fleet:
        return await self.world.store.fleet(ACME)

    async def subscription(self, device: str = "d1") -> Subscription:
        found = await self.world.store.subscriptions(self.connected[device].device_key)
        return next(one for one in found if one.channel == OPS)

    async def facts(self) -> list[tuple[Any, ...]]:
        query = select(delivery_fact.c.fact, delivery_fact.c.first, delivery_fact.c.last, delivery_fact.c.at)
        return [
            tuple(row)
            for row in await self.world.database.read(
                lambda c: c.execute(query.order_by(delivery_fact.c.id)).all()
            )
        ]

    async def deliveries(self, offset: int, **fields: Any) -> list[Delivery]:
        ops = standing_in(self.connected["d1"], OPS)
        return list(await self.world.store.deliveries(ops.channel_id, ops.channel_epoch, offset, **fields))

    async def delivery(self, offset: int, device: str = "d1") -> Delivery:
        return next(one for one in await self.deliveries(offset) if one.device_id == device)


@pytest.fixture
async def stage(world: World) -> Stage:
    fleet = await world.fleet()
    await world.channel(fleet)
    connected = {name: await world.connect(name, channels={"ops": "alert"}) for name in ("d1", "d2")}
    await world.publish(fleet, count=20)
    return Stage(world, connected)


async def test_an_ack_moves_the_position_and_is_one_fact_with_the_time_of_its_commit(stage: Stage) -> None:
    stage.world.clock.advance(5)
    await stage.world.commit(stage.received(16))
    assert (await stage.subscription()).offset == 16
    assert (await stage.subscription("d2")).offset == 0
    assert await stage.facts() == [(2, 1, 16, stage.world.now)]


async def test_acks_of_one_flush_are_one_fact(stage: Stage) -> None:
    await stage.world.commit(
        stage.received(4),
        stage.received(9, first=5),
        stage.received(3, device="d2"),
        stage.received(10, first=10),
    )
    assert (await stage.subscription()).offset == 10
    assert [fact[:3] for fact in await stage.facts()] == [(2, 1, 10), (2, 1, 3)]


async def test_a_position_never_moves_back(stage: Stage) -> None:
    await stage.world.commit(stage.received(9))
    await stage.world.commit(stage.received(4))
    await stage.world.commit(stage.received(9))
    assert (await stage.subscription()).offset == 9
    assert [fact[:3] for fact in await stage.facts()] == [(2, 1, 9)]


async def test_an_ack_of_another_epoch_changes_nothing(stage: Stage) -> None:
    before = await stage.subscription()
    await stage.world.commit(stage.received(9, epoch=before.epoch ^ 1))
    assert await stage.subscription() == before
    assert await stage.facts() == []


async def test_an_ack_above_the_head_changes_nothing(stage: Stage) -> None:
    before = await stage.subscription()
    await stage.world.commit(stage.received(21))
    assert await stage.subscription() == before
    assert await stage.facts() == []


async def test_an_ack_of_an_ended_subscription_or_a_deleted_device_changes_nothing(stage: Stage) -> None:
    late = stage.received(9)
    await stage.world.connect()  # without the channel
    await stage.world.commit(late, stage.received(3, device="d2"))
    assert [fact[:3] for fact in await stage.facts()] == [(2, 1, 3)]
    fleet = await stage.fleet()
    await stage.world.store.delete_device(fleet.key, DeviceId("d2"))
    await stage.world.commit(
        stage.received(9, first=4, device="d2"),
        IntervalOpened(b"i" * 16, **stage.about("d2"), first=1, at=1),
        Sent(**stage.about("d2"), first=1, last=2, attempt=1, at=1),
        stage.dead_letter(2, device="d2", reason="nacked"),
        Disconnected(stage.about("d2")["device_key"], 1),
    )
    assert await stage.world.database.read(lambda c: c.execute(select(dead_letter)).all()) == []


async def test_attempts_are_raised_at_the_stuck_offset_and_begin_anew_with_an_ack(stage: Stage) -> None:
    key = (await stage.subscription()).id
    await stage.world.commit(Attempted(key, 1, 1), Attempted(key, 1, 2))
    await stage.world.commit(Attempted(key, 1, 1))  # an older one that came late
    found = await stage.subscription()
    assert (found.stuck_offset, found.attempts) == (1, 2)
    await stage.world.commit(stage.received(3))
    found = await stage.subscription()
    assert (found.stuck_offset, found.attempts) == (0, 0)


async def test_an_attempt_that_an_ack_overtook_changes_nothing(stage: Stage) -> None:
    key = (await stage.subscription()).id
    await stage.world.commit(stage.received(3))
    await stage.world.commit(Attempted(key, 2, 5))
    found = await stage.subscription()
    assert (found.stuck_offset, found.attempts) == (0, 0)


async def test_an_ack_below_the_stuck_offset_leaves_its_attempts(stage: Stage) -> None:
    key = (await stage.subscription()).id
    await stage.world.commit(stage.received(1), Attempted(key, 5, 3))
    await stage.world.commit(stage.received(4, first=2))
    found = await stage.subscription()
    assert (found.offset, found.stuck_offset, found.attempts) == (4, 5, 3)


async def test_an_adopted_position_may_go_back_and_to_another_epoch(stage: Stage) -> None:
    before = await stage.subscription()
    await stage.world.commit(stage.received(9), Attempted(before.id, 10, 2))
    await stage.world.commit(Adopted(before.id, 7, 2))
    found = await stage.subscription()
    assert (found.epoch, found.offset, found.stuck_offset, found.attempts) == (7, 2, 0, 0)


async def test_a_dead_letter_is_written_once_and_found_in_its_fleet(stage: Stage) -> None:
    dead = stage.dead_letter(3, reason="nacked")
    await stage.world.commit(dead, dead)
    await stage.world.commit(dead)
    store = stage.world.store
    fleet, other = await stage.fleet(), await stage.world.fleet("other")
    (one,) = await store.dead_letters(fleet.key)
    assert (one.device_id, one.channel, one.offset, one.reason, one.code, one.attempts, one.at) == (
        "d1",
        "ops",
        3,
        "nacked",
        "too_hot",
        2,
        8,
    )
    assert await store.dead_letter(fleet.key, one.id) == one
    assert await store.dead_letters(other.key) == []
    with pytest.raises(NotFoundError):
        await store.dead_letter(other.key, one.id)


async def test_a_dead_letter_is_marked_with_the_alert_that_repeats_it_once(stage: Stage) -> None:
    await stage.world.commit(stage.dead_letter(3))
    store, fleet = stage.world.store, await stage.fleet()
    (one,) = await store.dead_letters(fleet.key)
    again = await stage.world.publish(fleet, requeues=one.id)
    assert (await store.dead_letter(fleet.key, one.id)).requeued_as == again.messages[0].id
    head = again.channel.head
    for id, refusal in ((one.id, ConflictError), (one.id + 1, NotFoundError)):
        with pytest.raises(refusal):
            await stage.world.publish(fleet, requeues=id)
    assert (await store.channel(fleet.key, OPS)).head == head, "what is refused appends nothing"


async def test_dead_letters_are_listed_oldest_first_by_device_and_paged(stage: Stage) -> None:
    for offset in (1, 2, 3):
        for device in ("d1", "d2"):
            await stage.world.commit(stage.dead_letter(offset, device=device))
    fleet = await stage.fleet()
    first = await stage.world.store.dead_letters(fleet.key, limit=4)
    rest = await stage.world.store.dead_letters(fleet.key, beyond=first[-1].id, limit=9)
    assert [(one.device_id, one.offset) for one in [*first, *rest]] == [
        (device, offset) for offset in (1, 2, 3) for device in ("d1", "d2")
    ]
    newest = await stage.world.store.dead_letters(fleet.key, is_newest_first=True, beyond=rest[0].id, limit=9)
    assert [one.id for one in newest] == [one.id for one in first[::-1]]


async def test_dead_letters_are_found_by_what_they_are_about(stage: Stage) -> None:
    at = stage.world.now
    await stage.world.commit(replace(stage.dead_letter(1, reason="nacked"), at=at))
    await stage.world.commit(replace(stage.dead_letter(2, device="d2", reason="expired"), at=at + 5))
    fleet = await stage.fleet()
    (first, _) = await stage.world.store.dead_letters(fleet.key)
    await stage.world.publish(fleet, requeues=first.id)

    async def found(**wanted: Any) -> list[int]:
        rows = await stage.world.store.dead_letters(fleet.key, filter=DeadLetterFilter(**wanted))
        return [row.offset for row in rows]

    assert await found() == [1, 2]
    assert await found(device_id="d2") == await found(reason="expired") == [2]
    assert await found(since=at + 5) == await found(is_requeued=False) == [2]
    assert await found(before=at + 5) == await found(is_requeued=True) == [1]
    assert await found(channel="ops") == [1, 2]
    assert await found(channel="other") == []


async def test_in_a_live_interval_an_alert_was_sent_when_it_was_accepted(stage: Stage) -> None:
    opened = stage.world.now + 1_000
    await stage.world.commit(IntervalOpened(b"i" * 16, **stage.about(), first=21, at=opened))
    stage.world.clock.advance(60)
    fleet = await stage.fleet()
    await stage.world.publish(fleet, count=3)
    at = stage.world.now
    for offset in (21, 22, 23):
        assert await stage.delivery(offset) == Delivery(DeviceId("d1"), at, 1, None)
    assert await stage.delivery(20) == Delivery(DeviceId("d1"), None, 0, None)
    assert await stage.delivery(22, "d2") == Delivery(DeviceId("d2"), None, 0, None)
    await stage.world.commit(IntervalClosed(b"i" * 16, 22, at + 1))
    assert (await stage.delivery(22)).sent_at == at
    assert (await stage.delivery(23)).sent_at is None


async def test_an_alert_accepted_just_before_the_interval_was_sent_when_it_opened(stage: Stage) -> None:
    opened = stage.world.now + 3
    await stage.world.commit(IntervalOpened(b"i" * 16, **stage.about(), first=20, at=opened))
    assert (await stage.delivery(20)).sent_at == opened


async def test_pages_and_redeliveries_are_counted_and_the_first_time_kept(stage: Stage) -> None:
    await stage.world.commit(Sent(**stage.about(), first=1, last=10, attempt=1, at=100))
    await stage.world.commit(Sent(**stage.about(), first=4, last=4, attempt=2, at=200))
    await stage.world.commit(Sent(**stage.about(), first=4, last=12, attempt=3, at=300))
    assert await stage.delivery(4) == Delivery(DeviceId("d1"), 100, 3, None)
    assert await stage.delivery(11) == Delivery(DeviceId("d1"), 300, 1, None)


async def test_an_alert_is_received_with_the_first_ack_that_reaches_it(stage: Stage) -> None:
    times = {}
    for first, last in ((1, 4), (5, 5), (6, 20)):
        stage.world.clock.advance(1)
        await stage.world.commit(stage.received(last, first=first))
        times |= dict.fromkeys(range(first, last + 1), stage.world.now)
    for offset in (1, 4, 5, 6, 20):
        assert (await stage.delivery(offset)).received_at == times[offset]
        assert (await stage.delivery(offset, "d2")).received_at is None


async def test_an_alert_before_the_subscription_was_neither_sent_nor_received(stage: Stage) -> None:
    late = await stage.world.connect("d3", channels={"ops": "alert"})
    fleet = await stage.fleet()
    await stage.world.publish(fleet)
    ops = standing_in(late, OPS)
    await stage.world.commit(Received(ops.id, late.device_key, ops.channel_id, ops.epoch, 21, 21))
    assert (await stage.delivery(20, "d3")).received_at is None
    assert (await stage.delivery(21, "d3")).received_at == stage.world.now


async def test_a_dead_letter_is_in_the_delivery(stage: Stage) -> None:
    await stage.world.commit(stage.dead_letter(3, reason="attempts"))
    assert (await stage.delivery(3)).dead_letter == "attempts"
    assert (await stage.delivery(4)).dead_letter is None


async def test_deliveries_are_paged_by_device_id(stage: Stage) -> None:
    for number in (9, 10, 11):
        await stage.world.connect(f"d{number}", channels={"ops": "alert"})
    await stage.world.connect("stranger")
    page = await stage.deliveries(1, limit=2)
    rest = await stage.deliveries(1, after=page[-1].device_id)
    assert [one.device_id for one in [*page, *rest]] == ["d1", "d10", "d11", "d2", "d9"]


async def test_deliveries_of_what_is_not_there_are_not_found(stage: Stage) -> None:
    about = stage.about()
    with pytest.raises(NotFoundError):
        await stage.deliveries(21)
    with pytest.raises(NotFoundError):
        await stage.world.store.deliveries(about["channel_id"], about["epoch"] ^ 1, 1)


async def test_an_interval_left_open_by_a_dead_node_is_closed_by_what_is_proved(stage: Stage) -> None:
    await stage.world.commit(
        IntervalOpened(b"i" * 16, **stage.about("d1"), first=5, at=1),
        IntervalOpened(b"j" * 16, **stage.about("d2"), first=5, at=1),
        stage.received(9),
    )
    assert await stage.world.store.close_intervals(now_ms=stage.world.now) == 2
    assert await stage.world.store.close_intervals(now_ms=stage.world.now) == 0
    rows = await stage.world.database.read(
        lambda c: c.execute(
            select(live_interval.c.last, live_interval.c.closed_at).order_by(live_interval.c.id)
        ).all()
    )
    assert [tuple(row) for row in rows] == [(9, stage.world.now), (4, stage.world.now)]


async def test_the_last_time_a_device_was_seen_only_rises(stage: Stage) -> None:
    fleet = await stage.fleet()
    key = stage.connected["d1"].device_key
    await stage.world.commit(Disconnected(key, stage.world.now + 5), Disconnected(key, stage.world.now - 5))
    assert (await stage.world.store.device(fleet.key, DeviceId("d1"))).last_seen_at == stage.world.now + 5
