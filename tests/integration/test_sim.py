"""``fleetcast-sim`` against a gateway and the example origin, all processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from device_sdk import SystemClock
from device_sdk.transport.http import Endpoint, open_session, parse_gateway_url
from device_sdk.transport.link import LinkClosedError
from device_sdk.transport.websocket import WebSocketTransport
from device_sdk.wire.messages import CBOR_SUBPROTOCOL, Ack, FromDevice, FromGateway, Hello
from firmware_sim.dice import Dice
from firmware_sim.link import FaultyTransport, LinkState
from firmware_sim.scenario import LinkFaults
from firmware_sim.trace import Trace
from tests.integration.sim_stage import FLEET, Stage, open_stage

pytestmark = pytest.mark.timeout(180)

STORM = """
name = "storm"
devices = 14
duration_s = 100

[[group]]
name = "links"
share = 1
transport = { websocket = 1, longpoll = 1 }
encoding = { cbor = 1, json = 1 }
  [group.link]
  delay_ms = [0, 20]
  cut = 0.03
  duplicate = 0.2
  reorder = 0.5
  refuse = 0.1
  download_cut = 0.2
  offline_s = [0, 0.3]
  [group.expect]
  state = "committed"
  alerts_min = 3

[[group]]
name = "power"
share = 1
transport = { websocket = 1, longpoll = 1 }
clock = "none"
  [group.flash]
  power_cuts = 5
  power_cut_bytes = [100, 60000]
  off_s = 0.05
  [group.expect]
  state = "committed"
  alerts_min = 3

[[group]]
name = "sick"
count = 1
  [group.boot]
  sick = 1
  [group.expect]
  state = "rolled_back"
  code = "boot_failed"

[[group]]
name = "panics"
count = 1
  [group.boot]
  panic = 1
  [group.expect]
  state = "rolled_back"
  code = "boot_failed"

[[group]]
name = "tampered"
count = 1
transport = "longpoll"
  [group.link]
  tamper = "manifest"
  [group.expect]
  state = "rejected"
  code = "digest_mismatch"

[[group]]
name = "ahead"
count = 1
sequence = 9_000_000_000
  [group.expect]
  state = "rejected"
  code = "rollback"
"""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(STORM)
    async with open_stage(tmp_path, scenario) as stage:
        await stage.gateway.call(
            "POST",
            "/rollouts",
            json={"release_id": stage.releases[0], "channel": "firmware", "percent": 100},
        )
        yield stage


async def test_storm_ends_as_expected_and_both_sides_tell_the_same(stage: Stage) -> None:
    for number in range(3):
        await stage.gateway.call("POST", "/channels/ops/alerts", json={"text": f"alert {number}"})
    status, result = await stage.simulate(stage.folder / "scenario.toml")
    assert (status, result["unmet"], result["crashes"]) == (0, {}, {}), result
    assert result["states"] == {"committed": 10, "rolled_back": 2, "rejected": 2}
    assert result["refused"] == {"boot_failed": 2, "digest_mismatch": 1, "rollback": 1}
    assert result["alerts_in_order"] is True
    assert {"duplicate", "reorder", "power_cut", "panic", "sick", "tamper"} <= result["faults"].keys()

    (deployments,) = await stage.deployments()
    assert Counter(one["state"] for one in deployments) == result["states"]
    assert Counter(one["code"] for one in deployments if one["state"] != "committed") == result["refused"]
    for one in deployments:
        is_new = stage.image(one["device_id"]) == stage.images[0]
        assert is_new == (one["state"] == "committed"), one["device_id"]
    assert not any(one["broken"] for one in result["invariants"].values())
    events = [json.loads(line) for line in (stage.folder / "trace").read_text().splitlines()]
    assert Counter(event["kind"] for event in events if event["fault"]) == result["faults"]


async def test_what_is_not_as_expected_is_said_and_the_exit_status_is_1(stage: Stage) -> None:
    scenario = (
        'devices = 2\nduration_s = 1\n[[group]]\nname = "a"\n[group.expect]\nalerts_min = 1\nstate = "failed"'
    )
    (stage.folder / "scenario.toml").write_text(scenario)
    status, result = await stage.simulate(stage.folder / "scenario.toml", "--seed", 5)
    assert (status, result["ok"], result["seed"]) == (1, False, 5)
    assert sorted(result["unmet"]) == ["sim-0001", "sim-0002"]


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_link_that_breaks_leaves_without_a_close_frame(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def frames_at_the_end(cut: float) -> tuple[object, object]:
        over: asyncio.Future[tuple[object, object]] = asyncio.get_running_loop().create_future()

        async def peer(connection: ServerConnection) -> None:
            try:
                async for _ in connection:
                    pass
                over.set_result((connection.close_code, None))
            except ConnectionClosed as error:
                over.set_result((connection.close_code, error.rcvd))

        async with serve(peer, "127.0.0.1", 0, subprotocols=[Subprotocol(CBOR_SUBPROTOCOL)]) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            url = parse_gateway_url(f"http://127.0.0.1:{port}")
            async with open_session() as session:
                transport = FaultyTransport(
                    WebSocketTransport(session, Endpoint(url=url, fleet=FLEET, device_id="dev-1")),
                    faults=LinkFaults(cut=cut),
                    dice=Dice(1, "dev-1"),
                    state=LinkState(),
                    trace=Trace(),
                    watch=_Nobody(),
                    clock=SystemClock(),
                    is_powered=lambda: True,
                )
                link = await transport.connect(Hello(protocol=1, window=1, boot_id=bytes(16)), "token")
                with contextlib.suppress(LinkClosedError):
                    await link.send([Ack(window=1)])
                await link.close()
            return await over

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(frames_at_the_end(1.0)) == (1006, None)
        assert runner.run(frames_at_the_end(0.0)) == (1000, None)


class _Nobody:
    def hello(self, hello: Hello) -> None:
        pass

    def closed(self) -> None:
        pass

    def failed(self, reason: str) -> None:
        pass

    def received(self, message: FromGateway) -> None:
        pass

    def sent(self, message: FromDevice) -> None:
        pass
