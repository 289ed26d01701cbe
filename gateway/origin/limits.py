"""Bounds of talking to the origin. The configuration's ``[identity]`` has keys of the same names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OriginLimits:
    """Bounds on one answer, on all of them at once, and on asking an origin that fails.

    Attributes:
        origin_timeout_s: From the question to the last byte of the answer; then "unknown".
        origin_concurrency_max: Connections to the origin.
        answer_size_bytes_max: A longer answer is malformed; the rest of it is not read.
        retry_after_s_max: What an origin's ``Retry-After`` is cut to.
        circuit_failures: Failures in a row that open the circuit.
        circuit_open_s: How long it stays open the first time; doubled at each failed probe …
        circuit_open_max_s: … up to this.
    """

    origin_timeout_s: float = 5.0
    origin_concurrency_max: int = 32
    answer_size_bytes_max: int = 64 * 1024
    retry_after_s_max: float = 300.0
    circuit_failures: int = 5
    circuit_open_s: float = 1.0
    circuit_open_max_s: float = 30.0

    def __post_init__(self) -> None:
        assert self.origin_timeout_s > 0, "no answer would ever be in time"
        assert self.origin_concurrency_max > 0, "nothing would ever be asked"
        assert self.answer_size_bytes_max > 0, "no answer would ever fit"
        assert self.retry_after_s_max > 0, "seconds"
        assert self.circuit_failures > 0, "the circuit would never close"
        assert 0 < self.circuit_open_s <= self.circuit_open_max_s, "it doubles from one to the other"
