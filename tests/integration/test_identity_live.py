"""Devices of a running gateway whose origin judges them, in all three ways: each a process of its own.

Verdicts live a second here. What devices are told while their origin stops, comes back, rotates its keys and
changes its mind is seen on real connections; that something was asked is read from ``/metrics``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Alert, Position, Subscriptions, Welcome
from tests.harness.devices import Ended, PollDevice, Refused, SocketDevice, alert_data
from tests.harness.gateway import ApiError, GatewayProcess
from tests.harness.nursery import Nursery
from tests.integration.origins.process import Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLEET = "acme"
WAIT_S = 20
REVALIDATE_S = 1.0
LATE_S = 5.0  # what a machine that does ten other things may add
ISSUER = "https://id.example.com"
IDENTITY = {
    "revalidate_s": REVALIDATE_S,
    "positive_cache_s": 0.5,
    "negative_cache_s": 0.1,
    "origin_timeout_s": 2.0,
    "circuit_open_s": 0.1,
    "circuit_open_max_s": 0.3,
}


class Way:
    """One of the three ways to ask, with an origin that answers it.

    What the origin knows is in ``known``: ``tell`` gives it to the origin, also after a restart.
    """

    script = ""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.known: dict[str, dict[str, Any]] = {}

    def settings(self, folder: Path) -> dict[str, dict[str, Any]]:
        raise NotImplementedError

    async def grant(self, device: str, *channels: str, fleet: str = FLEET, named: str | None = None) -> str:
        """Have the origin know ``device`` and its channels; return its token."""
        self.known[device] = {
            "device_id": named or device,
            "fleet": fleet,
            "channels": [{"name": channel, "kind": "alert"} for channel in channels],
            "attributes": {"model": "tc3"},
        }
        await self.tell()
        return device

    async def revoke(self, device: str) -> None:
        """Have the origin say no from now on."""
        del self.known[device]
        await self.tell()

    async def tell(self) -> None:
        raise NotImplementedError


class ForwardAuth(Way):
    script = "forward_auth"

    def settings(self, folder: Path) -> dict[str, dict[str, Any]]:
        return {
            "identity": IDENTITY | {"mode": "forward_auth"},
            "identity.forward_auth": {"url": f"{self.origin.url}/auth"},
        }

    async def tell(self) -> None:
        await self.origin.control(tokens={name: {"json": verdict} for name, verdict in self.known.items()})


class Introspection(Way):
    script = "introspection"

    def settings(self, folder: Path) -> dict[str, dict[str, Any]]:
        secret = folder / "secret"
        secret.touch(mode=0o600)
        secret.write_text("s3cret+/ä\n")
        secret.chmod(0o600)
        return {
            "identity": IDENTITY | {"mode": "introspection"},
            "identity.introspection": {
                "url": f"{self.origin.url}/introspect",
                "client_id": "gateway",
                "client_secret_file": str(secret),
            },
        }

    async def tell(self) -> None:
        tokens = {
            name: {"sub": verdict["device_id"], **verdict, "exp": int(time.time()) + 3600}
            for name, verdict in self.known.items()
        }
        await self.origin.control(tokens=tokens)


class Jwt(Way):
    """The tokens say it all; what the origin has to tell is its keys."""

    script = "jwks"

    def __init__(self, origin: Origin) -> None:
        super().__init__(origin)
        self.kids = ["k1"]

    def settings(self, folder: Path) -> dict[str, dict[str, Any]]:
        return {
            "identity": IDENTITY | {"mode": "jwt"},
            "identity.jwt": {
                "jwks_url": f"{self.origin.url}/jwks.json",
                "issuer": ISSUER,
                "audience": "fleetcast",
                "jwks_refetch_min_s": 0.1,
            },
        }

    async def grant(self, device: str, *channels: str, fleet: str = FLEET, named: str | None = None) -> str:
        await super().grant(device, *channels, fleet=fleet, named=named)
        return await self.sign(self.known[device], self.kids[-1])

    async def sign(self, verdict: dict[str, Any], kid: str) -> str:
        claims = {
            "iss": ISSUER,
            "aud": "fleetcast",
            "exp": int(time.time()) + 3600,
            "sub": verdict["device_id"],
            **{name: verdict[name] for name in ("fleet", "channels", "attributes")},
        }
        token: str = (await self.origin.post("/_token", {"kid": kid, "claims": claims}))["token"]
        return token

    async def tell(self) -> None:
        for number, kid in enumerate(self.kids):
            wanted = {"kid": kid, "alg": "Ed25519", "seed": kid.encode().hex().zfill(64), "keep": number > 0}
            await self.origin.post("/_rotate", wanted)


class World:
    """A gateway, its origin, and devices to connect."""

    def __init__(self, way: Way, gateway: GatewayProcess) -> None:
        self.way = way
        self.gateway = gateway

    def socket(self, device: str, token: str, *, encoding: str = "cbor", fleet: str = FLEET) -> SocketDevice:
        return SocketDevice(self.gateway.url, fleet=fleet, device=device, token=token, encoding=encoding)

    def poll(self, device: str, token: str, *, encoding: str = "cbor", fleet: str = FLEET) -> PollDevice:
        return PollDevice(self.gateway.url, fleet=fleet, device=device, token=token, encoding=encoding)

    async def publish(self, channel: str, text: str) -> None:
        await self.gateway.call("POST", f"/channels/{channel}/alerts", json={"text": text})

    async def asked(self, outcome: str, more: int = 1) -> None:
        """Return once the origin was asked ``more`` questions that had this outcome."""
        name = f'fleetcast_origin_requests_total{{outcome="{outcome}"}}'
        before = await self.gateway.metric(name)

        async def is_asked() -> bool:
            return await self.gateway.metric(name) >= before + more

        await until(is_asked)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def admitted(connect: Callable[[], SocketDevice]) -> AsyncIterator[SocketDevice]:
    """Connect until it is admitted; each refusal before must be one after which a device comes back."""
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    device = await stack.enter_async_context(connect())
                    break
                except Refused as refusal:
                    assert_comes_back(refusal)
                await asyncio.sleep(0.05)
        yield device


async def refused(device: PollDevice) -> Refused:
    """Poll until it is refused; return that."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await device.poll()
            except Refused as refusal:
                return refusal
            await asyncio.sleep(0.05)


