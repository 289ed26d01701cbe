from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.wire.messages import REPORT_STATES, Hello, Installed, Report
from gateway.rollout.deployment import (
    TOO_LATE,
    TRANSITIONS,
    Deployment,
    Event,
    State,
    cancel,
    conclude,
    fold,
    infer,
    matrix,
    mermaid,
    receive,
    supersede,
    time_out,
)

DOCUMENT = Path(__file__).parents[4] / "docs/reference/deployments.md"
NOW = 1_800_000_000_000
BOOT, NEXT_BOOT = bytes(16), b"\1" * 16
PROGRESS = ["received", "verified", "downloading", "installing", "rebooting"]
OUTCOMES = ["committed", "rolled_back", "failed", "rejected", "cancelled"]
ACTIVE = [state for state in State if state.is_active]
ENDED = [state for state in State if not state.is_active]

# Columns: the events in their order. "." changes nothing; "=" stays, with something to note; "O" is every
# outcome, "D" those that are deeds.
EXPECTED = {
    #               received verified downloading installing rebooting
    "notified": "    received verified downloading installing rebooting O cancelled superseded timed_out",
    "received": "    =        verified downloading installing rebooting O cancelled superseded .",
    "verified": "    .        =        downloading installing rebooting O cancelled superseded .",
    "downloading": " .        .        =           installing rebooting O cancelled superseded .",
    "installing": "  .        .        .           =          rebooting O =         .          .",
    "rebooting": "   .        .        .           .          =         O =         .          .",
    "committed": "   .        .        .           .          .         . . . . . . . .",
    "rolled_back": " .        .        .           .          .         . . . . . . . .",
    "failed": "      .        .        .           .          .         . . . . . . . .",
    "rejected": "    .        .        .           .          .         . . . . . . . .",
    "timed_out": "   .        .        .           .          .         O . . .",
    "cancelled": "   .        .        .           .          .         D . . . . .",
    "superseded": "  .        .        .           .          .         D . . . . .",
}


def expected(state: State, event: Event) -> State | None:
    row = EXPECTED[state].replace("O", " ".join(OUTCOMES)).replace("D", "committed rolled_back failed")
    cells = row.split()
    assert len(cells) == len(Event)
    cell = cells[list(Event).index(event)]
    return None if cell == "." else state if cell == "=" else State(cell)


def report(state: str, seq: int = 0, **fields: object) -> Report:
    return Report(id=seq.to_bytes(16, "big"), deployment=bytes(16), seq=seq, state=state, **fields)  # type: ignore[arg-type]


def folded(deployment: Deployment, *reports: Report, now_ms: int = NOW) -> Deployment:
    for one in reports:
        deployment = fold(deployment, one, boot_id=BOOT, now_ms=now_ms)
    return deployment


def hello(
    *, digest: bytes | None, is_confirmed: bool = True, boot_id: bytes = NEXT_BOOT, last_directive: int = 5
) -> Hello:
    installed = {} if digest is None else {"main": Installed(1, "1", digest, is_confirmed)}
    return Hello(1, 32, boot_id, installed=installed, last_directive=last_directive)


def inferred(deployment: Deployment, said: Hello) -> tuple[State | None, bool]:
    return infer(deployment, said, component="main", manifest_digest=b"target", directive_sequence=5)


class TestTable:
    @pytest.mark.parametrize("state", State)
    @pytest.mark.parametrize("event", Event)
    def test_every_state_answers_every_event(self, state: State, event: Event) -> None:
        assert TRANSITIONS[state].get(event) is expected(state, event)

    @pytest.mark.parametrize("state", State)
    @pytest.mark.parametrize("event", [e for e in Event if e.value in REPORT_STATES])
    def test_reports_move_as_the_table_says(self, state: State, event: Event) -> None:
        moved = folded(Deployment(state=state), report(event.value, 3))
        assert moved.state is (expected(state, event) or state)
        assert moved.report_seq == 3

    def test_every_state_that_a_device_reports_is_an_event(self) -> None:
        assert set(REPORT_STATES) <= {event.value for event in Event}

    def test_an_outcome_is_what_is_not_active(self) -> None:
        assert {state for state in State if not TRANSITIONS[state]} <= set(ENDED)
        assert all(Event.COMMITTED in TRANSITIONS[state] for state in ACTIVE)


