"""Bounds of the operator API. The configuration has keys of the same names in its sections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OperatorLimits:
    """Bounds on what a request may hold and for how long.

    Attributes:
        body_size_bytes_max: Longest body that is not an artifact; a longer one is answered 413.
        body_timeout_s: From the request's head to the last byte of such a body; then 408.
        token_cache_s: How long a token is believed after it was read; a revocation is felt this late.
        token_cache_entries_max: Tokens kept; the oldest goes.
        attempts_max: Attempts to push an update, as ``rollout.UpdateLimits`` has it; explanations name it.
        ttl_max_s: Longest time to live that an alert may ask for; a longer one is answered 422.
    """

    body_size_bytes_max: int = 2 * 1024 * 1024
    body_timeout_s: float = 30.0
    token_cache_s: float = 5.0
    token_cache_entries_max: int = 1000
    attempts_max: int = 20
    ttl_max_s: int = 365 * 24 * 3600

    def __post_init__(self) -> None:
        assert self.body_size_bytes_max > 0, "no body would fit"
        assert self.body_timeout_s > 0, "nothing would be read"
        assert 0 <= self.token_cache_s <= 5, "a revoked token is out within 5 s (PROTOCOL §5.5)"
        assert self.token_cache_entries_max > 0, "a cache for nothing"
        assert self.ttl_max_s > 0, "seconds"