def assert_comes_back(refusal: Refused) -> None:
    assert refusal.status == 503
    assert refusal.code in ("origin_unavailable", "origin_circuit_open")
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s >= 1


async def next_text(device: SocketDevice) -> bytes:
    return alert_data((await device.next(Alert)).body)


def judged_by(*ways: type[Way]) -> pytest.MarkDecorator:
    """Run a test in these ways, each with a gateway of its own."""
    return pytest.mark.parametrize("world", ways, indirect=True, ids=[way.script for way in ways])


EVERY_WAY = judged_by(ForwardAuth, Introspection, Jwt)
ASKED = judged_by(ForwardAuth, Introspection)  # a signed token always says the same
SIGNED = judged_by(Jwt)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nursery: Nursery
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp(request.param.script)
    with Origin(request.param.script) as origin:
        way: Way = request.param(origin)
        settings = way.settings(folder) | {"device": {"wheel_s": 0.1}}
        async with GatewayProcess(folder, fleet=FLEET, settings=settings, nursery=nursery) as gateway:
            yield World(way, gateway)


@pytest_asyncio.fixture(loop_scope="module")
async def live(world: World) -> World:
    """Each test begins with an origin that is there and knows nobody."""
    world.way.known = {}
    world.way.origin.start()
    await world.way.tell()
    return world


