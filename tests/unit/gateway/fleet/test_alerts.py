"""Publishing: committed first, then delivered; and delivered whatever became of the one who asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from device_sdk.wire.limits import ALERT_SIZE_MAX
from device_sdk.wire.messages import Alert, Message
from device_sdk.wire.names import ChannelName
from gateway.errors import LimitExceededError, StorageUnavailableError
from gateway.fleet.acts import Replay
from gateway.fleet.model import Appended
from tests.unit.gateway.session.node import FLEET, MemoryLog, World


class FlakyLog(MemoryLog):
    """A log whose appends are committed, but not always seen to be."""

    gate: asyncio.Event | None = None
    is_lost = False
    replay: Replay | None = None

    async def append(self, *args: Any, **options: Any) -> Any:
        if self.replay is not None:
            return self.replay
        appended = await super().append(*args, **options)
        if self.gate is not None:
            await self.gate.wait()
        if self.is_lost:
            raise StorageUnavailableError("the connection went before the answer came")
        return appended


@pytest.fixture
def world() -> World:
    made = World(store=FlakyLog())
    made.store.add("ops")
    return made


def offsets(messages: list[Message]) -> list[int]:
    return [message.offset for message in messages if isinstance(message, Alert)]


async def publish(world: World, **options: Any) -> Appended | Replay:
    return await world.alerts.publish(
        FLEET, ChannelName("ops"), **{"data": b"x", "content_type": "text/plain", **options}
    )


async def test_client_that_goes_away_does_not_part_the_commit_from_the_delivery(world: World) -> None:
    world.store.gate = asyncio.Event()
    session = world.session("ops")
    publishing = asyncio.create_task(publish(world))
    await world.settle()
    publishing.cancel()
    await world.settle()
    assert offsets(session.taken()) == []
    world.store.gate.set()
    await world.settle()
    assert offsets(session.taken()) == [1]


async def test_alert_whose_commit_nobody_saw_is_delivered_all_the_same(world: World) -> None:
    session = world.session("ops")
    world.store.is_lost = True
    with pytest.raises(StorageUnavailableError):
        await publish(world)
    await world.settle()
    assert offsets(session.taken()) == [1]


async def test_repeated_request_delivers_nothing_again(world: World) -> None:
    session = world.session("ops")
    world.store.replay = Replay(201, b"{}")
    assert await publish(world) is world.store.replay
    assert offsets(session.taken()) == []


@pytest.mark.parametrize(
    "options",
    [{"data": b"x" * (ALERT_SIZE_MAX + 1)}, {"ttl_s": 366 * 24 * 3600}],
    ids=["data", "ttl"],
)
async def test_over_a_bound_is_refused_and_nothing_is_appended(world: World, options: dict[str, Any]) -> None:
    with pytest.raises(LimitExceededError):
        await publish(world, **options)
    assert world.store.channels["ops"].head == 0
