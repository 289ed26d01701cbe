"""One channel on one node: who is live, who is behind, and the loop that writes to the live ones.

The loop in ``fan_out`` is the hot path: 5,000 subscribers are 5,000 turns of it for each alert. It does
nothing for a subscriber but take one credit and write the frame that all share; everything else waits until
the loop is over. Lanes are in a list and know their index, so leaving costs the same whatever its length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from device_sdk.wire.names import ChannelName, FleetName
from gateway.telemetry import logger

if TYPE_CHECKING:
    from gateway.hub.keys import HubKey

_log = logger("hub")

WINDOW_LEN_MAX: Final = 1024  # unacknowledged alerts of one session, at most: what sizes must be known for


class Deliverable(Protocol):
    """An alert as the hub sees it: a place and the bytes that all get. ``fleet.log.LogItem`` is one."""

    @property
    def offset(self) -> int: ...

    @property
    def size(self) -> int: ...

    def frame(self, *, is_json: bool) -> bytes: ...


class Writer(Protocol):
    """Where a live session's frames go. ``write`` takes a whole frame and never raises; it may change."""

    @property
    def write(self) -> Callable[[bytes], None]: ...


class LiveSession(Protocol):
    """What the loop touches of a session: credits, and where its bytes go.

    ``credit`` counts alerts, ``credit_bytes`` their bytes; the first alert always fits, so that a large one
    makes progress.
    """

    credit: int
    credit_bytes: int

    @property
    def connection(self) -> Writer: ...


class HubLane(Protocol):
    """A session's place in one channel. ``index`` is the hub's: where the lane stands in a list."""

    index: int

    @property
    def session(self) -> LiveSession: ...

    @property
    def is_json(self) -> bool: ...

    def fall_behind(self, sent: int) -> None:
        """The hub stopped writing: the last alert this lane was sent is ``sent``. Note it, and do no more."""
        ...

    def head_raised(self) -> None:
        """The channel's head rose while this lane is behind."""
        ...

    def discontinued(self) -> None:
        """The channel is not the one it was (deleted, another epoch): the session must come back."""
        ...


class Channel:
    """A channel that somebody on this node has.

    Attributes:
        id: The database's.
        next: The offset that the hub will deliver next: everything below it was delivered to the live lanes.
        held: What came before its turn; bounded by the hub.
        is_healing: A task of the hub reads what is missing; until it ends, no lane becomes live.
        missing_upto: Offsets up to here are in the log, whoever missed their notification.
        is_doubted: An append's outcome is not known: the log may have more than anybody heard of.
    """

    __slots__ = (
        "_first_size",
        "_sizes",
        "_times",
        "ack_prefix",
        "behind",
        "epoch",
        "fleet",
        "held",
        "id",
        "is_doubted",
        "is_healing",
        "key",
        "live",
        "missing_upto",
        "name",
        "next",
    )

    def __init__(
        self, key: HubKey, *, id: int, fleet: FleetName, name: ChannelName, epoch: int, head: int
    ) -> None:
        self.key = key
        self.id = id
        self.fleet = fleet
        self.name = name
        self.epoch = epoch
        self.ack_prefix = b""  # of acks in this epoch; whoever reads acks sets and uses it
        self.next = head + 1
        self.live: list[HubLane] = []
        self.behind: list[HubLane] = []
        self.held: dict[int, Deliverable] | None = None
        self.is_healing = False
        self.missing_upto = 0
        self.is_doubted = False
        # Bytes up to and including each delivered offset, and when that was: for the last offsets only.
        self._sizes: list[int] | None = None
        self._times: list[float] | None = None
        self._first_size = 0

    @property
    def head(self) -> int:
        return self.next - 1

    @property
    def is_idle(self) -> bool:
        return not self.live and not self.behind

    def fan_out(self, item: Deliverable, now: float) -> None:
        """Write ``item``, which is next, to every live lane that has credit; the others fall behind."""
        offset, size = item.offset, item.size
        assert offset == self.next, "the hub delivers in order"
        # Made before anything moves: an alert that cannot be written has not been delivered.
        frame = item.frame(is_json=False) if self.live else b""
        json: bytes | None = None
        self.next = offset + 1
        self._remember(size, now)
        fallen: list[HubLane] | None = None
        for lane in self.live:
            session = lane.session
            if session.credit > 0 and session.credit_bytes > 0:
                session.credit -= 1
                session.credit_bytes -= size
                if lane.is_json:
                    json = json or item.frame(is_json=True)
                    session.connection.write(json)
                else:
                    session.connection.write(frame)
            else:
                fallen = fallen or []
                fallen.append(lane)
        for lane in fallen or ():
            self.leave(lane)
            self.join_behind(lane)
            lane.fall_behind(offset - 1)

    def raise_behind(self) -> None:
        """Tell those who are behind that there is more. One that fails is sent back and keeps nobody else."""
        for lane in tuple(self.behind):
            try:
                lane.head_raised()
            except Exception:
                _log.exception("lane failed", channel=self.name)
                self.leave(lane)
                lane.discontinued()

    def join_live(self, lane: HubLane) -> None:
        """Add ``lane``; the caller knows that it was sent everything below ``next``."""
        assert lane.index < 0, "a lane stands in one list"
        lane.index = len(self.live)
        self.live.append(lane)

    def join_behind(self, lane: HubLane) -> None:
        assert lane.index < 0, "a lane stands in one list"
        lane.index = len(self.behind)
        self.behind.append(lane)

    def leave(self, lane: HubLane) -> None:
        """Take ``lane`` out of the list it stands in, if any."""
        index = lane.index
        if index < 0:
            return
        lanes = self.live if index < len(self.live) and self.live[index] is lane else self.behind
        last = lanes.pop()
        if last is not lane:
            lanes[index] = last
            last.index = index
        lane.index = -1

    def bytes_between(self, after: int, upto: int) -> int:
        """Return the bytes of the delivered offsets ``after + 1`` to ``upto``, as far as they are known."""
        if self._sizes is None or upto <= after:
            return 0
        return self._size_at(upto) - self._size_at(after)

    def delivered_at(self, offset: int) -> float | None:
        """Return when ``offset`` was delivered live, monotonic seconds; None if that is not known."""
        if self._times is None:
            return None
        index = offset - (self.next - len(self._times))
        return self._times[index] if 0 <= index < len(self._times) else None

    def _size_at(self, offset: int) -> int:
        assert self._sizes is not None, "asked before"
        index = offset - (self.next - len(self._sizes))
        if index < 0:
            return self._first_size
        return self._sizes[min(index, len(self._sizes) - 1)]

    def _remember(self, size: int, now: float) -> None:
        if self._sizes is None or self._times is None:
            self._sizes, self._times = [], []
        total = self._sizes[-1] if self._sizes else self._first_size
        self._sizes.append(total + size)
        self._times.append(now)
        if len(self._sizes) > 2 * WINDOW_LEN_MAX:
            self._first_size = self._sizes[WINDOW_LEN_MAX - 1]
            del self._sizes[:WINDOW_LEN_MAX], self._times[:WINDOW_LEN_MAX]

    def skip_to(self, next_offset: int) -> None:
        """Pass over offsets that are not delivered live; no lane is live."""
        assert not self.live, "a live lane would take the gap for a loss"
        self.next = next_offset
        self._sizes = self._times = None
        self._first_size = 0
