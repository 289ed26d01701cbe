"""What a device that is behind is sent: each offset once, in order, as an alert or as the word why not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.wire.messages import Advance, Alert, decode_cbor, decode_json
from device_sdk.wire.names import ChannelName
from gateway.fleet.log import BLOCK_LEN, Block, LogItem
from gateway.fleet.model import StoredMessage
from gateway.session.page import Page, build_page

OPS = ChannelName("ops")
EPOCH = 7
NOW = 1_000


def item(
    offset: int, *, size: int = 10, expires_at: int | None = None, superseded_by: int | None = None
) -> LogItem:
    message = StoredMessage(
        channel_id=1,
        offset=offset,
        id=offset.to_bytes(16, "big"),
        payload=b"",
        signature=b"",
        kid=b"",
        key=None,
        superseded_by=superseded_by,
        original_id=None,
        accepted_at=0,
        expires_at=expires_at,
    )
    return LogItem(Alert(channel=OPS, epoch=EPOCH, offset=offset, body=b"x" * size), message)


def block_of(*items: LogItem, first: int = 1, upto: int = 0, floor: int = 0) -> Block:
    block = Block(first, upto or max((one.offset for one in items), default=first - 1), floor)
    for one in items:
        block.add(one)
    return block


def page_of(block: Block, **changes: Any) -> Page:
    given: dict[str, Any] = {
        "channel": OPS,
        "epoch": EPOCH,
        "after": block.first - 1,
        "head": block.upto,
        "dead": (),
        "now_ms": NOW,
        "is_json": False,
        "attempt": 1,
        "resent_upto": 0,
        "credit": 100,
        "credit_bytes": 1 << 20,
        "len_max": 300,
        "size_bytes_max": 1 << 20,
    }
    return build_page(block, **(given | changes))


def said(page: Page, *, is_json: bool = False) -> list[Alert | Advance]:
    decode = decode_json if is_json else decode_cbor
    found = [decode(message) for message in page.messages]
    assert all(isinstance(message, Alert | Advance) for message in found)
    return found  # type: ignore[return-value]


def spoken(page: Page) -> list[tuple[int, int, str]]:
    """Return (first, last, "alert" or the reason) of each message."""
    return [
        (m.offset, m.offset, "alert") if isinstance(m, Alert) else (m.first, m.last, m.reason)
        for m in said(page)
    ]


class TestAlerts:
    def test_carry_attempt_and_how_many_wait(self) -> None:
        page = page_of(block_of(item(1), item(2), item(3)), head=10, attempt=3, resent_upto=2)
        assert [(m.attempt, m.waiting) for m in said(page) if isinstance(m, Alert)] == [
            (3, 9),
            (3, 8),
            (1, 7),
        ]

    def test_sent_again_and_sent_first_are_two_facts(self) -> None:
        page = page_of(block_of(*map(item, range(1, 6))), attempt=2, resent_upto=3)
        assert page.runs == [(1, 3), (4, 5)]

    def test_go_on_after_what_was_sent(self) -> None:
        page = page_of(block_of(*map(item, range(1, 6))), after=3)
        assert spoken(page) == [(4, 4, "alert"), (5, 5, "alert")]
        assert (page.upto, page.runs) == (5, [(4, 5)])

    def test_end_at_the_head_even_if_the_block_knows_more(self) -> None:
        assert page_of(block_of(*map(item, range(1, 6))), head=2).upto == 2

    def test_end_at_what_the_block_knows_even_if_the_head_is_higher(self) -> None:
        assert page_of(block_of(item(1), item(2)), head=9).upto == 2

    def test_in_json_are_the_same(self) -> None:
        block = block_of(item(1), item(3), upto=3)
        assert said(page_of(block, is_json=True), is_json=True) == said(page_of(block))

    def test_entries_say_what_an_ack_gives_back(self) -> None:
        page = page_of(block_of(item(1), item(4), upto=4))
        assert [end for end, _ in page.entries] == [1, 3, 4]
        assert [size for _, size in page.entries] == [len(message) for message in page.messages]
        assert page.size_bytes == sum(map(len, page.messages))


class TestBound:
    def test_credit_counts_messages(self) -> None:
        assert page_of(block_of(*map(item, range(1, 6))), credit=2).upto == 2

    def test_without_credit_nothing_is_said(self) -> None:
        block = block_of(item(1))
        for page in (page_of(block, credit=0), page_of(block, credit_bytes=0)):
            assert (page.messages, page.upto) == ([], 0)

    def test_bytes_are_credit_and_the_first_message_always_fits(self) -> None:
        block = block_of(item(1, size=5000), item(2))
        assert page_of(block, credit_bytes=1).upto == 1

    def test_length_and_size_of_a_page(self) -> None:
        block = block_of(*(item(offset, size=100) for offset in range(1, 10)))
        assert page_of(block, len_max=4).upto == 4
        assert page_of(block, size_bytes_max=150).upto == 2

    def test_an_advance_costs_one_credit_whatever_its_length(self) -> None:
        block = block_of(item(1), item(200), upto=200)
        assert page_of(block, credit=3).upto == 200


class TestAdvance:
    def test_neighbours_with_one_reason_share_one(self) -> None:
        block = block_of(
            item(2, expires_at=NOW),
            item(3, expires_at=NOW - 1),
            item(4, superseded_by=9),
            item(5),
            item(6, superseded_by=9),
            item(7, expires_at=NOW + 1),
            upto=8,
        )
        page = page_of(block, dead={5})
        assert spoken(page) == [
            (1, 1, "pruned"),
            (2, 3, "expired"),
            (4, 4, "superseded"),
            (5, 5, "dead_letter"),
            (6, 6, "superseded"),
            (7, 7, "alert"),
            (8, 8, "pruned"),
        ]
        assert [dead.offset for dead in page.expired] == [2, 3]
        assert page.runs == [(7, 7)]

    def test_what_was_given_up_is_that_even_if_its_time_is_over_too(self) -> None:
        page = page_of(block_of(item(1, expires_at=NOW)), dead={1})
        assert spoken(page) == [(1, 1, "dead_letter")]
        assert page.expired == []

    def test_pruned_history_is_one_message_however_long_it_is(self) -> None:
        page = page_of(block_of(upto=BLOCK_LEN, floor=1_000_000), head=1_000_500)
        assert spoken(page) == [(1, 1_000_000, "pruned")]
        assert page.upto == 1_000_000

    def test_pruned_history_ends_at_the_head_that_is_known(self) -> None:
        assert page_of(block_of(upto=BLOCK_LEN, floor=1_000), head=500).upto == 500

    def test_what_the_block_still_has_below_the_floor_is_delivered(self) -> None:
        page = page_of(block_of(item(1), item(2), upto=4, floor=3), head=4)
        assert spoken(page) == [(1, 1, "alert"), (2, 2, "alert"), (3, 4, "pruned")]

    def test_nothing_is_left_when_all_is_pruned(self) -> None:
        page = page_of(block_of(upto=5, floor=5), head=5)
        assert spoken(page) == [(1, 5, "pruned")]


@given(data=st.data())
def test_pages_say_every_offset_once_and_in_order(data: st.DataObject) -> None:
    upto = data.draw(st.integers(1, 40))
    present = data.draw(st.sets(st.integers(1, upto)))
    dead = data.draw(st.sets(st.integers(1, upto)))
    floor = data.draw(st.integers(0, min(present, default=upto + 1) - 1))
    block = block_of(
        *(
            item(
                offset,
                expires_at=data.draw(st.sampled_from([None, NOW, NOW + 1])),
                superseded_by=data.draw(st.sampled_from([None, None, 99])),
            )
            for offset in sorted(present)
        ),
        upto=upto,
        floor=floor,
    )
    after, seen = 0, []
    while after < upto:
        credit = data.draw(st.integers(1, 5))
        page = page_of(
            block,
            after=after,
            head=upto,
            dead=dead,
            credit=credit,
            credit_bytes=data.draw(st.integers(1, 300)),
            size_bytes_max=data.draw(st.integers(1, 300)),
            attempt=2,
            resent_upto=data.draw(st.integers(0, upto)),
        )
        assert 1 <= len(page.messages) <= credit
        for first, last, reason in spoken(page):
            assert first == after + 1
            seen += [(offset, reason) for offset in range(first, last + 1)]
            after = last
        assert page.upto == after
        assert [end for end, _ in page.entries][-1] == after
    for offset, reason in seen:
        if offset not in present:
            assert reason in ("pruned", "dead_letter")
        else:
            assert (reason == "dead_letter") == (offset in dead)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_facts_are_the_runs_of_alerts_alone(count: int) -> None:
    items = [item(offset, expires_at=NOW if offset == 2 else None) for offset in range(1, 2 + count)]
    page = page_of(block_of(*items))
    assert page.runs == [[(1, 1)], [(1, 1)], [(1, 1), (3, 3)]][count]
