from __future__ import annotations

from gateway.identity.guard import RefusalGuard
from gateway.identity.limits import IdentityLimits


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def guard_that_accepted(count: int, *, at: float = 0.0) -> RefusalGuard:
    guard = RefusalGuard(IdentityLimits())
    for number in range(count):
        guard.accepted(key(number), at)
    return guard


def refuse(guard: RefusalGuard, numbers: range, *, at: float) -> list[bool]:
    return [guard.refused(key(number), at) for number in numbers]


def test_fifty_lately_accepted_tokens_refused_within_a_minute_make_the_origin_suspect():
    guard = guard_that_accepted(60)
    assert refuse(guard, range(50), at=100.0) == [False] * 49 + [True]


def test_strangers_refused_are_no_storm():
    guard = guard_that_accepted(60)
    assert not any(refuse(guard, range(1000, 9000), at=100.0))


def test_a_fifth_or_less_of_all_refusals_is_no_storm():
    guard = guard_that_accepted(60)
    refuse(guard, range(1000, 1240), at=100.0)
    assert refuse(guard, range(60), at=100.0)[-1] is False  # 60 of 300: exactly 20 %
    guard.forget(key(1000))
    assert guard.is_alarmed(100.0)  # 60 of 299


def test_one_token_that_insists_counts_once():
    guard = guard_that_accepted(60)
    assert not any(guard.refused(key(0), 100.0) for _ in range(200))


def test_the_alarm_ends_a_minute_after_the_storm():
    guard = guard_that_accepted(60)
    refuse(guard, range(60), at=100.0)
    assert guard.is_alarmed(159.9)
    assert not guard.is_alarmed(160.0)


def test_refusals_spread_over_more_than_a_minute_are_no_storm():
    guard = guard_that_accepted(60)
    assert not any(guard.refused(key(number), 100.0 + 2 * number) for number in range(60))


def test_accepted_more_than_a_day_ago_does_not_count():
    guard = guard_that_accepted(60)
    assert not any(refuse(guard, range(60), at=24 * 3600.0))
    guard = guard_that_accepted(60)
    assert refuse(guard, range(60), at=24 * 3600.0 - 1)[-1]


def test_tokens_taken_back_by_the_api_do_not_count():
    guard = guard_that_accepted(60)
    for number in range(60):
        guard.forget(key(number))
    assert not any(refuse(guard, range(60), at=100.0))


def test_taking_tokens_back_after_the_fact_ends_the_alarm():
    guard = guard_that_accepted(60)
    refuse(guard, range(60), at=100.0)
    for number in range(11):
        guard.forget(key(number))
    assert not guard.is_alarmed(100.0)


def test_both_memories_are_bounded():
    limits = IdentityLimits(cache_entries_max=100)
    guard = RefusalGuard(limits)
    for number in range(10_000):
        guard.accepted(key(number), 0.0)
        guard.refused(key(number), 0.0)
    assert len(guard._accepted) == 100
    assert len(guard._refused) == 100
    assert guard._refused_lately_accepted == 100
