"""What messages do to a device, step by step: take, renew, supersede, take back, report, wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from device_sdk.update import (
    FetchBusyError,
    Fetched,
    FetchError,
    RebootRequiredError,
    Step,
    UpdateLimits,
)
from device_sdk.wire import messages
from device_sdk.wire.messages import Recorded, Report
from tests.unit.device_sdk.update.world import (
    HOUR_MS,
    IMAGE,
    NOW_MS,
    FakeClock,
    World,
    deployment,
    envelope,
    manifest_of,
    root,
)

STEPS = ["verified", "downloading", "installing", "rebooting", "committed"]


def states(world: World, number: int = 1) -> list[str]:
    return [state for state, _ in world.told(number)]


async def test_an_update_runs_from_notice_to_committed() -> None:
    world = World()
    agent = world.open_trusting()
    assert await agent.receive_update(world.update())
    await world.work()
    assert states(world) == STEPS
    assert world.running_image() == IMAGE
    installed = world.agent.installed()["main"]
    assert (installed.sequence, installed.version) == (5, "1.2")
    assert (installed.digest, installed.is_confirmed) == (manifest_of(envelope()).digest, True)
    assert world.agent.last_directive == 100
    assert not world.agent.jobs
    # Nothing is left of it but what is remembered.
    keys = {key for key, _ in world.state.items("update/")}
    assert {key for key in keys if not key.startswith("update/report/")} == {"update/ended"}


async def test_updates_follow_each_other_through_both_slots() -> None:
    world = World()
    world.open_trusting()
    for number in range(1, 5):
        image = IMAGE + bytes([number])
        world.server.images["/image"] = image
        manifest = envelope(image, sequence=number)
        assert await world.agent.receive_update(world.update(number, sequence=number, manifest=manifest))
        await world.work()
        assert states(world, number)[-1] == "committed"
        assert world.running_image() == image
        world.record_all()


async def test_the_loop_works_when_an_update_comes_and_waits_otherwise() -> None:
    world = World()
    agent = world.open_trusting()
    task = asyncio.create_task(agent.run())
    await asyncio.sleep(0)
    assert await agent.receive_update(world.update())
    with pytest.raises(RebootRequiredError):
        await task
    agent = world.open()
    task = asyncio.create_task(agent.run())
    while agent.jobs:
        await asyncio.sleep(0)
    assert states(world)[-1] == "committed"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_ending_the_loop_ends_the_step_and_keeps_the_job() -> None:
    world = World()
    agent = world.open_trusting()
    world.server.chunk = 1
    await agent.receive_update(world.update())
    task = asyncio.create_task(agent.run())
    while states(world) != ["verified", "downloading"]:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.server.is_open == 0
    assert [job.step for job in agent.jobs] == [Step.DOWNLOADING]
    world.open()
    await world.work()
    assert states(world)[-1] == "committed"


class TestCounter:
    async def test_the_same_directive_again_is_the_same_job(self) -> None:
        world = World()
        agent = world.open_trusting()
        await agent.receive_update(world.update())
        before = dict(world.flash.files)
        assert await agent.receive_update(world.update())
        assert world.flash.files == before
        await world.work()
        assert await world.agent.receive_update(world.update())
        assert not world.agent.jobs
        assert states(world) == STEPS

    async def test_a_higher_one_for_the_deployment_in_hand_only_renews_it(self) -> None:
        world = World()
        agent = world.open_trusting()
        await agent.receive_update(world.update(expires_at=NOW_MS + 1))
        world.clock.advance(1)
        assert await agent.receive_update(world.update(sequence=101))
        assert [job.sequence for job in agent.jobs] == [101]
        assert agent.last_directive == 101
        await world.work()
        assert states(world) == STEPS

    async def test_a_renewal_in_the_middle_of_the_download_does_not_begin_it_anew(self) -> None:
        world = World()
        agent = world.open_trusting()
        renewal = world.update(sequence=101, install_by=NOW_MS + 48 * HOUR_MS)
        await agent.receive_update(world.update())

        def renew(report: Report) -> None:
            if report.state == "downloading":
                coroutine = agent.receive_update(renewal)
                with pytest.raises(StopIteration, match="True"):
                    coroutine.send(None)

        world.on_report = renew
        await world.work()
        assert states(world) == STEPS
        assert len(world.server.requests) == 1
        assert world.agent.last_directive == 101

    async def test_a_renewal_about_another_release_is_told_and_the_job_goes_on(self) -> None:
        world = World()
        agent = world.open_trusting()
        await agent.receive_update(world.update())
        other = world.update(sequence=101, manifest=envelope(sequence=6))
        assert await agent.receive_update(other)
        assert world.told() == [("received", "mix_and_match")]
        assert agent.last_directive == 100
        await world.work()
        assert states(world)[-1] == "committed"

    @pytest.mark.parametrize(("sequence", "code"), [(99, "directive_replayed"), (100, "directive_conflict")])
    async def test_an_attack_on_the_deployment_in_hand_is_told_and_the_job_goes_on(
        self, sequence: int, code: str
    ) -> None:
        world = World()
        agent = world.open_trusting()
        await agent.receive_update(world.update())
        attack = world.update(sequence=sequence, install_by=NOW_MS + 1)
        for _ in range(3):
            assert await agent.receive_update(attack)
        assert world.told() == [("received", code)]
        await world.work()
        assert states(world)[1:] == STEPS

    async def test_a_directive_for_a_deployment_that_has_ended_is_counted_and_its_outcome_repeated(
        self,
    ) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update())
        await world.work()
        world.record_all()
        world.open()
        assert await world.agent.receive_update(world.update(sequence=101))
        assert world.told() == [("committed", None)]
        assert world.agent.last_directive == 101
        assert not world.agent.jobs

    async def test_report_numbers_of_a_deployment_rise(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update())
        await world.work()
        await world.agent.receive_update(world.update(sequence=99))
        world.agent.cancel(deployment(1))
        numbers = [report.seq for report in world.sent]
        assert numbers == sorted(set(numbers))
        assert len({report.id for report in world.sent}) == len(world.sent)


class TestSupersede:
    async def superseded_at(self, step: str | None) -> World:
        """A world in which deployment 2 comes when 1 reports ``step`` (None: at once)."""
        world = World()
        agent = world.open_trusting()
        newer = world.update(2, sequence=101, manifest=envelope(IMAGE, sequence=6))
        came: list[None] = []

        def supersede(report: Report) -> None:
            if report.state == step and not came:
                came.append(None)
                with pytest.raises(StopIteration, match="True"):
                    world.agent.receive_update(newer).send(None)

        world.on_report = supersede
        await agent.receive_update(world.update())
        if step is None:
            assert await agent.receive_update(newer)
        await world.work()
        assert world.agent.installed()["main"].sequence == 6
        assert states(world, 2)[-1] == "committed"
        return world

    @pytest.mark.parametrize("step", [None, "verified", "downloading"])
    async def test_a_higher_directive_supersedes_up_to_downloading(self, step: str | None) -> None:
        world = await self.superseded_at(step)
        assert world.told()[-1] == ("cancelled", "superseded")

    @pytest.mark.parametrize("step", ["installing", "rebooting"])
    async def test_from_installing_on_the_next_waits_for_the_outcome(self, step: str) -> None:
        world = await self.superseded_at(step)
        assert world.told()[-1] == ("committed", None)

    async def test_another_component_s_deployment_is_not_superseded(self) -> None:
        world = World(components=("main", "radio"))
        agent = world.open_trusting()
        radio = envelope(component="radio")
        await agent.receive_update(world.update(1))
        await agent.receive_update(world.update(2, sequence=101, manifest=radio))
        # The older directive again is the same job, though the counter went on.
        assert await agent.receive_update(world.update(1))
        await world.work()
        assert states(world, 1) == states(world, 2) == STEPS
        assert {installed.sequence for installed in world.agent.installed().values()} == {5}

    async def test_a_new_enrolment_ends_what_the_old_one_had(self) -> None:
        world = World(components=("main", "radio"))
        agent = world.open_trusting()
        await agent.receive_update(world.update(1))
        radio = envelope(component="radio")
        await agent.receive_update(world.update(2, sequence=101, manifest=radio, enrolment=bytes(16)))
        assert world.told(1) == [("cancelled", "superseded")]
        await world.work()
        assert states(world, 2)[-1] == "committed"

    async def test_there_is_room_for_so_many(self) -> None:
        world = World(components=("main", "radio"), limits=UpdateLimits(jobs_max=1))
        agent = world.open_trusting()
        await agent.receive_update(world.update(1))
        radio = envelope(component="radio")
        assert not await agent.receive_update(world.update(2, sequence=101, manifest=radio))
        assert agent.last_directive == 100
        await world.work()
        assert await world.agent.receive_update(world.update(2, sequence=101, manifest=radio))


class TestCancel:
    """A cancel in every step: honoured up to downloading, then too late (PROTOCOL §6.5)."""

    async def test_at_received(self) -> None:
        world = World()
        agent = world.open_trusting()
        slots = world.slots()
        await agent.receive_update(world.update())
        agent.cancel(deployment(1))
        await world.work()
        assert world.told() == [("cancelled", None)]
        assert world.slots() == slots
        assert not world.server.requests

    @pytest.mark.parametrize("step", ["verified", "downloading", "installing", "rebooting"])
    async def test_at(self, step: str) -> None:
        world = World()
        agent = world.open_trusting()

        def cancel(report: Report) -> None:
            if (report.state, report.code) == (step, None):
                world.agent.cancel(deployment(1))

        world.on_report = cancel
        await agent.receive_update(world.update())
        await world.work()
        if step in ("verified", "downloading"):
            assert world.told()[-1] == ("cancelled", None)
            assert not world.server.is_open
            assert not world.floors()
            assert world.agent.installed()["main"].sequence == 0
        else:
            assert (step, "too_late") in world.told()
            assert world.told()[-1] == ("committed", None)

    async def test_in_the_middle_of_the_download(self) -> None:
        world = World()
        agent = world.open_trusting()
        world.server.chunk = 1
        await agent.receive_update(world.update())
        task = asyncio.create_task(agent.work())
        while not (world.slots().get("main.b") or b""):
            await asyncio.sleep(0)
        agent.cancel(deployment(1))
        await task
        assert states(world)[-1] == "cancelled"
        assert world.server.is_open == 0

    async def test_while_the_server_is_busy(self) -> None:
        world = World()
        agent = world.open_trusting()
        world.server.script = [lambda request: FetchBusyError(10)] * 1000
        await agent.receive_update(world.update())
        task = asyncio.create_task(agent.work())
        while len(world.server.requests) < 5:
            await asyncio.sleep(0)
        agent.cancel(deployment(1))
        await task
        assert states(world)[-1] == "cancelled"

    async def test_during_a_download_whose_connection_breaks_as_it_is_closed(self) -> None:
        world = World()
        agent = world.open_trusting()
        honest = world.server.fetch
        closed: list[None] = []

        @asynccontextmanager
        async def breaking(uri: str, *, offset: int, etag: str | None) -> AsyncIterator[Fetched]:
            try:
                async with honest(uri, offset=offset, etag=etag) as answer:
                    yield answer
            finally:
                closed.append(None)
                raise FetchError("it broke as it was closed")

        world.server.fetch = breaking  # type: ignore[method-assign]
        world.server.chunk = 1
        await agent.receive_update(world.update())
        task = asyncio.create_task(agent.work())
        while not world.slots().get("main.b"):
            await asyncio.sleep(0)
        agent.cancel(deployment(1))
        await task
        assert len(closed) == len(world.server.requests) == 1
        assert states(world)[-1] == "cancelled"

    async def test_of_what_has_ended_is_answered_with_the_outcome(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update())
        await world.work()
        world.record_all()
        world.agent.cancel(deployment(1))
        world.agent.cancel(deployment(1))
        assert world.told() == [("committed", None)]

    async def test_of_what_never_came_is_answered(self) -> None:
        world = World()
        agent = world.open_trusting()
        agent.cancel(deployment(1))
        agent.cancel(deployment(1))
        assert world.told() == [("cancelled", None)]

    async def test_outlives_a_crash(self) -> None:
        world = World()
        agent = world.open_trusting()
        await agent.receive_update(world.update())
        agent.cancel(deployment(1))
        world.open()
        assert not world.agent.jobs
        assert world.told() == [("cancelled", None)]
        # The same update again, late, does not run.
        assert await world.agent.receive_update(world.update())
        assert not world.agent.jobs


class TestRecorded:
    async def test_ends_the_repetition_across_restarts(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update())
        await world.work()
        first, *others = world.agent.pending_reports()
        world.agent.recorded(Recorded(first.id, "recorded"))
        world.agent.recorded(Recorded(first.id, "recorded"))
        world.open()
        assert list(world.agent.pending_reports()) == others
        world.record_all()
        world.open()
        assert not world.agent.pending_reports()

    @pytest.mark.parametrize("code", ["cancelled", "superseded"])
    async def test_refused_because_it_was_taken_back_drops_the_job(self, code: str) -> None:
        world = World()
        agent = world.open_trusting()

        def refuse(report: Report) -> None:
            if report.state == "downloading":
                agent.recorded(Recorded(report.id, "refused", code))

        world.on_report = refuse
        await agent.receive_update(world.update())
        await world.work()
        assert world.told() == [("verified", None), ("cancelled", code)]

    @pytest.mark.parametrize(
        ("step", "status", "code"),
        [
            ("installing", "refused", "cancelled"),
            ("rebooting", "refused", "superseded"),
            ("downloading", "refused", "unknown_deployment"),
            ("downloading", "duplicate", None),
            ("downloading", "recorded", "cancelled"),
        ],
    )
    async def test_otherwise_the_job_goes_on(self, step: str, status: str, code: str | None) -> None:
        world = World()
        agent = world.open_trusting()

        def refuse(report: Report) -> None:
            if report.state == step:
                world.agent.recorded(Recorded(report.id, status, code))

        world.on_report = refuse
        await agent.receive_update(world.update())
        await world.work()
        assert states(world)[-1] == "committed"

    async def test_of_an_unknown_report_changes_nothing(self) -> None:
        world = World()
        agent = world.open_trusting()
        agent.recorded(Recorded(bytes(16), "refused", "cancelled"))
        assert not agent.pending_reports()


class TestProgress:
    async def test_it_is_told_in_steps_and_not_stored(self) -> None:
        world = World(limits=UpdateLimits(progress_interval_s=0.001, progress_step_percent=30))
        agent = world.open_trusting()
        world.server.chunk = 8

        def pass_time(report: Report) -> None:
            world.clock.advance(1)

        world.on_report = pass_time
        await agent.receive_update(world.update())
        await world.work()
        told = [report.progress for report in world.sent if report.progress is not None]
        assert told == [30, 60, 90]
        assert states(world) == STEPS
        numbers = [report.seq for report in world.sent]
        assert numbers == sorted(set(numbers))

    async def test_the_newest_waits_until_the_next_step(self) -> None:
        world = World(limits=UpdateLimits(progress_interval_s=0.001))
        agent = world.open_trusting()
        waiting: list[int | None] = []

        def look(report: Report) -> None:
            world.clock.advance(1)
            waiting.extend(r.progress for r in agent.pending_reports() if r.progress is not None)

        world.on_report = look
        await agent.receive_update(world.update())
        await world.work()
        assert waiting
        assert waiting == sorted(waiting, key=lambda percent: percent or 0)
        assert not [report for report in world.agent.pending_reports() if report.progress is not None]

    async def test_after_a_crash_no_number_is_used_again(self) -> None:
        world = World(limits=UpdateLimits(progress_interval_s=0.001, progress_step_percent=1))
        agent = world.open_trusting()
        world.on_report = lambda report: world.clock.advance(1)
        world.server.chunk = 8
        await agent.receive_update(world.update())
        task = asyncio.create_task(agent.run())
        while sum(report.progress is not None for report in world.sent) < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        world.open()
        await world.work()
        numbers = [report.seq for report in world.sent]
        assert numbers == sorted(set(numbers))
        assert states(world)[-1] == "committed"

    async def test_it_is_not_told_before_its_time(self) -> None:
        world = World()
        agent = world.open_trusting()
        await agent.receive_update(world.update())
        await world.work()
        assert len([report for report in world.sent if report.progress is not None]) == 1


class TestInstallBy:
    async def test_it_gates_the_start_of_installing(self) -> None:
        world = World()
        agent = world.open_trusting()
        await agent.receive_update(world.update(install_by=NOW_MS + 10_000))

        def pass_time(report: Report) -> None:
            if report.progress:
                world.clock.advance(10)

        world.limits = UpdateLimits()
        world.on_report = pass_time
        await world.work()
        assert world.told()[-1] == ("failed", "install_by_passed")
        assert world.agent.installed()["main"].sequence == 0

    async def test_a_job_that_has_begun_installing_is_finished(self) -> None:
        world = World()
        agent = world.open_trusting()
        await agent.receive_update(world.update(install_by=NOW_MS + 10_000))

        def pass_time(report: Report) -> None:
            if report.state == "installing":
                world.clock.advance(3600)

        world.on_report = pass_time
        await world.work()
        assert states(world)[-1] == "committed"

    async def test_expiry_gates_acceptance_only(self) -> None:
        world = World()
        agent = world.open_trusting()

        def pass_time(report: Report) -> None:
            if report.state == "verified":
                world.clock.advance(2 * HOUR_MS / 1000)

        world.on_report = pass_time
        await agent.receive_update(world.update())
        await world.work()
        assert states(world)[-1] == "committed"


class TestWithoutAClock:
    async def test_an_update_waits_for_a_statement(self) -> None:
        world = World(clock=FakeClock(wall_ms=None))
        agent = world.open_trusting()

        def answer() -> None:
            nonce = agent.needs_nonce()
            assert nonce is not None
            assert agent.receive_statement(world.statement(nonce)) is None

        agent._worker._request_statement = answer
        await agent.receive_update(world.update())
        with pytest.raises(RebootRequiredError):
            await agent.work()
        assert states(world) == STEPS[:-1]
        # The trial needs no time.
        world.open()
        await world.work()
        assert states(world) == STEPS

    async def test_a_statement_that_does_not_help_is_told_by_its_code(self) -> None:
        world = World(clock=FakeClock(wall_ms=None))
        agent = world.open_trusting()
        assert agent.receive_statement(world.statement(bytes(16))) == "statement_replayed"

    async def test_a_cancel_ends_the_waiting(self) -> None:
        world = World(clock=FakeClock(wall_ms=None))
        agent = world.open_trusting()
        agent._worker._request_statement = lambda: agent.cancel(deployment(1))
        await agent.receive_update(world.update())
        await agent.work()
        assert world.told() == [("cancelled", None)]


class TestTrial:
    async def test_an_unhealthy_image_is_rolled_back(self) -> None:
        world = World(is_healthy=lambda: False)
        world.open_trusting()
        await world.agent.receive_update(world.update())
        await world.work()
        assert world.told()[-1] == ("rolled_back", "boot_failed")
        assert world.agent.installed()["main"].sequence == 0

    async def test_a_health_check_that_raises_is_unhealthy(self) -> None:
        def fails() -> bool:
            raise RuntimeError("no radio")

        world = World(is_healthy=fails)
        world.open_trusting()
        await world.agent.receive_update(world.update())
        await world.work()
        assert world.told()[-1] == ("rolled_back", "boot_failed")

    async def test_an_image_that_crashes_before_it_answers_is_rolled_back_after_its_tries(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update())
        with pytest.raises(RebootRequiredError):
            await world.agent.work()
        world.open()  # the trial, which crashes
        world.open()  # and again: its tries are spent
        world.open()
        await world.work()
        assert world.told()[-1] == ("rolled_back", "boot_failed")
        assert world.agent.installed()["main"].sequence == 0

    async def test_a_device_that_does_not_restart_gives_up(self) -> None:
        world = World(limits=UpdateLimits(reboots_max=3))
        agent = world.open_trusting()
        reboots: list[str] = []

        async def nothing(component: str) -> None:
            reboots.append(component)

        world.installer._reboot = nothing
        await agent.receive_update(world.update())
        await agent.work()
        assert len(reboots) == 3
        assert world.told()[-1] == ("rolled_back", "boot_failed")

    async def test_a_failed_image_can_be_tried_again_by_another_deployment(self) -> None:
        world = World(is_healthy=lambda: False)
        world.open_trusting()
        await world.agent.receive_update(world.update())
        await world.work()
        requests = len(world.server.requests)
        world.is_healthy = lambda: True
        await world.agent.receive_update(world.update(2, sequence=101))
        await world.work()
        assert states(world, 2)[-1] == "committed"
        assert len(world.server.requests) == requests  # its bytes were still there

    async def test_a_trial_that_the_record_lost_is_begun_again(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update())

        def lose(report: Report) -> None:
            if report.state == "rebooting":
                newest = world.installer._records["main"].counter % 2
                world.flash.replace(f"main.boot.{newest}", b"damaged")
                world.installer._records["main"] = world.installer._load("main")
                assert world.installer._records["main"].trial is None

        world.on_report = lose
        await world.work()
        assert states(world) == STEPS

    async def test_a_slot_that_lost_the_image_fails(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update())

        def lose(report: Report) -> None:
            if report.state == "rebooting":
                for name in ("main.boot.0", "main.boot.1"):
                    world.flash.remove(name)
                world.installer._records["main"] = type(world.installer._records["main"])()

        world.on_report = lose
        await world.work()
        assert world.told()[-1] == ("failed", "install_failed")


class TestFailures:
    async def test_a_server_that_never_has_it_fails_the_download(self) -> None:
        world = World(limits=UpdateLimits(attempts_max=3))
        world.open_trusting()
        world.server.images.clear()
        await world.agent.receive_update(world.update())
        await world.work()
        assert world.told()[-1] == ("failed", "download_failed")
        assert world.clock.slept

    async def test_a_flash_that_keeps_other_bytes_fails_the_install(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update())

        def rot(report: Report) -> None:
            if report.state == "installing":
                world.flash.replace("main.b", b"?" + IMAGE[1:])

        world.on_report = rot
        await world.work()
        assert world.told()[-1] == ("failed", "install_failed")
        assert world.agent.installed()["main"].sequence == 0
        assert world.slots()["main.b"] == b""

    async def test_a_slot_that_cannot_be_dropped_is_no_second_failure(self) -> None:
        world = World(limits=UpdateLimits(attempts_max=1))
        world.open_trusting()
        world.server.script = [lambda request: FetchError("x")]

        async def fails(component: str) -> None:
            raise OSError(5, "Input/output error")

        world.installer.discard = fails  # type: ignore[method-assign]
        await world.agent.receive_update(world.update())
        await world.work()
        assert world.told()[-1] == ("failed", "download_failed")


class TestHello:
    def test_it_says_what_the_gateway_needs(self) -> None:
        world = World()
        agent = world.open()
        assert (agent.root_version, agent.last_directive) == (0, 0)
        assert agent.adopt_roots([root(1), root(3)]) is None
        assert agent.root_version == 3
        assert agent.alert_keys()
        assert agent.now_ms() == NOW_MS
        assert not agent.is_directive_withheld

    def test_roots_before_a_bad_one_are_adopted(self) -> None:
        world = World()
        agent = world.open()
        assert agent.adopt_roots([root(1), b"\xff", root(3)]) == "malformed"
        assert agent.root_version == 1

    def test_an_expired_root_vouches_for_no_alert(self) -> None:
        world = World()
        agent = world.open()
        agent.adopt_roots([root(expires_at=NOW_MS)])
        assert not agent.alert_keys()

    async def test_what_runs_on_trial_is_said_to_be_unconfirmed(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update())
        with pytest.raises(RebootRequiredError):
            await world.agent.work()
        world.open()
        installed = world.agent.installed()["main"]
        assert (installed.sequence, installed.is_confirmed) == (5, False)
        hello = messages.Hello(1, 32, bytes(16), installed=world.agent.installed())
        assert messages.decode_cbor(messages.encode_cbor(hello)) == hello


class TestOutbox:
    async def test_it_is_bounded_and_keeps_outcomes(self) -> None:
        world = World(limits=UpdateLimits(reports_max=8))
        world.open_trusting()
        await world.agent.receive_update(world.update())
        await world.work()
        for number in range(50, 70):
            await world.agent.receive_update(world.update(number, device="dev-2"))
        reports = world.agent.pending_reports()
        assert len(reports) == 8
        assert ("committed", None) in world.told()
        assert [r.deployment for r in reports[1:]] == [deployment(number) for number in range(63, 70)]
        world.open()
        assert list(world.agent.pending_reports()) == list(reports)

    async def test_the_same_refusal_waits_once(self) -> None:
        world = World()
        agent = world.open_trusting()
        for _ in range(5):
            assert await agent.receive_update(world.update(device="dev-2"))
        assert world.told() == [("rejected", "wrong_device")]

    async def test_every_report_is_one_of_the_contract(self) -> None:
        world = World()
        agent = world.open_trusting()
        await agent.receive_update(world.update(2, device="dev-2"))
        await agent.receive_update(world.update())
        await world.work()
        for report in world.sent:
            assert messages.decode_cbor(messages.encode_cbor(report)) == report
            assert messages.decode_json(messages.encode_json(report)) == report

    async def test_what_ended_is_remembered_within_bounds(self) -> None:
        world = World(limits=UpdateLimits(ended_max=3))
        agent = world.open_trusting()
        for number in range(1, 7):
            await agent.receive_update(world.update(number, sequence=number))
            agent.cancel(deployment(number))
        world.open()
        assert [world.agent._ledger.has_ended(deployment(number)) for number in range(1, 7)] == [
            False,
            False,
            False,
            True,
            True,
            True,
        ]


@pytest.mark.parametrize(
    "change",
    [
        {"jobs_max": 0},
        {"reports_max": 7},
        {"backoff_s": 400.0},
        {"busy_wait_s": 4000.0},
        {"progress_step_percent": 101},
    ],
)
def test_bounds_that_contradict_each_other_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        replace(UpdateLimits(), **change)  # type: ignore[arg-type]
