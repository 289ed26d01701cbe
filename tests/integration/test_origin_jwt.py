"""JWTs of an issuer in another process: keys rotated, the issuer stopped and started."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.clock import FakeClock
from gateway.config import load_config
from gateway.errors import CredentialExpiredError, CredentialRefusedError, OriginUnavailableError
from gateway.identity import Credential, Identity
from gateway.origin import open_judge
from gateway.telemetry import Metrics
from tests.integration.origins.process import Origin

NOW_S = 1_800_000_000  # where FakeClock starts


def claims(**changes: Any) -> dict[str, Any]:
    every = {
        "iss": "https://id.example.com",
        "aud": ["fleetcast", "other"],
        "sub": "dev-1",
        "fleet": "acme",
        "channels": [{"name": "ops", "kind": "alert"}],
        "exp": NOW_S + 3600,
    } | changes
    return {name: value for name, value in every.items() if value is not None}


@pytest.fixture(scope="module")
def process() -> Iterator[Origin]:
    with Origin("jwks") as running:
        yield running


@pytest.fixture
async def origin(process: Origin) -> Origin:
    await process.reset()
    await process.post("/_rotate", {"kid": "k1", "keep": False})
    return process


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@asynccontextmanager
async def identity_of(origin: Origin, clock: FakeClock) -> AsyncIterator[Identity]:
    config = load_config(
        None,
        {
            "FLEETCAST_IDENTITY_MODE": "jwt",
            "FLEETCAST_IDENTITY_JWT_JWKS_URL": f"{origin.url}/jwks.json",
            "FLEETCAST_IDENTITY_JWT_ISSUER": "https://id.example.com",
            "FLEETCAST_IDENTITY_JWT_AUDIENCE": "fleetcast",
        },
    )
    async with open_judge(config, clock=clock, metrics=Metrics()) as judge:
        identity = Identity(judge, clock=clock)
        yield identity
        await identity.close()


async def token(origin: Origin, kid: str = "k1", header: dict[str, Any] | None = None, **changes: Any) -> str:
    wanted = {"kid": kid, "claims": claims(**changes), "header": header or {}}
    made: str = (await origin.post("/_token", wanted))["token"]
    return made


async def admit(identity: Identity, text: str):
    credential = Credential.from_headers([("Authorization", f"Bearer {text}")])
    return await identity.admit(credential, claimed_fleet="acme", claimed_device="dev-1")


class TestTokens:
    async def test_a_well_signed_token_admits_with_its_claims(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            verdict = await admit(identity, await token(origin))
        assert (verdict.device_id, verdict.fleet) == ("dev-1", "acme")
        assert verdict.expires_at == (NOW_S + 3600) * 1000

    async def test_ed25519_and_unknown_header_parameters(self, origin, clock):
        await origin.post("/_rotate", {"kid": "ed", "alg": "Ed25519"})
        async with identity_of(origin, clock) as identity:
            text = await token(origin, "ed", header={"ver": 2, "x5t#S256": "abc"})
            assert (await admit(identity, text)).device_id == "dev-1"

    @pytest.mark.parametrize(
        "changes",
        [
            {"iss": "https://evil.example.com"},
            {"iss": None},
            {"aud": "elsewhere"},
            {"aud": None},
            {"aud": []},
            {"aud": {"fleetcast": 1}},
            {"iss": ["https://id.example.com"]},
        ],
    )
    async def test_a_token_of_another_issuer_or_for_somebody_else_is_a_definite_refusal(
        self, origin, clock, changes
    ):
        async with identity_of(origin, clock) as identity:
            with pytest.raises(CredentialRefusedError):
                await admit(identity, await token(origin, **changes))

    async def test_expiry_has_a_minute_of_skew(self, origin, clock):
        text = await token(origin, exp=NOW_S)
        async with identity_of(origin, clock) as identity:
            clock.advance(59)
            await admit(identity, text)
            clock.advance(1)
            with pytest.raises(CredentialExpiredError) as caught:
                await admit(identity, text)
        assert caught.value.code == "credential_expired"

    async def test_a_token_of_the_near_future_is_good_and_of_the_far_one_unknown(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            await admit(identity, await token(origin, nbf=NOW_S + 60))
            with pytest.raises(OriginUnavailableError) as caught:
                await admit(identity, await token(origin, nbf=NOW_S + 61))
        assert caught.value.code == "credential_not_yet_valid"

    @pytest.mark.parametrize(
        "changes",
        [
            {"fleet": None},
            {"sub": None},
            {"sub": 7},
            {"exp": None},
            {"exp": "soon"},
            {"exp": True},
            {"nbf": "soon"},
            {"nbf": True},
            {"channels": "ops"},
        ],
        ids=str,
    )
    async def test_a_good_signature_over_unusable_claims_is_the_origins_mistake(self, origin, clock, changes):
        async with identity_of(origin, clock) as identity:
            with pytest.raises(OriginUnavailableError) as caught:
                await admit(identity, await token(origin, **changes))
        assert caught.value.code == "origin_malformed"


class TestForgeries:
    async def test_alg_none_is_refused(self, origin, clock):
        head, body, _ = (await token(origin)).split(".")
        forged = (
            base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "k1"}).encode()).rstrip(b"=").decode()
        )
        async with identity_of(origin, clock) as identity:
            for text in (f"{forged}.{body}.", f"{head}.{body}."):
                with pytest.raises(CredentialRefusedError):
                    await admit(identity, text)

    async def test_a_published_key_used_as_an_hmac_secret_is_refused(self, origin, clock):
        text = await token(origin, header={"alg": "HS256"})
        async with identity_of(origin, clock) as identity:
            with pytest.raises(CredentialRefusedError):
                await admit(identity, text)
        assert (await origin.seen())["count"] == 0  # the algorithm is judged before any key is looked for

    async def test_one_changed_character_of_the_claims_is_refused(self, origin, clock):
        head, body, signature = (await token(origin)).split(".")
        changed = body[:-2] + ("A" if body[-2] != "A" else "B") + body[-1]
        async with identity_of(origin, clock) as identity:
            with pytest.raises(CredentialRefusedError):
                await admit(identity, f"{head}.{changed}.{signature}")

    @pytest.mark.parametrize(
        "header", [{"crit": ["exp"]}, {"crit": ["made-up"], "made-up": 1}, {"kid": 7}, {"alg": 7}]
    )
    async def test_headers_that_ask_for_what_we_do_not_do_are_refused(self, origin, clock, header):
        async with identity_of(origin, clock) as identity:
            with pytest.raises(CredentialRefusedError):
                await admit(identity, await token(origin, header=header))

    async def test_a_forgery_in_the_name_of_a_known_key_is_refused_without_asking_again(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            await admit(identity, await token(origin))
            await origin.post("/_rotate", {"kid": "k2", "publish": False})
            clock.advance(9)
            with pytest.raises(CredentialRefusedError):
                await admit(identity, await token(origin, "k2", header={"kid": "k1"}))
        assert (await origin.seen())["count"] == 1

    @pytest.mark.parametrize("payload", [b"[]", b"text", b'{"iss": 1, "iss": 2}'])
    async def test_a_signed_payload_that_is_no_claims_set_is_the_origins_mistake(
        self, origin, clock, payload
    ):
        async with identity_of(origin, clock) as identity:
            text = (await origin.post("/_token", {"kid": "k1", "raw": payload.decode()}))["token"]
            with pytest.raises(OriginUnavailableError):
                await admit(identity, text)

    async def test_a_key_of_another_kid_is_refused(self, origin, clock):
        await origin.post("/_rotate", {"kid": "k2"})
        async with identity_of(origin, clock) as identity:
            with pytest.raises(CredentialRefusedError):
                await admit(identity, await token(origin, "k2", header={"kid": "k1"}))

    @pytest.mark.parametrize(
        "text", ["abc", "a.b.c", "eyJhbGciOiJFUzI1NiJ9.e30", "....", "eyJhbGciOiJFUzI1NiJ9.e30.AA"]
    )
    async def test_what_is_no_token_is_refused(self, origin, clock, text):
        async with identity_of(origin, clock) as identity:
            with pytest.raises(CredentialRefusedError):
                await admit(identity, text)


class TestRotation:
    async def test_a_new_key_is_found_by_one_fetch_for_all(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            await admit(identity, await token(origin))
            await origin.post("/_rotate", {"kid": "k2", "keep": False})
            texts = [await token(origin, "k2", jti=str(n)) for n in range(20)]
            clock.advance(10)
            await asyncio.gather(*(admit(identity, text) for text in texts))
        assert (await origin.seen())["count"] == 2

    async def test_unknown_kids_fetch_at_most_every_ten_seconds_and_meanwhile_are_unknown(
        self, origin, clock
    ):
        async with identity_of(origin, clock) as identity:
            await admit(identity, await token(origin))
            await origin.post("/_rotate", {"kid": "hidden", "publish": False})
            for n in range(5):
                with pytest.raises(OriginUnavailableError) as caught:
                    await admit(identity, await token(origin, "hidden", jti=str(n)))
                assert caught.value.retry_after_s == 10
            assert (await origin.seen())["count"] == 1
            clock.advance(10)
            with pytest.raises(CredentialRefusedError):
                await admit(identity, await token(origin, "hidden"))
            assert (await origin.seen())["count"] == 2
            await admit(identity, await token(origin, jti="k1 still works"))

    async def test_a_withdrawn_key_is_refused_once_the_set_is_read_again(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            old = await token(origin, exp=NOW_S + 36_000)
            await admit(identity, old)
            await origin.post("/_rotate", {"kid": "k2", "keep": False})
            clock.advance(300)
            await admit(identity, old)  # old set, and a fetch begins behind it
            new = await token(origin, "k2")
            await admit(identity, new)  # joins that fetch
            clock.advance(60)
            with pytest.raises(CredentialRefusedError):
                await admit(identity, old)

    async def test_the_same_kid_with_a_new_key_is_found(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            await admit(identity, await token(origin))
            await origin.post("/_rotate", {"kid": "k1"})
            clock.advance(10)
            await admit(identity, await token(origin, jti="new key"))

    async def test_a_fetch_begun_before_the_token_came_refuses_nobody(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            await admit(identity, await token(origin))
            clock.advance(300)
            await origin.control(behaviour="hold")
            await admit(identity, await token(origin, jti="starts a fetch behind it"))
            await origin.seen(held=1)
            await origin.post("/_rotate", {"kid": "k2", "publish": False})
            waiter = asyncio.create_task(admit(identity, await token(origin, "k2")))
            for _ in range(10):
                await asyncio.sleep(0)  # until it waits for that fetch
            await origin.release()
            with pytest.raises(OriginUnavailableError):
                await waiter
        assert (await origin.seen())["count"] == 2


class TestBadDays:
    async def test_a_stopped_issuer_refuses_nobody_whose_key_is_known(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            texts = [await token(origin, jti=str(n), exp=NOW_S + 90_000) for n in range(3)]
            await admit(identity, texts[0])
            origin.stop()
            await admit(identity, texts[1])
            clock.advance(86_400)  # the set is a day old, fetches fail, tokens are judged
            await admit(identity, texts[2])

    async def test_no_keys_at_all_is_unknown_until_the_issuer_is_there(self, origin, clock):
        text = await token(origin)
        await origin.control(behaviour="status:503")
        async with identity_of(origin, clock) as identity:
            with pytest.raises(OriginUnavailableError):
                await admit(identity, text)
            await origin.control(behaviour="answer")
            clock.advance(10)
            await admit(identity, text)

    @pytest.mark.parametrize("behaviour", ["malformed", "huge", "status:404", "hang_up"])
    async def test_a_set_that_cannot_be_read_is_unknown(self, origin, clock, behaviour):
        text = await token(origin)
        await origin.control(behaviour=behaviour)
        async with identity_of(origin, clock) as identity:
            with pytest.raises(OriginUnavailableError):
                await admit(identity, text)

    async def test_made_up_kids_while_the_issuer_is_down_shut_nobody_out(self, origin, clock):
        async with identity_of(origin, clock) as identity:
            good = await token(origin, jti="good")
            await admit(identity, await token(origin))
            head = base64.urlsafe_b64encode(b'{"alg":"ES256","kid":"made-up"}').rstrip(b"=").decode()
            origin.stop()
            for n in range(20):
                clock.advance(11)
                body = base64.urlsafe_b64encode(json.dumps({"n": n}).encode()).rstrip(b"=").decode()
                with pytest.raises(OriginUnavailableError):
                    await admit(identity, f"{head}.{body}.{'A' * 86}")
            assert (await admit(identity, good)).device_id == "dev-1"
