"""What went wrong with a device, on purpose: each fault that happened, in order."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

FAULTS_KEPT_MAX: Final = 10_000


class Fault(NamedTuple):
    """One fault.

    Attributes:
        kind: ``cut``, ``drop``, ``duplicate``, ``reorder``, ``refuse``, ``tamper``, ``download_cut``,
            ``power_cut``, ``write_failed``, ``panic`` or ``sick``.
        where: The place in the device's life: the same seed gives the same places.
    """

    kind: str
    where: str


class Trace:
    """The faults of one device. All are counted; the first ``FAULTS_KEPT_MAX`` are kept."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()

    def note(self, kind: str, where: str) -> None:
        """A fault happens now."""
        self.counts[kind] += 1
        if len(self.faults) < FAULTS_KEPT_MAX:
            self.faults.append(Fault(kind, where))
