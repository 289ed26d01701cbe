"""Log lines that a peer can cause at will, kept to a bounded rate without losing that they happened."""

from __future__ import annotations

from typing import Any

from structlog.typing import FilteringBoundLogger


class SparseLog:
    """At most one line in ``interval_s`` for each event; the next one says how many were left out.

    Events are names in the code, so what is kept for them is bounded by the code.
    """

    def __init__(self, log: FilteringBoundLogger, *, interval_s: float = 1.0) -> None:
        self._log = log
        self._interval_s = interval_s
        self._seen: dict[str, tuple[float, int]] = {}

    def info(self, event: str, now: float, **fields: Any) -> None:
        """Write at level info, unless ``event`` was written less than ``interval_s`` before ``now``."""
        self._write(self._log.info, event, now, fields)

    def warning(self, event: str, now: float, **fields: Any) -> None:
        """As ``info``, at level warning."""
        self._write(self._log.warning, event, now, fields)

    def _write(self, write: Any, event: str, now: float, fields: dict[str, Any]) -> None:
        written_at, left_out = self._seen.get(event, (-float("inf"), 0))
        if now - written_at < self._interval_s:
            self._seen[event] = (written_at, left_out + 1)
            return
        self._seen[event] = (now, 0)
        if left_out:
            fields["left_out"] = left_out
        write(event, **fields)
