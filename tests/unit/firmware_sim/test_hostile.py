"""What an attacker makes up, what it lets pass, and how it is noted whether a device fell for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from device_sdk.errors import UpdateError
from device_sdk.transport.link import LinkClosedError
from device_sdk.update import Fetched
from device_sdk.wire.errors import WireError
from device_sdk.wire.keys import Algorithm, PrivateKey, Role
from device_sdk.wire.messages import (
    Ack,
    Alert,
    Cancel,
    FromDevice,
    FromGateway,
    Hello,
    Nack,
    Recorded,
    Report,
    Roots,
    StatementMessage,
    Update,
    Welcome,
)
from device_sdk.wire.signed import (
    AlertPayload,
    Directive,
    RootDocument,
    RootKey,
    alert_payload,
    assemble_alert,
    sign_alert,
    sign_directive,
    sign_root,
    verify_alert,
    verify_directive,
    verify_root,
    verify_statement,
)
from firmware_sim.attacks import CHANGED, INVENTED, Attack, Notebook, Victim
from firmware_sim.dice import Dice
from firmware_sim.hostile import Attacker, HostileFetch, HostileTransport
from firmware_sim.scenario import ATTACKS, HostileGateway
from firmware_sim.trace import Trace

FLEET, DEVICE = "acme", "dev-1"
NOW_MS = 1_800_000_000_000
HELLO = Hello(protocol=1, window=32, boot_id=bytes(16), root_version=1)
WELCOME = Welcome(session=bytes(16), heads={}, heartbeat_s=25, spread_s=0, server_time=0)


class Fleet:
    """A gateway's and an operator's keys, and what they sign."""

    def __init__(self, algorithm: Algorithm = Algorithm.ED25519) -> None:
        roles = (Role.RELEASE, Role.DIRECTIVE, Role.STATEMENT, Role.ALERT)
        self.keys = {role: PrivateKey.generate(algorithm) for role in roles}
        document = RootDocument(
            fleet=FLEET,  # type: ignore[arg-type]
            version=1,
            issued_at=NOW_MS,
            expires_at=NOW_MS + 10**9,
            keys=tuple(RootKey(role, key.public) for role, key in self.keys.items()),
        )
        self.roots = Roots((sign_root(document, self.keys[Role.RELEASE]),))

    def trusted(self, role: Role) -> dict[bytes, Any]:
        key = self.keys[role].public
        return {key.kid: key}

    def update(self, number: int, *, device: str = DEVICE, manifest: bytes = b"manifest one") -> Update:
        deployment = bytes([number]) * 16
        directive = Directive(
            fleet=FLEET,  # type: ignore[arg-type]
            device=device,  # type: ignore[arg-type]
            enrolment=bytes(16),
            deployment=deployment,
            manifest_digest=bytes(32),
            sequence=number,
            issued_at=NOW_MS,
            expires_at=NOW_MS + 10**9,
            install_by=NOW_MS + 10**9,
            component="main",  # type: ignore[arg-type]
        )
        return Update(deployment, sign_directive(directive, self.keys[Role.DIRECTIVE]), manifest)

    def alert(self, offset: int) -> Alert:
        payload = alert_payload(
            AlertPayload(
                fleet=FLEET,  # type: ignore[arg-type]
                channel="ops",  # type: ignore[arg-type]
                epoch=1,
                offset=offset,
                id=offset.to_bytes(16, "big"),
                issued_at=NOW_MS,
                content_type="text/plain",
                data=b"genuine",
            )
        )
        key = self.keys[Role.ALERT]
        body = assemble_alert(payload, sign_alert(payload, key, FLEET), kid=key.kid, algorithm=key.algorithm)
        return Alert("ops", 1, offset, body)


@pytest.fixture(params=[Algorithm.ED25519, Algorithm.ESP256])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    return Fleet(request.param)


@pytest.fixture
def notebook(fleet: Fleet) -> Notebook:
    notebook = Notebook()
    notebook.read(DEVICE, fleet.roots)
    notebook.read(DEVICE, fleet.update(1))
    notebook.read("dev-2", fleet.update(2, device="dev-2", manifest=b"manifest two"))
    notebook.read(DEVICE, fleet.alert(1))
    return notebook


def victim(fleet: Fleet) -> Victim:
    return Victim(fleet=FLEET, device_id=DEVICE, now_ms=NOW_MS, alert=fleet.alert(1), ended=bytes(16))


def refusal(fleet: Fleet, attack: Attack) -> str | None:
    """Return the code by which the wire's own checks refuse ``attack``; None: they do not look at it."""
    message = attack.message
    try:
        match message:
            case Update():
                directive = verify_directive(
                    message.directive, fleet.trusted(Role.DIRECTIVE), fleet=FLEET, device=DEVICE
                )
                return "mix_and_match" if directive.deployment != message.deployment else None
            case Alert():
                verify_alert(
                    message.body,
                    fleet.trusted(Role.ALERT),
                    fleet=FLEET,
                    channel=message.channel,
                    epoch=message.epoch,
                    offset=message.offset,
                )
            case Roots():
                verify_root(message.roots[0], fleet.trusted(Role.RELEASE), fleet=FLEET)
            case StatementMessage():
                verify_statement(
                    message.body,
                    fleet.trusted(Role.STATEMENT),
                    fleet=FLEET,
                    device=DEVICE,
                    nonce=bytes(16),
                )
            case _:
                pass
    except (WireError, UpdateError) as error:
        return error.code
    return None


