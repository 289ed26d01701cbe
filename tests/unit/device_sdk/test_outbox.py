"""What is said until it is known: bounded, durable, and not said twice on one connection."""

from __future__ import annotations

import pytest

from device_sdk.inbox import nack_key
from device_sdk.outbox import NACKS_MAX, NackOutbox, Repeater, UplinkOutbox, UplinksFullError
from device_sdk.store import MemoryFlash, StateStore, StoreError
from device_sdk.wire.messages import Nack, Report, Uplink


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
        repeater = Repeater(wait_s=10, wait_max_s=40)
        report = Report(b"r" * 16, b"d" * 16, 1, "received")
        assert repeater.due([report], 0.0, 9) == [report]
        assert repeater.next_due([report]) == 10.0
        assert repeater.due([], 1.0, 9) == []
        assert repeater.next_due([report]) == 0.0, "it came again, as something new"
        assert repeater.next_due([]) is None


class WornFlash(MemoryFlash):
    is_worn = False

    def sync(self, name: str) -> None:
        if self.is_worn:
            raise OSError("worn out")
        super().sync(name)


def uplink(number: int, size: int = 3, *, best_effort: bool = False) -> Uplink:
    return Uplink(number.to_bytes(16, "big"), "text/plain", bytes(size), best_effort)


def outbox(flash: MemoryFlash, *, len_max: int = 5, in_flight_max: int = 2) -> UplinkOutbox:
    return UplinkOutbox(
        StateStore(flash),
        len_max=len_max,
        size_max_bytes=100,
        in_flight_max=in_flight_max,
        wait_s=10.0,
        wait_max_s=20.0,
    )


class TestUplinks:
    def test_they_outlive_a_power_cut_in_their_order(self):
        flash = MemoryFlash()
        first = outbox(flash)
        for number in (3, 1, 2):
            first.add(uplink(number))
        first.recorded(uplink(3).id)
        again = outbox(MemoryFlash(flash.files))
        assert again.waiting == [uplink(1).id, uplink(2).id]
        again.add(uplink(4))
        assert again.due(0.0) == [uplink(1), uplink(2)]
        assert again.recorded(uplink(1).id)
        assert again.due(0.0) == [uplink(4)]

    def test_few_are_under_way_and_the_next_waits_for_an_answer(self):
        box = outbox(MemoryFlash())
        for number in (1, 2, 3):
            box.add(uplink(number))
        assert box.due(0.0) == [uplink(1), uplink(2)]
        assert box.due(9.9) == []
        assert box.next_due() == 10.0
        assert not box.recorded(b"r" * 16)
        assert box.recorded(uplink(2).id)
        assert box.next_due() == 0.0
        assert box.due(9.9) == [uplink(3)]

    def test_what_is_not_recorded_comes_again_after_doubling_waits_and_at_once_on_a_connection(self):
        box = outbox(MemoryFlash())
        box.add(uplink(1))
        sent = [now for now in range(60) if box.due(float(now))]
        assert sent == [0, 10, 30, 50]
        box.connected()
        assert box.due(51.0) == [uplink(1)]

    def test_at_the_bound_nothing_is_taken_and_nothing_lost(self):
        flash = MemoryFlash()
        box = outbox(flash)
        for number in range(5):
            box.add(uplink(number))
        with pytest.raises(UplinksFullError):
            box.add(uplink(5))
        assert len(box) == len(outbox(MemoryFlash(flash.files))) == 5
        box.recorded(uplink(0).id)
        box.add(uplink(5, size=88))
        box.recorded(uplink(1).id)
        with pytest.raises(UplinksFullError):
            box.add(uplink(6, size=4))  # of bytes
        box.add(uplink(6, size=3))

    def test_what_cannot_be_stored_is_not_sent(self):
        flash = WornFlash()
        box = outbox(flash)
        flash.is_worn = True
        with pytest.raises(StoreError):
            box.add(uplink(1))
        assert (box.due(0.0), len(box)) == ([], 0)

    def test_one_of_best_effort_is_tried_once_and_never_on_flash(self):
        flash = MemoryFlash()
        box = outbox(flash)
        box.add(uplink(1, best_effort=True))
        assert box.next_due() == 0.0
        assert box.due(0.0) == [uplink(1, best_effort=True)]
        box.connected()
        assert box.due(100.0) == []
        assert box.next_due() is None
        box.add(uplink(2, best_effort=True))
        assert outbox(MemoryFlash(flash.files)).due(0.0) == []
        for number in (3, 4):
            box.add(uplink(number, best_effort=True))
        assert [found.id[-1] for found in box.due(0.0)] == [3, 4]  # the oldest went at the bound
