"""The whole SDK against a gateway in this process: every transport and encoding, failures, and power loss."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from device_sdk import (
    DeviceClient,
    MemoryFlash,
    RebootRequiredError,
    ReceivedAlert,
    SlotInstaller,
)
from device_sdk.choice import ChoiceLimits
from device_sdk.client import ClientLimits
from device_sdk.inbox import InboxLimits
from device_sdk.reconnect import ReconnectLimits
from device_sdk.store import PowerLossError
from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import (
    Ack,
    Cancel,
    Goaway,
    Hello,
    Nack,
    Position,
    Report,
    Ticket,
    Update,
    Uplink,
)
from device_sdk.wire.signed import Directive, sign_directive
from tests.integration.sdk_gateway import EPOCH, FACTOR, FakeGateway, ScaledClock
from tests.unit.device_sdk.update import world

WAYS = [
    pytest.param("websocket", "cbor", id="websocket-cbor"),
    pytest.param("websocket", "json", id="websocket-json"),
    pytest.param("longpoll", "cbor", id="longpoll-cbor"),
    pytest.param("longpoll", "json", id="longpoll-json"),
]


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as running:
        yield running


class Application:
    """Notes the alerts it gets; raises for those in ``bad``, once for each time they are named there."""

    def __init__(self) -> None:
        self.alerts: list[ReceivedAlert] = []
        self.bad: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._news = asyncio.Event()

    async def __call__(self, alert: ReceivedAlert) -> None:
        await self.gate.wait()
        if alert.text in self.bad:
            self.bad.remove(alert.text)
            raise ValueError(alert.text)
        self.alerts.append(alert)
        self._news.set()

    @property
    def texts(self) -> list[str]:
        return [alert.text for alert in self.alerts]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.alerts) < count:
                self._news.clear()
                await self._news.wait()


def device(gateway: FakeGateway, flash: MemoryFlash | None = None, **changes: Any) -> DeviceClient:
    arguments: dict[str, Any] = {
        "url": gateway.url,
        "fleet": world.FLEET,
        "device_id": world.DEVICE,
        "token": "good",
        "release_keys": [world.RELEASE.public],
        "clock": ScaledClock(),
        "random": Random(1),
    }
    if "state_dir" not in changes:
        arguments["flash"] = flash if flash is not None else MemoryFlash()
    return DeviceClient(**{**arguments, **changes})


@asynccontextmanager
async def running(client: DeviceClient) -> AsyncIterator[DeviceClient]:
    async with client:
        task = asyncio.create_task(client.run())
        try:
            yield client
            client.stop()
            async with asyncio.timeout(20):
                await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class TestAlerts:
    @pytest.mark.parametrize(("transport", "encoding"), WAYS)
    async def test_they_are_handed_over_in_order_and_acknowledged(self, gateway, transport, encoding):
        gateway.publish("ops", *(f"old {n}" for n in range(100)))
        application = Application()
        client = device(gateway, on_alert=application, transport=transport, encoding=encoding)
        async with running(client):
            await application.until(100)
            gateway.publish("ops", "new")
            await application.until(101)
            await gateway.until(lambda: gateway.channels["ops"].acked == 101)
        assert application.texts == [*(f"old {n}" for n in range(100)), "new"]
        assert gateway.connections == 1

    @pytest.mark.parametrize(("transport", "encoding"), WAYS)
    async def test_a_restarted_device_goes_on_where_it_was(self, gateway, tmp_path, transport, encoding):
        gateway.publish("ops", "1", "2")
        first, second = Application(), Application()
        for application, more in ((first, ()), (second, ("3", "4"))):
            gateway.publish("ops", *more)
            client = device(
                gateway, state_dir=tmp_path, on_alert=application, transport=transport, encoding=encoding
            )
            async with running(client):
                await application.until(2)
        assert first.texts + second.texts == ["1", "2", "3", "4"]
        hellos = gateway.said(Hello)
        assert hellos[1].positions == {"ops": Position(EPOCH, 2)}
        assert hellos[0].boot_id != hellos[1].boot_id
        assert (hellos[0].root_version, hellos[1].root_version) == (0, 1)

    @pytest.mark.parametrize(("transport", "encoding"), WAYS)
    async def test_a_bad_one_is_nacked_and_the_rest_comes(self, gateway, transport, encoding):
        gateway.publish("ops", "1")
        gateway.publish("ops", "forged", key=world.STRANGER)
        gateway.publish("ops", "3")
        application = Application()
        async with running(device(gateway, on_alert=application, transport=transport, encoding=encoding)):
            await application.until(2)
            await gateway.until(lambda: gateway.channels["ops"].acked == 3)
            await gateway.until(lambda: gateway.said(Nack))
        assert application.texts == ["1", "3"]
        assert gateway.said(Nack) == [Nack("ops", EPOCH, 2, "unknown_key")]

    @pytest.mark.parametrize("transport", ["websocket", "longpoll"])
    async def test_they_wait_unacknowledged_for_the_root_document(self, gateway, transport):
        gateway.has_root = False
        gateway.publish("ops", "1")
        application = Application()
        async with running(device(gateway, on_alert=application, transport=transport)) as client:
            await gateway.until(lambda: gateway.connections)
            while not client.core.is_holding:
                await asyncio.sleep(0)
            assert gateway.channels["ops"].acked == 0
            gateway.has_root = True
            client.set_attributes({"model": "tc3"})  # says hello anew
            await application.until(1)
        assert application.texts == ["1"]
        assert gateway.said(Hello)[-1].attributes == {"model": "tc3"}

    @pytest.mark.parametrize("transport", ["websocket", "longpoll"])
    async def test_a_slow_application_closes_the_window_and_gets_everything(self, gateway, transport):
        gateway.publish("ops", *(str(n) for n in range(40)))
        application = Application()
        application.gate.clear()
        limits = ClientLimits(inbox=InboxLimits(alerts_max=8))
        async with running(device(gateway, on_alert=application, transport=transport, limits=limits)):
            await gateway.until(lambda: any(ack.window == 0 for ack in gateway.said(Ack)))
            assert gateway.channels["ops"].acked <= 8
            application.gate.set()
            await application.until(40)
        assert application.texts == [str(n) for n in range(40)]
        assert gateway.connections == 1


class TestHandler:
    async def test_one_that_raises_is_called_again_and_keeps_its_order(self, gateway):
        gateway.publish("ops", "1", "2", "3")
        application = Application()
        application.bad = ["2", "2"]
        async with running(device(gateway, on_alert=application)):
            await application.until(3)
        assert application.texts == ["1", "2", "3"]
        assert [alert.redelivered for alert in application.alerts] == [False, True, False]

    async def test_the_third_time_the_alert_is_a_dead_letter_and_nacked(self, gateway):
        gateway.publish("ops", "1", "2")
        application = Application()
        application.bad = ["1"] * 3
        async with running(device(gateway, on_alert=application)) as client:
            await application.until(1)
            await gateway.until(lambda: gateway.said(Nack))
            [letter] = client.inbox.dead_letters()
        assert application.texts == ["2"]
        assert (letter.code, letter.alert.text) == ("handler_failed", "1")
        assert gateway.said(Nack) == [Nack("ops", EPOCH, 1, "handler_failed")]

    async def test_one_that_awaits_something_cancelled_counts_as_one_that_raised(self, gateway):
        gateway.publish("ops", "1")
        calls = []

        async def handler(alert: ReceivedAlert) -> None:
            calls.append(alert.redelivered)
            if len(calls) == 1:
                task = asyncio.create_task(asyncio.sleep(60))
                task.cancel()
                await task

        async with running(device(gateway, on_alert=handler)) as client:
            while calls != [False, True] or len(client.inbox):
                await asyncio.sleep(0)


class Counting:
    """An application that notes, in its alert's transaction, the order in which alerts took effect."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.client: DeviceClient | None = None
        self.is_done = asyncio.Event()

    async def __call__(self, alert: ReceivedAlert) -> None:
        assert self.client is not None
        with self.client.inbox.transaction() as transaction:
            order = transaction.get(alert.channel) or []
            assert isinstance(order, list)
            transaction.put(alert.channel, [*order, alert.text])
        if sum(len(order) for order in self.effects().values()) >= self._total:
            self.is_done.set()

    def effects(self) -> dict[str, Any]:
        assert self.client is not None
        return dict(self.client.inbox.values())


