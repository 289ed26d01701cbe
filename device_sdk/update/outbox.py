"""Reports that wait to be recorded: durable, in order, bounded (PROTOCOL §4.6).

A report is stored in the commit that makes it true and repeated until the gateway says ``recorded``.
Progress is worth no flash: only the newest one of a deployment waits, in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from device_sdk.update.ports import StateStore
from device_sdk.update.procedure import Step, is_final
from device_sdk.wire.messages import Report

ANY_CODE: Final = "*"
_PREFIX: Final = "update/report/"


@dataclass(frozen=True, slots=True)
class Staged:
    """What a commit does to the outbox: ``changes`` go to the store, then ``Outbox.apply`` takes it."""

    changes: dict[str, object | None]
    reports: tuple[Report, ...]
    evicted: tuple[bytes, ...]


class Outbox:
    """The reports of one device.

    Args:
        reports_max: At the bound the oldest report that is no outcome goes, else the oldest.
    """

    def __init__(self, state: StateStore, *, reports_max: int) -> None:
        self._state = state
        self._reports_max = reports_max
        stored = sorted(((key, value) for key, value in state.items(_PREFIX)), key=lambda pair: pair[0])
        self._number = 0
        self._keys: dict[bytes, str] = {}
        self._reports: dict[bytes, Report] = {}
        self._progress: dict[bytes, Report] = {}
        for key, value in stored:
            report = _from_record(value)
            self._keys[report.id] = key
            self._reports[report.id] = report
            self._number = int(key.removeprefix(_PREFIX), 16)

    def pending(self) -> Sequence[Report]:
        """Return what is not recorded yet, oldest first; progress last."""
        return (*self._reports.values(), *self._progress.values())

    def has(self, deployment: bytes, *, state: str, code: str | None = ANY_CODE) -> bool:
        """Return whether the same thing about ``deployment`` waits already."""
        return any(
            (report.deployment, report.state) == (deployment, state) and code in (ANY_CODE, report.code)
            for report in self._reports.values()
        )

    def stage(self, reports: Iterable[Report]) -> Staged:
        """Return what committing ``reports`` changes in the store."""
        added = tuple(reports)
        changes: dict[str, object | None] = {}
        evicted = self._evicted(len(added))
        for id_ in evicted:
            changes[self._keys[id_]] = None
        for offset, report in enumerate(added, 1):
            changes[self._key(self._number + offset)] = _to_record(report)
        return Staged(changes, added, evicted)

    def apply(self, staged: Staged) -> None:
        """Take over ``staged``, which is stored."""
        for id_ in staged.evicted:
            self._drop(id_)
        for report in staged.reports:
            self._number += 1
            self._keys[report.id] = self._key(self._number)
            self._reports[report.id] = report
            # What progress there was is told by the step that follows it.
            self._progress.pop(report.deployment, None)

    def add_progress(self, report: Report) -> None:
        """Keep ``report`` in memory instead of the deployment's last progress."""
        self._progress[report.deployment] = report

    def recorded(self, id_: bytes) -> Report | None:
        """Stop repeating the report ``id_``; return it, or None if it does not wait."""
        for deployment, progress in self._progress.items():
            if progress.id == id_:
                return self._progress.pop(deployment)
        report = self._reports.get(id_)
        if report is not None:
            self._state.commit({self._keys[id_]: None})
            self._drop(id_)
        return report

    def _drop(self, id_: bytes) -> None:
        del self._keys[id_]
        del self._reports[id_]

    def _evicted(self, added: int) -> tuple[bytes, ...]:
        excess = len(self._reports) + added - self._reports_max
        if excess <= 0:
            return ()
        oldest = list(self._reports.values())
        oldest.sort(key=lambda report: _worth(report.state))  # stable: by age within the same worth
        return tuple(report.id for report in oldest[:excess])

    @staticmethod
    def _key(number: int) -> str:
        return f"{_PREFIX}{number:016x}"


def _worth(state: str) -> int:
    """Return how late a report is given up: steps first, then refusals, outcomes last."""
    if not is_final(Step(state)):
        return 0
    return 1 if state in (Step.REJECTED, Step.CANCELLED) else 2


def _to_record(report: Report) -> list[object]:
    return [report.id, report.deployment, report.seq, report.state, report.code, report.detail]


def _from_record(record: object) -> Report:
    match record:
        case [
            bytes(id_),
            bytes(deployment),
            int(seq),
            str(state),
            (str() | None) as code,
            (str() | None) as detail,
        ]:
            return Report(id=id_, deployment=deployment, seq=seq, state=state, code=code, detail=detail)
        case _:
            raise AssertionError("written by stage")
