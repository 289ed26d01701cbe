from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import OriginUnavailableError
from gateway.origin import Circuit, CircuitState, OriginLimits, Outcome

LIMITS = OriginLimits(circuit_failures=3, circuit_open_s=1.0, circuit_open_max_s=4.0)


def circuit_in(state: CircuitState) -> tuple[Circuit, int]:
    """Return a circuit at time 0 and the turn of a question that it let through in that state."""
    circuit = Circuit(LIMITS)
    turn = circuit.begin(-10.0)
    if state is CircuitState.CLOSED:
        return circuit, turn
    for _ in range(3):
        circuit.end(circuit.begin(-10.0), Outcome.FAILED, -10.0)
    if state is CircuitState.HALF_OPEN:
        return circuit, circuit.begin(0.0)
    return circuit, turn


@pytest.mark.parametrize(
    ("state", "outcome", "after"),
    [
        (CircuitState.CLOSED, Outcome.ANSWERED, CircuitState.CLOSED),
        (CircuitState.CLOSED, Outcome.FAILED, CircuitState.CLOSED),
        (CircuitState.CLOSED, Outcome.ABANDONED, CircuitState.CLOSED),
        (CircuitState.OPEN, Outcome.ANSWERED, CircuitState.OPEN),
        (CircuitState.OPEN, Outcome.FAILED, CircuitState.OPEN),
        (CircuitState.OPEN, Outcome.ABANDONED, CircuitState.OPEN),
        (CircuitState.HALF_OPEN, Outcome.ANSWERED, CircuitState.CLOSED),
        (CircuitState.HALF_OPEN, Outcome.FAILED, CircuitState.OPEN),
        (CircuitState.HALF_OPEN, Outcome.ABANDONED, CircuitState.OPEN),
    ],
)
def test_every_state_takes_every_outcome(state, outcome, after):
    circuit, turn = circuit_in(state)
    assert circuit.state is state
    circuit.end(turn, outcome, 0.0)
    assert circuit.state is after


def fail(circuit: Circuit, now: float, times: int = 1) -> None:
    for _ in range(times):
        circuit.end(circuit.begin(now), Outcome.FAILED, now)


def test_it_opens_at_the_last_failure_in_a_row_and_an_answer_starts_the_count_again():
    circuit = Circuit(LIMITS)
    fail(circuit, 0.0, 2)
    circuit.end(circuit.begin(0.0), Outcome.ANSWERED, 0.0)
    fail(circuit, 0.0, 2)
    assert circuit.state is CircuitState.CLOSED
    fail(circuit, 0.0)
    assert circuit.state is CircuitState.OPEN


def test_open_it_says_when_to_come_back_and_then_lets_one_probe_through():
    circuit = Circuit(LIMITS)
    fail(circuit, 0.0, 3)
    with pytest.raises(OriginUnavailableError) as caught:
        circuit.begin(0.999)
    assert caught.value.code == "origin_circuit_open"
    assert caught.value.retry_after_s == 1.0
    circuit.begin(1.0)
    with pytest.raises(OriginUnavailableError):
        circuit.begin(1.0)


def test_each_failed_probe_doubles_the_wait_up_to_its_bound_and_an_answer_resets_it():
    circuit = Circuit(LIMITS)
    fail(circuit, 0.0, 3)
    now = 0.0
    for wait_s in (1.0, 2.0, 4.0, 4.0):
        with pytest.raises(OriginUnavailableError):
            circuit.begin(now + wait_s - 0.001)
        now += wait_s
        fail(circuit, now)
    circuit.end(circuit.begin(now + 4.0), Outcome.ANSWERED, now + 4.0)
    fail(circuit, now + 4.0, 3)
    circuit.begin(now + 5.0)


def test_an_answer_to_a_question_of_before_does_not_close_it():
    circuit = Circuit(LIMITS)
    old = circuit.begin(0.0)
    fail(circuit, 0.0, 3)
    circuit.end(old, Outcome.ANSWERED, 0.5)
    assert circuit.state is CircuitState.OPEN


def test_a_failure_of_before_does_not_end_the_probe():
    circuit = Circuit(LIMITS)
    old = circuit.begin(0.0)
    fail(circuit, 0.0, 3)
    probe = circuit.begin(1.0)
    circuit.end(old, Outcome.FAILED, 1.5)
    assert circuit.state is CircuitState.HALF_OPEN
    circuit.end(probe, Outcome.ANSWERED, 2.0)
    assert circuit.state is CircuitState.CLOSED


def test_a_probe_given_up_makes_way_for_the_next_at_once():
    circuit = Circuit(LIMITS)
    fail(circuit, 0.0, 3)
    circuit.end(circuit.begin(1.0), Outcome.ABANDONED, 1.2)
    circuit.begin(1.2)
    assert circuit.state is CircuitState.HALF_OPEN


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.floats(0, 3)), max_size=60))
def test_it_never_stays_shut_for_longer_than_its_bound(steps):
    circuit, now = Circuit(LIMITS), 0.0
    for outcome, wait_s in steps:
        now += wait_s
        try:
            circuit.end(circuit.begin(now), outcome, now)
        except OriginUnavailableError:
            assert circuit.state is CircuitState.OPEN
    circuit.begin(now + LIMITS.circuit_open_max_s)