class TestPowerLoss:
    @pytest.mark.parametrize("transport", ["websocket", "longpoll"])
    async def test_every_alert_takes_effect_exactly_once_in_order(self, gateway, transport):
        """The power goes again and again, at any byte, until everything is done (P2)."""
        random = Random(7)
        flash = MemoryFlash()
        expected = [str(n) for n in range(30)]
        gateway.publish("ops", *expected)
        gateway.publish("lab", *expected)
        losses = 0
        while True:
            flash.set_energy(random.randrange(200, 4_000))
            application = Counting(total=60)
            application.client = client = device(gateway, flash, on_alert=application, transport=transport)
            try:
                async with client:
                    run = asyncio.create_task(client.run())
                    done = asyncio.create_task(application.is_done.wait())
                    await asyncio.wait({run, done}, return_when=asyncio.FIRST_COMPLETED)
                    done.cancel()
                    flash.set_energy(None)
                    client.stop()
                    await run
                    effects = application.effects()
                break
            except PowerLossError:
                losses += 1
                flash = flash.after_power_loss(random)
        assert effects == {"ops": expected, "lab": expected}
        assert losses > 3


class TestReconnect:
    async def test_a_cut_connection_is_made_again_and_nothing_is_missed(self, gateway):
        application = Application()
        async with running(device(gateway, on_alert=application, transport="websocket")) as client:
            for n in range(5):
                await client.wait_connected()
                gateway.publish("ops", str(n))
                await application.until(n + 1)
                gateway.drop()
                count = n + 2
                await gateway.until(lambda: gateway.connections == count)  # noqa: B023
        assert application.texts == ["0", "1", "2", "3", "4"]

    async def test_silence_ends_the_connection(self, gateway):
        gateway.pings = False
        async with running(device(gateway, transport="websocket")) as client:
            await gateway.until(lambda: gateway.connections == 2)
            assert client.status.last_ending is not None
            assert "silent for 62.5 s" in client.status.last_ending

    @pytest.mark.parametrize("transport", ["websocket", "longpoll"])
    async def test_heartbeats_keep_a_quiet_connection(self, gateway, transport):
        async with running(device(gateway, transport=transport)):
            await asyncio.sleep(3 * 62.5 / FACTOR)
        assert gateway.connections == 1

    @pytest.mark.parametrize("transport", ["websocket", "longpoll"])
    async def test_goaway_names_the_time(self, gateway, transport):
        async with running(device(gateway, transport=transport)) as client:
            await client.wait_connected()
            started = client.status.connected_at
            gateway.send(Goaway(int(CloseCode.SHUTDOWN), 50))
            await gateway.until(lambda: gateway.connections == 2)
            await client.wait_connected()
            assert started is not None
            assert client.status.connected_at is not None
            assert client.status.connected_at - started >= 50

    @pytest.mark.parametrize("path", ["connect", "hello"])
    async def test_retry_after_names_the_time(self, gateway, path):
        gateway.answers[f"/v1/device/{path}"] = [(503, {"Retry-After": "50"})]
        transport = "websocket" if path == "connect" else "longpoll"
        clock = ScaledClock()
        started = clock.monotonic()
        async with running(device(gateway, transport=transport)) as client:
            await client.wait_connected()
        assert clock.monotonic() - started >= 50

    async def test_a_poll_without_a_session_says_hello_again(self, gateway):
        application = Application()
        async with running(device(gateway, on_alert=application, transport="longpoll")) as client:
            await client.wait_connected()
            gateway.sessions.clear()
            gateway.publish("ops", "1")
            await application.until(1)
        assert gateway.connections == 2


