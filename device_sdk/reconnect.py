"""When a device comes back after its connection ended (PROTOCOL §4.8, §4.9). Pure but for the stored counts.

* The server named a time: that is when.
* An abnormal end: the first wait is U(0, spread_s), so that a fleet does not return as one; then full
  jitter, doubling. Counts are kept on flash: a crash loop is no way around the wait.
* Not with this credential: the ticket is dropped; U(1 h, 2 h), doubling to a day, for ever; at once when
  the credential or the configuration changes, and after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from device_sdk.inbox import State
from device_sdk.wire.close_codes import is_retryable

_KEY: Final = "client/reconnect"
_EXPONENT_MAX: Final = 16
_FAILURES_MAX: Final = 32  # more make no difference, and would wear the flash
_HTTP_REFUSALS: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconnectLimits:
    """Waits of the reconnect.

    Attributes:
        base_s, cap_s: Full jitter: U(0, base × 2ⁿ), at most the cap.
        patient_after, patient_cap_s: After so many failures in a row the cap is this one.
        retry_after_max_s: The longest wait that a server may ask for.
        spread_max_s: The longest spread that a server may ask for.
        refused_s, refused_max_s: U(refused_s, 2 × refused_s) after a refused credential, doubling.
        stable_s: A connection that was welcomed and lasted this long ends a row of failures.
    """

    base_s: float = 0.5
    cap_s: float = 20.0
    patient_after: int = 10
    patient_cap_s: float = 300.0
    retry_after_max_s: float = 86_400.0
    spread_max_s: float = 3_600.0
    refused_s: float = 3_600.0
    refused_max_s: float = 86_400.0
    stable_s: float = 30.0

    def __post_init__(self) -> None:
        assert 0 < self.base_s <= self.cap_s <= self.patient_cap_s
        assert 0 < self.refused_s <= self.refused_max_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a connection, or the attempt at one, ended.

    Attributes:
        was_welcomed: The gateway had answered hello.
        lasted_s: From the welcome on.
        close_code, http_status: What the server said, if it did.
        retry_after_s: The server's Retry-After, or its goaway's.
        is_continuity: This side ended it because it had lost something: the others are not concerned.
    """

    was_welcomed: bool = False
    lasted_s: float = 0.0
    close_code: int | None = None
    http_status: int | None = None
    retry_after_s: float | None = None
    is_continuity: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether the credential was refused: 4500-4999, 401 or 403."""
        if self.close_code is not None and not is_retryable(self.close_code):
            return True
        return self.http_status in _HTTP_REFUSALS


@dataclass(frozen=True, slots=True)
class Wait:
    """How long to stay away.

    Attributes:
        is_refused: Another credential or configuration ends the wait.
    """

    seconds: float
    is_refused: bool = False


class Reconnect:
    """The waits of one device. Failures and the fleet's spread are stored; a refusal is not."""

    def __init__(self, state: State, random: Random, limits: ReconnectLimits | None = None) -> None:
        self._state = state
        self._random = random
        self._limits = limits or ReconnectLimits()
        self.failures = 0
        self.refusals = 0
        self.spread_s = 0
        self._is_clean = True
        match state.get(_KEY):
            case [int(failures), int(spread_s), bool(is_clean)]:
                self.failures, self.spread_s, self._is_clean = failures, spread_s, is_clean

    def first_wait(self) -> Wait:
        """Return the wait after a start: none, unless the last run ended in a failure or a crash."""
        if self.failures:
            return Wait(self._jitter(self.failures - 1))
        return Wait(0.0 if self._is_clean else self._random.uniform(0, self._spread()))

    def welcomed(self, spread_s: int) -> None:
        """A gateway answered hello."""
        self.refusals = 0
        self.spread_s = spread_s
        self._is_clean = False
        self._store()

    def ended(self, ending: Ending) -> Wait:
        """Note the end of a connection; return how long to stay away.

        Raises:
            StoreError: The count could not be stored.
        """
        limits = self._limits
        if ending.is_refusal:
            self.failures = 0
            self._store()
            high_s = min(limits.refused_max_s, 2 * limits.refused_s * 2 ** min(self.refusals, _EXPONENT_MAX))
            self.refusals += 1
            return Wait(self._random.uniform(high_s / 2, high_s), is_refused=True)
        if ending.was_welcomed and ending.lasted_s >= limits.stable_s:
            self.failures = 0
        failures = self.failures
        self.failures = min(_FAILURES_MAX, failures + 1)
        self._store()
        if ending.retry_after_s is not None:
            return Wait(min(limits.retry_after_max_s, max(0.0, ending.retry_after_s)))
        if failures == 0 and ending.was_welcomed and not ending.is_continuity:
            return Wait(self._random.uniform(0, self._spread()))
        return Wait(self._jitter(max(0, failures - 1)))

    def stopped(self) -> None:
        """The application ends the connection: the next start need not wait."""
        self.failures, self._is_clean = 0, True
        self._store()

    def _jitter(self, exponent: int) -> float:
        limits = self._limits
        cap_s = limits.patient_cap_s if self.failures > limits.patient_after else limits.cap_s
        return self._random.uniform(0, min(cap_s, limits.base_s * 2 ** min(exponent, _EXPONENT_MAX)))

    def _spread(self) -> float:
        return min(self._limits.spread_max_s, float(self.spread_s))

    def _store(self) -> None:
        self._state.commit({_KEY: [self.failures, self.spread_s, self._is_clean]})
