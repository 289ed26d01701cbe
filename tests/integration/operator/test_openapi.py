"""The API asked by its own description: schemathesis over every operation, with every check it has."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.clock import SystemClock
from gateway.edge.operator.examples import EXAMPLES, IDS
from gateway.edge.operator.table import TABLE
from gateway.fleet.model import Draft
from gateway.identity import OperatorToken, Scope, new_token, token_sha256
from gateway.ids import parse_id
from gateway.release.service import ReleaseRow
from gateway.rollout import NewRollout, UpdateLimits
from gateway.storage.fleet_store import SQLFleetStore
from gateway.storage.releases import SQLReleaseStore
from gateway.storage.rollouts import SQLRolloutStore
from gateway.storage.tables import dead_letter, deployment
from tests.harness.operator_api import Api, opened_api

HERE = Path(__file__).parent
PROGRAM = Path(sys.executable).with_name("schemathesis")
SEED = 20
SECONDS = 40  # after the fixed cases, fuzzing and sequences go on until these are over
TIMEOUT_S = 110


async def test_schemathesis_finds_nothing(sqlite_url: str, tmp_path: Path) -> None:
    assert PROGRAM.exists(), "pip install --require-hashes -r requirements/schemathesis.lock (or make test)"
    async with opened_api(sqlite_url, tmp_path / "data", SystemClock()) as api:
        await _make_world(api)
        status, said = await _run(api, tmp_path)
    assert status == 0, said
    tested = re.search(r"Tested: (\d+)", said)
    assert tested is not None, said
    assert int(tested[1]) == len(TABLE)


async def _run(api: Api, folder: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM),
        *("--config-file", str(HERE / "schemathesis.toml"), "run"),
        f"{api.gateway.url}/api/v1/openapi.json",
        *("--checks", "all", "--seed", str(SEED), "--max-time", str(SECONDS), "--max-examples", "20"),
        *("--header", f"Authorization: Bearer {api.tokens['all-admin']}", "--no-color", "--warnings", "off"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,  # where it keeps what it found
        env=os.environ | {"PYTHONPATH": str(HERE.parents[2]), "COLUMNS": "200"},
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace")


async def _make_world(api: Api) -> None:
    """Make what the document's examples speak of, under the same ids."""
    now_ms = SystemClock().now_ms()
    store, rollouts = SQLFleetStore(api.database), SQLRolloutStore(api.database)
    fleet = await store.fleet(FleetName("acme"))
    alarms = await store.create_channel(fleet.key, ChannelName("alarms"), "alert", now_ms=now_ms)
    firmware = await store.create_channel(fleet.key, ChannelName("firmware"), "update", now_ms=now_ms)
    device = await store.create_device(fleet.key, DeviceId("pump-7"), tags=["eu"], now_ms=now_ms)
    for channel in (alarms, firmware):
        await store.subscribe(device.key, channel.id, now_ms=now_ms)
    alert = await _publish(api, now_ms)
    example: Any = EXAMPLES["Release"]
    await SQLReleaseStore(api.database).add_release(
        ReleaseRow(
            id=parse_id(IDS["releases"]),
            fleet_key=fleet.key,
            name=example["name"],
            version=example["version"],
            component=ChannelName(example["component"]),
            sequence=example["sequence"],
            vendor_id=parse_id(example["vendor_id"]),
            class_id=parse_id(example["class_id"]),
            manifest_digest=bytes.fromhex(example["manifest_digest"]),
            image_digest=bytes.fromhex(example["image_digest"]),
            image_size=example["image_size"],
            uri="https://images.example/main",
            kid=bytes.fromhex(example["kid"]),
            envelope=b"envelope",
            created_at=now_ms,
        )
    )
    await rollouts.create_rollout(
        fleet.key,
        NewRollout(
            id=parse_id(IDS["rollouts"]),
            release_id=parse_id(IDS["releases"]),
            channel=ChannelName("firmware"),
            percent=10,
            selector=None,
            name=None,
            priority=0,
            shift=0,
        ),
        now_ms=now_ms,
    )
    await rollouts.offer([device.key], now_ms=now_ms, limits=UpdateLimits())
    await store.create_operator_token(
        OperatorToken(
            id=parse_id(IDS["tokens"]),
            name="alice",
            sha256=token_sha256(new_token()),
            fleet=fleet.name,
            scopes=frozenset({Scope.PUBLISH}),
            created_at=now_ms,
        )
    )
    dead = {
        "id": int(IDS["dead-letters"]),
        "device_key": device.key,
        "channel_id": alarms.id,
        "epoch": alarms.epoch,
        "offset": 1,
        "message_id": alert,
        "reason": "nacked",
        "at": now_ms,
    }
    await api.database.write(lambda conn: conn.execute(dead_letter.insert().values(dead)))
    await api.database.write(
        lambda conn: conn.execute(deployment.update().values(id=parse_id(IDS["deployments"])))
    )


async def _publish(api: Api, now_ms: int) -> bytes:
    """Put the example's alert into the log, signed as alerts are."""
    store = SQLFleetStore(api.database)
    fleet = await store.fleet(FleetName("acme"))
    signer = api.gateway.alerts._signer
    draft = Draft(parse_id(IDS["alerts"]), "application/json", b'{"valve":3}', now_ms)
    await store.append(
        fleet.key, ChannelName("alarms"), [draft], now_ms=now_ms, kid=signer.kid, seal=signer.seal
    )
    return draft.id
