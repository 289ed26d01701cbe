"""Devices of a fleet whose gateway is killed: what they keep, what they were answered, what they find wrong.

A ``Member`` keeps its state in memory as a real device keeps it on flash, connects again whenever it is cut
off, acknowledges, now and then refuses an alert or loses some of its flash, and reports on deployments until
each report is recorded. It checks what it is given while it runs; ``Answers`` is the book of what the gateway
answered, and of everything that must not have happened.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from device_sdk.wire.errors import WireError
from device_sdk.wire.keys import PublicKey
from device_sdk.wire.messages import (
    Ack,
    Advance,
    Alert,
    Cancel,
    Error,
    Hello,
    Lost,
    Message,
    Nack,
    Position,
    Recorded,
    Report,
    Subscriptions,
    Update,
    Welcome,
)
from device_sdk.wire.signed import verify_directive
from tests.harness.devices import Ended, PollDevice, Refused, SocketDevice, alert_data

# What a connection may end with while a gateway is killed and started: cut off, or the database still away.
ENDINGS = frozenset({1006, 4007})
RETRYABLE = frozenset({"hello_required", "storage_unavailable"})
OUTCOMES = frozenset({"committed", "failed", "cancelled"})


@dataclass
class Answers:
    """What the gateway answered with success, and what went wrong.

    Attributes:
        alerts: By the publisher's key: channel, id, epoch, offset.
        positions: (device, channel) → offset, acknowledged over HTTP.
        nacks: (device, channel, offset), over HTTP.
        received: (device, deployment), acknowledged over HTTP.
        recorded: Report id → device and report.
    """

    alerts: dict[str, dict[str, Any]] = field(default_factory=dict)
    positions: dict[tuple[str, str], int] = field(default_factory=dict)
    nacks: set[tuple[str, str, int]] = field(default_factory=set)
    received: set[tuple[str, bytes]] = field(default_factory=set)
    recorded: dict[bytes, tuple[str, Report]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def wrong(self, who: str, what: str) -> None:
        self.problems.append(f"{who}: {what}")


@dataclass
class Job:
    """A deployment in this device's hands: reports, one at a time, each until it is recorded."""

    deployment: bytes
    script: list[tuple[str, int | None]]
    seq: int = 0
    pending: Report | None = None
    outcome: str | None = None

    @property
    def is_done(self) -> bool:
        return self.pending is None and not self.script


@dataclass
class Fleet:
    """What all members know.

    Attributes:
        gate: Open while those whose acknowledgements are answered may speak.
        permits: How many new reports may be made; it spreads them over the rounds.
        manifests: SHA-256 of a release's envelope, which is what a device may be told to install.
    """

    url: str
    name: str
    answers: Answers
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    permits: int = 0
    manifests: set[bytes] = field(default_factory=set)
    directive_keys: Mapping[bytes, PublicKey] = field(default_factory=dict)


