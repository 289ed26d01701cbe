"""Judge devices: caches, one question a token, a bounded number of questions, and the guard over refusals.

The question itself is the ``Judge`` port; ``gateway.origin`` implements it. Who may do what on the operator's
side is in ``operator``. A live session's re-validation is the session layer's to schedule, by ``validity``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final, NoReturn, Protocol

from device_sdk.wire.names import DeviceId, FleetName
from gateway.clock import Clock
from gateway.errors import (
    CredentialRefusedError,
    CredentialRevokedError,
    OriginUnavailableError,
    WrongIdentityError,
)
from gateway.identity.cache import ExpiringCache
from gateway.identity.credential import Credential
from gateway.identity.guard import WINDOW_S, RefusalGuard
from gateway.identity.limits import IdentityLimits
from gateway.identity.revocations import Revocations
from gateway.identity.tickets import Tickets, VoidTicketError
from gateway.identity.validity import CLOCK_SKEW_S
from gateway.identity.verdict import ResumedVerdict, Verdict
from gateway.telemetry import Metrics, SparseLog, logger

_log = logger("identity")

_RETRY_AFTER_S: Final = 5.0  # where the node itself is busy; the origin's own failures bring their wait


class Judge(Protocol):
    """Ask the origin who a credential is.

    Every implementation promises:

    * ``judge`` raises ``CredentialRefusedError`` for a definite no and nothing else: 401, 403, ``active:
      false``, a signature, issuer, audience or time that does not hold.
    * Everything that is neither a good verdict nor a definite no is ``OriginUnavailableError``: timeouts,
      other statuses, malformed answers, an open circuit.
    * ``judge`` ends within a bounded time and may be cancelled at any point.
    * Two credentials with one ``key`` are one question.
    * ``kept`` is the least of a credential that still asks the same question: a session keeps it to ask
      again. The ``Authorization`` header is in it.
    """

    def key(self, credential: Credential) -> bytes: ...

    def kept(self, credential: Credential) -> Credential: ...

    async def judge(self, credential: Credential) -> Verdict: ...


class UnconfiguredJudge:
    """The judge where no origin is configured: it knows nobody, and says so as "unknown"."""

    def key(self, credential: Credential) -> bytes:
        return credential.sha256

    def kept(self, credential: Credential) -> Credential:
        return Credential(credential.token, (("Authorization", f"Bearer {credential.token}"),))

    async def judge(self, credential: Credential) -> Verdict:
        """Raise ``OriginUnavailableError`` with the code ``origin_unconfigured``, always."""
        raise OriginUnavailableError(
            "no origin is configured: set identity.mode", code="origin_unconfigured", retry_after_s=60.0
        )


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A definite no, kept so that it can be raised for each who asks."""

    kind: type[CredentialRefusedError]
    detail: str
    code: str


# What a flight comes back with. An exception object is never shared by waiters: each raise would add to its
# traceback, and one that nobody awaited would be reported as lost.
_Outcome = Verdict | _Refusal | OriginUnavailableError


