"""Power loss at every byte of every operation, and damage: what the next boot finds."""

from __future__ import annotations

import pytest

from device_sdk.store import (
    CorruptStateError,
    FlashError,
    MemoryFlash,
    PowerLossError,
    StateFullError,
    StateStore,
    StoreLimits,
)
from device_sdk.store.journal import HEADER_SIZE, RECORD_HEAD_SIZE

TIGHT = StoreLimits(state_size_max_bytes=2_000, record_size_max_bytes=600, slack_bytes=150)

# What a device's day looks like: growth, overwriting, deletion, and several compactions in between.
DAY: list[dict[str, object | None]] = [
    {"a": 1, "b": b"two"},
    {"a": 2},
    {"b": None, "c": ["x", {"y": 3}]},
    {"d": b"d" * 40},
    {"d": b"e" * 40},
    {"d": None, "a": 3, "e": True},
    {"f": b"f" * 60},
]


def content(store: StateStore) -> dict[str, object]:
    return dict(store.items(""))


def states_of(day: list[dict[str, object | None]]) -> list[dict[str, object]]:
    states: list[dict[str, object]] = [{}]
    for changes in day:
        after = {**states[-1], **changes}
        states.append({key: value for key, value in after.items() if value is not None})
    return states


def live(flash: MemoryFlash) -> int:
    """Run the day and return how many commits returned before the power went."""
    done = 0
    try:
        store = StateStore(flash, limits=TIGHT)
        for changes in DAY:
            store.commit(changes)
            done += 1
    except PowerLossError:
        pass
    return done


