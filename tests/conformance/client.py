"""A device, written from device_sdk/wire/fleetcast-v1.cddl alone: it imports nothing of this repository.

It keeps its positions in memory, so it is no example of durability: it proves that the contract is enough.
"""

from __future__ import annotations

import base64
import json
import os
from types import TracebackType
from typing import Any, Self

import cbor2
from websockets.asyncio.client import ClientConnection, connect

# type number and fields by key, as the CDDL has them
TO_GATEWAY: dict[str, tuple[int, dict[str, int]]] = {
    "hello": (1, {"protocol": 1, "window": 2, "boot_id": 3, "positions": 4}),
    "ack": (2, {"positions": 1, "window": 3}),
    "nack": (3, {"channel": 1, "epoch": 2, "offset": 3, "code": 4}),
}
TO_DEVICE: dict[int, tuple[str, dict[int, str]]] = {
    8: ("welcome", {1: "session", 2: "heads", 3: "heartbeat_s", 4: "spread_s", 5: "server_time"}),
    9: ("alert", {1: "channel", 2: "epoch", 3: "offset", 4: "body", 5: "attempt", 6: "waiting"}),
    11: ("advance", {1: "channel", 2: "epoch", 3: "first", 4: "last", 5: "reason"}),
    12: ("lost", {1: "channel", 2: "epoch", 3: "offset", 4: "reason"}),
    16: ("subscriptions", {1: "added", 2: "removed"}),
    17: ("goaway", {1: "code", 2: "retry_after_s"}),
    18: ("error", {1: "code", 2: "ref"}),
}


class BrokenContractError(Exception):
    """The gateway did what the CDDL does not allow."""


class Client:
    """One connection of a device.

    Attributes:
        positions: [epoch, offset] of each channel: what was received so far; ``ack`` acknowledges it.
        window: How many alerts may be unacknowledged; more of them break the contract.
        welcome: What the gateway answered to hello.
    """

    def __init__(
        self,
        url: str,
        *,
        fleet: str,
        device: str,
        token: str,
        encoding: str = "cbor",
        window: int = 32,
        positions: dict[str, list[int]] | None = None,
    ) -> None:
        self._connect = connect(
            f"{url.replace('http', 'ws', 1)}/v1/device/connect",
            additional_headers={
                "Authorization": f"Bearer {token}",
                "Fleetcast-Fleet": fleet,
                "Fleetcast-Device": device,
            },
            subprotocols=[f"fleetcast.v1.{encoding}"],  # type: ignore[list-item]
            compression=None,
        )
        self._is_json = encoding == "json"
        self._socket: ClientConnection | None = None
        self._said = dict(positions or {})
        self.positions: dict[str, list[int]] = {}
        self._acked: dict[str, int] = {}
        self.window = window
        self.welcome: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        self._socket = await self._connect
        await self.send("hello", protocol=1, window=self.window, boot_id=os.urandom(16), positions=self._said)
        self.welcome = await self.read()
        if self.welcome["type"] != "welcome":
            raise BrokenContractError(f"hello is answered by welcome, not {self.welcome['type']}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._socket is not None
        await self._socket.close()

    @property
    def unacknowledged(self) -> int:
        """How many alerts were received and not acknowledged."""
        return sum(offset - self._acked[name] for name, (_, offset) in self.positions.items())

    async def receive(self) -> dict[str, Any]:
        """Return the next message; an alert has its ``data`` too. Repeated alerts are passed over."""
        while True:
            message = await self.read()
            match message:
                case {"type": "alert", "channel": channel, "epoch": epoch, "offset": offset}:
                    if not self._moves(channel, epoch, offset, offset):
                        continue
                    if self.window and self.unacknowledged > self.window:
                        raise BrokenContractError(f"{self.unacknowledged} over a window of {self.window}")
                    # COSE_Sign1: protected, unprotected, payload, signature; key 9 of the payload is the data
                    message["data"] = cbor2.loads(cbor2.loads(message["body"]).value[2])[9]
                case {"type": "advance", "channel": channel, "epoch": epoch, "first": first, "last": last}:
                    if not self._moves(channel, epoch, first, last):
                        continue
                case {"type": "lost", "channel": channel, "epoch": epoch, "offset": offset}:
                    self.positions[channel] = [epoch, offset]
                    self._acked[channel] = offset
                case {"type": "subscriptions"}:
                    for channel in message.get("removed", ()):
                        self.positions.pop(channel, None)
            return message

    def _moves(self, channel: str, epoch: int, first: int, last: int) -> bool:
        """Move the position over ``first``..``last``; False if it stands there already."""
        position = self.positions.get(channel)
        if position is None:  # the gateway begins where it knows the device to be
            position = self._said.get(channel, [epoch, first - 1])
            self._acked[channel] = position[1]
        if position[0] != epoch:
            raise BrokenContractError(f"{channel}: epoch {epoch} after {position[0]}")
        if last <= position[1]:
            return False
        if first > position[1] + 1:
            raise BrokenContractError(f"{channel}: {first} after {position[1]}")
        self.positions[channel] = [epoch, last]
        return True

    async def ack(self, *, window: int | None = None) -> None:
        """Acknowledge everything that was received."""
        if window is None:
            await self.send("ack", positions=self.positions)
        else:
            self.window = window
            await self.send("ack", positions=self.positions, window=window)
        self._acked = {name: offset for name, (_, offset) in self.positions.items()}

    async def nack(self, alert: dict[str, Any], code: str) -> None:
        """Refuse one alert for good."""
        where = {name: alert[name] for name in ("channel", "epoch", "offset")}
        await self.send("nack", **where, code=code)

    async def send(self, kind: str, **fields: Any) -> None:
        assert self._socket is not None
        if self._is_json:
            document = {name: _text(value) for name, value in fields.items() if value != {}}
            await self._socket.send(json.dumps({"type": kind, **document}))
            return
        number, keys = TO_GATEWAY[kind]
        values = {keys[name]: value for name, value in fields.items() if value != {}}
        await self._socket.send(cbor2.dumps({0: number, **values}, canonical=True))

    async def read(self) -> dict[str, Any]:
        """Return the next message of a known type, by its names."""
        assert self._socket is not None
        while True:
            frame = await self._socket.recv()
            if isinstance(frame, str) is not self._is_json:
                raise BrokenContractError("the other kind of frame")
            if isinstance(frame, str):
                document: dict[str, Any] = json.loads(frame)
                if "body" in document:
                    document["body"] = base64.urlsafe_b64decode(document["body"] + "==")
                return document
            fields: dict[int, Any] = cbor2.loads(frame)
            if cbor2.dumps(fields, canonical=True) != frame:
                raise BrokenContractError("not deterministic CBOR")
            if fields[0] in TO_DEVICE:
                name, keys = TO_DEVICE[fields[0]]
                return {"type": name, **{keys[key]: value for key, value in fields.items() if key in keys}}


def _text(value: Any) -> Any:
    """Return bytes as JSON has them: base64url without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode() if isinstance(value, bytes) else value
