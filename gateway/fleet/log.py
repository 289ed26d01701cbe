"""The alert log in memory: blocks of 256 offsets, read once, encoded once, bounded in bytes (PROTOCOL §3.5).

The newest block of a channel grows as messages are published, so it is also the tail from which a device that
is a little behind catches up without the database. Which device gets what of a block is ``gateway.session``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from device_sdk.wire.messages import Alert, encode_cbor, encode_json
from device_sdk.wire.names import ChannelName, FleetName
from device_sdk.wire.signed import assemble_alert
from gateway.errors import NotFoundError, UnavailableError
from gateway.fleet.model import LogRange, StoredMessage
from gateway.telemetry import Metrics
from gateway.websocket import Opcode, frame

BLOCK_LEN: Final = 256
_ITEM_OVERHEAD_BYTES: Final = 300  # objects around an item's bytes, measured roughly


class LogItem:
    """One alert, encoded. Shared by all who get it; ``is_superseded`` alone changes."""

    __slots__ = ("_json", "accepted_at", "cbor", "expires_at", "id", "is_superseded", "key", "offset", "size")

    def __init__(self, alert: Alert, message: StoredMessage) -> None:
        self.offset = alert.offset
        self.id = message.id
        self.key = message.key
        self.accepted_at = message.accepted_at
        self.expires_at = message.expires_at
        self.is_superseded = message.superseded_by is not None
        self.cbor = encode_cbor(alert)
        self.size = len(self.cbor)
        self._json: Alert | str = alert

    @property
    def json(self) -> str:
        """The same in JSON, made when the first device asks for it."""
        if not isinstance(self._json, str):
            self._json = encode_json(self._json)
        return self._json

    def frame(self, *, is_json: bool) -> bytes:
        """Return the WebSocket frame that every live session gets."""
        return frame(Opcode.TEXT, self.json.encode()) if is_json else frame(Opcode.BINARY, self.cbor)

    def encoded(self, *, is_json: bool, attempt: int, waiting: int) -> bytes:
        """Return the message with ``attempt`` and ``waiting``: for a page or a redelivery."""
        if is_json:
            return f'{self.json[:-1]},"attempt":{attempt},"waiting":{waiting}}}'.encode()
        # A map of five entries (0xa5) becomes one of seven; 5 and 6 sort last.
        return b"\xa7" + self.cbor[1:] + b"\x05" + _uint(attempt) + b"\x06" + _uint(waiting)


class Block:
    """Offsets ``first`` to ``first + 255`` of a channel, as far as they are known.

    Attributes:
        upto: Offsets up to here were read or published; above it nothing is known.
        floor: Offsets up to here are pruned; it may be in a later block.
        items: By offset.
    """

    __slots__ = ("_keyed", "first", "floor", "items", "size", "upto")

    def __init__(self, first: int, upto: int, floor: int) -> None:
        self.first = first
        self.upto = upto
        self.floor = floor
        self.items: dict[int, LogItem] = {}
        self.size = _ITEM_OVERHEAD_BYTES
        self._keyed: dict[str, LogItem] | None = None  # the newest with each key, unless superseded

    @property
    def last(self) -> int:
        return self.first + BLOCK_LEN - 1

    def add(self, item: LogItem) -> None:
        self.items[item.offset] = item
        self.size += item.size + _ITEM_OVERHEAD_BYTES
        if item.key is not None and not item.is_superseded:
            if self._keyed is None:
                self._keyed = {}
            self._keyed[item.key] = item

    def supersede(self, key: str, offset: int) -> None:
        """Retire the alert with ``key`` below ``offset``."""
        older = self._keyed.get(key) if self._keyed is not None else None
        if older is not None and older.offset < offset:
            older.is_superseded = True


@dataclass(frozen=True, slots=True)
class Signed:
    """An alert's payload, and who vouches for it."""

    payload: bytes
    signature: bytes
    kid: bytes
    algorithm: int


