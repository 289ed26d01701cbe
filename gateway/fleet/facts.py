"""What hot paths write: acks, facts, attempts, reports, connections. One batching writer commits them.

Each is a frozen value; ``HotWriter`` is the port, ``gateway.storage`` the implementation. Nothing here
decides: a fact is written because something happened. Offsets are inclusive on both ends, times ms UTC.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from device_sdk.wire.messages import Hello, Report
from gateway.identity import Verdict


@dataclass(frozen=True, slots=True)
class Connect:
    """A device said hello. Result: ``Connected``; raises as ``FleetStore.connect`` does."""

    verdict: Verdict
    hello: Hello
    now_ms: int


@dataclass(frozen=True, slots=True)
class Judged:
    """The origin says something else of a connected device: its attributes and channels become that."""

    verdict: Verdict
    now_ms: int


@dataclass(frozen=True, slots=True)
class IntervalOpened:
    """From ``first`` on the session is live in the channel: messages are sent when they are accepted."""

    id: bytes
    device_key: int
    channel_id: int
    epoch: int
    first: int
    at: int


@dataclass(frozen=True, slots=True)
class IntervalClosed:
    """The live interval ``id`` ended after ``last`` (``first - 1`` if nothing was sent in it)."""

    id: bytes
    last: int
    at: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A page or a redelivery was written to the device's connection."""

    device_key: int
    channel_id: int
    epoch: int
    first: int
    last: int
    attempt: int
    at: int


class Received(NamedTuple):
    """The device acknowledged ``first``..``last``: the position moves, and attempts begin anew.

    ``first`` is the position before plus one. A fact row is written for the range; several of one
    subscription in one flush are coalesced to one row. A tuple, since one is made for each ack: that takes a
    quarter of a frozen dataclass's time.
    """

    subscription_id: int
    device_key: int
    channel_id: int
    epoch: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Attempted:
    """The device stands at ``stuck_offset``, already sent: ``attempts`` is raised to this."""

    subscription_id: int
    stuck_offset: int
    attempts: int


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """The alert at ``offset`` is given up for the device. Written once; a repeat changes nothing."""

    device_key: int
    channel_id: int
    epoch: int
    offset: int
    message_id: bytes
    reason: str  # nacked | expired | attempts
    code: str | None
    attempts: int
    at: int


@dataclass(frozen=True, slots=True)
class Adopted:
    """The device was told ``lost``: its stored position becomes this one, whatever it was."""

    subscription_id: int
    epoch: int
    offset: int


@dataclass(frozen=True, slots=True)
class DeploymentReceived:
    """The device stored the update durably and acknowledged it. Result: ``bool``, whether that was news."""

    device_key: int
    deployment_id: bytes
    at: int


@dataclass(frozen=True, slots=True)
class Reported:
    """A report of the device. Result: ``rollout.ReportOutcome``."""

    device_key: int
    report: Report
    boot_id: bytes
    at: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The device's session ended."""

    device_key: int
    at: int


HotWrite = (
    Connect
    | Judged
    | IntervalOpened
    | IntervalClosed
    | Sent
    | Received
    | Attempted
    | DeadLettered
    | Adopted
    | DeploymentReceived
    | Reported
    | Disconnected
)


class HotWriter(Protocol):
    """Commit hot writes in batches, in the order in which they came for each device.

    Every implementation promises:

    * ``commit``'s future is done only after the COMMIT that holds the write; a failure of the database gives
      ``StorageUnavailableError``, and then the write may or may not be there.
    * Writes of one flush are one transaction; a write that cannot be applied fails alone.
    * At most ``queue_rows_max`` writes wait. ``is_full`` says so; ``put`` beyond it still takes the write
      (the caller stops reading from its peer and waits in ``drained``), ``commit`` beyond it raises
      ``StorageUnavailableError`` at once.
    """

    @property
    def is_full(self) -> bool: ...

    def put(self, write: HotWrite) -> None:
        """Take ``write`` without an answer; a failure is logged and counted."""
        ...

    def commit(self, write: HotWrite) -> asyncio.Future[Any]:
        """Take ``write``; the future gives its result once it is committed."""
        ...

    async def drained(self) -> None:
        """Return when the queue is at most half full."""
        ...
