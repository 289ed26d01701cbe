from __future__ import annotations

import pytest

from gateway.identity.cache import ExpiringCache


def test_an_entry_ends_at_its_time_exactly():
    cache: ExpiringCache[str] = ExpiringCache(10)
    cache.put(b"a", "x", ends_at=60.0)
    assert cache.find(b"a", 59.999) == "x"
    assert cache.find(b"a", 60.0) is None
    assert len(cache) == 0


def test_the_least_recently_used_goes_first():
    cache: ExpiringCache[str] = ExpiringCache(2)
    cache.put(b"a", "x", ends_at=60.0)
    cache.put(b"b", "y", ends_at=60.0)
    cache.find(b"a", 0.0)
    cache.put(b"c", "z", ends_at=60.0)
    assert [cache.find(key, 0.0) for key in (b"a", b"b", b"c")] == ["x", None, "z"]


def test_a_second_put_replaces_the_first():
    cache: ExpiringCache[str] = ExpiringCache(2)
    cache.put(b"a", "x", ends_at=1.0)
    cache.put(b"a", "y", ends_at=2.0)
    assert cache.find(b"a", 1.5) == "y"
    assert len(cache) == 1


def test_drop_forgets_and_does_not_mind_a_stranger():
    cache: ExpiringCache[str] = ExpiringCache(2)
    cache.put(b"a", "x", ends_at=1.0)
    cache.drop(b"a")
    cache.drop(b"b")
    assert cache.find(b"a", 0.0) is None


def test_it_never_holds_more_than_its_bound():
    cache: ExpiringCache[int] = ExpiringCache(100)
    for number in range(10_000):
        cache.put(number.to_bytes(4, "big"), number, ends_at=1.0)
    assert len(cache) == 100


def test_a_cache_for_nothing_is_our_bug():
    with pytest.raises(AssertionError):
        ExpiringCache(0)
