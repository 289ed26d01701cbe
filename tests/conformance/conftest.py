"""One gateway and one origin, each a process, for all the tests of a worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.harness.gateway import GatewayProcess
from tests.integration.origins.process import Origin

DEVICES = (
    "cbor",
    "json",
    "nack-cbor",
    "nack-json",
    "window-cbor",
    "window-json",
    "behind-cbor",
    "behind-json",
    "twice",
)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway_process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """Each device of ``DEVICES`` has a token of its name and a channel of its name."""
    folder: Path = tmp_path_factory.mktemp("conformance")
    with Origin("forward_auth") as origin:
        await origin.control(
            tokens={
                name: {
                    "json": {
                        "device_id": name,
                        "fleet": "acme",
                        "channels": [{"name": name, "kind": "alert"}],
                    }
                }
                for name in DEVICES
            }
        )
        async with GatewayProcess(folder, fleet="acme", forward_auth_url=f"{origin.url}/auth") as gateway:
            yield gateway
