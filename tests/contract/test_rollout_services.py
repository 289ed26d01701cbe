"""The services above the store: who is told what, what is signed, what is counted."""

from __future__ import annotations

import asyncio

import pytest

from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.names import ChannelName, DeviceId
from device_sdk.wire.signed import verify_directive, verify_statement
from gateway.errors import ConflictError, PeerError, StorageUnavailableError
from gateway.rollout import Action, Offer, Rollout, RolloutService, RolloutState, SelectorError, Updates
from gateway.storage.engine import Database
from gateway.telemetry import Metrics
from tests.harness.rollouts import World, digest_of

DIRECTIVE = PrivateKey.from_seed(bytes(32))
STATEMENT = PrivateKey.from_seed(b"\1" * 32)
FW = ChannelName("fw")


class Listener:
    """Writes down what it is told, and in which state the store was."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def rollout_changed(self, channel_id: int) -> None:
        self.told.append(("changed", channel_id))

    def cancelled(self, channel_id: int, rollout_id: bytes) -> None:
        self.told.append(("cancelled", (channel_id, rollout_id)))


@pytest.fixture
async def world(database: Database) -> World:
    return await World.create(database)


@pytest.fixture
def service(world: World, metrics: Metrics) -> RolloutService:
    return RolloutService(world.store, metrics=metrics)


@pytest.fixture
def listener(service: RolloutService) -> Listener:
    listener = Listener()
    service.subscribe(listener)
    return listener


@pytest.fixture
def updates(world: World, metrics: Metrics) -> Updates:
    return Updates(
        world.store,
        directive_key=DIRECTIVE,
        statement_key=STATEMENT,
        clock=world.clock,
        metrics=metrics,
        limits=world.limits,
    )


async def started(service: RolloutService, world: World, **fields: object) -> Rollout:
    arguments = {"release_id": await world.release(), "channel": FW, "percent": 100, "now_ms": 1} | fields
    found = await service.start(world.fleet, **arguments)  # type: ignore[arg-type]
    assert isinstance(found, Rollout)
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"fleetcast_{name}", labels)


class TestRollouts:
    async def test_a_life_and_who_is_told(
        self, world: World, service: RolloutService, listener: Listener, metrics: Metrics
    ) -> None:
        await world.devices(10)
        rollout = await started(service, world, percent=10)
        channel_id = rollout.channel_id
        await service.change(world.fleet, rollout.id, percent=50, now_ms=2)
        await service.pause(world.fleet, rollout.id, now_ms=3)
        assert value(metrics, "rollouts", state="paused") == 1
        await service.resume(world.fleet, rollout.id, now_ms=4)
        ended = await service.abort(world.fleet, rollout.id, now_ms=5)
        assert ended.state is RolloutState.ABORTED
        changed = ("changed", channel_id)
        assert listener.told == [changed] * 4 + [("cancelled", (channel_id, rollout.id)), changed]
        assert value(metrics, "rollouts", state="aborted") == 1
        assert value(metrics, "rollouts", state="running") == 0

    async def test_a_refused_action_tells_nobody(
        self, world: World, service: RolloutService, listener: Listener
    ) -> None:
        rollout = await started(service, world)
        await service.finish(world.fleet, rollout.id, now_ms=2)
        told = list(listener.told)
        with pytest.raises(ConflictError):
            await service.resume(world.fleet, rollout.id, now_ms=3)
        assert listener.told == told

    async def test_an_abort_counts_and_cancels_all_however_many(
        self, world: World, service: RolloutService, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.storage.rollouts.CANCELLED_AT_ONCE", 3)
        keys = await world.devices(8)
        rollout = await started(service, world)
        await world.offer(*keys)
        ended = await service.abort(world.fleet, rollout.id, now_ms=2)
        assert ended.counts == {"cancelled": 8}
        assert value(metrics, "deployment_transitions_total", state="cancelled") == 8

    async def test_what_a_crash_left_of_an_abort_is_done_at_the_start(
        self, world: World, service: RolloutService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.storage.rollouts.CANCELLED_AT_ONCE", 3)
        keys = await world.devices(8)
        rollout = await started(service, world)
        await world.offer(*keys)
        await world.act(rollout, Action.ABORT)
        await service.recover(now_ms=9)
        assert (await service.rollout(world.fleet, rollout.id)).counts == {"cancelled": 8}

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"percent": 0}, "bad_percent"),
            ({"percent": 101}, "bad_percent"),
            ({"name": ""}, "bad_name"),
            ({"name": "n" * 129}, "bad_name"),
            ({"priority": 1001}, "bad_priority"),
            ({"priority": -1001}, "bad_priority"),
            ({"selector": "origin.model = 1"}, "bad_selector"),
            ({"selector": ""}, "bad_selector"),
        ],
    )
    async def test_what_is_out_of_bounds_starts_nothing(
        self, world: World, service: RolloutService, listener: Listener, fields: dict[str, object], code: str
    ) -> None:
        with pytest.raises(PeerError) as refused:
            await started(service, world, **fields)
        assert refused.value.code == code
        assert isinstance(refused.value, SelectorError) is (code == "bad_selector")
        assert await service.rollouts(world.fleet) == []
        assert listener.told == []

    async def test_a_gauge_that_cannot_be_read_does_not_undo_an_answer(
        self, world: World, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Flaky(type(world.store)):  # type: ignore[misc]
            async def rollout_counts(self) -> dict[str, int]:
                raise StorageUnavailableError("away")

        service = RolloutService(Flaky(world.database), metrics=metrics)
        rollout = await started(service, world)
        assert (await service.abort(world.fleet, rollout.id, now_ms=2)).state is RolloutState.ABORTED

    async def test_deployments_are_found_through_it(self, world: World, service: RolloutService) -> None:
        keys = await world.devices(2)
        rollout = await started(service, world)
        await world.offer(*keys)
        (first, _) = await service.deployments(world.fleet, rollout_id=rollout.id)
        assert await service.deployment(world.fleet, first.id) == first
        (same,) = await service.deployments(world.fleet, device_id=DeviceId(first.device_id))
        assert same == first


class TestUpdates:
    async def test_a_directive_says_what_was_committed(
        self, world: World, updates: Updates, metrics: Metrics
    ) -> None:
        (key,) = await world.devices(1)
        release_id = await world.release(4, envelope=b"the envelope")
        await world.start(release_id)
        (offer,) = await updates.offer([key])
        assert isinstance(offer, Offer)
        assert (offer.device_key, offer.manifest, offer.attempt, offer.superseded) == (
            key,
            b"the envelope",
            1,
            (),
        )
        directive = verify_directive(
            offer.directive, {DIRECTIVE.kid: DIRECTIVE.public}, fleet="acme", device="d0000"
        )
        row, device = await world.deployment(offer.deployment_id), await world.device(key)
        assert directive.deployment == offer.deployment_id == row.id
        assert directive.enrolment == device.enrolment_id
        assert directive.sequence == row.directive_sequence == device.directive_sequence
        assert directive.manifest_digest == digest_of("main4")
        assert directive.component == offer.component == "main"
        now_ms, limits = world.clock.now_ms(), world.limits
        assert (directive.issued_at, directive.expires_at, directive.install_by) == (
            now_ms,
            now_ms + limits.directive_ttl_s * 1000,
            now_ms + limits.install_by_s * 1000,
        )
        assert value(metrics, "deployment_transitions_total", state="notified") == 1
        assert value(metrics, "signatures_total", role="directive") == 1

    async def test_a_redelivery_under_the_same_number_is_the_same_directive(
        self, world: World, updates: Updates
    ) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release())
        (offer,) = await updates.offer([key])
        world.clock.advance(60)
        again = await updates.redeliver(key, offer.deployment_id)
        assert again is not None
        keys = {DIRECTIVE.kid: DIRECTIVE.public}
        digests = {
            verify_directive(one.directive, keys, fleet="acme", device="d0000").digest
            for one in (offer, again)
        }
        assert len(digests) == 1
        assert again.attempt == 2

    async def test_nothing_to_send_is_nothing(self, world: World, updates: Updates) -> None:
        (key,) = await world.devices(1)
        assert list(await updates.offer([key])) == []
        assert list(await updates.offer([])) == []
        assert await updates.redeliver(key, bytes(16)) is None
        assert list(await updates.cancelling([key])) == []

    async def test_devices_that_lack_nothing_take_no_lock(self, world: World, metrics: Metrics) -> None:
        class ReadOnly(type(world.store)):  # type: ignore[misc]
            async def offer(self, *_: object, **__: object) -> object:
                raise AssertionError("a transaction for nothing")

        (key,) = await world.devices(1)
        await world.start(await world.release())
        (push,) = (await world.offer(key)).pushes
        await world.received(key, push.deployment_id)
        updates = Updates(
            ReadOnly(world.database),
            directive_key=DIRECTIVE,
            statement_key=STATEMENT,
            clock=world.clock,
            metrics=metrics,
        )
        assert list(await updates.offer([key])) == []

    async def test_many_devices_leave_the_loop_to_others(self, world: World, updates: Updates) -> None:
        keys = await world.devices(100)
        await world.start(await world.release())
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        offers = await updates.offer(keys)
        other.cancel()
        assert sorted(offer.device_key for offer in offers) == keys
        assert turns > 5

    async def test_a_statement_echoes_the_nonce(
        self, updates: Updates, world: World, metrics: Metrics
    ) -> None:
        nonce = b"n" * 16
        body = updates.statement(
            world.fleet.name, DeviceId("d1"), nonce=nonce, latest_directive=9, root_version=2
        )
        said = verify_statement(
            body, {STATEMENT.kid: STATEMENT.public}, fleet="acme", device="d1", nonce=nonce
        )
        assert (said.latest_directive, said.root_version, said.time) == (9, 2, world.clock.now_ms())
        assert said.expires_at > said.time
        assert value(metrics, "signatures_total", role="statement") == 1
