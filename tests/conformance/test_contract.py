"""The gateway keeps the contract towards a device that was written from the CDDL alone.

The gateway is a real process; so is its origin. The client checks the contract as it reads: contiguous
offsets, one epoch, no more unacknowledged alerts than its window.
"""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.client import Client
from tests.harness.gateway import ApiError, GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")
ENCODINGS = ["cbor", "json"]


def client(gateway: GatewayProcess, device: str, **options: Any) -> Client:
    return Client(gateway.url, fleet="acme", device=device, token=device, **options)


async def publish(gateway: GatewayProcess, channel: str, text: str) -> dict[str, Any]:
    answer: dict[str, Any] = await gateway.call("POST", f"/channels/{channel}/alerts", json={"text": text})
    return answer


async def alerts(device: Client, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        return [await device.receive() for _ in range(count)]


async def delivery(gateway: GatewayProcess, alert_id: str, device: str) -> dict[str, Any]:
    """Return the facts of an alert for a device once the gateway knows that it is over."""
    async with asyncio.timeout(20):
        while True:
            page = await gateway.call("GET", f"/alerts/{alert_id}/deliveries")
            found: dict[str, Any] = next(item for item in page["items"] if item["device_id"] == device)
            if found["received_at"] is not None or found["dead_letter"] is not None:
                return found


async def test_the_client_knows_nothing_but_the_contract() -> None:
    source = (Path(__file__).parent / "client.py").read_text()
    assert len(source.splitlines()) < 200
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & {"device_sdk", "gateway", "firmware_sim", "tests"}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_an_acknowledged_alert_is_received_and_never_comes_again(
    gateway_process: GatewayProcess, encoding: str
) -> None:
    async with client(gateway_process, encoding, encoding=encoding) as device:
        assert device.welcome["heads"][encoding][1] == 0
        published = [await publish(gateway_process, encoding, f"n{n}") for n in (1, 2, 3)]
        received = await alerts(device, 3)
        assert [alert["offset"] for alert in received] == [1, 2, 3]
        assert [alert["data"] for alert in received] == [b"n1", b"n2", b"n3"]
        assert {alert["epoch"] for alert in received} == {published[0]["epoch"]}
        await device.ack()
        facts = await delivery(gateway_process, published[2]["id"], encoding)
        assert published[2]["accepted_at"] <= facts["received_at"]
        assert facts["dead_letter"] is None
        assert facts["attempts"] == 1
    async with client(gateway_process, encoding, encoding=encoding) as device:  # lost its flash
        await publish(gateway_process, encoding, "n4")
        assert [alert["data"] for alert in await alerts(device, 1)] == [b"n4"]


async def test_a_position_in_hello_is_an_acknowledgement(gateway_process: GatewayProcess) -> None:
    async with client(gateway_process, "twice") as device:
        first = await publish(gateway_process, "twice", "stored, and the ack was lost")
        await alerts(device, 1)
        positions = device.positions
    async with client(gateway_process, "twice", positions=positions) as device:
        facts = await delivery(gateway_process, first["id"], "twice")
        assert facts["received_at"] is not None
        await publish(gateway_process, "twice", "next")
        assert [alert["data"] for alert in await alerts(device, 1)] == [b"next"]


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_refused_alert_is_a_dead_letter_and_blocks_nothing(
    gateway_process: GatewayProcess, encoding: str
) -> None:
    name = f"nack-{encoding}"
    async with client(gateway_process, name, encoding=encoding) as device:
        bad = await publish(gateway_process, name, "bad")
        good = await publish(gateway_process, name, "good")
        refused, _ = await alerts(device, 2)
        await device.nack(refused, "cannot_read")
        assert (await delivery(gateway_process, bad["id"], name))["dead_letter"] == "nacked"
        await device.ack()
        facts = await delivery(gateway_process, good["id"], name)
        assert facts["dead_letter"] is None
        assert facts["received_at"] is not None


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_window_of_0_holds_alerts_back_until_it_is_opened(
    gateway_process: GatewayProcess, encoding: str
) -> None:
    name = f"window-{encoding}"
    async with client(gateway_process, name, encoding=encoding) as device:
        await device.ack(window=0)
        await device.send("ack", positions={"nothing-of-mine": [1, 1]})
        assert (await device.receive())["type"] == "error"
        await publish(gateway_process, name, "held back")
        await device.send("ack", positions={"nothing-of-mine": [1, 1]})
        # Messages keep their order: an alert would have come before the answer.
        assert (await device.receive())["type"] == "error"
        await device.ack(window=1)
        assert [alert["data"] for alert in await alerts(device, 1)] == [b"held back"]
        await device.ack()


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_device_1000_behind_catches_up_while_publishing_goes_on(
    gateway_process: GatewayProcess, encoding: str
) -> None:
    name = f"behind-{encoding}"
    async with client(gateway_process, name, encoding=encoding):
        pass  # a subscription begins at the head of the moment when it is made

    async def publish_all(first: int, last: int) -> None:
        for n in range(first, last + 1):
            await publish(gateway_process, name, str(n))

    await asyncio.gather(publish_all(1, 500), publish_all(501, 1000))
    async with client(gateway_process, name, encoding=encoding, window=32) as device:
        assert device.welcome["heads"][name][1] == 1000
        goes_on = asyncio.create_task(publish_all(1001, 1200))
        received: list[dict[str, Any]] = []
        async with asyncio.timeout(60):
            while len(received) < 1200:
                received.append(await device.receive())
                if device.unacknowledged == 16:
                    await device.ack()
        await goes_on
        await device.ack()
    assert [alert["offset"] for alert in received] == list(range(1, 1201))
    assert {int(alert["data"]) for alert in received} == set(range(1, 1201))
    assert all("waiting" in alert for alert in received[:32]), "pages say how many more there are"


async def test_a_device_of_nobody_is_refused(gateway_process: GatewayProcess) -> None:
    with pytest.raises(ApiError) as caught:
        await gateway_process.call("GET", "/devices/nobody")
    assert caught.value.status == 404
    with pytest.raises(Exception, match="401"):
        async with client(gateway_process, "nobody"):
            raise AssertionError("admitted")
