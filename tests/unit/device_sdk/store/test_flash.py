"""Both flashes keep the promises of ``Flash``; the one on files keeps its directory to itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from device_sdk.store import FileFlash, Flash, FlashInUseError, MemoryFlash, PowerLossError, StateStore


@pytest.fixture(params=["file", "memory"])
def flash(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Flash]:
    if request.param == "memory":
        yield MemoryFlash()
        return
    with FileFlash(tmp_path / "state") as file_flash:
        yield file_flash


class TestPromises:
    def test_appends_add_up_and_replace_starts_anew(self, flash):
        assert flash.read("a") is None
        flash.append("a", b"1")
        flash.append("a", b"2")
        flash.sync("a")
        assert flash.read("a") == b"12"
        flash.replace("a", b"x")
        flash.append("a", b"y")
        assert flash.read("a") == b"xy"

    def test_removed_files_are_gone_and_removing_again_is_no_error(self, flash):
        flash.replace("b", b"")
        flash.replace("a", b"")
        assert flash.list() == ["a", "b"]
        flash.remove("a")
        flash.remove("a")
        assert flash.list() == ["b"]
        flash.append("a", b"new")
        assert flash.read("a") == b"new"

    def test_a_store_lives_on_it(self, flash):
        StateStore(flash).commit({"a": 1})
        assert StateStore(flash).get("a") == 1


class TestFileFlash:
    def test_a_second_holder_is_refused_until_the_first_lets_go(self, tmp_path):
        first = FileFlash(tmp_path)
        with pytest.raises(FlashInUseError):
            FileFlash(tmp_path)
        first.close()
        first.close()
        FileFlash(tmp_path).close()

    def test_an_unfinished_replacement_is_swept_and_never_listed(self, tmp_path):
        (tmp_path / "state.tmp").write_bytes(b"half")
        with FileFlash(tmp_path) as flash:
            assert flash.list() == []
        assert not (tmp_path / "state.tmp").exists()

    def test_others_may_not_read_it(self, tmp_path):
        with FileFlash(tmp_path / "d") as flash:
            flash.replace("state", b"secret")
            flash.append("log", b"secret")
        assert (tmp_path / "d").stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "d").iterdir())

    def test_a_failed_replacement_leaves_the_old_file_and_no_rubbish(self, tmp_path):
        with FileFlash(tmp_path) as flash:
            flash.replace("a", b"old")
            with pytest.raises(TypeError):
                flash.replace("a", "not bytes")  # type: ignore[arg-type]
            assert flash.read("a") == b"old"


class TestMemoryFlash:
    def test_power_goes_at_the_unit_asked_for_and_stays_away(self):
        flash = MemoryFlash(energy=3)
        with pytest.raises(PowerLossError):
            flash.append("a", b"12345")
        assert flash.files == {"a": b"123"}
        for operation in (lambda: flash.read("a"), flash.list, lambda: flash.sync("a")):
            with pytest.raises(PowerLossError):
                operation()

    def test_unsynced_bytes_may_be_lost_kept_or_zeros(self):
        flash = MemoryFlash({"a": b"1"})
        flash.append("a", b"23")
        found = {aftermath.files["a"] for aftermath in flash.aftermaths()}
        assert found == {b"1", b"123", b"1\0\0", b"1\x003"}

    def test_a_replacement_is_wholly_old_or_wholly_new(self):
        for energy in range(8):
            flash = MemoryFlash({"a": b"old"}, energy=energy)
            try:
                flash.replace("a", b"12345")
            except PowerLossError:
                found = {aftermath.files["a"] for aftermath in flash.aftermaths()}
                assert found <= {b"old", b"12345"}
                assert b"old" in found

    def test_one_aftermath_by_chance_is_one_that_may_be(self):
        flash = MemoryFlash({"a": b"1", "b": b"x"})
        flash.append("a", b"234")
        random = Random(1)
        found = {flash.after_power_loss(random).files["a"] for _ in range(200)}
        assert {b"1", b"12", b"123", b"1234"} <= found
