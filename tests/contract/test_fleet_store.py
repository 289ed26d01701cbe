"""Fleets, channels, devices, subscriptions, tokens on both databases."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from device_sdk.wire.limits import CHANNELS_MAX
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.errors import ConflictError, NotFoundError
from gateway.identity import OperatorToken, Scope
from tests.contract.world import ACME, OPS, World, standing_in

D1 = DeviceId("d1")


async def test_a_fleet_is_made_once(world: World) -> None:
    fleet = await world.fleet()
    assert await world.store.fleet(ACME) == fleet
    with pytest.raises(ConflictError) as refused:
        await world.fleet()
    assert refused.value.code == "fleet_exists"
    with pytest.raises(NotFoundError):
        await world.store.fleet(FleetName("other"))


async def test_fleets_are_listed_by_name_byte_by_byte_and_paged(world: World) -> None:
    for name in ("b", "a", "Z", "a-b", "a.b", "a1"):
        await world.fleet(name)
    page = await world.store.fleets(limit=3)
    rest = await world.store.fleets(after=page[-1].name, limit=9)
    assert [fleet.name for fleet in [*page, *rest]] == ["Z", "a", "a-b", "a.b", "a1", "b"]


async def test_release_keys_are_put_once_and_deleted(world: World) -> None:
    fleet = await world.fleet()
    assert await world.store.put_release_key(fleet.key, b"k1", "PEM 1", now_ms=1)
    assert not await world.store.put_release_key(fleet.key, b"k1", "PEM 1", now_ms=2)
    await world.store.put_release_key(fleet.key, b"k2", "PEM 2", now_ms=2)
    assert await world.store.release_keys(fleet.key) == {b"k1": "PEM 1", b"k2": "PEM 2"}
    await world.store.delete_release_key(fleet.key, b"k1")
    assert await world.store.release_keys(fleet.key) == {b"k2": "PEM 2"}
    with pytest.raises(NotFoundError):
        await world.store.delete_release_key(fleet.key, b"k1")


async def test_a_root_document_is_replaced_by_a_higher_version_only(world: World) -> None:
    fleet = await world.fleet()
    assert await world.store.root_document(fleet.key) == (0, None)
    await world.store.put_root_document(fleet.key, 2, b"two")
    for version in (1, 2):
        with pytest.raises(ConflictError) as refused:
            await world.store.put_root_document(fleet.key, version, b"other")
        assert refused.value.code == "root_version"
    assert await world.store.root_document(fleet.key) == (2, b"two")
    assert (await world.store.fleet(ACME)).root_version == 2
    with pytest.raises(NotFoundError):
        await world.store.put_root_document(fleet.key + 1, 9, b"other")


async def test_channels_are_made_once_and_listed_without_the_devices_own(world: World) -> None:
    fleet = await world.fleet()
    made = await world.channel(fleet, starts_at_earliest=True, retention_age_s=60, retention_count=7)
    assert await world.store.channel(fleet.key, OPS) == made
    assert (made.starts_at_earliest, made.retention_age_s, made.retention_count) == (True, 60, 7)
    with pytest.raises(ConflictError) as refused:
        await world.channel(fleet)
    assert refused.value.code == "channel_exists"
    await world.channel(fleet, "zulu", "update")
    await world.store.create_device(fleet.key, D1, now_ms=world.now)
    listed = await world.store.channels(fleet.key)
    assert [channel.name for channel in listed] == ["ops", "zulu"]
    assert [channel.name for channel in await world.store.channels(fleet.key, after="ops")] == ["zulu"]


async def test_a_channel_changes_at_the_version_that_was_read(world: World) -> None:
    fleet = await world.fleet()
    made = await world.channel(fleet)
    changed = await world.store.update_channel(fleet.key, OPS, {"retention_count": 5}, version=1)
    assert (changed.retention_count, changed.version, changed.epoch) == (5, 2, made.epoch)
    with pytest.raises(ConflictError) as refused:
        await world.store.update_channel(fleet.key, OPS, {"retention_count": 6}, version=1)
    assert refused.value.code == "stale_version"
    assert await world.store.channel(fleet.key, OPS) == changed
    changed = await world.store.update_channel(fleet.key, OPS, {"retention_count": None}, version=None)
    assert (changed.retention_count, changed.version) == (None, 3)
    with pytest.raises(NotFoundError):
        await world.store.update_channel(fleet.key, ChannelName("x"), {"retention_count": 6}, version=1)


async def test_a_deleted_channel_comes_back_with_another_epoch_and_nothing_in_it(world: World) -> None:
    fleet = await world.fleet()
    made = await world.channel(fleet)
    await world.connect(channels={"ops": "alert"})
    await world.publish(fleet, count=3)
    assert (await world.store.delete_channel(fleet.key, OPS)).id == made.id
    with pytest.raises(NotFoundError):
        await world.store.channel(fleet.key, OPS)
    with pytest.raises(NotFoundError):
        await world.store.log_range(made.id, 1, 9)
    again = await world.channel(fleet)
    assert (again.head, again.epoch == made.epoch, again.id == made.id) == (0, False, False)
    assert await world.store.subscribers(again.id) == []


async def test_a_device_is_enrolled_ahead_with_its_own_channel(world: World) -> None:
    fleet = await world.fleet()
    made = await world.store.create_device(fleet.key, D1, tags=["eu", "lab"], now_ms=world.now)
    assert (made.tags, made.is_enabled, made.last_seen_at) == (("eu", "lab"), True, None)
    assert await world.store.device(fleet.key, D1) == made
    (own,) = await world.store.subscriptions(made.key)
    assert (own.channel, own.kind, own.offset) == ("~d1", "alert", 0)
    with pytest.raises(ConflictError) as refused:
        await world.store.create_device(fleet.key, D1, now_ms=world.now)
    assert refused.value.code == "device_exists"


async def test_what_was_sent_to_a_device_before_it_came_waits_for_it(world: World) -> None:
    fleet = await world.fleet()
    await world.store.create_device(fleet.key, D1, now_ms=world.now)
    await world.publish(fleet, "~d1", count=2)
    own = standing_in(await world.connect(), "~d1")
    assert (own.offset, own.head) == (0, 2)


async def test_a_device_changes_at_the_version_that_was_read(world: World) -> None:
    fleet = await world.fleet()
    await world.store.create_device(fleet.key, D1, now_ms=world.now)
    changed = await world.store.update_device(fleet.key, D1, {"tags": ["x"], "is_enabled": False}, version=1)
    assert (changed.tags, changed.is_enabled, changed.version) == (("x",), False, 2)
    with pytest.raises(ConflictError):
        await world.store.update_device(fleet.key, D1, {"is_enabled": True}, version=1)
    assert await world.store.device(fleet.key, D1) == changed


async def test_a_deleted_device_enrols_as_another(world: World) -> None:
    fleet = await world.fleet()
    before = await world.connect(channels={"ops": "alert"})
    await world.publish(fleet, "~d1")
    await world.store.delete_device(fleet.key, D1)
    with pytest.raises(NotFoundError):
        await world.store.device(fleet.key, D1)
    with pytest.raises(NotFoundError):
        await world.store.channel(fleet.key, ChannelName("~d1"))
    after = await world.connect(channels={"ops": "alert"})
    assert after.device_key != before.device_key
    assert after.enrolment_id != before.enrolment_id
    assert after.previous_boot_id is None
    assert standing_in(after, "~d1").head == 0
    with pytest.raises(NotFoundError):
        await world.store.delete_device(fleet.key, DeviceId("d2"))


async def test_keys_are_never_used_twice(world: World) -> None:
    fleet = await world.fleet()
    first = await world.store.create_device(fleet.key, D1, now_ms=0)
    await world.store.delete_device(fleet.key, D1)
    assert (await world.store.create_device(fleet.key, D1, now_ms=0)).key > first.key


async def test_devices_and_subscribers_are_paged(world: World) -> None:
    fleet, other = await world.fleet(), await world.fleet("other")
    channel = await world.channel(fleet)
    for number in range(5):
        await world.connect(f"d{number}", channels={"ops": "alert"})
    await world.store.create_device(other.key, DeviceId("d9"), now_ms=0)
    page = await world.store.devices(fleet.key, after="d1", limit=2)
    assert [device.device_id for device in page] == ["d2", "d3"]
    found, after = [], 0
    while page_of := await world.store.subscribers(channel.id, after=after, limit=2):
        found += [device_id for device_id, _ in page_of]
        after = page_of[-1][1].device_key
    assert found == ["d0", "d1", "d2", "d3", "d4"]


async def test_a_subscription_starts_at_the_head_or_at_the_earliest_that_is_left(world: World) -> None:
    fleet = await world.fleet()
    late = await world.channel(fleet, "late")
    early = await world.channel(fleet, "early", starts_at_earliest=True)
    for name in ("late", "early"):
        await world.publish(fleet, name, count=4)
    device = await world.store.create_device(fleet.key, D1, now_ms=0)
    assert (await world.store.subscribe(device.key, late.id, now_ms=0)).offset == 4
    assert (await world.store.subscribe(device.key, early.id, now_ms=0)).offset == 0
    connected = await world.connect("d2", channels={"late": "alert", "early": "alert"})
    assert standing_in(connected, "late").offset == 4
    assert standing_in(connected, "early").offset == 0


async def test_a_subscription_ends_when_neither_origin_nor_operator_wants_it(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    key = (await world.connect(channels={"ops": "alert"})).device_key
    both = await world.store.subscribe(key, channel.id, now_ms=world.now)
    assert (both.by_origin, both.by_operator) == (True, True)
    assert not await world.store.unsubscribe(key, channel.id)
    await world.store.subscribe(key, channel.id, now_ms=world.now)
    connected = await world.connect()  # the origin does not name it any more
    assert standing_in(connected, "ops").id == both.id
    assert await world.store.unsubscribe(key, channel.id)
    assert [one.channel for one in await world.store.subscriptions(key)] == ["~d1"]
    with pytest.raises(NotFoundError):
        await world.store.unsubscribe(key, channel.id)


async def test_a_new_subscription_is_not_the_old_one(world: World) -> None:
    fleet = await world.fleet()
    channel = await world.channel(fleet)
    device = await world.store.create_device(fleet.key, D1, now_ms=0)
    before = await world.store.subscribe(device.key, channel.id, now_ms=0)
    await world.publish(fleet, count=3)
    await world.store.unsubscribe(device.key, channel.id)
    after = await world.store.subscribe(device.key, channel.id, now_ms=0)
    assert (after.offset, after.id != before.id) == (3, True)


async def test_a_device_keeps_its_own_channel(world: World) -> None:
    await world.fleet()
    connected = await world.connect()
    own = standing_in(connected, "~d1")
    assert not await world.store.unsubscribe(connected.device_key, own.channel_id)
    assert standing_in(await world.connect(), "~d1").id == own.id


async def test_a_device_has_a_bounded_number_of_channels(world: World) -> None:
    fleet = await world.fleet()
    device = await world.store.create_device(fleet.key, D1, now_ms=0)
    channels = [await world.channel(fleet, f"c{number}") for number in range(CHANNELS_MAX)]
    made = await asyncio.gather(
        *(world.store.subscribe(device.key, channel.id, now_ms=0) for channel in channels),
        return_exceptions=True,
    )
    refused = [one for one in made if isinstance(one, BaseException)]
    assert [getattr(one, "code", one) for one in refused] == ["too_many_channels"]
    assert len(await world.store.subscriptions(device.key)) == CHANNELS_MAX


async def test_connected_subscriptions_are_what_a_hello_would_find(world: World) -> None:
    fleet = await world.fleet()
    await world.channel(fleet)
    connected = await world.connect(channels={"ops": "alert", "firmware": "update"})
    await world.publish(fleet, count=2)
    found = await world.store.connected_subscriptions(connected.device_key)
    assert [(one.channel, one.kind, one.offset, one.head) for one in found] == [
        ("firmware", "update", 0, 0),
        ("ops", "alert", 0, 2),
        ("~d1", "alert", 0, 0),
    ]
    with pytest.raises(NotFoundError):
        await world.store.connected_subscriptions(connected.device_key + 1)


async def test_an_operator_token_is_found_by_its_hash(world: World) -> None:
    await world.fleet()
    token = OperatorToken(
        id=b"i" * 16,
        name="ci",
        sha256=hashlib.sha256(b"secret").digest(),
        fleet=ACME,
        scopes=frozenset({Scope.PUBLISH, Scope.ROLLOUTS}),
        created_at=1,
        expires_at=2,
    )
    await world.store.create_operator_token(token)
    assert await world.store.operator_token(token.sha256) == token
    assert await world.store.operator_token(b"x" * 32) is None


async def test_a_token_for_every_fleet_names_none_and_one_for_an_unknown_fleet_is_not_made(
    world: World,
) -> None:
    token = OperatorToken(b"i" * 16, "root", b"h" * 32, None, frozenset({Scope.ADMIN}), 1)
    await world.store.create_operator_token(token)
    assert await world.store.operator_token(token.sha256) == token
    stray = OperatorToken(b"j" * 16, "x", b"g" * 32, FleetName("none"), frozenset({Scope.READ}), 1)
    with pytest.raises(NotFoundError):
        await world.store.create_operator_token(stray)
    assert await world.store.operator_token(stray.sha256) is None
