"""Every cell of the table, and the record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from device_sdk.errors import InstallByPassedError, MixAndMatchError, WrongDeviceError
from device_sdk.update.ports import Image
from device_sdk.update.procedure import (
    TRANSITIONS,
    Event,
    Job,
    Step,
    is_cancellable,
    is_final,
    step_after,
)
from device_sdk.wire.messages import REPORT_STATES
from tests.unit.device_sdk.update.test_counter import BASE

JOB = Job.of(replace(BASE, install_by=100, digest=b"1" * 32))
FINAL = {Step.COMMITTED, Step.ROLLED_BACK, Step.FAILED, Step.REJECTED, Step.CANCELLED}
IMAGE = Image(digest=b"i" * 32, size=3, manifest_digest=b"m" * 32, sequence=4, version="v")


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("event", Event)
def test_every_step_answers_every_event(step: Step, event: Event) -> None:
    if event in TRANSITIONS[step]:
        assert step_after(step, event) is TRANSITIONS[step][event]
    else:
        with pytest.raises(AssertionError):
            step_after(step, event)


def test_every_step_is_in_the_table_and_every_one_but_idle_is_a_report_s_state() -> None:
    assert set(TRANSITIONS) == set(Step)
    assert {step.value for step in Step} - {"idle"} == set(REPORT_STATES)


def test_nothing_follows_an_outcome_and_every_other_step_leads_to_one() -> None:
    assert {step for step in Step if is_final(step)} == FINAL
    for step in set(Step) - FINAL:
        seen, todo = set(), [step]
        while todo:
            found = todo.pop()
            seen.add(found)
            todo += [after for after in TRANSITIONS[found].values() if after not in seen]
        assert seen & FINAL


def test_a_deployment_is_taken_back_up_to_downloading() -> None:
    assert {step for step in Step if is_cancellable(step)} == {
        Step.IDLE,
        Step.RECEIVED,
        Step.VERIFIED,
        Step.DOWNLOADING,
    }


def test_only_a_trial_that_was_started_is_committed_or_the_image_ran_already() -> None:
    assert {step for step in Step if Event.COMMIT in TRANSITIONS[step]} == {Step.VERIFIED, Step.REBOOTING}


def test_a_step_counts_its_report() -> None:
    assert (JOB.step, JOB.report_seq) == (Step.RECEIVED, 0)
    after = JOB.after(Event.VERIFY)
    assert (after.step, after.report_seq) == (Step.VERIFIED, 1)


@pytest.mark.parametrize("job", [JOB, replace(JOB, step=Step.INSTALLING, image=IMAGE, uri="/x", reboots=2)])
def test_a_job_is_read_as_it_was_stored(job: Job) -> None:
    assert Job.from_record(job.to_record()) == job


def test_a_member_of_a_later_version_is_passed_over() -> None:
    assert Job.from_record({**JOB.to_record(), "later": 1}) == JOB


@pytest.mark.parametrize(("now_ms", "is_late"), [(99, False), (100, True)])
def test_install_by_is_exclusive(now_ms: int, is_late: bool) -> None:
    if is_late:
        with pytest.raises(InstallByPassedError):
            JOB.check_install_by(now_ms)
    else:
        JOB.check_install_by(now_ms)


class TestRenewal:
    newer = replace(BASE, sequence=2, expires_at=7, install_by=8, digest=b"2" * 32)

    def test_it_changes_the_terms_and_nothing_else(self) -> None:
        job = replace(JOB, step=Step.DOWNLOADING, report_seq=3)
        job.check_renewal(self.newer)
        renewed = job.renewed(self.newer)
        assert (renewed.sequence, renewed.expires_at, renewed.install_by) == (2, 7, 8)
        assert (
            replace(
                renewed, sequence=1, expires_at=job.expires_at, install_by=job.install_by, digest=job.digest
            )
            == job
        )

    def test_one_about_another_release_is_refused(self) -> None:
        with pytest.raises(MixAndMatchError):
            JOB.check_renewal(replace(self.newer, manifest_digest=b"x" * 32))

    def test_one_of_another_enrolment_is_refused(self) -> None:
        with pytest.raises(WrongDeviceError):
            JOB.check_renewal(replace(self.newer, enrolment=b"x" * 16))
