"""A gateway, an origin that knows a scenario's devices, and two releases: what a simulation runs against."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_sdk import SlotInstaller
from tests.harness.gateway import GatewayProcess
from tests.harness.operator import Operator

ROOT = Path(__file__).resolve().parents[2]
SIM = Path(sys.executable).with_name("fleetcast-sim")
FLEET = "acme"
SEQUENCE = 1_800_000_000


@dataclass
class Stage:
    """What there is, and the devices' side of it as files.

    Attributes:
        releases: Ids, the older one first.
        images: What they install.
    """

    gateway: GatewayProcess
    folder: Path
    operator: Operator
    releases: list[str]
    images: list[bytes]

    async def simulate(self, scenario: object, *options: object) -> tuple[int, dict[str, Any]]:
        """Run ``scenario``; return the exit status and the result."""
        words = [
            *(SIM, "run", scenario, "--url", self.gateway.url, "--fleet", FLEET),
            *("--tokens", self.folder / "tokens.txt", "--release-key", self.folder / "release.pub.pem"),
            *("--keep-flash", self.folder / "flash", "--trace", self.folder / "trace", "--json", *options),
        ]
        process = await asyncio.create_subprocess_exec(*map(str, words), stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, json.loads(out.splitlines()[-1])

    @property
    def as_operator(self) -> list[object]:
        """The options with which the run does what its scenario does as the operator."""
        token = self.gateway.folder / "operator.token"
        return ["--operator-token", token, *(word for id in self.releases for word in ("--release", id))]

    def image(self, device_id: str) -> bytes:
        """Return what the device's running slot holds at the end; nothing: the factory's image runs."""
        folder = self.folder / "flash" / device_id
        installer = SlotInstaller(folder, components=("main",), is_boot=False)
        path = folder / installer.running_file("main")
        return path.read_bytes() if path.exists() else b""

    async def deployments(self) -> list[list[dict[str, Any]]]:
        """Return each rollout's deployments as the gateway has them, the oldest rollout first."""
        rollouts = (await self.gateway.call("GET", "/rollouts"))["items"]
        rollouts.sort(key=lambda rollout: rollout["id"])
        return [
            (await self.gateway.call("GET", f"/rollouts/{rollout['id']}/deployments?limit=1000"))["items"]
            for rollout in rollouts
        ]


@asynccontextmanager
async def open_stage(folder: Path, scenario: object, *options: object) -> AsyncIterator[Stage]:
    """Yield a stage for the devices of ``scenario``; everything ends with it."""
    tokens = folder / "tokens.txt"
    subprocess.run([SIM, "tokens", scenario, "--output", tokens, *map(str, options)], check=True)
    origin = subprocess.Popen(
        [
            *(sys.executable, ROOT / "ops/demo/origin.py", "--tokens", tokens, "--fleet", FLEET),
            *("--channel", "alert:ops", "--channel", "update:firmware"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert origin.stdout is not None
        url = origin.stdout.readline().strip()
        async with GatewayProcess(folder / "gateway", fleet=FLEET, forward_auth_url=url) as gateway:
            operator = Operator(gateway)
            (folder / "release.pub.pem").write_bytes(operator.key.public.to_pem())
            await operator.trust()
            await operator.channel("ops", "alert", starts_at_earliest=True)
            await operator.channel("firmware", "update")
            images = [os.urandom(150_000), os.urandom(150_000)]
            releases = [
                (await operator.release(image, version=f"1.{number}.0", sequence=SEQUENCE + number))["id"]
                for number, image in enumerate(images, 4)
            ]
            yield Stage(gateway, folder, operator, releases, images)
    finally:
        origin.terminate()
        origin.communicate()
