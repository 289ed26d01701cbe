"""What a device that is behind is sent next: a page of the log, as messages. Pure.

Where an alert will not be delivered the page says so (``advance``), so that the offsets which a device sees
are contiguous and a hole is never mistaken for a loss (PROTOCOL §1.5). Neighbours with one reason share one
``advance``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from device_sdk.wire.messages import Advance, encode_cbor, encode_json
from device_sdk.wire.names import ChannelName
from gateway.fleet.log import Block, LogItem


@dataclass(slots=True)
class Page:
    """One page.

    Attributes:
        messages: Encoded, in order.
        entries: For each message the last offset it covers and its bytes: what an ack gives back.
        runs: Ranges of alerts in it, both ends inclusive: the facts.
        expired: Alerts whose time is over: dead letters of this device.
        upto: The last offset that the page covers.
    """

    messages: list[bytes] = field(default_factory=list)
    entries: list[tuple[int, int]] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)
    expired: list[LogItem] = field(default_factory=list)
    upto: int = 0
    size_bytes: int = 0


def build_page(
    block: Block,
    *,
    channel: ChannelName,
    epoch: int,
    after: int,
    head: int,
    dead: Collection[int],
    now_ms: int,
    is_json: bool,
    attempt: int,
    resent_upto: int,
    credit: int,
    credit_bytes: int,
    len_max: int,
    size_bytes_max: int,
) -> Page:
    """Return the messages for the offsets above ``after`` that ``block`` knows, as far as credit goes.

    Args:
        head: The channel's: the last message says how many more are waiting.
        dead: Offsets that were given up for this device.
        attempt: What alerts up to ``resent_upto`` carry; those above carry 1.
        credit, credit_bytes: The first message always fits, if there is any credit at all.
    """
    page = Page(upto=after)
    last = min(block.upto, block.last, head)
    offset = after + 1
    while offset <= last and credit > 0 and credit_bytes > 0:
        if len(page.messages) >= len_max or page.size_bytes >= size_bytes_max:
            break
        item = block.items.get(offset)
        reason = _reason(item, offset, dead, now_ms)
        end = offset
        if reason is None:
            assert item is not None, "what is not there is pruned"
            message = item.encoded(
                is_json=is_json, attempt=attempt if offset <= resent_upto else 1, waiting=head - offset
            )
            # What is sent again and what is sent first are two facts: they are different attempts.
            if page.runs and page.runs[-1][1] == offset - 1 and offset - 1 != resent_upto:
                page.runs[-1] = (page.runs[-1][0], offset)
            else:
                page.runs.append((offset, offset))
        else:
            while end < last and _reason(block.items.get(end + 1), end + 1, dead, now_ms) == reason:
                end += 1
            if reason == "pruned" and end == last:
                end = min(max(end, block.floor), head)  # not a block at a time, for a device long away
            if reason == "expired":
                page.expired += [block.items[expired] for expired in range(offset, end + 1)]
            advance = Advance(channel=channel, epoch=epoch, first=offset, last=end, reason=reason)
            message = encode_json(advance).encode() if is_json else encode_cbor(advance)
        page.messages.append(message)
        page.entries.append((end, len(message)))
        page.size_bytes += len(message)
        page.upto = end
        credit -= 1
        credit_bytes -= len(message)
        offset = end + 1
    return page


def _reason(item: LogItem | None, offset: int, dead: Collection[int], now_ms: int) -> str | None:
    """Return why the alert at ``offset`` will not be delivered; None: it will."""
    if item is None:
        return "pruned"
    if offset in dead:
        return "dead_letter"
    if item.is_superseded:
        return "superseded"
    if item.expires_at is not None and now_ms >= item.expires_at:
        return "expired"
    return None