class TestRefusedCredential:
    @pytest.mark.parametrize("transport", ["websocket", "longpoll"])
    async def test_the_device_waits_until_it_is_given_another(self, gateway, transport):
        async with running(device(gateway, token="bad", transport=transport)) as client:
            await gateway.until(lambda: gateway.requests)
            await asyncio.sleep(60 / FACTOR)
            assert len(gateway.requests) == 1, "an hour at least"
            client.set_token("good")
            await client.wait_connected()

    async def test_or_until_the_function_gives_another(self, gateway):
        tokens = ["bad"]

        async def token() -> str:
            return tokens[-1]

        async with running(device(gateway, token=token)) as client:
            await gateway.until(lambda: gateway.requests)
            tokens.append("good")
            await client.wait_connected()

    async def test_a_revoked_session_is_one(self, gateway):
        async with running(device(gateway, transport="websocket")) as client:
            await client.wait_connected()
            gateway.tokens = {"better"}
            await gateway.close(CloseCode.CREDENTIAL_REVOKED)
            await gateway.until(lambda: not gateway.sessions)
            await asyncio.sleep(60 / FACTOR)
            assert len(gateway.requests) == 1
            client.set_token(lambda: "better")
            await client.wait_connected()

    async def test_a_token_function_that_raises_is_asked_again(self, gateway):
        calls = []

        def token() -> str:
            calls.append(1)
            if len(calls) < 3:
                raise OSError("no modem")
            return "good"

        async with running(device(gateway, token=token)) as client:
            await client.wait_connected()

    async def test_a_token_with_a_line_break_never_reaches_a_header(self, gateway):
        async with running(device(gateway, token="good\r\nX: y")) as client:
            while client.status.last_ending is None:
                await asyncio.sleep(0)
            assert "printable" in client.status.last_ending
        assert gateway.requests == []


