"""A gateway's node with everything in it but HTTP and SQL; it can be killed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

from device_sdk.wire.keys import PrivateKey
from gateway.clock import Clock
from gateway.edge.device.admission import Admission
from gateway.fleet.alerts import AlertLimits, Alerts, AlertSigner, LogReader
from gateway.fleet.log import AlertLog
from gateway.hub import Hub
from gateway.identity import Credential, IdentityLimits, Verdict
from gateway.session.limits import SessionLimits
from gateway.session.ports import Node
from gateway.session.sessions import Sessions
from gateway.storage.writer import BatchWriter
from gateway.telemetry import Metrics
from tests.simulation.database import Database

KEY = PrivateKey.from_seed(b"a" * 32)
LIMITS = SessionLimits(
    redeliver_min_s=2.0, redeliver_max_s=20.0, attempts_max=8, longpoll_idle_s=60.0, window_max=64
)


class NoTickets:
    def seal(self, *_: Any, **__: Any) -> None:
        return None


class TrustingIdentity:
    """The origin says of everybody what it said before."""

    limits = IdentityLimits()
    tickets = NoTickets()

    async def admit(self, credential: Credential, **_: Any) -> Verdict:
        raise AssertionError("no simulation is that long")

    def kept(self, credential: Credential) -> Credential:
        return credential


class NoUpdates:
    async def offer(self, device_keys: Any) -> tuple[()]:
        return ()

    async def redeliver(self, device_key: int, deployment_id: bytes) -> None:
        return None

    def statement(self, *_: Any, **__: Any) -> bytes:
        return b""


class SimulatedNode:
    """From its start to its end or its death.

    Attributes:
        failures: Errors that nobody expected: bugs.
    """

    def __init__(
        self, database: Database, *, clock: Clock, random: Random, failures: list[BaseException]
    ) -> None:
        self.database = database
        self.failures = failures
        self.is_dead = False
        self._tasks: set[asyncio.Task[None]] = set()
        metrics = Metrics()
        self.writer = BatchWriter(
            database,  # type: ignore[arg-type]
            clock=clock,
            metrics=metrics,
            flush_interval_ms=5,
            flush_rows_max=8,
            queue_rows_max=200,
            handlers=database.handlers(),
        )
        signer = AlertSigner(KEY, metrics)
        self.log = AlertLog(
            database, resign=signer.resign, metrics=metrics, size_bytes_max=150_000, reads_max=2
        )
        self.hub = Hub(LogReader(self.log), clock=clock)
        self.alerts = Alerts(
            database,
            hub=self.hub,
            log=self.log,
            signer=signer,
            clock=clock,
            metrics=metrics,
            limits=AlertLimits(),
        )
        updates = NoUpdates()
        self.node = Node(
            clock=clock,
            random=random,
            hub=self.hub,
            log=self.log,
            writer=self.writer,
            updates=updates,
            subscriptions=database,
            limits=LIMITS,
            metrics=metrics,
            spawn=self.spawn,
        )
        self.sessions = Sessions(self.node, store=database, cancels=database, wheel_s=2.0)  # type: ignore[arg-type]
        self.admission = Admission(
            identity=TrustingIdentity(),  # type: ignore[arg-type]
            sessions=self.sessions,
            statements=updates,
            accept_rate_per_s=100,
            connections_max=1000,
            outbox_size_bytes_max=100_000,
        )
        database.close_intervals()
        self.spawn(self.writer.run(), name="writer")
        self.spawn(self.sessions.turn(), name="wheel")

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)

    async def stop(self) -> None:
        """Commit what waits, and end."""
        await self.writer.close()
        await self.kill()

    async def kill(self) -> None:
        """End at once; what was not committed is lost."""
        self.is_dead = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.hub.stop()
        await self.log.close()