class TestAttacks:
    def test_scenarios_may_name_each(self) -> None:
        assert set(ATTACKS) == INVENTED.keys() | CHANGED.keys()
        assert len(ATTACKS) == len(set(ATTACKS))

    @pytest.mark.parametrize("name", sorted(INVENTED))
    def test_what_is_made_up_is_refused_for_the_reason_that_it_names(
        self, name: str, fleet: Fleet, notebook: Notebook
    ) -> None:
        for seed in range(5):
            attack = INVENTED[name](notebook, victim(fleet), Random(seed))
            assert attack is not None
            assert attack.name == name
            code = refusal(fleet, attack)
            if isinstance(attack.message, Update) and name != "replayed_update":
                assert {code} == attack.codes
                assert attack.is_forged
            elif name in ("forged_root", "forged_statement"):
                assert code in ("unknown_key", "bad_signature")

    @pytest.mark.parametrize("name", sorted(INVENTED))
    def test_without_material_there_is_no_attack(self, name: str) -> None:
        attack = INVENTED[name](Notebook(), Victim(fleet=FLEET, device_id=DEVICE, now_ms=NOW_MS), Random(1))
        assert attack is None or name in ("forged_cancel", "forged_receipt", "forged_statement")

    @pytest.mark.parametrize("name", sorted(CHANGED))
    def test_what_is_changed_is_refused_for_the_reason_that_it_names(
        self, name: str, fleet: Fleet, notebook: Notebook
    ) -> None:
        changed = [CHANGED[name](notebook, one, Random(1)) for one in (fleet.alert(2), fleet.update(3))]
        (attack,) = [one for one in changed if one is not None]
        assert not attack.is_forged
        if isinstance(attack.message, Alert):
            assert {refusal(fleet, attack)} == attack.codes
        else:
            assert isinstance(attack.message, Update)
            assert attack.message.manifest != fleet.update(3).manifest
        assert CHANGED[name](notebook, Cancel(bytes(16)), Random(1)) is None

    def test_notebook_reads_only_newer_roots_and_no_nonsense(self, fleet: Fleet, notebook: Notebook) -> None:
        keys = dict(notebook.keys)
        notebook.read(DEVICE, Roots((b"nonsense", fleet.roots.roots[0])))
        assert (notebook.root_version, notebook.keys) == (1, keys)
        assert keys[Role.ALERT][0] == fleet.keys[Role.ALERT].public.kid


class World:
    """An attacker and one link through its hands."""

    def __init__(self, fleet: Fleet, notebook: Notebook, *attacks: str, **plan: Any) -> None:
        self.failures: list[str] = []
        self.checks = 0
        self.trace = Trace()
        self.script = Script()
        self.attacker = Attacker(
            HostileGateway(attacks=attacks, every_s=(0.001, 0.001), **plan),
            notebook=notebook,
            fleet=FLEET,
            device_id=DEVICE,
            dice=Dice(1, DEVICE),
            trace=self.trace,
            check=self.check,
        )

    def check(self, failure: str | None) -> None:
        self.checks += 1
        if failure is not None:
            self.failures.append(failure)

    async def connect(self) -> Any:
        self.script.coming.put_nowait([WELCOME])
        link = await HostileTransport(self.script, self.attacker).connect(HELLO, "token")
        assert await link.receive() == [WELCOME]
        return link


