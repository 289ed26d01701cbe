"""A virtual device: the SDK's client, as it is, on hardware that boots, loses power and boots again."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from device_sdk import (
    DeviceClient,
    PublicKey,
    RebootRequiredError,
    ReceivedAlert,
    SlotInstaller,
    StoreError,
)
from device_sdk.client import ClientLimits, make_transport
from device_sdk.store import CorruptStateError, PowerLossError, StateStore, StoreLimits
from device_sdk.transport.download import HTTPFetch
from device_sdk.transport.http import Endpoint
from device_sdk.transport.link import Transport
from device_sdk.update import DeviceClock, Factory, Fetch, UpdateLimits
from device_sdk.wire.messages import (
    Ack,
    Advance,
    Alert,
    FromDevice,
    FromGateway,
    Hello,
    Nack,
    Position,
    Recorded,
    Report,
    Welcome,
)
from firmware_sim.attacks import Notebook
from firmware_sim.bootloader import Bootloader
from firmware_sim.clock import VirtualClock
from firmware_sim.dice import Dice, between
from firmware_sim.download import DownloadState, FaultyFetch
from firmware_sim.durable import APP_KEY, has_nack, read_floors, read_handled, read_inbox
from firmware_sim.flash import VirtualFlash
from firmware_sim.genuine import Genuine, Releases
from firmware_sim.hostile import Attacker, HostileFetch, HostileTransport
from firmware_sim.invariants import Booted, Invariant, Invariants
from firmware_sim.link import FaultyTransport, LinkState, TappedTransport
from firmware_sim.meter import Series
from firmware_sim.record import Record
from firmware_sim.scenario import DevicePlan, Scenario
from firmware_sim.trace import Event, Trace

_log = logging.getLogger("fleetcast.sim")

BUILD_TIME_MS: Final = 1_735_689_600_000
"""1 January 2025: no firmware is older, and so no clock that says less is believed."""

STATE_SLACK_BYTES: Final = 32 * 1024
"""A small flash, which is compacted often: what every device writes is in this program's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """All that a device is told before it is switched on.

    Attributes:
        url: The gateway's.
        release_keys: The operator's.
    """

    url: str
    fleet: str
    token: str
    release_keys: Sequence[PublicKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the devices of one run share.

    Attributes:
        now_s: Seconds since the run began.
        sink: Told each event of each device.
    """

    releases: Releases
    series: Series
    notebook: Notebook
    now_s: Callable[[], float] = lambda: 0.0
    sink: Callable[[str, Event], None] | None = None


