"""What Identity promises over any Judge; the judges themselves are tested against real origins."""

from __future__ import annotations

import asyncio

import pytest

from gateway.clock import FakeClock
from gateway.errors import (
    CredentialExpiredError,
    CredentialRefusedError,
    OriginUnavailableError,
    WrongIdentityError,
)
from gateway.identity import Credential, Identity, IdentityLimits, UnconfiguredJudge, Verdict
from gateway.telemetry import Metrics

NO = CredentialRefusedError("no")
UNKNOWN = OriginUnavailableError("who knows", retry_after_s=7)


class MemoryJudge:
    """Tokens in memory: a verdict, or the error to answer with. ``gate`` holds answers back."""

    def __init__(self, **tokens: Verdict | Exception) -> None:
        self.tokens = tokens
        self.asked: list[str] = []
        self.running = 0
        self.running_max = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def key(self, credential: Credential) -> bytes:
        return credential.sha256

    async def judge(self, credential: Credential) -> Verdict:
        self.asked.append(credential.token)
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        answer = self.tokens.get(credential.token, NO)
        if isinstance(answer, CredentialRefusedError):
            raise type(answer)(answer.detail, code=answer.code)
        if isinstance(answer, OriginUnavailableError):
            raise OriginUnavailableError(answer.detail, code=answer.code, retry_after_s=answer.retry_after_s)
        assert isinstance(answer, Verdict)
        return answer


def verdict(device: str = "dev-1", expires_at: int | None = None) -> Verdict:
    return Verdict(device_id=device, fleet="acme", expires_at=expires_at)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def admit(
    identity: Identity, token: str = "good", device: str | None = "dev-1", **options: bool
) -> Verdict:
    credential = Credential(token=token)
    return await identity.admit(credential, claimed_fleet="acme", claimed_device=device, **options)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class TestFlights:
    async def test_one_question_for_all_who_wait(self, clock):
        judge, metrics = MemoryJudge(good=verdict()), Metrics()
        judge.gate.clear()
        identity = Identity(judge, clock=clock, metrics=metrics)
        waiters = [asyncio.create_task(admit(identity)) for _ in range(20)]
        await settle()
        judge.gate.set()
        assert {found.device_id for found in await asyncio.gather(*waiters)} == {"dev-1"}
        assert judge.asked == ["good"]
        assert (
            metrics.registry.get_sample_value("fleetcast_identity_verdicts_total", {"result": "joined"}) == 19
        )

    async def test_a_cancelled_waiter_leaves_the_question_and_its_answer(self, clock):
        judge = MemoryJudge(good=verdict())
        judge.gate.clear()
        identity = Identity(judge, clock=clock)
        waiter = asyncio.create_task(admit(identity))
        await settle()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        judge.gate.set()
        await settle()
        assert (await admit(identity)).device_id == "dev-1"
        assert judge.asked == ["good"]

    async def test_questions_at_once_are_bounded_and_all_are_asked(self, clock):
        judge = MemoryJudge(**{f"t{n}": verdict(f"d{n}") for n in range(50)})
        judge.gate.clear()
        identity = Identity(judge, clock=clock, limits=IdentityLimits(origin_concurrency_max=4))
        waiters = [asyncio.create_task(admit(identity, f"t{n}", f"d{n}")) for n in range(50)]
        await settle()
        assert judge.running == 4
        judge.gate.set()
        await asyncio.gather(*waiters)
        assert judge.running_max == 4
        assert sorted(judge.asked) == sorted(f"t{n}" for n in range(50))

    async def test_a_full_queue_answers_unknown_at_once(self, clock):
        judge = MemoryJudge()
        judge.gate.clear()
        limits = IdentityLimits(origin_concurrency_max=1, origin_queue_max=2)
        identity = Identity(judge, clock=clock, limits=limits)
        waiters = []
        for n in range(3):
            waiters.append(asyncio.create_task(admit(identity, f"t{n}")))
            await settle()
        with pytest.raises(OriginUnavailableError) as caught:
            await admit(identity, "one too many")
        assert caught.value.retry_after_s is not None
        await identity.close()
        await asyncio.gather(*waiters, return_exceptions=True)

    async def test_a_wait_without_a_turn_is_unknown(self, clock):
        judge = MemoryJudge()
        judge.gate.clear()
        limits = IdentityLimits(origin_concurrency_max=1, origin_queue_wait_s=0.01)
        identity = Identity(judge, clock=clock, limits=limits)
        first = asyncio.create_task(admit(identity, "first"))
        await settle()
        with pytest.raises(OriginUnavailableError):
            await admit(identity, "second")
        assert judge.asked == ["first"]
        judge.gate.set()
        with pytest.raises(CredentialRefusedError):
            await first

    async def test_close_ends_flights_and_tells_waiters_unknown(self, clock):
        judge = MemoryJudge(good=verdict())
        judge.gate.clear()
        identity = Identity(judge, clock=clock)
        waiter = asyncio.create_task(admit(identity))
        await settle()
        await identity.close()
        with pytest.raises(OriginUnavailableError):
            await waiter
        assert judge.running == 0

    async def test_each_waiter_gets_an_error_of_its_own(self, clock):
        judge = MemoryJudge(bad=UNKNOWN)
        judge.gate.clear()
        identity = Identity(judge, clock=clock)
        waiters = [asyncio.create_task(admit(identity, "bad")) for _ in range(2)]
        await settle()
        judge.gate.set()
        one, other = await asyncio.gather(*waiters, return_exceptions=True)
        assert isinstance(one, OriginUnavailableError)
        assert one is not other
        assert one.retry_after_s == 7