class TestDocument:
    def test_the_picture_and_the_matrix_are_the_table(self) -> None:
        text = DOCUMENT.read_text()
        pictures = re.findall(r"```mermaid\n(.*?)\n```", text, re.DOTALL)
        assert pictures == [mermaid()], (
            "python -c 'from gateway.rollout import deployment as d; print(d.mermaid())'"
        )
        assert matrix() in text

    def test_every_change_of_the_table_is_an_arrow(self) -> None:
        arrows = re.findall(r"^ *(\w+) --> (\w+): (.*)$", mermaid(), re.MULTILINE)
        drawn = {(a, b, event) for a, b, events in arrows for event in events.split(", ")}
        groups = {"active": set(ACTIVE), "stoppable": {State(s) for s in ("notified", *PROGRESS[:3])}}
        for state, events in TRANSITIONS.items():
            for event, after in events.items():
                if after is state or after.is_active:
                    continue
                sources = {state.value} | {name for name, group in groups.items() if state in group}
                assert any((source, after.value, event.value) in drawn for source in sources), (state, event)


class TestFolding:
    def test_a_whole_update(self) -> None:
        done = receive(Deployment(sends=1), NOW)
        done = folded(done, *(report(state, seq) for seq, state in enumerate([*PROGRESS, "committed"])))
        assert done.state is State.COMMITTED
        assert (done.received_at, done.verified_at, done.ended_at) == (NOW, NOW, NOW)
        assert not done.is_inferred

    def test_skipping_forward_notes_what_must_have_been(self) -> None:
        done = folded(Deployment(), report("downloading"))
        assert done.state is State.DOWNLOADING
        assert (done.received_at, done.verified_at, done.ended_at) == (NOW, NOW, None)

    def test_a_refusal_is_rejected_with_its_code_and_was_not_verified(self) -> None:
        done = folded(receive(Deployment(), NOW), report("rejected", code="rollback", detail="5 is below 9"))
        assert (done.state, done.code, done.detail) == (State.REJECTED, "rollback", "5 is below 9")
        assert done.verified_at is None
        assert done.ended_at == NOW

    def test_progress_moves_within_a_step_and_begins_anew_with_the_next(self) -> None:
        now = folded(
            Deployment(), report("downloading", 1, progress=10), report("downloading", 2, progress=60)
        )
        assert now.progress == 60
        assert folded(now, report("downloading", 3)).progress == 60
        assert folded(now, report("installing", 3)).progress is None

    @pytest.mark.parametrize("seq", [3, 4])
    def test_a_stale_report_changes_nothing(self, seq: int) -> None:
        now = folded(Deployment(), report("downloading", 4, progress=60))
        assert folded(now, report("installing", seq, progress=1, code="x")) is now

    def test_a_report_of_an_earlier_step_changes_nothing_but_its_number(self) -> None:
        now = folded(Deployment(), report("installing", 4, progress=60))
        assert folded(now, report("downloading", 5, progress=1), now_ms=NOW + 1) == replace(now, report_seq=5)

    def test_a_state_of_a_later_version_changes_nothing(self) -> None:
        now = folded(Deployment(), report("installing", 4))
        assert folded(now, report("unknown", 5)) is now

    def test_an_outcome_counts_even_with_an_old_number(self) -> None:
        # Flash was lost and numbers began anew: without this the deployment would be stuck for ever.
        now = folded(Deployment(), report("rebooting", 9))
        assert folded(now, report("committed", 2)).state is State.COMMITTED
        assert folded(now, report("committed", 2)).report_seq == 9

    def test_the_first_true_outcome_stands(self) -> None:
        done = folded(Deployment(), report("failed", 2, code="no_space"))
        assert folded(done, report("committed", 3)) == replace(done, report_seq=3)

    def test_a_rebooting_device_leaves_its_boot(self) -> None:
        assert folded(Deployment(boot_id=None), report("rebooting")).boot_id == BOOT
        assert folded(Deployment(boot_id=NEXT_BOOT), report("installing")).boot_id == NEXT_BOOT

    @given(st.integers(0, 5), st.sampled_from(OUTCOMES), st.randoms(use_true_random=False))
    def test_what_an_honest_device_said_comes_out_whatever_the_order(
        self, steps: int, outcome: str, order: random.Random
    ) -> None:
        said = [report(state, seq) for seq, state in enumerate([*PROGRESS[:steps], outcome])]
        mixed = [*said, *said]
        order.shuffle(mixed)
        a, b = folded(Deployment(), *said), folded(Deployment(), *mixed)
        assert (a.state, a.report_seq, a.code) == (b.state, b.report_seq, b.code)


