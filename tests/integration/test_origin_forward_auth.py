"""Forward-auth against an origin in another process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from gateway.clock import FakeClock
from gateway.config import load_config
from gateway.errors import CredentialRefusedError, OriginUnavailableError, WrongIdentityError
from gateway.identity import ChannelGrant, Credential, Identity, IdentityLimits
from gateway.origin import ForwardAuthJudge, OriginHTTP, OriginLimits, open_judge
from gateway.telemetry import Metrics
from tests.integration.origins.process import Origin

VERDICT = {
    "device_id": "dev-1",
    "fleet": "acme",
    "channels": [{"name": "ops", "kind": "alert"}, {"name": "fw", "kind": "update"}],
    "attributes": {"model": "tc3"},
    "expires_at": 1_900_000_000_000,
}
QUICK = OriginLimits(origin_timeout_s=5.0, circuit_failures=3, circuit_open_s=10.0, circuit_open_max_s=40.0)


@pytest.fixture(scope="module")
def process() -> Iterator[Origin]:
    with Origin("forward_auth") as running:
        yield running


@pytest.fixture
async def origin(process: Origin) -> Origin:
    await process.reset(tokens={"good": {"json": VERDICT}})
    return process


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@asynccontextmanager
async def identity_of(
    origin: Origin, clock: FakeClock, limits: OriginLimits = QUICK, forward_headers: tuple[str, ...] = ()
) -> AsyncIterator[Identity]:
    async with OriginHTTP(limits=limits, clock=clock, metrics=Metrics()) as http:
        judge = ForwardAuthJudge(http, url=f"{origin.url}/auth", forward_headers=forward_headers)
        identity = Identity(judge, clock=clock, limits=IdentityLimits())
        yield identity
        await identity.close()


def credential(token: str, *headers: tuple[str, str]) -> Credential:
    pairs = [("Host", "fleet.example.com"), ("Authorization", f"Bearer {token}"), *headers]
    return Credential.from_headers(pairs, remote="203.0.113.9", scheme="https", target="/v1/device/connect")


async def admit(identity: Identity, token: str = "good", *headers: tuple[str, str], fresh: bool = False):
    return await identity.admit(
        credential(token, *headers), claimed_fleet="acme", claimed_device="dev-1", fresh=fresh
    )


class TestAnswers:
    async def test_a_json_verdict_admits(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            verdict = await admit(identity)
        assert (verdict.device_id, verdict.fleet) == ("dev-1", "acme")
        assert verdict.channels == (ChannelGrant("fw", "update"), ChannelGrant("ops", "alert"))
        assert verdict.attributes == {"model": "tc3"}
        assert verdict.expires_at == 1_900_000_000_000
        assert verdict.judged_at == clock.now_ms()

    async def test_a_verdict_in_headers_admits(self, origin, clock):
        headers = {
            "fleetcast-device": "dev-1",
            "Fleetcast-Fleet": "acme",
            "Fleetcast-Channels": "alert:ops, update:fw:beta",
            "Fleetcast-Attributes": '{"model": "tc3"}',
            "Fleetcast-Expires": "1900000000000",
        }
        await origin.control(tokens={"good": {"headers": headers}})
        async with identity_of(origin, clock) as identity:
            verdict = await admit(identity)
        assert verdict.channels == (ChannelGrant("fw:beta", "update"), ChannelGrant("ops", "alert"))
        assert verdict.attributes == {"model": "tc3"}
        assert verdict.expires_at == 1_900_000_000_000

    @pytest.mark.parametrize("token", ["never-heard-of", "banned"])
    async def test_401_and_403_are_definite_refusals(self, origin, clock, token):
        await origin.control(tokens={"banned": None})
        async with identity_of(origin, clock) as identity:
            with pytest.raises(CredentialRefusedError) as caught:
                await admit(identity, token)
        assert caught.value.code == "credential_refused"

    @pytest.mark.parametrize(
        "behaviour",
        [
            "status:500",
            "status:503",
            "status:429",
            "status:404",
            "status:400",
            "status:407",
            "status:200",
            "malformed",
            "huge",
            "hang_up",
            "redirect:/auth2",
        ],
    )
    async def test_anything_else_is_unknown_and_never_a_refusal(self, origin, clock, behaviour):
        await origin.control(behaviour=behaviour)
        async with identity_of(origin, clock) as identity:
            with pytest.raises(OriginUnavailableError) as caught:
                await admit(identity)
        assert not isinstance(caught.value, CredentialRefusedError)
        assert caught.value.retry_after_s is not None

    async def test_a_verdict_with_one_bad_channel_is_unknown(self, origin, clock):
        await origin.control(
            tokens={"good": {"json": {**VERDICT, "channels": [{"name": "ops", "kind": "news"}]}}}
        )
        async with identity_of(origin, clock) as identity:
            with pytest.raises(OriginUnavailableError) as caught:
                await admit(identity)
        assert caught.value.code == "origin_malformed"

    async def test_redirects_are_not_followed_so_the_token_goes_nowhere_else(self, origin, clock):
        with Origin("forward_auth") as elsewhere:
            await origin.control(behaviour=f"redirect:{elsewhere.url}/auth")
            async with identity_of(origin, clock) as identity:
                with pytest.raises(OriginUnavailableError):
                    await admit(identity)
            assert (await elsewhere.seen())["count"] == 0

    async def test_an_answer_too_late_is_unknown(self, origin, clock):
        await origin.control(behaviour="hold")
        limits = OriginLimits(origin_timeout_s=0.05)
        async with identity_of(origin, clock, limits) as identity:
            with pytest.raises(OriginUnavailableError) as caught:
                await admit(identity)
        assert "TimeoutError" in caught.value.detail or "Timeout" in caught.value.detail

    @pytest.mark.parametrize(("fleet", "device"), [("other", "dev-1"), ("acme", "dev-2")])
    async def test_a_verdict_for_another_fleet_or_device_is_refused(self, origin, clock, fleet, device):
        async with identity_of(origin, clock) as identity:
            with pytest.raises(WrongIdentityError):
                await identity.admit(credential("good"), claimed_fleet=fleet, claimed_device=device)


class TestConfiguration:
    async def test_the_judge_that_the_configuration_asks_for(self, origin, clock):
        environ = {
            "FLEETCAST_IDENTITY_MODE": "forward_auth",
            "FLEETCAST_IDENTITY_FORWARD_AUTH_URL": f"{origin.url}/auth",
        }
        async with open_judge(load_config(None, environ), clock=clock, metrics=Metrics()) as judge:
            assert (await admit(Identity(judge, clock=clock))).device_id == "dev-1"

    async def test_without_a_mode_nobody_is_asked_and_every_device_is_unknown(self, origin, clock):
        async with open_judge(load_config(None, {}), clock=clock, metrics=Metrics()) as judge:
            with pytest.raises(OriginUnavailableError) as caught:
                await admit(Identity(judge, clock=clock))
        assert caught.value.code == "origin_unconfigured"
        assert (await origin.seen())["count"] == 0


class TestRepeatedHeaders:
    async def test_the_origin_sees_the_request_but_not_the_connection(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            await admit(
                identity,
                "good",
                ("X-Serial", "42"),
                ("Cookie", "a=b"),
                ("Connection", "Upgrade, X-Hop"),
                ("X-Hop", "1"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Key", "abc"),
                ("If-None-Match", '"v1.x"'),
                ("Content-Length", "7"),
                ("Content-Type", "application/cbor"),
                ("X-Forwarded-For", "10.0.0.1"),
                ("Forwarded", "for=10.0.0.1"),
                ("Fleetcast-Device", "dev-1"),
                ("Fleetcast-Channels", "alert:secret"),
            )
        (request,) = (await origin.seen())["requests"]
        assert request["method"] == "GET"
        headers = {name.lower(): value for name, value in request["headers"]}
        assert headers.pop("host") == origin.url.removeprefix("http://")
        assert headers == {
            "authorization": "Bearer good",
            "x-serial": "42",
            "cookie": "a=b",
            "fleetcast-device": "dev-1",
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "fleetcast",
            "x-forwarded-for": "203.0.113.9",
            "x-forwarded-proto": "https",
            "x-forwarded-host": "fleet.example.com",
            "x-forwarded-method": "GET",
            "x-forwarded-uri": "/v1/device/connect",
        }

    async def test_an_allow_list_keeps_the_rest_at_home(self, origin, clock):
        async with identity_of(origin, clock, forward_headers=("X-Serial",)) as identity:
            await admit(identity, "good", ("x-serial", "42"), ("Cookie", "a=b"), ("Fleetcast-Fleet", "acme"))
        (request,) = (await origin.seen())["requests"]
        names = {name.lower() for name, _ in request["headers"] if not name.lower().startswith("x-forwarded")}
        assert names == {
            "host",
            "authorization",
            "x-serial",
            "fleetcast-fleet",
            "accept",
            "accept-encoding",
            "user-agent",
        }

    async def test_one_token_with_two_serials_is_two_questions(self, origin, clock):
        async with identity_of(origin, clock, forward_headers=("X-Serial",)) as identity:
            await admit(identity, "good", ("X-Serial", "1"))
            await admit(identity, "good", ("X-Serial", "2"))
            await admit(identity, "good", ("X-Serial", "1"))
        assert (await origin.seen())["count"] == 2


class TestEconomy:
    async def test_fifty_connections_with_one_token_are_one_question(self, origin, clock):
        await origin.control(behaviour="hold")
        async with identity_of(origin, clock) as identity:
            waiters = [asyncio.create_task(admit(identity)) for _ in range(50)]
            await origin.seen(held=1)
            await origin.release()
            verdicts = await asyncio.gather(*waiters)
        assert {verdict.device_id for verdict in verdicts} == {"dev-1"}
        assert (await origin.seen())["count"] == 1

    async def test_a_cancelled_waiter_does_not_cancel_the_question(self, origin, clock):
        await origin.control(behaviour="hold")
        async with identity_of(origin, clock) as identity:
            first = asyncio.create_task(admit(identity))
            second = asyncio.create_task(admit(identity))
            await origin.seen(held=1)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await origin.release()
            assert (await second).device_id == "dev-1"
        assert (await origin.seen())["count"] == 1

    async def test_an_accepting_verdict_is_reused_for_a_minute(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            await admit(identity)
            clock.advance(59.9)
            await admit(identity)
            assert (await origin.seen())["count"] == 1
            clock.advance(0.1)
            await admit(identity)
            assert (await origin.seen())["count"] == 2

    async def test_a_verdict_is_not_reused_beyond_its_expiry(self, origin, clock):
        soon = {**VERDICT, "expires_at": clock.now_ms() + 20_000}
        await origin.control(tokens={"good": {"json": soon}})
        async with identity_of(origin, clock) as identity:
            await admit(identity)
            clock.advance(20)
            await admit(identity)
        assert (await origin.seen())["count"] == 2

    async def test_the_origin_may_shorten_the_reuse(self, origin, clock):
        await origin.control(headers={"Cache-Control": "private, max-age=7"})
        async with identity_of(origin, clock) as identity:
            await admit(identity)
            clock.advance(6.9)
            await admit(identity)
            assert (await origin.seen())["count"] == 1
            clock.advance(0.1)
            await admit(identity)
        assert (await origin.seen())["count"] == 2

    async def test_a_refusal_is_reused_for_seconds_and_then_asked_again(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            for _ in range(3):
                with pytest.raises(CredentialRefusedError):
                    await admit(identity, "late")
            assert (await origin.seen())["count"] == 1
            await origin.control(tokens={"late": {"json": VERDICT}})
            clock.advance(5)
            assert (await admit(identity, "late")).device_id == "dev-1"

    async def test_revalidation_asks_though_a_verdict_is_cached_and_learns_of_a_revocation(
        self, origin, clock
    ):
        async with identity_of(origin, clock) as identity:
            await admit(identity)
            await origin.control(tokens={})
            await admit(identity)
            with pytest.raises(CredentialRefusedError):
                await admit(identity, fresh=True)
            with pytest.raises(CredentialRefusedError):
                await admit(identity)


class TestBadDays:
    async def test_a_stopped_origin_is_unknown_and_a_started_one_admits_again(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            await admit(identity)
            origin.stop()
            assert (await admit(identity)).device_id == "dev-1"  # cached
            with pytest.raises(OriginUnavailableError):
                await admit(identity, fresh=True)
            assert (await admit(identity)).device_id == "dev-1"  # unknown takes nothing away
            origin.start()
            await origin.control(tokens={"good": {"json": VERDICT}})
            assert (await admit(identity, fresh=True)).device_id == "dev-1"

    async def test_the_circuit_opens_leaves_the_origin_alone_and_recovers_by_one_probe(self, origin, clock):
        await origin.control(behaviour="status:503")
        async with identity_of(origin, clock) as identity:
            for _ in range(3):
                with pytest.raises(OriginUnavailableError):
                    await admit(identity)
            for _ in range(20):
                with pytest.raises(OriginUnavailableError) as caught:
                    await admit(identity)
                assert caught.value.code == "origin_circuit_open"
                assert caught.value.retry_after_s == 10.0
            assert (await origin.seen())["count"] == 3

            clock.advance(10)
            with pytest.raises(OriginUnavailableError):
                await admit(identity)  # the probe fails: twice as long
            assert (await origin.seen())["count"] == 4
            clock.advance(19.9)
            with pytest.raises(OriginUnavailableError):
                await admit(identity)
            assert (await origin.seen())["count"] == 4

            await origin.control(behaviour="answer")
            clock.advance(0.1)
            assert (await admit(identity)).device_id == "dev-1"

    async def test_malformed_answers_do_not_open_the_circuit_for_others(self, origin, clock):
        await origin.control(tokens={"bad": {"json": {"device_id": 7}}, "good": {"json": VERDICT}})
        async with identity_of(origin, clock) as identity:
            for _ in range(10):
                with pytest.raises(OriginUnavailableError):
                    await admit(identity, "bad")
            assert (await admit(identity)).device_id == "dev-1"

    async def test_the_origin_says_when_to_come_back(self, origin, clock):
        await origin.control(behaviour="status:503", headers={"Retry-After": "77"})
        async with identity_of(origin, clock) as identity:
            with pytest.raises(OriginUnavailableError) as caught:
                await admit(identity)
        assert caught.value.retry_after_s == 77

    async def test_a_fleet_refused_at_once_is_told_to_come_back(self, origin, clock):
        tokens = {f"t{n}": {"json": {**VERDICT, "device_id": f"dev-{n}"}} for n in range(60)}
        await origin.control(tokens=tokens)
        async with identity_of(origin, clock) as identity:
            for n in range(60):
                await identity.admit(credential(f"t{n}"), claimed_fleet="acme", claimed_device=f"dev-{n}")
            await origin.control(tokens={})
            clock.advance(3600)
            codes = []
            for n in range(60):
                with pytest.raises((CredentialRefusedError, OriginUnavailableError)) as caught:
                    await identity.admit(credential(f"t{n}"), claimed_fleet="acme", claimed_device=f"dev-{n}")
                codes.append(caught.value.code)
            assert codes == ["credential_refused"] * 49 + ["origin_suspect"] * 11
            assert identity.is_origin_suspect
