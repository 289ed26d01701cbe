"""Bounds of judging devices. The configuration's ``[identity]`` has keys of the same names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IdentityLimits:
    """Bounds on caches, questions and trust without answers.

    Attributes:
        positive_cache_s: How long an accepting verdict is reused, never beyond its expiry.
        negative_cache_s: How long a refusing one is.
        cache_entries_max: Accepting verdicts kept, and tokens remembered as lately accepted; a tenth as many
            refusing ones, in a cache of their own, so that made-up tokens push no real one out.
        origin_concurrency_max: Questions to the origin at once.
        origin_queue_max: Tokens waiting for their question; above it ``origin_unavailable`` at once.
        origin_queue_wait_s: Longest such wait; then ``origin_unavailable``.
        revalidate_s: Longest life of a verdict.
        origin_stale_max_s: How long a session outlives its check while the origin gives no answer.
        guard_refusals_min: Refused tokens that were lately accepted, within a minute, that make the origin
            suspect (PROTOCOL §4.8) …
        guard_share: … if they are also more than this share of all tokens refused in that minute.
        ticket_life_s: How long after the origin's word a ticket stands in for it; 0: none are given.
        revocations_behind_max_s: A node that read the feed of revocations longer ago takes no tickets.
        revocations_max: Tokens, and devices, that are remembered as revoked; the oldest go.
    """

    positive_cache_s: float = 60.0
    negative_cache_s: float = 5.0
    cache_entries_max: int = 100_000
    origin_concurrency_max: int = 32
    origin_queue_max: int = 10_000
    origin_queue_wait_s: float = 10.0
    revalidate_s: float = 900.0
    origin_stale_max_s: float = 3600.0
    guard_refusals_min: int = 50
    guard_share: float = 0.2
    ticket_life_s: float = 900.0
    revocations_behind_max_s: float = 10.0
    revocations_max: int = 1_000_000

    def __post_init__(self) -> None:
        assert 0 <= self.negative_cache_s <= self.positive_cache_s, "a refusal is never kept longer"
        assert self.cache_entries_max >= 10, "a tenth of it is a cache too"
        assert self.origin_concurrency_max > 0, "nothing would ever be asked"
        assert self.origin_queue_max > 0, "nothing would ever be asked"
        assert self.origin_queue_wait_s > 0, "nothing would ever be asked"
        assert self.revalidate_s > 0, "a verdict has a life"
        assert self.origin_stale_max_s >= 0, "seconds"
        assert self.guard_refusals_min > 0, "one refusal is no storm"
        assert 0 < self.guard_share < 1, "a share"
        assert 0 <= self.ticket_life_s <= 900, "15 min since the origin's word (PROTOCOL §5.4)"
        assert self.revocations_max > 0, "nothing could be taken back"