class TestReceiving:
    def test_it_is_a_fact_once(self) -> None:
        one = receive(Deployment(), NOW)
        assert (one.state, one.received_at) == (State.RECEIVED, NOW)
        assert receive(one, NOW + 5) is one

    def test_it_does_not_take_progress_back(self) -> None:
        assert receive(Deployment(state=State.INSTALLING), NOW).state is State.INSTALLING

    @pytest.mark.parametrize("state", ENDED)
    def test_one_that_ended_stays_ended_and_the_fact_is_kept(self, state: State) -> None:
        done = receive(Deployment(state=state), NOW)
        assert (done.state, done.received_at) == (state, NOW)

    def test_what_was_forgotten_is_known_again(self) -> None:
        now = receive(Deployment(state=State.DOWNLOADING, received_at=1, is_forgotten=True), NOW)
        assert not now.is_forgotten
        assert (now.state, now.received_at) == (State.DOWNLOADING, 1)


class TestCancelling:
    @pytest.mark.parametrize("state", ["notified", *PROGRESS[:3]])
    def test_it_ends_at_once_up_to_downloading_and_the_device_is_told(self, state: str) -> None:
        done = cancel(Deployment(state=State(state), sends=1), NOW)
        assert (done.state, done.is_cancelling, done.ended_at) == (State.CANCELLED, True, NOW)

    def test_one_that_was_never_sent_has_nobody_to_tell(self) -> None:
        assert not cancel(Deployment(), NOW).is_cancelling

    @pytest.mark.parametrize("state", [State.INSTALLING, State.REBOOTING])
    def test_it_is_a_request_from_installing_on(self, state: State) -> None:
        asked = cancel(Deployment(state=state, sends=1), NOW)
        assert (asked.state, asked.is_cancelling, asked.ended_at) == (state, True, None)
        answered = folded(asked, report("cancelled", 7))
        assert (answered.state, answered.is_cancelling) == (State.CANCELLED, False)
        too_late = folded(asked, report(state.value, 7, code=TOO_LATE))
        assert (too_late.state, too_late.is_cancelling) == (state, False)
        assert folded(asked, report("committed", 7)).state is State.COMMITTED

    def test_progress_is_no_answer(self) -> None:
        asked = cancel(Deployment(state=State.INSTALLING, sends=1), NOW)
        assert folded(asked, report("rebooting", 7)).is_cancelling

    @pytest.mark.parametrize("state", ENDED)
    def test_one_that_ended_is_left_alone(self, state: State) -> None:
        done = Deployment(state=state, sends=1)
        assert cancel(done, NOW) is done

    def test_the_device_confirms(self) -> None:
        done = folded(cancel(Deployment(sends=1), NOW), report("cancelled", 2))
        assert (done.state, done.is_cancelling) == (State.CANCELLED, False)

    @pytest.mark.parametrize("outcome", ["committed", "rolled_back", "failed"])
    def test_what_the_device_did_all_the_same_is_told(self, outcome: str) -> None:
        done = folded(cancel(Deployment(state=State.DOWNLOADING, sends=1), NOW), report(outcome, 2))
        assert (done.state, done.is_cancelling, done.ended_at) == (State(outcome), False, NOW)


class TestSuperseding:
    @pytest.mark.parametrize("state", ["notified", *PROGRESS[:3]])
    def test_up_to_downloading(self, state: str) -> None:
        done = supersede(Deployment(state=State(state), sends=1), NOW)
        assert (done.state, done.is_cancelling) == (State.SUPERSEDED, True)
        assert folded(done, report("cancelled", 2)) == replace(done, is_cancelling=False, report_seq=2)

    @pytest.mark.parametrize("state", [State.INSTALLING, State.REBOOTING, *ENDED])
    def test_later_ones_are_waited_for(self, state: State) -> None:
        one = Deployment(state=state, sends=1)
        assert supersede(one, NOW) is one


