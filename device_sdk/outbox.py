"""What is said until it is surely known: reports (until ``recorded``) and nacks (on a connection that lasts).

Pure: monotonic time is an argument. Reports are durable at their owner, the update agent; nacks here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from device_sdk.inbox import State, nack_key
from device_sdk.wire.messages import Nack, Report

NACKS_MAX: Final = 256
"""Nacks that wait. At the bound the oldest goes: its alert then counts as received."""

NACK_SETTLED_S: Final = 10.0
"""A connection that lives this long after a nack was sent has had it committed: a gateway that cannot
commit ends the session."""


class NackOutbox:
    """Refusals on their way to the gateway. It answers none, so each is sent again on the next connection
    until one lasted."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._nacks: dict[str, Nack] = {}
        self._sent_at: dict[str, float] = {}
        for key, code in state.items("nack/"):
            _, channel, epoch, offset = key.split("/")
            assert isinstance(code, str), "written with the refusal"
            self._nacks[key] = Nack(channel, int(epoch, 16), int(offset, 16), code)

    def __len__(self) -> int:
        return len(self._nacks)

    def add(self, *nacks: Nack) -> None:
        """Queue nacks that are on stable storage, under ``nack_key``."""
        for nack in nacks:
            self._nacks[nack_key(nack)] = nack
        self._drop(list(self._nacks)[: max(0, len(self._nacks) - NACKS_MAX)])

    def connected(self) -> None:
        """A new connection knows of nothing that was sent before."""
        self._sent_at.clear()

    def due(self, now: float, limit: int) -> list[Nack]:
        """Return up to ``limit`` nacks that this connection has not sent, and count them as sent."""
        keys = [key for key in self._nacks if key not in self._sent_at][:limit]
        self._sent_at.update(dict.fromkeys(keys, now))
        return [self._nacks[key] for key in keys]

    def settle(self, now: float) -> None:
        """Forget, durably, what this connection sent long enough ago."""
        self._drop([key for key, sent_at in self._sent_at.items() if now - sent_at >= NACK_SETTLED_S])

    def next_due(self) -> float | None:
        """Return when ``settle`` has something to do, or 0 if something is to be sent; None: neither."""
        if len(self._sent_at) < len(self._nacks):
            return 0.0
        return min((sent_at + NACK_SETTLED_S for sent_at in self._sent_at.values()), default=None)

    def refused(self, channel: str) -> bool:
        """The gateway does not take the nacks of ``channel``: forget those sent; return if there were any."""
        sent = [key for key in self._sent_at if self._nacks[key].channel == channel]
        self._drop(sent)
        return bool(sent)

    def _drop(self, keys: Sequence[str]) -> None:
        if keys:
            self._state.commit(dict.fromkeys(keys))
            for key in keys:
                del self._nacks[key]
                self._sent_at.pop(key, None)


@dataclass(slots=True)
class _Repeat:
    sends: int
    due: float


class ReportRepeater:
    """When each pending report is sent again: at once on a new connection, then after doubling waits.

    Args:
        wait_s, wait_max_s: First and longest wait for ``recorded``.
    """

    def __init__(self, *, wait_s: float, wait_max_s: float) -> None:
        self._wait_s = wait_s
        self._wait_max_s = wait_max_s
        self._repeats: dict[bytes, _Repeat] = {}

    def connected(self) -> None:
        """A new connection: everything is due."""
        self._repeats.clear()

    def due(self, pending: Iterable[Report], now: float, limit: int) -> list[Report]:
        """Return up to ``limit`` of ``pending`` that are to be sent now, and count them as sent."""
        found: list[Report] = []
        known: dict[bytes, _Repeat] = {}
        for report in pending:
            repeat = self._repeats.get(report.id)
            if len(found) < limit and (repeat is None or repeat.due <= now):
                sends = 1 if repeat is None else repeat.sends + 1
                wait_s = min(self._wait_max_s, self._wait_s * 2 ** min(sends - 1, 16))
                repeat = _Repeat(sends, now + wait_s)
                found.append(report)
            if repeat is not None:
                known[report.id] = repeat
        self._repeats = known
        return found

    def next_due(self, pending: Iterable[Report]) -> float | None:
        """Return when one of ``pending`` is to be sent; None if there is none."""
        due = [
            repeat.due if (repeat := self._repeats.get(report.id)) is not None else 0.0 for report in pending
        ]
        return min(due, default=None)
