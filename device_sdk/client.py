"""The device: connected whenever it can be, handing alerts to the application and updates to the installer.

Loops and their lifetimes are here: the connection, the application's handler, the update agent. What they
do is ``connection``, ``inbox`` and ``update``; when to come back is ``reconnect``, by which way ``choice``.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import ssl as ssl_module
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from types import TracebackType
from typing import Final, Literal, Self, cast

import aiohttp

from device_sdk.choice import ChoiceLimits, TransportChoice
from device_sdk.clock import SystemClock
from device_sdk.connection import (
    Connection,
    ConnectionLimits,
    EndedByUsError,
    gravest,
    wait_for_event,
)
from device_sdk.core import ContinuityError, CoreLimits, DeviceCore
from device_sdk.inbox import Entry, Inbox, InboxLimits, ReceivedAlert
from device_sdk.reconnect import Ending, Reconnect, ReconnectLimits, Wait
from device_sdk.store import FileFlash, Flash, FlashError, StateStore, StoreError, StoreLimits
from device_sdk.ticket import TicketKeeper
from device_sdk.transport.download import HTTPFetch
from device_sdk.transport.http import Encoding, Endpoint, open_session, parse_gateway_url
from device_sdk.transport.link import Link, LinkClosedError, Transport
from device_sdk.transport.longpoll import LongPollTransport
from device_sdk.transport.websocket import WebSocketTransport
from device_sdk.update import (
    DeviceClock,
    Fetch,
    Installer,
    RebootRequiredError,
    SlotInstaller,
    UpdateAgent,
    UpdateLimits,
)
from device_sdk.update.slots import SlotFiles
from device_sdk.wire.errors import MalformedError, WireError
from device_sdk.wire.keys import PublicKey
from device_sdk.wire.messages import Attribute, Report, Uplink, Welcome, checked
from device_sdk.wire.names import parse_device_id, parse_fleet_name
from device_sdk.wire.suit.target import class_identifier, vendor_identifier

_log = logging.getLogger("fleetcast.client")

BOOT_ID_SIZE: Final = 16
ATTRIBUTES_SIZE_MAX: Final = 4096

TransportName = Literal["auto", "websocket", "longpoll"]
Token = str | Callable[[], str | Awaitable[str]]
"""A bearer token, or what gives one: called for each connection and each download."""
AlertHandler = Callable[[ReceivedAlert], Awaitable[None]]
TransportFactory = Callable[[str, aiohttp.ClientSession, Endpoint, DeviceClock], Transport]
FetchFactory = Callable[[aiohttp.ClientSession, Endpoint, Callable[[], Awaitable[str]]], Fetch]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """Bounds of a client; each part documents its own.

    Attributes:
        handler_timeout_s: A handler that takes longer counts as one that raised.
        token_poll_s: How often a token function is asked while the last token is refused.
        store_retry_s: Pause of the handler loop after the flash failed.
        reboot_grace_s: What reports may take to be recorded before ``run`` asks for a restart.
    """

    core: CoreLimits = field(default_factory=CoreLimits)
    inbox: InboxLimits = field(default_factory=InboxLimits)
    store: StoreLimits = field(default_factory=StoreLimits)
    reconnect: ReconnectLimits = field(default_factory=ReconnectLimits)
    choice: ChoiceLimits = field(default_factory=ChoiceLimits)
    connection: ConnectionLimits = field(default_factory=ConnectionLimits)
    update: UpdateLimits = field(default_factory=UpdateLimits)
    handler_timeout_s: float = 600.0
    token_poll_s: float = 60.0
    store_retry_s: float = 5.0
    reboot_grace_s: float = 5.0

    def __post_init__(self) -> None:
        inbox_max = self.inbox.size_max_bytes * self.inbox.hard_factor + self.inbox.app_size_max_bytes
        assert inbox_max < self.store.state_size_max_bytes, "the inbox must not crowd out the rest"


@dataclass(slots=True)
class ClientStatus:
    """How the connection is; a snapshot. ``connected_at`` is monotonic."""

    is_connected: bool = False
    transport: str | None = None
    connected_at: float | None = None
    connections: int = 0
    last_ending: str | None = None


def make_transport(
    name: str, session: aiohttp.ClientSession, endpoint: Endpoint, clock: DeviceClock
) -> Transport:
    """Return the transport ``websocket`` or ``longpoll``."""
    if name == "websocket":
        return WebSocketTransport(session, endpoint)
    assert name == "longpoll", name
    return LongPollTransport(session, endpoint, clock)


class DeviceClient:
    """A device of a fleet.

    This runs; keep the process alive with whatever starts it, and start it again when it ends, since an
    update that needs a restart ends it with RebootRequiredError::

        import asyncio
        from pathlib import Path

        from device_sdk import DeviceClient, PublicKey, ReceivedAlert, SlotInstaller

        async def on_alert(alert: ReceivedAlert) -> None:
            print(f"{alert.channel} #{alert.offset}: {alert.text}")

        async def main() -> None:
            async with DeviceClient(
                url="https://gateway.example",
                fleet="acme",
                device_id="tc3-0001",
                token=lambda: Path("token").read_text().strip(),
                release_keys=[PublicKey.load(Path("release.pub.pem"))],
                state_dir="state",
                vendor="acme.example",
                device_class="tc3",
                installer=SlotInstaller("slots", components=["main"]),
                on_alert=on_alert,
            ) as client:
                await client.run()

        asyncio.run(main())

    Args:
        url: Of the gateway, https:// or http://, as it was provisioned.
        fleet, device_id: As provisioned; never learned from the gateway.
        token: What the operator's origin accepts: a str, or a function (plain or async) that gives one
            and is called for each connection.
        release_keys: The operator's keys that vouch for releases and for root documents.
        state_dir: Directory of the durable state, made if need be. Or ``flash``, or ``store``.
        vendor: The vendor's domain, or its UUID in 16 bytes. Needed for updates.
        device_class: The class's name, or its UUID in 16 bytes. Needed for updates.
        installer: Where updates go; None: this device takes none.
        on_alert: Called with each alert, in its channel's order, until it returns. None: alerts wait in
            the inbox, which asks for no more when it is full.
        attributes: What the device reports of itself; selectors of rollouts may name them.
        transport: ``auto`` is a WebSocket, or a long-poll while no WebSocket can be had.
        encoding: Of messages: ``cbor`` or ``json``.
        clock: The device's clock; the default takes the system's for trusted.
        boot_id: 16 bytes, other ones after each start; random if not given.
        transport_factory, fetch_factory, random: For simulators.

    Raises:
        ValueError: An argument is not what it must be.
    """

    def __init__(
        self,
        *,
        url: str,
        fleet: str,
        device_id: str,
        token: Token,
        release_keys: Sequence[PublicKey],
        state_dir: Path | str | None = None,
        flash: Flash | None = None,
        store: StateStore | None = None,
        vendor: str | bytes | None = None,
        device_class: str | bytes | None = None,
        device_uuid: bytes | None = None,
        installer: Installer | None = None,
        on_alert: AlertHandler | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        transport: TransportName = "auto",
        encoding: Encoding = "cbor",
        limits: ClientLimits | None = None,
        clock: DeviceClock | None = None,
        random: Random | None = None,
        boot_id: bytes | None = None,
        build_time_ms: int = 0,
        ssl: ssl_module.SSLContext | None = None,
        transport_factory: TransportFactory = make_transport,
        fetch_factory: FetchFactory = HTTPFetch,
    ) -> None:
        if sum(place is not None for place in (state_dir, flash, store)) != 1:
            raise ValueError("give one of state_dir, flash and store")
        if installer is not None and (vendor is None or device_class is None):
            raise ValueError("an installer needs vendor and device_class, which manifests are matched with")
        try:
            parse_fleet_name(fleet)
            parse_device_id(device_id)
        except MalformedError as error:
            raise ValueError(str(error)) from error
        self._endpoint = Endpoint(
            url=parse_gateway_url(url), fleet=fleet, device_id=device_id, encoding=encoding
        )
        self._token_source = token
        self._last_token: str | None = None
        self._release_keys = tuple(release_keys)
        self._state_dir = state_dir
        self._flash = flash
        self._store = store
        self._vendor, self._device_class = _identifiers(vendor, device_class)
        self._device_uuid = device_uuid
        self._installer = installer or _no_installer()
        self._on_alert = on_alert
        self._attributes = _checked_attributes(attributes or {})
        self._names = ("websocket", "longpoll") if transport == "auto" else (transport,)
        self._limits = limits or ClientLimits()
        self._clock = clock or SystemClock()
        self._random = random or SystemRandom()
        if boot_id is not None and len(boot_id) != BOOT_ID_SIZE:
            raise ValueError("boot_id is 16 bytes")
        self._boot_id = boot_id or os.urandom(BOOT_ID_SIZE)
        self._build_time_ms = build_time_ms
        self._ssl = ssl
        self._transport_factory = transport_factory
        self._fetch_factory = fetch_factory

        self.status = ClientStatus()
        self._exit = AsyncExitStack()
        self._parts: _Parts | None = None
        self._is_running = False
        self._wake = asyncio.Event()  # the core may have something to say
        self._alerts = asyncio.Event()  # the inbox may have something to hand over
        self._stored = asyncio.Event()  # something came, and is on stable storage
        self._renew = asyncio.Event()  # a new connection is asked for
        self._changed = asyncio.Event()  # another token, other attributes: a refusal no longer counts
        self._connected = asyncio.Event()
        self._stopping = asyncio.Event()

    # --- lifetime -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the durable state.

        Raises:
            StoreError: It cannot be opened, or is damaged.
        """
        assert self._parts is None, "a client is entered once"
        async with AsyncExitStack() as stack:
            self._parts = await self._open(stack)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()
        self._parts = None

    async def run(self) -> None:
        """Be a device until ``stop`` or cancellation.

        Raises:
            RebootRequiredError: An installer wants the process started again; the update goes on then.
            StoreError: The update agent cannot store what it does.
        """
        parts = self._open_parts
        assert not self._is_running, "a client runs once at a time"
        self._is_running = True
        try:
            async with asyncio.TaskGroup() as group:
                name = f"fleetcast[{self._endpoint.device_id}]"
                tasks = [
                    group.create_task(self._connections(parts), name=f"{name}.connection"),
                    group.create_task(self._handler(parts), name=f"{name}.handler"),
                    group.create_task(self._updates(parts), name=f"{name}.updates"),
                ]
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise gravest(errors) from None
        except asyncio.CancelledError:
            parts.reconnect.stopped()
            raise
        else:
            parts.reconnect.stopped()
        finally:
            self._is_running = False
            self._stopping.clear()

    def stop(self) -> None:
        """Make ``run`` return, the connection closed normally."""
        self._stopping.set()

    # --- what the application may ask and tell ------------------------------------------------------------

    @property
    def inbox(self) -> Inbox:
        """Alerts that wait, ``transaction()`` for handlers, local dead letters."""
        return self._open_parts.inbox

    @property
    def updates(self) -> UpdateAgent:
        """The update agent."""
        return self._open_parts.updates

    @property
    def core(self) -> DeviceCore:
        """The conversation's state: positions, refusals."""
        return self._open_parts.core

    async def wait_connected(self) -> None:
        """Return once the gateway has welcomed this device."""
        await self._connected.wait()

    def set_token(self, token: Token) -> None:
        """Use another token from the next connection on; a wait after a refusal is over."""
        self._token_source = token
        self._changed.set()

    def set_attributes(self, attributes: Mapping[str, Attribute]) -> None:
        """Report other attributes: said with a new hello, soon."""
        self._attributes = _checked_attributes(attributes)
        if self._parts is not None:
            self._parts.core.attributes = self._attributes
        self._renew.set()
        self._changed.set()

    def uplink(
        self,
        data: bytes | str,
        *,
        content_type: str | None = None,
        best_effort: bool = False,
    ) -> bytes:
        """Send ``data`` to the operator's backend; return the id by which that knows it again.

        It is on stable storage when this returns, and sent until the backend took it or refused it for good:
        at least once, in order. What waits is ``core.uplinks.waiting``.

        Args:
            content_type: text/plain for a str, application/octet-stream for bytes, unless it is said.
            best_effort: It is sent once at most, if the device is connected soon, and kept in memory only.

        Raises:
            ValueError: ``data`` is over 64 KiB, or the content type cannot be one.
            UplinksFullError: As much as the device keeps waits already.
            StoreError: It could not be stored.
        """
        kind = "text/plain; charset=utf-8" if isinstance(data, str) else "application/octet-stream"
        uplink = Uplink(
            id=self._random.randbytes(16),
            content_type=content_type or kind,
            data=data.encode() if isinstance(data, str) else data,
            best_effort=best_effort,
        )
        try:
            checked(uplink)
        except WireError as error:
            raise ValueError(str(error)) from error
        self._open_parts.core.uplink(uplink)
        self._wake.set()
        return uplink.id

    def retry_now(self) -> None:
        """End any wait: whoever configures the device knows that something changed."""
        self._changed.set()

    # --- the connection -----------------------------------------------------------------------------------

    async def _connections(self, parts: _Parts) -> None:
        wait = parts.reconnect.first_wait()
        while True:
            await self._stay_away(wait)
            self._changed.clear()
            self._renew.clear()
            name = parts.choice.next(self._clock.monotonic())
            ending = await self._connect(parts, name)
            wait = self._after(parts, ending)

    async def _connect(self, parts: _Parts, name: str) -> _Ended:
        """Be connected once; return how it ended. Only a cancellation, or worse, comes through."""
        started: list[float] = []
        token = ""

        def on_ticket(ticket: bytes) -> None:
            parts.tickets.keep(ticket, token)

        def on_welcome(welcome: Welcome) -> None:
            started.append(self._clock.monotonic())
            parts.choice.welcomed()
            parts.reconnect.welcomed(welcome.spread_s)
            if welcome.ticket is not None:
                on_ticket(welcome.ticket)
            self.status.is_connected = True
            self.status.transport = name
            self.status.connected_at = started[0]
            self.status.connections += 1
            self._connected.set()
            _log.info("connected by %s", name)

        try:
            token = await self._token()
            async with self._link(parts, name, token) as link:
                await Connection(
                    parts.core,
                    parts.updates,
                    link,
                    clock=self._clock,
                    limits=self._limits.connection,
                    wake=self._wake,
                    on_welcome=on_welcome,
                    on_ticket=on_ticket,
                    on_stored=self._on_stored,
                    asked_to_end=self._renew,
                    end_at=parts.choice.return_at,
                ).run()
        except EndedByUsError as error:
            cause: Exception = error
        except (LinkClosedError, ContinuityError, StoreError) as error:
            cause = error
        except Exception as error:
            # A token function that raises, or our own bug: the device stays reachable and tries again.
            _log.exception("the connection broke")
            cause = error
        finally:
            self.status.is_connected = False
            self.status.connected_at = None
            self._connected.clear()
        return _Ended(cause, self._clock.monotonic() - started[0] if started else None)

    @asynccontextmanager
    async def _link(self, parts: _Parts, name: str, token: str) -> AsyncIterator[Link]:
        transport = self._transport_factory(name, parts.session, self._endpoint, self._clock)
        link = await transport.connect(parts.core.hello(parts.tickets.for_token(token)), token)
        try:
            yield link
        finally:
            await link.close()

    def _after(self, parts: _Parts, ended: _Ended) -> Wait:
        """Return how long to stay away after a connection, or the attempt at one."""
        cause = ended.cause
        self.status.last_ending = f"{type(cause).__name__}: {cause}"
        if isinstance(cause, EndedByUsError) and not self._renew.is_set():
            return Wait(0.0)  # for the preferred transport: nothing went wrong
        ending = Ending(
            was_welcomed=ended.lasted_s is not None,
            lasted_s=ended.lasted_s or 0.0,
            is_continuity=not isinstance(cause, LinkClosedError) or cause.is_continuity,
            close_code=cause.close_code if isinstance(cause, LinkClosedError) else None,
            http_status=cause.http_status if isinstance(cause, LinkClosedError) else None,
            retry_after_s=cause.retry_after_s if isinstance(cause, LinkClosedError) else None,
        )
        if ending.is_refusal:
            parts.tickets.drop()
        if isinstance(cause, LinkClosedError) and cause.blames_transport and not ending.was_welcomed:
            parts.choice.failed(self._clock.monotonic())
        try:
            wait = parts.reconnect.ended(ending)
        except StoreError:
            _log.exception("the state cannot be written")
            wait = Wait(self._limits.store_retry_s)
        _log.info("connection ended: %s; back in %.1f s", self.status.last_ending, wait.seconds)
        return wait

    async def _stay_away(self, wait: Wait) -> None:
        """Wait; after a refusal, only until the credential or the configuration changes."""
        if not wait.is_refused:
            # A change ends this wait, too: it is somebody at the device, not a fleet.
            await wait_for_event(self._changed, self._clock, wait.seconds)
            return
        refused = self._last_token
        ends_at = self._clock.monotonic() + wait.seconds
        while (left_s := ends_at - self._clock.monotonic()) > 0:
            if await wait_for_event(self._changed, self._clock, min(left_s, self._limits.token_poll_s)):
                return
            with contextlib.suppress(Exception):  # a token function that raises has no new token
                if callable(self._token_source) and await self._token() != refused:
                    return

    async def _token(self) -> str:
        source = self._token_source
        found = source() if callable(source) else source
        token = await found if inspect.isawaitable(found) else found
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("a token is printable ASCII without spaces")
        self._last_token = token
        return token

    # --- the application ----------------------------------------------------------------------------------

    async def _handler(self, parts: _Parts) -> None:
        """Hand over one alert after the other; what the flash refuses is tried again, never dropped."""
        if self._on_alert is None:
            return
        while True:
            self._alerts.clear()
            taken = parts.inbox.take(self._clock.monotonic())
            if taken is None:
                due = parts.inbox.next_due()
                wait_s = None if due is None else due - self._clock.monotonic()
                await wait_for_event(self._alerts, self._clock, wait_s)
                continue
            entry, alert = taken
            try:
                await self._hand_over(parts, entry, alert, self._on_alert)
            except StoreError:
                _log.exception("the state cannot be written")
                retry_at = self._clock.monotonic() + self._limits.store_retry_s
                parts.inbox.release(entry, retry_at=retry_at)
            self._wake.set()  # the window may open, a nack may wait

    async def _hand_over(
        self, parts: _Parts, entry: Entry, alert: ReceivedAlert, handler: AlertHandler
    ) -> None:
        if alert.expires_at is not None and parts.updates.now_ms() >= alert.expires_at:
            parts.core.nacked(parts.inbox.give_up(entry, "expired"))
            return
        try:
            async with asyncio.timeout(self._limits.handler_timeout_s):
                await handler(alert)
        except FlashError:
            raise  # its transaction could not be stored: not the handler's fault
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._failed(parts, entry, alert)  # it awaited something that was cancelled
        except Exception:
            self._failed(parts, entry, alert)
        else:
            parts.inbox.done(entry)

    def _failed(self, parts: _Parts, entry: Entry, alert: ReceivedAlert) -> None:
        _log.exception("the handler raised for alert %s of %s", alert.id.hex(), alert.channel)
        nack = parts.inbox.failed(entry, self._clock.monotonic(), self._random)
        if nack is not None:
            parts.core.nacked(nack)

    # --- updates ------------------------------------------------------------------------------------------

    async def _updates(self, parts: _Parts) -> None:
        try:
            await parts.updates.run()
        except RebootRequiredError:
            # Reports are durable; those who watch see "rebooting" before the silence all the same.
            ends_at = self._clock.monotonic() + self._limits.reboot_grace_s
            while self.status.is_connected and parts.updates.pending_reports():
                self._stored.clear()
                left_s = ends_at - self._clock.monotonic()
                if left_s <= 0 or not await wait_for_event(self._stored, self._clock, left_s):
                    break
            raise

    # --- parts --------------------------------------------------------------------------------------------

    @property
    def _open_parts(self) -> _Parts:
        if self._parts is None:
            raise RuntimeError("use the client in `async with`")
        return self._parts

    async def _open(self, stack: AsyncExitStack) -> _Parts:
        limits = self._limits
        store = self._store
        if store is None:
            flash = self._flash
            if flash is None:
                assert self._state_dir is not None, "checked at the start"
                flash = stack.enter_context(FileFlash(self._state_dir))
            store = StateStore(flash, limits=limits.store)
        session = await stack.enter_async_context(open_session(ssl=self._ssl))
        updates = UpdateAgent(
            state=store,
            fleet=self._endpoint.fleet,
            device_id=self._endpoint.device_id,
            anchors=self._release_keys,
            vendor=self._vendor,
            device_class=self._device_class,
            device_uuid=self._device_uuid,
            installer=self._installer,
            fetch=self._fetch_factory(session, self._endpoint, self._token),
            clock=self._clock,
            send_report=self._report_came,
            limits=limits.update,
            random=self._random.randbytes,
            build_time_ms=self._build_time_ms,
            request_statement=self._renew.set,
        )
        inbox = Inbox(store, limits.inbox)
        core = DeviceCore(
            fleet=self._endpoint.fleet,
            device_id=self._endpoint.device_id,
            boot_id=self._boot_id,
            state=store,
            inbox=inbox,
            trust=updates,
            attributes=self._attributes,
            limits=limits.core,
        )
        return _Parts(
            session=session,
            inbox=inbox,
            updates=updates,
            core=core,
            reconnect=Reconnect(store, self._random, limits.reconnect),
            choice=TransportChoice(self._names, limits.choice),
            tickets=TicketKeeper(store),
        )

    def _on_stored(self) -> None:
        self._alerts.set()
        self._stored.set()

    def _report_came(self, report: Report) -> None:
        self._wake.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What exists between enter and exit."""

    session: aiohttp.ClientSession
    inbox: Inbox
    updates: UpdateAgent
    core: DeviceCore
    reconnect: Reconnect
    choice: TransportChoice
    tickets: TicketKeeper


@dataclass(frozen=True, slots=True)
class _Ended:
    """Why a connection ended, and how long after its welcome; None: it had none."""

    cause: Exception
    lasted_s: float | None


def _identifiers(vendor: str | bytes | None, device_class: str | bytes | None) -> tuple[bytes, bytes]:
    vendor_id = vendor_identifier(vendor) if isinstance(vendor, str) else vendor or bytes(16)
    class_id = (
        class_identifier(vendor_id, device_class)
        if isinstance(device_class, str)
        else device_class or bytes(16)
    )
    if len(vendor_id) != 16 or len(class_id) != 16:
        raise ValueError("vendor and device_class are names, or UUIDs of 16 bytes")
    return vendor_id, class_id


def _checked_attributes(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    size = sum(len(name) + len(str(value).encode()) for name, value in attributes.items())
    if size > ATTRIBUTES_SIZE_MAX:
        raise ValueError(f"attributes are {size} bytes, over {ATTRIBUTES_SIZE_MAX}")
    return dict(attributes)


def _no_installer() -> Installer:
    """Return an installer of nothing: without a component no file of it is ever touched."""
    return SlotInstaller(cast("SlotFiles", None), components=())
