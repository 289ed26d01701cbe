"""What leaves the database, and in which order (PROTOCOL §1.6)."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from device_sdk.wire.names import ChannelName, DeviceId
from gateway.errors import NotFoundError
from gateway.fleet.facts import DeadLettered, IntervalClosed, IntervalOpened, Received, Sent
from gateway.storage.tables import audit, dead_letter, delivery_fact, idempotency, live_interval, message
from tests.contract.world import KID, OPS, World, draft, seal, standing_in
from tests.harness.acts import act

DAY_S = 24 * 3600


async def prune(world: World, **fields: Any) -> list[tuple[int, int]]:
    bounds: dict[str, Any] = {
        "age_s": DAY_S,
        "count": 1_000,
        "dead_letter_age_s": 30 * DAY_S,
        "rows_max": 1_000,
    } | fields
    return list(await world.store.prune(now_ms=world.now, **bounds))


async def count(world: World, table: Any) -> int:
    query = select(func.count()).select_from(table)
    return await world.database.read(lambda c: c.scalar(query)) or 0


async def test_alerts_beyond_the_count_go_and_the_floor_says_so(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    appended = await world.publish(fleet, count=10)
    assert await prune(world, count=4) == [(channel.id, 6)]
    found = await world.store.log_range(channel.id, 1, 10)
    assert (found.floor, found.head) == (6, 10)
    assert [m.offset for m in found.messages] == [7, 8, 9, 10]
    assert await count(world, message) == 4
    with pytest.raises(NotFoundError):
        await world.store.message(fleet.key, appended.messages[5].id)
    assert await prune(world, count=4) == []


async def test_alerts_older_than_the_age_go(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    await world.publish(fleet, count=3)
    world.clock.advance(DAY_S / 2)
    await world.publish(fleet, count=2)
    world.clock.advance(DAY_S / 2)
    assert await prune(world) == [], "an alert of exactly the age stays"
    world.clock.advance(1)
    assert await prune(world) == [(channel.id, 3)]
    world.clock.advance(DAY_S)
    assert await prune(world) == [(channel.id, 5)]
    assert (await world.publish(fleet)).messages[0].offset == 6


async def test_a_channels_own_retention_wins(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet, "long", retention_age_s=10 * DAY_S)
    short = await world.channel(fleet, "short", retention_count=1)
    for name in ("long", "short"):
        await world.publish(fleet, name, count=3)
    world.clock.advance(2 * DAY_S)
    await world.publish(fleet, "short")
    assert await prune(world) == [(short.id, 3)]


async def test_an_old_alert_behind_a_young_one_waits(world: World) -> None:
    # The clock jumped back between two publishes; pruning by time alone would leave a hole.
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    await world.publish(fleet)
    world.clock.jump_wall(-3 * DAY_S * 1000)
    await world.publish(fleet)
    world.clock.jump_wall(3 * DAY_S * 1000)
    assert await prune(world) == []
    assert len((await world.store.log_range(channel.id, 1, 9)).messages) == 2


async def test_a_run_is_bounded_and_the_next_goes_on(world: World) -> None:
    fleet = await world.fleet()
    a, b = await world.channel(fleet, "a"), await world.channel(fleet, "b")
    for name in ("a", "b"):
        await world.publish(fleet, name, count=6)
    assert await prune(world, count=1, rows_max=4) == [(a.id, 4)]
    assert await prune(world, count=1, rows_max=4) == [(a.id, 5), (b.id, 3)]
    assert await prune(world, count=1, rows_max=4) == [(b.id, 5)]
    assert await prune(world, count=1, rows_max=4) == []


async def test_the_floor_is_committed_before_rows_go(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    await world.publish(fleet, count=5)
    floors: list[tuple[int, int]] = []
    write = world.database.write

    async def watched(command: Any) -> Any:
        result = await write(command)
        found = await world.store.channel(fleet.key, OPS)
        floors.append((found.floor, await count(world, message)))
        return result

    world.database.write = watched  # type: ignore[method-assign]
    await prune(world, count=2)
    assert floors[:2] == [(3, 5), (3, 2)]
    assert channel.floor == 0


async def test_a_position_below_the_floor_stays_what_it_was(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    connected = await world.connect(channels={"ops": "alert"})
    await world.publish(fleet, count=5)
    await prune(world, count=2)
    (ops, _) = await world.store.connected_subscriptions(connected.device_key)
    assert (ops.offset, ops.floor, ops.head) == (0, 3, 5)


async def test_facts_go_with_their_alerts_their_channel_and_their_device(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    await world.channel(fleet, "gone")
    for name in ("d1", "d2"):
        connected = await world.connect(name, channels={"ops": "alert", "gone": "alert"})
        if name == "d1":
            await world.publish(fleet, count=9)
            await world.publish(fleet, "gone")
        for channel in ("ops", "gone"):
            at = standing_in(connected, channel)
            about = (connected.device_key, at.channel_id, at.channel_epoch)
            await world.commit(
                Sent(*about, first=1, last=1, attempt=1, at=1),
                Sent(*about, first=2, last=9, attempt=1, at=1),
                IntervalOpened(f"{name}{channel}".encode().ljust(16), *about, first=1, at=1),
                IntervalClosed(f"{name}{channel}".encode().ljust(16), last=5, at=2),
            )
    assert (await count(world, delivery_fact), await count(world, live_interval)) == (8, 4)
    await world.store.delete_device(fleet.key, DeviceId("d2"))
    await world.store.delete_channel(fleet.key, ChannelName("gone"))
    await prune(world, count=6)
    assert (await count(world, delivery_fact), await count(world, live_interval)) == (1, 1)
    await prune(world, count=1)
    assert (await count(world, delivery_fact), await count(world, live_interval)) == (1, 0)


async def test_the_round_through_the_facts_passes_those_that_stay(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet, "long")
    await world.channel(fleet, "short")
    connected = await world.connect(channels={"long": "alert", "short": "alert"})
    for name in ("long", "short"):
        await world.publish(fleet, name, count=6)
        at = standing_in(await world.connect(channels={"long": "alert", "short": "alert"}), name)
        for offset in range(1, 7):
            await world.commit(Received(at.id, connected.device_key, at.channel_id, at.epoch, offset, offset))
    await world.store.update_channel(fleet.key, ChannelName("short"), {"retention_count": 1}, version=None)
    for _ in range(6):
        await prune(world, rows_max=3)
    left = await world.database.read(
        lambda c: c.execute(select(delivery_fact.c.channel_id, delivery_fact.c.last)).all()
    )
    assert len(left) == 7


async def test_old_answers_and_old_dead_letters_go(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    connected = await world.connect(channels={"ops": "alert"})
    at = standing_in(connected, "ops")
    await world.store.append(
        fleet.key,
        OPS,
        [draft()],
        now_ms=world.now,
        kid=KID,
        seal=seal,
        act=act(at=world.now),
    )
    await world.commit(
        DeadLettered(
            connected.device_key, at.channel_id, at.channel_epoch, 1, b"m" * 16, "nacked", None, 0, world.now
        )
    )
    world.clock.advance(DAY_S)
    await prune(world, age_s=365 * DAY_S)
    assert (await count(world, idempotency), await count(world, dead_letter)) == (1, 1)
    world.clock.advance(1)
    await prune(world, age_s=365 * DAY_S)
    assert (await count(world, idempotency), await count(world, dead_letter)) == (0, 1)
    world.clock.advance(29 * DAY_S + 1)
    await prune(world, age_s=365 * DAY_S)
    assert await count(world, dead_letter) == 0


async def test_what_operators_did_is_kept_for_400_days(world: World) -> None:
    fleet = await world.fleet()
    await world.store.create_device(fleet.key, DeviceId("d1"), now_ms=world.now, act=act(at=world.now))
    world.clock.advance(400 * DAY_S)
    await prune(world)
    assert await count(world, audit) == 1
    world.clock.advance(1)
    await prune(world)
    assert await count(world, audit) == 0
