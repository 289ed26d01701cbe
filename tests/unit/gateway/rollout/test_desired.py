from __future__ import annotations

import pytest

from device_sdk.wire.messages import Installed
from gateway.rollout.deployment import SUPERSEDABLE, State
from gateway.rollout.desired import Active, Candidate, Creation, Past, creation
from gateway.rollout.rollout import RolloutState


def candidate(
    number: int, *, sequence: int = 1, priority: int = 0, state: RolloutState = RolloutState.RUNNING
) -> Candidate:
    return Candidate(
        bytes([number]), state, priority, sequence, b"release%d" % sequence, "main", b"digest%d" % sequence
    )


def decide(
    *candidates: Candidate,
    active: Active | None = None,
    past: dict[bytes, Past] | None = None,
    installed: Installed | None = None,
    committed_sequence: int | None = None,
) -> Creation | None:
    return creation(
        candidates,
        active=active,
        past=past or {},
        installed=installed,
        committed_sequence=committed_sequence,
    )


def active(state: State, *, release_id: bytes = b"another") -> Active:
    return Active(b"deployment", release_id, state)


class TestPrecedence:
    def test_nothing_applies(self) -> None:
        assert decide() is None

    def test_priority_goes_before_sequence_and_sequence_before_age(self) -> None:
        low, high = candidate(1, sequence=9), candidate(2, sequence=1, priority=1)
        assert decide(low, high) == Creation(high, 1, None)
        older, newer = candidate(3, sequence=5), candidate(4, sequence=5)
        assert decide(newer, older) == Creation(newer, 1, None)

    @pytest.mark.parametrize("state", [state for state in RolloutState if state is not RolloutState.RUNNING])
    def test_a_first_that_does_not_run_gives_no_way_to_an_older_release(self, state: RolloutState) -> None:
        assert decide(candidate(1, sequence=1), candidate(2, sequence=2, state=state)) is None

    @pytest.mark.parametrize("state", [State.FAILED, State.REJECTED, State.ROLLED_BACK, State.COMMITTED])
    def test_a_first_that_has_ended_gives_no_way_to_an_older_release(self, state: State) -> None:
        newest = candidate(2, sequence=2)
        assert decide(candidate(1), newest, past={newest.rollout_id: Past(1, state)}) is None


class TestOnce:
    @pytest.mark.parametrize("state", [s for s in State if not s.is_active and s is not State.SUPERSEDED])
    def test_an_ended_deployment_is_not_created_again(self, state: State) -> None:
        one = candidate(1)
        assert decide(one, past={one.rollout_id: Past(1, state)}) is None

    def test_one_that_was_superseded_is_once_nothing_stands_before_it(self) -> None:
        one = candidate(1)
        assert decide(one, past={one.rollout_id: Past(2, State.SUPERSEDED)}) == Creation(one, 3, None)

    @pytest.mark.parametrize("code", ["expired", "install_by_passed", "clock_unknown"])
    def test_one_that_was_refused_for_its_time_comes_again_a_few_times(self, code: str) -> None:
        one = candidate(1)
        for attempt, expected in ((1, Creation(one, 2, None)), (2, Creation(one, 3, None)), (3, None)):
            assert decide(one, past={one.rollout_id: Past(attempt, State.REJECTED, code)}) == expected
        assert decide(one, past={one.rollout_id: Past(1, State.FAILED, code)}) is None

    @pytest.mark.parametrize("code", ["rollback", "bad_signature", "incompatible", None])
    def test_a_release_that_was_refused_does_not(self, code: str | None) -> None:
        one = candidate(1)
        assert decide(one, past={one.rollout_id: Past(1, State.REJECTED, code)}) is None

    def test_but_not_below_what_the_device_runs_meanwhile(self) -> None:
        one = candidate(1, sequence=5)
        newer = Installed(6, "", b"other", True)
        assert decide(one, past={one.rollout_id: Past(1, State.SUPERSEDED)}, installed=newer) is None

    def test_who_runs_the_release_already_gets_no_deployment(self) -> None:
        one = candidate(1, sequence=3)
        assert decide(one, installed=Installed(3, "1", b"digest3", True)) is None
        assert decide(one, installed=Installed(3, "1", b"other", True)) is not None

    def test_a_newer_one_that_was_committed_is_not_undone_when_its_rollout_ends(self) -> None:
        assert decide(candidate(1, sequence=3), committed_sequence=4) is None
        assert decide(candidate(1, sequence=3), committed_sequence=3) is not None

    def test_a_device_that_claims_a_higher_sequence_may_say_so_itself(self) -> None:
        # It refuses with its code; the operator is told instead of left to guess.
        assert decide(candidate(1, sequence=3), installed=Installed(9, "9", b"other", True)) is not None


class TestSuperseding:
    @pytest.mark.parametrize("state", [s for s in State if s.is_active])
    def test_up_to_downloading(self, state: State) -> None:
        held = active(state)
        one = candidate(1)
        expected = Creation(one, 1, held) if state in SUPERSEDABLE else None
        assert decide(one, active=held) == expected

    def test_the_same_release_is_left_to_end(self) -> None:
        assert decide(candidate(1, sequence=3), active=active(State.NOTIFIED, release_id=b"release3")) is None
