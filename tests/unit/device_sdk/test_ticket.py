"""A ticket goes with one token, is kept over a restart, and is never worth an error."""

from __future__ import annotations

from device_sdk.store import MemoryFlash, StateStore
from device_sdk.ticket import TicketKeeper


class WornFlash(MemoryFlash):
    is_worn = False

    def sync(self, name: str) -> None:
        if self.is_worn:
            raise OSError("worn out")
        super().sync(name)


def keeper(flash: MemoryFlash) -> TicketKeeper:
    return TicketKeeper(StateStore(flash))


def test_it_is_shown_with_its_token_after_a_power_cut_too():
    flash = MemoryFlash()
    tickets = keeper(flash)
    assert tickets.for_token("t1") is None
    tickets.keep(b"old", "t1")
    tickets.keep(b"new", "t1")
    assert tickets.for_token("t1") == b"new"
    assert keeper(MemoryFlash(flash.files)).for_token("t1") == b"new"


def test_another_token_drops_it_for_good():
    flash = MemoryFlash()
    tickets = keeper(flash)
    tickets.keep(b"ticket", "t1")
    assert tickets.for_token("t2") is None
    assert tickets.for_token("t1") is None
    assert keeper(MemoryFlash(flash.files)).for_token("t1") is None


def test_the_token_itself_is_not_on_flash():
    flash = MemoryFlash()
    keeper(flash).keep(b"ticket", "a-secret-token")
    assert all(b"a-secret-token" not in data for data in flash.files.values())


def test_a_flash_that_fails_costs_the_ticket_and_nothing_else(caplog):
    flash = WornFlash()
    tickets = keeper(flash)
    flash.is_worn = True
    tickets.keep(b"ticket", "t1")
    assert tickets.for_token("t1") == b"ticket"  # while the power stays
    assert "cannot be stored" in caplog.text


def test_dropping_nothing_writes_nothing():
    flash = MemoryFlash()
    tickets = keeper(flash)
    before = dict(flash.files)
    tickets.drop()
    assert dict(flash.files) == before
