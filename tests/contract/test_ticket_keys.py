"""The ring of ticket keys: two keys, and one new one however many nodes make it."""

from __future__ import annotations

import asyncio

from gateway.identity import TicketKey
from gateway.storage.engine import Database
from gateway.storage.ticket_keys import SQLTicketKeyStore


async def test_the_newest_two_are_in_force_the_oldest_first(database: Database) -> None:
    store = SQLTicketKeyStore(database)
    assert await store.ring() == []
    keys = [TicketKey.new(now_ms=at) for at in (1_000, 2_000, 3_000)]
    for key in keys:
        ring = await store.rotate(key, if_older_than=key.created_at - 1_000)
        assert ring[-1] == key
        assert await store.ring() == ring
    assert ring == keys[1:]


async def test_a_young_ring_is_left_as_it_is(database: Database) -> None:
    store = SQLTicketKeyStore(database)
    first = TicketKey.new(now_ms=1_000)
    await store.rotate(first, if_older_than=0)
    assert await store.rotate(TicketKey.new(now_ms=1_500), if_older_than=999) == [first]
    assert await store.ring() == [first]


async def test_nodes_that_rotate_at_once_add_one_key(database: Database) -> None:
    store = SQLTicketKeyStore(database)
    await store.rotate(TicketKey.new(now_ms=0), if_older_than=0)
    new = [TicketKey.new(now_ms=5_000 + number) for number in range(6)]
    rings = await asyncio.gather(*(store.rotate(key, if_older_than=1_000) for key in new))
    assert len({ring[-1].id for ring in rings}) == 1
    assert len(await store.ring()) == 2