@EVERY_WAY
class TestJudged:
    @pytest.mark.parametrize("encoding", ["cbor", "json"])
    async def test_a_device_connects_with_what_its_origin_says_of_it(self, live, encoding):
        name = f"accepted-{encoding}"
        token = await live.way.grant(name, f"ops-{encoding}", f"door-{encoding}")
        channels = {f"ops-{encoding}", f"door-{encoding}"}
        async with live.socket(name, token, encoding=encoding) as device:
            assert set((await device.begin()).heads) == {*channels, f"~{name}"}
            await live.publish(f"ops-{encoding}", "over a socket")
            assert await next_text(device) == b"over a socket"
        known = await live.gateway.call("GET", f"/devices/{name}")
        assert known["origin"] == {"model": "tc3"}
        async with live.poll(name, token, encoding=encoding) as device:
            [welcome] = await device.begin()
            assert isinstance(welcome, Welcome)
            assert set(welcome.heads) == {*channels, f"~{name}"}
            [alert] = (await device.poll()).of(Alert)
            assert alert_data(alert.body) == b"over a socket"

    async def test_a_token_that_the_origin_does_not_accept_is_refused_for_hours(self, live):
        token = await live.way.grant("stranger", "ops")
        if isinstance(live.way, Jwt):
            token = token[:-8] + "AAAAAAAA"
        else:
            await live.way.revoke("stranger")
        for device in (live.socket("stranger", token), live.poll("stranger", token)):
            with pytest.raises(Refused) as caught:
                async with device:
                    await device.begin()
            assert (caught.value.status, caught.value.code) == (401, "credential_refused")
        with pytest.raises(ApiError, match="404"):
            await live.gateway.call("GET", "/devices/stranger")


class TestWrongIdentity:
    """A verdict that names another fleet or device than the connection claims."""

    @EVERY_WAY
    @pytest.mark.parametrize("claim", [{"device": "victim"}, {"fleet": "other"}], ids=["device", "fleet"])
    async def test_a_claim_to_be_another_is_refused_before_the_connection(self, live, claim):
        token = await live.way.grant("thief", "ops")
        options = {"device": "thief", "token": token, **claim}
        for device in (live.socket(**options), live.poll(**options)):
            with pytest.raises(Refused) as caught:
                async with device:
                    await device.begin()
            assert (caught.value.status, caught.value.code) == (403, "wrong_identity")
        for name in ("thief", "victim"):
            with pytest.raises(ApiError, match="404"):
                await live.gateway.call("GET", f"/devices/{name}")

    @EVERY_WAY
    async def test_a_hello_that_names_another_is_closed_with_4502(self, live):
        token = await live.way.grant("liar", "ops")
        async with live.socket("liar", token) as device:
            with pytest.raises(Ended) as ended:
                await device.begin(device="victim")
        assert ended.value.code == CloseCode.WRONG_IDENTITY
        async with live.poll("liar", token) as device:
            with pytest.raises(Refused) as caught:
                await device.begin(fleet="other")
        assert (caught.value.status, caught.value.code) == (403, "wrong_identity")

    @ASKED
    async def test_a_verdict_that_names_another_at_revalidation_closes_with_4502(self, live):
        token = await live.way.grant("twin", "ops")
        async with live.socket("twin", token) as device:
            await device.begin()
            await live.way.grant("twin", "ops", named="other-twin")
            assert await device.ended() == CloseCode.WRONG_IDENTITY


@EVERY_WAY
class TestOriginAway:
    async def test_who_is_connected_stays_and_who_comes_is_told_to_come_again(self, live):
        tokens = {name: await live.way.grant(name, "away") for name in ("cbor", "json", "polls", "late")}
        late = tokens["late"]
        if isinstance(live.way, Jwt):  # the last key set serves; what needs a new one is not known
            live.way.kids = ["k1", "k2"]
            await live.way.tell()
            late = await live.way.sign(live.way.known["late"], "k2")
        async with AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(live.socket(name, tokens[name], encoding=name))
                for name in ("cbor", "json")
            ]
            for socket in sockets:
                await socket.begin()
            polls = await stack.enter_async_context(live.poll("polls", tokens["polls"]))
            await polls.begin()

            live.way.origin.stop()
            if not isinstance(live.way, Jwt):
                await live.asked("unknown", 6)  # every one of them, again and again
            with pytest.raises(Refused) as caught:
                async with live.socket("late", late):
                    pass
            assert_comes_back(caught.value)
            with pytest.raises(Refused) as caught:
                async with live.poll("late", late) as device:
                    await device.begin()
            assert_comes_back(caught.value)

            await live.publish("away", "while it is away")
            for socket in sockets:
                assert await next_text(socket) == b"while it is away"
            polled = await polls.poll(wait_s=5)
            assert [alert_data(alert.body) for alert in polled.of(Alert)] == [b"while it is away"]
            positions = {alert.channel: Position(alert.epoch, alert.offset) for alert in polled.of(Alert)}

            live.way.origin.start()
            await live.way.tell()
            newcomer = await stack.enter_async_context(admitted(lambda: live.socket("late", late)))
            await newcomer.begin()
            await live.asked("accepted", 3)
            await live.publish("away", "and back")
            for socket in (*sockets, newcomer):
                assert await next_text(socket) == b"and back"
            polled = await polls.poll(polled.cursor, wait_s=5)
            assert [alert_data(alert.body) for alert in polled.of(Alert)] == [b"and back"]
            assert positions["away"].offset == polled.of(Alert)[0].offset - 1