class TestCaches:
    async def test_made_up_tokens_push_no_real_one_out(self, clock):
        judge = MemoryJudge(good=verdict())
        identity = Identity(judge, clock=clock, limits=IdentityLimits(cache_entries_max=20))
        await admit(identity)
        for n in range(100):
            with pytest.raises(CredentialRefusedError):
                await admit(identity, f"made-up-{n}")
        await admit(identity)
        assert judge.asked.count("good") == 1

    async def test_unknown_is_never_kept(self, clock):
        judge = MemoryJudge(good=UNKNOWN)
        identity = Identity(judge, clock=clock)
        with pytest.raises(OriginUnavailableError):
            await admit(identity)
        judge.tokens["good"] = verdict()
        assert (await admit(identity)).device_id == "dev-1"

    async def test_a_refusal_keeps_its_kind_and_code_while_it_is_cached(self, clock):
        judge = MemoryJudge(old=CredentialExpiredError("over"))
        identity = Identity(judge, clock=clock)
        for _ in range(2):
            with pytest.raises(CredentialExpiredError) as caught:
                await admit(identity, "old")
            assert caught.value.code == "credential_expired"
        assert judge.asked == ["old"]

    async def test_a_refusal_on_revalidation_drops_the_cached_yes(self, clock):
        judge = MemoryJudge(good=verdict())
        identity = Identity(judge, clock=clock, limits=IdentityLimits(negative_cache_s=0))
        await admit(identity)
        judge.tokens["good"] = NO
        with pytest.raises(CredentialRefusedError):
            await admit(identity, fresh=True)
        with pytest.raises(CredentialRefusedError):
            await admit(identity)
        assert len(judge.asked) == 3

    async def test_unknown_on_revalidation_keeps_the_cached_yes(self, clock):
        judge = MemoryJudge(good=verdict())
        identity = Identity(judge, clock=clock)
        await admit(identity)
        judge.tokens["good"] = UNKNOWN
        with pytest.raises(OriginUnavailableError):
            await admit(identity, fresh=True)
        assert (await admit(identity)).device_id == "dev-1"

    async def test_forget_asks_again(self, clock):
        judge = MemoryJudge(good=verdict())
        identity = Identity(judge, clock=clock)
        await admit(identity)
        identity.forget(Credential(token="good"))
        await admit(identity)
        assert judge.asked == ["good", "good"]

    async def test_a_cached_verdict_keeps_the_time_it_was_given(self, clock):
        identity = Identity(MemoryJudge(good=verdict()), clock=clock)
        first = await admit(identity)
        clock.advance(30)
        assert (await admit(identity)).judged_at == first.judged_at == clock.now_ms() - 30_000

    async def test_the_wall_clock_jumping_does_not_lengthen_the_cache(self, clock):
        judge = MemoryJudge(good=verdict())
        identity = Identity(judge, clock=clock)
        await admit(identity)
        clock.jump_wall(-86_400_000)
        clock.advance(60)
        await admit(identity)
        assert len(judge.asked) == 2


