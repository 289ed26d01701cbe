"""The update agent: what an update, a cancel, a statement and a report's receipt do, and the loop that works.

Everything a message changes is decided without an ``await`` and stored in one commit before the method
returns, so the client may acknowledge then. ``run`` takes the jobs that are held, one at a time, step by
step (``procedure``); each step is stored before it is acted on, and resumes from disk after a crash.

Keys in the state store: ``update/job/<deployment>``, ``update/envelope/<deployment>`` (until verified),
``update/etag/<component>``, ``update/ended``, and those of ``outbox`` and ``trust``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from device_sdk.errors import BootFailedError, ClockUnknownError, InstallFailedError, UpdateError
from device_sdk.update.acceptance import (
    Target,
    accept_manifest,
    authentic_directive,
    judge_directive,
)
from device_sdk.update.counter import Counter, Verdict
from device_sdk.update.download import Download
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.outbox import Outbox
from device_sdk.update.ports import Boot, DeviceClock, Fetch, Installer, StateStore
from device_sdk.update.procedure import Event, Job, Step, is_cancellable, is_final, step_after
from device_sdk.update.trust import NO_KEYS, TrustState
from device_sdk.wire.cose import Keys
from device_sdk.wire.errors import WireError
from device_sdk.wire.keys import PublicKey, Role
from device_sdk.wire.limits import DETAIL_LEN_MAX
from device_sdk.wire.messages import Installed, Recorded, Report, Update
from device_sdk.wire.signed import Directive
from device_sdk.wire.signed.seal import ID_SIZE

log = logging.getLogger(__name__)

_JOB: Final = "update/job/"
_ENVELOPE: Final = "update/envelope/"
_ETAG: Final = "update/etag/"
_ENDED: Final = "update/ended"
_PROGRESS_SEQS: Final = 128  # numbers set aside for progress by one commit
TOO_LATE: Final = "too_late"
SUPERSEDED: Final = "superseded"
CANCELLED: Final = "cancelled"


class Ended(NamedTuple):
    """What is remembered of a deployment after its end."""

    step: Step
    report_seq: int


class UpdateAgent:
    """The updates of one device, from notice to confirmation.

    Args:
        state: Durable state; this agent owns the keys under ``trust/`` and ``update/``.
        fleet, device_id: As provisioned.
        anchors: The release or root keys that the device was provisioned with.
        vendor, device_class, device_uuid: UUIDs, 16 bytes, that manifests are matched with.
        installer, fetch, clock: See ``ports``.
        send_report: Called with each report as it comes about, after it is stored; best effort, for a
            client that is connected. ``pending_reports`` is what counts.
        limits: Bounds.
        random: Returns as many random bytes as it is asked for.
        enrolment: The device's enrolment id, 16 bytes, if it was told; directives for another one are
            refused then.
        build_time_ms: No earlier time is believed.
        request_statement: Called when an update waits for a statement: the client says hello again.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        fleet: str,
        device_id: str,
        anchors: Sequence[PublicKey],
        vendor: bytes,
        device_class: bytes,
        installer: Installer,
        fetch: Fetch,
        clock: DeviceClock,
        send_report: Callable[[Report], None],
        limits: UpdateLimits | None = None,
        device_uuid: bytes | None = None,
        random: Callable[[int], bytes] = os.urandom,
        enrolment: bytes | None = None,
        build_time_ms: int = 0,
        request_statement: Callable[[], None] = lambda: None,
    ) -> None:
        self._limits = limits or UpdateLimits()
        self._state = state
        self._target = Target(
            fleet=fleet,
            device_id=device_id,
            vendor=vendor,
            device_class=device_class,
            device_uuid=device_uuid,
            enrolment=enrolment,
        )
        self._trust = TrustState(
            state,
            fleet=fleet,
            device_id=device_id,
            anchors=anchors,
            clock=clock,
            random=random,
            limits=self._limits,
            build_time_ms=build_time_ms,
        )
        self._installer = installer
        self._fetch = fetch
        self._clock = clock
        self._random = random
        self._send_report = send_report
        self._request_statement = request_statement
        self._outbox = Outbox(state, reports_max=self._limits.reports_max)
        self._jobs = {job.deployment: job for job in map(_job, state.items(_JOB))}
        self._ended = _load_ended(state)
        self._work = asyncio.Event()
        self._statement_came = asyncio.Event()
        self._activity: asyncio.Task[None] | None = None
        self._active: bytes | None = None
        self._progress = _Progress()

    # --- what the device says of itself ---

    @property
    def root_version(self) -> int:
        """The version of the root document in force, for hello."""
        return self._trust.root_version

    @property
    def last_directive(self) -> int:
        """The sequence of the newest directive that was taken, for hello."""
        return self._trust.counter.sequence

    @property
    def is_directive_withheld(self) -> bool:
        """Whether the last statement named a newer directive than any that has come."""
        return self._trust.is_directive_withheld

    @property
    def jobs(self) -> Sequence[Job]:
        """The deployments that are held, the one in hand first."""
        return sorted(self._jobs.values(), key=_turn)

    def installed(self) -> Mapping[str, Installed]:
        """Return what each component runs, for hello: the evidence that outlives a lost report."""
        return self._installer.running()

    def now_ms(self) -> int:
        """Return the time that the device goes by, milliseconds UTC."""
        return self._trust.now_ms()

    # --- trust ---

    def adopt_roots(self, roots: Sequence[bytes]) -> str | None:
        """Adopt root documents, oldest first; return the code of the first that is refused, else None.

        Those before a refused one are in force, those behind it are not looked at.
        """
        for data in roots:
            try:
                self._trust.adopt_root(data)
            except (WireError, UpdateError) as error:
                log.warning("a root document is refused: %s: %s", error.code, error)
                return error.code
        self._work.set()
        return None

    def alert_keys(self) -> Keys:
        """Return the keys that vouch for alerts; none before the first root document or past its time.

        While there are none, no alert can be told from a forgery: leave them unacknowledged.
        """
        try:
            return self._trust.keys_of(Role.ALERT)
        except UpdateError:
            return NO_KEYS

    def needs_nonce(self) -> bytes | None:
        """Return the nonce for the next hello, None while no statement is needed (PROTOCOL §7.5)."""
        return self._trust.nonce()

    def receive_statement(self, body: bytes, nonce: bytes | None = None) -> str | None:
        """Take a statement; return the code if it is refused, else None.

        Args:
            nonce: What the client sent, for its records; the nonce outstanding is what counts.
        """
        try:
            statement = self._trust.receive_statement(body)
        except (WireError, UpdateError) as error:
            log.warning("a statement is refused: %s: %s", error.code, error)
            return error.code
        if self._trust.is_directive_withheld:
            log.info(
                "directive %d has not come, the last was %d",
                statement.latest_directive,
                self.last_directive,
            )
        if self._trust.is_root_withheld:
            log.info("root document %d has not come", statement.root_version)
        self._statement_came.set()
        return None

    # --- messages ---

    async def receive_update(self, update: Update) -> bool:
        """Take an update; True once it needs no redelivery: it is held, or its refusal will be reported.

        The manifest is not read yet: ``run`` does when its turn comes, and a refusal then is a report.
        False: there is no room; it comes again.
        """
        try:
            directive = authentic_directive(update, self._trust, self._target)
            held = {job.deployment: job.digest for job in self._jobs.values()}
            verdict = judge_directive(directive, self._trust, held)
            if verdict is Verdict.RENEWAL:
                self._jobs[directive.deployment].check_renewal(directive)
        except (WireError, UpdateError) as error:
            self._refuse_message(update.deployment, error)
            return True
        match verdict:
            case Verdict.SAME:
                return True
            case Verdict.RENEWAL:
                self._renew(directive, update.manifest)
                return True
            case Verdict.NEW if directive.deployment in self._ended:
                self._count(directive)
                self._repeat_outcome(directive.deployment)
                return True
            case Verdict.NEW:
                return self._hold(directive, update.manifest)

    def cancel(self, deployment: bytes) -> None:
        """Take a deployment back if it is not installing; the answer is a report (PROTOCOL §6.5)."""
        job = self._jobs.get(deployment)
        if job is None:
            if deployment in self._ended:
                self._repeat_outcome(deployment)
            elif not self._outbox.has(deployment, state=Step.CANCELLED.value, code=None):
                self._commit({}, [self._report(deployment, 1, Step.CANCELLED)])
        elif is_cancellable(job.step):
            self._end(job, Event.CANCEL)
            self._drop_activity(deployment)
        else:
            self._note(job, TOO_LATE)

    def pending_reports(self) -> Sequence[Report]:
        """Return the reports that are not recorded, oldest first."""
        return self._outbox.pending()

    def recorded(self, recorded: Recorded) -> None:
        """Stop repeating a report; a deployment that the gateway ended is dropped while it can be."""
        report = self._outbox.recorded(recorded.id)
        if report is None or recorded.status != "refused":
            return
        job = self._jobs.get(report.deployment)
        if job is not None and recorded.code in (CANCELLED, SUPERSEDED) and is_cancellable(job.step):
            self._end(job, Event.CANCEL, code=recorded.code)
            self._drop_activity(report.deployment)

    # --- the loop ---

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            RebootRequiredError: The process has to be started again; the procedure goes on then.
            Whatever the state store raises: nothing can be stored, so nothing is done.
        """
        while True:
            await self.work()
            self._work.clear()
            await self._work.wait()

    async def work(self) -> None:
        """Take every job that is held to its end; as ``run``, but it returns then."""
        while self._jobs:
            job = self.jobs[0]
            self._active = job.deployment
            self._activity = asyncio.create_task(
                self._take_step(job), name=f"update[{job.deployment.hex()}].{job.step}"
            )
            try:
                await self._activity
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if job.deployment in self._jobs or (task is not None and task.cancelling()):
                    raise
            finally:
                self._activity = self._active = None

    async def _take_step(self, job: Job) -> None:
        try:
            match job.step:
                case Step.RECEIVED:
                    await self._verify(job)
                case Step.VERIFIED:
                    self._start(job)
                case Step.DOWNLOADING:
                    await self._download(job)
                case Step.INSTALLING:
                    await self._install(job)
                case Step.REBOOTING:
                    await self._try_out(job)
                case _:
                    raise AssertionError(f"{job.step} is not held")
        except (WireError, UpdateError) as error:
            # The record as it is now: a renewal may have come while this step worked.
            current = self._jobs[job.deployment]
            event = Event.REFUSE if current.step is Step.RECEIVED else Event.FAIL
            if current.step is not Step.RECEIVED:
                await self._discard(current.component)
            self._end(current, event, error=error)

    async def _verify(self, job: Job) -> None:
        await self._await_time()
        job = self._jobs[job.deployment]  # it may have been renewed meanwhile
        envelope = self._state.get(_envelope_key(job))
        assert isinstance(envelope, bytes), "stored with the job"
        accepted = accept_manifest(
            envelope,
            manifest_digest=job.manifest_digest,
            component=job.component,
            expires_at=job.expires_at,
            trust=self._trust,
            target=self._target,
            installer=self._installer,
            limits=self._limits,
        )
        verified = replace(job.after(Event.VERIFY), image=accepted.image, uri=accepted.uri)
        self._store(verified, {_envelope_key(job): None})

    def _start(self, job: Job) -> None:
        running = self._installer.running().get(job.component)
        if running is not None and running.is_confirmed and running.digest == job.manifest_digest:
            self._end(job, Event.COMMIT)
        else:
            self._store(job.after(Event.DOWNLOAD))

    async def _download(self, job: Job) -> None:
        assert job.image is not None, "known from VERIFIED on"
        key = f"{_ETAG}{job.component}"
        etag = None
        match self._state.get(key):
            case [bytes(digest), str(stored)] if digest == job.image.digest:
                etag = stored

        def keep_etag(etag: str | None) -> None:
            assert job.image is not None, "known from VERIFIED on"
            self._state.commit({key: None if etag is None else [job.image.digest, etag]})

        self._progress = _Progress()
        download = Download(
            image=job.image,
            uri=job.uri,
            component=job.component,
            installer=self._installer,
            fetch=self._fetch,
            clock=self._clock,
            limits=self._limits,
            uniform=self._uniform,
            etag=etag,
            keep_etag=keep_etag,
            report_progress=lambda size: self._report_progress(job.deployment, size),
            check_time=lambda: self._check_install_by(job.deployment),
        )
        with _blamed_on_installer():
            await download.run()
        await self._await_time()
        self._check_install_by(job.deployment)  # gates the start of installing (PROTOCOL §7.3)
        self._store(self._jobs[job.deployment].after(Event.INSTALL), {key: None})

    async def _install(self, job: Job) -> None:
        assert job.image is not None, "known from VERIFIED on"
        with _blamed_on_installer():
            # Whatever it is further than: the device lost its power between a boot record and our own.
            if self._installer.boot(job.component, job.image) is Boot.ABSENT:
                await self._installer.seal(job.component, job.image)
            if self._installer.boot(job.component, job.image) is Boot.WRITTEN:
                await self._installer.activate(job.component, job.image)
        self._store(self._jobs[job.deployment].after(Event.REBOOT))

    async def _try_out(self, job: Job) -> None:
        component, image = job.component, job.image
        assert image is not None, "known from VERIFIED on"
        match self._installer.boot(component, image):
            case Boot.WRITTEN:
                await self._installer.activate(component, image)
            case Boot.PENDING if job.reboots >= self._limits.reboots_max:
                await self._installer.roll_back(component, image)
            case Boot.PENDING:
                # Counted before: a device that cannot restart must not try for ever.
                self._jobs[job.deployment] = self._stored(
                    replace(self._jobs[job.deployment], reboots=job.reboots + 1)
                )
                await self._installer.reboot(component)
            case Boot.TRIAL if await self._is_healthy(component):
                await self._installer.confirm(component, image)
            case Boot.TRIAL:
                await self._installer.roll_back(component, image)
            case Boot.CONDEMNED:
                await self._installer.reboot(component)
            case Boot.CONFIRMED:
                self._end(self._jobs[job.deployment], Event.COMMIT)
            case Boot.ROLLED_BACK:
                error = BootFailedError("the new image did not confirm itself")
                self._end(self._jobs[job.deployment], Event.ROLL_BACK, error=error)
            case Boot.ABSENT:
                raise InstallFailedError("the slot lost the image")

    async def _is_healthy(self, component: str) -> bool:
        try:
            async with asyncio.timeout(self._limits.health_timeout_s):
                return await self._installer.is_healthy(component)
        except Exception:
            log.exception("the health check of %s failed", component)
            return False

    async def _discard(self, component: str) -> None:
        try:
            await self._installer.discard(component)
        except (UpdateError, OSError):
            log.exception("what was written of %s could not be dropped", component)

    async def _await_time(self) -> None:
        """Return once the time is known.

        Raises:
            ClockUnknownError: No statement came in ``statement_wait_s``.
        """
        deadline = self._clock.monotonic() + self._limits.statement_wait_s
        while True:
            self._statement_came.clear()
            try:
                self._trust.fresh_now_ms()
                return
            except ClockUnknownError:
                left_s = deadline - self._clock.monotonic()
                if left_s <= 0:
                    raise
            self._request_statement()
            await self._wait(self._statement_came, left_s)

    async def _wait(self, event: asyncio.Event, delay_s: float) -> None:
        """Return once ``event`` is set or ``delay_s`` are over on the device's clock."""
        waits = [
            asyncio.create_task(event.wait(), name="update.statement"),
            asyncio.create_task(self._clock.sleep(delay_s), name="update.statement_deadline"),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _check_install_by(self, deployment: bytes) -> None:
        self._jobs[deployment].check_install_by(self._trust.now_ms())

    # --- jobs ---

    def _hold(self, directive: Directive, envelope: bytes) -> bool:
        """Store a new deployment; what it supersedes ends in the same commit (PROTOCOL §6.5)."""
        is_other_enrolment = directive.enrolment != self._trust.counter.enrolment
        superseded = [
            job
            for job in self._jobs.values()
            if is_cancellable(job.step) and (job.component == directive.component or is_other_enrolment)
        ]
        if len(self._jobs) - len(superseded) >= self._limits.jobs_max:
            log.warning("no room for another deployment")
            return False
        job = Job.of(directive)
        changes: dict[str, object | None] = {_job_key(job): job.to_record(), _envelope_key(job): envelope}
        self._take(directive, changes, superseded)
        self._jobs[job.deployment] = job
        self._work.set()
        return True

    def _renew(self, directive: Directive, envelope: bytes) -> None:
        """Go on with the job in hand under a newer directive."""
        job = self._jobs[directive.deployment].renewed(directive)
        changes: dict[str, object | None] = {_job_key(job): job.to_record()}
        if job.step is Step.RECEIVED:
            changes[_envelope_key(job)] = envelope
        self._take(directive, changes)
        self._jobs[job.deployment] = job

    def _count(self, directive: Directive) -> None:
        """Count a directive for a deployment that has ended; nothing is done again."""
        self._take(directive, {})

    def _take(
        self, directive: Directive, changes: dict[str, object | None], superseded: Sequence[Job] = ()
    ) -> None:
        """Count ``directive`` in one commit with ``changes`` and with the end of ``superseded`` jobs."""
        counter = Counter.of(directive)
        reports = []
        ended = dict(self._ended)
        for job in superseded:
            after = job.after(Event.CANCEL)
            changes |= {_job_key(job): None, _envelope_key(job): None}
            ended[job.deployment] = Ended(after.step, after.report_seq)
            reports.append(self._report(job.deployment, after.report_seq, after.step, code=SUPERSEDED))
        ended = self._newest(ended)
        if superseded:
            changes[_ENDED] = _ended_record(ended)
        self._commit({**changes, **self._trust.counter_change(counter)}, reports)
        self._trust.take_counter(counter)
        self._ended = ended
        for job in superseded:
            del self._jobs[job.deployment]
            self._drop_activity(job.deployment)

    def _store(self, job: Job, changes: Mapping[str, object | None] | None = None) -> None:
        """Store ``job``, which made a step, with its report."""
        self._commit(
            {_job_key(job): job.to_record(), **(changes or {})},
            [self._report(job.deployment, job.report_seq, job.step)],
        )
        self._jobs[job.deployment] = job

    def _stored(self, job: Job) -> Job:
        """Store ``job``, which made no step, and return it."""
        self._state.commit({_job_key(job): job.to_record()})
        return job

    def _end(
        self,
        job: Job,
        event: Event,
        *,
        error: WireError | UpdateError | None = None,
        code: str | None = None,
    ) -> None:
        """End ``job``: its outcome, its floor and its report in one commit."""
        after = job.after(event)
        assert is_final(after.step), "the others are stored"
        ended = self._newest({**self._ended, job.deployment: Ended(after.step, after.report_seq)})
        changes: dict[str, object | None] = {
            _job_key(job): None,
            _envelope_key(job): None,
            _ENDED: _ended_record(ended),
        }
        if after.step is Step.COMMITTED:
            assert job.image is not None, "known from VERIFIED on"
            # The floor rises here and nowhere else (PROTOCOL §7.1).
            changes |= self._trust.floor_change(
                job.component, self._target.device_class, job.image.sequence, job.image.manifest_digest
            )
        if error is not None:
            log.warning("deployment %s is %s: %s: %s", job.deployment.hex(), after.step, error.code, error)
            code = error.code
        report = self._report(
            job.deployment, after.report_seq, after.step, code=code, detail=str(error) if error else None
        )
        self._commit(changes, [report])
        self._ended = ended
        del self._jobs[job.deployment]

    def _drop_activity(self, deployment: bytes) -> None:
        """Stop working on ``deployment``, which is not held any more."""
        if self._active == deployment and self._activity is not None:
            self._activity.cancel()

    def _newest(self, ended: Mapping[bytes, Ended]) -> dict[bytes, Ended]:
        return dict(list(ended.items())[-self._limits.ended_max :])

    # --- reports ---

    def _refuse_message(self, deployment: bytes, error: WireError | UpdateError) -> None:
        """Report that a message about ``deployment`` is refused.

        Whoever sent it may name any deployment: one that is held or has ended stays what it is, and only
        the attempt is told.
        """
        log.warning("an update for %s is refused: %s: %s", deployment.hex(), error.code, error)
        job = self._jobs.get(deployment)
        if job is not None:
            self._note(job, error.code)
        elif deployment in self._ended:
            self._repeat_outcome(deployment, code=error.code)
        else:
            step = step_after(Step.IDLE, Event.REFUSE)
            if not self._outbox.has(deployment, state=step.value, code=error.code):
                self._commit({}, [self._report(deployment, 1, step, code=error.code, detail=str(error))])

    def _note(self, job: Job, code: str) -> None:
        """Report something about a job that does not move it."""
        if self._outbox.has(job.deployment, state=job.step.value, code=code):
            return
        noted = replace(job, report_seq=job.report_seq + 1)
        report = self._report(job.deployment, noted.report_seq, job.step, code=code)
        self._commit({_job_key(job): noted.to_record()}, [report])
        self._jobs[job.deployment] = noted

    def _repeat_outcome(self, deployment: bytes, code: str | None = None) -> None:
        """Say again how a deployment ended: who asks has not heard it."""
        step, report_seq = self._ended[deployment]
        if any(report.deployment == deployment and report.state == step for report in self.pending_reports()):
            return
        ended = {**self._ended, deployment: Ended(step, report_seq + 1)}
        self._commit(
            {_ENDED: _ended_record(ended)}, [self._report(deployment, report_seq + 1, step, code=code)]
        )
        self._ended = ended

    def _report_progress(self, deployment: bytes, size: int) -> None:
        """Report how far a download is, once in a while; progress is not stored."""
        job = self._jobs[deployment]
        assert job.image is not None, "known from VERIFIED on"
        percent = 100 * size // max(1, job.image.size)
        progress = self._progress
        now = self._clock.monotonic()
        if (
            percent - progress.percent < self._limits.progress_step_percent
            or now - progress.at < self._limits.progress_interval_s
        ):
            return
        if progress.seq == progress.seq_end:
            # Numbers are set aside durably: after a crash the next report must not have an older one.
            progress.seq, progress.seq_end = job.report_seq, job.report_seq + _PROGRESS_SEQS
            self._jobs[deployment] = self._stored(replace(job, report_seq=progress.seq_end))
        progress.seq += 1
        progress.percent, progress.at = percent, now
        report = self._report(deployment, progress.seq, job.step, progress=percent)
        self._outbox.add_progress(report)
        self._send_report(report)

    def _report(
        self,
        deployment: bytes,
        seq: int,
        step: Step,
        *,
        code: str | None = None,
        detail: str | None = None,
        progress: int | None = None,
    ) -> Report:
        return Report(
            id=self._random(ID_SIZE),
            deployment=deployment,
            seq=seq,
            state=step.value,
            progress=progress,
            code=code,
            detail=detail[:DETAIL_LEN_MAX] if detail else None,
        )

    def _commit(self, changes: Mapping[str, object | None], reports: Sequence[Report]) -> None:
        """Store ``changes`` with ``reports``, all or nothing; then send the reports, best effort."""
        staged = self._outbox.stage(reports)
        self._state.commit({**changes, **staged.changes})
        self._outbox.apply(staged)
        for report in reports:
            self._send_report(report)

    def _uniform(self) -> float:
        return (int.from_bytes(self._random(7), "big") >> 3) / 2**53


class _Progress:
    """What was last said about the download in hand."""

    def __init__(self) -> None:
        self.percent = 0
        self.at = float("-inf")
        self.seq = self.seq_end = 0


@contextlib.contextmanager
def _blamed_on_installer() -> Iterator[None]:
    """Turn what an installer raises, OSError and the like, into the update's failure."""
    try:
        yield
    except (UpdateError, WireError):
        raise
    except OSError as error:
        raise InstallFailedError(str(error)) from error


def _turn(job: Job) -> tuple[bool, int]:
    """Return the place in the queue: what cannot be taken back first, then by directive."""
    return is_cancellable(job.step), job.sequence


def _job_key(job: Job) -> str:
    return f"{_JOB}{job.deployment.hex()}"


def _envelope_key(job: Job) -> str:
    return f"{_ENVELOPE}{job.deployment.hex()}"


def _job(item: tuple[str, object]) -> Job:
    return Job.from_record(item[1])


def _ended_record(ended: Mapping[bytes, Ended]) -> list[object]:
    return [[deployment, end.step.value, end.report_seq] for deployment, end in ended.items()]


def _load_ended(state: StateStore) -> dict[bytes, Ended]:
    record = state.get(_ENDED)
    if record is None:
        return {}
    assert isinstance(record, list), "written by _ended_record"
    return {deployment: Ended(Step(step), seq) for deployment, step, seq in record}
