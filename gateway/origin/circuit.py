"""A circuit breaker: leave an origin alone that fails, and look after it now and then. Sans-I/O.

    CLOSED     ── circuit_failures failures in a row ──▶ OPEN
    OPEN       ── its time is over ──▶ HALF_OPEN: one question goes through as a probe
    HALF_OPEN  ── the probe is answered ──▶ CLOSED
    HALF_OPEN  ── the probe fails ──▶ OPEN, for twice as long
    HALF_OPEN  ── the probe is given up (cancelled) ──▶ OPEN, its time over: the next question probes

An answer is whatever shows that the origin works, a refusal too. Questions asked before the circuit opened
and answered after it count for nothing: only the probe decides.
"""

from __future__ import annotations

import enum

from gateway.errors import OriginUnavailableError
from gateway.origin.limits import OriginLimits


class CircuitState(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Outcome(enum.Enum):
    """What became of one question."""

    ANSWERED = enum.auto()
    FAILED = enum.auto()
    ABANDONED = enum.auto()  # nobody knows: it was cancelled


class Circuit:
    """Pair each ``begin`` with one ``end``. ``now`` is monotonic, seconds."""

    def __init__(self, limits: OriginLimits) -> None:
        self._limits = limits
        self.state = CircuitState.CLOSED
        self._failures = 0
        self._open_s = limits.circuit_open_s
        self._opens_until = 0.0
        self._turn = 0  # raised at every change of state, so that an old question is known as one

    def begin(self, now: float) -> int:
        """Let a question through; return its turn, for ``end``.

        Raises:
            OriginUnavailableError: ``origin_circuit_open``, with the time until the next probe.
        """
        if self.state is CircuitState.OPEN and now >= self._opens_until:
            self._enter(CircuitState.HALF_OPEN)
            return self._turn
        if self.state is CircuitState.CLOSED:
            return self._turn
        wait_s = max(self._opens_until - now, self._limits.circuit_open_s)
        raise OriginUnavailableError(
            "left alone for a while", code="origin_circuit_open", retry_after_s=wait_s
        )

    def end(self, turn: int, outcome: Outcome, now: float) -> None:
        """Note what became of the question that ``begin`` let through as ``turn``."""
        if turn != self._turn:
            return
        match outcome:
            case Outcome.ANSWERED:
                self._failures = 0
                self._open_s = self._limits.circuit_open_s
                if self.state is CircuitState.HALF_OPEN:
                    self._enter(CircuitState.CLOSED)
            case Outcome.FAILED if self.state is CircuitState.HALF_OPEN:
                self._open_s = min(self._open_s * 2, self._limits.circuit_open_max_s)
                self._open(now + self._open_s)
            case Outcome.FAILED:
                self._failures += 1
                if self._failures >= self._limits.circuit_failures:
                    self._open(now + self._open_s)
            case Outcome.ABANDONED if self.state is CircuitState.HALF_OPEN:
                self._open(now)

    def _open(self, until: float) -> None:
        self._opens_until = until
        self._failures = 0
        self._enter(CircuitState.OPEN)

    def _enter(self, state: CircuitState) -> None:
        self.state = state
        self._turn += 1
