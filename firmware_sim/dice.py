"""Where chance comes from: one seed for each device, and from it one stream for each kind of decision.

A stream belongs to a thing that happens (the third connection's incoming messages, the second cut of
power), so that what is drawn for one does not move when another comes earlier or later. With the same seed
and the same traffic, the same faults happen.
"""

from __future__ import annotations

import hashlib
from random import Random

Range = tuple[float, float]
"""Lowest and highest value, both included; drawn from uniformly."""


class Dice:
    """The chance of one device."""

    def __init__(self, seed: int, device_id: str) -> None:
        self._root = f"{seed}/{device_id}"

    def stream(self, *names: object) -> Random:
        """Return the stream of ``names``, at its beginning."""
        text = "/".join([self._root, *map(str, names)])
        return Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def between(random: Random, span: Range) -> float:
    """Return a number of ``span``; one is drawn whatever the span is."""
    return span[0] + random.random() * (span[1] - span[0])
