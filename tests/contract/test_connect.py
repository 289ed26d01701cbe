"""Connecting (PROTOCOL §1.7, §2.3, §2.4, §5): one hello, and what the database makes of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, select

from device_sdk.wire.limits import CHANNELS_MAX
from device_sdk.wire.messages import Installed
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.errors import ConflictError, CredentialRefusedError, OriginUnavailableError
from gateway.fleet.facts import (
    Attempted,
    DeadLettered,
    IntervalClosed,
    IntervalOpened,
    Judged,
    Received,
    Sent,
)
from gateway.fleet.model import Connected
from gateway.identity import ResumedVerdict
from gateway.storage.connect import connect
from gateway.storage.tables import delivery_fact, device, live_interval
from tests.contract.world import OPS, World, standing_in

D1 = DeviceId("d1")


async def test_an_unknown_device_is_enrolled_with_what_origin_and_device_say(world: World) -> None:
    fleet = await world.fleet()
    installed = {"app": Installed(3, "1.2", b"\x01" * 32, True)}
    connected = await world.connect(
        origin={"model": "tc3", "slots": 2},
        attributes={"firmware": "1.2"},
        installed=installed,
        last_directive=40,
        root_version=1,
    )
    found = await world.store.device(fleet.key, D1)
    assert found.key == connected.device_key
    assert found.enrolment_id == connected.enrolment_id
    assert (found.origin, found.reported, found.installed) == (
        {"model": "tc3", "slots": 2},
        {"firmware": "1.2"},
        installed,
    )
    assert (found.directive_sequence, found.root_version) == (40, 1)
    assert found.enrolled_at == found.last_seen_at == world.now
    assert connected.previous_boot_id is None
    assert (connected.directive_sequence, connected.ended, connected.cancelling) == (40, (), ())


async def test_a_known_device_keeps_who_it_is_and_changes_what_it_says(world: World) -> None:
    fleet = await world.fleet()
    first = await world.connect(boot=b"1" * 16, last_directive=40, origin={"model": "a"})
    world.clock.advance(60)
    again = await world.connect(boot=b"2" * 16, last_directive=7, origin={"model": "b"})
    assert (again.device_key, again.enrolment_id) == (first.device_key, first.enrolment_id)
    assert again.previous_boot_id == b"1" * 16
    assert again.directive_sequence == 40, "the counter is the higher of both"
    found = await world.store.device(fleet.key, D1)
    assert (found.origin, found.directive_sequence, found.last_seen_at) == ({"model": "b"}, 40, world.now)
    assert found.version == 1, "the version is the operator's"


def resumed(connected: Connected, device: str = "d1", *, fleet: str = "acme") -> ResumedVerdict:
    return ResumedVerdict(DeviceId(device), FleetName(fleet), enrolment_id=connected.enrolment_id)


async def resume(world: World, verdict: ResumedVerdict, **hello: Any) -> Connected:
    (connected,) = await world.commit(replace(world.connect_of(**hello), verdict=verdict))
    assert isinstance(connected, Connected)
    return connected


async def test_who_shows_a_ticket_has_what_the_origin_said_last(world: World) -> None:
    fleet = await world.fleet()
    channels = {"ops": "alert", "firmware": "update"}
    first = await world.connect(channels=channels, origin={"model": "tc3"})
    await world.commit(
        Judged(
            replace(
                world.connect_of(channels=channels | {"lab": "alert"}).verdict, attributes={"model": "tc4"}
            ),
            world.now,
        )
    )
    lab = next(one for one in (await resume(world, resumed(first))).subscriptions if one.channel == "lab")
    await world.publish(fleet, "lab")
    again = await resume(world, resumed(first), boot=b"2" * 16, attributes={"firmware": "1.2"})
    assert [one.channel for one in again.subscriptions] == ["firmware", "lab", "ops", "~d1"]
    still = standing_in(again, "lab")
    assert (still.id, still.offset, still.head) == (lab.id, 0, 1)
    found = await world.store.device(fleet.key, D1)
    assert (found.origin, found.reported) == ({"model": "tc4"}, {"firmware": "1.2"})
    assert again.previous_boot_id == b"b" * 16


async def test_a_ticket_of_an_earlier_enrolment_enrols_nobody(world: World) -> None:
    fleet = await world.fleet()
    first = await world.connect()
    await world.store.delete_device(fleet.key, D1)
    with pytest.raises(ConflictError) as refused:
        await resume(world, resumed(first))
    assert refused.value.code == "enrolment_changed"
    assert await world.store.devices(fleet.key) == []
    second = await world.connect()
    with pytest.raises(ConflictError):
        await resume(world, resumed(first), boot=b"2" * 16)
    assert (await world.connect()).previous_boot_id == b"b" * 16
    assert (await resume(world, resumed(second))).enrolment_id == second.enrolment_id


async def test_a_disabled_device_is_refused_with_a_ticket_too(world: World) -> None:
    fleet = await world.fleet()
    first = await world.connect()
    await world.store.update_device(fleet.key, D1, {"is_enabled": False}, version=None)
    with pytest.raises(CredentialRefusedError) as refused:
        await resume(world, resumed(first))
    assert refused.value.code == "device_disabled"


async def test_those_with_and_without_a_ticket_connect_in_one_flush(world: World) -> None:
    await world.fleet()
    first = await world.connect("d1", channels={"ops": "alert"})
    gone = replace(resumed(first), device_id=DeviceId("d3"))
    found = await asyncio.gather(
        world.writer.commit(replace(world.connect_of(), verdict=resumed(first))),
        world.writer.commit(world.connect_of("d2", channels={"ops": "alert"})),
        world.writer.commit(replace(world.connect_of("d3"), verdict=gone)),
        return_exceptions=True,
    )
    assert [one.channel for one in found[0].subscriptions] == ["ops", "~d1"]
    assert [one.channel for one in found[1].subscriptions] == ["ops", "~d2"]
    assert isinstance(found[2], ConflictError)


async def test_buckets_and_enrolments_are_random(world: World) -> None:
    fleet = await world.fleet()
    for number in range(4):
        await world.connect(f"d{number}")
    found = await world.store.devices(fleet.key)
    assert len({one.bucket for one in found}) == len({one.enrolment_id for one in found}) == 4


async def test_an_unknown_fleet_is_an_unknown_verdict_and_makes_nothing(world: World) -> None:
    with pytest.raises(OriginUnavailableError) as refused:
        await world.connect(fleet="nobody")
    assert (refused.value.code, refused.value.retry_after_s) == ("unknown_fleet", 30)
    assert await world.store.fleets() == []
    assert await world.database.read(lambda c: c.execute(select(device)).all()) == []


async def test_a_disabled_device_is_refused_and_unchanged(world: World) -> None:
    fleet = await world.fleet()
    await world.connect(channels={"ops": "alert"})
    await world.store.update_device(fleet.key, D1, {"is_enabled": False}, version=None)
    before = await world.store.device(fleet.key, D1)
    subscriptions = await world.store.subscriptions(before.key)
    world.clock.advance(1)
    with pytest.raises(CredentialRefusedError) as refused:
        await world.connect(boot=b"9" * 16, origin={"x": 1})
    assert refused.value.code == "device_disabled"
    assert await world.store.device(fleet.key, D1) == before
    assert await world.store.subscriptions(before.key) == subscriptions


async def test_a_refused_device_does_not_refuse_others_of_its_flush(world: World) -> None:
    fleet = await world.fleet()
    await world.store.create_device(fleet.key, DeviceId("off"), now_ms=0)
    await world.store.update_device(fleet.key, DeviceId("off"), {"is_enabled": False}, version=None)
    answers = await asyncio.gather(
        *(
            world.writer.commit(world.connect_of(name, fleet=of))
            for name, of in (("d1", "acme"), ("off", "acme"), ("d2", "nobody"), ("d3", "acme"))
        ),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [
        Connected,
        CredentialRefusedError,
        OriginUnavailableError,
        Connected,
    ]


async def test_channels_of_the_verdict_are_made_and_subscribed(world: World) -> None:
    fleet = await world.fleet()
    connected = await world.connect(channels={"ops": "alert", "firmware": "update"})
    assert [(one.channel, one.kind) for one in connected.subscriptions] == [
        ("firmware", "update"),
        ("ops", "alert"),
        ("~d1", "alert"),
    ]
    ops = await world.store.channel(fleet.key, OPS)
    assert standing_in(connected, "ops").channel_epoch == ops.epoch
    assert (await world.store.channel(fleet.key, ChannelName("firmware"))).kind == "update"


async def test_the_verdict_adds_and_ends_subscriptions(world: World) -> None:
    await world.fleet()
    await world.connect(channels={"a": "alert", "b": "alert"})
    connected = await world.connect(channels={"b": "alert", "c": "alert"})
    assert [one.channel for one in connected.subscriptions] == ["b", "c", "~d1"]
    assert [one.channel for one in (await world.connect()).subscriptions] == ["~d1"]


async def test_a_subscription_that_stays_keeps_its_place(world: World) -> None:
    fleet = await world.fleet()
    before = standing_in(await world.connect(channels={"ops": "alert"}), "ops")
    await world.publish(fleet, count=3)
    after = standing_in(await world.connect(channels={"ops": "alert"}), "ops")
    assert (after.id, after.offset, after.head) == (before.id, 0, 3)


async def test_the_operators_subscription_outlives_the_origins_word(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    key = (await world.connect()).device_key
    made = await world.store.subscribe(key, channel.id, now_ms=0)
    for channels in ({"ops": "alert"}, {}):
        assert standing_in(await world.connect(channels=channels), "ops").id == made.id
    (kept,) = [one for one in await world.store.subscriptions(key) if one.channel == "ops"]
    assert (kept.by_origin, kept.by_operator) == (False, True)


async def test_a_grant_of_another_kind_than_the_channel_is_skipped(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    connected = await world.connect(channels={"ops": "update", "other": "alert"})
    assert [one.channel for one in connected.subscriptions] == ["other", "~d1"]
    assert (await world.store.channel(fleet.key, OPS)).kind == "alert"


async def test_more_channels_than_a_device_may_have_are_skipped(world: World) -> None:
    fleet = await world.fleet()
    key = (await world.connect()).device_key
    for number in range(10):
        channel = await world.channel(fleet, f"a{number}")
        await world.store.subscribe(key, channel.id, now_ms=0)
    granted = {f"c{number:02}": "alert" for number in range(CHANNELS_MAX - 1)}
    connected = await world.connect(channels=granted)
    assert len(connected.subscriptions) == CHANNELS_MAX


async def test_a_higher_position_in_the_hello_is_an_ack(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    key = (await world.connect(channels={"ops": "alert"})).device_key
    await world.publish(fleet, count=9)
    ops = standing_in(await world.connect(channels={"ops": "alert"}), "ops")
    await world.commit(Attempted(ops.id, 1, 3))
    world.clock.advance(1)
    connected = await world.connect(channels={"ops": "alert"}, positions={"ops": (channel.epoch, 7)})
    ops = standing_in(connected, "ops")
    assert (ops.offset, ops.stuck_offset, ops.attempts) == (7, 0, 0)
    (stored,) = [one for one in await world.store.subscriptions(key) if one.channel == "ops"]
    assert stored.offset == 7
    facts = await world.database.read(
        lambda c: c.execute(
            select(delivery_fact.c.fact, delivery_fact.c.first, delivery_fact.c.last, delivery_fact.c.at)
        ).all()
    )
    assert [tuple(fact) for fact in facts] == [(2, 1, 7, world.now)]


@pytest.mark.parametrize("told", ["lower", "another epoch", "above the head", "a channel it may not see"])
async def test_other_positions_in_the_hello_change_nothing(world: World, told: str) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    first = await world.connect(channels={"ops": "alert"})
    await world.publish(fleet, count=9)
    ops = standing_in(first, "ops")
    await world.commit(Received(ops.id, first.device_key, ops.channel_id, channel.epoch, 1, 5))
    positions = {
        "lower": {"ops": (channel.epoch, 3)},
        "another epoch": {"ops": (channel.epoch ^ 1, 7)},
        "above the head": {"ops": (channel.epoch, 10)},
        "a channel it may not see": {"secret": (channel.epoch, 7)},
    }[told]
    connected = await world.connect(channels={"ops": "alert"}, positions=positions)
    ops = standing_in(connected, "ops")
    assert (ops.epoch, ops.offset, ops.head) == (channel.epoch, 5, 9)
    facts = await world.database.read(lambda c: c.execute(select(delivery_fact)).all())
    assert len(facts) == 1
    assert [one.channel for one in connected.subscriptions] == ["ops", "~d1"]


async def test_what_was_sent_before_is_known(world: World) -> None:
    fleet = await world.fleet()
    first = await world.connect(channels={"ops": "alert"})
    await world.publish(fleet, count=9)
    ops = standing_in(first, "ops")
    about = {"device_key": first.device_key, "channel_id": ops.channel_id, "epoch": ops.channel_epoch}

    async def was_sent() -> bool:
        return standing_in(await world.connect(channels={"ops": "alert"}), "ops").was_sent

    assert not await was_sent()
    await world.commit(Sent(**about, first=2, last=4, attempt=1, at=1))
    assert not await was_sent(), "the one after the position was not"
    await world.commit(Received(ops.id, first.device_key, ops.channel_id, ops.epoch, 1, 1))
    assert await was_sent()
    await world.commit(Received(ops.id, first.device_key, ops.channel_id, ops.epoch, 2, 4))
    assert not await was_sent()
    await world.commit(
        IntervalOpened(b"i" * 16, **about, first=5, at=1), IntervalClosed(b"i" * 16, last=4, at=2)
    )
    assert not await was_sent(), "nothing was sent in that interval"
    await world.commit(
        IntervalOpened(b"j" * 16, **about, first=5, at=1), IntervalClosed(b"j" * 16, last=6, at=2)
    )
    assert await was_sent()
    await world.commit(Received(ops.id, first.device_key, ops.channel_id, ops.epoch, 5, 9))
    assert not await was_sent(), "nothing is left to send"


async def test_an_interval_that_was_left_open_may_have_sent_and_is_closed(world: World) -> None:
    fleet = await world.fleet()
    first = await world.connect(channels={"ops": "alert"})
    await world.publish(fleet, count=9)
    ops = standing_in(first, "ops")
    about = {"device_key": first.device_key, "channel_id": ops.channel_id, "epoch": ops.channel_epoch}
    await world.commit(IntervalOpened(b"i" * 16, **about, first=1, at=1))
    connected = await world.connect(channels={"ops": "alert"}, positions={"ops": (ops.channel_epoch, 4)})
    assert standing_in(connected, "ops").was_sent
    rows = await world.database.read(lambda c: c.execute(select(live_interval.c.last)).all())
    assert [row.last for row in rows] == [4], "what is proved is what was acknowledged"
    await world.commit(IntervalClosed(b"i" * 16, last=6, at=3))  # by the session that was displaced
    rows = await world.database.read(lambda c: c.execute(select(live_interval.c.last)).all())
    assert [row.last for row in rows] == [6]


async def test_offsets_that_are_dead_for_the_device_are_known(world: World) -> None:
    fleet = await world.fleet()
    first = await world.connect(channels={"ops": "alert"})
    await world.publish(fleet, count=9)
    ops = standing_in(first, "ops")
    for offset in (1, 3, 5):
        await world.commit(
            DeadLettered(
                first.device_key, ops.channel_id, ops.channel_epoch, offset, b"m" * 16, "expired", None, 0, 1
            )
        )
    connected = await world.connect(channels={"ops": "alert"}, positions={"ops": (ops.channel_epoch, 1)})
    assert standing_in(connected, "ops").dead == {3, 5}
    assert standing_in(await world.connect("d2", channels={"ops": "alert"}), "ops").dead == frozenset()


async def test_a_channel_that_was_made_anew_is_seen_by_its_epoch(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    await world.connect(channels={"ops": "alert"})
    await world.publish(fleet, count=5)
    await world.store.delete_channel(fleet.key, OPS)
    connected = await world.connect(channels={"ops": "alert"}, positions={"ops": (channel.epoch, 5)})
    ops = standing_in(connected, "ops")
    assert (ops.channel_epoch == channel.epoch, ops.offset, ops.head) == (False, 0, 0)
    assert ops.epoch == ops.channel_epoch


async def test_a_newer_root_document_comes_with_the_connection(world: World) -> None:
    fleet = await world.fleet()
    await world.store.put_root_document(fleet.key, 3, b"document")
    old, same = await world.connect("d1", root_version=2), await world.connect("d2", root_version=3)
    assert (old.root_version, old.root_document) == (3, b"document")
    assert (same.root_version, same.root_document) == (3, None)


async def test_a_device_that_connects_twice_in_a_flush_does_so_in_turn(world: World) -> None:
    await world.fleet()
    first, second, other = await world.commit(
        world.connect_of(boot=b"1" * 16, channels={"a": "alert"}),
        world.connect_of(boot=b"2" * 16, channels={"b": "alert"}),
        world.connect_of("d2"),
    )
    assert (first.previous_boot_id, second.previous_boot_id) == (None, b"1" * 16)
    assert [one.channel for one in second.subscriptions] == ["b", "~d1"]
    assert first.device_key == second.device_key != other.device_key


async def test_many_devices_cost_as_many_statements_as_one(world: World) -> None:
    await world.fleet()

    seen = {}
    for count in (2, 200):
        writes = [
            world.connect_of(f"c{count}-{number}", channels={"ops": "alert", "fw": "update"})
            for number in range(count)
        ]

        def command(connection, writes=writes, count=count):  # type: ignore[no-untyped-def]
            executed = []
            event.listen(
                connection, "before_cursor_execute", lambda *args, executed=executed: executed.append(args[2])
            )
            found = connect(connection, writes)
            seen[count] = len(executed)
            return found

        found = await world.database.write(command)
        assert len({one.device_key for one in found}) == count
    assert seen[200] <= seen[2] + 2, "SQLite takes its rows in parts of 256"


async def test_two_nodes_that_enrol_one_device_at_once_enrol_it_once(world: World) -> None:
    await world.fleet()
    write = world.connect_of(channels={"ops": "alert"})
    found = await asyncio.gather(*(world.database.write(lambda c: connect(c, [write])[0]) for _ in range(6)))
    assert len({one.device_key for one in found if isinstance(one, Connected)}) == 1


async def test_what_the_origin_says_anew_of_a_connected_device_is_taken_up(world: World) -> None:
    fleet = await world.fleet()
    connected = await world.connect(
        channels={"ops": "alert", "old": "alert"}, origin={"model": "a"}, positions={}, attributes={"x": 1}
    )
    at_ops = standing_in(connected, "ops")
    anew = world.connect_of(channels={"ops": "alert", "new": "update"}, origin={"model": "b"})
    await world.commit(Judged(anew.verdict, world.now))
    found = await world.store.device(fleet.key, D1)
    assert (found.origin, found.reported) == ({"model": "b"}, {"x": 1})
    channels = await world.store.connected_subscriptions(connected.device_key)
    assert [(one.channel, one.kind) for one in channels] == [
        ("new", "update"),
        ("ops", "alert"),
        ("~d1", "alert"),
    ]
    assert next(one for one in channels if one.channel == "ops").id == at_ops.id


async def test_what_the_origin_says_of_nobody_changes_nothing(world: World) -> None:
    fleet = await world.fleet()
    await world.commit(
        Judged(world.connect_of("stranger").verdict, world.now),
        Judged(world.connect_of(fleet="nowhere").verdict, world.now),
    )
    assert await world.store.devices(fleet.key) == []
