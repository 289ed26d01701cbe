"""A gateway that is killed loses nothing that it answered, and its devices get everything.

A real process on a real database is ended by SIGKILL, round after round, while alerts are published,
acknowledged and refused, and reports on deployments come in: at a random moment of its work, sometimes again
while it starts. It comes back on the same data and port. CRASH_SEED chooses another course,
CRASH_ROUNDS a longer one; each round prints what it did.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from sqlalchemy import select

from device_sdk.wire.keys import PrivateKey, PublicKey
from gateway.release import ReleaseContent, author_envelope, sign_envelope
from gateway.storage.engine import DatabaseLimits, open_database
from gateway.storage.tables import report
from gateway.telemetry import Metrics
from tests.crash.members import OUTCOMES, Answers, Fleet, Member, by_channel
from tests.harness.gateway import ApiError, GatewayProcess
from tests.harness.nursery import Nursery
from tests.integration.origins.process import Origin

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "20"))
SEED = os.environ.get("CRASH_SEED", "1")
FLEET = "acme"
CHANNELS = ("ops", "weather", "door")
UPDATES = "firmware"
RELEASE_KEY = PrivateKey.from_seed(bytes([10] * 32))
ROUNDS_A_ROLLOUT = 5
ALERTS_A_ROUND = 30
REPORTS_A_ROUND = 50
PUBLISHERS = 4
WAIT_S = 30
KINDS = [(False, "cbor"), (False, "json"), (True, "cbor"), (True, "json")]
MEMBERS = 20


@pytest.mark.timeout(300)  # twenty starts on a machine that does ten other things; 40 s on an idle one
@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_nothing_that_a_killed_gateway_answered_is_lost(
    dialect: str, tmp_path: Path, nursery: Nursery, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("empty_postgresql_url") if dialect == "postgresql" else None
    async with _campaign(dialect, tmp_path, url, nursery) as campaign:
        await campaign.until(lambda: all(member.is_enrolled for member in campaign.members))
        for number in range(ROUNDS):
            await campaign.round(number)
        await campaign.settle()
        await campaign.check_log()
        await campaign.check_acknowledged()
        await campaign.check_facts()
        await campaign.check_deployments()
    url = url or f"sqlite:///{tmp_path}/gateway/data/fleetcast.db"
    await campaign.check_reports(url)
    print(campaign.summary())


@asynccontextmanager
async def _campaign(dialect: str, folder: Path, url: str | None, nursery: Nursery) -> AsyncIterator[Campaign]:
    with Origin("forward_auth") as origin:
        settings: dict[str, dict[str, Any]] = {
            "device": {"redeliver_min_s": 1.0, "wheel_s": 0.1},
            "updates": {"redeliver_min_s": 1.0},
        }
        async with GatewayProcess(
            folder / "gateway",
            fleet=FLEET,
            forward_auth_url=f"{origin.url}/auth",
            database_url=url,
            settings=settings,
            nursery=nursery,
        ) as gateway:
            campaign = Campaign(gateway, dialect)
            await origin.control(
                tokens={member.name: {"json": _verdict(member)} for member in campaign.members}
            )
            await campaign.prepare()
            tasks = [asyncio.create_task(member.run()) for member in campaign.members]
            tasks += [asyncio.create_task(campaign.publish(number)) for number in range(PUBLISHERS)]
            try:
                yield campaign
            except BaseException:
                print(gateway.log_tail(100))
                raise
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert [error for error in ended if isinstance(error, Exception)] == []
            assert await gateway.stop() == 0


def _verdict(member: Member) -> dict[str, Any]:
    channels = [{"name": name, "kind": "alert"} for name in member.channels]
    return {
        "device_id": member.name,
        "fleet": FLEET,
        "channels": [*channels, {"name": UPDATES, "kind": "update"}],
    }


class Campaign:
    """Rounds of work and death, and the checks after them."""

    def __init__(self, gateway: GatewayProcess, dialect: str) -> None:
        self.gateway = gateway
        self.answers = Answers()
        self.fleet = Fleet(gateway.url, FLEET, self.answers)
        self.dialect = dialect
        self.rollouts: list[dict[str, Any]] = []
        self.start_s = 1.0
        self._wanted: asyncio.Queue[str] = asyncio.Queue()
        self._keys: list[str] = []
        self._replays = 0
        self.members = [
            Member(
                self.fleet,
                f"d{number:02}",
                is_polled=KINDS[number % 4][0],
                encoding=KINDS[number % 4][1],
                channels=[name for index, name in enumerate(CHANNELS) if index != number % 3],
                seed=f"{SEED}/{dialect}/{number}",
            )
            for number in range(MEMBERS)
        ]

    async def prepare(self) -> None:
        for name in CHANNELS:
            await self.gateway.call("POST", "/channels", json={"name": name, "kind": "alert"})
        await self.gateway.call("POST", "/channels", json={"name": UPDATES, "kind": "update"})
        pem = RELEASE_KEY.public.to_pem().decode()
        await self.gateway.call("PUT", f"/release-keys/{RELEASE_KEY.kid.hex()}", json={"public_pem": pem})
        keys = (await self.gateway.call("GET", "/keys"))["online"]
        self.fleet.directive_keys = {
            bytes.fromhex(key["kid"]): PublicKey.from_pem(key["public_pem"].encode())
            for key in keys
            if key["role"] == "directive"
        }
        self.fleet.gate.set()

    # --- a round ------------------------------------------------------------------------------------------

    async def round(self, number: int) -> None:
        """Let it work, kill it at a random moment, start it, and look whether it knows what it answered."""
        chance = random.Random(f"{SEED}/{self.dialect}/round {number}")
        known = len(self.answers.alerts)
        deaths_s = chance.uniform(0, 0.02)
        alerts = chance.randint(3, ALERTS_A_ROUND - 3)
        keys = [f"{number}-{index}" for index in range(ALERTS_A_ROUND)]
        self._keys += keys
        for key in keys:
            self._wanted.put_nowait(key)
        self._permit(REPORTS_A_ROUND)
        starting = None
        if number % ROUNDS_A_ROLLOUT == 0:
            starting = asyncio.create_task(self._start_rollout(number // ROUNDS_A_ROLLOUT + 1))
        worked = time.monotonic()
        await self.until(lambda: len(self.answers.alerts) >= known + alerts)
        worked = time.monotonic() - worked
        await asyncio.sleep(deaths_s)  # the moment itself, not a wait for something
        self.fleet.gate.clear()
        await self.gateway.kill()
        stillborn = chance.random() < 0.25
        if stillborn:
            self.gateway.launch()
            await asyncio.sleep(chance.uniform(0.5, 1.2) * self.start_s)
            await self.gateway.kill()
        begun = time.monotonic()
        await self.gateway.start()
        self.start_s = time.monotonic() - begun
        # Before they say hello: a position in a hello is an acknowledgement, and would hide what was lost.
        await self.check_acknowledged()
        self.fleet.gate.set()
        if starting is not None:
            self.rollouts.append(await starting)
        print(
            f"round {number} of seed {SEED} on {self.dialect}: killed after {alerts} alerts"
            f" and {deaths_s * 1000:.1f} ms{', and while it started' if stillborn else ''};"
            f" {len(self.answers.alerts)} alerts, {len(self.answers.recorded)} reports,"
            f" worked for {worked:.2f} s, started in {self.start_s:.2f} s"
        )
        assert not self.answers.problems, "\n".join(self.answers.problems)

    def _permit(self, count: int) -> None:
        self.fleet.permits += count
        for member in self.members:
            member.wake()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                assert not self.answers.problems, "\n".join(self.answers.problems)
                await asyncio.sleep(0.002)

    async def settle(self) -> None:
        """Return once everything that was wanted has come to its end."""
        await self._wanted.join()
        self._permit(1_000_000)
        try:
            await self.until(self._is_settled)
        except TimeoutError:
            heads = self._heads()
            late = [
                (member.name, {name: len(log) for name, log in member.logs.items()}, member.jobs)
                for member in self.members
                if not self._is_done(member, heads)
            ]
            raise AssertionError(f"heads {heads}, not settled: {late}") from None

    def _heads(self) -> dict[str, int]:
        return {name: len(keys) for name, keys in by_channel(self.answers.alerts).items()}

    def _is_settled(self) -> bool:
        heads = self._heads()
        return all(self._is_done(member, heads) for member in self.members)

    def _is_done(self, member: Member, heads: dict[str, int]) -> bool:
        is_whole = all(len(log) >= heads.get(name, 0) for name, log in member.logs.items())
        return is_whole and member.is_settled and len(member.jobs) > 0

    # --- who publishes and rolls out ------------------------------------------------------------------------

    async def publish(self, number: int) -> None:
        """Publish what is wanted, each until it is answered; now and then ask again for an answer."""
        chance = random.Random(f"{SEED}/{self.dialect}/publisher {number}")
        while True:
            key = await self._wanted.get()
            channel = chance.choice(CHANNELS)
            answer = await self._published(channel, key)
            assert answer["channel"] == channel
            self.answers.alerts[key] = answer
            self._wanted.task_done()
            if chance.random() < 0.1:
                again = chance.choice(list(self.answers.alerts))
                before = self.answers.alerts[again]
                self._replays += 1
                if await self._published(before["channel"], again) != before:
                    self.answers.wrong("publisher", f"{again} was answered anew")

    async def _published(self, channel: str, key: str) -> dict[str, Any]:
        headers = {"Idempotency-Key": key}
        return await self._call("POST", f"/channels/{channel}/alerts", json={"text": key}, headers=headers)

    async def _start_rollout(self, sequence: int) -> dict[str, Any]:
        digest = hashlib.sha256(bytes([sequence])).hexdigest()
        content = ReleaseContent(
            vendor_identifier=bytes(16),
            class_identifier=bytes(16),
            component="main",
            sequence_number=sequence,
            image_digest=bytes.fromhex(digest),
            image_size=1,
            uri="https://images.example.com/main",
            version=str(sequence),
        )
        envelope = sign_envelope(author_envelope(content), [RELEASE_KEY])
        self.fleet.manifests.add(hashlib.sha256(envelope).digest())
        headers = {
            "Content-Type": "application/suit-envelope+cose",
            "Idempotency-Key": f"release-{sequence}",
        }
        release = await self._call("POST", "/releases", data=envelope, headers=headers)
        rollout = {"release_id": release["id"], "channel": UPDATES, "percent": 100}
        headers = {"Idempotency-Key": f"rollout-{sequence}"}
        return await self._call("POST", "/rollouts", json=rollout, headers=headers)

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Call until it is answered; the gateway may be away."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    answer: dict[str, Any] = await self.gateway.call(method, path, **options)
                    return answer
                except aiohttp.ClientError:
                    pass
                except ApiError as error:
                    if error.code != "storage_unavailable":
                        raise
                await asyncio.sleep(0.02)

    # --- the checks -----------------------------------------------------------------------------------------

    async def _pages(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = await self.gateway.call("GET", f"{path}?limit=1000{cursor}")
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            cursor = f"&cursor={page['next_cursor']}"

    async def check_acknowledged(self) -> None:
        """Every position that was acknowledged with a 2xx is stored."""
        for channel in CHANNELS:
            stored = {
                item["device_id"]: item["offset"]
                for item in await self._pages(f"/channels/{channel}/subscribers")
            }
            for (device, of), offset in self.answers.positions.items():
                if of == channel:
                    assert stored[device] >= offset, f"{device} acknowledged {offset} of {channel}"

    async def check_log(self) -> None:
        """Every alert that was answered is in its log once, where the answer said, and nothing else is."""
        assert set(self.answers.alerts) == set(self._keys)
        for channel, keys in by_channel(self.answers.alerts).items():
            log = (await self._pages(f"/channels/{channel}/alerts"))[::-1]
            assert [item["offset"] for item in log] == list(range(1, len(keys) + 1))
            answers = [self.answers.alerts[keys[offset]] for offset in sorted(keys)]
            for name in ("id", "epoch", "offset", "accepted_at"):
                assert [item[name] for item in log] == [answer[name] for answer in answers]
            texts = [keys[offset].encode() for offset in sorted(keys)]
            for member in self.members:
                if channel in member.channels:
                    assert member.logs[channel] == texts, f"{member.name} of {channel}"

    async def check_facts(self) -> None:
        """Every device's position comes to the head; what it refused is a dead letter, all else received."""
        async with asyncio.timeout(WAIT_S):
            for channel, head in self._heads().items():
                while any(
                    item["offset"] < head for item in await self._pages(f"/channels/{channel}/subscribers")
                ):
                    await asyncio.sleep(0.02)
        letters = {
            (item["device_id"], item["channel"], item["offset"]): item["reason"]
            for item in await self._pages("/dead-letters")
        }
        assert set(letters.values()) <= {"nacked"}
        assert set(letters) >= self.answers.nacks
        refused = {(member.name, *where) for member in self.members for where in member.refused}
        assert set(letters) <= refused
        chance = random.Random(SEED)
        for answer in chance.sample(list(self.answers.alerts.values()), 20):
            deliveries = await self._pages(f"/alerts/{answer['id']}/deliveries")
            names = {member.name for member in self.members if answer["channel"] in member.channels}
            assert {item["device_id"] for item in deliveries} == names
            for item in deliveries:
                assert item["received_at"] is not None or item["dead_letter"] == "nacked", item

    async def check_deployments(self) -> None:
        """Every rollout was started once, and each deployment is where its device's reports left it."""
        rollouts = await self._pages("/rollouts")
        assert [item["id"] for item in rollouts] == [item["id"] for item in self.rollouts]
        for member in self.members:
            found = await self._pages(f"/devices/{member.name}/deployments")
            assert {UUID(item["id"]).bytes for item in found} >= set(member.jobs)
            assert len({item["rollout_id"] for item in found}) == len(found)
            for item in found:
                job = member.jobs.get(UUID(item["id"]).bytes)
                if job is None:  # superseded before the device ever got it
                    assert item["state"] == "superseded", item
                    continue
                assert job.outcome in OUTCOMES
                expected = {"cancelled", "superseded"} if job.outcome == "cancelled" else {job.outcome}
                assert item["state"] in expected, (job, item)
                assert not item["is_inferred"]
                if (member.name, job.deployment) in self.answers.received:
                    assert item["received_at"] is not None
            assert found[-1]["rollout_id"] == self.rollouts[-1]["id"]
            assert found[-1]["state"] in ("committed", "failed")

    async def check_reports(self, url: str) -> None:
        """Every report that was answered ``recorded`` is in the database."""
        async with open_database(url, limits=DatabaseLimits(), metrics=Metrics()) as database:
            rows = await database.read(
                lambda connection: connection.execute(
                    select(report.c.report_id, report.c.deployment_id, report.c.seq, report.c.state)
                ).all()
            )
        kept = {row.report_id: (row.deployment_id, row.seq, row.state) for row in rows}
        assert len(kept) == len(rows)
        for id_, (device, one) in self.answers.recorded.items():
            assert kept.get(id_) == (one.deployment, one.seq, one.state), f"{device} reported {one}"

    def summary(self) -> str:
        connections = sum(member.connections for member in self.members)
        return (
            f"{ROUNDS} rounds on {self.dialect}: {len(self.answers.alerts)} alerts, {self._replays} asked for"
            f" again, {len(self.answers.recorded)} reports, {len(self.answers.nacks)} refusals answered,"
            f" {connections} connections of {len(self.members)} devices"
        )