class Script:
    name = "websocket"

    def __init__(self) -> None:
        self.coming: asyncio.Queue[Sequence[FromGateway]] = asyncio.Queue()
        self.sent: list[FromDevice] = []
        self.confirmed = 0
        self.is_aborted = self.is_closed = False

    async def connect(self, hello: Hello, token: str) -> Script:
        return self

    async def receive(self) -> Sequence[FromGateway]:
        batch = await self.coming.get()
        if not batch:
            raise LinkClosedError("over")
        return batch

    def confirm(self) -> None:
        self.confirmed += 1

    async def send(self, messages: Sequence[FromDevice]) -> None:
        self.sent += messages

    def abort(self) -> None:
        self.is_aborted = True

    async def close(self) -> None:
        self.is_closed = True


def report(deployment: bytes, state: str, code: str | None = None) -> Report:
    return Report(id=bytes(15) + b"r", deployment=deployment, seq=1, state=state, code=code)


class TestLink:
    async def test_made_up_message_comes_between_and_its_answer_stays(
        self, fleet: Fleet, notebook: Notebook
    ) -> None:
        world = World(fleet, notebook, "forged_cancel")
        link = await world.connect()
        (cancel,) = await link.receive()
        assert isinstance(cancel, Cancel)
        world.attacker.delivered(cancel)
        assert world.attacker.unmet == "forged_cancel is not answered"
        answer = report(cancel.deployment, "cancelled")
        world.attacker.answered(answer)
        await link.send([answer, Ack(deployment=cancel.deployment), Ack(window=3)])
        assert world.script.sent == [Ack(window=3)]
        assert await link.receive() == [Recorded(answer.id, "recorded")]
        assert world.attacker.unmet is None
        assert (world.failures, world.checks) == ([], 1)
        assert world.trace.counts == {"attack": 1}
        assert world.attacker.document() == {"forged_cancel": {"tried": 1, "answers": {"cancelled": 1}}}

    async def test_only_what_the_gateway_said_is_confirmed_to_it(
        self, fleet: Fleet, notebook: Notebook
    ) -> None:
        world = World(fleet, notebook, "forged_receipt")
        link = await world.connect()
        link.confirm()
        assert isinstance((await link.receive())[0], Recorded)
        link.confirm()
        assert world.script.confirmed == 1

    async def test_nothing_is_tried_before_welcome_and_root(self, fleet: Fleet, notebook: Notebook) -> None:
        world = World(fleet, notebook, "forged_receipt")
        link = await HostileTransport(world.script, world.attacker).connect(
            Hello(protocol=1, window=1, boot_id=bytes(16)), "token"
        )
        for batch in ([WELCOME], [fleet.roots]):
            receiving = asyncio.create_task(link.receive())
            for _ in range(5):
                await asyncio.sleep(0)
            assert not receiving.done()
            world.script.coming.put_nowait(batch)
            assert await receiving == batch
        assert isinstance((await link.receive())[0], Recorded)

    async def test_end_of_the_connection_passes_and_closing_reaches_the_link_below(
        self, fleet: Fleet, notebook: Notebook
    ) -> None:
        world = World(fleet, notebook)
        link = await world.connect()
        world.script.coming.put_nowait([])
        with pytest.raises(LinkClosedError):
            await link.receive()
        waiting = asyncio.create_task(link.receive())
        await asyncio.sleep(0)
        waiting.cancel()
        link.abort()
        await link.close()
        assert world.script.is_aborted
        assert world.script.is_closed

    async def test_genuine_update_is_changed_once_and_void_when_it_comes_whole(
        self, fleet: Fleet, notebook: Notebook
    ) -> None:
        world = World(fleet, notebook, "truncated_manifest")
        link = await world.connect()
        update = fleet.update(5)
        for _ in range(2):
            world.script.coming.put_nowait([update])
        (changed,) = await link.receive()
        assert changed.manifest != update.manifest
        world.attacker.delivered(changed)
        assert world.attacker.unmet == "truncated_manifest is not answered"
        assert await link.receive() == [update]
        world.attacker.answered(report(update.deployment, "verified"))
        assert (world.failures, world.attacker.unmet) == ([], None)


