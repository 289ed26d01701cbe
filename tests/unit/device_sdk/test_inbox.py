"""The inbox: order, redelivery after a crash, retries, dead letters, and effects exactly once."""

from __future__ import annotations

from random import Random

import pytest

from device_sdk.inbox import Inbox, InboxLimits
from device_sdk.store import MemoryFlash, PowerLossError, StateFullError, StateStore
from device_sdk.wire.messages import Nack
from device_sdk.wire.signed import AlertPayload

RANDOM = Random(1)


def payload(offset: int, channel: str = "ops", data: bytes = b"x") -> AlertPayload:
    return AlertPayload(
        fleet="acme",  # type: ignore[arg-type]
        channel=channel,  # type: ignore[arg-type]
        epoch=7,
        offset=offset,
        id=offset.to_bytes(16, "big"),
        issued_at=1,
        expires_at=None,
        content_type="application/json",
        data=data,
        key="k",
        original_id=None,
    )


def put(inbox: Inbox, store: StateStore, *alerts: AlertPayload) -> None:
    for alert in alerts:
        entry, changes = inbox.entry(alert)
        store.commit(changes)
        inbox.add([entry])


def opened(flash: MemoryFlash, **limits: int) -> tuple[StateStore, Inbox]:
    store = StateStore(flash)
    return store, Inbox(store, InboxLimits(**limits))  # type: ignore[arg-type]


def take(inbox: Inbox, now: float = 0.0):
    taken = inbox.take(now)
    assert taken is not None
    return taken


class TestOrder:
    def test_the_oldest_comes_first_and_is_forgotten_when_done(self):
        store, inbox = opened(MemoryFlash())
        put(inbox, store, payload(1), payload(1, "lab"), payload(2))
        seen = []
        while (taken := inbox.take(0.0)) is not None:
            seen.append((taken[1].channel, taken[1].offset))
            inbox.done(taken[0])
        assert seen == [("ops", 1), ("lab", 1), ("ops", 2)]
        assert len(inbox) == 0
        assert list(store.items("inbox/")) == []

    def test_an_alert_has_everything_the_operator_sent(self):
        store, inbox = opened(MemoryFlash())
        put(inbox, store, payload(1, data=b'{"a": 1}'))
        alert = take(inbox)[1]
        assert alert.json() == {"a": 1}
        assert alert.text == '{"a": 1}'
        assert (alert.id, alert.key, alert.content_type) == (payload(1).id, "k", "application/json")
        assert not alert.redelivered

    def test_a_channel_that_waits_for_a_retry_does_not_hold_up_another(self):
        store, inbox = opened(MemoryFlash())
        put(inbox, store, payload(1), payload(2), payload(1, "lab"))
        assert inbox.failed(take(inbox)[0], 0.0, RANDOM) is None
        entry, alert = take(inbox)
        assert alert.channel == "lab"
        inbox.done(entry)
        assert inbox.take(0.0) is None, "offset 2 waits behind 1"
        due = inbox.next_due()
        assert due is not None
        assert 0.5 <= due <= 1.0
        assert take(inbox, due)[1].offset == 1


class TestCrash:
    def test_only_the_first_of_each_channel_may_have_been_in_hand(self):
        flash = MemoryFlash()
        store, inbox = opened(flash)
        put(inbox, store, payload(1), payload(2), payload(1, "lab"))
        take(inbox)
        _, inbox = opened(MemoryFlash(flash.files))
        seen = []
        while (taken := inbox.take(0.0)) is not None:
            seen.append((taken[1].channel, taken[1].offset, taken[1].redelivered))
            inbox.done(taken[0])
        assert seen == [("ops", 1, True), ("ops", 2, False), ("lab", 1, True)]

    def test_new_alerts_queue_behind_those_of_before(self):
        flash = MemoryFlash()
        store, inbox = opened(flash)
        put(inbox, store, payload(1))
        store, inbox = opened(MemoryFlash(flash.files))
        put(inbox, store, payload(2))
        assert [take(inbox)[1].offset] == [1]

    def test_effects_are_taken_exactly_once_wherever_the_power_goes(self):
        """A counter that each alert raises: after any number of crashes it has counted each alert once."""

        def work(flash: MemoryFlash) -> None:
            _, inbox = opened(flash)
            while (taken := inbox.take(0.0)) is not None:
                with inbox.transaction() as transaction:
                    count = transaction.get("count") or 0
                    assert isinstance(count, int)
                    transaction.put("count", count + 1)
                    transaction.put(f"seen/{taken[1].offset}", count + 1)
                inbox.done(taken[0])

        start = MemoryFlash()
        store, inbox = opened(start)
        put(inbox, store, payload(1), payload(2), payload(3))
        whole = MemoryFlash(start.files)
        work(whole)
        for energy in range(whole.spent):
            flash = MemoryFlash(start.files, energy=energy)
            with pytest.raises(PowerLossError):
                work(flash)
            for aftermath in flash.aftermaths():
                work(aftermath)
                _, inbox = opened(MemoryFlash(aftermath.files))
                assert dict(inbox.values()) == {"count": 3, "seen/1": 1, "seen/2": 2, "seen/3": 3}


