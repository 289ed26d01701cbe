"""RFC 7662 against an authorisation server in another process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import asynccontextmanager

import pytest

from gateway.clock import FakeClock
from gateway.config import load_config
from gateway.errors import ConfigError, CredentialRefusedError, OriginUnavailableError
from gateway.identity import ChannelGrant, Credential, Identity
from gateway.origin import open_judge
from gateway.telemetry import Metrics
from tests.integration.origins.process import Origin

CLAIMS = {
    "sub": "dev-1",
    "fleet": "acme",
    "channels": [{"name": "ops", "kind": "alert"}],
    "attributes": {"model": "tc3", "cores": 2},
    "exp": 1_900_000_000,
    "scope": "device",
    "client_id": "whoever",
}


@pytest.fixture(scope="module")
def process() -> Iterator[Origin]:
    with Origin("introspection") as running:
        yield running


@pytest.fixture
async def origin(process: Origin) -> Origin:
    await process.reset(tokens={"good": CLAIMS})
    return process


@asynccontextmanager
async def identity_of(origin: Origin, tmp_path, *, secret: str = "s3cret+/ä", auth: str = "basic"):
    secret_file = tmp_path / "secret"
    secret_file.touch(mode=0o600)
    secret_file.write_text(f"{secret}\n")
    config = load_config(
        None,
        {
            "FLEETCAST_IDENTITY_MODE": "introspection",
            "FLEETCAST_IDENTITY_INTROSPECTION_URL": f"{origin.url}/introspect",
            "FLEETCAST_IDENTITY_INTROSPECTION_CLIENT_ID": "gateway",
            "FLEETCAST_IDENTITY_INTROSPECTION_CLIENT_SECRET_FILE": str(secret_file),
            "FLEETCAST_IDENTITY_INTROSPECTION_CLIENT_AUTH": auth,
        },
    )
    clock = FakeClock()
    async with open_judge(config, clock=clock, metrics=Metrics()) as judge:
        identity = Identity(judge, clock=clock)
        yield identity
        await identity.close()


async def admit(identity: Identity, token: str = "good"):
    credential = Credential.from_headers([("Authorization", f"Bearer {token}"), ("Cookie", "private")])
    return await identity.admit(credential, claimed_fleet="acme", claimed_device="dev-1")


@pytest.mark.parametrize("auth", ["basic", "post"])
async def test_an_active_token_admits_with_its_claims(origin, tmp_path, auth):
    async with identity_of(origin, tmp_path, auth=auth) as identity:
        verdict = await admit(identity)
    assert (verdict.device_id, verdict.fleet) == ("dev-1", "acme")
    assert verdict.channels == (ChannelGrant("ops", "alert"),)
    assert verdict.attributes == {"model": "tc3", "cores": 2}
    assert verdict.expires_at == 1_900_000_000_000


async def test_the_server_is_told_the_token_and_nothing_else_of_the_device(origin, tmp_path):
    async with identity_of(origin, tmp_path) as identity:
        await admit(identity)
    (request,) = (await origin.seen())["requests"]
    assert request["form"] == {"token": "good", "token_type_hint": "access_token"}
    names = {name.lower() for name, _ in request["headers"]}
    assert "cookie" not in names
    assert "fleetcast-device" not in names


async def test_active_false_is_a_definite_refusal(origin, tmp_path):
    async with identity_of(origin, tmp_path) as identity:
        with pytest.raises(CredentialRefusedError):
            await admit(identity, "unheard-of")


async def test_a_wrong_client_secret_refuses_no_device(origin, tmp_path):
    async with identity_of(origin, tmp_path, secret="rotated") as identity:
        with pytest.raises(OriginUnavailableError) as caught:
            await admit(identity)
    assert "401" in caught.value.detail


@pytest.mark.parametrize("behaviour", ["status:403", "status:500", "malformed", "huge", "hang_up"])
async def test_anything_else_is_unknown(origin, tmp_path, behaviour):
    await origin.control(behaviour=behaviour)
    async with identity_of(origin, tmp_path) as identity:
        with pytest.raises(OriginUnavailableError):
            await admit(identity)


@pytest.mark.parametrize(
    "claims",
    [{"active": "true"}, {"sub": None}, {"fleet": "no spaces"}, {"exp": "tomorrow"}, {"channels": "ops"}],
)
async def test_an_active_token_with_unusable_claims_is_unknown(origin, tmp_path, claims):
    await origin.control(tokens={"good": CLAIMS | claims})
    async with identity_of(origin, tmp_path) as identity:
        with pytest.raises(OriginUnavailableError) as caught:
            await admit(identity)
    assert caught.value.code == "origin_malformed"


async def test_active_but_long_expired_is_a_clock_gone_wrong_not_a_refusal(origin, tmp_path):
    await origin.control(tokens={"good": CLAIMS | {"exp": 1_700_000_000}})
    async with identity_of(origin, tmp_path) as identity:
        with pytest.raises(OriginUnavailableError):
            await admit(identity)


async def test_an_empty_secret_file_ends_the_start(origin, tmp_path):
    with pytest.raises(ConfigError, match="is empty"):
        async with identity_of(origin, tmp_path, secret="") as identity:
            await admit(identity)
