from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.clock import FakeClock
from tests.harness.operator_api import Api, opened_api


@pytest.fixture
async def api(sqlite_url: str, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Api]:
    async with opened_api(sqlite_url, tmp_path / "data", clock) as api:
        yield api