class Resign(Protocol):
    """Return a message as it is signed in ``epoch`` by the key in force: as it is stored, or anew."""

    def __call__(self, fleet: FleetName, epoch: int, message: StoredMessage) -> Signed: ...


class _Read:
    """A read that is under way, and what was superseded since it began: key → the newest offset with it."""

    __slots__ = ("superseded", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Block] | None = None
        self.superseded: dict[str, int] = {}


class LogStore(Protocol):
    """The part of ``FleetStore`` that is read here."""

    async def log_range(self, channel_id: int, first: int, last: int) -> LogRange: ...


class AlertLog:
    """Read the log by blocks: one read for all who wait for it, a bounded number at once.

    Args:
        store: The truth.
        resign: See ``Resign``.
        size_bytes_max: Of all blocks; the least recently used goes first.
        reads_max: Reads of the store at the same time.
    """

    def __init__(
        self,
        store: LogStore,
        *,
        resign: Resign,
        metrics: Metrics,
        size_bytes_max: int,
        reads_max: int,
    ) -> None:
        self._store = store
        self._resign = resign
        self._metrics = metrics
        self._size_bytes_max = size_bytes_max
        self._size_bytes = 0
        self._turns = asyncio.Semaphore(reads_max)
        self._blocks: OrderedDict[tuple[int, int, int], Block] = OrderedDict()
        self._reads: dict[tuple[int, int, int], _Read] = {}

    @property
    def size_bytes(self) -> int:
        """What is in memory, roughly."""
        return self._size_bytes

    def cached(self, channel_id: int, epoch: int, offset: int) -> Block | None:
        """Return the block that knows ``offset``, if it is in memory."""
        key = (channel_id, epoch, (offset - 1) // BLOCK_LEN)
        block = self._blocks.get(key)
        if block is None or offset > block.upto:
            return None
        self._blocks.move_to_end(key)
        self._metrics.log_blocks_hit.inc()
        return block

    async def block(
        self, fleet: FleetName, channel: ChannelName, channel_id: int, epoch: int, offset: int
    ) -> Block:
        """Return the block that holds ``offset``, which is not above the channel's head.

        Raises:
            NotFoundError: The channel is gone, or has another epoch.
            StorageUnavailableError: As the store has it.
        """
        key = (channel_id, epoch, (offset - 1) // BLOCK_LEN)
        # A read that others began may be older than the alert that is asked for; the next one is not.
        for _ in range(2):
            block = self.cached(channel_id, epoch, offset)
            if block is not None:
                return block
            block = await asyncio.shield(self._reading(key, fleet, channel))
            if offset <= block.upto:
                return block
        raise UnavailableError("the log is shorter than its channel's head", code="log_short")

    async def head(self, channel_id: int, epoch: int) -> int:
        """Return the channel's last committed offset. Raises as ``block``."""
        found = await self._store.log_range(channel_id, 1, 0)
        if found.epoch != epoch:
            raise NotFoundError("the channel has another epoch")
        return found.head

    def append(self, channel_id: int, epoch: int, items: Sequence[LogItem]) -> None:
        """Take what was just committed, so that those who are a little behind need no read."""
        for item in items:
            if item.key is not None:
                self._supersede(channel_id, epoch, item)
            key = (channel_id, epoch, (item.offset - 1) // BLOCK_LEN)
            block = self._blocks.get(key)
            first = key[2] * BLOCK_LEN + 1
            if block is None:
                if item.offset != first:
                    continue  # the block's beginning is not known here; whoever needs it reads it
                block = self._put(key, Block(first, first - 1, 0))
            if block.upto + 1 == item.offset:
                before = block.size
                block.add(item)
                block.upto = item.offset
                self._size_bytes += block.size - before
                self._blocks.move_to_end(key)
        self._trim()

    def item(self, fleet: FleetName, channel: ChannelName, epoch: int, message: StoredMessage) -> LogItem:
        """Return ``message`` encoded, signed by the key in force."""
        signed = self._resign(fleet, epoch, message)
        body = assemble_alert(signed.payload, signed.signature, kid=signed.kid, algorithm=signed.algorithm)
        return LogItem(Alert(channel=channel, epoch=epoch, offset=message.offset, body=body), message)

    def forget(self, channel_id: int) -> None:
        """Drop what is known of a channel: pruned, deleted, or another epoch."""
        for key in [key for key in self._blocks if key[0] == channel_id]:
            self._size_bytes -= self._blocks.pop(key).size

    async def close(self) -> None:
        """End reads that are under way."""
        reads = [read.task for read in self._reads.values() if read.task is not None]
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)

    def _reading(
        self, key: tuple[int, int, int], fleet: FleetName, channel: ChannelName
    ) -> asyncio.Task[Block]:
        """Return the one read of the block ``key``, begun now if nobody began it before."""
        read = self._reads.get(key)
        # One that ended and whose end is not told yet is of the past: who asks now may ask for a later alert.
        if read is None or (read.task is not None and read.task.done()):
            read = self._reads[key] = _Read()
            read.task = asyncio.create_task(self._read(key, fleet, channel), name=f"log.read[{key[0]}]")
            read.task.add_done_callback(lambda done: self._ended(key, done))
        assert read.task is not None, "set as it is made"
        return read.task

    def _ended(self, key: tuple[int, int, int], task: asyncio.Task[Block]) -> None:
        read = self._reads.get(key)
        if read is not None and read.task is task:
            del self._reads[key]
        if not task.cancelled():
            task.exception()  # those who wait have it; when all have gone, nobody misses it

    async def _read(self, key: tuple[int, int, int], fleet: FleetName, channel: ChannelName) -> Block:
        channel_id, epoch, index = key
        first = index * BLOCK_LEN + 1
        async with self._turns:
            found = await self._store.log_range(channel_id, first, first + BLOCK_LEN - 1)
        self._metrics.log_blocks_read.inc()
        if found.epoch != epoch:
            raise NotFoundError("the channel has another epoch")
        block = Block(first, min(found.head, first + BLOCK_LEN - 1), found.floor)
        for message in found.messages:
            block.add(self.item(fleet, channel, epoch, message))
        for alert_key, offset in self._reads[key].superseded.items():
            block.supersede(alert_key, offset)
        known = self._blocks.get(key)
        if known is not None and known.upto >= block.upto:
            return known  # it was published meanwhile
        self._put(key, block)
        self._trim()
        return block

    def _put(self, key: tuple[int, int, int], block: Block) -> Block:
        old = self._blocks.pop(key, None)
        if old is not None:
            self._size_bytes -= old.size
        self._blocks[key] = block
        self._size_bytes += block.size
        return block

    def _trim(self) -> None:
        while self._size_bytes > self._size_bytes_max and len(self._blocks) > 1:
            _, block = self._blocks.popitem(last=False)
            self._size_bytes -= block.size

    def _supersede(self, channel_id: int, epoch: int, newer: LogItem) -> None:
        assert newer.key is not None, "asked before"
        for at, block in self._blocks.items():
            if at[:2] == (channel_id, epoch):
                block.supersede(newer.key, newer.offset)
        for at, read in self._reads.items():
            if at[:2] == (channel_id, epoch):
                read.superseded[newer.key] = max(newer.offset, read.superseded.get(newer.key, 0))


def _uint(value: int) -> bytes:
    """Return ``value`` as a CBOR unsigned integer (RFC 8949 §3)."""
    if value < 24:
        return bytes([value])
    for head, size in ((0x18, 1), (0x19, 2), (0x1A, 4), (0x1B, 8)):
        if value < 1 << 8 * size:
            return bytes([head]) + value.to_bytes(size, "big")
    raise AssertionError("bounded by the log")
