"""Devices found by what they are, and in the order of their ids or of when they were last seen."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.fleet.filters import DeviceFilter, DeviceOrder
from gateway.fleet.model import Fleet
from tests.contract.world import World


@pytest.fixture
async def fleet(world: World) -> Fleet:
    """Five devices: e was never seen, b and c at the same time, and d is another fleet's namesake too."""
    fleet = await world.fleet()
    await world.fleet("other")
    for name, model in (("a", "tc3"), ("b", "tc4"), ("d", "tc3")):
        await world.connect(name, origin={"model": model})
        if name == "b":
            await world.connect("c", origin={"model": "tc4"}, attributes={"firmware": "1.4"})
        world.clock.advance(1)
    await world.connect("d", fleet="other")
    await world.store.create_device(fleet.key, "e", tags=["eu"], now_ms=1)
    await world.store.update_device(fleet.key, "b", {"tags": ["eu", "us"]}, version=None)
    await world.store.update_device(fleet.key, "c", {"is_enabled": False}, version=None)
    return fleet


async def found(world: World, fleet: Fleet, **wanted: Any) -> str:
    return "".join(
        device.device_id for device in await world.store.devices(fleet.key, filter=DeviceFilter(**wanted))
    )


async def test_by_tag_selector_and_whether_they_are_let_in(world: World, fleet: Fleet) -> None:
    assert await found(world, fleet) == "abcde"
    assert await found(world, fleet, tag="eu") == "be"
    assert await found(world, fleet, selector='origin.model == "tc3"') == "ad"
    assert await found(world, fleet, selector='tag == "us" or reported.firmware == "1.4"') == "bc"
    assert await found(world, fleet, is_enabled=False) == "c"
    assert await found(world, fleet, is_enabled=True, tag="eu", selector='device_id == "b"') == "b"


async def test_by_when_they_were_last_seen(world: World, fleet: Fleet) -> None:
    now = world.now
    assert await found(world, fleet, seen_since=now - 2000) == "bcd"
    assert await found(world, fleet, seen_before=now - 2000) == "ae"
    assert await found(world, fleet, seen_since=now - 2000, seen_before=now - 1000) == "bc"


async def test_by_who_is_connected_however_many_that_are(world: World, fleet: Fleet) -> None:
    keys = {device.device_id: device.key for device in await world.store.devices(fleet.key)}
    connected = frozenset({keys["a"], keys["d"], *range(10_000, 50_000)})
    assert await found(world, fleet, is_connected=True, connected=connected) == "ad"
    assert await found(world, fleet, is_connected=False, connected=connected) == "bce"
    assert await found(world, fleet, is_connected=True) == ""
    assert await found(world, fleet, is_connected=False) == "abcde"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (DeviceOrder(), "abcde"),
        (DeviceOrder(is_descending=True), "edcba"),
        (DeviceOrder(by_last_seen=True), "eabcd"),
        (DeviceOrder(by_last_seen=True, is_descending=True), "dcbae"),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 9])
async def test_pages_in_every_order_show_each_once(
    world: World, fleet: Fleet, order: DeviceOrder, expected: str, limit: int
) -> None:
    seen, after = "", None
    while page := await world.store.devices(fleet.key, order=order, after=after, limit=limit):
        seen += "".join(device.device_id for device in page)
        last = page[-1]
        at = -1 if last.last_seen_at is None else last.last_seen_at
        after = (at, last.key) if order.by_last_seen else last.device_id
    assert seen == expected
