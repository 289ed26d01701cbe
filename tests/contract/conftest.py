from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.clock import FakeClock
from gateway.storage import Database
from gateway.telemetry import Metrics
from tests.contract.world import World


@pytest.fixture
async def world(database: Database, clock: FakeClock, metrics: Metrics) -> AsyncIterator[World]:
    world = World(database, clock, metrics)
    running = asyncio.create_task(world.writer.run(), name="writer")
    yield world
    await world.writer.close()
    await running
