"""Rounds of fan-out: each contender in turn, so that what the machine does meanwhile meets all alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from rig import Load, say

BURSTS_A_ROUND = 3
ALERTS_A_SEQUENCE = 40


@dataclass
class Score:
    """What a contender did, a figure for each round."""

    burst_ms: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)  # deliveries a second, in a sequence
    p99_ms: list[float] = field(default_factory=list)  # of a sequence, from publish to delivery

    def take_turn(self, load: Load) -> None:
        bursts = []
        for _ in range(BURSTS_A_ROUND):
            load.settle()
            bursts.append(load("burst")["burst_ms"])
        load.settle()
        sequence = load(f"sequence {ALERTS_A_SEQUENCE}")
        load.settle()
        self.burst_ms.append(statistics.median(bursts))
        self.rate.append(sequence["deliveries_per_s"])
        self.p99_ms.append(sequence["p99_ms"])

    def ratios_to(self, other: Score) -> tuple[list[float], list[float]]:
        """Return, round by round, how many times as fast as ``other``: bursts, sequences."""
        bursts = [theirs / mine for mine, theirs in zip(self.burst_ms, other.burst_ms, strict=True)]
        return bursts, [mine / theirs for mine, theirs in zip(self.rate, other.rate, strict=True)]

    def figures(self, prefix: str) -> dict[str, float]:
        return {
            f"{prefix}burst_ms": round(statistics.median(self.burst_ms), 2),
            f"{prefix}deliveries_per_s": round(statistics.median(self.rate)),
            f"{prefix}p99_ms": round(statistics.median(self.p99_ms), 2),
        }

    def compared(self, other: Score, name: str, *, prefix: str = "fanout_") -> dict[str, float]:
        """Return medians of the ratios to ``other``, called ``name``, and their range."""
        bursts, rates = self.ratios_to(other)
        median_burst = statistics.median(other.burst_ms) / statistics.median(self.burst_ms)
        median_rate = statistics.median(self.rate) / statistics.median(other.rate)
        return {
            f"{prefix}burst_ratio_to_{name}": round(median_burst, 3),
            f"{prefix}burst_ratio_to_{name}_min": round(min(bursts), 3),
            f"{prefix}burst_ratio_to_{name}_max": round(max(bursts), 3),
            f"{prefix}ratio_to_{name}": round(median_rate, 3),
            f"{prefix}ratio_to_{name}_min": round(min(rates), 3),
            f"{prefix}ratio_to_{name}_max": round(max(rates), 3),
        }


def contest(contenders: Mapping[str, Load], rounds: int) -> dict[str, Score]:
    """Let ``contenders``, all connected, take turns; return what each did."""
    scores = {name: Score() for name in contenders}
    for number in range(1, rounds + 1):
        for name, load in contenders.items():
            scores[name].take_turn(load)
        told = "; ".join(
            f"{name} {score.burst_ms[-1]:.1f} ms, {score.rate[-1]:,.0f}/s" for name, score in scores.items()
        )
        say(f"  round {number}/{rounds}: {told}")
    return scores