class Member:
    """One device.

    Args:
        channels: Of alerts. Each log begins at 1: the device is there before the first alert.
    """

    def __init__(
        self,
        fleet: Fleet,
        name: str,
        *,
        is_polled: bool,
        encoding: str,
        channels: Sequence[str],
        seed: str,
    ) -> None:
        self.fleet = fleet
        self.name = name
        self.is_polled = is_polled
        self.encoding = encoding
        self.channels = tuple(channels)
        self.random = random.Random(seed)
        self.boot_id = self.random.randbytes(16)
        self.logs: dict[str, list[bytes]] = {channel: [] for channel in channels}
        self.refused: set[tuple[str, int]] = set()
        self.jobs: dict[bytes, Job] = {}
        self.is_enrolled = False
        self.connections = 0
        self._epochs: dict[str, int] = {}
        self._seen: dict[tuple[str, int], bytes] = {}
        self._last_directive = (0, b"")
        self._directives: dict[int, bytes] = {}
        self._envelopes: dict[bytes, bytes] = {}
        self._nacks: list[Nack] = []
        self._stored: list[bytes] = []
        self._said: dict[str, int] = {}  # on this connection
        self._ever_said: dict[str, int] = {}  # the highest
        self._reported: set[bytes] = set()
        self._news = asyncio.Event()

    @property
    def is_settled(self) -> bool:
        """Whether it has nothing left to say."""
        return not self._nacks and not self._stored and all(job.is_done for job in self.jobs.values())

    async def run(self) -> None:
        """Be a device, for ever."""
        while True:
            try:
                await (self._polled() if self.is_polled else self._connected())
            except Ended as end:
                if end.code not in ENDINGS:
                    self._wrong(f"closed with {end.code}")
            except Refused as refusal:
                if refusal.code not in RETRYABLE:
                    self._wrong(f"refused: {refusal}")
            except WireError as error:
                self._wrong(f"sent {error!r}")
            await asyncio.sleep(self.random.uniform(0.02, 0.3))

    def _wrong(self, what: str) -> None:
        self.fleet.answers.wrong(self.name, what)

    # --- transports ---------------------------------------------------------------------------------------

    async def _connected(self) -> None:
        options = {"fleet": self.fleet.name, "device": self.name, "encoding": self.encoding}
        async with SocketDevice(self.fleet.url, **options) as device:
            self._take(await device.begin(**self._hello()))
            await _first_of(self._read(device), self._talk(device))

    async def _read(self, device: SocketDevice) -> None:
        while True:
            self._take(await device.receive())

    async def _talk(self, device: SocketDevice) -> None:
        while True:
            acks, nacks, stored, reports = await self._next()
            await device.send(*acks, *nacks, *(Ack(deployment=id_) for id_ in stored), *reports)
            self._done(nacks, stored)

    async def _polled(self) -> None:
        options = {"fleet": self.fleet.name, "device": self.name, "encoding": self.encoding}
        async with PollDevice(self.fleet.url, **options) as device:
            await self.fleet.gate.wait()
            for message in await device.begin(**self._hello()):
                self._take(message)
            await _first_of(self._poll(device), self._post(device))

    async def _poll(self, device: PollDevice) -> None:
        cursor: str | None = None
        positions: dict[str, int] = {}  # what the cursor says
        while True:
            for channel, offset in positions.items():
                self._ever_said[channel] = max(offset, self._ever_said.get(channel, 0))
            polled = await device.poll(cursor, wait_s=5)
            self._answered(positions)
            if polled.cursor is None:
                continue
            cursor, positions = polled.cursor, {}
            for message in polled.messages:
                self._take(message)
                if isinstance(message, Alert):
                    positions[message.channel] = message.offset

    async def _post(self, device: PollDevice) -> None:
        while True:
            acks, nacks, stored, reports = await self._next()
            said = [*acks, *nacks, *(Ack(deployment=id_) for id_ in stored)]
            if said:
                for message in await device.acknowledge(*said):
                    self._take(message)
                for ack in acks:
                    self._answered({name: position.offset for name, position in ack.positions.items()})
                answers = self.fleet.answers
                answers.nacks |= {(self.name, nack.channel, nack.offset) for nack in nacks}
                answers.received |= {(self.name, deployment) for deployment in stored}
                self._done(nacks, stored)
            if reports:
                for message in await device.report(*reports):
                    self._take(message)

    def _answered(self, positions: Mapping[str, int]) -> None:
        for channel, offset in positions.items():
            key = (self.name, channel)
            known = self.fleet.answers.positions
            known[key] = max(known.get(key, 0), offset)

    # --- what it says -------------------------------------------------------------------------------------

    def _hello(self) -> dict[str, Any]:
        """Return the fields of a hello: most often the truth, sometimes after a loss of flash, or nothing."""
        self.connections += 1
        self._said = {}
        self._reported = set()
        if self.random.random() < 0.1:
            self._lose_flash(self.random.choice(self.channels))
        if self.random.random() < 0.1:
            self.boot_id = self.random.randbytes(16)
        fields: dict[str, Any] = {
            "boot_id": self.boot_id,
            "window": self.random.choice((1, 8, 32, 256)),
            "last_directive": self._last_directive[0],
        }
        # A channel may be left out where the gateway cannot know more than the device still has.
        fields["positions"] = {
            name: position
            for name, position in self._positions().items()
            if position.offset < self._ever_said.get(name, 0) or self.random.random() < 0.8
        }
        self._say(fields["positions"])
        return fields

    def _lose_flash(self, channel: str) -> None:
        """Lose the last few alerts, and what was to be said of them."""
        log = self.logs[channel]
        del log[len(log) - self.random.randint(0, min(5, len(log))) :]
        self._nacks = [nack for nack in self._nacks if nack.channel != channel or nack.offset <= len(log)]

    def _say(self, positions: Mapping[str, Position]) -> None:
        for name, position in positions.items():
            self._said[name] = position.offset
            self._ever_said[name] = max(position.offset, self._ever_said.get(name, 0))

    def _positions(self) -> dict[str, Position]:
        return {
            name: Position(self._epochs[name], len(log))
            for name, log in self.logs.items()
            if name in self._epochs
        }

    async def _next(self) -> tuple[list[Ack], list[Nack], list[bytes], list[Report]]:
        """Return what there is to say, once there is something."""
        while True:
            self._news.clear()
            self._report()
            positions = {
                name: position
                for name, position in self._positions().items()
                if self._said.get(name, 0) < position.offset
            }
            reports = [
                job.pending
                for job in self.jobs.values()
                if job.pending is not None and job.pending.id not in self._reported
            ]
            if positions or self._nacks or self._stored or reports:
                self._reported |= {report.id for report in reports}
                acks = [Ack(positions=positions)] if positions else []
                self._say(positions)
                return acks, list(self._nacks), list(self._stored), reports
            await self._news.wait()
            await asyncio.sleep(self.random.uniform(0, 0.01))  # it has other things to do

    def _done(self, nacks: Sequence[Nack], stored: Sequence[bytes]) -> None:
        self._nacks = [nack for nack in self._nacks if nack not in nacks]
        self._stored = [deployment for deployment in self._stored if deployment not in stored]

    def _report(self) -> None:
        """Take the next step of each job whose last report is recorded."""
        for job in self.jobs.values():
            if job.pending is None and job.script and self.fleet.permits > 0:
                self.fleet.permits -= 1
                state, progress = job.script.pop(0)
                job.seq += 1
                job.pending = Report(
                    id=self.random.randbytes(16),
                    deployment=job.deployment,
                    seq=job.seq,
                    state=state,
                    progress=progress,
                    code="flash_write" if state == "failed" else None,
                )

    def wake(self) -> None:
        """There may be permits again."""
        self._news.set()

    # --- what it is told ----------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        self._news.set()
        match message:
            case Welcome():
                self._welcome(message)
            case Alert():
                self._alert(message)
            case Advance():
                self._advance(message)
            case Update():
                self._update(message)
            case Cancel():
                self._cancel(message.deployment)
            case Recorded():
                self._recorded(message)
            case Lost() | Error() | Subscriptions() | Hello():
                self._wrong(f"told {message}")

    def _welcome(self, welcome: Welcome) -> None:
        self.is_enrolled = True
        for name, head in welcome.heads.items():
            if name in self.logs:
                if self._epochs.setdefault(name, head.epoch) != head.epoch:
                    self._wrong(f"{name} has another epoch")
                if head.offset < len(self.logs[name]):
                    self._wrong(f"{name} has its head at {head.offset}, {len(self.logs[name])} were received")

    def _alert(self, alert: Alert) -> None:
        if alert.channel not in self.logs:
            self._wrong(f"an alert of {alert.channel}")
            return
        log, data = self.logs[alert.channel], alert_data(alert.body)
        where = (alert.channel, alert.offset)
        if self._seen.setdefault(where, data) != data:
            self._wrong(f"{where} was {self._seen[where]!r}, is {data!r}")
        if alert.offset > len(log) + 1:
            self._wrong(f"{where} after {len(log)}")
        elif alert.offset == len(log) + 1:
            log.append(data)
            if self.random.random() < 0.03:
                self.refused.add(where)
                self._nacks.append(Nack(alert.channel, alert.epoch, alert.offset, "cannot_read"))

    def _advance(self, advance: Advance) -> None:
        log = self.logs[advance.channel]
        for offset in range(advance.first, advance.last + 1):
            where = (advance.channel, offset)
            if advance.reason != "dead_letter" or where not in self.refused:
                self._wrong(f"{advance} without a reason")
            elif offset > len(log) + 1:
                self._wrong(f"{where} after {len(log)}")
            elif offset == len(log) + 1:
                log.append(self._seen[where])

    def _update(self, update: Update) -> None:
        directive = verify_directive(
            update.directive, self.fleet.directive_keys, fleet=self.fleet.name, device=self.name
        )
        last, digest = self._last_directive
        if directive.sequence < last or (directive.sequence == last and directive.digest != digest):
            self._wrong(f"directive {directive.sequence} after {last}")
        self._last_directive = (directive.sequence, directive.digest)
        envelope = hashlib.sha256(update.manifest).digest()
        if envelope not in self.fleet.manifests or directive.deployment != update.deployment:
            self._wrong("a directive for something else")
        if self._envelopes.setdefault(envelope, update.deployment) != update.deployment:
            self._wrong("a second deployment of one release")
        self._stored.append(update.deployment)
        if update.deployment not in self.jobs:
            for job in self.jobs.values():
                self._cancel(job.deployment)
            steps = sorted(self.random.sample(range(100), self.random.randint(1, 4)))
            end = "failed" if self.random.random() < 0.1 else "committed"
            self.jobs[update.deployment] = Job(
                update.deployment,
                [
                    ("verified", None),
                    *(("downloading", percent) for percent in steps),
                    ("installing", None),
                    *([("rebooting", None)] if end == "committed" else []),
                    (end, None),
                ],
            )

    def _cancel(self, deployment: bytes) -> None:
        job = self.jobs.get(deployment)
        if job is not None and ("installing", None) in job.script:
            job.script = [("cancelled", None)]

    def _recorded(self, recorded: Recorded) -> None:
        for job in self.jobs.values():
            report = job.pending
            if report is not None and report.id == recorded.id:
                job.pending = None
                if report.state in OUTCOMES:
                    job.outcome = report.state
                self.fleet.answers.recorded[report.id] = (self.name, report)
                if recorded.status not in ("recorded", "duplicate"):
                    self._wrong(f"{report} was answered {recorded}")
                return


async def _first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Run ``works``, which go on for ever; raise what the first that ends raises."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


def by_channel(keys: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, str]]:
    """Return the publishers' keys by channel and offset."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for key, answer in keys.items():
        found[answer["channel"]][answer["offset"]] = key
    return found
