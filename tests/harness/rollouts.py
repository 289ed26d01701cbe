"""A small world for tests of rollouts: fleet, channels, devices, releases, put straight into the tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, update

from device_sdk.wire.messages import Hello, Installed, Report
from device_sdk.wire.names import ChannelName, FleetName
from gateway.clock import FakeClock
from gateway.fleet.facts import DeploymentReceived, Reported
from gateway.fleet.model import Fleet
from gateway.ids import uuid7
from gateway.rollout import ReportOutcome, Rollout, UpdateLimits
from gateway.rollout.model import Changed, NewRollout, Pushes
from gateway.rollout.rollout import SPACE, Action
from gateway.storage import reports
from gateway.storage.engine import Database
from gateway.storage.rollouts import SQLRolloutStore
from gateway.storage.tables import channel, deployment, device, fleet, release, subscription

BOOT = bytes(16)


def digest_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@dataclass
class World:
    """``await World.create(database)``; then ``devices``, ``release``, ``start``, and what devices say."""

    database: Database
    clock: FakeClock
    fleet: Fleet
    limits: UpdateLimits = field(default_factory=UpdateLimits)
    reports_made: int = 0

    @classmethod
    async def create(cls, database: Database, *, name: str = "acme", channels: str = "fw") -> World:
        def put(conn: Connection) -> int:
            key = _insert(conn, fleet, name=name, created_at=0)
            for one in channels.split():
                _insert(conn, channel, fleet_id=key, name=one, kind="update", epoch=1, created_at=0)
            return key

        key = await database.write(put)
        return cls(database, FakeClock(), Fleet(key, FleetName(name), 0, 0))

    @property
    def store(self) -> SQLRolloutStore:
        return SQLRolloutStore(self.database)

    async def devices(
        self,
        count: int,
        *,
        prefix: str = "d",
        channels: str = "fw",
        buckets: Sequence[int] | None = None,
        **columns: Any,
    ) -> list[int]:
        """Enrol ``count`` devices with their subscriptions; evenly spread buckets unless they are given."""

        def put(conn: Connection) -> list[int]:
            keys = []
            ids = {
                row.name: row.id
                for row in conn.execute(select(channel).where(channel.c.fleet_id == self.fleet.key))
            }
            for number in range(count):
                row = {
                    "fleet_id": self.fleet.key,
                    "device_id": f"{prefix}{number:04}",
                    "enrolment_id": digest_of(f"{prefix}{number}")[:16],
                    "bucket": buckets[number] if buckets else number * SPACE // count,
                    "origin": {},
                    "reported": {},
                    "tags": [],
                    "installed": {},
                    "boot_id": BOOT,
                    "enrolled_at": 0,
                } | columns
                keys.append(_insert(conn, device, **row))
                for name in channels.split():
                    _insert(
                        conn,
                        subscription,
                        device_key=keys[-1],
                        channel_id=ids[name],
                        by_origin=True,
                        by_operator=False,
                        epoch=1,
                        offset=0,
                        created_at=0,
                    )
            return keys

        return await self.database.write(put)

    async def change_device(self, key: int, **columns: Any) -> None:
        await self.database.write(
            lambda conn: conn.execute(update(device).where(device.c.id == key).values(columns)).rowcount
        )

    async def device(self, key: int) -> Any:
        return await self.database.read(
            lambda conn: conn.execute(select(device).where(device.c.id == key)).one()
        )

    async def release(self, sequence: int = 1, *, component: str = "main", **columns: Any) -> bytes:
        """Keep a release whose manifest digest is ``digest_of(f"{component}{sequence}")``."""
        id_ = uuid7(self.clock.now_ms())
        row = {
            "id": id_,
            "fleet_id": self.fleet.key,
            "name": f"{component} {sequence}",
            "version": str(sequence),
            "component": component,
            "sequence": sequence,
            "vendor_id": bytes(16),
            "class_id": bytes(16),
            "manifest_digest": digest_of(f"{component}{sequence}"),
            "image_digest": bytes(32),
            "image_size": 1,
            "uri": "https://example.com/image",
            "kid": bytes(8),
            "envelope": b"envelope",
            "created_at": 0,
        } | columns
        await self.database.write(lambda conn: conn.execute(insert(release).values(row)).rowcount)
        return id_

    async def start(self, release_id: bytes, *, shift: int = 0, act: Any = None, **fields: Any) -> Rollout:
        now_ms = self.clock.now_ms()
        new = {
            "id": uuid7(now_ms),
            "release_id": release_id,
            "channel": ChannelName("fw"),
            "percent": 100,
            "selector": None,
            "name": None,
            "priority": 0,
            "shift": shift,
        } | fields
        started = await self.store.create_rollout(self.fleet.key, NewRollout(**new), now_ms=now_ms, act=act)
        assert isinstance(started, Rollout)
        return started

    async def act(self, rollout: Rollout, action: Action, **fields: Any) -> Rollout:
        changed = await self.store.change_rollout(
            self.fleet.key, rollout.id, action, now_ms=self.clock.now_ms(), **fields
        )
        assert isinstance(changed, Changed)
        return changed.rollout

    async def offer(self, *keys: int) -> Pushes:
        return await self.store.offer(keys, now_ms=self.clock.now_ms(), limits=self.limits)

    async def redeliver(self, key: int, deployment_id: bytes) -> Pushes:
        return await self.store.redeliver(key, deployment_id, now_ms=self.clock.now_ms(), limits=self.limits)

    async def received(self, key: int, deployment_id: bytes) -> bool:
        write = DeploymentReceived(key, deployment_id, self.clock.now_ms())
        (news,) = await self.database.write(lambda conn: reports.apply_received(conn, [write]))
        return news

    def report(
        self, key: int, deployment_id: bytes, state: str, seq: int | None = None, **fields: Any
    ) -> Reported:
        self.reports_made += 1
        number = self.reports_made if seq is None else seq
        id_ = fields.pop("id", self.reports_made.to_bytes(16, "big"))
        boot_id = fields.pop("boot_id", BOOT)
        said = Report(id=id_, deployment=deployment_id, seq=number, state=state, **fields)
        return Reported(key, said, boot_id, self.clock.now_ms())

    async def reported(self, *writes: Reported) -> Sequence[ReportOutcome]:
        return await self.database.write(lambda conn: reports.apply_reports(conn, writes))

    async def says(self, key: int, deployment_id: bytes, state: str, **fields: Any) -> ReportOutcome:
        (outcome,) = await self.reported(self.report(key, deployment_id, state, **fields))
        return outcome

    async def hello(self, key: int, **fields: Any) -> tuple[bytes, ...]:
        said = Hello(1, 32, **({"boot_id": BOOT, "last_directive": 2**50} | fields))
        return await self.database.write(lambda conn: reports.evidence(conn, key, said, self.clock.now_ms()))

    async def deployment(self, deployment_id: bytes) -> Any:
        return await self.database.read(
            lambda conn: conn.execute(select(deployment).where(deployment.c.id == deployment_id)).one()
        )

    async def deployment_count(self) -> int:
        return await self.database.read(
            lambda conn: conn.execute(select(func.count()).select_from(deployment)).scalar_one()
        )


def installed(sequence: int, *, component: str = "main", is_confirmed: bool = True) -> dict[str, Installed]:
    """Return what a device says that runs the release of ``World.release(sequence)``."""
    digest = digest_of(f"{component}{sequence}")
    return {component: Installed(sequence, str(sequence), digest, is_confirmed)}


def _insert(conn: Connection, table: Table, **values: Any) -> int:
    key: int = conn.execute(insert(table).values(values)).inserted_primary_key[0]  # type: ignore[index]
    return key