class TestTransportChoice:
    async def test_long_poll_where_a_websocket_cannot_be_had_and_back(self, gateway):
        gateway.answers["/v1/device/connect"] = [(400, {})] * 4
        application = Application()
        limits = ClientLimits(
            choice=ChoiceLimits(return_s=60), reconnect=ReconnectLimits(base_s=0.1, cap_s=0.1)
        )
        async with running(device(gateway, on_alert=application, limits=limits)) as client:
            await client.wait_connected()
            assert client.status.transport == "longpoll"
            gateway.publish("ops", "1")
            await application.until(1)
            await gateway.until(lambda: gateway.sessions and gateway.sessions[-1].websocket is not None)
            gateway.publish("ops", "2")
            await application.until(2)
            assert client.status.transport == "websocket"
        assert application.texts == ["1", "2"]
        assert not gateway.answers["/v1/device/connect"], "one trial in between failed"

    async def test_a_gateway_that_is_down_is_not_the_websockets_fault(self, gateway):
        gateway.answers["/v1/device/connect"] = [(502, {})] * 6
        async with running(device(gateway)) as client:
            await client.wait_connected()
            assert client.status.transport == "websocket"


class TestUpdates:
    @pytest.mark.parametrize(("transport", "encoding"), WAYS)
    async def test_a_signed_update_is_installed_confirmed_and_reported(
        self, gateway, tmp_path, transport, encoding
    ):
        image = bytes(range(256)) * 1_000
        digest = hashlib.sha256(image).hexdigest()
        gateway.artifacts[digest] = image
        envelope = world.envelope(image, uri=f"/v1/device/artifacts/{digest}")

        def client() -> DeviceClient:
            return device(
                gateway,
                state_dir=tmp_path / "state",
                transport=transport,
                encoding=encoding,
                vendor=world.VENDOR,
                device_class=world.CLASS,
                installer=SlotInstaller(tmp_path / "slots"),
            )

        def states() -> list[str]:
            return [report.state for report in gateway.said(Report)]

        async with client() as first:
            run = asyncio.create_task(first.run())
            await first.wait_connected()
            gateway.send(update(envelope))
            with pytest.raises(RebootRequiredError):
                async with asyncio.timeout(30):
                    await run
        assert Ack(deployment=world.deployment(1)) in gateway.seen
        assert states()[-1] == "rebooting"
        async with running(client()):
            await gateway.until(lambda: "committed" in states())
        steps = ["received", "verified", "downloading", "installing", "rebooting", "committed"]
        assert [step for step in steps if step in states()] == list(dict.fromkeys(states()))
        running_now = SlotInstaller(tmp_path / "slots").running()["main"]
        assert (running_now.sequence, running_now.is_confirmed) == (5, True)
        installed = gateway.said(Hello)[-1].installed["main"]
        assert installed.sequence in (0, 5)

    async def test_a_report_is_repeated_until_it_is_recorded(self, gateway):
        gateway.records = False
        async with running(device(gateway)) as client:
            await client.wait_connected()
            gateway.send(Cancel(world.deployment(9)))
            await gateway.until(lambda: len(gateway.said(Report)) == 2)
            gateway.records = True
            await gateway.until(lambda: len(gateway.said(Report)) == 3)
            while client.updates.pending_reports():
                await asyncio.sleep(0)
        assert len({report.id for report in gateway.said(Report)}) == 1


