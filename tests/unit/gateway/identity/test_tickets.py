"""A ticket is good for one device, one token and a few minutes, and nobody but a node can make one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from device_sdk.wire.limits import ATTRIBUTE_LEN_MAX, TICKET_SIZE_MAX
from gateway.clock import FakeClock
from gateway.errors import StorageUnavailableError
from gateway.identity import (
    IdentityLimits,
    ResumedVerdict,
    Revocations,
    TicketKey,
    TicketKeys,
    Tickets,
    Verdict,
    VoidTicketError,
)
from gateway.identity.tickets import ACTIVATE_MS, READ_INTERVAL_S, ROTATE_MS
from gateway.identity.verdict import ChannelGrant

TOKEN, OTHER_TOKEN = b"t" * 32, b"o" * 32
ENROLMENT = b"e" * 16


@dataclass
class Row:
    sequence: int
    token_sha256: bytes | None = None
    device_id: str | None = None
    fleet: str = "acme"
    at: int = 0


class Desk:
    """Tickets on a ring of one key, the feed just read."""

    def __init__(self, clock: FakeClock, **limits: float) -> None:
        self.clock = clock
        bounds = IdentityLimits(**limits)  # type: ignore[arg-type]
        self.revocations = Revocations(bounds, clock=clock)
        self.revocations.read(clock.monotonic())
        self.tickets = Tickets(self.revocations, limits=bounds, clock=clock)
        self.key = TicketKey.new(now_ms=clock.now_ms() - ACTIVATE_MS)
        self.tickets.adopt([self.key])

    def verdict(self, **fields: object) -> Verdict:
        return replace(
            Verdict(
                device_id="pump-17",  # type: ignore[arg-type]
                fleet="acme",  # type: ignore[arg-type]
                channels=(ChannelGrant("fw", "update"), ChannelGrant("ops", "alert")),  # type: ignore[arg-type]
                attributes={"model": "tc3", "rev": 4, "share": 0.5, "is_lab": True},
                judged_at=self.clock.now_ms(),
            ),
            **fields,  # type: ignore[arg-type]
        )

    def seal(self, verdict: Verdict | None = None) -> bytes:
        ticket = self.tickets.seal(verdict or self.verdict(), enrolment_id=ENROLMENT, token_sha256=TOKEN)
        assert ticket is not None
        return ticket

    def open(
        self,
        ticket: bytes,
        *,
        token: bytes = TOKEN,
        fleet: str | None = "acme",
        device: str | None = "pump-17",
    ) -> Verdict:
        self.revocations.read(self.clock.monotonic())
        found = self.tickets.open(ticket, token_sha256=token, claimed_fleet=fleet, claimed_device=device)
        assert found.enrolment_id == ENROLMENT
        return found

    def refusal(self, ticket: bytes, **shown: object) -> str:
        with pytest.raises(VoidTicketError) as caught:
            self.open(ticket, **shown)  # type: ignore[arg-type]
        return caught.value.reason


@pytest.fixture
def desk(clock: FakeClock) -> Desk:
    return Desk(clock)


class TestOpening:
    def test_it_says_who_since_when_and_until_when(self, desk: Desk):
        verdict = desk.verdict(seen=7, expires_at=desk.clock.now_ms() + 3_600_000)
        opened = desk.open(desk.seal(verdict))
        assert isinstance(opened, ResumedVerdict)
        for name in ("device_id", "fleet", "judged_at", "expires_at", "seen"):
            assert getattr(opened, name) == getattr(verdict, name)

    def test_what_a_device_has_is_not_the_tickets_to_say(self, desk: Desk):
        opened = desk.open(desk.seal())
        assert (opened.channels, dict(opened.attributes)) == ((), {})
        assert not opened.grants_as(desk.verdict(channels=(), attributes={}))
        assert not opened.grants_as(opened)

    def test_a_device_that_claims_nothing_is_who_the_ticket_says(self, desk: Desk):
        assert desk.open(desk.seal(), fleet=None, device=None).device_id == "pump-17"

    def test_no_two_are_the_same_bytes(self, desk: Desk):
        assert desk.seal() != desk.seal()

    def test_it_shows_nothing_to_who_carries_it(self, desk: Desk):
        ticket = desk.seal()
        assert all(word not in ticket for word in (b"acme", b"pump-17", b"ops", b"tc3", TOKEN, ENROLMENT))


class TestForgery:
    def test_any_changed_byte_makes_it_void(self, desk: Desk):
        ticket = desk.seal()
        for index in range(len(ticket)):
            changed = bytearray(ticket)
            changed[index] ^= 1
            assert desk.refusal(bytes(changed)) in ("malformed", "unknown_key", "forged")

    def test_cut_short_or_extended_it_is_void(self, desk: Desk):
        ticket = desk.seal()
        for size in range(len(ticket)):
            assert desk.refusal(ticket[:size]) in ("malformed", "forged")
        assert desk.refusal(ticket + b"\0") == "forged"
        assert desk.refusal(b"") == "malformed"

    def test_a_key_of_ones_own_is_not_on_the_ring(self, desk: Desk, clock: FakeClock):
        mine = Desk(clock)
        assert desk.refusal(mine.seal()) == "unknown_key"
        mine.tickets.adopt([replace(mine.key, id=desk.key.id)])
        assert desk.refusal(mine.seal()) == "forged"

    def test_one_key_id_is_not_put_in_the_place_of_another(self, desk: Desk, clock: FakeClock):
        second = TicketKey(desk.key.id ^ 1, desk.key.secret, clock.now_ms())  # the same secret even
        desk.tickets.adopt([desk.key, second])
        ticket = desk.seal()
        assert desk.refusal(ticket[:1] + second.id.to_bytes(4, "big") + ticket[5:]) == "forged"

    @pytest.mark.parametrize("inside", [b"", b"\xc0", b"\x90", b"\x9aXX"])
    def test_what_another_release_sealed_is_as_none(self, desk: Desk, inside: bytes):
        head = b"\x01" + desk.key.id.to_bytes(4, "big")
        nonce = bytes(12)
        sealed = AESGCM(desk.key.secret).encrypt(nonce, inside, head)
        assert desk.refusal(head + nonce + sealed) == "malformed"
        longer = msgspec.msgpack.encode([0] * 12)
        assert (
            desk.refusal(head + nonce + AESGCM(desk.key.secret).encrypt(nonce, longer, head)) == "malformed"
        )


class TestWhoseItIs:
    def test_stolen_without_its_token_it_is_void(self, desk: Desk):
        assert desk.refusal(desk.seal(), token=OTHER_TOKEN) == "wrong_token"

    @pytest.mark.parametrize("claim", [{"fleet": "other"}, {"device": "pump-18"}])
    def test_who_claims_to_be_another_is_not_taken_for_it(self, desk: Desk, claim: dict[str, str]):
        assert desk.refusal(desk.seal(), **claim) == "wrong_claim"


class TestTime:
    @pytest.mark.parametrize(("after_s", "is_good"), [(899.9, True), (900, False), (10_000, False)])
    def test_it_ends_fifteen_minutes_after_the_origins_word(self, desk: Desk, after_s: float, is_good: bool):
        ticket = desk.seal()
        desk.clock.advance(after_s)
        if is_good:
            desk.open(ticket)
        else:
            assert desk.refusal(ticket) == "expired"

    def test_sealing_it_anew_from_the_same_word_gives_no_more_time(self, desk: Desk):
        verdict = desk.verdict()
        desk.clock.advance(600)
        ticket = desk.seal(desk.open(desk.seal(verdict)))
        desk.clock.advance(299)
        desk.open(ticket)
        desk.clock.advance(1)
        assert desk.refusal(ticket) == "expired"

    def test_it_ends_with_the_token(self, desk: Desk):
        ticket = desk.seal(desk.verdict(expires_at=desk.clock.now_ms() + 60_000))
        desk.clock.advance(59.9)
        desk.open(ticket)
        desk.clock.advance(0.1)
        assert desk.refusal(ticket) == "expired"

    def test_a_clock_that_was_set_back_makes_no_ticket_young_again(self, desk: Desk):
        ticket = desk.seal()
        desk.clock.jump_wall(-61_000)
        assert desk.refusal(ticket) == "expired"
        desk.clock.jump_wall(1_000)
        desk.open(ticket)

    def test_one_that_ends_at_once_is_not_given(self, desk: Desk):
        for verdict in (
            desk.verdict(judged_at=desk.clock.now_ms() - 895_000),
            desk.verdict(expires_at=desk.clock.now_ms() + 5_000),
        ):
            assert desk.tickets.seal(verdict, enrolment_id=ENROLMENT, token_sha256=TOKEN) is None

    def test_none_is_given_where_they_are_switched_off(self, clock: FakeClock):
        desk = Desk(clock, ticket_life_s=0)
        assert desk.tickets.seal(desk.verdict(), enrolment_id=ENROLMENT, token_sha256=TOKEN) is None


class TestRevocation:
    def test_a_revoked_token_voids_it(self, desk: Desk):
        ticket = desk.seal()
        desk.revocations.apply([Row(1, token_sha256=OTHER_TOKEN)])  # type: ignore[list-item]
        desk.open(ticket)
        desk.revocations.apply([Row(2, token_sha256=TOKEN)])  # type: ignore[list-item]
        assert desk.refusal(ticket) == "revoked"

    def test_a_revoked_device_voids_those_from_before_and_not_those_from_after(self, desk: Desk):
        before = desk.seal(desk.verdict(seen=6))
        desk.revocations.apply([Row(7, device_id="pump-17")])  # type: ignore[list-item]
        assert desk.refusal(before) == "revoked"
        desk.open(desk.seal(desk.verdict(seen=7)))

    def test_another_fleets_operator_voids_nothing_here(self, desk: Desk):
        ticket = desk.seal()
        desk.revocations.apply(
            [Row(1, token_sha256=TOKEN, fleet="other"), Row(2, device_id="pump-17", fleet="other")]  # type: ignore[list-item]
        )
        desk.open(ticket)

    def test_a_node_that_is_behind_takes_none(self, desk: Desk):
        ticket = desk.seal()
        desk.clock.advance(10)
        desk.tickets.open(ticket, token_sha256=TOKEN, claimed_fleet=None, claimed_device=None)
        desk.clock.advance(0.1)
        with pytest.raises(VoidTicketError, match="behind"):
            desk.tickets.open(ticket, token_sha256=TOKEN, claimed_fleet=None, claimed_device=None)

    def test_a_node_that_never_read_the_feed_takes_none(self, clock: FakeClock):
        limits = IdentityLimits()
        tickets = Tickets(Revocations(limits, clock=clock), limits=limits, clock=clock)
        with pytest.raises(VoidTicketError, match="behind"):
            tickets.open(b"x", token_sha256=TOKEN, claimed_fleet=None, claimed_device=None)


def test_it_is_short_whatever_the_device_has(desk: Desk):
    large = {f"a{n}": "x" * ATTRIBUTE_LEN_MAX for n in range(64)}
    longest = desk.verdict(attributes=large, fleet="f" * 128, device_id="d" * 127)
    assert len(desk.seal()) < 200
    assert len(desk.seal(longest)) < 512 < TICKET_SIZE_MAX


class MemoryKeys:
    """``TicketKeyStore``, whose database may be away."""

    def __init__(self) -> None:
        self.keys: list[TicketKey] = []
        self.is_away = False

    async def ring(self) -> list[TicketKey]:
        if self.is_away:
            raise StorageUnavailableError("away")
        return list(self.keys)

    async def rotate(self, new: TicketKey, *, if_older_than: int) -> list[TicketKey]:
        if not self.keys or self.keys[-1].created_at <= if_older_than:
            self.keys = [*self.keys[-1:], new]
        return list(self.keys)


class TestRing:
    async def test_the_first_key_seals_at_once(self, desk: Desk, clock: FakeClock):
        store = MemoryKeys()
        desk.tickets.adopt([])
        assert desk.tickets.seal(desk.verdict(), enrolment_id=ENROLMENT, token_sha256=TOKEN) is None
        await TicketKeys(store, desk.tickets, clock=clock).refresh()
        desk.open(desk.seal())
        assert len(store.keys) == 1

    async def test_a_new_key_is_known_everywhere_before_it_seals(self, clock: FakeClock):
        store = MemoryKeys()
        here, there = Desk(clock), Desk(clock)
        mine, theirs = (TicketKeys(store, desk.tickets, clock=clock) for desk in (here, there))
        await mine.refresh()
        await theirs.refresh()
        clock.advance(ROTATE_MS / 1000)
        await mine.refresh()
        assert len(store.keys) == 2
        there.open(here.seal())  # still sealed with the key that the other knows
        await theirs.refresh()
        assert len(store.keys) == 2
        clock.advance(ACTIVATE_MS / 1000)
        ticket = here.seal()
        assert int.from_bytes(ticket[1:5], "big") == store.keys[1].id
        there.open(ticket)

    async def test_the_key_before_still_opens_and_the_one_before_that_does_not(self, clock: FakeClock):
        store = MemoryKeys()
        desk = Desk(clock, ticket_life_s=900)
        keys = TicketKeys(store, desk.tickets, clock=clock)
        await keys.refresh()
        first = store.keys[0]
        clock.advance(ROTATE_MS / 1000)
        ticket = desk.seal()
        await keys.refresh()
        clock.advance(ACTIVATE_MS / 1000)
        desk.open(ticket)
        clock.advance(ROTATE_MS / 1000)
        await keys.refresh()
        assert first.id not in {key.id for key in store.keys}
        assert desk.refusal(ticket) == "unknown_key"

    async def test_a_database_that_is_away_leaves_the_ring_as_it_was(self, clock: FakeClock):
        store, desk = MemoryKeys(), Desk(clock)
        waits: list[float] = []
        woken = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                woken.set()
                await asyncio.Event().wait()

        keys = TicketKeys(store, desk.tickets, clock=clock, sleep=sleep)
        await keys.refresh()
        store.is_away = True
        task = asyncio.create_task(keys.run())
        await woken.wait()
        task.cancel()
        assert waits == [READ_INTERVAL_S] * 3
        desk.open(desk.seal())


def test_a_key_does_not_show_its_secret():
    assert "secret" not in repr(TicketKey.new(now_ms=0))
