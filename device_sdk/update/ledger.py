"""The deployments a device holds and those that have ended, with their reports: durable, in one commit each.

Whatever changes here is stored before it is true in memory, and the report that tells of it is in the same
commit: none is lost and none tells what did not happen. What makes a deployment move is ``worker`` and
``agent``.

Keys in the state store: ``update/job/<deployment>``, ``update/envelope/<deployment>`` (until the manifest
is verified), ``update/ended``, and those of ``outbox``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from device_sdk.errors import UpdateError
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.outbox import Outbox
from device_sdk.update.ports import StateStore
from device_sdk.update.procedure import Event, Job, Step, is_cancellable, is_final, step_after
from device_sdk.wire.errors import WireError
from device_sdk.wire.limits import DETAIL_LEN_MAX
from device_sdk.wire.messages import Report
from device_sdk.wire.signed.seal import ID_SIZE

log = logging.getLogger(__name__)

_JOB: Final = "update/job/"
_ENVELOPE: Final = "update/envelope/"
_ENDED: Final = "update/ended"
_PROGRESS_SEQS: Final = 128  # numbers set aside for progress by one commit
SUPERSEDED: Final = "superseded"

Changes = Mapping[str, object | None]
NO_CHANGES: Final[Changes] = {}


class Ended(NamedTuple):
    """What is remembered of a deployment after its end."""

    step: Step
    report_seq: int


class Ledger:
    """Jobs, ends and reports of one device.

    Args:
        random: Returns as many random bytes as it is asked for: ids of reports.
        send_report: Called with each report once it is stored, best effort.
    """

    def __init__(
        self,
        state: StateStore,
        *,
        random: Callable[[int], bytes],
        send_report: Callable[[Report], None],
        limits: UpdateLimits,
    ) -> None:
        self._state = state
        self._random = random
        self._send_report = send_report
        self._limits = limits
        self.outbox = Outbox(state, reports_max=limits.reports_max)
        jobs = (Job.from_record(record) for _, record in state.items(_JOB))
        self._jobs = {job.deployment: job for job in jobs}
        self._ended = _load_ended(state)
        self._progress_seqs: dict[bytes, range] = {}  # set aside in this boot and not used yet

    # --- reading ---

    def in_turn(self) -> list[Job]:
        """Return the jobs that are held: what cannot be taken back first, then by directive."""
        return sorted(self._jobs.values(), key=lambda job: (is_cancellable(job.step), job.sequence))

    def job(self, deployment: bytes) -> Job | None:
        """Return the job as it is now, or None if it is not held."""
        return self._jobs.get(deployment)

    def has_ended(self, deployment: bytes) -> bool:
        """Return whether ``deployment`` was held and has ended."""
        return deployment in self._ended

    def held(self) -> dict[bytes, bytes]:
        """Return the deployments that are held, and the digest of each one's directive."""
        return {job.deployment: job.digest for job in self._jobs.values()}

    def envelope(self, job: Job) -> bytes:
        """Return the envelope that came with ``job``, which is not verified yet."""
        envelope = self._state.get(_envelope_key(job))
        assert isinstance(envelope, bytes), "stored with the job"
        return envelope

    # --- moving ---

    def hold(self, job: Job, envelope: bytes, *, superseded: Sequence[Job], changes: Changes) -> bool:
        """Store a new ``job``, and in the same commit the end of those it supersedes (PROTOCOL §6.5).

        Returns:
            False at ``jobs_max``: nothing is changed.
        """
        if len(self._jobs) - len(superseded) >= self._limits.jobs_max:
            return False
        ended = dict(self._ended)
        reports = []
        all_changes = {_job_key(job): job.to_record(), _envelope_key(job): envelope, **changes}
        for old in superseded:
            after = old.after(Event.CANCEL)
            all_changes |= {_job_key(old): None, _envelope_key(old): None}
            ended[old.deployment] = Ended(after.step, after.report_seq)
            reports.append(self._report(after, code=SUPERSEDED))
        ended = self._newest(ended)
        if superseded:
            all_changes[_ENDED] = _ended_record(ended)
        self._commit(all_changes, reports)
        self._ended = ended
        for old in superseded:
            del self._jobs[old.deployment]
        self._jobs[job.deployment] = job
        self._send(reports)
        return True

    def renew(self, job: Job, envelope: bytes, *, changes: Changes) -> None:
        """Store ``job``, which has a newer directive; its envelope counts while it is unread."""
        envelopes = {_envelope_key(job): envelope} if job.step is Step.RECEIVED else {}
        self._commit({_job_key(job): job.to_record(), **envelopes, **changes}, [])
        self._jobs[job.deployment] = job

    def count(self, changes: Changes) -> None:
        """Store ``changes`` of the trust state that concern no job."""
        self._commit(changes, [])

    def step(self, job: Job, changes: Changes = NO_CHANGES) -> None:
        """Store ``job``, which made a step, with its report."""
        verified = {_envelope_key(job): None} if job.step is Step.VERIFIED else {}
        report = self._report(job)
        self._commit({_job_key(job): job.to_record(), **verified, **changes}, [report])
        self._jobs[job.deployment] = job
        self._send([report])

    def keep(self, job: Job) -> None:
        """Store ``job``, which made no step."""
        self._commit({_job_key(job): job.to_record()}, [])
        self._jobs[job.deployment] = job

    def end(
        self,
        job: Job,
        event: Event,
        *,
        error: WireError | UpdateError | None = None,
        code: str | None = None,
        changes: Changes = NO_CHANGES,
    ) -> None:
        """End ``job``: its outcome, its report and ``changes`` in one commit."""
        after = job.after(event)
        assert is_final(after.step), "others are steps"
        ended = self._newest({**self._ended, job.deployment: Ended(after.step, after.report_seq)})
        if error is not None:
            log.warning("deployment %s is %s: %s: %s", job.deployment.hex(), after.step, error.code, error)
        report = self._report(after, code=error.code if error else code, detail=_detail(error))
        self._commit(
            {_job_key(job): None, _envelope_key(job): None, _ENDED: _ended_record(ended), **changes},
            [report],
        )
        self._ended = ended
        del self._jobs[job.deployment]
        self._send([report])

    # --- telling ---

    def refuse(self, deployment: bytes, error: WireError | UpdateError) -> None:
        """Report that a message about ``deployment`` is refused.

        Whoever sent it may name any deployment: one that is held or has ended stays what it is, and only
        the attempt is told.
        """
        log.warning("an update for %s is refused: %s: %s", deployment.hex(), error.code, error)
        job = self._jobs.get(deployment)
        if job is not None:
            self.note(job, error.code)
        elif deployment in self._ended:
            self.repeat_outcome(deployment, code=error.code)
        else:
            self._tell_unheld(deployment, Event.REFUSE, code=error.code, detail=_detail(error))

    def cancel_unheld(self, deployment: bytes) -> None:
        """Answer a cancel of a deployment that the device does not hold."""
        if deployment in self._ended:
            self.repeat_outcome(deployment)
        else:
            self._tell_unheld(deployment, Event.CANCEL)

    def note(self, job: Job, code: str) -> None:
        """Report something about ``job`` that does not move it."""
        if self.outbox.has(job.deployment, state=job.step.value, code=code):
            return
        noted = replace(job, report_seq=job.report_seq + 1)
        report = self._report(noted, code=code)
        self._commit({_job_key(job): noted.to_record()}, [report])
        self._jobs[job.deployment] = noted
        self._send([report])

    def repeat_outcome(self, deployment: bytes, code: str | None = None) -> None:
        """Say again how a deployment ended: who asks has not heard it."""
        step, report_seq = self._ended[deployment]
        if self.outbox.has(deployment, state=step.value):
            return
        ended = {**self._ended, deployment: Ended(step, report_seq + 1)}
        report = self._make(deployment, report_seq + 1, step, code=code)
        self._commit({_ENDED: _ended_record(ended)}, [report])
        self._ended = ended
        self._send([report])

    def progress(self, job: Job, percent: int) -> None:
        """Report how far the download of ``job`` is; progress is sent and not stored."""
        seqs = self._progress_seqs.get(job.deployment)
        if not seqs or seqs[-1] != job.report_seq:
            # Numbers are set aside durably: after a crash the next report must not have an older one.
            seqs = range(job.report_seq + 1, job.report_seq + 1 + _PROGRESS_SEQS)
            self.keep(replace(job, report_seq=seqs[-1]))
        self._progress_seqs = {job.deployment: seqs[1:]}
        report = replace(self._make(job.deployment, seqs[0], job.step), progress=percent)
        self.outbox.add_progress(report)
        self._send([report])

    # --- all of it ---

    def _tell_unheld(
        self, deployment: bytes, event: Event, *, code: str | None = None, detail: str | None = None
    ) -> None:
        step = step_after(Step.IDLE, event)
        if not self.outbox.has(deployment, state=step.value, code=code):
            report = self._make(deployment, 1, step, code=code, detail=detail)
            self._commit({}, [report])
            self._send([report])

    def _report(self, job: Job, *, code: str | None = None, detail: str | None = None) -> Report:
        return self._make(job.deployment, job.report_seq, job.step, code=code, detail=detail)

    def _make(
        self,
        deployment: bytes,
        seq: int,
        step: Step,
        *,
        code: str | None = None,
        detail: str | None = None,
    ) -> Report:
        return Report(
            id=self._random(ID_SIZE),
            deployment=deployment,
            seq=seq,
            state=step.value,
            code=code,
            detail=detail,
        )

    def _commit(self, changes: Changes, reports: Sequence[Report]) -> None:
        """Store ``changes`` with ``reports``, all or nothing."""
        staged = self.outbox.stage(reports)
        self._state.commit({**changes, **staged.changes})
        self.outbox.apply(staged)

    def _send(self, reports: Sequence[Report]) -> None:
        """Send ``reports``, best effort, and last: whoever is told may call back."""
        for report in reports:
            self._send_report(report)

    def _newest(self, ended: Mapping[bytes, Ended]) -> dict[bytes, Ended]:
        return dict(list(ended.items())[-self._limits.ended_max :])


def _detail(error: Exception | None) -> str | None:
    return str(error)[:DETAIL_LEN_MAX] or None if error is not None else None


def _job_key(job: Job) -> str:
    return f"{_JOB}{job.deployment.hex()}"


def _envelope_key(job: Job) -> str:
    return f"{_ENVELOPE}{job.deployment.hex()}"


def _ended_record(ended: Mapping[bytes, Ended]) -> list[object]:
    return [[deployment, end.step.value, end.report_seq] for deployment, end in ended.items()]


def _load_ended(state: StateStore) -> dict[bytes, Ended]:
    record = state.get(_ENDED)
    if record is None:
        return {}
    assert isinstance(record, list), "written by _ended_record"
    return {deployment: Ended(Step(step), seq) for deployment, step, seq in record}