class TestTransaction:
    def test_an_exception_commits_nothing(self):
        store, inbox = opened(MemoryFlash())
        put(inbox, store, payload(1))
        take(inbox)

        def handler() -> None:
            with inbox.transaction() as transaction:
                transaction.put("a", 1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            handler()
        assert inbox.value("a") is None
        assert len(inbox) == 1

    def test_a_handler_that_raises_after_its_transaction_is_done(self):
        store, inbox = opened(MemoryFlash())
        put(inbox, store, payload(1))
        entry, _ = take(inbox)
        with inbox.transaction() as transaction:
            transaction.put("a", 1)
        assert inbox.failed(entry, 0.0, RANDOM) is None
        assert inbox.take(9.0) is None
        assert inbox.value("a") == 1

    def test_it_reads_its_own_writes_and_deletes(self):
        store, inbox = opened(MemoryFlash())
        put(inbox, store, payload(1), payload(2))
        entry, _ = take(inbox)
        with inbox.transaction() as transaction:
            transaction.put("a", [1])
            assert transaction.get("a") == [1]
        inbox.done(entry)
        take(inbox)
        with inbox.transaction() as transaction:
            transaction.delete("a")
            assert transaction.get("a") is None
        assert list(inbox.values()) == []

    def test_there_is_one_for_each_alert_and_only_in_its_handler(self):
        store, inbox = opened(MemoryFlash())
        with pytest.raises(RuntimeError), inbox.transaction():
            pass
        put(inbox, store, payload(1))
        take(inbox)
        with inbox.transaction():
            pass
        with pytest.raises(RuntimeError), inbox.transaction():
            pass

    def test_one_that_outlives_its_handler_commits_nothing(self):
        store, inbox = opened(MemoryFlash())
        put(inbox, store, payload(1))
        entry, _ = take(inbox)
        transaction = inbox.transaction()
        transaction.__enter__().put("a", 1)
        inbox.release(entry, retry_at=0.0)
        with pytest.raises(RuntimeError):
            transaction.__exit__(None, None, None)
        assert inbox.value("a") is None

    def test_the_applications_values_are_bounded(self):
        store, inbox = opened(MemoryFlash(), app_size_max_bytes=1_000)
        put(inbox, store, payload(1))
        take(inbox)
        with pytest.raises(StateFullError, match="app_size_bytes"), inbox.transaction() as transaction:
            transaction.put("a", bytes(1_000))
        assert len(inbox) == 1
        with inbox.transaction() as transaction:
            transaction.put("a", bytes(900))
            with pytest.raises(ValueError, match="characters"):
                transaction.put("k" * 129, 1)


class TestFailures:
    def test_three_calls_then_a_dead_letter_and_a_nack_that_survives(self):
        flash = MemoryFlash()
        store, inbox = opened(flash)
        put(inbox, store, payload(1), payload(2))
        now, waits = 0.0, []
        for _ in range(2):
            entry, alert = take(inbox, now)
            assert inbox.failed(entry, now, RANDOM) is None
            due = inbox.next_due()
            assert due is not None
            waits.append(due - now)
            now = due
        assert alert.redelivered
        assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0
        nack = inbox.failed(take(inbox, now)[0], now, RANDOM)
        assert nack == Nack("ops", 7, 1, "handler_failed")
        assert dict(store.items("nack/")) == {f"nack/ops/{7:08x}/{1:016x}": "handler_failed"}
        assert take(inbox, now)[1].offset == 2
        _, inbox = opened(MemoryFlash(flash.files))
        [letter] = inbox.dead_letters()
        assert (letter.code, letter.alert.offset, letter.alert.data) == ("handler_failed", 1, b"x")

    def test_calls_are_counted_across_crashes(self):
        flash = MemoryFlash()
        store, inbox = opened(flash)
        put(inbox, store, payload(1))
        inbox.failed(take(inbox)[0], 0.0, RANDOM)
        inbox.failed(take(inbox, 9.0)[0], 9.0, RANDOM)
        _, inbox = opened(MemoryFlash(flash.files))
        assert inbox.failed(take(inbox)[0], 0.0, RANDOM) is not None

    def test_the_oldest_dead_letters_go(self):
        store, inbox = opened(MemoryFlash(), dead_letters_max=2)
        put(inbox, store, *(payload(offset) for offset in range(1, 6)))
        for _ in range(5):
            inbox.give_up(take(inbox)[0], "expired")
        assert [letter.alert.offset for letter in inbox.dead_letters()] == [4, 5]


class TestCredit:
    def test_it_shrinks_with_count_and_bytes_and_never_blocks_an_empty_inbox(self):
        store, inbox = opened(MemoryFlash(), alerts_max=40, size_max_bytes=70_000)
        assert inbox.credit(32) == 1, "one of the largest alerts fits"
        store, inbox = opened(MemoryFlash(), alerts_max=3)
        assert inbox.credit(32) == 3
        put(inbox, store, payload(1), payload(2), payload(3), payload(4))
        assert inbox.credit(32) == 0
        assert inbox.has_room(1, 600)
        assert not inbox.has_room(2, 600)
