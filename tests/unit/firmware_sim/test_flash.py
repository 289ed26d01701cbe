"""The virtual flash keeps what the SDK's flash promises, and takes the rest when the power goes."""

from __future__ import annotations

import errno
from random import Random

import pytest

from device_sdk.store import PowerLossError, StateStore
from firmware_sim.flash import VirtualFlash


@pytest.fixture
def flash() -> VirtualFlash:
    return VirtualFlash()


class TestFiles:
    def test_appends_add_up_and_replace_starts_anew(self, flash: VirtualFlash) -> None:
        state = flash.state
        assert state.read("a") is None
        state.append("a", b"1")
        state.append("a", b"2")
        assert state.read("a") == b"12"
        state.sync("a")
        state.replace("a", b"x")
        state.append("a", b"y")
        assert (state.read("a"), state.list()) == (b"xy", ["a"])
        state.remove("a")
        state.remove("a")
        assert state.list() == []

    def test_slots_and_state_do_not_see_each_other(self, flash: VirtualFlash) -> None:
        flash.state.replace("main.a", b"state")
        flash.slots.append("main.a", b"slot")
        assert flash.state.read("main.a") == b"state"
        assert flash.slots.read("main.a", 1, 2) == b"lo"
        assert (flash.state.list(), flash.slots.names()) == (["main.a"], ["main.a"])

    def test_truncate_keeps_the_beginning(self, flash: VirtualFlash) -> None:
        flash.slots.append("a", b"12345")
        flash.slots.truncate("a", 2)
        flash.slots.append("a", b"x")
        flash.slots.truncate("a", 9)
        assert (flash.slots.read("a", 0, 9), flash.slots.size("a")) == (b"12x", 3)

    def test_what_does_not_fit_is_refused_and_nothing_is_written(self) -> None:
        flash = VirtualFlash(capacity_bytes=4)
        flash.slots.append("a", b"123")
        with pytest.raises(OSError) as caught:
            flash.slots.append("a", b"45")
        assert caught.value.errno == errno.ENOSPC
        assert (flash.slots.size("a"), flash.slots.free_bytes()) == (3, 1)

    def test_failing_write_does_a_part_and_says_so(self) -> None:
        flash = VirtualFlash(fails=lambda: True)
        with pytest.raises(OSError) as caught:
            flash.slots.append("a", b"1234")
        assert caught.value.errno == errno.EIO
        assert flash.slots.read("a", 0, 9) == b"12"
        with pytest.raises(OSError):
            flash.slots.replace("b", b"1")
        assert flash.slots.names() == ["a"]


class TestPower:
    def test_write_stops_at_the_byte_where_the_power_goes_and_nothing_works_after(
        self, flash: VirtualFlash
    ) -> None:
        flash.set_energy(3)
        with pytest.raises(PowerLossError):
            flash.state.append("a", b"12345")
        assert (flash.is_dead, flash.spent) == (True, 3)
        for operation in (
            lambda: flash.state.read("a"),
            lambda: flash.state.append("a", b"1"),
            flash.state.list,
            flash.slots.free_bytes,
        ):
            with pytest.raises(PowerLossError):
                operation()

    def test_synced_bytes_survive_whatever_is_drawn(self) -> None:
        for seed in range(200):
            flash = VirtualFlash()
            flash.slots.append("a", b"stable")
            flash.slots.sync("a")
            flash.slots.append("a", b"unsynced")
            flash.cut_power()
            flash.restore_power(Random(seed))
            assert flash.slots.read("a", 0, 99).startswith(b"stable")
            assert flash.slots.size("a") <= len(b"stableunsynced")

    def test_every_kind_of_loss_happens(self) -> None:
        found = set()
        for seed in range(1000):
            flash = VirtualFlash()
            flash.slots.append("a", b"1111")
            flash.slots.truncate("a", 2)
            flash.slots.append("a", b"2222")
            flash.cut_power()
            flash.restore_power(Random(seed))
            found.add(flash.slots.read("a", 0, 99))
        assert {b"", b"1111", b"11", b"112222", b"1122", b"11\x00\x0022", b"1122\x00\x00"} <= found
        assert not any(b"2" in content and not content.startswith(b"11") for content in found)

    def test_replacement_is_old_or_new_at_every_unit_of_energy(self) -> None:
        seen = set()
        for energy in range(6):
            for seed in range(20):
                flash = VirtualFlash()
                flash.state.replace("a", b"old")
                flash.set_energy(energy)
                with pytest.raises(PowerLossError):
                    flash.state.replace("a", b"new")
                flash.restore_power(Random(seed))
                seen.add((energy, flash.state.read("a")))
        assert {content for _, content in seen} == {b"old", b"new"}
        assert {content for energy, content in seen if energy < 5} == {b"old"}

    def test_replacement_that_is_lost_may_leave_no_file(self) -> None:
        seen = set()
        for seed in range(20):
            flash = VirtualFlash()
            flash.set_energy(5)
            with pytest.raises(PowerLossError):
                flash.state.replace("a", b"new")
            flash.restore_power(Random(seed))
            seen.add(flash.state.read("a"))
        assert seen == {None, b"new"}

    def test_power_that_is_back_stays(self, flash: VirtualFlash) -> None:
        flash.set_energy(0)
        with pytest.raises(PowerLossError):
            flash.state.append("a", b"1")
        flash.restore_power(Random(1))
        flash.state.replace("a", bytes(100_000))
        assert not flash.is_dead

    @pytest.mark.parametrize("seed", range(5))
    def test_store_on_it_has_every_commit_that_returned(self, seed: int) -> None:
        random = Random(seed)
        flash = VirtualFlash()
        StateStore(flash.state).commit({"count": 0})
        returned = 0
        for _ in range(60):
            flash.set_energy(random.randrange(400))
            try:
                store = StateStore(flash.state)
                assert store.get("count") in (returned, returned + 1)
                returned = int(str(store.get("count")))
                while True:
                    store.commit({"count": returned + 1, "padding": bytes(random.randrange(40))})
                    returned += 1
            except PowerLossError:
                flash.restore_power(random)
        assert returned > 10