class VirtualDevice:
    """One device of a simulation."""

    def __init__(
        self,
        plan: DevicePlan,
        scenario: Scenario,
        provision: Provision,
        surroundings: Surroundings,
        *,
        seed: int,
    ) -> None:
        self.plan = plan
        self.record = Record(series=surroundings.series)
        sink = surroundings.sink
        self.trace = Trace(
            now_s=surroundings.now_s,
            sink=None if sink is None else lambda event: sink(plan.device_id, event),
        )
        self._scenario = scenario
        self._provision = provision
        self._dice = Dice(seed, plan.device_id)
        self._clock = VirtualClock(plan.group.clock, dice=self._dice, trace=self.trace)
        self._writes = self._dice.stream("writes")
        self.flash = VirtualFlash(
            capacity_bytes=plan.group.flash.capacity_bytes, fails=lambda: self._write_fails()
        )
        self._link_state = LinkState()
        self._download_state = DownloadState()
        self._bootloader = Bootloader(
            self.flash,
            component=scenario.component,
            factory=Factory(plan.group.sequence, plan.group.version),
            faults=plan.group.boot,
            dice=self._dice,
            trace=self.trace,
        )
        self._genuine = Genuine(surroundings.releases)
        self.invariants = Invariants(
            device_id=plan.device_id, seed=seed, trace=self.trace, genuine=self._genuine
        )
        self._notebook = surroundings.notebook
        self.attacker: Attacker | None = None
        if plan.group.gateway.is_there:
            self.attacker = Attacker(
                plan.group.gateway,
                notebook=surroundings.notebook,
                fleet=provision.fleet,
                device_id=plan.device_id,
                dice=self._dice,
                trace=self.trace,
                check=lambda failure: self.invariants.check(Invariant.ATTACKS_REFUSED, failure),
            )
        self._has_attackers = any(group.gateway.is_there for group in scenario.groups)
        self._limits = ClientLimits(
            store=StoreLimits(slack_bytes=STATE_SLACK_BYTES),
            update=UpdateLimits(rate_window_s=plan.group.rate_window_s),
        )
        self._client: DeviceClient | None = None
        self._store: StateStore | None = None

    @property
    def unmet(self) -> str | None:
        """What is missing of what the scenario expects; None: nothing."""
        missing = self.record.unmet(self.plan.group.expect)
        if missing is None and self.attacker is not None:
            return self.attacker.unmet
        return missing

    async def run(self) -> None:
        """Be a device until cancelled. What ends it otherwise is in ``record.crash``."""
        group = self.plan.group
        await self._clock.sleep(self._dice.stream("start").random() * group.start_within_s)
        task = asyncio.current_task()
        assert task is not None, "run is a task"
        try:
            # The power may go in the middle of a cancellation, and hide it.
            while not task.cancelling():
                self.record.phase = "booting"
                boots = self._dice.stream("boots", self._bootloader.boots)
                await self._clock.sleep(between(boots, group.boot.boot_s))
                await self._live_once()
        except Exception as error:
            _log.exception("%s crashed", self.plan.device_id)
            self.record.crash = f"{type(error).__name__}: {error}"
            self.record.phase = "crashed"
            self.invariants.fail(Invariant.SURVIVES, self.record.crash)

    def lose_network(self, for_s: float) -> None:
        """Break the device's link now, for so long."""
        self.trace.note("outage", f"{for_s:.2f} s")
        self._link_state.lose_network(self._clock.monotonic() + for_s)

    def check(self) -> None:
        """Check the invariants of what is on flash now, if the device is on."""
        if self._store is None or self.flash.is_dead:
            return
        running = None if self._client is None else self._client.updates.installed()
        self.invariants.stands(
            read_floors(self._store), None if running is None else running[self._scenario.component]
        )

    # --- one boot -----------------------------------------------------------------------------------------

    async def _live_once(self) -> None:
        """Boot and live until the next boot is due."""
        self._charge()
        self._clock.boot()
        self.trace.event("boot", self._bootloader.boots + 1)
        try:
            installer = self._bootloader.boot()
            self.record.boots = self._bootloader.boots
            if installer is not None:
                await self._live(installer)
        except PowerLossError:
            await self._lose_power()
        except RebootRequiredError:
            self.trace.event("reboot")
        except CorruptStateError:
            raise  # a device does not come back from this
        except (StoreError, OSError) as error:
            _log.info("%s starts again: %s", self.plan.device_id, error)
            self.trace.event("restart", error)
        finally:
            self._store = None

    async def _live(self, installer: SlotInstaller) -> None:
        group, scenario, provision = self.plan.group, self._scenario, self._provision
        self._store = store = StateStore(self.flash.state, limits=self._limits.store)
        running = installer.running()[scenario.component]
        self.record.phase = "waiting"
        async with DeviceClient(
            url=provision.url,
            fleet=provision.fleet,
            device_id=self.plan.device_id,
            token=provision.token,
            release_keys=provision.release_keys,
            store=store,
            vendor=scenario.vendor,
            device_class=scenario.device_class,
            installer=installer,
            on_alert=self._on_alert,
            attributes={**group.attributes, "firmware": running.version},
            transport=self.plan.transport,
            encoding=self.plan.encoding,
            limits=self._limits,
            clock=self._clock,
            build_time_ms=BUILD_TIME_MS,
            transport_factory=self._transport,
            fetch_factory=self._fetch,
        ) as client:
            self._client = client
            try:
                self._booted(store, installer)
                await client.run()
            finally:
                self._client = None

    def _booted(self, store: StateStore, installer: SlotInstaller) -> None:
        assert self._client is not None, "it is open"
        slots, name = self.flash.slots, installer.running_file(self._scenario.component)
        image = slots.read(name, 0, slots.size(name))
        handled = read_handled(store)
        self.record.alerts = sum(count for _, _, count in handled.values())
        updates = self._client.updates
        self.invariants.booted(
            Booted(
                inbox=read_inbox(store),
                handled=handled,
                has_nack=lambda channel, epoch, offset: has_nack(store, channel, epoch, offset),
                jobs=[job.deployment for job in updates.jobs],
                reports={one.id: (one.deployment, one.state) for one in updates.pending_reports()},
                image_digest=hashlib.sha256(image).digest() if image else b"",
            )
        )
        self.check()

    async def _on_alert(self, alert: ReceivedAlert) -> None:
        """Count an alert exactly once: what it changes is committed with its end."""
        client, store = self._client, self._store
        assert client is not None, "only a client that runs hands alerts over"
        assert store is not None, "it has one"
        key = f"{APP_KEY}{alert.channel}"
        if self.attacker is not None:
            self.attacker.handled(alert.channel, alert.epoch, alert.offset, alert.data)
        with client.inbox.transaction() as transaction:
            before, count = None, 0
            match transaction.get(key):
                case [int(epoch), int(offset), int(count)]:
                    before = Position(epoch, offset)
            self.trace.event("handle", alert.channel, alert.epoch, alert.offset)
            self.invariants.handing_over(
                channel=alert.channel,
                position=Position(alert.epoch, alert.offset),
                id=alert.id,
                before=before,
                has_nack=lambda channel, epoch, offset: has_nack(store, channel, epoch, offset),
            )
            transaction.put(key, [alert.epoch, alert.offset, count + 1])
        self.invariants.handled(alert.channel)
        self.record.handled(time.time() * 1000 - alert.issued_at)

    # --- power --------------------------------------------------------------------------------------------

    def _charge(self) -> None:
        """Give the device the energy that it has until the next cut."""
        faults = self.plan.group.flash
        if self.record.power_cuts < faults.power_cuts:
            random = self._dice.stream("power", self.record.power_cuts)
            self.flash.set_energy(int(between(random, faults.power_cut_bytes)))

    async def _lose_power(self) -> None:
        faults = self.plan.group.flash
        self.record.phase = "without_power"
        self.trace.note("power_cut", f"cut {self.record.power_cuts + 1}")
        random = self._dice.stream("tear", self.record.power_cuts)
        self.record.power_cuts += 1
        await self._clock.sleep(between(random, faults.off_s))
        self.flash.restore_power(random)

    def _write_fails(self) -> bool:
        chance = self.plan.group.flash.write_fails
        if not chance or self._writes.random() >= chance:
            return False
        self.trace.note("write_failed", f"at unit {self.flash.spent}")
        return True

    # --- what surrounds the client ------------------------------------------------------------------------

    def _transport(
        self, name: str, session: aiohttp.ClientSession, endpoint: Endpoint, clock: DeviceClock
    ) -> Transport:
        transport: Transport = TappedTransport(make_transport(name, session, endpoint, clock), self._said)
        if self.attacker is not None:
            transport = HostileTransport(transport, self.attacker)
        return FaultyTransport(
            transport,
            faults=self.plan.group.link,
            dice=self._dice,
            state=self._link_state,
            trace=self.trace,
            watch=_Watch(self, name),
            clock=clock,
            is_powered=lambda: not self.flash.is_dead,
        )

    def _said(self, message: FromGateway) -> None:
        """The gateway truly said ``message``."""
        self._genuine.said(message)
        if self._has_attackers:
            self._notebook.read(self.plan.device_id, message)

    def _fetch(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, token: Callable[[], Awaitable[str]]
    ) -> Fetch:
        fetch: Fetch = HTTPFetch(session, endpoint, token)
        if self.attacker is not None:
            fetch = HostileFetch(fetch, self.attacker)
        return FaultyFetch(
            fetch,
            faults=self.plan.group.link,
            dice=self._dice,
            state=self._download_state,
            trace=self.trace,
            clock=self._clock,
        )


