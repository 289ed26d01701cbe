from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.identity import IdentityLimits, Validity, Verdict, after_unknown, validity

T0 = 1_800_000_000_000
LIMITS = IdentityLimits(revalidate_s=1000, origin_stale_max_s=3600)


def verdict(expires_in_s: float | None = None) -> Verdict:
    expires_at = None if expires_in_s is None else T0 + int(expires_in_s * 1000)
    return Verdict(device_id="d", fleet="f", expires_at=expires_at, judged_at=T0)


@pytest.mark.parametrize(("jitter", "after_s"), [(0.0, 700), (0.5, 800), (0.999_999, 899.9)])
def test_revalidation_is_at_80_percent_of_life_give_or_take_10(jitter, after_s):
    found = validity(verdict(), limits=LIMITS, jitter=jitter)
    assert found.next_check_at == pytest.approx(T0 + after_s * 1000, abs=200)


def test_a_short_expiry_shortens_the_life():
    found = validity(verdict(100), limits=LIMITS, jitter=0.5)
    assert found.next_check_at == T0 + 80_000


def test_a_known_expiry_ends_the_session_after_a_minute_of_skew():
    assert validity(verdict(100), limits=LIMITS, jitter=0.5).ends_at == T0 + 160_000


def test_without_an_expiry_the_stale_ceiling_ends_it():
    found = validity(verdict(), limits=LIMITS, jitter=0.5)
    assert found.ends_at == found.next_check_at + 3_600_000


def test_a_far_expiry_does_not_lift_the_stale_ceiling():
    found = validity(verdict(30 * 86_400), limits=LIMITS, jitter=0.5)
    assert found == Validity(T0 + 800_000, T0 + 800_000 + 3_600_000)


def test_a_verdict_within_the_skew_of_its_expiry_is_checked_at_once_and_still_ends_by_it():
    found = validity(verdict(-30), limits=LIMITS, jitter=0.5)
    assert found == Validity(T0, T0 + 30_000)


def test_an_unknown_answer_moves_the_check_but_never_the_end():
    first = validity(verdict(), limits=LIMITS, jitter=0.5)
    stale = after_unknown(first, now=first.next_check_at, retry_after_s=5, jitter=0.5)
    assert stale.next_check_at == first.next_check_at + 7_500
    assert stale.ends_at == first.ends_at
    assert stale.is_stale


def test_an_unknown_answer_never_makes_a_hot_loop_nor_a_check_after_the_end():
    first = validity(verdict(100), limits=LIMITS, jitter=0.0)
    assert after_unknown(first, now=T0, retry_after_s=0, jitter=0.0).next_check_at == T0 + 1000
    assert after_unknown(first, now=T0, retry_after_s=9999, jitter=0.0).next_check_at == first.ends_at


@given(
    st.one_of(st.none(), st.floats(-60, 1e7)),
    st.floats(0, 1, exclude_max=True),
    st.floats(1, 1e6),
    st.floats(0, 1e6),
)
def test_the_check_is_after_the_verdict_and_not_after_the_end(expires_in_s, jitter, revalidate_s, stale_s):
    limits = IdentityLimits(revalidate_s=revalidate_s, origin_stale_max_s=stale_s)
    found = validity(verdict(expires_in_s), limits=limits, jitter=jitter)
    assert T0 <= found.next_check_at <= found.ends_at
    if expires_in_s is not None:
        assert found.ends_at <= T0 + (expires_in_s + 60) * 1000 + 1
