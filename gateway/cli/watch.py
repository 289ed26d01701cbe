"""Watching a rollout: when it changed, when it is over, and how that looks.

``Standing`` and ``changes`` know no terminal; ``follow`` does.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.cli.failure import AnswerFailure, Failure, UnreachableFailure
from gateway.cli.output import format_counts, note, print_json_line

Rollout = Mapping[str, Any]

ENDED: Final = ("committed", "rolled_back", "failed", "rejected", "timed_out", "cancelled", "superseded")
PATIENCE_S: Final = 120.0
_RETRY_S_MAX: Final = 5.0
_OVER: Final = frozenset({"aborted", "finished"})


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a rollout is.

    Attributes:
        target_count: Devices that it reaches at its percentage.
        target_min: As many are sure: a share of a thousand devices and more is by their random buckets.
        ended_count: Devices whose deployment ended, however.
        active_count: Devices with a deployment that has not ended.
    """

    state: str
    target_count: int
    target_min: int
    ended_count: int
    active_count: int
    committed_count: int

    @classmethod
    def of(cls, rollout: Rollout) -> Standing:
        """Return how far ``rollout``, as the API tells it, is."""
        counts = rollout["counts"]
        ended = sum(counts.get(state, 0) for state in ENDED)
        total = sum(counts.values())
        share, share_min = _share(rollout["target_count"], rollout["percent"])
        return cls(
            state=rollout["state"],
            # A device that no longer matches keeps its deployment, and so it is counted.
            target_count=max(share, total),
            target_min=max(share_min, total),
            ended_count=ended,
            active_count=total - ended,
            committed_count=counts.get("committed", 0),
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen unless an operator, or a device that is new, makes it."""
        if self.active_count:
            return False
        return self.state in _OVER or 0 < self.target_min <= self.ended_count

    @property
    def is_success(self) -> bool:
        """Whether it is over and every device committed."""
        return self.is_over and 0 < self.committed_count == self.ended_count


def _share(matching: int, percent: int) -> tuple[int, int]:
    """Return how many of ``matching`` devices ``percent`` reaches, and how many at least.

    Fewer than a thousand are counted. Of more the share is by random buckets, and four standard deviations
    below its mean are as good as sure.
    """
    if percent >= 100 or matching == 0:
        return matching, matching
    share = max(1, matching * percent // 100)
    return share, share if matching < 1000 else max(1, share - 4 * math.isqrt(share))


def changes(
    fetch: Callable[[], Rollout],
    *,
    interval_s: float,
    timeout_s: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Rollout]:
    """Yield the rollout first as it is, then whenever it changed, until it is over.

    Raises:
        UnreachableFailure: No answer for ``PATIENCE_S``.
        Failure: ``watch_timeout``: not over within ``timeout_s``.
        AnswerFailure: The gateway says no.
    """
    started = heard = monotonic()
    last: Rollout | None = None
    wait_s = interval_s
    while True:
        try:
            found = fetch()
        except (UnreachableFailure, AnswerFailure) as failure:
            if isinstance(failure, AnswerFailure) and not failure.is_passing:
                raise
            if monotonic() - heard >= PATIENCE_S:
                raise
            wait_s = min(max(wait_s * 2, interval_s), max(_RETRY_S_MAX, interval_s))
        else:
            heard, wait_s = monotonic(), interval_s
            if found != last:
                last = found
                yield found
            if Standing.of(found).is_over:
                return
        if timeout_s is not None and monotonic() - started >= timeout_s:
            raise Failure(f"not over after {timeout_s:g} s; the rollout goes on", code="watch_timeout")
        sleep(wait_s)


def follow(rollouts: Iterator[Rollout], *, as_json: bool) -> Rollout:
    """Show each of ``rollouts`` and return the last: live on a terminal, else one line for each."""
    if as_json:
        return _each(rollouts, print_json_line)
    if not sys.stdout.isatty():
        return _each(rollouts, lambda rollout: print(_line(rollout), flush=True))
    return _follow_live(rollouts)


def _each(rollouts: Iterator[Rollout], show: Callable[[Rollout], None]) -> Rollout:
    last: Rollout | None = None
    for last in rollouts:
        show(last)
    assert last is not None, "changes yields before it returns"
    return last


def _line(rollout: Rollout) -> str:
    standing = Standing.of(rollout)
    ended = f"{standing.ended_count} of {standing.target_count} ended"
    return f"{rollout['state']} {rollout['percent']} %: {ended}; {format_counts(rollout['counts'])}"


def _follow_live(rollouts: Iterator[Rollout]) -> Rollout:
    from rich.console import Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    colours = {
        "committed": "green",
        "rolled_back": "red",
        "failed": "red",
        "rejected": "red",
        "timed_out": "red",
    }

    def view(rollout: Rollout) -> Group:
        standing = Standing.of(rollout)
        head = Text(f"{rollout['name'] or rollout['id']}  {rollout['state']}  {rollout['percent']} %", "bold")
        bar = ProgressBar(total=max(1, standing.target_count), completed=standing.ended_count, width=60)
        table = Table.grid(padding=(0, 2))
        for state, count in rollout["counts"].items():
            if count:
                table.add_row(Text(state, colours.get(state, "cyan")), f"{count:,}")
        waiting = standing.target_count - standing.ended_count - standing.active_count
        if waiting:
            table.add_row(Text("not yet notified", "dim"), f"{waiting:,}")
        summary = Text(f"{standing.ended_count:,} of {standing.target_count:,} devices ended")
        return Group(head, bar, summary, table)

    with Live(refresh_per_second=8) as live:
        last = _each(rollouts, lambda rollout: live.update(view(rollout)))
    if not Standing.of(last).is_success and Standing.of(last).is_over:
        note("some devices did not commit; fleetcast deployment list --rollout ID shows why")
    return last
