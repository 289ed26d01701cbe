"""Devices are processes that die by SIGKILL at any write of an update, and go on from their disk."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from device_sdk import SlotInstaller
from tests.harness.device_process import DONE, REBOOT, STEPS, Kill, Life, alerts_handled, live
from tests.harness.gateway import GatewayProcess
from tests.harness.operator import COMPONENT, Operator

ORIGIN = Path(__file__).resolve().parents[2] / "ops" / "demo" / "origin.py"
FLEET = "acme"
DEVICES = 8
ALERTS = 5
IMAGE = os.urandom(700_000)
SEQUENCE = 1_800_000_000
LIFE_TIMEOUT_S = 60

pytestmark = pytest.mark.timeout(180)

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.harness.device_process"])


@dataclass
class World:
    gateway: GatewayProcess
    operator: Operator
    folder: Path

    def life(self, number: int, kill_at: Kill | None) -> Life:
        folder = self.folder / f"device-{number}"
        folder.mkdir(exist_ok=True)
        return Life(
            url=self.gateway.url,
            fleet=FLEET,
            device_id=f"device-{number}",
            token=f"token-{number}",
            release_key=self.folder / "release.pub.pem",
            folder=folder,
            transport="longpoll" if number % 2 else "websocket",
            sequence=SEQUENCE,
            alerts=ALERTS,
            kill_at=kill_at,
        )

    async def live_to_the_end(self, number: int) -> int:
        """Start the device again and again until it is done; return how often it was killed."""
        random = Random(number)
        places = [
            Kill(step, random.randint(1, 3), random.choice(["before", "in", "after"]))
            for step in STEPS
            for _ in range(random.randint(1, 2))
        ]
        kills = 0
        while True:
            place = places.pop(0) if places else None
            process = _processes.Process(target=live, args=(self.life(number, place),))
            process.start()
            try:
                async with asyncio.timeout(LIFE_TIMEOUT_S):
                    while process.is_alive():
                        await asyncio.sleep(0.01)
            finally:
                process.kill()
                process.join()
            status = process.exitcode
            assert status in (REBOOT, DONE, -signal.SIGKILL), status
            if status == DONE:
                return kills
            kills += status == -signal.SIGKILL


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("".join(f"device-{number} token-{number}\n" for number in range(DEVICES)))
    command = [sys.executable, ORIGIN, "--tokens", tokens, "--fleet", FLEET]
    channels = ["--channel", "alert:ops", "--channel", "update:firmware"]
    origin = subprocess.Popen([*command, *channels], stdout=subprocess.PIPE, text=True)
    try:
        assert origin.stdout is not None
        url = origin.stdout.readline().strip()
        async with GatewayProcess(tmp_path / "gateway", fleet=FLEET, forward_auth_url=url) as gateway:
            operator = Operator(gateway)
            (tmp_path / "release.pub.pem").write_bytes(operator.key.public.to_pem())
            await operator.trust()
            await operator.channel("ops", "alert", starts_at_earliest=True)
            await operator.channel("firmware", "update")
            yield World(gateway, operator, tmp_path)
    finally:
        origin.terminate()
        origin.communicate()


async def test_device_killed_in_every_step_commits_the_image_and_handles_each_alert_once(
    world: World,
) -> None:
    for number in range(ALERTS):
        await world.gateway.call("POST", "/channels/ops/alerts", json={"text": f"alert {number}"})
    release = await world.operator.release(IMAGE, version="1.4.0", sequence=SEQUENCE)
    rollout = await world.operator.rollout(release, "firmware")

    kills = await asyncio.gather(*(world.live_to_the_end(number) for number in range(DEVICES)))

    steps: Counter[str] = Counter()
    for number in range(DEVICES):
        folder = world.folder / f"device-{number}"
        installer = SlotInstaller(folder / "slots", components=(COMPONENT,), is_boot=False)
        slot = folder / "slots" / installer.running_file(COMPONENT)
        assert slot.read_bytes() == IMAGE, f"device-{number}, seed {number}"
        assert alerts_handled(folder) == list(range(1, ALERTS + 1)), f"device-{number}, seed {number}"
        if (folder / "killed").exists():
            steps.update((folder / "killed").read_text().split())
    deployments = (await world.gateway.call("GET", f"/rollouts/{rollout['id']}/deployments"))["items"]
    assert Counter(one["state"] for one in deployments) == {"committed": DEVICES}
    assert sum(kills) == steps.total()
    assert set(steps) == set(STEPS), steps
