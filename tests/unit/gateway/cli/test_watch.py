"""Watching a rollout: what counts as a change, when it is over, and whom it waits for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.cli import watch
from gateway.cli.failure import AnswerFailure, Failure, UnreachableFailure
from gateway.cli.watch import ENDED, Standing, changes, follow
from gateway.clock import FakeClock
from gateway.rollout.deployment import State


def rollout(
    state: str = "running", *, target_count: int = 4, percent: int = 100, **counts: int
) -> dict[str, Any]:
    return {
        "id": "r",
        "name": "n",
        "state": state,
        "percent": percent,
        "target_count": target_count,
        "counts": counts,
    }


class TestStanding:
    def test_ended_states_are_the_gateways_outcomes(self) -> None:
        assert set(ENDED) == {state.value for state in State if not state.is_active}

    @pytest.mark.parametrize(
        ("seen", "is_over"),
        [
            (rollout(), False),
            (rollout(committed=3), False),
            (rollout(committed=3, rebooting=1), False),
            (rollout(committed=3, rejected=1), True),
            (rollout(target_count=0), False),
            (rollout(target_count=0, committed=1), True),
            (rollout("paused", committed=3), False),
            (rollout("paused", committed=4), True),
            (rollout("aborted", committed=1, cancelled=1), True),
            (rollout("aborted", committed=1, installing=1), False),
            (rollout("aborted"), True),
        ],
    )
    def test_it_is_over_when_every_target_ended(self, seen: dict[str, Any], is_over: bool) -> None:
        assert Standing.of(seen).is_over is is_over

    def test_device_that_no_longer_matches_still_counts(self) -> None:
        """A selector such as ``reported.firmware < "1.4"`` empties itself as the rollout succeeds."""
        assert Standing.of(rollout(target_count=1, committed=3, downloading=1)).target_count == 4

    @pytest.mark.parametrize(
        ("target_count", "percent", "ended", "is_over"),
        [
            (50, 10, 4, False),
            (50, 10, 5, True),
            (3, 10, 0, False),
            (3, 10, 1, True),
            (999, 50, 498, False),
            (999, 50, 499, True),
            (10_000, 10, 850, False),
            (10_000, 10, 950, True),
            (10_000, 100, 9_999, False),
        ],
    )
    def test_share_is_over_when_those_it_reaches_ended(
        self, target_count: int, percent: int, ended: int, is_over: bool
    ) -> None:
        seen = rollout(target_count=target_count, percent=percent, committed=ended)
        assert Standing.of(seen).is_over is is_over

    def test_success_is_every_target_committed(self) -> None:
        assert Standing.of(rollout(committed=4)).is_success
        assert not Standing.of(rollout(committed=3, failed=1)).is_success
        assert not Standing.of(rollout(committed=3)).is_success
        assert not Standing.of(rollout("aborted")).is_success


class Gateway:
    """Answers a script of rollouts and errors, one a look, the last for ever; ``sleep`` moves its clock."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.clock = FakeClock()
        self.waits_s: list[float] = []

    def fetch(self) -> dict[str, Any]:
        found = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, dict)
        return found

    def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.clock.advance(seconds)

    def changes(self, *, timeout_s: float | None = None) -> Iterator[Any]:
        return changes(
            self.fetch, interval_s=1, timeout_s=timeout_s, sleep=self.sleep, monotonic=self.clock.monotonic
        )


AWAY = UnreachableFailure("away")
BUSY = AnswerFailure("busy", code="storage_unavailable", status=503)


class TestChanges:
    def test_only_changes_are_told_and_the_end_ends_it(self) -> None:
        first, second, last = rollout(), rollout(notified=1), rollout(committed=4)
        gateway = Gateway(first, first, second, second, second, last)
        assert list(gateway.changes()) == [first, second, last]
        assert gateway.waits_s == [1] * 5

    def test_what_is_over_already_is_told_once_without_a_wait(self) -> None:
        gateway = Gateway(rollout(committed=4))
        assert len(list(gateway.changes())) == 1
        assert gateway.waits_s == []

    @pytest.mark.parametrize("failure", [AWAY, BUSY])
    def test_gateway_that_restarts_is_waited_for(self, failure: Failure) -> None:
        gateway = Gateway(rollout(), failure, failure, failure, rollout(committed=4))
        assert len(list(gateway.changes())) == 2
        assert gateway.waits_s == [1, 2, 4, 5]

    def test_gateway_that_stays_away_is_given_up(self) -> None:
        gateway = Gateway(rollout(), AWAY)
        started = gateway.clock.monotonic()
        with pytest.raises(UnreachableFailure):
            list(gateway.changes())
        assert watch.PATIENCE_S <= gateway.clock.monotonic() - started < watch.PATIENCE_S + 10

    def test_no_is_a_no(self) -> None:
        gateway = Gateway(AnswerFailure("none", code="not_found", status=404))
        with pytest.raises(AnswerFailure):
            list(gateway.changes())
        assert gateway.waits_s == []

    def test_timeout_ends_the_watching(self) -> None:
        with pytest.raises(Failure, match="not over after 3 s") as caught:
            list(Gateway(rollout()).changes(timeout_s=3))
        assert caught.value.code == "watch_timeout"


class TestFollow:
    def test_json_is_one_line_a_change(self, capsys: pytest.CaptureFixture[str]) -> None:
        seen = [rollout(notified=1), rollout(committed=4)]
        assert follow(iter(seen), as_json=True) == seen[-1]
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == seen

    def test_pipe_gets_one_line_a_change(self, capsys: pytest.CaptureFixture[str]) -> None:
        follow(iter([rollout(committed=2, notified=1)]), as_json=False)
        assert capsys.readouterr().out == "running 100 %: 2 of 4 ended; committed 2, notified 1\n"

    def test_terminal_sees_bar_and_counts(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        is_terminal: Callable[[], bool] = lambda: True  # noqa: E731
        monkeypatch.setattr("sys.stdout.isatty", is_terminal)
        follow(iter([rollout(committed=2, notified=1), rollout(committed=3, rejected=1)]), as_json=False)
        shown = capsys.readouterr()
        assert "4 of 4 devices ended" in shown.out
        assert "rejected" in shown.out
        assert "some devices did not commit" in shown.err