class _Watch:
    """Writes what passes the link into the device's record and trace, and has it checked."""

    def __init__(self, device: VirtualDevice, transport: str) -> None:
        self._device = device
        self._record = device.record
        self._trace = device.trace
        self._invariants = device.invariants
        self._transport = transport

    def hello(self, hello: Hello) -> None:
        self._trace.event("hello", self._transport)
        self._record.connecting(time.monotonic())
        self._invariants.hello(hello)
        self._device.check()

    def received(self, message: FromGateway) -> None:
        attacker = self._device.attacker
        match message:
            case Alert():
                self._trace.event("alert", message.channel, message.epoch, message.offset)
            case Advance():
                details = (message.channel, message.epoch, message.first, message.last, message.reason)
                self._trace.event("advance", *details)
            case Recorded():
                self._trace.event("recorded", message.id, message.status, message.code or "")
            case _:
                self._trace.event(type(message).__name__.lower(), getattr(message, "deployment", ""))
        if isinstance(message, Welcome):
            self._record.phase = "connected"
        self._record.received(message, self._transport, time.monotonic())
        self._invariants.received(message)
        if attacker is not None:
            attacker.delivered(message)

    def sent(self, message: FromDevice) -> None:
        match message:
            case Ack():
                positions = [f"{name}@{at.epoch}:{at.offset}" for name, at in message.positions.items()]
                self._trace.event("ack", *positions, message.deployment or "")
            case Nack():
                self._trace.event("nack", message.channel, message.epoch, message.offset, message.code)
            case Report():
                self._trace.event(
                    "report", message.deployment, message.seq, message.state, message.code or ""
                )
            case _:
                self._trace.event(type(message).__name__.lower())
        attacker = self._device.attacker
        if attacker is not None:
            attacker.answered(message)
            if isinstance(message, Report | Ack) and attacker.is_forged(message.deployment):
                if isinstance(message, Report):
                    self._record.refused(message.code or message.state)
                    self._device.check()
                return
        self._record.sent(message, time.monotonic())
        self._invariants.sent(message)
        if isinstance(message, Report):
            self._device.check()

    def closed(self) -> None:
        self._trace.event("closed")
        if self._record.phase == "connected":
            self._record.phase = "waiting"

    def failed(self, reason: str) -> None:
        self._trace.event("failed", reason)
        self._record.connection_failed(reason)