class FailingFlash(MemoryFlash):
    """Its next append, sync or replace does its work, or half of it, and then reports a failure."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[str] = []

    def append(self, name: str, data: bytes) -> None:
        if self._fails("append"):
            super().append(name, data[: len(data) // 2])
            raise OSError("no space")
        super().append(name, data)

    def sync(self, name: str) -> None:
        if self._fails("sync"):
            raise OSError("I/O error")
        super().sync(name)

    def replace(self, name: str, data: bytes) -> None:
        if self._fails("replace"):
            super().replace(name, data)
            raise OSError("I/O error")
        super().replace(name, data)

    def _fails(self, operation: str) -> bool:
        if self.failures[:1] == [operation]:
            self.failures.pop(0)
            return True
        return False


class TestCommit:
    def test_what_was_committed_is_there_after_reopening(self):
        flash = MemoryFlash()
        assert live(flash) == len(DAY)
        assert content(StateStore(MemoryFlash(flash.files), limits=TIGHT)) == states_of(DAY)[-1]

    def test_a_value_is_a_copy_both_ways(self):
        store = StateStore(MemoryFlash())
        value = [1]
        store.commit({"a": value})
        value.append(2)
        got = store.get("a")
        assert got == [1]
        got.append(3)
        assert store.get("a") == [1]

    def test_items_are_sorted_and_limited_to_the_prefix(self):
        store = StateStore(MemoryFlash())
        store.commit({"b/2": 2, "a": 0, "b/1": 1, "c": 3})
        assert list(store.items("b/")) == [("b/1", 1), ("b/2", 2)]

    def test_changes_that_change_nothing_write_nothing(self):
        flash = MemoryFlash()
        store = StateStore(flash)
        store.commit({"a": 1})
        before = flash.spent
        store.commit({"a": 1, "b": None})
        assert flash.spent == before

    @pytest.mark.parametrize("value", [object(), 2**70, [[[[[[[[[[[[[[1]]]]]]]]]]]]]], "\ud800"])
    def test_a_value_that_could_not_be_read_back_is_refused(self, value):
        store = StateStore(MemoryFlash())
        with pytest.raises((TypeError, ValueError)):
            store.commit({"a": 1, "b": value})
        assert content(store) == {}


class TestBounds:
    def test_a_full_state_refuses_growth_and_changes_nothing(self):
        store = StateStore(MemoryFlash(), limits=TIGHT)
        for n in range(4):
            store.commit({f"k{n}": bytes(400)})
        before = content(store)
        with pytest.raises(StateFullError, match="state_size_bytes"):
            store.commit({"k4": bytes(450), "k0": bytes(399)})
        assert content(store) == before
        store.commit({"k0": None})
        store.commit({"k4": bytes(450)})

    def test_a_record_over_its_bound_is_refused(self):
        store = StateStore(MemoryFlash(), limits=TIGHT)
        with pytest.raises(StateFullError, match="record_size_bytes"):
            store.commit({"a": bytes(601)})
        assert content(store) == {}

    def test_the_file_stays_small_however_often_a_key_changes(self):
        flash = MemoryFlash()
        store = StateStore(flash, limits=TIGHT)
        for n in range(500):
            store.commit({"a": n, "b": bytes(100)})
            assert len(flash.files["state"]) == store.file_size_bytes < 1_000
        assert StateStore(flash, limits=TIGHT).get("a") == 499

    def test_compaction_by_hand_keeps_everything(self):
        flash = MemoryFlash()
        store = StateStore(flash)
        for changes in DAY:
            store.commit(changes)
        size = store.file_size_bytes
        store.compact()
        assert store.file_size_bytes < size
        assert content(StateStore(flash)) == states_of(DAY)[-1]


class TestPowerLoss:
    def test_at_every_byte_of_every_operation_the_state_is_the_one_before_or_after_a_commit(self):
        whole = MemoryFlash()
        assert live(whole) == len(DAY)
        states = states_of(DAY)
        compactions = 0
        for energy in range(whole.spent):
            flash = MemoryFlash(energy=energy)
            done = live(flash)
            assert flash.is_dead
            for aftermath in flash.aftermaths():
                found = content(StateStore(aftermath, limits=TIGHT))
                assert found in states[done : done + 2], f"after {energy} units and {done} commits"
            compactions += bool(flash._renamed)
        assert compactions >= 2, "the day is to compact, too"

    def test_power_loss_while_recovering_from_power_loss_loses_nothing(self):
        states = states_of(DAY)
        for energy in range(0, 900, 7):
            flash = MemoryFlash(energy=energy)
            done = live(flash)
            for first in flash.aftermaths():
                for recovery in range(400):
                    second = MemoryFlash(first.files, energy=recovery)
                    try:
                        StateStore(second, limits=TIGHT)
                        break
                    except PowerLossError:
                        for last in second.aftermaths():
                            assert content(StateStore(last, limits=TIGHT)) in states[done : done + 2]

    def test_what_a_crashed_process_left_unsynced_is_stable_before_it_is_used(self):
        flash = MemoryFlash()
        StateStore(flash).commit({"a": 1})
        record = flash.files["state"][-40:]
        assert record  # a commit whose sync never came: visible to the next process, not yet durable
        unsynced = MemoryFlash({"state": flash.files["state"][: -len(record)]})
        unsynced.append("state", record)
        assert StateStore(unsynced).get("a") in (1, None)
        assert len(list(unsynced.aftermaths())) == 1, "nothing is left to lose"

    def test_a_torn_tail_is_cut_and_commits_go_on(self):
        flash = MemoryFlash()
        store = StateStore(flash)
        store.commit({"a": 1})
        whole = flash.files["state"]
        store.commit({"a": 2})
        for cut in range(len(whole), len(flash.files["state"])):
            torn = MemoryFlash({"state": flash.files["state"][:cut]})
            reopened = StateStore(torn)
            assert reopened.get("a") == 1
            reopened.commit({"b": 1})
            assert content(StateStore(torn)) == {"a": 1, "b": 1}


class TestFailingFlash:
    @pytest.mark.parametrize("failures", [["append"], ["sync"], ["append", "replace"], ["sync", "replace"]])
    def test_a_failed_commit_changes_nothing_and_the_next_one_heals(self, failures):
        flash = FailingFlash()
        store = StateStore(flash)
        store.commit({"a": 1})
        flash.failures = list(failures)
        for _ in failures:
            with pytest.raises(FlashError):
                store.commit({"a": 2})
            assert store.get("a") == 1
        store.commit({"b": 1})
        store.commit({"c": 1})
        assert content(StateStore(MemoryFlash(flash.files))) == {"a": 1, "b": 1, "c": 1}

    def test_a_flash_that_cannot_be_opened_is_named_so(self):
        flash = FailingFlash()
        flash.failures = ["replace"]
        with pytest.raises(FlashError):
            StateStore(flash)


class TestCorruption:
    def test_damage_to_any_byte_before_the_last_record_is_refused(self):
        flash = MemoryFlash()
        store = StateStore(flash)
        for n in range(4):
            store.commit({f"k{n}": bytes([n]) * 5})
        before_last = store.file_size_bytes
        store.commit({"last": 1})
        data = flash.files["state"]
        for index in range(before_last):
            damaged = bytearray(data)
            damaged[index] ^= 0x41
            damaged_flash = MemoryFlash({"state": bytes(damaged)})
            with pytest.raises(CorruptStateError):
                StateStore(damaged_flash)
            assert damaged_flash.files["state"] == damaged, "what may still be saved is left alone"

    @pytest.mark.parametrize("size", [0, 7, HEADER_SIZE, HEADER_SIZE + RECORD_HEAD_SIZE])
    def test_a_file_without_its_snapshot_is_refused_since_no_power_loss_makes_one(self, size):
        flash = MemoryFlash()
        StateStore(flash).commit({"a": 1})
        with pytest.raises(CorruptStateError):
            StateStore(MemoryFlash({"state": flash.files["state"][:size]}))

    def test_a_missing_record_is_refused(self):
        flash = MemoryFlash()
        store = StateStore(flash)
        sizes = []
        for n in range(3):
            store.commit({"a": n})
            sizes.append(store.file_size_bytes)
        data = flash.files["state"]
        with pytest.raises(CorruptStateError, match="missing"):
            StateStore(MemoryFlash({"state": data[: sizes[0]] + data[sizes[1] :]}))

    def test_a_longer_tail_than_one_commit_is_refused(self):
        flash = MemoryFlash()
        StateStore(flash, limits=TIGHT).commit({"a": 1})
        with pytest.raises(CorruptStateError):
            StateStore(MemoryFlash({"state": flash.files["state"] + bytes(700)}), limits=TIGHT)

    def test_a_payload_cannot_pass_for_a_record(self):
        """Somebody who chooses an alert's bytes must not make a torn tail look like damage."""
        flash = MemoryFlash()
        store = StateStore(flash)
        store.commit({"a": 1})
        other = MemoryFlash()
        forger = StateStore(other)
        for n in range(5):
            forger.commit({"a": n})
        store.commit({"alert": other.files["state"], "end": bytes(100)})
        torn = MemoryFlash({"state": flash.files["state"][:-50]})
        assert content(StateStore(torn)) == {"a": 1}
