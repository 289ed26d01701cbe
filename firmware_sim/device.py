"""A virtual device: the SDK's client, as it is, on hardware that boots, loses power and boots again."""

from __future__ import annotations

import asyncio
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
    SystemClock,
)
from device_sdk.client import make_transport
from device_sdk.store import CorruptStateError, PowerLossError
from device_sdk.transport.download import HTTPFetch
from device_sdk.transport.http import Endpoint
from device_sdk.transport.link import Transport
from device_sdk.update import DeviceClock, Factory, Fetch
from device_sdk.wire.messages import FromDevice, FromGateway
from firmware_sim.bootloader import Bootloader
from firmware_sim.dice import Dice, between
from firmware_sim.download import DownloadState, FaultyFetch
from firmware_sim.flash import VirtualFlash
from firmware_sim.link import FaultyTransport, LinkState
from firmware_sim.record import Record
from firmware_sim.scenario import DevicePlan, Scenario
from firmware_sim.trace import Trace

_log = logging.getLogger("fleetcast.sim")

_LAST: Final = "sim/last/"


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


class VirtualDevice:
    """One device of a simulation."""

    def __init__(self, plan: DevicePlan, scenario: Scenario, provision: Provision, *, seed: int) -> None:
        self.plan = plan
        self.record = Record()
        self._scenario = scenario
        self._provision = provision
        self._dice = Dice(seed, plan.device_id)
        self._clock = SystemClock(is_wall_trusted=plan.group.clock == "trusted")
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
        self._client: DeviceClient | None = None

    @property
    def trace(self) -> Trace:
        """The faults that happened."""
        return self.record.trace

    @property
    def unmet(self) -> str | None:
        """What is missing of what the scenario expects; None: nothing."""
        return self.record.unmet(self.plan.group.expect)

    async def run(self) -> None:
        """Be a device until cancelled. What ends it otherwise is in ``record.crash``."""
        group = self.plan.group
        await self._clock.sleep(self._dice.stream("start").random() * group.start_within_s)
        task = asyncio.current_task()
        assert task is not None, "run is a task"
        try:
            # The power may go in the middle of a cancellation, and hide it.
            while not task.cancelling():
                boots = self._dice.stream("boots", self._bootloader.boots)
                await self._clock.sleep(between(boots, group.boot.boot_s))
                await self._live_once()
        except Exception as error:
            _log.exception("%s crashed", self.plan.device_id)
            self.record.crash = f"{type(error).__name__}: {error}"

    # --- one boot -----------------------------------------------------------------------------------------

    async def _live_once(self) -> None:
        """Boot and live until the next boot is due."""
        self._charge()
        try:
            installer = self._bootloader.boot()
            self.record.boots = self._bootloader.boots
            if installer is not None:
                await self._live(installer)
        except PowerLossError:
            await self._lose_power()
        except RebootRequiredError:
            pass
        except CorruptStateError:
            raise  # a device does not come back from this
        except (StoreError, OSError) as error:
            _log.info("%s starts again: %s", self.plan.device_id, error)
        finally:
            self.record.is_connected = False

    async def _live(self, installer: SlotInstaller) -> None:
        group, scenario, provision = self.plan.group, self._scenario, self._provision
        running = installer.running()[scenario.component]
        async with DeviceClient(
            url=provision.url,
            fleet=provision.fleet,
            device_id=self.plan.device_id,
            token=provision.token,
            release_keys=provision.release_keys,
            flash=self.flash.state,
            vendor=scenario.vendor,
            device_class=scenario.device_class,
            installer=installer,
            on_alert=self._on_alert,
            attributes={**group.attributes, "firmware": running.version},
            transport=self.plan.transport,
            encoding=self.plan.encoding,
            clock=self._clock,
            transport_factory=self._transport,
            fetch_factory=self._fetch,
        ) as client:
            self._client = client
            try:
                self.record.alerts = sum(_count(value) for _, value in client.inbox.values(_LAST))
                await client.run()
            finally:
                self._client = None

    async def _on_alert(self, alert: ReceivedAlert) -> None:
        """Count an alert exactly once: what it changes is committed with its end."""
        assert self._client is not None, "only a client that runs hands alerts over"
        key = f"{_LAST}{alert.channel}"
        with self._client.inbox.transaction() as transaction:
            match transaction.get(key):
                case [int(epoch), int(offset), int(count)]:
                    if epoch == alert.epoch and alert.offset <= offset:
                        self.record.disorders += 1
                case _:
                    count = 0
            transaction.put(key, [alert.epoch, alert.offset, count + 1])
        self.record.alerts += 1
        self.record.latencies_ms.append(time.time() * 1000 - alert.issued_at)

    # --- power --------------------------------------------------------------------------------------------

    def _charge(self) -> None:
        """Give the device the energy that it has until the next cut."""
        faults = self.plan.group.flash
        if self.record.power_cuts < faults.power_cuts:
            random = self._dice.stream("power", self.record.power_cuts)
            self.flash.set_energy(int(between(random, faults.power_cut_bytes)))

    async def _lose_power(self) -> None:
        faults = self.plan.group.flash
        self.trace.note("power_cut", f"cut {self.record.power_cuts + 1}")
        random = self._dice.stream("tear", self.record.power_cuts)
        self.record.power_cuts += 1
        await self._clock.sleep(between(random, faults.off_s))
        self.flash.restore_power(random)

    def _write_fails(self) -> bool:
        if self._writes.random() >= self.plan.group.flash.write_fails:
            return False
        self.trace.note("write_failed", f"at unit {self.flash.spent}")
        return True

    # --- what surrounds the client ------------------------------------------------------------------------

    def _transport(
        self, name: str, session: aiohttp.ClientSession, endpoint: Endpoint, clock: DeviceClock
    ) -> Transport:
        return FaultyTransport(
            make_transport(name, session, endpoint, clock),
            faults=self.plan.group.link,
            dice=self._dice,
            state=self._link_state,
            trace=self.trace,
            watch=_Watch(self.record, name),
            clock=clock,
            is_powered=lambda: not self.flash.is_dead,
        )

    def _fetch(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, token: Callable[[], Awaitable[str]]
    ) -> Fetch:
        return FaultyFetch(
            HTTPFetch(session, endpoint, token),
            faults=self.plan.group.link,
            dice=self._dice,
            state=self._download_state,
            trace=self.trace,
            clock=self._clock,
        )


class _Watch:
    """Writes what passes the link into the device's record."""

    def __init__(self, record: Record, transport: str) -> None:
        self._record = record
        self._transport = transport

    def received(self, message: FromGateway) -> None:
        self._record.is_connected = True
        self._record.received(message, self._transport)

    def sent(self, message: FromDevice) -> None:
        self._record.sent(message)


def _count(value: object) -> int:
    match value:
        case [int(), int(), int(count)]:
            return count
        case _:
            raise AssertionError("written by the handler")
