"""Channels of this node and what is delivered to them, in order, whatever order it comes in (PROTOCOL §1.4).

The hub knows no database: what is missing between two notifications it asks of a ``Reader``. A notification
is a hint. One that is lost costs latency: the next one, or a session that reads the log, finds the gap.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from device_sdk.wire.names import ChannelName, FleetName
from gateway.clock import Clock
from gateway.errors import GatewayError, NotFoundError
from gateway.hub.channel import Channel, Deliverable
from gateway.hub.keys import HubKey
from gateway.telemetry import logger

_log = logger("hub")

_HELD_LEN_MAX: Final = 1024  # notifications ahead of their turn; more are dropped, the log has them
_RECENT_LEN_MAX: Final = 4096  # channels of which a head is remembered although nobody here has them


@dataclass(frozen=True, slots=True)
class HubLimits:
    """Bounds on healing a gap.

    Attributes:
        overtaken_wait_s: How long a missing notification may have been overtaken before the log is read.
        retry_s: Pause after a read that failed.
    """

    overtaken_wait_s: float = 0.05
    retry_s: float = 1.0

    def __post_init__(self) -> None:
        assert 0 <= self.overtaken_wait_s <= self.retry_s, "the first look comes first"


class Reader(Protocol):
    """Where missing ranges come from."""

    async def missing(self, channel: Channel, first: int, last: int) -> Sequence[Deliverable]:
        """Return what there is of the offsets ``first`` to ``last``, in order; pruned ones are absent.

        Raises:
            NotFoundError: The channel is gone, or has another epoch.
        """
        ...

    async def head(self, channel: Channel) -> int:
        """Return the last committed offset. Raises as ``missing``."""
        ...


class Hub:
    """Deliver to the channels that sessions on this node have.

    Attributes:
        unclaimed: Called with the key of a channel that got something while nobody here had it.
    """

    def __init__(self, reader: Reader, *, clock: Clock, limits: HubLimits | None = None) -> None:
        self.unclaimed: Callable[[HubKey], None] = lambda _: None
        self._reader = reader
        self._clock = clock
        self._limits = limits or HubLimits()
        self._channels: dict[HubKey, Channel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # A session reads a channel's head in the database and opens the channel a moment later. What was
        # published in between came when nobody had it, or went to the session that this one replaces.
        self._recent: OrderedDict[HubKey, tuple[int, int]] = OrderedDict()
        self._doubted: OrderedDict[HubKey, None] = OrderedDict()  # of those that nobody had

    def channel(self, key: HubKey) -> Channel | None:
        """Return the channel, if somebody on this node has it."""
        return self._channels.get(key)

    def is_quiet(self, key: HubKey, head: int) -> bool:
        """Return whether nobody here has the channel, and nothing above ``head`` was heard of it lately."""
        is_known = key in self._channels or key in self._doubted
        return not is_known and self._recent.get(key, (0, 0))[1] <= head

    def open(
        self, key: HubKey, *, id: int, fleet: FleetName, name: ChannelName, epoch: int, head: int
    ) -> Channel:
        """Return the channel for a session that found it in the database with ``epoch`` and ``head``.

        A head above what the hub knows means a notification that is under way or was lost: the hub heals it
        as any gap. Another epoch than the hub knows means that the channel was made anew.
        """
        channel = self._channels.get(key)
        if channel is not None and (channel.id, channel.epoch) != (id, epoch):
            self._discontinue(channel)
            channel = None
        if channel is None:
            channel = self._channels[key] = Channel(
                key, id=id, fleet=fleet, name=name, epoch=epoch, head=head
            )
            recent_epoch, recent_head = self._recent.pop(key, (epoch, 0))
            if recent_epoch == epoch:
                head = max(head, recent_head)
            if key in self._doubted:
                del self._doubted[key]
                self.doubt(key)
        if head >= channel.next:
            self._heal(channel, head)
        return channel

    def close(self, channel: Channel) -> None:
        """Forget ``channel`` if nobody has it any more; its head is remembered for who comes next."""
        if channel.is_idle and not channel.is_healing and self._channels.get(channel.key) is channel:
            del self._channels[channel.key]
            if channel.head:
                self._remember(channel.key, channel.epoch, channel.head)

    def drop(self, key: HubKey) -> None:
        """The channel was deleted: its sessions must come back."""
        channel = self._channels.get(key)
        if channel is not None:
            self._discontinue(channel)

    def doubt(self, key: HubKey) -> None:
        """An append may be committed although nobody saw it: the log is asked, until it answers."""
        channel = self._channels.get(key)
        if channel is not None:
            channel.is_doubted = True
            self._heal(channel, 0)
        else:
            self._doubted[key] = None
            if len(self._doubted) > _RECENT_LEN_MAX:
                self._doubted.popitem(last=False)
            self.unclaimed(key)

    def deliver(self, key: HubKey, epoch: int, items: Sequence[Deliverable]) -> None:
        """Deliver what was committed. Repeated offsets are ignored, early ones held or read again."""
        channel = self._channels.get(key)
        if channel is not None and channel.epoch != epoch:
            self._discontinue(channel)
            channel = None
        if channel is None:
            if items:
                self._remember(key, epoch, items[-1].offset)
                self.unclaimed(key)
            return
        now = self._clock.monotonic()
        for item in items:
            if item.offset == channel.next:
                channel.fan_out(item, now)
            elif item.offset > channel.next:
                self._hold(channel, item)
        if channel.held:
            self._release(channel, now)
        if channel.behind:
            channel.raise_behind()

    async def stop(self) -> None:
        """End the healing that is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _hold(self, channel: Channel, item: Deliverable) -> None:
        if channel.held is None:
            channel.held = {}
        if len(channel.held) < _HELD_LEN_MAX:
            channel.held[item.offset] = item
        self._heal(channel, item.offset)

    def _release(self, channel: Channel, now: float) -> None:
        """Deliver what was held and is next now; forget what was delivered by another way."""
        held = channel.held
        while held and (item := held.pop(channel.next, None)) is not None:
            channel.fan_out(item, now)
        if held is not None and (not held or min(held) < channel.next):
            channel.held = {offset: item for offset, item in held.items() if offset > channel.next} or None

    def _remember(self, key: HubKey, epoch: int, head: int) -> None:
        self._recent[key] = (epoch, head)
        self._recent.move_to_end(key)
        if len(self._recent) > _RECENT_LEN_MAX:
            self._recent.popitem(last=False)

    def _heal(self, channel: Channel, upto: int) -> None:
        channel.missing_upto = max(channel.missing_upto, upto)
        if channel.is_healing:
            return
        channel.is_healing = True
        task = asyncio.create_task(self._healed(channel), name=f"hub.heal[{channel.name}]")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _healed(self, channel: Channel) -> None:
        """Read what is missing and deliver it in order, until nothing is, or nobody has the channel."""
        wait_s = self._limits.overtaken_wait_s
        try:
            while True:
                await asyncio.sleep(wait_s)
                if self._channels.get(channel.key) is not channel or channel.is_idle:
                    return
                if channel.next > channel.missing_upto and not channel.is_doubted:
                    return
                try:
                    await self._read_missing(channel)
                except NotFoundError:
                    self._discontinue(channel)
                    return
                except GatewayError as error:
                    _log.warning("gap not healed yet", channel=channel.name, code=error.code)
                    wait_s = self._limits.retry_s
                else:
                    wait_s = self._limits.overtaken_wait_s
        finally:
            channel.is_healing = False
            channel.raise_behind()
            self.close(channel)

    async def _read_missing(self, channel: Channel) -> None:
        if channel.is_doubted:
            channel.is_doubted = False  # whoever doubts from now on may know of a later append
            try:
                channel.missing_upto = max(channel.missing_upto, await self._reader.head(channel))
            except GatewayError:
                channel.is_doubted = True
                raise
        last = channel.missing_upto
        if channel.next <= last:
            found = await self._reader.missing(channel, channel.next, last)
            if self._channels.get(channel.key) is channel:
                self._deliver_range(channel, found, last)

    def _deliver_range(self, channel: Channel, found: Sequence[Deliverable], last: int) -> None:
        now = self._clock.monotonic()
        for item in found:
            if item.offset < channel.next:
                continue
            if item.offset > channel.next:
                self._skip(channel, item.offset)
            channel.fan_out(item, now)
        if channel.next <= last:
            self._skip(channel, last + 1)
        self._release(channel, now)
        channel.raise_behind()

    def _skip(self, channel: Channel, next_offset: int) -> None:
        """Pass over pruned offsets: the live lanes fall behind and learn of them from a page of the log."""
        for lane in tuple(channel.live):
            channel.leave(lane)
            channel.join_behind(lane)
            lane.fall_behind(channel.next - 1)
        channel.skip_to(next_offset)

    def _discontinue(self, channel: Channel) -> None:
        """Forget ``channel``, which is not what it was; whoever comes for its name gets another one."""
        if self._channels.get(channel.key) is channel:
            del self._channels[channel.key]
        channel.held = None
        for lane in (*channel.live, *channel.behind):
            channel.leave(lane)
            lane.discontinued()
