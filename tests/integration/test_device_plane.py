"""The device plane of a running gateway: long-poll over real HTTP, and what ends or changes a session.

The device says only what a test has it say (``tests.harness.devices``), so nothing is repeated, acknowledged
or come back for by itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import (
    Ack,
    Advance,
    Alert,
    Cancel,
    Error,
    Goaway,
    Nack,
    Position,
    Recorded,
    Report,
    Roots,
    Subscriptions,
    Update,
    Welcome,
)
from tests.harness.devices import Ended, PollDevice, Refused, SocketDevice, alert_data
from tests.harness.gateway import ApiError, GatewayProcess
from tests.harness.nursery import Nursery
from tests.harness.operator import Operator
from tests.integration.origins.process import Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLEET = "acme"
WAIT_S = 20
LONG_S = 30  # a poll that waits for something to happen
ENCODINGS = pytest.mark.parametrize("encoding", ["cbor", "json"])


class Plane:
    """A gateway, and devices that its origin knows."""

    def __init__(self, gateway: GatewayProcess, origin: Origin) -> None:
        self.gateway = gateway
        self.operator = Operator(gateway)
        self._origin = origin
        self._verdicts: dict[str, dict[str, Any]] = {}

    async def know(self, device: str, *channels: str, update: str | None = None) -> None:
        """Have the origin know ``device``; its token is its name."""
        granted = [{"name": channel, "kind": "alert"} for channel in channels]
        if update is not None:
            granted.append({"name": update, "kind": "update"})
        self._verdicts[device] = {"device_id": device, "fleet": FLEET, "channels": granted}
        await self._origin.control(tokens={name: {"json": one} for name, one in self._verdicts.items()})

    def socket(self, device: str, encoding: str = "cbor") -> SocketDevice:
        return SocketDevice(self.gateway.url, fleet=FLEET, device=device, encoding=encoding)

    def poll(self, device: str, encoding: str = "cbor") -> PollDevice:
        return PollDevice(self.gateway.url, fleet=FLEET, device=device, encoding=encoding)

    async def publish(self, channel: str, *texts: str) -> list[dict[str, Any]]:
        path = f"/channels/{channel}/alerts"
        return [await self.gateway.call("POST", path, json={"text": text}) for text in texts]

    async def stored(self, device: str, channel: str) -> int:
        """Return the position that the gateway has committed."""
        page = await self.gateway.call("GET", f"/devices/{device}/subscriptions")
        offset: int = next(item["offset"] for item in page["items"] if item["channel"] == channel)
        return offset

    async def delivery(self, alert: dict[str, Any], device: str) -> dict[str, Any]:
        page = await self.gateway.call("GET", f"/alerts/{alert['id']}/deliveries")
        found: dict[str, Any] = next(item for item in page["items"] if item["device_id"] == device)
        return found

    async def sent_at(self, alert: dict[str, Any], device: str) -> object:
        return (await self.delivery(alert, device))["sent_at"]

    async def rollout(self, channel: str, sequence: int) -> dict[str, Any]:
        release = await self.operator.release(os.urandom(64), version=str(sequence), sequence=sequence)
        return await self.operator.rollout(release, channel)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> AsyncIterator[Plane]:
    folder: Path = tmp_path_factory.mktemp("plane")
    settings = {
        "device": {"wheel_s": 0.05},
        "updates": {"redeliver_min_s": 3.0, "redeliver_max_s": 3.0},
        "identity": {"positive_cache_s": 0.1, "negative_cache_s": 0.1},
    }
    with Origin("forward_auth") as origin:
        async with GatewayProcess(
            folder,
            fleet=FLEET,
            forward_auth_url=f"{origin.url}/auth",
            settings=settings,
            nursery=nursery,
        ) as gateway:
            plane = Plane(gateway, origin)
            await plane.operator.trust()
            yield plane


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.02)


def texts(alerts: list[Alert]) -> list[bytes]:
    return [alert_data(alert.body) for alert in alerts]


async def refusal_of(work: Awaitable[object]) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        await work
    return caught.value.status, caught.value.code


class TestLongPoll:
    @ENCODINGS
    async def test_the_cursor_acknowledges_what_it_came_with(self, plane, encoding):
        name, channel = f"cursor-{encoding}", f"cursor.{encoding}"
        await plane.know(name, channel)
        async with plane.poll(name, encoding) as device:
            welcome, roots = await device.begin()
            assert isinstance(welcome, Welcome)
            assert isinstance(roots, Roots)
            assert welcome.heads[channel].offset == 0
            published = await plane.publish(channel, "one", "two", "three")
            first = await device.poll()
            assert first.status == 200
            assert texts(first.of(Alert)) == [b"one", b"two", b"three"]
            assert [alert.offset for alert in first.of(Alert)] == [1, 2, 3]
            assert await plane.stored(name, channel) == 0
            await until(lambda: plane.sent_at(published[0], name))
            assert (await plane.delivery(published[0], name))["received_at"] is None

            nothing = await device.poll(first.cursor)
            assert (nothing.status, nothing.messages, nothing.cursor) == (204, [], None)
            assert await plane.stored(name, channel) == 3
            for alert in published:
                assert (await plane.delivery(alert, name))["received_at"] is not None

    async def test_the_same_cursor_reads_again_and_skips_nothing(self, plane):
        await plane.know("again", "again.a", "again.b")
        async with plane.poll("again") as device:
            await device.begin()
            await plane.publish("again.a", "a1")
            begun = await device.poll()
            await plane.publish("again.b", "b1", "b2")
            second = await device.poll(begun.cursor)
            assert texts(second.of(Alert)) == [b"b1", b"b2"]
            await plane.publish("again.a", "a2")  # the answer before this was lost on the way
            third = await device.poll(begun.cursor)
            assert sorted(texts(third.of(Alert))) == [b"a2", b"b1", b"b2"]
            assert [alert.offset for alert in third.of(Alert) if alert.channel == "again.b"] == [1, 2]
            assert (await device.poll(third.cursor)).status == 204
            assert await plane.stored("again", "again.a") == 2
            assert await plane.stored("again", "again.b") == 2

    async def test_a_poll_without_a_cursor_reads_from_where_the_device_is_known_to_be(self, plane):
        await plane.know("bare", "bare")
        async with plane.poll("bare") as device:
            await device.begin()
            [first, _] = await plane.publish("bare", "one", "two")
            assert texts((await device.poll()).of(Alert)) == [b"one", b"two"]
            assert texts((await device.poll()).of(Alert)) == [b"one", b"two"]
            assert (
                await device.acknowledge(Ack(positions={"bare": Position(first["epoch"], first["offset"])}))
                == []
            )
            assert texts((await device.poll()).of(Alert)) == [b"two"]

    async def test_a_poll_waits_for_what_is_published(self, plane):
        await plane.know("waits", "waits")
        async with plane.poll("waits") as device:
            await device.begin()
            poll = asyncio.create_task(device.poll(wait_s=LONG_S))
            await plane.publish("waits", "now")
            async with asyncio.timeout(WAIT_S):
                assert texts((await poll).of(Alert)) == [b"now"]

    async def test_a_second_poll_ends_the_first_with_204_and_gets_what_comes(self, plane):
        await plane.know("second", "second")
        async with plane.poll("second") as device:
            await device.begin()
            polls = [asyncio.create_task(device.poll(wait_s=LONG_S)) for _ in range(2)]
            async with asyncio.timeout(WAIT_S):
                done, [other] = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
            [ended] = done
            assert (await ended).status == 204
            await plane.publish("second", "for the one that is left")
            async with asyncio.timeout(WAIT_S):
                assert texts((await other).of(Alert)) == [b"for the one that is left"]

    async def test_without_a_hello_every_path_asks_for_one(self, plane):
        await plane.know("mute", "mute")
        async with plane.poll("mute") as device:
            report = Report(id=bytes(16), deployment=bytes(16), seq=1, state="verified")
            for request in (
                device.poll(),
                device.acknowledge(Ack(positions={"mute": Position(1, 1)})),
                device.report(report),
            ):
                assert await refusal_of(request) == (409, "hello_required")
        with pytest.raises(ApiError, match="404"):
            await plane.gateway.call("GET", "/devices/mute")

    async def test_what_is_no_cursor_is_refused_and_the_session_goes_on(self, plane):
        await plane.know("garbled", "garbled")
        async with plane.poll("garbled") as device:
            await device.begin()
            await plane.publish("garbled", "one")
            polled = await device.poll()
            assert polled.cursor is not None
            status, _ = await refusal_of(device.poll(polled.cursor[:-2]))
            assert status == 400
            assert await plane.stored("garbled", "garbled") == 0
            assert (await device.poll(polled.cursor)).status == 204

    async def test_a_hello_with_a_position_is_an_acknowledgement(self, plane):
        await plane.know("told", "told")
        async with plane.poll("told") as device:
            await device.begin()
            [alert, _] = await plane.publish("told", "one", "two")
            await device.poll()
            await device.begin(positions={"told": Position(alert["epoch"], 1)})
            assert await plane.stored("told", "told") == 1
            assert texts((await device.poll()).of(Alert)) == [b"two"]


class TestAcks:
    @ENCODINGS
    async def test_an_ack_is_answered_when_it_is_stored(self, plane, encoding):
        name, channel = f"acks-{encoding}", f"acks.{encoding}"
        await plane.know(name, channel)
        async with plane.poll(name, encoding) as device:
            await device.begin()
            published = await plane.publish(channel, "one", "two")
            await device.poll()
            epoch = published[0]["epoch"]
            assert await device.acknowledge(Ack(positions={channel: Position(epoch, 2)})) == []
            assert await plane.stored(name, channel) == 2

    async def test_a_nack_is_a_dead_letter_and_an_advance_in_its_place(self, plane):
        await plane.know("nacks", "nacks")
        async with plane.poll("nacks") as device:
            await device.begin()
            bad, good = await plane.publish("nacks", "bad", "good")
            await device.poll()
            assert await device.acknowledge(Nack("nacks", bad["epoch"], 1, "cannot_read")) == []
            assert (await plane.delivery(bad, "nacks"))["dead_letter"] == "nacked"
            again = await device.poll()
            [advance] = again.of(Advance)
            assert (advance.first, advance.last, advance.reason) == (1, 1, "dead_letter")
            assert texts(again.of(Alert)) == [b"good"]
            await device.poll(again.cursor)
            assert (await plane.delivery(good, "nacks"))["dead_letter"] is None
            letters = await plane.gateway.call("GET", "/dead-letters")
            [letter] = [item for item in letters["items"] if item["device_id"] == "nacks"]
            assert (letter["offset"], letter["code"]) == (1, "cannot_read")

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            (lambda epoch: {"wrong": Position(epoch, 3)}, "bad_position"),
            (lambda epoch: {"wrong": Position(epoch ^ 1, 1)}, "bad_position"),
            (lambda epoch: {"elsewhere": Position(epoch, 1)}, "unknown_channel"),
        ],
        ids=["above the head", "another epoch", "not its channel"],
    )
    async def test_a_position_that_cannot_be_changes_nothing(self, plane, change, code):
        await plane.know("wrong", "wrong")
        async with plane.poll("wrong") as device:
            await device.begin()
            if await plane.stored("wrong", "wrong") == 0:
                await plane.publish("wrong", "only one")
            head = (await plane.gateway.call("GET", "/channels/wrong"))["head"]
            before = await plane.stored("wrong", "wrong")
            epoch = (await plane.gateway.call("GET", "/channels/wrong"))["epoch"]
            positions = {name: Position(at.epoch, at.offset + head) for name, at in change(epoch).items()}
            [error] = await device.acknowledge(Ack(positions=positions))
            assert isinstance(error, Error)
            assert (error.code, error.ref) == (code, next(iter(positions)))
            assert await plane.stored("wrong", "wrong") == before


class TestUpdates:
    async def test_an_update_comes_until_it_is_acknowledged_and_reports_until_recorded(self, plane):
        await plane.know("updates", update="fw.one")
        async with plane.poll("updates") as device:
            await device.begin()
            rollout = await plane.rollout("fw.one", 2)
            polled = await device.poll(wait_s=LONG_S)
            [update] = polled.of(Update)
            assert (await device.poll(polled.cursor)).status == 204, "not before its time comes"
            again = await device.poll(polled.cursor, wait_s=LONG_S)
            [repeated] = again.of(Update)
            assert (repeated.deployment, repeated.attempt) == (update.deployment, 2)

            assert await device.acknowledge(Ack(deployment=update.deployment)) == []
            path = f"/deployments/{UUID(bytes=update.deployment)}"
            deployment = await plane.gateway.call("GET", path)
            assert (deployment["state"], deployment["rollout_id"]) == ("received", rollout["id"])

            first = Report(id=os.urandom(16), deployment=update.deployment, seq=1, state="verified")
            last = Report(
                id=os.urandom(16), deployment=update.deployment, seq=2, state="rejected", code="rollback"
            )
            stranger = Report(id=os.urandom(16), deployment=bytes(16), seq=1, state="verified")
            assert await device.report(first, first) == [
                Recorded(first.id, "recorded"),
                Recorded(first.id, "duplicate"),
            ]
            assert (await plane.gateway.call("GET", path))["state"] == "verified"
            assert await device.report(first, last, stranger) == [
                Recorded(first.id, "duplicate"),
                Recorded(last.id, "recorded"),
                Recorded(stranger.id, "refused", "unknown_deployment"),
            ]
            deployment = await plane.gateway.call("GET", path)
            assert (deployment["state"], deployment["code"]) == ("rejected", "rollback")
            assert deployment["sends"] == 2
            assert (await device.poll()).status == 204

    async def test_an_abort_is_told_as_a_cancel(self, plane):
        await plane.know("aborts", update="fw.two")
        async with plane.poll("aborts", "json") as device:
            await device.begin()
            rollout = await plane.rollout("fw.two", 2)
            [update] = (await device.poll(wait_s=LONG_S)).of(Update)
            await device.acknowledge(Ack(deployment=update.deployment))
            poll = asyncio.create_task(device.poll(wait_s=LONG_S))
            await plane.gateway.call("POST", f"/rollouts/{rollout['id']}/abort")
            async with asyncio.timeout(WAIT_S):
                polled = await poll
            assert polled.of(Cancel) == [Cancel(update.deployment)]
            report = Report(id=os.urandom(16), deployment=update.deployment, seq=1, state="cancelled")
            assert await device.report(report) == [Recorded(report.id, "recorded")]
            deployment = await plane.gateway.call("GET", f"/deployments/{UUID(bytes=update.deployment)}")
            assert (deployment["state"], deployment["is_cancelling"]) == ("cancelled", False)


class TestOneSession:
    """One live session a device: the newest wins."""

    async def test_a_newer_socket_closes_the_older_with_4004(self, plane):
        await plane.know("twice", "twice")
        async with plane.socket("twice") as old, plane.socket("twice", "json") as new:
            await old.begin()
            await new.begin()
            assert await old.ended() == CloseCode.REPLACED
            await plane.publish("twice", "to the newer")
            assert texts([await new.next(Alert)]) == [b"to the newer"]

    async def test_a_connection_that_says_no_hello_displaces_nobody(self, plane):
        await plane.know("mutes", "mutes")
        async with plane.socket("mutes") as old, plane.socket("mutes"):
            await old.begin()
            await plane.publish("mutes", "still here")
            assert texts([await old.next(Alert)]) == [b"still here"]

    async def test_a_poll_displaces_a_socket_and_a_socket_a_poll(self, plane):
        await plane.know("either", "either")
        async with plane.socket("either") as socket, plane.poll("either") as polled:
            await socket.begin()
            await polled.begin()
            assert await socket.ended() == CloseCode.REPLACED
            poll = asyncio.create_task(polled.poll(wait_s=LONG_S))
            async with plane.socket("either") as newest:
                await newest.begin()
                async with asyncio.timeout(WAIT_S):
                    assert await refusal_of(poll) == (409, "hello_required")
                assert await refusal_of(polled.poll()) == (409, "hello_required")
                await plane.publish("either", "to the newest")
                assert texts([await newest.next(Alert)]) == [b"to the newest"]

    async def test_a_later_hello_replaces_the_polled_session(self, plane):
        await plane.know("rehello", "rehello")
        async with plane.poll("rehello") as first, plane.poll("rehello", "json") as second:
            await first.begin()
            poll = asyncio.create_task(first.poll(wait_s=LONG_S))
            await second.begin()
            async with asyncio.timeout(WAIT_S):
                assert await refusal_of(poll) == (409, "hello_required")


class TestCredit:
    async def test_a_window_in_json_is_never_overrun_and_never_closes(self, plane):
        await plane.know("window", "window")
        async with plane.socket("window", "json") as device:
            await device.begin(window=4)
            published = await plane.publish("window", *map(str, range(20)))
            epoch = published[0]["epoch"]
            received: list[Alert] = []
            while len(received) < 20:
                received.append(await device.next(Alert))
                if len(received) % 4 == 0:
                    # What is answered comes after what was sent before it: were there a fifth, it came first.
                    await device.send(Ack(positions={"nothing-of-mine": Position(1, 1)}))
                    message = await device.receive()
                    assert message == Error("unknown_channel", "nothing-of-mine")
                    await device.send(Ack(positions={"window": Position(epoch, len(received))}))
            assert [alert.offset for alert in received] == list(range(1, 21))
            assert texts(received) == [str(number).encode() for number in range(20)]
            await until(lambda: _is(plane.stored("window", "window"), 20))

    async def test_a_window_of_a_poll_bounds_a_page(self, plane):
        await plane.know("pages", "pages")
        async with plane.poll("pages", "json") as device:
            await device.begin(window=3)
            await plane.publish("pages", *map(str, range(7)))
            cursor, sizes, received = None, [], []
            while len(received) < 7:
                polled = await device.poll(cursor)
                cursor = polled.cursor
                sizes.append(len(polled.of(Alert)))
                received += texts(polled.of(Alert))
            assert sizes == [3, 3, 1]
            assert received == [str(number).encode() for number in range(7)]
            assert polled.of(Alert)[0].waiting == 0


class TestOperators:
    """What an operator changes while a device is connected."""

    @ENCODINGS
    async def test_a_subscription_comes_and_goes_on_a_socket(self, plane, encoding):
        name, channel = f"sub-{encoding}", f"extra.{encoding}"
        await plane.know(name, f"own.{encoding}")
        await plane.operator.channel(channel, "alert")
        await plane.publish(channel, "before")
        path = f"/devices/{name}/subscriptions/{channel}"
        async with plane.socket(name, encoding) as device:
            await device.begin()
            await plane.gateway.call("PUT", path)
            added = await device.next(Subscriptions)
            assert set(added.added) == {channel}
            assert added.added[channel].offset == 1, "it begins at the head"
            await plane.publish(channel, "after")
            alert = await device.next(Alert)
            assert (alert.channel, alert.offset, alert_data(alert.body)) == (channel, 2, b"after")

            await plane.gateway.call("DELETE", path)
            removed = await device.next(Subscriptions)
            assert (dict(removed.added), removed.removed) == ({}, (channel,))
            await plane.publish(channel, "no more")
            await plane.publish(f"own.{encoding}", "of its own")
            assert texts([await device.next(Alert)]) == [b"of its own"]

    async def test_a_subscription_comes_and_goes_between_polls(self, plane):
        await plane.know("sub-poll", "own.poll")
        await plane.operator.channel("extra.poll", "alert")
        path = "/devices/sub-poll/subscriptions/extra.poll"
        async with plane.poll("sub-poll") as device:
            await device.begin()
            poll = asyncio.create_task(device.poll(wait_s=LONG_S))
            await plane.gateway.call("PUT", path)
            async with asyncio.timeout(WAIT_S):
                polled = await poll
            [change] = polled.of(Subscriptions)
            assert set(change.added) == {"extra.poll"}
            await plane.publish("extra.poll", "here")
            polled = await device.poll(polled.cursor, wait_s=LONG_S)
            assert texts(polled.of(Alert)) == [b"here"]
            await plane.gateway.call("DELETE", path)
            polled = await device.poll(polled.cursor, wait_s=LONG_S)
            assert [change.removed for change in polled.of(Subscriptions)] == [("extra.poll",)]

    async def test_a_disabled_device_is_closed_with_4503_and_refused_until_it_is_enabled(self, plane):
        await plane.know("disabled", "disabled")
        await plane.know("disabled-poll", "disabled")
        async with plane.socket("disabled") as device, plane.poll("disabled-poll") as polled:
            await device.begin()
            await polled.begin()
            poll = asyncio.create_task(polled.poll(wait_s=LONG_S))
            for name in ("disabled", "disabled-poll"):
                await plane.gateway.call("PATCH", f"/devices/{name}", json={"is_enabled": False})
            assert await device.ended() == CloseCode.DEVICE_DISABLED
            async with asyncio.timeout(WAIT_S):
                assert (await refusal_of(poll))[0] in (403, 409)
            assert await refusal_of(polled.begin()) == (403, "device_disabled")
        async with plane.socket("disabled") as device:
            with pytest.raises(Ended) as ended:
                await device.begin()
        assert ended.value.code == CloseCode.DEVICE_DISABLED
        await plane.gateway.call("PATCH", "/devices/disabled", json={"is_enabled": True})
        async with plane.socket("disabled") as device:
            assert set((await device.begin()).heads) == {"disabled", "~disabled"}

    async def test_a_deleted_device_is_closed_with_4503_and_enrols_anew(self, plane):
        await plane.know("deleted", "deleted")
        async with plane.socket("deleted") as device:
            await device.begin()
            before = await plane.gateway.call("GET", "/devices/deleted")
            await plane.gateway.call("DELETE", "/devices/deleted")
            assert await device.ended() == CloseCode.DEVICE_DISABLED
        async with plane.socket("deleted") as device:
            await device.begin()
            after = await plane.gateway.call("GET", "/devices/deleted")
        assert after["enrolment_id"] != before["enrolment_id"]


class TestShutdown:
    async def test_sigterm_tells_every_device_to_come_back_and_commits_what_it_said(self, plane):
        for name in ("stop-cbor", "stop-json", "stop-poll"):
            await plane.know(name, "stop")
        async with AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(plane.socket(f"stop-{encoding}", encoding))
                for encoding in ("cbor", "json")
            ]
            for socket in sockets:
                await socket.begin()
            polled = await stack.enter_async_context(plane.poll("stop-poll"))
            await polled.begin()
            [published] = await plane.publish("stop", "the last")
            for socket in sockets:
                await socket.next(Alert)
                await socket.send(Ack(positions={"stop": Position(published["epoch"], 1)}))
            answer = await polled.poll()
            poll = asyncio.create_task(polled.poll(answer.cursor, wait_s=LONG_S))
            await until(lambda: _is(plane.stored("stop-poll", "stop"), 1))  # the poll is there, and waits

            status = asyncio.create_task(plane.gateway.stop())
            for socket in sockets:
                assert await socket.ended() == CloseCode.SHUTDOWN
            async with asyncio.timeout(WAIT_S):
                [goaway] = (await poll).of(Goaway)
                assert goaway.code == CloseCode.SHUTDOWN
                assert await status == 0
        await plane.gateway.start()
        for name in ("stop-cbor", "stop-json", "stop-poll"):
            assert await plane.stored(name, "stop") == 1


async def _is(value: Awaitable[int], expected: int) -> bool:
    return await value == expected
