"""A connected device's place in one channel: what it was sent, what it acknowledged (PROTOCOL §3).

A lane is *live* (it was sent everything below the hub's next offset, and each publish is written to it) or
*behind* (it is fed pages of the log as acks come in). Numbers only: what is done about them is ``session``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.hub import Channel
    from gateway.session.session import Session


class Lane:
    """One subscription of one session.

    Attributes:
        acked: Everything up to here is on the device's stable storage.
        sent: The last offset written while behind; a live lane was sent up to the channel's head.
        live_first: First offset that was written live, and whose bytes the channel knows.
        pages: (last offset, bytes) of each message of pages that is not acknowledged.
        dead: Offsets above ``acked`` that were given up for this device.
        attempts: How often ``acked + 1`` was sent again, durably counted.
        resent_upto: Alerts up to here were sent before; they carry the attempt.
        since: When the device last made progress or was sent its oldest unacknowledged page, monotonic.
        deadline: When ``acked + 1`` is sent again; 0: nothing is waited for.
        interval: Number of the open live interval in its session.
        is_busy: A read or a commit for this lane is under way.
    """

    __slots__ = (
        "acked",
        "attempts",
        "channel",
        "dead",
        "deadline",
        "index",
        "interval",
        "is_busy",
        "live_first",
        "pages",
        "resent_upto",
        "sent",
        "session",
        "since",
        "subscription_id",
    )

    def __init__(
        self,
        session: Session,
        channel: Channel,
        *,
        subscription_id: int,
        acked: int,
        attempts: int,
        dead: frozenset[int] | None,
        now: float,
    ) -> None:
        self.session = session
        self.channel = channel
        self.subscription_id = subscription_id
        self.acked = acked
        self.sent = acked
        self.live_first = 0
        self.pages: deque[tuple[int, int]] | None = None
        self.dead = dead
        self.attempts = attempts
        self.resent_upto = 0
        self.since = now
        self.deadline = 0.0
        self.interval: int | None = None
        self.is_busy = False
        self.index = -1

    @property
    def is_json(self) -> bool:
        return self.session.is_json

    @property
    def is_live(self) -> bool:
        return self.interval is not None

    @property
    def last_sent(self) -> int:
        """The last offset that was written to the device."""
        return self.channel.head if self.interval is not None else self.sent

    def sent_page(self, entries: list[tuple[int, int]], upto: int) -> None:
        """Note a page that was written."""
        if self.pages is None:
            self.pages = deque()
        self.pages.extend(entries)
        self.sent = upto

    def release(self, upto: int) -> tuple[int, int]:
        """Move ``acked`` to ``upto``; return how many messages and bytes that gives back."""
        count = size = 0
        pages = self.pages
        if pages is not None:
            while pages and pages[0][0] <= upto:
                size += pages.popleft()[1]
                count += 1
            if not pages:
                self.pages = None
        if self.live_first:
            after = max(self.acked, self.live_first - 1)
            if upto > after:
                count += upto - after
                size += self.channel.bytes_between(after, upto)
        self.acked = upto
        if self.sent < upto:
            self.sent = upto
        return count, size

    def outstanding(self) -> tuple[int, int]:
        """Return how many messages and bytes are written and not acknowledged, and forget them."""
        acked, last = self.acked, self.last_sent
        found = self.release(last)
        self.acked = self.sent = acked
        self.live_first = 0
        self.pages = None
        return found

    def fall_behind(self, sent: int) -> None:
        """The hub stopped writing to this lane after ``sent``."""
        assert self.interval is not None, "only a live lane falls behind"
        if self.live_first and sent >= self.live_first:
            # The hub may forget sizes while this lane is behind: keep those that are not acknowledged.
            after = max(self.acked, self.live_first - 1)
            self.sent_page(
                [
                    (offset, self.channel.bytes_between(offset - 1, offset))
                    for offset in range(after + 1, sent + 1)
                ],
                sent,
            )
            if not self.pages:
                self.pages = None
        self.sent = max(sent, self.acked)
        self.live_first = 0
        self.session.left_live(self, sent)

    def head_raised(self) -> None:
        """There is more in the channel while this lane is behind."""
        self.session.pump(self)

    def discontinued(self) -> None:
        """The channel is not the one it was."""
        self.session.lost_continuity(self)
