"""What the contract suites speak in: a store and a writer on one database, and a few verbs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from device_sdk.wire.messages import Hello, Position
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from gateway.clock import FakeClock
from gateway.fleet.facts import Connect
from gateway.fleet.model import Appended, Channel, Connected, ConnectedSubscription, Draft, Fleet
from gateway.identity import ChannelGrant, Verdict
from gateway.ids import uuid7
from gateway.storage import BatchWriter, Database, SQLFleetStore, hot_handlers
from gateway.telemetry import Metrics

ACME = FleetName("acme")
OPS = ChannelName("ops")
KID = b"k" * 32


def seal(
    fleet: FleetName, channel: ChannelName, epoch: int, offset: int, draft: Draft
) -> tuple[bytes, bytes]:
    return f"{fleet}/{channel}/{epoch}/{offset}/".encode() + draft.data, b"signature of %d" % offset


def draft(data: bytes = b"hello", *, key: str | None = None, now_ms: int = 0, **fields: Any) -> Draft:
    return Draft(id=uuid7(now_ms), content_type="text/plain", data=data, issued_at=now_ms, key=key, **fields)


class World:
    """A store and a writer on one database, with the few verbs that tests speak in."""

    def __init__(self, database: Database, clock: FakeClock, metrics: Metrics) -> None:
        self.database = database
        self.clock = clock
        self.store = SQLFleetStore(database)
        self.writer = BatchWriter(
            database,
            clock=clock,
            metrics=metrics,
            flush_interval_ms=0,
            flush_rows_max=500,
            queue_rows_max=1_000,
            handlers=hot_handlers(clock),
        )

    @property
    def now(self) -> int:
        return self.clock.now_ms()

    async def fleet(self, name: str = ACME) -> Fleet:
        return await self.store.create_fleet(FleetName(name), now_ms=self.now)

    async def channel(self, fleet: Fleet, name: str = OPS, kind: str = "alert", **fields: Any) -> Channel:
        return await self.store.create_channel(
            fleet.key,
            ChannelName(name),
            kind,
            now_ms=self.now,
            **fields,  # type: ignore[arg-type]
        )

    async def publish(
        self, fleet: Fleet, channel: str = OPS, count: int = 1, requeues: int | None = None, **fields: Any
    ) -> Appended:
        appended = await self.store.append(
            fleet.key,
            ChannelName(channel),
            [draft(now_ms=self.now, **fields) for _ in range(count)],
            now_ms=self.now,
            kid=KID,
            seal=seal,
            requeues=requeues,
        )
        assert isinstance(appended, Appended)
        return appended

    async def commit(self, *writes: Any) -> list[Any]:
        return await asyncio.gather(*(self.writer.commit(write) for write in writes))

    def connect_of(
        self,
        device: str = "d1",
        *,
        fleet: str = ACME,
        channels: Mapping[str, str] | None = None,
        positions: Mapping[str, tuple[int, int]] | None = None,
        boot: bytes = b"b" * 16,
        origin: Mapping[str, Any] | None = None,
        **hello: Any,
    ) -> Connect:
        grants = tuple(
            ChannelGrant(ChannelName(name), kind)  # type: ignore[arg-type]
            for name, kind in sorted((channels or {}).items())
        )
        verdict = Verdict(DeviceId(device), FleetName(fleet), grants, origin or {})
        said = Hello(
            protocol=1,
            window=32,
            boot_id=boot,
            positions={name: Position(*at) for name, at in (positions or {}).items()},
            **hello,
        )
        return Connect(verdict, said, self.now)

    async def connect(self, device: str = "d1", **fields: Any) -> Connected:
        (connected,) = await self.commit(self.connect_of(device, **fields))
        assert isinstance(connected, Connected)
        return connected


def standing_in(connected: Connected, channel: str) -> ConnectedSubscription:
    (found,) = [one for one in connected.subscriptions if one.channel == channel]
    return found
