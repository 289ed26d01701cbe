"""The rules of the directive counter, as properties (PROTOCOL §7.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.errors import DirectiveConflictError, ReplayError
from device_sdk.update.counter import Counter, Verdict, judge
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from device_sdk.wire.signed import Directive

sequences = st.integers(0, 6)
deployments = st.integers(1, 3).map(lambda number: number.to_bytes(16, "big"))
digests = st.integers(1, 5).map(lambda number: number.to_bytes(32, "big"))
helds = st.dictionaries(deployments, digests, max_size=3)
BASE = Directive(
    fleet=FleetName("acme"),
    device=DeviceId("dev-1"),
    enrolment=bytes(16),
    deployment=bytes(16),
    manifest_digest=bytes(32),
    sequence=1,
    issued_at=0,
    expires_at=1,
    install_by=1,
    component=ChannelName("main"),
)
directives = st.builds(
    lambda sequence, deployment, digest: replace(
        BASE, sequence=sequence, deployment=deployment, digest=digest
    ),
    sequences,
    deployments,
    digests,
)
counters = st.builds(Counter, sequences, digests, deployments, st.just(bytes(16)))


def outcome(directive: Directive, counter: Counter, held: dict[bytes, bytes]) -> Verdict | type[ReplayError]:
    try:
        return judge(directive, counter, held)
    except ReplayError as error:
        return type(error)


@given(directives, counters, helds)
def test_lower_equal_and_higher(directive: Directive, counter: Counter, held: dict[bytes, bytes]) -> None:
    is_same = directive.digest in (counter.digest, held.get(directive.deployment))
    expected: Verdict | type[ReplayError]
    if is_same:
        expected = Verdict.SAME
    elif directive.sequence < counter.sequence:
        expected = ReplayError
    elif directive.sequence == counter.sequence:
        expected = DirectiveConflictError
    elif directive.deployment in held:
        expected = Verdict.RENEWAL
    else:
        expected = Verdict.NEW
    assert outcome(directive, counter, held) == expected


@given(st.lists(directives, max_size=12))
def test_the_counter_never_falls_and_no_directive_is_new_twice(came: list[Directive]) -> None:
    counter, held = Counter(), dict[bytes, bytes]()
    new = []
    for directive in came:
        before = counter.sequence
        verdict = outcome(directive, counter, held)
        if verdict in (Verdict.NEW, Verdict.RENEWAL):
            counter = Counter.of(directive)
            held[directive.deployment] = directive.digest
            new.append((directive.sequence, directive.digest))
            assert counter.sequence > before
        assert counter.sequence >= before
    assert len(set(new)) == len(new)
    assert [sequence for sequence, _ in new] == sorted({sequence for sequence, _ in new})


@given(directives)
def test_a_directive_that_was_taken_is_the_same_ever_after(directive: Directive) -> None:
    assert judge(directive, Counter.of(directive), {}) is Verdict.SAME


def test_an_older_directive_of_a_job_in_hand_is_the_same_job_though_another_came_since() -> None:
    first = replace(BASE, sequence=1, deployment=b"1" * 16, digest=b"1" * 32)
    counter = Counter(2, b"2" * 32, b"2" * 16, bytes(16))
    assert judge(first, counter, {b"1" * 16: b"1" * 32}) is Verdict.SAME
    with pytest.raises(ReplayError):
        judge(first, counter, {})


@given(counters)
def test_a_counter_is_read_as_it_was_stored(counter: Counter) -> None:
    assert Counter.from_record(counter.to_record()) == counter


def test_nothing_stored_is_the_empty_counter() -> None:
    assert Counter.from_record(None) == Counter()
