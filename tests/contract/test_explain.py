"""The facts of explanations and of messages, as they are read from a database."""

from __future__ import annotations

from typing import Any

import pytest

from device_sdk.wire.names import DeviceId
from device_sdk.wire.signed.alert import AlertPayload, alert_payload
from gateway.errors import NotFoundError
from gateway.fleet.facts import DeadLettered, IntervalClosed, IntervalOpened, Received, Sent
from gateway.fleet.model import Draft, Fact
from gateway.ids import uuid7
from gateway.rollout.explain import Connection, ReasonCode, explain
from gateway.rollout.rollout import Action
from gateway.storage.engine import Database
from gateway.storage.explain import SQLExplanations
from gateway.storage.message_facts import SQLMessageFacts
from tests.contract.world import KID, OPS, standing_in
from tests.contract.world import World as Fleets
from tests.harness.rollouts import World, digest_of

CONNECTION = Connection(is_connected=True, attempts_max=20)


@pytest.fixture
async def rollouts(database: Database) -> World:
    return await World.create(database, channels="fw beta")


async def codes(world: World, device_id: str, release_id: bytes) -> list[str]:
    facts = await SQLExplanations(world.database).facts(world.fleet.key, DeviceId(device_id), release_id)
    return [reason.code.value for reason in explain(facts, CONNECTION)]


class TestExplanations:
    async def test_follow_a_device_from_nothing_to_the_release(self, rollouts: World) -> None:
        world = rollouts
        (key,) = await world.devices(1, last_seen_at=1)
        release = await world.release(7)
        assert await codes(world, "d0000", release) == ["no_rollout"]
        rollout = await world.start(release)
        assert await codes(world, "d0000", release) == ["due"]
        (push,) = (await world.offer(key)).pushes
        assert await codes(world, "d0000", release) == ["awaiting_acknowledgement"]
        await world.act(rollout, Action.PAUSE)
        assert await codes(world, "d0000", release) == ["rollout_paused", "awaiting_acknowledgement"]
        await world.act(rollout, Action.RESUME)
        await world.says(key, push.deployment_id, "downloading", progress=4)
        assert await codes(world, "d0000", release) == ["in_progress"]
        await world.says(key, push.deployment_id, "rejected", code="incompatible")
        assert await codes(world, "d0000", release) == ["rejected"]
        digest = digest_of("main7").hex()
        await world.change_device(key, installed={"main": [7, "7", digest, True]})
        assert await codes(world, "d0000", release) == ["already_installed"]

    async def test_what_is_due_is_what_the_device_is_offered(self, rollouts: World) -> None:
        world = rollouts
        releases = [await world.release(number) for number in (1, 2, 3)]
        keys = [
            *await world.devices(2, buckets=[0, 2**31], last_seen_at=1),
            *await world.devices(1, prefix="t", channels="beta", tags=["eu"], last_seen_at=1),
            *await world.devices(1, prefix="x", is_enabled=False, last_seen_at=1),
        ]
        await world.start(releases[0], percent=50)
        await world.start(releases[1], percent=50, selector='tag == "eu"')
        await world.start(releases[2], channel="beta", priority=1)
        explained = {
            device_id: release
            for device_id in ("d0000", "d0001", "t0000", "x0000")
            for release in releases
            if "due" in await codes(world, device_id, release)
        }
        pushed = (await world.offer(*keys)).pushes
        assert explained == {push.device_id: push.release_id for push in pushed}
        assert set(explained) == {"d0000", "t0000"}

    async def test_a_newer_rollout_of_the_component_goes_first(self, rollouts: World) -> None:
        world = rollouts
        await world.devices(1, last_seen_at=1)
        old, new = await world.release(1), await world.release(2)
        await world.start(old)
        await world.start(new)
        assert await codes(world, "d0000", old) == ["outranked"]
        assert await codes(world, "d0000", new) == ["due"]

    async def test_what_was_committed_is_remembered_beside_what_runs(self, rollouts: World) -> None:
        world = rollouts
        (key,) = await world.devices(1, last_seen_at=1)
        old, new = await world.release(1), await world.release(2)
        await world.start(new)
        (push,) = (await world.offer(key)).pushes
        await world.says(key, push.deployment_id, "committed")
        assert await codes(world, "d0000", new) == ["committed_before"]
        assert await codes(world, "d0000", old) == [ReasonCode.NEWER_COMMITTED, ReasonCode.NO_ROLLOUT]

    async def test_are_of_this_fleet_s_devices_and_releases(self, rollouts: World) -> None:
        other = await World.create(rollouts.database, name="other")
        await rollouts.devices(1)
        release, foreign = await rollouts.release(1), await other.release(2)
        explanations = SQLExplanations(rollouts.database)
        for fleet, device, wanted in (
            (rollouts.fleet.key, "no", release),
            (rollouts.fleet.key, "d0000", foreign),
            (rollouts.fleet.key, "d0000", bytes(16)),
            (other.fleet.key, "d0000", foreign),
        ):
            with pytest.raises(NotFoundError):
                await explanations.facts(fleet, DeviceId(device), wanted)


