"""How long a verdict carries a live session (PROTOCOL §5.5). Pure: times in, times out, all ms UTC.

A known expiry ends the session, whatever the origin's state. Until then the verdict is asked for again at
80 % of its life, give or take 10 % so that devices which came together do not return together. While the
origin gives no answer the session goes on, but no longer than ``origin_stale_max_s`` from the first question
that it left open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from gateway.identity.limits import IdentityLimits
from gateway.identity.verdict import Verdict

CLOCK_SKEW_S: Final = 60  # how wrong the origin's and our clocks may be to each other


@dataclass(frozen=True, slots=True)
class Validity:
    """When to ask again, and when the session ends if nothing is learnt.

    Attributes:
        next_check_at: Re-validate then (``Identity.admit(…, fresh=True)``), ms UTC.
        ends_at: Close as ``VERDICT_EXPIRED`` then, ms UTC. A new verdict gives a new ``Validity``.
        is_stale: The last question was left open; ``ends_at`` does not move by asking again.
    """

    next_check_at: int
    ends_at: int
    is_stale: bool = False


def validity(verdict: Verdict, *, limits: IdentityLimits, jitter: float) -> Validity:
    """Return how long ``verdict`` carries a session from its ``judged_at`` on.

    Args:
        jitter: Uniform in [0, 1), drawn for each session.
    """
    assert 0 <= jitter < 1, "jitter is a fraction"
    judged_at = verdict.judged_at
    life_ms = limits.revalidate_s * 1000
    expiry = None
    if verdict.expires_at is not None:
        expiry = verdict.expires_at + CLOCK_SKEW_S * 1000
        life_ms = min(life_ms, max(verdict.expires_at - judged_at, 0))
    next_check_at = judged_at + round(life_ms * (0.7 + 0.2 * jitter))
    ends_at = next_check_at + round(limits.origin_stale_max_s * 1000)
    if expiry is not None:
        ends_at = min(ends_at, expiry)
    return Validity(next_check_at=min(next_check_at, ends_at), ends_at=ends_at)


def after_unknown(current: Validity, *, now: int, retry_after_s: float, jitter: float) -> Validity:
    """Return the validity after a check that the origin left open: later, but with the same end.

    Args:
        now: ms UTC.
        retry_after_s: What the failure asked for; the wait is that, and up to as much again by ``jitter``.
    """
    assert 0 <= jitter < 1, "jitter is a fraction"
    next_check_at = now + round(max(retry_after_s, 1.0) * (1 + jitter) * 1000)
    return replace(current, next_check_at=min(next_check_at, current.ends_at), is_stale=True)