def update(envelope: bytes) -> Update:
    manifest = world.manifest_of(envelope)
    directive = Directive(
        fleet=world.FLEET,
        device=world.DEVICE,
        enrolment=world.ENROLMENT,
        deployment=world.deployment(1),
        manifest_digest=manifest.digest,
        sequence=10,
        issued_at=world.NOW_MS - 1,
        expires_at=world.NOW_MS + world.HOUR_MS,
        install_by=world.NOW_MS + world.HOUR_MS,
        component=world.ChannelName("main"),
    )
    return Update(world.deployment(1), sign_directive(directive, world.DIRECTIVE), envelope)


class TestExample:
    async def test_the_docstrings_example_runs(self, gateway, tmp_path, monkeypatch, capsys):
        text = inspect.getsource(DeviceClient)
        source = re.search(r"RebootRequiredError::\n\n(.*?)\n    Args:", text, re.DOTALL)
        assert source is not None
        code = textwrap.dedent(source[1]).replace("https://gateway.example", gateway.url)
        code = code.replace('"tc3-0001"', f'"{world.DEVICE}"').replace("asyncio.run(main())", "")
        assert len(code.strip().splitlines()) <= 30
        (tmp_path / "token").write_text("good\n")
        (tmp_path / "release.pub.pem").write_bytes(world.RELEASE.public.to_pem())
        monkeypatch.chdir(tmp_path)
        gateway.publish("ops", "hello")
        names: dict[str, Any] = {}
        exec(compile(code, "example", "exec"), names)
        task = asyncio.create_task(names["main"]())
        await gateway.until(lambda: gateway.channels["ops"].acked == 1)
        output = ""
        while "ops #1: hello" not in output:
            await asyncio.sleep(0)
            output += capsys.readouterr().out
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class TestArguments:
    @pytest.mark.parametrize(
        "changes",
        [
            {"url": "gateway"},
            {"fleet": "no spaces"},
            {"device_id": "~own"},
            {"store": object()},
            {"installer": object()},
            {"boot_id": b"short"},
            {"vendor": b"short", "device_class": "x"},
            {"attributes": {"a": "x" * 5_000}},
        ],
    )
    async def test_what_cannot_be_is_refused_before_anything_happens(self, gateway, changes):
        with pytest.raises(ValueError):
            device(gateway, **changes)

    async def test_parts_are_there_only_inside_async_with(self, gateway):
        with pytest.raises(RuntimeError):
            _ = device(gateway).inbox


