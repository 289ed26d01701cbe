"""What is done in each step of the update procedure: verify, download, install, try out.

One job at a time. A step is stored before it is acted on, so each of these may find that a part of its
work was done before a crash. What a message changes is ``agent``; which step follows is ``procedure``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from device_sdk.errors import BootFailedError, ClockUnknownError, InstallFailedError, UpdateError
from device_sdk.update.acceptance import Target, accept_manifest
from device_sdk.update.download import Download, blamed_on_installer
from device_sdk.update.ledger import Ledger
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.ports import Boot, DeviceClock, Fetch, Image, Installer, StateStore
from device_sdk.update.procedure import Event, Job, Step
from device_sdk.update.trust import TrustState
from device_sdk.wire.errors import WireError

log = logging.getLogger(__name__)

_ETAG: Final = "update/etag/"


class Worker:
    """Takes the jobs of a ledger to their ends."""

    def __init__(
        self,
        *,
        state: StateStore,
        ledger: Ledger,
        trust: TrustState,
        target: Target,
        installer: Installer,
        fetch: Fetch,
        clock: DeviceClock,
        random: Callable[[int], bytes],
        request_statement: Callable[[], None],
        limits: UpdateLimits,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._trust = trust
        self._target = target
        self._installer = installer
        self._fetch = fetch
        self._clock = clock
        self._random = random
        self._request_statement = request_statement
        self._limits = limits
        self._statement_came = asyncio.Event()
        self._activity: asyncio.Task[None] | None = None
        self._active: bytes | None = None
        self._told_percent = 0
        self._told_at = float("-inf")

    async def work(self) -> None:
        """Take every job that is held to its end."""
        while jobs := self._ledger.in_turn():
            job = jobs[0]
            self._active = job.deployment
            self._activity = asyncio.create_task(
                self._take_step(job), name=f"update[{job.deployment.hex()}].{job.step}"
            )
            try:
                await self._activity
            except asyncio.CancelledError:
                task = asyncio.current_task()
                is_ours = task is not None and task.cancelling() > 0
                if is_ours or self._ledger.job(job.deployment) is not None:
                    raise
            finally:
                self._activity = self._active = None

    def drop(self, deployment: bytes) -> None:
        """Stop working on ``deployment``, which is not held any more."""
        if self._active == deployment and self._activity is not None:
            self._activity.cancel()

    def wake(self) -> None:
        """Look at the time again: a statement came."""
        self._statement_came.set()

    async def _take_step(self, job: Job) -> None:
        try:
            match job.step:
                case Step.RECEIVED:
                    await self._verify(job)
                case Step.VERIFIED:
                    self._start(job)
                case Step.DOWNLOADING:
                    await self._download(job)
                case Step.INSTALLING:
                    await self._install(job)
                case Step.REBOOTING:
                    await self._try_out(job)
                case _:
                    raise AssertionError(f"{job.step} is not held")
        except (WireError, UpdateError) as error:
            job = self._current(job)
            if job.step is Step.RECEIVED:
                self._ledger.end(job, Event.REFUSE, error=error)
            else:
                await self._discard(job.component)
                self._ledger.end(self._current(job), Event.FAIL, error=error)

    def _current(self, job: Job) -> Job:
        """Return ``job`` as it is now: messages renew, note and drop it while a step awaits."""
        current = self._ledger.job(job.deployment)
        if current is None:
            raise asyncio.CancelledError
        return current

    async def _verify(self, job: Job) -> None:
        await self._await_time()
        job = self._current(job)
        accepted = accept_manifest(
            self._ledger.envelope(job),
            manifest_digest=job.manifest_digest,
            component=job.component,
            expires_at=job.expires_at,
            trust=self._trust,
            target=self._target,
            installer=self._installer,
            limits=self._limits,
        )
        self._ledger.step(replace(job.after(Event.VERIFY), image=accepted.image, uri=accepted.uri))

    def _start(self, job: Job) -> None:
        running = self._installer.running().get(job.component)
        if running is not None and running.is_confirmed and running.digest == job.manifest_digest:
            self._commit(job)
        else:
            self._ledger.step(job.after(Event.DOWNLOAD))

    async def _download(self, job: Job) -> None:
        image = _image(job)
        key = f"{_ETAG}{job.component}"
        etag = None
        match self._state.get(key):
            case [bytes(digest), str(stored)] if digest == image.digest:
                etag = stored

        def keep_etag(etag: str | None) -> None:
            self._state.commit({key: None if etag is None else [image.digest, etag]})

        self._told_percent, self._told_at = 0, float("-inf")
        download = Download(
            image=image,
            uri=job.uri,
            component=job.component,
            installer=self._installer,
            fetch=self._fetch,
            clock=self._clock,
            limits=self._limits,
            uniform=self._uniform,
            etag=etag,
            keep_etag=keep_etag,
            report_progress=lambda size: self._report_progress(self._current(job), size),
            check_time=lambda: self._current(job).check_install_by(self._trust.now_ms()),
        )
        await download.run()
        await self._await_time()
        job = self._current(job)
        job.check_install_by(self._trust.now_ms())  # gates the start of installing (PROTOCOL §7.3)
        self._ledger.step(job.after(Event.INSTALL), {key: None})

    async def _install(self, job: Job) -> None:
        image = _image(job)
        with blamed_on_installer():
            # It may be further than our own record: the power went between the two.
            if self._installer.boot(job.component, image) is Boot.ABSENT:
                await self._installer.seal(job.component, image)
            if self._installer.boot(job.component, image) is Boot.WRITTEN:
                await self._installer.activate(job.component, image)
        self._ledger.step(self._current(job).after(Event.REBOOT))

    async def _try_out(self, job: Job) -> None:
        component, image = job.component, _image(job)
        match self._installer.boot(component, image):
            case Boot.WRITTEN:
                await self._installer.activate(component, image)
            case Boot.PENDING if job.reboots >= self._limits.reboots_max:
                await self._installer.roll_back(component, image)
            case Boot.PENDING:
                # Counted before: a device that cannot restart must not try for ever.
                self._ledger.keep(replace(job, reboots=job.reboots + 1))
                await self._installer.reboot(component)
            case Boot.TRIAL if await self._is_healthy(component):
                await self._installer.confirm(component, image)
            case Boot.TRIAL:
                await self._installer.roll_back(component, image)
            case Boot.CONDEMNED:
                await self._installer.reboot(component)
            case Boot.CONFIRMED:
                self._commit(self._current(job))
            case Boot.ROLLED_BACK:
                error = BootFailedError("the new image did not confirm itself")
                self._ledger.end(self._current(job), Event.ROLL_BACK, error=error)
            case Boot.ABSENT:
                raise InstallFailedError("the slot lost the image")

    def _commit(self, job: Job) -> None:
        """End ``job`` as committed. The floor rises here and nowhere else (PROTOCOL §7.1)."""
        image = _image(job)
        floor = self._trust.floor_change(
            job.component, self._target.device_class, image.sequence, image.manifest_digest
        )
        self._ledger.end(job, Event.COMMIT, changes=floor)

    async def _is_healthy(self, component: str) -> bool:
        try:
            async with asyncio.timeout(self._limits.health_timeout_s):
                return await self._installer.is_healthy(component)
        except Exception:
            log.exception("the health check of %s failed", component)
            return False

    async def _discard(self, component: str) -> None:
        try:
            await self._installer.discard(component)
        except (UpdateError, OSError):
            log.exception("what was written of %s could not be dropped", component)

    async def _await_time(self) -> None:
        """Return once the time is known.

        Raises:
            ClockUnknownError: No statement came in ``statement_wait_s``.
        """
        deadline = self._clock.monotonic() + self._limits.statement_wait_s
        while True:
            self._statement_came.clear()
            try:
                self._trust.fresh_now_ms()
                return
            except ClockUnknownError:
                left_s = deadline - self._clock.monotonic()
                if left_s <= 0:
                    raise
            self._request_statement()
            await self._wait(self._statement_came, left_s)

    async def _wait(self, event: asyncio.Event, delay_s: float) -> None:
        """Return once ``event`` is set or ``delay_s`` are over on the device's clock."""
        waits = [
            asyncio.create_task(event.wait(), name="update.statement"),
            asyncio.create_task(self._clock.sleep(delay_s), name="update.statement_deadline"),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _report_progress(self, job: Job, size: int) -> None:
        """Report how far the download is, once in a while."""
        percent = 100 * size // max(1, _image(job).size)
        now = self._clock.monotonic()
        if (
            percent - self._told_percent >= self._limits.progress_step_percent
            and now - self._told_at >= self._limits.progress_interval_s
        ):
            self._told_percent, self._told_at = percent, now
            self._ledger.progress(job, percent)

    def _uniform(self) -> float:
        return (int.from_bytes(self._random(7), "big") >> 3) / 2**53


def _image(job: Job) -> Image:
    assert job.image is not None, "known from VERIFIED on"
    return job.image