class TestExpiry:
    async def test_a_verdict_within_the_skew_admits_but_is_not_reused(self, clock):
        judge = MemoryJudge(good=verdict(expires_at=clock.now_ms() - 59_000))
        identity = Identity(judge, clock=clock)
        await admit(identity)
        await admit(identity)
        assert len(judge.asked) == 2

    async def test_a_yes_that_is_over_by_its_own_word_is_unknown(self, clock):
        identity = Identity(MemoryJudge(good=verdict(expires_at=clock.now_ms() - 60_000)), clock=clock)
        with pytest.raises(OriginUnavailableError):
            await admit(identity)


class TestClaims:
    @pytest.mark.parametrize(
        ("fleet", "device"), [("acme", "dev-2"), ("other", "dev-1"), (None, "dev-2"), ("other", None)]
    )
    async def test_another_fleet_or_device_than_claimed_is_refused(self, clock, fleet, device):
        identity = Identity(MemoryJudge(good=verdict()), clock=clock)
        with pytest.raises(WrongIdentityError) as caught:
            await identity.admit(Credential(token="good"), claimed_fleet=fleet, claimed_device=device)
        assert caught.value.code == "wrong_identity"

    async def test_a_wrong_claim_does_not_spoil_the_token_for_its_owner(self, clock):
        judge = MemoryJudge(good=verdict())
        identity = Identity(judge, clock=clock)
        with pytest.raises(WrongIdentityError):
            await admit(identity, device="dev-2")
        assert (await admit(identity)).device_id == "dev-1"
        assert judge.asked == ["good"]

    async def test_without_a_claim_the_verdict_stands(self, clock):
        identity = Identity(MemoryJudge(good=verdict()), clock=clock)
        found = await identity.admit(Credential(token="good"), claimed_fleet=None, claimed_device=None)
        assert found.device_id == "dev-1"


class TestGuard:
    async def test_an_origin_that_gives_every_token_one_device_turns_nobody_away(self, clock):
        tokens = {f"t{n}": verdict(f"d{n}") for n in range(60)}
        judge = MemoryJudge(**tokens)
        metrics = Metrics()
        identity = Identity(judge, clock=clock, metrics=metrics)
        for n in range(60):
            await admit(identity, f"t{n}", f"d{n}")
        judge.tokens.update({f"t{n}": verdict("d0") for n in range(60)})
        clock.advance(120)
        codes = []
        for n in range(1, 60):
            with pytest.raises((WrongIdentityError, OriginUnavailableError)) as caught:
                await admit(identity, f"t{n}", f"d{n}")
            codes.append(caught.value.code)
        assert codes == ["wrong_identity"] * 49 + ["origin_suspect"] * 10
        assert metrics.registry.get_sample_value("fleetcast_identity_refusal_alarm") == 1
        clock.advance(60)
        assert metrics.registry.get_sample_value("fleetcast_identity_refusal_alarm") == 0

    async def test_a_suspect_origin_admits_none_of_those_it_refuses_and_all_others(self, clock):
        judge = MemoryJudge(**{f"t{n}": verdict(f"d{n}") for n in range(60)})
        identity = Identity(judge, clock=clock)
        for n in range(60):
            await admit(identity, f"t{n}", f"d{n}")
        for n in range(55):
            judge.tokens[f"t{n}"] = NO
        for n in range(55):
            with pytest.raises((CredentialRefusedError, OriginUnavailableError)):
                await admit(identity, f"t{n}", f"d{n}", fresh=True)
        assert identity.is_origin_suspect
        assert (await admit(identity, "t59", "d59", fresh=True)).device_id == "d59"
        with pytest.raises(OriginUnavailableError) as caught:
            await admit(identity, "t0", "d0")
        assert caught.value.code == "origin_suspect"


async def test_without_an_origin_every_device_is_unknown(clock):
    identity = Identity(UnconfiguredJudge(), clock=clock)
    with pytest.raises(OriginUnavailableError) as caught:
        await admit(identity)
    assert caught.value.code == "origin_unconfigured"
    assert caught.value.retry_after_s == 60
