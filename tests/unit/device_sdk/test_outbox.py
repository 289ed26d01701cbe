"""What is said until it is known: bounded, durable, and not said twice on one connection."""

from __future__ import annotations

from device_sdk.inbox import nack_key
from device_sdk.outbox import NACKS_MAX, NackOutbox, ReportRepeater
from device_sdk.store import MemoryFlash, StateStore
from device_sdk.wire.messages import Nack, Report


def stored(store: StateStore, outbox: NackOutbox, *offsets: int) -> None:
    nacks = [Nack("ops", 7, offset, "malformed") for offset in offsets]
    store.commit({nack_key(nack): nack.code for nack in nacks})
    outbox.add(*nacks)


class TestNacks:
    def test_the_oldest_go_at_the_bound_on_flash_too(self):
        flash = MemoryFlash()
        store = StateStore(flash)
        outbox = NackOutbox(store)
        stored(store, outbox, *range(1, NACKS_MAX + 4))
        assert len(outbox) == NACKS_MAX
        again = NackOutbox(StateStore(MemoryFlash(flash.files)))
        assert [nack.offset for nack in again.due(0.0, 2)] == [4, 5]

    def test_each_goes_once_on_a_connection_in_groups(self):
        store = StateStore(MemoryFlash())
        outbox = NackOutbox(store)
        stored(store, outbox, 1, 2, 3)
        assert outbox.next_due() == 0.0
        assert [nack.offset for nack in outbox.due(5.0, 2)] == [1, 2]
        assert [nack.offset for nack in outbox.due(6.0, 2)] == [3]
        assert outbox.due(7.0, 2) == []
        outbox.connected()
        assert len(outbox.due(8.0, 9)) == 3

    def test_it_is_forgotten_once_the_connection_lasted(self):
        store = StateStore(MemoryFlash())
        outbox = NackOutbox(store)
        stored(store, outbox, 1)
        outbox.due(5.0, 2)
        outbox.settle(14.9)
        assert outbox.next_due() == 15.0
        outbox.settle(15.0)
        assert (len(outbox), outbox.next_due(), list(store.items("nack/"))) == (0, None, [])

    def test_only_what_was_sent_can_have_been_refused(self):
        store = StateStore(MemoryFlash())
        outbox = NackOutbox(store)
        stored(store, outbox, 1)
        assert not outbox.refused("ops")
        outbox.due(0.0, 1)
        assert not outbox.refused("lab")
        assert outbox.refused("ops")
        assert len(outbox) == 0


class TestReports:
    def test_what_is_recorded_is_forgotten(self):
        repeater = ReportRepeater(wait_s=10, wait_max_s=40)
        report = Report(b"r" * 16, b"d" * 16, 1, "received")
        assert repeater.due([report], 0.0, 9) == [report]
        assert repeater.next_due([report]) == 10.0
        assert repeater.due([], 1.0, 9) == []
        assert repeater.next_due([report]) == 0.0, "it came again, as something new"
        assert repeater.next_due([]) is None
