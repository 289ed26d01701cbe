"""What was taken back is refused: cached, asked for at that moment, or said by the origin again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.clock import FakeClock
from gateway.errors import CredentialRevokedError, OriginUnavailableError, StorageUnavailableError
from gateway.identity import Credential, Identity, IdentityLimits, RevocationFeed, Revocations, Verdict
from gateway.telemetry import Metrics
from tests.unit.gateway.identity.test_service import MemoryJudge, admit, settle, verdict
from tests.unit.gateway.identity.test_tickets import Row

GOOD = Credential(token="good").sha256


class TestTokens:
    async def test_a_revoked_token_is_refused_whatever_the_cache_and_the_origin_say(self, clock: FakeClock):
        judge = MemoryJudge(good=verdict())
        identity = Identity(judge, clock=clock)
        await admit(identity)
        identity.revocations.apply([Row(1, token_sha256=GOOD)])  # type: ignore[list-item]
        with pytest.raises(CredentialRevokedError):
            await admit(identity)
        with pytest.raises(CredentialRevokedError):
            await admit(identity, fresh=True)
        assert judge.asked == ["good"]

    async def test_it_is_refused_at_once_where_it_was_taken_back(self, clock: FakeClock):
        identity = Identity(MemoryJudge(good=verdict()), clock=clock)
        identity.revoke(GOOD)
        with pytest.raises(CredentialRevokedError):
            await admit(identity)

    async def test_an_answer_that_was_under_way_does_not_admit_it(self, clock: FakeClock):
        judge = MemoryJudge(good=verdict())
        judge.gate.clear()
        identity = Identity(judge, clock=clock)
        waiting = asyncio.create_task(admit(identity))
        await settle()
        identity.revocations.apply([Row(1, token_sha256=GOOD)])  # type: ignore[list-item]
        judge.gate.set()
        with pytest.raises(CredentialRevokedError):
            await waiting

    async def test_another_fleets_operator_takes_back_nothing_here(self, clock: FakeClock):
        identity = Identity(MemoryJudge(good=verdict()), clock=clock)
        identity.revocations.apply([Row(1, token_sha256=GOOD, fleet="other")])  # type: ignore[list-item]
        await admit(identity)
        with pytest.raises(CredentialRevokedError):  # who claims that fleet is not asked about
            await identity.admit(Credential(token="good"), claimed_fleet="other", claimed_device=None)

    async def test_many_of_them_raise_no_alarm_about_the_origin(self, clock: FakeClock):
        tokens = {f"t{n}": verdict(f"d{n}") for n in range(100)}
        identity = Identity(MemoryJudge(**tokens), clock=clock)
        for number in range(100):
            await admit(identity, f"t{number}", f"d{number}")
        for number in range(100):
            identity.revoke(Credential(token=f"t{number}").sha256)
            with pytest.raises(CredentialRevokedError):
                await admit(identity, f"t{number}", f"d{number}")
        assert not identity.is_origin_suspect


class TestDevices:
    async def test_what_was_cached_is_asked_again(self, clock: FakeClock):
        judge = MemoryJudge(good=verdict(), other=verdict("dev-2"))
        identity = Identity(judge, clock=clock)
        await admit(identity)
        await admit(identity, "other", "dev-2")
        identity.revocations.apply([Row(5, device_id="dev-1")])  # type: ignore[list-item]
        assert (await admit(identity)).seen == 5
        await admit(identity)
        await admit(identity, "other", "dev-2")
        assert judge.asked == ["good", "other", "good"]

    async def test_an_answer_from_before_is_asked_for_again_and_not_believed(self, clock: FakeClock):
        judge = MemoryJudge(good=verdict())
        judge.gate.clear()
        identity = Identity(judge, clock=clock)
        waiting = asyncio.create_task(admit(identity))
        await settle()
        identity.revocations.apply([Row(5, device_id="dev-1")])  # type: ignore[list-item]
        judge.gate.set()
        assert (await waiting).seen == 5
        assert judge.asked == ["good", "good"]

    async def test_a_device_revoked_again_and_again_is_unknown_for_the_moment(self, clock: FakeClock):
        judge = MemoryJudge(good=verdict())
        identity = Identity(judge, clock=clock)
        asked = judge.judge

        async def judged(credential: Credential) -> Verdict:
            found = await asked(credential)
            identity.revocations.apply([Row(identity.revocations.sequence + 1, device_id="dev-1")])  # type: ignore[list-item]
            return found

        judge.judge = judged  # type: ignore[method-assign]
        with pytest.raises(OriginUnavailableError):
            await admit(identity)

    @pytest.mark.parametrize(
        ("issued_at", "is_refused"), [(999, True), (1000, True), (1001, False), (None, False)]
    )
    async def test_a_token_that_was_issued_before_is_refused(
        self, clock: FakeClock, issued_at: int | None, is_refused: bool
    ):
        judge = MemoryJudge(good=Verdict(device_id="dev-1", fleet="acme", issued_at=issued_at))  # type: ignore[arg-type]
        identity = Identity(judge, clock=clock)
        identity.revocations.apply([Row(5, device_id="dev-1", at=1000)])  # type: ignore[list-item]
        if is_refused:
            with pytest.raises(CredentialRevokedError):
                await admit(identity)
        else:
            assert (await admit(identity)).issued_at is None

    async def test_a_device_forgotten_here_is_unknown_until_its_row_comes_by(self, clock: FakeClock):
        judge = MemoryJudge(good=verdict())
        identity = Identity(judge, clock=clock)
        identity.revocations.apply([Row(4, device_id="dev-9")])  # type: ignore[list-item]
        await admit(identity)
        identity.forget_device("acme", "dev-1")  # type: ignore[arg-type]
        with pytest.raises(OriginUnavailableError):
            await admit(identity)
        identity.revocations.apply([Row(7, device_id="dev-1")])  # type: ignore[list-item]
        assert (await admit(identity)).seen == 7


def test_the_oldest_go_at_the_bound(clock: FakeClock):
    revocations = Revocations(IdentityLimits(revocations_max=2), clock=clock)
    revocations.apply([Row(n, token_sha256=bytes([n] * 32)) for n in (1, 2, 3)])  # type: ignore[list-item]
    revocations.apply([Row(n, device_id=f"d{n}") for n in (4, 5, 6)])  # type: ignore[list-item]
    assert [revocations.is_revoked(bytes([n] * 32), None) for n in (1, 2, 3)] == [False, True, True]
    devices = [Verdict(device_id=f"d{n}", fleet="acme") for n in (4, 5, 6)]  # type: ignore[arg-type]
    assert [revocations.voids(device) for device in devices] == [False, True, True]
    assert revocations.sequence == 6


class Source:
    """A feed in memory."""

    def __init__(self, *rows: Row) -> None:
        self.rows = list(rows)
        self.is_away = False
        self.reads: list[int] = []

    async def revocations(self, *, after: int, limit: int) -> Sequence[Row]:
        self.reads.append(after)
        if self.is_away:
            raise StorageUnavailableError("away")
        return [row for row in self.rows if row.sequence > after][:limit]


class TestFeed:
    def feed(self, source: Source, clock: FakeClock) -> tuple[RevocationFeed, Revocations, list[int]]:
        revocations = Revocations(IdentityLimits(), clock=clock)
        told: list[int] = []
        feed = RevocationFeed(
            source,  # type: ignore[arg-type]
            revocations,
            listener=lambda rows: told.extend(row.sequence for row in rows),
            interval_s=1.0,
            clock=clock,
            metrics=Metrics(),
        )
        return feed, revocations, told

    async def test_it_is_read_from_where_it_was_read_to(self, clock: FakeClock):
        source = Source(*(Row(n, device_id=f"d{n}") for n in range(1, 2002)))
        feed, revocations, told = self.feed(source, clock)
        assert revocations.is_behind
        await feed.catch_up()
        assert (source.reads, told, revocations.sequence) == ([0, 1000, 2000], list(range(1, 2002)), 2001)
        assert not revocations.is_behind
        source.rows.append(Row(2002, device_id="late"))
        await feed.catch_up()
        assert told[-1] == 2002

    async def test_a_database_that_is_away_makes_the_node_behind_and_it_goes_on_asking(
        self, clock: FakeClock
    ):
        source = Source()
        feed, revocations, _ = self.feed(source, clock)
        await feed.catch_up()
        source.is_away = True
        clock.advance(10.1)
        with pytest.raises(StorageUnavailableError):
            await feed.catch_up()
        assert revocations.is_behind
        source.is_away = False
        await feed.catch_up()
        assert not revocations.is_behind

    async def test_the_loop_outlives_what_goes_wrong_in_it(self, clock: FakeClock):
        source = Source()
        waits: list[float] = []
        done = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            source.is_away = len(waits) == 1
            if len(waits) == 2:
                source.rows = [Row(1, device_id="d")]
            if len(waits) == 4:
                done.set()
                await asyncio.Event().wait()

        def listener(rows: Sequence[Row]) -> None:
            raise ValueError("a bug")

        feed = RevocationFeed(
            source,  # type: ignore[arg-type]
            Revocations(IdentityLimits(), clock=clock),
            listener=listener,  # type: ignore[arg-type]
            interval_s=1.5,
            clock=clock,
            metrics=Metrics(),
            sleep=sleep,
        )
        task = asyncio.create_task(feed.run())
        await done.wait()
        task.cancel()
        assert waits == [1.5] * 4
        assert source.reads == [0, 0, 1]
