"""A rollout: which share of a channel's devices is admitted to a release, and what an operator may do to it.

The arithmetic of buckets and boundaries (PROTOCOL §6.1, §6.2) and the table of states are here; which devices
a selector matches is ``selector``, what one device gets is ``desired``. Nothing here knows a database.

Each device has a random bucket, uint32, drawn once. A rollout shifts all of them by its own random number,
so that the same devices are not canaries for ever, and admits those whose shifted bucket is below a boundary.
The boundary never moves back.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from device_sdk.wire.names import ChannelName
from gateway.errors import ConflictError

SPACE: Final = 1 << 32
"""The boundary that admits every device, those too that come later."""
COUNTED_BELOW: Final = 1000
"""Of fewer matching devices than this, a percentage is a count of devices, not a share of buckets."""


class RolloutState(enum.StrEnum):
    """``paused`` and ``finished`` admit no device; what was notified before goes on when ``finished``."""

    RUNNING = "running"
    PAUSED = "paused"
    ABORTED = "aborted"
    FINISHED = "finished"


class Action(enum.StrEnum):
    """What an operator does to a rollout."""

    WIDEN = "widen"
    PAUSE = "pause"
    RESUME = "resume"
    FINISH = "finish"
    ABORT = "abort"


ACTIONS: Final[Mapping[RolloutState, Mapping[Action, RolloutState]]] = MappingProxyType(
    {
        RolloutState.RUNNING: MappingProxyType(
            {
                Action.WIDEN: RolloutState.RUNNING,
                Action.PAUSE: RolloutState.PAUSED,
                Action.RESUME: RolloutState.RUNNING,
                Action.FINISH: RolloutState.FINISHED,
                Action.ABORT: RolloutState.ABORTED,
            }
        ),
        RolloutState.PAUSED: MappingProxyType(
            {
                Action.WIDEN: RolloutState.PAUSED,
                Action.PAUSE: RolloutState.PAUSED,
                Action.RESUME: RolloutState.RUNNING,
                Action.FINISH: RolloutState.FINISHED,
                Action.ABORT: RolloutState.ABORTED,
            }
        ),
        RolloutState.FINISHED: MappingProxyType(
            {Action.FINISH: RolloutState.FINISHED, Action.ABORT: RolloutState.ABORTED}
        ),
        RolloutState.ABORTED: MappingProxyType({Action.ABORT: RolloutState.ABORTED}),
    }
)
"""State → action → next state. A repeated action finds what it asks for; what is not there is a conflict."""


def after(state: RolloutState, action: Action) -> RolloutState:
    """Return the state after ``action``.

    Raises:
        ConflictError: (``rollout_state``) The state does not allow it.
    """
    next_state = ACTIONS[state].get(action)
    if next_state is None:
        raise ConflictError(f"a rollout that is {state} cannot {action}", code="rollout_state")
    return next_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout as it is stored, with what has become of it.

    Attributes:
        selector: None: every device of the channel.
        percent: As last asked, 1..100.
        boundary: Shifted buckets below it are admitted.
        component, sequence: The release's, for the order of precedence.
        version: Rises with every change; the ETag.
        counts: Deployments by state; states that none is in are left out.
        target_count: Devices that match now, or that have a deployment of it. None in lists.
    """

    id: bytes
    fleet_key: int
    channel_id: int
    channel: ChannelName
    release_id: bytes
    name: str
    state: RolloutState
    priority: int
    shift: int
    selector: str | None
    percent: int
    boundary: int
    component: str
    sequence: int
    created_at: int
    updated_at: int
    version: int
    counts: Mapping[str, int] = field(default_factory=dict)
    target_count: int | None = None


# --- buckets and boundaries -----------------------------------------------------------------------------


class BucketRange(NamedTuple):
    """Buckets ``first`` to ``last``, both included."""

    first: int
    last: int


def effective_bucket(bucket: int, shift: int) -> int:
    """Return a device's bucket as the rollout sees it."""
    return (bucket + shift) % SPACE


def is_admitted(bucket: int, *, shift: int, boundary: int) -> bool:
    """Whether the device of ``bucket`` is inside the boundary."""
    return effective_bucket(bucket, shift) < boundary


def admitted_ranges(*, shift: int, boundary: int) -> tuple[BucketRange, ...]:
    """Return the stored buckets that are admitted, as at most two ranges of an index (PROTOCOL §6.1)."""
    if boundary <= 0:
        return ()
    if boundary >= SPACE:
        return (BucketRange(0, SPACE - 1),)
    first = -shift % SPACE
    last = first + boundary - 1
    if last < SPACE:
        return (BucketRange(first, last),)
    return (BucketRange(first, SPACE - 1), BucketRange(0, last - SPACE))


def share_boundary(percent: int) -> int:
    """Return the boundary of ``percent`` of all buckets."""
    assert 0 <= percent <= 100, "the edge checks percentages"
    return SPACE * percent // 100


def admitted_count(percent: int, matching: int) -> int | None:
    """Return how many of ``matching`` devices ``percent`` admits; None if the share decides.

    Below ``COUNTED_BELOW`` devices a share of random buckets may be none or twice as many, so the devices
    are counted in the order of their shifted buckets: rounded down, and at least one. 100 % is always a
    share: it admits those too that come later.
    """
    if percent >= 100 or not 0 < matching < COUNTED_BELOW:
        return None
    return max(1, matching * percent // 100)


def widened(boundary: int, asked: int) -> int:
    """Return the boundary after one was asked for: it never moves back (PROTOCOL §6.2)."""
    return min(SPACE, max(boundary, asked))