class TestTickets:
    @pytest.mark.parametrize(("transport", "encoding"), WAYS)
    async def test_the_newest_is_shown_on_coming_back_and_after_a_power_cut(
        self, gateway, transport, encoding
    ):
        flash = MemoryFlash()
        gateway.ticket = b"first"
        client = device(gateway, flash, transport=transport, encoding=encoding)
        async with running(client):
            await client.wait_connected()
            gateway.send(Ticket(b"second"))
            gateway.publish("ops", "after it")
            await gateway.until(lambda: gateway.channels["ops"].acked == 1)
            await gateway.close(CloseCode.SHUTDOWN)
            await gateway.until(lambda: gateway.connections == 2)
            await client.wait_connected()
        assert gateway.tickets_shown[0] is None
        assert gateway.tickets_shown[1] == b"second"
        assert all(hello.ticket is None for hello in gateway.said(Hello))  # the request has shown it
        again = device(gateway, MemoryFlash(flash.files), transport=transport, encoding=encoding)
        async with running(again):
            await again.wait_connected()
        assert gateway.tickets_shown[2] == b"first"

    @pytest.mark.parametrize("end", [CloseCode.CREDENTIAL_REVOKED, 401, 403])
    async def test_a_refused_credential_drops_it(self, gateway, end):
        gateway.ticket = b"ticket"
        client = device(gateway, transport="websocket")
        async with running(client):
            await client.wait_connected()
            gateway.ticket = None
            if end < 1000:
                gateway.answers["/v1/device/connect"] = [(int(end), {})]
                await gateway.close(CloseCode.SHUTDOWN)
                await gateway.until(lambda: len(gateway.tickets_shown) == 2)
            else:
                await gateway.close(end)
            client.retry_now()
            await gateway.until(lambda: gateway.connections == 2)
        assert gateway.tickets_shown[-1] is None

    async def test_a_busy_gateway_costs_no_ticket(self, gateway):
        gateway.ticket = b"ticket"
        client = device(gateway, transport="websocket")
        async with running(client):
            await client.wait_connected()
            gateway.answers["/v1/device/connect"] = [(503, {"Retry-After": "7"})]
            await gateway.close(CloseCode.SHUTDOWN)
            await gateway.until(lambda: gateway.connections == 2)
        assert gateway.tickets_shown == [None, b"ticket", b"ticket"]

    async def test_another_token_is_not_shown_with_it(self, gateway):
        gateway.ticket = b"ticket"
        gateway.tokens.add("better")
        client = device(gateway, transport="websocket")
        async with running(client):
            await client.wait_connected()
            client.set_token("better")
            await gateway.close(CloseCode.SHUTDOWN)
            await gateway.until(lambda: gateway.connections == 2)
        assert gateway.tickets_shown == [None, None]


class TestUplinks:
    @pytest.mark.parametrize(("transport", "encoding"), WAYS)
    async def test_it_is_said_once_and_forgotten_when_it_is_recorded(self, gateway, transport, encoding):
        flash = MemoryFlash()
        client = device(gateway, flash, transport=transport, encoding=encoding)
        async with running(client):
            first = client.uplink(b"\x00\xff")
            await client.wait_connected()
            second = client.uplink("8.25 bar")
            await gateway.until(lambda: len(gateway.said(Uplink)) == 2)
            async with asyncio.timeout(20):
                while client.core.uplinks.waiting:
                    await asyncio.sleep(0)
        assert gateway.said(Uplink) == [
            Uplink(first, "application/octet-stream", b"\x00\xff"),
            Uplink(second, "text/plain; charset=utf-8", b"8.25 bar"),
        ]
        again = device(gateway, MemoryFlash(flash.files), transport=transport)
        async with again:
            assert again.core.uplinks.waiting == []

    async def test_one_that_nobody_answers_is_repeated_with_its_id(self, gateway):
        gateway.records = False
        client = device(gateway, transport="websocket")
        async with running(client):
            id_ = client.uplink(b"x")
            await gateway.until(lambda: len(gateway.said(Uplink)) >= 2)
            gateway.records = True
            await gateway.until(lambda: len(gateway.said(Uplink)) >= 3)
        assert {uplink.id for uplink in gateway.said(Uplink)} == {id_}

    async def test_what_the_contract_does_not_carry_is_the_callers_mistake(self, gateway):
        async with device(gateway) as client:
            with pytest.raises(ValueError, match="content_type"):
                client.uplink(b"", content_type="text/plain\r\nX: y")
            with pytest.raises(ValueError, match="65537"):
                client.uplink(bytes(65537))
            assert client.core.uplinks.waiting == []