class TestVerdict:
    async def attack(self, world: World) -> Update:
        link = await world.connect()
        (message,) = await link.receive()
        assert isinstance(message, Update)
        world.attacker.delivered(message)
        return message

    @pytest.mark.parametrize("state", ["verified", "downloading", "committed"])
    async def test_planted_acceptance_is_found(self, fleet: Fleet, notebook: Notebook, state: str) -> None:
        world = World(fleet, notebook, "unknown_signer")
        message = await self.attack(world)
        world.attacker.answered(report(message.deployment, state))
        (failure,) = world.failures
        assert failure == f"unknown_signer: deployment {message.deployment.hex()} is {state}"

    async def test_planted_other_reason_is_found(self, fleet: Fleet, notebook: Notebook) -> None:
        world = World(fleet, notebook, "unknown_signer")
        message = await self.attack(world)
        world.attacker.answered(report(message.deployment, "rejected", "malformed"))
        assert world.failures == ["unknown_signer: answered malformed, not unknown_key"]

    async def test_refusal_for_its_reason_is_right(self, fleet: Fleet, notebook: Notebook) -> None:
        world = World(fleet, notebook, "unknown_signer")
        message = await self.attack(world)
        world.attacker.answered(report(message.deployment, "rejected", "unknown_key"))
        assert (world.failures, world.checks, world.attacker.unmet) == ([], 1, None)

    @pytest.mark.parametrize("name", ["forged_alert", "moved_alert", "truncated_alert"])
    async def test_planted_alert_that_reaches_the_application_is_found(
        self, fleet: Fleet, notebook: Notebook, name: str
    ) -> None:
        world = World(fleet, notebook, name)
        link = await world.connect()
        for offset in range(2, 20):
            world.script.coming.put_nowait([fleet.alert(offset)])
            (alert,) = await link.receive()
            if alert != fleet.alert(offset):
                break
        world.attacker.delivered(alert)
        world.attacker.handled("ops", 1, alert.offset, b"genuine")  # it came again, as it was meant
        assert world.failures == []
        world.attacker.handled("ops", 1, alert.offset, b"forged")
        assert world.failures == [f"{name}: ops {alert.offset} was handed to the application"]

    async def test_refused_alert_is_answered_by_its_nack(self, fleet: Fleet, notebook: Notebook) -> None:
        world = World(fleet, notebook, "truncated_alert")
        link = await world.connect()
        alert = fleet.alert(2)
        while alert == fleet.alert(alert.offset):
            world.script.coming.put_nowait([fleet.alert(alert.offset + 1)])
            (alert,) = await link.receive()
        world.attacker.delivered(alert)
        world.attacker.answered(Nack("ops", 1, alert.offset, "malformed"))
        assert (world.failures, world.attacker.unmet) == ([], None)


class Served:
    def __init__(self, image: bytes) -> None:
        self.image = image

    @asynccontextmanager
    async def fetch(self, uri: str, *, offset: int, etag: str | None) -> AsyncIterator[Fetched]:
        async def chunks() -> AsyncIterator[bytes]:
            for start in range(offset, len(self.image), 50_000):
                yield self.image[start : start + 50_000]

        yield Fetched(offset, len(self.image), '"etag"', chunks())


class TestDownload:
    IMAGE = bytes(range(256)) * 800

    async def served(self, fleet: Fleet, notebook: Notebook, what: str, limit: int) -> tuple[Fetched, bytes]:
        world = World(fleet, notebook, download=what)
        data = b""
        fetch = HostileFetch(Served(self.IMAGE), world.attacker)
        async with fetch.fetch("/image", offset=0, etag=None) as fetched:
            async for chunk in fetched.chunks:
                data += chunk
                if len(data) >= limit:
                    break
        assert world.attacker.tried == {f"{what}_download": 1}
        return fetched, data

    async def test_each_is_what_it_says(self, fleet: Fleet, notebook: Notebook) -> None:
        size = len(self.IMAGE)
        fetched, data = await self.served(fleet, notebook, "endless", 3 * size)
        assert (fetched.size, len(data) >= 3 * size) == (None, True)
        fetched, data = await self.served(fleet, notebook, "oversized", 10**9)
        assert (fetched.size, data) == (2 * size, self.IMAGE)
        fetched, data = await self.served(fleet, notebook, "other", 10**9)
        assert (fetched.size, len(data), data == self.IMAGE) == (size, size, False)
        fetched, data = await self.served(fleet, notebook, "truncated", 10**9)
        assert (fetched.size, data) == (size, self.IMAGE[: size // 2])

    async def test_what_is_genuine_is_not_touched(self, fleet: Fleet, notebook: Notebook) -> None:
        world = World(fleet, notebook)
        fetch = HostileFetch(Served(self.IMAGE), world.attacker)
        async with fetch.fetch("/image", offset=100_000, etag=None) as fetched:
            assert b"".join([chunk async for chunk in fetched.chunks]) == self.IMAGE[100_000:]
        assert world.attacker.tried == {}