class TestFactsOfADeployment:
    async def test_are_its_steps_and_its_reports_in_order(self, rollouts: World) -> None:
        world = rollouts
        (key,) = await world.devices(1)
        await world.start(await world.release())
        (push,) = (await world.offer(key)).pushes
        for state in ("received", "verified", "downloading", "failed"):
            world.clock.advance(1)
            await world.says(key, push.deployment_id, state, code="no_space" if state == "failed" else None)
        facts = await SQLMessageFacts(world.database).of_deployment(world.fleet.key, push.deployment_id)
        assert [fact.at for fact in facts] == sorted(fact.at for fact in facts)
        assert [(fact.fact, fact.state) for fact in facts] == [
            ("accepted", None),
            ("sent", None),
            ("received", None),
            ("report", "received"),
            ("verified", None),
            ("report", "verified"),
            ("report", "downloading"),
            ("report", "failed"),
            ("outcome", "failed"),
        ]
        assert (facts[-1].code, facts[1].attempt) == ("no_space", 1)
        with pytest.raises(NotFoundError):
            await SQLMessageFacts(world.database).of_deployment(world.fleet.key + 1, push.deployment_id)


class TestFactsOfAnAlert:
    async def _published(self, world: Fleets, **connect: Any) -> tuple[Any, Any]:
        fleet = await world.fleet()
        await world.channel(fleet)
        connected = await world.connect(channels={"ops": "alert"})
        message_id = uuid7(world.now)
        await world.store.append(
            fleet.key,
            OPS,
            [Draft(message_id, "text/plain", b"x", world.now)],
            now_ms=world.now,
            kid=KID,
            seal=_seal,
        )
        return fleet, (connected, standing_in(connected, "ops"), message_id)

    async def test_are_every_attempt_and_what_came_of_them(self, world: Fleets) -> None:
        fleet, (connected, at, message_id) = await self._published(world)
        key, start = connected.device_key, world.now
        about = {"device_key": key, "channel_id": at.channel_id, "epoch": at.channel_epoch}
        await world.commit(
            IntervalOpened(b"i" * 16, **about, first=1, at=start - 5),
            Sent(**about, first=1, last=1, attempt=2, at=start + 10),
            Sent(**about, first=2, last=9, attempt=1, at=start + 10),
        )
        await world.commit(IntervalClosed(b"i" * 16, 1, start + 5))
        await world.commit(
            DeadLettered(
                **about,
                offset=1,
                message_id=message_id,
                reason="nacked",
                code="hot",
                attempts=2,
                at=start + 20,
            )
        )
        world.clock.advance(1)
        await world.commit(Received(at.id, key, at.channel_id, at.channel_epoch, 1, 1))
        facts = SQLMessageFacts(world.database)
        assert await facts.of_alert(fleet.key, message_id, DeviceId("d1")) == [
            Fact(fact="accepted", at=start),
            Fact(fact="sent", at=start, attempt=1),
            Fact(fact="sent", at=start + 10, attempt=2),
            Fact(fact="dead_letter", at=start + 20, attempt=2, state="nacked", code="hot"),
            Fact(fact="received", at=world.now),
        ]

    async def test_are_of_devices_of_its_channel_and_fleet(self, world: Fleets) -> None:
        fleet, (_, _, message_id) = await self._published(world)
        other = await world.fleet("other")
        await world.connect("d2")
        facts = SQLMessageFacts(world.database)
        for fleet_key, wanted, device in (
            (fleet.key, message_id, "d2"),
            (fleet.key, message_id, "no"),
            (fleet.key, uuid7(1), "d1"),
            (other.key, message_id, "d1"),
        ):
            with pytest.raises(NotFoundError):
                await facts.of_alert(fleet_key, wanted, DeviceId(device))


def _seal(fleet: str, channel: str, epoch: int, offset: int, draft: Draft) -> tuple[bytes, bytes]:
    payload = AlertPayload(
        fleet=fleet,
        channel=channel,
        epoch=epoch,
        offset=offset,
        id=draft.id,
        issued_at=draft.issued_at,
        expires_at=None,
        content_type=draft.content_type,
        data=draft.data,
        key=None,
        original_id=None,
    )
    return alert_payload(payload), b"signature"