class TestTimingOut:
    def test_one_that_was_never_acknowledged(self) -> None:
        done = time_out(Deployment(sends=20), NOW)
        assert (done.state, done.code, done.ended_at) == (State.TIMED_OUT, "attempts", NOW)

    @pytest.mark.parametrize("state", [s for s in State if s is not State.NOTIFIED])
    def test_no_other_one(self, state: State) -> None:
        one = Deployment(state=state)
        assert time_out(one, NOW) is one

    @pytest.mark.parametrize("outcome", OUTCOMES)
    def test_a_late_true_outcome_replaces_it_and_the_time_it_ended_stays(self, outcome: str) -> None:
        done = folded(time_out(Deployment(), NOW), report(outcome, 0), now_ms=NOW + 9)
        assert (done.state, done.code, done.ended_at) == (State(outcome), None, NOW)

    def test_late_progress_does_not(self) -> None:
        done = time_out(Deployment(), NOW)
        assert folded(done, report("downloading", 0)) == replace(done, report_seq=0)


class TestEvidence:
    @pytest.mark.parametrize("state", [*ACTIVE, State.TIMED_OUT, State.CANCELLED, State.SUPERSEDED])
    def test_the_target_running_and_confirmed_means_committed(self, state: State) -> None:
        outcome, _ = inferred(Deployment(state=state), hello(digest=b"target"))
        assert outcome is State.COMMITTED
        done = conclude(Deployment(state=state), State.COMMITTED, NOW)
        assert (done.state, done.is_inferred, done.ended_at) == (State.COMMITTED, True, NOW)

    @pytest.mark.parametrize("state", [State.COMMITTED, State.FAILED, State.REJECTED, State.ROLLED_BACK])
    def test_an_outcome_is_not_inferred_again(self, state: State) -> None:
        assert inferred(Deployment(state=state), hello(digest=b"target")) == (None, False)

    def test_the_target_unconfirmed_means_nothing_yet(self) -> None:
        now = Deployment(state=State.REBOOTING, boot_id=BOOT)
        assert inferred(now, hello(digest=b"target", is_confirmed=False)) == (None, False)

    def test_another_image_after_the_reboot_means_rolled_back(self) -> None:
        now = Deployment(state=State.REBOOTING, boot_id=BOOT)
        assert inferred(now, hello(digest=b"old")) == (State.ROLLED_BACK, False)

    @pytest.mark.parametrize(
        ("now", "said"),
        [
            (Deployment(state=State.REBOOTING, boot_id=NEXT_BOOT), hello(digest=b"old")),  # the same boot
            (Deployment(state=State.REBOOTING), hello(digest=b"old")),
            (Deployment(state=State.INSTALLING, boot_id=BOOT), hello(digest=b"old")),
            (Deployment(state=State.REBOOTING, boot_id=BOOT), hello(digest=None)),  # says nothing of it
        ],
    )
    def test_less_than_that_proves_nothing(self, now: Deployment, said: Hello) -> None:
        assert inferred(now, said) == (None, False)

    def test_a_device_behind_its_directive_has_forgotten_the_deployment(self) -> None:
        now = Deployment(state=State.DOWNLOADING)
        assert inferred(now, hello(digest=b"old", last_directive=4)) == (None, True)
        assert inferred(now, hello(digest=b"old", last_directive=5)) == (None, False)

    def test_one_that_was_not_acknowledged_cannot_be_forgotten(self) -> None:
        assert inferred(Deployment(), hello(digest=b"old", last_directive=0)) == (None, False)

    @pytest.mark.parametrize("outcome", OUTCOMES)
    def test_what_is_reported_outdoes_what_was_inferred(self, outcome: str) -> None:
        guess = conclude(Deployment(state=State.REBOOTING, report_seq=4), State.ROLLED_BACK, NOW)
        told = folded(guess, report(outcome, 5, code="boot_failed"))
        assert (told.state, told.code, told.is_inferred) == (State(outcome), "boot_failed", False)

    def test_progress_does_not_reopen_what_was_inferred(self) -> None:
        guess = conclude(Deployment(state=State.REBOOTING), State.ROLLED_BACK, NOW)
        assert folded(guess, report("rebooting", 5)).state is State.ROLLED_BACK
