"""What a session needs of the node it is on: a bundle of ports, made once by the composition root.

The update side is a port of its own: which deployment a device has is decided by ``gateway.rollout``, and a
session only carries it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gateway.clock import Clock
from gateway.errors import StorageUnavailableError
from gateway.fleet.facts import HotWrite, HotWriter
from gateway.fleet.log import AlertLog
from gateway.fleet.model import ConnectedSubscription
from gateway.hub import Hub
from gateway.session.limits import SessionLimits
from gateway.session.uplinks import NoUplinks, UplinkSink
from gateway.telemetry import Metrics


class UpdateOffer(Protocol):
    """A deployment to push, signed. ``rollout.Offer`` is one."""

    @property
    def device_key(self) -> int: ...

    @property
    def deployment_id(self) -> bytes: ...

    @property
    def directive(self) -> bytes: ...

    @property
    def manifest(self) -> bytes: ...

    @property
    def attempt(self) -> int: ...

    @property
    def superseded(self) -> Sequence[bytes]: ...


class UpdateSource(Protocol):
    """Where deployments come from; ``rollout.Updates`` is one."""

    async def offer(self, device_keys: Sequence[int]) -> Sequence[UpdateOffer]: ...

    async def redeliver(self, device_key: int, deployment_id: bytes) -> UpdateOffer | None: ...


class SubscriptionSource(Protocol):
    """Where a device's subscriptions are read again."""

    async def connected_subscriptions(self, device_key: int) -> Sequence[ConnectedSubscription]:
        """Return the subscriptions as a hello would find them. NotFoundError: the device is gone."""
        ...


class Spawn(Protocol):
    """Start a task that the node keeps and whose failure is logged, never lost."""

    def __call__(self, work: Coroutine[Any, Any, None], *, name: str) -> None: ...


ROOM_TIMEOUT_S: Final = 10.0


async def commit(writer: HotWriter, write: HotWrite) -> Any:
    """Commit ``write``; where the writer is full, wait for room first: it is busy, not away.

    Raises:
        StorageUnavailableError: There was no room in ``ROOM_TIMEOUT_S``, or the database is away.
    """
    if writer.is_full:
        try:
            async with asyncio.timeout(ROOM_TIMEOUT_S):
                await writer.drained()
        except TimeoutError as error:
            raise StorageUnavailableError("the writer is full") from error
    return await writer.commit(write)


@dataclass(frozen=True, slots=True)
class Node:
    """What all sessions of a node share."""

    clock: Clock
    random: random.Random
    hub: Hub
    log: AlertLog
    writer: HotWriter
    updates: UpdateSource
    subscriptions: SubscriptionSource
    limits: SessionLimits
    metrics: Metrics
    spawn: Spawn
    uplinks: UplinkSink = field(default_factory=NoUplinks)
