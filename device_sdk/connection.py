"""One connection, from hello to its end: what comes is stored and then acknowledged; silence ends it.

What is said and meant is ``core``; which transport, and when to come back, is ``client``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from device_sdk.core import ContinuityError, DeviceCore
from device_sdk.store.errors import StoreError
from device_sdk.transport.link import Link, LinkClosedError
from device_sdk.update.ports import DeviceClock
from device_sdk.wire.messages import FromGateway, Goaway, Ticket, Update, Welcome

T = TypeVar("T")

SILENCE_FACTOR: Final = 2.5  # heartbeats without traffic before the connection counts as dead
HEARTBEAT_DEFAULT_S: Final = 25
HEARTBEAT_MIN_S: Final = 1


class EndedByUsError(Exception):
    """This side ends the connection for a reason that is nobody's fault, and comes back at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Waits within a connection.

    Attributes:
        welcome_timeout_s: From hello to welcome.
        send_timeout_s: For one group of messages to be taken by the transport.
    """

    welcome_timeout_s: float = 30.0
    send_timeout_s: float = 120.0


class Updates(Protocol):
    """Who takes updates; ``update.UpdateAgent`` is one."""

    async def receive_update(self, update: Update) -> bool: ...


class Connection:
    """A link and the conversation on it.

    Args:
        wake: Set whenever the core may have something to say.
        on_welcome: Called once, with the welcome, after it was applied.
        on_ticket: Called with each ticket that is given in the place of the welcome's.
        on_stored: Called after each commit of what was received.
        asked_to_end: Set by who wants a new connection.
        end_at: Monotonic time at which to end in favour of another transport.
    """

    def __init__(
        self,
        core: DeviceCore,
        updates: Updates,
        link: Link,
        *,
        clock: DeviceClock,
        limits: ConnectionLimits,
        wake: asyncio.Event,
        on_welcome: Callable[[Welcome], None],
        on_ticket: Callable[[bytes], None],
        on_stored: Callable[[], None],
        asked_to_end: asyncio.Event,
        end_at: float | None,
    ) -> None:
        self._core = core
        self._updates = updates
        self._link = link
        self._clock = clock
        self._limits = limits
        self._wake = wake
        self._on_welcome = on_welcome
        self._on_ticket = on_ticket
        self._on_stored = on_stored
        self._asked_to_end = asked_to_end
        self._end_at = end_at
        self._silence_s = limits.welcome_timeout_s
        self._is_welcomed = asyncio.Event()

    async def run(self) -> None:
        """Talk until the connection ends, which always raises.

        Raises:
            LinkClosedError: The other end, the network, or silence ended it.
            ContinuityError: Something was lost on it.
            StoreError: What came could not be stored.
            EndedByUsError: As the caller asked.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(), name="fleetcast.connection.receive")
                group.create_task(self._send(), name="fleetcast.connection.send")
                group.create_task(self._watch(), name="fleetcast.connection.watch")
        except BaseExceptionGroup as errors:
            raise gravest(errors) from None

    # --- loops --------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            batch = await within(
                self._clock, self._silence_s, self._link.receive(), name="fleetcast.link.receive"
            )
            goaway: Goaway | None = None
            try:
                for message in batch:
                    if isinstance(message, Goaway):
                        goaway = message
                    else:
                        await self._take(message)
            finally:
                # Also of a batch that broke off: each connection makes what progress it can.
                self._core.commit()
            self._on_stored()
            if not self._core.is_holding:
                self._link.confirm()
            self._wake.set()
            if goaway is not None:
                raise LinkClosedError(
                    "the gateway asks to come back later",
                    close_code=goaway.code,
                    retry_after_s=float(goaway.retry_after_s),
                )

    async def _take(self, message: FromGateway) -> None:
        if not self._is_welcomed.is_set():
            if not isinstance(message, Welcome):
                raise LinkClosedError("the first message is not a welcome")
            self._core.receive(message, self._clock.monotonic())
            heartbeat_s = message.heartbeat_s or HEARTBEAT_DEFAULT_S
            self._silence_s = max(HEARTBEAT_MIN_S, heartbeat_s) * SILENCE_FACTOR
            self._on_welcome(message)
            self._is_welcomed.set()
        elif isinstance(message, Update):
            if await self._updates.receive_update(message):
                self._core.deployment_received(message.deployment)
        elif isinstance(message, Ticket):
            self._on_ticket(message.ticket)
        else:
            assert not isinstance(message, Goaway), "ends the connection after its batch"
            self._core.receive(message, self._clock.monotonic())

    async def _send(self) -> None:
        await self._is_welcomed.wait()
        while True:
            self._wake.clear()
            messages = self._core.outgoing(self._clock.monotonic())
            if messages:
                await within(
                    self._clock,
                    self._limits.send_timeout_s,
                    self._link.send(messages),
                    name="fleetcast.link.send",
                )
            deadline = self._core.deadline()
            wait_s = None if deadline is None else deadline - self._clock.monotonic()
            await wait_for_event(self._wake, self._clock, wait_s)

    async def _watch(self) -> None:
        wait_s = None if self._end_at is None else self._end_at - self._clock.monotonic()
        await wait_for_event(self._asked_to_end, self._clock, wait_s)
        raise EndedByUsError


async def within(clock: DeviceClock, seconds: float, work: Coroutine[Any, Any, T], *, name: str) -> T:
    """Return what ``work`` returns.

    Raises:
        LinkClosedError: It took more than ``seconds``.
    """
    task = asyncio.create_task(work, name=name)
    timer = asyncio.create_task(clock.sleep(seconds), name=f"{name}.timer")
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise LinkClosedError(f"silent for {seconds:.1f} s")
    finally:
        await cancelled(task, timer)


async def wait_for_event(event: asyncio.Event, clock: DeviceClock, seconds: float | None) -> bool:
    """Return True once ``event`` is set, False after ``seconds`` (None: no bound)."""
    if event.is_set():
        return True
    if seconds is None:
        return await event.wait()
    if seconds <= 0:
        await asyncio.sleep(0)  # whoever has nothing to wait for still lets the others run
        return event.is_set()
    waiter = asyncio.create_task(event.wait(), name="fleetcast.wait")
    timer = asyncio.create_task(clock.sleep(seconds), name="fleetcast.wait.timer")
    try:
        await asyncio.wait({waiter, timer}, return_when=asyncio.FIRST_COMPLETED)
        return event.is_set()
    finally:
        await cancelled(waiter, timer)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks`` and wait for their end; their outcome is nobody's any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def gravest(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error that says most: not an Exception, then the store's, then the first."""
    leaves = list(_leaves(errors))
    for error in leaves:
        if not isinstance(error, Exception):
            return error
    for error in leaves:
        if isinstance(error, StoreError):
            return error
    for error in leaves:
        if not isinstance(error, LinkClosedError | ContinuityError | EndedByUsError):
            return error
    return leaves[0]


def _leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
