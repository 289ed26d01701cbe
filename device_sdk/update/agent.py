"""The update agent: what an update, a cancel, a statement and a report's receipt do on the device.

Everything that a message changes is decided without an ``await`` and stored in one commit before the
method returns, so the client may acknowledge then. The work itself is ``worker``, what is stored ``ledger``
and ``trust``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from device_sdk.errors import UpdateError
from device_sdk.update.acceptance import Target, authentic_directive, judge_directive
from device_sdk.update.counter import Counter, Verdict
from device_sdk.update.ledger import SUPERSEDED, Ledger
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.ports import DeviceClock, Fetch, Installer, StateStore
from device_sdk.update.procedure import Event, Job, is_cancellable
from device_sdk.update.trust import NO_KEYS, TrustState
from device_sdk.update.worker import Worker
from device_sdk.wire.errors import WireError
from device_sdk.wire.keys import PublicKey, Role
from device_sdk.wire.messages import Installed, Recorded, Report, Update
from device_sdk.wire.signed import Directive

log = logging.getLogger(__name__)

TOO_LATE: Final = "too_late"
_TAKEN_BACK: Final = frozenset({"cancelled", SUPERSEDED})


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

    Raises:
        WireError: The state holds the root document of another fleet: a device that changes its fleet
            begins with an empty state.
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
        limits = limits or UpdateLimits()
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
            limits=limits,
            build_time_ms=build_time_ms,
        )
        self._installer = installer
        self._ledger = Ledger(state, random=random, send_report=send_report, limits=limits)
        self._worker = Worker(
            state=state,
            ledger=self._ledger,
            trust=self._trust,
            target=self._target,
            installer=installer,
            fetch=fetch,
            clock=clock,
            random=random,
            request_statement=request_statement,
            limits=limits,
        )
        self._work = asyncio.Event()

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
        return self._ledger.in_turn()

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
        return None

    def alert_keys(self) -> Mapping[bytes, PublicKey]:
        """Return the keys that vouch for alerts; none before the first root document or past its time.

        While there are none, no alert can be told from a forgery: leave them unacknowledged.
        """
        try:
            keys = self._trust.keys_of(Role.ALERT)
        except UpdateError:
            return NO_KEYS
        assert isinstance(keys, Mapping), "only releases have explicit keys"
        return keys

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
        self._worker.wake()
        return None

    # --- messages ---

    async def receive_update(self, update: Update) -> bool:
        """Take an update; True once it needs no redelivery: it is held, or its refusal will be reported.

        The manifest is not read yet: ``run`` does when its turn comes, and a refusal then is a report.
        False: there is no room; it comes again.
        """
        try:
            directive = authentic_directive(update, self._trust, self._target)
            verdict = judge_directive(directive, self._trust, self._ledger.held())
            if verdict is Verdict.RENEWAL:
                self._renew(directive, update.manifest)
        except (WireError, UpdateError) as error:
            self._ledger.refuse(update.deployment, error)
            return True
        if verdict is not Verdict.NEW:
            return True
        if self._ledger.has_ended(directive.deployment):
            # Counted, and nothing is done again: the gateway has not heard how it ended.
            self._ledger.count(self._trust.counter_change(Counter.of(directive)))
            self._trust.take_counter(Counter.of(directive))
            self._ledger.repeat_outcome(directive.deployment)
            return True
        return self._hold(directive, update.manifest)

    def cancel(self, deployment: bytes) -> None:
        """Take a deployment back if it is not installing; the answer is a report (PROTOCOL §6.5)."""
        job = self._ledger.job(deployment)
        if job is None:
            self._ledger.cancel_unheld(deployment)
        elif is_cancellable(job.step):
            self._ledger.end(job, Event.CANCEL)
            self._worker.drop(deployment)
        else:
            self._ledger.note(job, TOO_LATE)

    def pending_reports(self) -> Sequence[Report]:
        """Return the reports that are not recorded, oldest first."""
        return self._ledger.outbox.pending()

    def recorded(self, recorded: Recorded) -> None:
        """Stop repeating a report; a deployment that the gateway ended is dropped while it can be."""
        report = self._ledger.outbox.recorded(recorded.id)
        if report is None or recorded.status != "refused" or recorded.code not in _TAKEN_BACK:
            return
        job = self._ledger.job(report.deployment)
        if job is not None and is_cancellable(job.step):
            self._ledger.end(job, Event.CANCEL, code=recorded.code)
            self._worker.drop(job.deployment)

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
        await self._worker.work()

    def _hold(self, directive: Directive, envelope: bytes) -> bool:
        """Store a new deployment; what it supersedes ends in the same commit."""
        counter = Counter.of(directive)
        is_other_enrolment = directive.enrolment != self._trust.counter.enrolment
        superseded = [
            job
            for job in self._ledger.in_turn()
            if is_cancellable(job.step) and (job.component == directive.component or is_other_enrolment)
        ]
        is_held = self._ledger.hold(
            Job.of(directive), envelope, superseded=superseded, changes=self._trust.counter_change(counter)
        )
        if not is_held:
            log.warning("no room for another deployment")
            return False
        self._trust.take_counter(counter)
        for job in superseded:
            self._worker.drop(job.deployment)
        self._work.set()
        return True

    def _renew(self, directive: Directive, envelope: bytes) -> None:
        """Go on with a job that is held under a newer directive.

        Raises:
            WrongDeviceError, MixAndMatchError: It is about something else.
        """
        job = self._ledger.job(directive.deployment)
        assert job is not None, "judged by what is held"
        job.check_renewal(directive)
        counter = Counter.of(directive)
        self._ledger.renew(job.renewed(directive), envelope, changes=self._trust.counter_change(counter))
        self._trust.take_counter(counter)
