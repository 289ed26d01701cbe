"""A device as a process of its own, on files, which is killed by SIGKILL in the middle of what it does.

``live`` is a whole life: from start to a reboot, to its end, or to the write at which it is to be killed.
The kill is the real one: nothing of the process runs afterwards, no file is closed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_sdk import (
    ClientLimits,
    DeviceClient,
    FileFlash,
    PublicKey,
    RebootRequiredError,
    ReceivedAlert,
    SlotInstaller,
    StateStore,
)
from device_sdk.client import TransportName
from device_sdk.reconnect import ReconnectLimits
from device_sdk.update import DirectorySlotFiles, UpdateLimits
from tests.harness.operator import COMPONENT, DEVICE_CLASS, VENDOR

REBOOT, DONE = 10, 11
POLL_S = 0.02
LIMITS = ClientLimits(
    reconnect=ReconnectLimits(base_s=0.05, cap_s=0.5),
    update=UpdateLimits(checkpoint_bytes=128 * 1024, backoff_s=0.05),
)


STEPS = ("starting", "idle", "received", "verified", "downloading", "installing", "rebooting")


@dataclass(frozen=True)
class Kill:
    """A place to be killed at.

    Attributes:
        step, nth: The nth write from when that step, or a later one, is reached.
        how: ``before`` the write, ``in`` its middle or ``after`` it.
    """

    step: str
    nth: int
    how: str


@dataclass(frozen=True, kw_only=True)
class Life:
    """What a process is told.

    Attributes:
        sequence, alerts: It is done when it runs that release, confirmed, and has handled so many.
        kill_at: Where it is killed; None: never.
    """

    url: str
    fleet: str
    device_id: str
    token: str
    release_key: Path
    folder: Path
    transport: TransportName
    sequence: int
    alerts: int
    kill_at: Kill | None


def live(life: Life) -> None:
    """Be the device; exit with REBOOT or DONE."""
    os._exit(asyncio.run(_live(life)))


def alerts_handled(folder: Path) -> list[int]:
    """Return the offsets of the alerts that the device's handler committed, in order."""
    with FileFlash(folder / "state") as flash:
        handled = StateStore(flash).get("app/offsets") or []
    assert isinstance(handled, list)
    return handled


class Killer:
    """Counts writes to the device's files, and kills the process at the one it was told."""

    def __init__(self, life: Life) -> None:
        self._kill = life.kill_at
        self._log = life.folder / "killed"
        self._writes = 0
        self.step: Callable[[], str] = lambda: "starting"

    def write(self, work: Callable[[], None], half: Callable[[], None] = lambda: None) -> None:
        """Do ``work``, unless this is where it ends; ``half`` is a part of it."""
        if self._kill is None:
            work()
            return
        step = self.step()
        if self._writes or STEPS.index(step) >= STEPS.index(self._kill.step):
            self._writes += 1
        if self._writes != self._kill.nth:
            work()
            return
        with self._log.open("a") as log:
            log.write(f"{step}\n")
        if self._kill.how == "in":
            half()
        elif self._kill.how == "after":
            work()
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyFlash(FileFlash):
    def __init__(self, directory: Path, killer: Killer) -> None:
        super().__init__(directory)
        self._killer = killer

    def append(self, name: str, data: bytes) -> None:
        whole = super().append
        self._killer.write(lambda: whole(name, data), lambda: whole(name, data[: len(data) // 2]))

    def sync(self, name: str) -> None:
        whole = super().sync
        self._killer.write(lambda: whole(name))

    def replace(self, name: str, data: bytes) -> None:
        whole = super().replace
        self._killer.write(lambda: whole(name, data))


class DeadlySlotFiles(DirectorySlotFiles):
    def __init__(self, directory: Path, killer: Killer) -> None:
        super().__init__(directory)
        self._killer = killer

    def append(self, name: str, data: bytes) -> None:
        whole = super().append
        self._killer.write(lambda: whole(name, data), lambda: whole(name, data[: len(data) // 2]))

    def truncate(self, name: str, size: int) -> None:
        whole = super().truncate
        self._killer.write(lambda: whole(name, size))

    def sync(self, name: str) -> None:
        whole = super().sync
        self._killer.write(lambda: whole(name))

    def replace(self, name: str, data: bytes) -> None:
        whole = super().replace
        temporary = self.path(f"{name}.tmp")
        self._killer.write(lambda: whole(name, data), lambda: _put(temporary, data[: len(data) // 2]))


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def _live(life: Life) -> int:
    killer = Killer(life)
    flash = DeadlyFlash(life.folder / "state", killer)
    installer = SlotInstaller(DeadlySlotFiles(life.folder / "slots", killer), components=(COMPONENT,))
    client: DeviceClient

    async def on_alert(alert: ReceivedAlert) -> None:
        with client.inbox.transaction() as transaction:
            handled = transaction.get("offsets") or []
            assert isinstance(handled, list)
            transaction.put("offsets", [*handled, alert.offset])

    client = DeviceClient(
        url=life.url,
        fleet=life.fleet,
        device_id=life.device_id,
        token=life.token,
        release_keys=[PublicKey.load(life.release_key)],
        flash=flash,
        vendor=VENDOR,
        device_class=DEVICE_CLASS,
        installer=installer,
        on_alert=on_alert,
        transport=life.transport,
        limits=LIMITS,
    )

    def step() -> str:
        jobs = client.updates.jobs
        return jobs[0].step.value if jobs else "idle"

    def is_done() -> bool:
        running = installer.running()[COMPONENT]
        handled = client.inbox.value("offsets") or []
        assert isinstance(handled, list)
        return (
            running.is_confirmed
            and running.sequence == life.sequence
            and not client.updates.pending_reports()
            and len(handled) >= life.alerts
        )

    async with client:
        killer.step = step
        running = asyncio.create_task(client.run())
        while not running.done():
            if is_done():
                client.stop()
                await running
                return DONE
            await asyncio.sleep(POLL_S)
        try:
            running.result()
        except RebootRequiredError:
            return REBOOT
        raise AssertionError("a device runs until it is stopped")