@ASKED
class TestRevalidation:
    async def test_a_token_taken_back_ends_the_session_in_time_and_for_hours(self, live):
        revoked = await live.way.grant("revoked", "back")
        kept = await live.way.grant("kept", "back")
        async with live.socket("revoked", revoked) as device, live.socket("kept", kept) as other:
            await device.begin()
            await other.begin()
            async with live.poll("polled", await live.way.grant("polled", "back")) as polled:
                await polled.begin()
                begun = time.monotonic()
                await live.way.revoke("revoked")
                await live.way.revoke("polled")
                assert await device.ended() == CloseCode.CREDENTIAL_REVOKED
                refusal = await refused(polled)
                assert time.monotonic() - begun < REVALIDATE_S + LATE_S
                assert (refusal.status, refusal.code) == (401, "credential_refused")
            with pytest.raises(Refused) as caught:
                async with live.socket("revoked", revoked):
                    pass
            assert (caught.value.status, caught.value.code) == (401, "credential_refused")
            await live.publish("back", "to those who stay")
            assert await next_text(other) == b"to those who stay"

    async def test_channels_that_the_origin_changes_change_on_the_connection(self, live):
        token = await live.way.grant("moved", "first", "both")
        async with live.socket("moved", token) as device:
            await device.begin()
            await live.way.grant("moved", "both", "second")
            change = await device.next(Subscriptions)
            assert set(change.added) == {"second"}
            assert change.removed == ("first",)
            await live.publish("first", "no more")
            await live.publish("second", "from now on")
            assert await next_text(device) == b"from now on"
        page = await live.gateway.call("GET", "/devices/moved/subscriptions")
        assert {item["channel"] for item in page["items"]} == {"both", "second", "~moved"}

    async def test_channels_that_the_origin_changes_make_a_polling_device_say_hello_again(self, live):
        async with live.poll("mover", await live.way.grant("mover", "first")) as device:
            [welcome] = await device.begin()
            assert set(welcome.heads) == {"first", "~mover"}
            await live.way.grant("mover", "second")
            refusal = await refused(device)
            assert (refusal.status, refusal.code) == (409, "hello_required")
            [welcome] = await device.begin()
            assert set(welcome.heads) == {"second", "~mover"}


@SIGNED
class TestKeys:
    """JWKS: the issuer rotates its keys while devices are connected."""

    async def test_a_new_key_admits_at_once_and_an_old_one_goes_when_it_is_withdrawn(self, live):
        live.way.kids = ["k3"]
        await live.way.tell()
        async with live.socket("old", await live.way.grant("old", "keys")) as old:
            await old.begin()
            live.way.kids = ["k3", "k4"]
            await live.way.tell()
            token = await live.way.grant("new", "keys")
            async with admitted(lambda: live.socket("new", token)) as new:
                await new.begin()
                await live.asked("accepted", 4)  # both, and more than once
                await live.publish("keys", "under two keys")
                assert await next_text(old) == b"under two keys"
                assert await next_text(new) == b"under two keys"

                live.way.kids = ["k4", "k5"]
                await live.way.tell()
                token = await live.way.grant("newest", "keys")
                async with admitted(lambda: live.socket("newest", token)) as newest:
                    begun = time.monotonic()
                    await newest.begin()  # its kid made the gateway fetch the set, in which k3 is no more
                    code = await old.ended()
                    assert 4500 <= code <= 4999
                    assert time.monotonic() - begun < REVALIDATE_S + LATE_S
                    await live.publish("keys", "under the others")
                    assert await next_text(new) == b"under the others"
                    assert await next_text(newest) == b"under the others"
