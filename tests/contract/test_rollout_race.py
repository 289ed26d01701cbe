"""An abort against offers: whatever their order, nothing is notified once the abort was answered.

PROTOCOL §6.4. Several workers offer batch after batch; the abort begins when some of them, a seeded number,
have returned and others are under way.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from sqlalchemy import func, select

from gateway.rollout import Action, Rollout
from gateway.storage.engine import Database
from gateway.storage.tables import deployment
from tests.harness.rollouts import World

ROUNDS = 20
DEVICES = 40
BATCH = 4
WORKERS = 3


@dataclass
class Race:
    """One rollout, its offers and its abort."""

    world: World
    rollout: Rollout
    batches: list[list[int]]
    begins_after: int  # batches
    finished: int = 0
    begin: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> int:
        """Return how many deployments there were when the abort had been answered."""
        self._look()
        async with asyncio.TaskGroup() as race:
            for _ in range(WORKERS):
                race.create_task(self._work())
            aborted = race.create_task(self._abort())
        return aborted.result()

    async def _work(self) -> None:
        while self.batches:
            await self.world.offer(*self.batches.pop())
            self.finished += 1
            self._look()

    def _look(self) -> None:
        if self.finished >= self.begins_after:
            self.begin.set()

    async def _abort(self) -> int:
        await self.begin.wait()
        await self.world.act(self.rollout, Action.ABORT)
        return await self.count()

    async def count(self) -> int:
        query = select(func.count()).select_from(deployment).where(deployment.c.rollout_id == self.rollout.id)
        return await self.world.database.read(lambda conn: conn.execute(query).scalar_one())


@pytest.mark.parametrize("seed", range(3))
async def test_no_deployment_is_created_after_an_abort_was_answered(database: Database, seed: int) -> None:
    order = random.Random(seed)
    world = await World.create(database)
    keys = await world.devices(DEVICES)
    cut = 0
    for number in range(ROUNDS):
        # A higher sequence each round: what the round before left behind stands in nobody's way.
        started = await world.start(await world.release(number + 1), percent=100)
        shuffled = order.sample(keys, DEVICES)
        batches = [shuffled[at : at + BATCH] for at in range(0, DEVICES, BATCH)]
        race = Race(world, started, batches, begins_after=order.randrange(len(batches)))
        at_answer = await race.run()
        await world.offer(*keys)
        assert await race.count() == at_answer, f"seed {seed}, round {number}"
        cut += 0 < at_answer < DEVICES
        # Nothing of it is sent or left waiting.
        stopped = await world.store.rollout(world.fleet.key, started.id)
        assert set(stopped.counts) <= {"cancelled"}
        assert await world.store.concerned(keys) == []
    assert cut >= ROUNDS // 2, "the abort hardly ever fell between two offers: that was no race"


async def test_nodes_that_offer_to_one_device_at_once_create_one_deployment(database: Database) -> None:
    world = await World.create(database)
    keys = await world.devices(20)
    await world.start(await world.release())
    order = random.Random(7)
    await asyncio.gather(*(world.offer(*order.sample(keys, len(keys))) for _ in range(6)))
    assert await world.deployment_count() == len(keys)