class Identity:
    """Judge credentials for one node.

    Args:
        judge: How the origin is asked.
        clock: Wall time against expiries, monotonic time for the caches.
        limits: See ``IdentityLimits``.
        metrics: The node's.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        clock: Clock,
        limits: IdentityLimits | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.limits = limits or IdentityLimits()
        self._judge = judge
        self._clock = clock
        self._metrics = metrics or Metrics()
        self.revocations = Revocations(self.limits, clock=clock)
        self.tickets = Tickets(self.revocations, limits=self.limits, clock=clock)
        self._accepted: ExpiringCache[Verdict] = ExpiringCache(self.limits.cache_entries_max)
        self._refused: ExpiringCache[_Refusal] = ExpiringCache(self.limits.cache_entries_max // 10)
        self._guard = RefusalGuard(self.limits)
        self._flights: dict[bytes, asyncio.Task[_Outcome]] = {}
        self._turns = asyncio.Semaphore(self.limits.origin_concurrency_max)
        self._waiting = 0
        self._sparse = SparseLog(_log)
        self._was_suspect = False
        self._metrics.refusal_alarm.set_function(lambda: float(self.is_origin_suspect))

    async def admit(
        self,
        credential: Credential,
        *,
        claimed_fleet: str | None,
        claimed_device: str | None,
        fresh: bool = False,
    ) -> Verdict:
        """Return who ``credential`` is, by the origin's word.

        A waiter that is cancelled does not cancel the question: others may wait for the same token, and the
        answer is worth keeping.

        Args:
            claimed_fleet, claimed_device: What the connection says of itself; None: it says nothing.
            fresh: Ask the origin even if a verdict is cached; for re-validation.

        Raises:
            CredentialRefusedError: A definite no.
            CredentialExpiredError: The credential's own time is over.
            CredentialRevokedError: An operator took it back.
            WrongIdentityError: The verdict names another fleet or device than the claim.
            OriginUnavailableError: Unknown; ``retry_after_s`` says when to come back. Also while the origin
                is suspect (``origin_suspect``), in the place of refusals (PROTOCOL §4.8).
        """
        key = self._judge.key(credential)
        self._check_revoked(key, credential, claimed_fleet)
        outcome = await self._outcome(key, credential, fresh=fresh)
        if isinstance(outcome, Verdict) and self.revocations.voids(outcome):
            outcome = await self._outcome(key, credential, fresh=True)
            if isinstance(outcome, Verdict) and self.revocations.voids(outcome):
                # The question was under way when the device was revoked.
                outcome = OriginUnavailableError("revoked meanwhile", retry_after_s=1.0)
        if isinstance(outcome, OriginUnavailableError):
            raise OriginUnavailableError(
                outcome.detail, code=outcome.code, retry_after_s=outcome.retry_after_s
            ) from outcome
        if isinstance(outcome, _Refusal):
            self._refuse(key, outcome)
        named = (outcome.fleet, outcome.device_id)
        if (claimed_fleet or outcome.fleet, claimed_device or outcome.device_id) != named:
            self._refuse(key, _Refusal(WrongIdentityError, "the claim differs", WrongIdentityError.code))
        self._check_revoked(key, credential, outcome.fleet)
        self._guard.accepted(key, self._clock.monotonic())
        return outcome

    def resume(
        self,
        credential: Credential,
        ticket: bytes,
        *,
        claimed_fleet: str | None,
        claimed_device: str | None,
    ) -> ResumedVerdict | None:
        """Return who shows ``ticket`` with ``credential``, without a question; None: it is as none."""
        try:
            verdict = self.tickets.open(
                ticket,
                token_sha256=credential.sha256,
                claimed_fleet=claimed_fleet,
                claimed_device=claimed_device,
            )
        except VoidTicketError as void:
            self._metrics.tickets_void[void.reason].inc()
            return None
        self._metrics.verdicts["ticket"].inc()
        self._guard.accepted(self._judge.key(credential), self._clock.monotonic())
        return verdict

    def key(self, credential: Credential) -> bytes:
        """Return what ``credential`` is known by: two with one key are one question to the origin."""
        return self._judge.key(credential)

    def check(self, credential: Credential, verdict: Verdict) -> None:
        """Look again at a verdict that was waited with: it may have been taken back since.

        Raises:
            CredentialRevokedError: It was.
        """
        if self.revocations.is_revoked(credential.sha256, verdict.fleet) or self.revocations.voids(verdict):
            raise CredentialRevokedError("taken back meanwhile")

    def kept(self, credential: Credential) -> Credential:
        """Return what a session keeps of ``credential`` to be judged again."""
        return self._judge.kept(credential)

    def forget(self, credential: Credential) -> None:
        """Drop what is known of ``credential``: it was taken back, or its device changed."""
        key = self._judge.key(credential)
        self._accepted.drop(key)
        self._refused.drop(key)
        self._guard.forget(key)

    def revoke(self, token_sha256: bytes) -> None:
        """Refuse the token from now on, whatever the origin says; its row of the feed comes later."""
        self.revocations.refuse(token_sha256)

    def forget_device(self, fleet: FleetName, device_id: DeviceId) -> None:
        """Believe nothing that was said of the device before; its row of the feed comes later."""
        self.revocations.void_device(fleet, device_id)

    @property
    def is_origin_suspect(self) -> bool:
        """Whether refusals are answered as retryable at the moment; also the metric of the alarm."""
        return self._guard.is_alarmed(self._clock.monotonic())

    async def close(self) -> None:
        """End the questions that are under way; those who wait are told ``origin_unavailable``."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _outcome(self, key: bytes, credential: Credential, *, fresh: bool) -> _Outcome:
        now = self._clock.monotonic()
        if not fresh:
            if (verdict := self._accepted.find(key, now)) is not None:
                self._metrics.verdicts["hit"].inc()
                return verdict
            if (refusal := self._refused.find(key, now)) is not None:
                self._metrics.verdicts["refused"].inc()
                return refusal
        flight = self._flights.get(key)
        if flight is None:
            if len(self._flights) >= self.limits.origin_queue_max + self.limits.origin_concurrency_max:
                return OriginUnavailableError("too many tokens wait", retry_after_s=_RETRY_AFTER_S)
            self._metrics.verdicts["miss"].inc()
            flight = asyncio.create_task(self._fly(key, credential), name=f"identity.flight[{key.hex()[:8]}]")
            self._flights[key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        else:
            self._metrics.verdicts["joined"].inc()
        try:
            return await asyncio.shield(flight)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if flight.cancelled() and not (task is not None and task.cancelling()):  # by close()
                return OriginUnavailableError("the node is stopping", retry_after_s=_RETRY_AFTER_S)
            raise

    async def _fly(self, key: bytes, credential: Credential) -> _Outcome:
        """Wait for a turn, ask, and keep a definite answer."""
        self._waiting += 1
        self._metrics.origin_waiting.set(self._waiting)
        try:
            if self._turns.locked():
                async with asyncio.timeout(self.limits.origin_queue_wait_s):
                    await self._turns.acquire()
            else:
                await self._turns.acquire()  # at once, and without a timer
        except TimeoutError:
            return OriginUnavailableError("no turn in time", retry_after_s=_RETRY_AFTER_S)
        finally:
            self._waiting -= 1
            self._metrics.origin_waiting.set(self._waiting)
        started_at = self._clock.monotonic()
        seen = self.revocations.sequence
        kind = "unknown"
        try:
            verdict = await self._judge.judge(credential)
            if self.revocations.predates(verdict):
                self._guard.forget(key)
                raise CredentialRevokedError("issued before the device was revoked")
            outcome = self._keep(key, verdict, seen=seen)
            kind = "accepted" if isinstance(outcome, Verdict) else "unknown"
            return outcome
        except CredentialRefusedError as error:
            kind = "refused"
            self._accepted.drop(key)
            refusal = _Refusal(type(error), error.detail, error.code)
            self._refused.put(key, refusal, ends_at=self._clock.monotonic() + self.limits.negative_cache_s)
            return refusal
        except OriginUnavailableError as error:
            self._sparse.warning(
                f"no verdict: {error.code}",
                self._clock.monotonic(),
                detail=error.detail,
                credential_id=key.hex()[:8],
            )
            return error
        finally:
            self._turns.release()
            self._metrics.origin_requests[kind].inc()
            self._metrics.origin_request_s.observe(self._clock.monotonic() - started_at)

    def _keep(self, key: bytes, verdict: Verdict, *, seen: int) -> _Outcome:
        now_ms, life_s = self._clock.now_ms(), self.limits.positive_cache_s
        if verdict.cache_s is not None:
            life_s = min(life_s, verdict.cache_s)
        if verdict.expires_at is not None:
            left_s = (verdict.expires_at - now_ms) / 1000
            if left_s <= -CLOCK_SKEW_S:
                # The origin accepts what by its own word is over: one of the clocks is wrong. Not a "no".
                return OriginUnavailableError("accepted, but already expired", retry_after_s=_RETRY_AFTER_S)
            life_s = min(life_s, max(left_s, 0.0))
        verdict = replace(verdict, judged_at=now_ms, seen=seen, issued_at=None)
        self._refused.drop(key)
        self._accepted.put(key, verdict, ends_at=self._clock.monotonic() + life_s)
        return verdict

    def _check_revoked(self, key: bytes, credential: Credential, fleet: str | None) -> None:
        """Raise CredentialRevokedError if the token was taken back in ``fleet``, or in whatever it claims."""
        if self.revocations.is_revoked(credential.sha256, fleet):
            self._guard.forget(key)  # expected, and no sign that the origin is wrong
            raise CredentialRevokedError("an operator took the token back")

    def _refuse(self, key: bytes, refusal: _Refusal) -> NoReturn:
        now = self._clock.monotonic()
        is_suspect = self._guard.refused(key, now)
        self._sparse.info(
            "refused", now, code=refusal.code, detail=refusal.detail, credential_id=key.hex()[:8]
        )
        if is_suspect and not self._was_suspect:
            _log.error(
                "the origin refuses tokens it lately accepted; refusals are held back", code=refusal.code
            )
        self._was_suspect = is_suspect
        if is_suspect:
            raise OriginUnavailableError(
                "refusals are held back", code="origin_suspect", retry_after_s=WINDOW_S
            )
        raise refusal.kind(refusal.detail, code=refusal.code)
