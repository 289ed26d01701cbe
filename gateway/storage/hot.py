"""The handlers of every hot write, for the batching writer."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.clock import Clock
from gateway.fleet.facts import Connect, Judged
from gateway.storage import reports
from gateway.storage.connect import connect, judged
from gateway.storage.facts import fact_handlers
from gateway.storage.writer import Handler


def hot_handlers(clock: Clock) -> Mapping[type, Handler]:
    """Return a handler for each type of ``HotWrite``."""
    return {Connect: connect, Judged: judged, **fact_handlers(clock), **reports.HANDLERS}
