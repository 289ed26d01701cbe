from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConflictError
from gateway.rollout.rollout import (
    ACTIONS,
    COUNTED_BELOW,
    SPACE,
    Action,
    RolloutState,
    admitted_count,
    admitted_ranges,
    after,
    effective_bucket,
    is_admitted,
    share_boundary,
    widened,
)

BUCKETS = st.integers(0, SPACE - 1)
BOUNDARIES = st.integers(0, SPACE)

# Rows: widen, pause, resume, finish, abort.
EXPECTED = {
    "running": "running paused running finished aborted",
    "paused": "paused paused running finished aborted",
    "finished": "- - - finished aborted",
    "aborted": "- - - - aborted",
}


@pytest.mark.parametrize("state", RolloutState)
@pytest.mark.parametrize("action", Action)
def test_every_state_answers_every_action(state: RolloutState, action: Action) -> None:
    expected = EXPECTED[state].split()[list(Action).index(action)]
    if expected == "-":
        with pytest.raises(ConflictError) as refused:
            after(state, action)
        assert refused.value.code == "rollout_state"
    else:
        assert after(state, action) is RolloutState(expected)


def test_the_table_has_every_state() -> None:
    assert set(ACTIONS) == set(RolloutState)


class TestBuckets:
    @given(BUCKETS, BUCKETS, BOUNDARIES)
    def test_the_ranges_are_those_who_are_admitted(self, bucket: int, shift: int, boundary: int) -> None:
        ranges = admitted_ranges(shift=shift, boundary=boundary)
        assert len(ranges) <= 2
        inside = any(found.first <= bucket <= found.last for found in ranges)
        assert inside is is_admitted(bucket, shift=shift, boundary=boundary)

    @given(BUCKETS, BOUNDARIES)
    def test_the_ranges_are_as_wide_as_the_boundary(self, shift: int, boundary: int) -> None:
        ranges = admitted_ranges(shift=shift, boundary=boundary)
        assert sum(found.last - found.first + 1 for found in ranges) == boundary
        assert all(0 <= found.first <= found.last < SPACE for found in ranges)

    @given(BUCKETS, BUCKETS, BOUNDARIES, BOUNDARIES)
    def test_a_higher_boundary_keeps_who_was_admitted(self, bucket: int, shift: int, a: int, b: int) -> None:
        if is_admitted(bucket, shift=shift, boundary=min(a, b)):
            assert is_admitted(bucket, shift=shift, boundary=max(a, b))

    @given(BUCKETS, BUCKETS)
    def test_everybody_is_admitted_at_the_whole_space(self, bucket: int, shift: int) -> None:
        assert is_admitted(bucket, shift=shift, boundary=share_boundary(100))
        assert not is_admitted(bucket, shift=shift, boundary=0)

    def test_shifting_wraps(self) -> None:
        assert effective_bucket(SPACE - 1, 1) == 0
        assert [effective_bucket(b, 2) for b in (0, SPACE - 2)] == [2, 0]


class TestBoundary:
    @pytest.mark.parametrize(
        ("percent", "matching", "count"),
        [
            (10, 50, 5),
            (10, 19, 1),  # rounded down
            (1, 50, 1),  # at least one
            (1, 1, 1),
            (99, 100, 99),
            (50, COUNTED_BELOW - 1, 499),
            (50, COUNTED_BELOW, None),  # a share of the buckets
            (100, 50, None),  # all, and who comes later
            (10, 0, None),  # nobody to count
        ],
    )
    def test_few_devices_are_counted(self, percent: int, matching: int, count: int | None) -> None:
        assert admitted_count(percent, matching) == count

    def test_a_share_is_exact_at_its_ends_and_rises(self) -> None:
        shares = [share_boundary(percent) for percent in range(101)]
        assert shares[0] == 0
        assert shares[100] == SPACE
        assert shares[50] == SPACE // 2
        assert shares == sorted(set(shares))

    @given(BOUNDARIES, st.integers(0, 2 * SPACE))
    def test_it_never_moves_back_and_never_leaves_the_space(self, boundary: int, asked: int) -> None:
        assert boundary <= widened(boundary, asked) <= SPACE
