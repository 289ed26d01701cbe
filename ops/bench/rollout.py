"""What an operator waits for, and what the database does, when a rollout to a large fleet starts and changes.

The devices are enrolled and away, which is how most of a fleet is at any moment: they find the rollout when
they connect.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from database import DIALECTS, database, rows
from node import Gateway, Operator
from origin import FLEET
from rig import HERE, BenchError, say
from sqlalchemy import Connection

from device_sdk.wire.messages import Hello
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.fleet.facts import Connect
from gateway.fleet.model import Connected
from gateway.identity import ChannelGrant, Verdict
from gateway.storage import DatabaseLimits, open_database
from gateway.storage.connect import connect
from gateway.telemetry import Metrics

UPDATES = "firmware"
BATCH = 500
IDLE_S = 3.0  # in which every statement is seen that comes by itself
STEPS = ("start", "widen", "pause")


def rollout(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Measure start (at 1 %), widen (to 50 %) and pause, each with its statements, on each database."""
    results: dict[str, Any] = {"rollout_devices": devices, "rollout_rounds": rounds}
    for dialect in DIALECTS:
        with database(dialect) as url:
            found = _measured(folder / f"rollout-{dialect}", url, devices, rounds)
        results |= {f"{key}_{dialect}": value for key, value in found.items()}
    for key in found:
        results[key] = max(results[f"{key}_{dialect}"] for dialect in DIALECTS)
    return results


def _measured(folder: Path, url: str | None, devices: int, rounds: int) -> dict[str, Any]:
    statements = folder.with_suffix(".sql")
    command = (sys.executable, HERE / "counted.py", statements)
    with Gateway.started(folder, database_url=url, command=command) as gateway, Operator(gateway) as operator:
        say(f"rollout: {devices:,} devices are enrolled in {gateway.url.partition(':')[0]} ...")
        release = _publish_release(gateway)
        asyncio.run(_enrol(gateway.url, devices))
        ((enrolled,),) = rows(gateway.url, "SELECT count(*) FROM device")
        if enrolled != devices:
            raise BenchError(f"{enrolled} of {devices} devices are enrolled")
        gateway.wait_until_quiet()
        log = _StatementLog(statements)
        figures = {step: _Figures() for step in STEPS}
        for _ in range(rounds):
            _round(operator, release, devices, log, figures)
    say("  " + ", ".join(f"{step} {one.ms:.0f} ms ({one.statements})" for step, one in figures.items()))
    result: dict[str, Any] = {}
    for step, one in figures.items():
        result[f"rollout_{step}_ms"] = round(one.ms, 1)
        result[f"rollout_{step}_statements"] = one.statements
    return result


class _Figures:
    def __init__(self) -> None:
        self._ms: list[float] = []
        self.statements = 0  # the most of any round

    @property
    def ms(self) -> float:
        return statistics.median(self._ms)

    def add(self, ms: float, statements: int) -> None:
        self._ms.append(ms)
        self.statements = max(self.statements, statements)


class _StatementLog:
    """What a ``counted.py`` writes, without what it would have written anyhow."""

    def __init__(self, path: Path) -> None:
        self._file = path.open()
        self._file.read()
        time.sleep(IDLE_S)
        self._background = set(self._file.read().splitlines())

    def new(self) -> list[str]:
        return [line for line in self._file.read().splitlines() if line not in self._background]


def _round(
    operator: Operator, release: str, devices: int, log: _StatementLog, figures: dict[str, _Figures]
) -> None:
    def timed(step: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        log.new()
        begun = time.monotonic()
        answer = act()
        figures[step].add((time.monotonic() - begun) * 1000, len(log.new()))
        return answer

    body = {"release_id": release, "channel": UPDATES, "percent": 1}
    started = timed("start", lambda: operator.post("rollouts", body))
    path = f"rollouts/{started['id']}"
    widened = timed("widen", lambda: operator.ask("PATCH", path, {"percent": 50}))
    paused = timed("pause", lambda: operator.post(f"{path}/pause"))
    operator.post(f"{path}/abort")
    if [started["target_count"], widened["percent"], paused["state"]] != [devices, 50, "paused"]:
        raise BenchError(f"the rollout is not as it should be: {started} {widened} {paused}")


def _publish_release(gateway: Gateway) -> str:
    cli, image = gateway.cli, gateway.folder / "image"
    image.write_bytes(b"image")
    cli("key", "generate", "--output", "release")
    cli("fleet", "trust", "--key", "release.pem", "--yes")
    cli("channel", "create", UPDATES, "--kind", "update")
    create = ("release", "create", "--image", "image", "--version", "1.0.0", "--vendor", "acme.example")
    cli(*create, "--class", "tc3", "--component", "main", "-o", "app.suit")
    cli("release", "sign", "app.suit", "--key", "release.pem", "-o", "app.suit")
    published = json.loads(cli("release", "publish", "app.suit", "--image", "image", "--json"))
    release: str = published["id"]
    return release


async def _enrol(url: str, devices: int) -> None:
    """Enrol devices as their first hello does, and leave them."""
    grants = (ChannelGrant(ChannelName(UPDATES), "update"),)
    async with open_database(url, limits=DatabaseLimits(), metrics=Metrics()) as target:
        for start in range(0, devices, BATCH):
            now_ms = int(time.time() * 1000)
            hellos = [
                Connect(
                    Verdict(DeviceId(f"device-{number}"), FleetName(FLEET), grants),
                    Hello(protocol=1, window=32, boot_id=bytes(16)),
                    now_ms,
                )
                for number in range(start, min(start + BATCH, devices))
            ]
            await target.write(lambda connection, hellos=hellos: _connect(connection, hellos))


def _connect(connection: Connection, hellos: Sequence[Connect]) -> None:
    for result in connect(connection, hellos):
        if not isinstance(result, Connected):
            raise result
