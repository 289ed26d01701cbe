"""What becomes of acknowledgements, reports and hellos, on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from gateway.rollout import Action, ReportOutcome, State
from gateway.storage import reports
from gateway.storage.engine import Database
from gateway.storage.tables import report
from tests.harness.rollouts import BOOT, World, installed

NEXT_BOOT = b"\1" * 16


@pytest.fixture
async def world(database: Database) -> World:
    return await World.create(database)


@pytest.fixture
async def key(world: World) -> int:
    (key,) = await world.devices(1)
    return key


@pytest.fixture
async def deployment_id(world: World, key: int) -> bytes:
    await world.start(await world.release(1))
    (push,) = (await world.offer(key)).pushes
    return push.deployment_id


async def report_count(world: World) -> int:
    return await world.database.read(
        lambda conn: conn.execute(select(func.count()).select_from(report)).scalar_one()
    )


class TestAcknowledgement:
    async def test_it_is_news_once(self, world: World, key: int, deployment_id: bytes) -> None:
        assert await world.received(key, deployment_id) is True
        assert await world.received(key, deployment_id) is False
        row = await world.deployment(deployment_id)
        assert (row.state, row.received_at) == ("received", world.clock.now_ms())

    async def test_of_another_device_or_of_nothing_it_changes_nothing(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        before = await world.deployment(deployment_id)
        assert await world.received(key + 1, deployment_id) is False
        assert await world.received(key, bytes(16)) is False
        assert await world.deployment(deployment_id) == before


class TestReports:
    async def test_a_report_is_recorded_and_folded(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        world.clock.advance(1)
        outcome = await world.says(key, deployment_id, "downloading", progress=40, detail="so far")
        assert outcome == ReportOutcome("recorded", entered=State.DOWNLOADING)
        row = await world.deployment(deployment_id)
        assert (row.state, row.progress, row.detail) == ("downloading", 40, "so far")
        assert (row.received_at, row.verified_at) == (world.clock.now_ms(), world.clock.now_ms())
        assert row.is_active

    async def test_an_outcome_ends_it(self, world: World, key: int, deployment_id: bytes) -> None:
        outcome = await world.says(key, deployment_id, "rejected", code="rollback")
        assert outcome == ReportOutcome("recorded", ended=True, entered=State.REJECTED)
        row = await world.deployment(deployment_id)
        assert (row.state, row.code, row.is_active) == ("rejected", "rollback", False)

    async def test_the_same_report_again_is_a_duplicate(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        write = world.report(key, deployment_id, "committed")
        first, second = await world.reported(write, write)
        (third,) = await world.reported(write)
        assert (first.status, first.ended) == ("recorded", True)
        assert second == third == ReportOutcome("duplicate")
        assert await report_count(world) == 1

    async def test_one_flush_is_folded_by_number_not_by_arrival(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        said = ["received", "verified", "downloading", "installing", "rebooting", "committed"]
        writes = [world.report(key, deployment_id, state, seq) for seq, state in enumerate(said)]
        outcomes = await world.reported(*reversed(writes))
        assert [outcome.status for outcome in outcomes] == ["recorded"] * 6
        assert [outcome.entered for outcome in reversed(outcomes)] == [State(state) for state in said]
        assert [outcome.ended for outcome in outcomes] == [True, False, False, False, False, False]

    async def test_reports_of_many_devices_do_not_mix(self, world: World) -> None:
        keys = await world.devices(3, prefix="many")
        await world.start(await world.release(1))
        ids = {push.device_key: push.deployment_id for push in (await world.offer(*keys)).pushes}
        a, b, c = keys
        outcomes = await world.reported(
            world.report(a, ids[a], "committed"),
            world.report(b, ids[a], "failed"),
            world.report(b, ids[b], "installing"),
            world.report(c, bytes(16), "committed"),
        )
        assert [(o.status, o.code) for o in outcomes] == [
            ("recorded", None),
            ("refused", "unknown_deployment"),
            ("recorded", None),
            ("refused", "unknown_deployment"),
        ]
        states = [(await world.deployment(ids[k])).state for k in keys]
        assert states == ["committed", "installing", "notified"]
        assert await report_count(world) == 2

    async def test_the_same_report_id_of_two_devices_is_two_reports(self, world: World) -> None:
        a, b = await world.devices(2, prefix="two")
        await world.start(await world.release(1))
        ids = {push.device_key: push.deployment_id for push in (await world.offer(a, b)).pushes}
        outcomes = await world.reported(
            *(world.report(k, ids[k], "committed", id=b"\7" * 16) for k in (a, b))
        )
        assert [outcome.status for outcome in outcomes] == ["recorded", "recorded"]

    async def test_progress_is_bounded_and_an_outcome_never_lost(
        self, world: World, key: int, deployment_id: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reports, "REPORTS_MAX", 3)
        outcomes = [await world.says(key, deployment_id, "downloading", progress=n) for n in range(5)]
        assert [(o.status, o.code) for o in outcomes] == [("recorded", None)] * 3 + [
            ("refused", "too_many_reports")
        ] * 2
        assert (await world.deployment(deployment_id)).progress == 2
        assert (await world.says(key, deployment_id, "committed")).ended

    async def test_a_state_of_a_later_version_is_kept_and_changes_nothing(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        before = await world.deployment(deployment_id)
        assert await world.says(key, deployment_id, "unknown") == ReportOutcome("recorded")
        assert await world.deployment(deployment_id) == before
        assert await report_count(world) == 1

    async def test_a_device_that_goes_on_with_what_was_cancelled_is_told_again(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        rollout_id = (await world.deployment(deployment_id)).rollout_id
        await world.act(await world.store.rollout(world.fleet.key, rollout_id), Action.ABORT)
        write = world.report(key, deployment_id, "downloading")
        assert (await world.reported(write))[0] == ReportOutcome("recorded", cancel=True)
        assert (await world.reported(write))[0] == ReportOutcome("duplicate", cancel=True)
        assert await world.says(key, deployment_id, "cancelled") == ReportOutcome("recorded")
        assert await world.store.cancelling([key], now_ms=world.clock.now_ms()) == []

    async def test_a_rebooting_device_leaves_its_boot(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        await world.says(key, deployment_id, "rebooting", boot_id=NEXT_BOOT)
        assert (await world.deployment(deployment_id)).boot_id == NEXT_BOOT


class TestEvidence:
    async def test_the_target_running_means_committed(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        await world.says(key, deployment_id, "rebooting")
        assert await world.hello(key, installed=installed(1)) == (deployment_id,)
        row = await world.deployment(deployment_id)
        assert (row.state, row.is_inferred, row.is_active) == ("committed", True, False)
        # The lost report comes late, and the outcome is the device's own word.
        assert await world.says(key, deployment_id, "committed") == ReportOutcome("recorded")
        assert not (await world.deployment(deployment_id)).is_inferred

    async def test_another_image_after_the_reboot_means_rolled_back(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        await world.says(key, deployment_id, "rebooting")
        assert await world.hello(key, installed=installed(9)) == ()
        assert await world.hello(key, installed=installed(9), boot_id=NEXT_BOOT) == (deployment_id,)
        assert (await world.deployment(deployment_id)).state == "rolled_back"

    async def test_a_hello_that_proves_nothing_writes_nothing(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        await world.received(key, deployment_id)
        before = await world.deployment(deployment_id)
        assert await world.hello(key, installed=installed(9)) == ()
        assert await world.deployment(deployment_id) == before

    async def test_a_device_that_lost_its_flash_is_sent_it_again(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        await world.received(key, deployment_id)
        assert (await world.offer(key)).pushes == ()
        assert await world.hello(key, last_directive=0) == ()
        assert await world.store.concerned([key]) == [key]
        (push,) = (await world.offer(key)).pushes
        assert push.deployment_id == deployment_id
        assert (await world.deployment(deployment_id)).state == "received"
        await world.received(key, deployment_id)
        assert (await world.offer(key)).pushes == ()

    async def test_a_device_that_went_on_to_a_newer_directive_is_not_told_to_cancel_the_old(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        await world.start(await world.release(2))
        (push,) = (await world.offer(key)).pushes
        assert push.superseded == (deployment_id,)
        now_ms = world.clock.now_ms()
        await world.hello(key, last_directive=push.directive_sequence - 1)
        assert await world.store.cancelling([key], now_ms=now_ms) == [(key, deployment_id)]
        await world.hello(key, last_directive=push.directive_sequence)
        assert await world.store.cancelling([key], now_ms=now_ms) == []

    async def test_what_may_no_longer_be_installed_needs_no_cancel(
        self, world: World, key: int, deployment_id: bytes
    ) -> None:
        await world.start(await world.release(2))
        await world.offer(key)
        cancelling = [(key, deployment_id)]
        install_by = (await world.deployment(deployment_id)).directive_install_by
        assert await world.store.cancelling([key], now_ms=install_by - 1) == cancelling
        assert await world.store.cancelling([key], now_ms=install_by) == []

    async def test_many_hellos_are_judged_apart(self, world: World) -> None:
        keys = await world.devices(3, prefix="many")
        await world.start(await world.release(1))
        ids = {push.device_key: push.deployment_id for push in (await world.offer(*keys)).pushes}
        assert await world.hello(keys[1], installed=installed(1), boot_id=BOOT) == (ids[keys[1]],)
        states = [(await world.deployment(ids[k])).state for k in keys]
        assert states == ["notified", "committed", "notified"]
