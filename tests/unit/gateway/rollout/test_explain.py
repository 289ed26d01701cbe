"""Why a device does not run a release: one test for each reason, and that there is always one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.wire.messages import Installed
from gateway.rollout.deployment import State
from gateway.rollout.desired import Active, Past, creation
from gateway.rollout.explain import (
    Connection,
    Facts,
    Reason,
    ReasonCode,
    RolloutFacts,
    explain,
    text_of,
    unmet,
)
from gateway.rollout.explain import _candidates as candidates_of
from gateway.rollout.model import DeploymentRow
from gateway.rollout.rollout import SPACE, Rollout, RolloutState
from gateway.rollout.selector import Subject, parse_selector, predicate
from tests.harness import selectors as strategies

CODES_PAGE = Path(__file__).parents[4] / "docs/reference/codes.md"
RELEASE, OTHER_RELEASE = b"R" * 16, b"S" * 16
DIGEST, OTHER_DIGEST = b"d" * 32, b"e" * 32
ONLINE = Connection(is_connected=True, attempts_max=20)
AWAY = replace(ONLINE, is_connected=False)


def rollout(number: int = 1, **fields: Any) -> Rollout:
    given = {
        "id": bytes([number]) * 16,
        "fleet_key": 1,
        "channel_id": 5,
        "channel": "fw",
        "release_id": RELEASE,
        "name": "spring",
        "state": RolloutState.RUNNING,
        "priority": 0,
        "shift": 0,
        "selector": None,
        "percent": 100,
        "boundary": SPACE,
        "component": "main",
        "sequence": 7,
        "created_at": 0,
        "updated_at": 9,
        "version": 1,
    }
    return Rollout(**given | fields)  # type: ignore[arg-type]


def facts_of(one: Rollout | None = None, *, is_subscribed: bool = True, **fields: Any) -> RolloutFacts:
    one = one or rollout()
    digest = DIGEST if one.release_id == RELEASE else OTHER_DIGEST
    return RolloutFacts(rollout=one, manifest_digest=digest, is_subscribed=is_subscribed, **fields)


def deployment(state: State, of: Rollout | None = None, **fields: Any) -> DeploymentRow:
    of = of or rollout()
    given = {
        "id": b"D" * 16,
        "rollout_id": of.id,
        "release_id": of.release_id,
        "device_key": 3,
        "device_id": "pump",
        "component": "main",
        "attempt": 1,
        "state": state,
        "progress": None,
        "code": None,
        "detail": None,
        "is_cancelling": False,
        "is_inferred": False,
        "sends": 2,
        "notified_at": 1,
        "sent_at": 1,
        "received_at": None,
        "verified_at": None,
        "ended_at": None if state.is_active else 4,
        "updated_at": 4,
    }
    return DeploymentRow(**given | fields)  # type: ignore[arg-type]


def world(*rollouts: RolloutFacts, **fields: Any) -> Facts:
    """Return a device that is to get the release at once, but for ``fields``."""
    given = {
        "device_key": 3,
        "subject": Subject("pump", {"model": "tc3"}, {"firmware": "1.3"}, frozenset({"eu"})),
        "is_enabled": True,
        "last_seen_at": 5,
        "bucket": 1000,
        "installed": Installed(6, "1.3", OTHER_DIGEST, True),
        "release_id": RELEASE,
        "component": "main",
        "sequence": 7,
        "manifest_digest": DIGEST,
        "active": None,
        "committed_sequence": None,
        "rollouts": rollouts or (facts_of(),),
    }
    return Facts(**given | fields)  # type: ignore[arg-type]


def codes(facts: Facts, connection: Connection = ONLINE, **options: Any) -> list[str]:
    return [reason.code.value for reason in explain(facts, connection, **options)]


def the(code: ReasonCode, facts: Facts, connection: Connection = ONLINE) -> Reason:
    (found,) = [reason for reason in explain(facts, connection) if reason.code is code]
    return found


class TestTheDevice:
    def test_that_runs_it_has_no_other_reason(self) -> None:
        running = world(
            installed=Installed(7, "1.4", DIGEST, True), is_enabled=False, last_seen_at=None, rollouts=()
        )
        assert codes(running, AWAY) == ["already_installed"]

    def test_that_has_not_confirmed_it(self) -> None:
        assert codes(world(installed=Installed(7, "1.4", DIGEST, False))) == ["not_confirmed"]

    def test_that_runs_a_newer_one(self) -> None:
        newer = world(installed=Installed(9, "2.0", OTHER_DIGEST, True), committed_sequence=9)
        assert codes(newer) == ["newer_installed", "newer_committed"]
        assert the(ReasonCode.NEWER_INSTALLED, newer).facts == {"sequence": 7, "installed_sequence": 9}
        assert the(ReasonCode.NEWER_COMMITTED, newer).facts == {"sequence": 7, "committed_sequence": 9}

    def test_that_is_disabled_is_not_said_to_be_due(self) -> None:
        assert codes(world(is_enabled=False)) == ["device_disabled"]

    def test_that_never_connected(self) -> None:
        assert codes(world(last_seen_at=None), AWAY) == ["never_seen", "due"]

    def test_that_is_offline_since(self) -> None:
        assert codes(world(), AWAY) == ["offline", "due"]
        assert the(ReasonCode.OFFLINE, world(), AWAY).at == 5
        assert "when the device connects" in the(ReasonCode.DUE, world(), AWAY).detail


class TestTheRollout:
    def test_there_is_none(self) -> None:
        assert codes(world(facts_of(rollout(release_id=OTHER_RELEASE)))) == ["no_rollout"]

    def test_is_not_the_one_that_was_asked_about(self) -> None:
        assert codes(world(), rollout_id=b"x" * 16) == ["no_rollout"]
        assert codes(world(), rollout_id=rollout().id) == ["due"]

    @pytest.mark.parametrize("state", ["paused", "finished", "aborted"])
    def test_sends_nothing_in_its_state(self, state: str) -> None:
        stopped = world(facts_of(rollout(state=RolloutState(state))))
        assert codes(stopped) == [f"rollout_{state}"]
        assert explain(stopped, ONLINE)[0].at == 9

    def test_is_of_a_channel_that_the_device_is_not_in(self) -> None:
        away = world(facts_of(is_subscribed=False))
        assert codes(away) == ["not_subscribed"]
        assert the(ReasonCode.NOT_SUBSCRIBED, away).facts == {"channel": "fw"}

    def test_has_not_come_to_the_device(self) -> None:
        early = world(facts_of(rollout(percent=1, boundary=1500, shift=700)))
        assert codes(early) == ["not_admitted"]
        assert the(ReasonCode.NOT_ADMITTED, early).facts == {"place": 1700, "boundary": 1500, "percent": 1}

    @pytest.mark.parametrize(
        ("selector", "term", "has"),
        [
            ('tag == "us"', 'tag == "us"', "its tags are eu"),
            ('origin.model == "tc3" and tag == "us"', 'tag == "us"', "its tags are eu"),
            ('reported.firmware < "1.2"', 'reported.firmware < "1.2"', 'its reported.firmware is "1.3"'),
            ("origin.beta == true", "origin.beta == true", "its origin.beta is not set"),
            ('device_id in ("a", "b")', 'device_id in ("a", "b")', "the device is pump"),
            ('not tag == "eu"', 'not tag == "eu"', None),
            ('tag == "us" or tag == "cn"', 'tag == "us" or tag == "cn"', None),
        ],
    )
    def test_s_selector_does_not_match_and_which_term_says_so(
        self, selector: str, term: str, has: str | None
    ) -> None:
        other = world(facts_of(rollout(selector=selector)))
        assert codes(other) == ["selector_mismatch"]
        found = the(ReasonCode.SELECTOR_MISMATCH, other)
        assert found.facts == {"term": term, "selector": selector}
        assert found.detail.endswith(f"; {has}" if has else term)

    def test_s_boundary_and_selector_are_nothing_to_a_device_that_it_notified(self) -> None:
        narrow = rollout(boundary=0, selector='tag == "us"')
        again = facts_of(narrow, past=deployment(State.SUPERSEDED, narrow))
        assert codes(world(again)) == ["due"]

    def test_is_outranked_by_another(self) -> None:
        first = rollout(2, release_id=OTHER_RELEASE, sequence=8, state=RolloutState.PAUSED)
        both = world(facts_of(), facts_of(first))
        assert codes(both) == ["outranked"]
        assert the(ReasonCode.OUTRANKED, both).facts == {
            "by_rollout_id": first.id,
            "priority": 0,
            "sequence": 8,
            "state": "paused",
        }

    def test_is_not_outranked_by_one_that_does_not_mean_the_device(self) -> None:
        other = rollout(2, release_id=OTHER_RELEASE, sequence=8, selector='tag == "us"')
        assert codes(world(facts_of(), facts_of(other))) == ["due"]

    def test_of_the_same_release_stands_in_the_way_only_if_it_is_paused(self) -> None:
        twin = rollout(2)
        assert codes(world(facts_of(), facts_of(twin))) == ["due", "due"]
        paused = facts_of(replace(twin, state=RolloutState.PAUSED))
        assert codes(world(facts_of(), paused)) == ["outranked", "rollout_paused"]


class TestTheDeployment:
    def test_waits_for_its_acknowledgement(self) -> None:
        waiting = world(active=deployment(State.NOTIFIED))
        assert codes(waiting) == ["awaiting_acknowledgement"]
        found = the(ReasonCode.AWAITING_ACKNOWLEDGEMENT, waiting, replace(ONLINE, next_attempt_at=77))
        assert (found.at, found.deployment_id) == (77, b"D" * 16)
        assert found.facts == {"attempt": 2, "attempts_max": 20, "sent_at": 1}
        assert "attempt 2 of 20" in found.detail

    def test_is_sent_again_when_the_device_connects(self) -> None:
        waiting = world(active=deployment(State.NOTIFIED))
        assert codes(waiting, AWAY) == ["offline", "awaiting_acknowledgement"]
        assert "when the device connects" in explain(waiting, AWAY)[1].detail

    def test_of_a_paused_rollout_is_not_sent_again(self) -> None:
        paused = facts_of(rollout(state=RolloutState.PAUSED), is_subscribed=False)
        found = codes(world(paused, active=deployment(State.NOTIFIED)))
        assert found == ["rollout_paused", "not_subscribed", "awaiting_acknowledgement"]

    @pytest.mark.parametrize("state", ["received", "verified", "downloading", "installing", "rebooting"])
    def test_is_in_progress(self, state: str) -> None:
        busy = world(active=deployment(State(state), progress=40))
        assert codes(busy) == ["in_progress"]
        assert explain(busy, ONLINE)[0].facts == {"state": state, "progress": 40}

    def test_is_being_cancelled(self) -> None:
        stopping = world(active=deployment(State.INSTALLING, is_cancelling=True))
        assert codes(stopping) == ["cancelling"]

    def test_of_another_release_is_waited_for(self) -> None:
        other = rollout(2, release_id=OTHER_RELEASE, sequence=6)
        busy = world(facts_of(), facts_of(other), active=deployment(State.INSTALLING, other))
        assert codes(busy) == ["awaiting_outcome"]
        early = replace(busy, active=deployment(State.DOWNLOADING, other))
        assert codes(early) == ["due"], "it is superseded"

    @pytest.mark.parametrize(
        ("state", "reason"),
        [
            (State.REJECTED, "rejected"),
            (State.FAILED, "failed"),
            (State.ROLLED_BACK, "rolled_back"),
            (State.TIMED_OUT, "timed_out"),
            (State.CANCELLED, "cancelled"),
            (State.COMMITTED, "committed_before"),
        ],
    )
    def test_has_ended(self, state: State, reason: str) -> None:
        over = world(facts_of(past=deployment(state, code="rollback")))
        assert codes(over) == [reason]
        found = explain(over, ONLINE)[0]
        assert (found.at, found.facts["code"]) == (4, "rollback")
        assert found.detail.endswith("(rollback)")

    def test_that_was_refused_for_its_time_is_offered_again(self) -> None:
        late = deployment(State.REJECTED, code="expired")
        assert codes(world(facts_of(past=late))) == ["due"]
        last = replace(late, attempt=3)
        assert codes(world(facts_of(past=last))) == ["rejected"]


def test_every_reason_is_in_the_registry() -> None:
    section = re.search(r"^## Reasons of an explanation\n(.*?)^## ", CODES_PAGE.read_text(), re.M | re.S)
    assert section is not None
    assert re.findall(r"^\| `([^`]+)` \|", section[1], re.M) == [code.value for code in ReasonCode]


# --- properties -----------------------------------------------------------------------------------------

ROLLOUTS = st.builds(
    lambda number, release, state, priority, boundary, selector: rollout(
        number,
        release_id=release,
        sequence=7 if release == RELEASE else 8,
        state=state,
        priority=priority,
        boundary=boundary,
        selector=selector,
    ),
    st.integers(1, 4),
    st.sampled_from([RELEASE, OTHER_RELEASE]),
    st.sampled_from(list(RolloutState)),
    st.integers(0, 1),
    st.sampled_from([0, SPACE]),
    st.sampled_from([None, 'tag == "eu"', 'tag == "us"']),
)


@st.composite
def worlds(draw: st.DrawFn) -> Facts:
    found = {one.id: one for one in draw(st.lists(ROLLOUTS, max_size=4))}
    ended = st.sampled_from([state for state in State if not state.is_active])
    pasts = {
        one.id: draw(st.none() | st.builds(deployment, ended, st.just(one), code=st.just("expired")))
        for one in found.values()
    }
    active = None
    if found and draw(st.booleans()):
        of = draw(st.sampled_from(list(found.values())))
        active = deployment(draw(st.sampled_from([state for state in State if state.is_active])), of)
        pasts[of.id] = None
    installed = st.builds(
        Installed,
        st.integers(5, 9),
        st.just("1"),
        st.sampled_from([DIGEST, OTHER_DIGEST]),
        st.booleans(),
    )
    rows = tuple(
        facts_of(one, is_subscribed=draw(st.booleans()), past=pasts[one.id]) for one in found.values()
    )
    return replace(
        world(),
        is_enabled=draw(st.booleans()),
        last_seen_at=draw(st.none() | st.just(5)),
        installed=draw(st.none() | installed),
        committed_sequence=draw(st.none() | st.integers(6, 9)),
        active=active,
        rollouts=rows,
    )


@given(worlds(), st.booleans())
def test_there_is_always_a_reason_and_what_is_due_is_what_devices_are_sent(
    facts: Facts, is_connected: bool
) -> None:
    reasons = explain(facts, replace(ONLINE, is_connected=is_connected))
    assert reasons
    made = creation(
        candidates_of(facts),
        active=None
        if facts.active is None
        else Active(facts.active.id, facts.active.release_id, facts.active.state),
        past={
            one.rollout.id: Past(one.past.attempt, one.past.state, one.past.code)
            for one in facts.rollouts
            if one.past is not None
        },
        installed=facts.installed,
        committed_sequence=facts.committed_sequence,
    )
    is_sent = facts.is_enabled and made is not None and made.candidate.release_id == RELEASE
    assert any(reason.code is ReasonCode.DUE for reason in reasons) == is_sent


@given(strategies.SELECTORS)
def test_a_selector_s_text_is_read_as_that_selector(selector: Any) -> None:
    assert parse_selector(text_of(selector)) == selector


@given(strategies.SELECTORS, strategies.SUBJECTS)
def test_what_is_unmet_is_not_met(selector: Any, subject: Subject) -> None:
    if not predicate(selector)(subject):
        assert not predicate(unmet(selector, subject))(subject)
