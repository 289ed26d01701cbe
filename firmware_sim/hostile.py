"""A gateway that lies, or somebody between a device and its gateway: the shell around ``attacks``.

It stands below the faulty link and above the real transport. What is genuine passes, but for what a scenario
has it change; what it makes up comes between. Answers to what it made up never reach the real gateway.
Whether each attack was refused is noted here, and is the invariant ``attacks_refused``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from device_sdk.transport.link import Link, Transport
from device_sdk.update import Fetch, Fetched
from device_sdk.update.procedure import Step, is_final
from device_sdk.wire.messages import (
    Ack,
    Alert,
    Cancel,
    FromDevice,
    FromGateway,
    Hello,
    Nack,
    Recorded,
    Report,
    Roots,
    Update,
    Welcome,
)
from firmware_sim.attacks import CHANGED, INVENTED, Attack, Notebook, Victim
from firmware_sim.dice import Dice, between
from firmware_sim.durable import signed_map
from firmware_sim.genuine import bound
from firmware_sim.link import abort
from firmware_sim.scenario import HostileGateway
from firmware_sim.trace import Trace

KEPT_MAX: Final = 4096
_CHUNK: Final = bytes(64 * 1024)
_OTHER: Final = bytes(byte ^ 0x55 for byte in range(256))
_HALF_MIN_BYTES: Final = 65_536
_TRICKLE_S: Final = 0.1


@dataclass(slots=True)
class _Attempt:
    """One attack that was sent.

    Attributes:
        is_delivered: It reached the device.
        answer: The code by which the device refused it.
        is_void: The same came later as it was meant: nothing can be said of it.
    """

    attack: Attack
    genuine_data: object = None
    is_delivered: bool = False
    answer: str | None = None
    is_void: bool = False

    @property
    def is_unanswered(self) -> bool:
        return bool(self.attack.codes) and self.is_delivered and self.answer is None and not self.is_void


class Attacker:
    """Whoever attacks one device: what it still has to try, and how each attempt was answered.

    Args:
        notebook: Shared with the other attackers of the fleet.
        check: Told of each answer: what is wrong with it, None: nothing.
    """

    def __init__(
        self,
        plan: HostileGateway,
        *,
        notebook: Notebook,
        fleet: str,
        device_id: str,
        dice: Dice,
        trace: Trace,
        check: Callable[[str | None], None],
    ) -> None:
        self.plan = plan
        self.notebook = notebook
        self._victim = Victim(fleet=fleet, device_id=device_id, now_ms=0)
        self._random = dice.stream("attacks")
        self._trace = trace
        self._check = check
        invented = [name for name in plan.attacks if name in INVENTED]
        self._turns = invented * plan.rounds
        self._changes = Counter({name: plan.rounds for name in plan.attacks if name in CHANGED})
        self._has_nothing = False
        self._deployments: OrderedDict[bytes, _Attempt] = OrderedDict()
        self._alerts: OrderedDict[tuple[str, int, int], _Attempt] = OrderedDict()
        self._passed: OrderedDict[bytes, None] = OrderedDict()
        self._outcomes: OrderedDict[bytes, bytes] = OrderedDict()
        self._forged: OrderedDict[bytes, None] = OrderedDict()
        self.has_root = False
        self.downloads = 0
        self.tried: Counter[str] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()

    # --- what is tried ------------------------------------------------------------------------------------

    def wait_s(self) -> float | None:
        """Return how long to wait before the next attack; None: there is none to come."""
        return between(self._random, self.plan.every_s) if self._turns else None

    def invent(self) -> Attack | None:
        """Return the next attack that there is material for; None: there is none now."""
        victim = replace(self._victim, now_ms=time.time_ns() // 1_000_000)
        for index, name in enumerate(self._turns):
            attack = INVENTED[name](self.notebook, victim, self._random)
            if attack is not None:
                del self._turns[index]
                self._has_nothing = False
                self._try(attack)
                return attack
        self._has_nothing = True
        return None

    def change(self, message: FromGateway) -> FromGateway:
        """Return a genuine message, or what is made of it."""
        if isinstance(message, Update) and message.deployment in self._passed:
            return self._unchanged(message)
        for name in self._changes:
            if not self._changes[name] or (isinstance(message, Alert) and self._random.random() < 0.5):
                continue
            attack = CHANGED[name](self.notebook, message, self._random)
            if attack is not None:
                self._changes[name] -= 1
                genuine_data = signed_map(message.body).get(9) if isinstance(message, Alert) else None
                self._try(attack, genuine_data)
                return attack.message
        return self._unchanged(message)

    def _unchanged(self, message: FromGateway) -> FromGateway:
        match message:
            case Update():
                self._passed[message.deployment] = None
                bound(self._passed, KEPT_MAX)
                if message.deployment in self._deployments:
                    self._deployments[message.deployment].is_void = True
            case Alert():
                attempt = self._alerts.get((message.channel, message.epoch, message.offset))
                if attempt is not None:
                    attempt.is_void = True
                if self._victim.alert is None:
                    self._victim = replace(self._victim, alert=message)
            case Roots():
                self.has_root = True
            case Recorded():
                deployment = self._outcomes.pop(message.id, None)
                if deployment is not None:
                    self._victim = replace(self._victim, ended=deployment)
            case _:
                pass
        return message

    def _try(self, attack: Attack, genuine_data: object = None) -> None:
        self.tried[attack.name] += 1
        self._trace.note("attack", f"{attack.name}, attempt {self.tried[attack.name]}")
        attempt = _Attempt(attack, genuine_data)
        if attack.deployment is not None:
            self._deployments[attack.deployment] = attempt
            bound(self._deployments, KEPT_MAX)
            if attack.is_forged:
                self._forged[attack.deployment] = None
                bound(self._forged, KEPT_MAX)
        if attack.alert is not None:
            self._alerts[attack.alert] = attempt
            bound(self._alerts, KEPT_MAX)

    def served(self, what: str) -> None:
        """A download was answered with something else than the image."""
        name = f"{what}_download"
        self.tried[name] += 1
        self._trace.note("attack", f"{name}, answer {self.downloads}")

    # --- what becomes of it -------------------------------------------------------------------------------

    def is_forged(self, deployment: bytes | None) -> bool:
        """Return whether ``deployment`` was made up for this device."""
        return deployment in self._forged

    def delivered(self, message: FromGateway) -> None:
        """``message`` reached the device."""
        match message:
            case Update() | Cancel() if message.deployment in self._deployments:
                self._deployments[message.deployment].is_delivered = True
            case Alert() if (message.channel, message.epoch, message.offset) in self._alerts:
                self._alerts[message.channel, message.epoch, message.offset].is_delivered = True
            case _:
                pass

    def answered(self, message: FromDevice) -> None:
        """The device says ``message``."""
        match message:
            case Report():
                attempt = self._deployments.get(message.deployment)
                if attempt is not None and not attempt.is_void and attempt.is_delivered:
                    self._reported(attempt, message)
                if is_final(Step(message.state)):
                    self._outcomes[message.id] = message.deployment
                    bound(self._outcomes, KEPT_MAX)
            case Nack():
                attempt = self._alerts.get((message.channel, message.epoch, message.offset))
                if attempt is not None and attempt.is_delivered:
                    self._answer(attempt, message.code)
            case _:
                pass

    def handled(self, channel: str, epoch: int, offset: int, data: bytes) -> None:
        """The application of the device gets an alert."""
        attempt = self._alerts.get((channel, epoch, offset))
        if attempt is not None:
            is_genuine = data == attempt.genuine_data
            failure = f"{attempt.attack.name}: {channel} {offset} was handed to the application"
            self._check(None if is_genuine else failure)

    def _reported(self, attempt: _Attempt, report: Report) -> None:
        step = Step(report.state)
        if not is_final(step) or step is Step.COMMITTED:
            self._check(f"{attempt.attack.name}: deployment {report.deployment.hex()} is {step}")
        else:
            self._answer(attempt, report.code or report.state)

    def _answer(self, attempt: _Attempt, code: str) -> None:
        if attempt.answer is None:
            attempt.answer = code
            self.answers[attempt.attack.name, code] += 1
            wrong = f"{attempt.attack.name}: answered {code}, not {', '.join(attempt.attack.codes)}"
            self._check(None if code in attempt.attack.codes else wrong)

    @property
    def unmet(self) -> str | None:
        """What is still to be tried or answered; None: nothing."""
        for attempt in (*self._deployments.values(), *self._alerts.values()):
            if attempt.is_unanswered:
                return f"{attempt.attack.name} is not answered"
        if self._turns and not self._has_nothing:
            return f"{self._turns[0]} is still to be tried"
        return None

    def document(self) -> dict[str, dict[str, Any]]:
        """Return, by attack, how often it was tried and how it was answered (JSON)."""
        return {
            name: {
                "tried": count,
                "answers": {
                    code: answers for (of, code), answers in sorted(self.answers.items()) if of == name
                },
            }
            for name, count in sorted(self.tried.items())
        }


class HostileTransport:
    """A transport whose connections are an attacker's."""

    def __init__(self, inner: Transport, attacker: Attacker) -> None:
        self._inner = inner
        self._attacker = attacker

    @property
    def name(self) -> str:
        return self._inner.name

    async def connect(self, hello: Hello, token: str) -> HostileLink:
        self._attacker.has_root = hello.root_version > 0
        return HostileLink(await self._inner.connect(hello, token), self._attacker)


class HostileLink:
    """One connection through an attacker's hands."""

    def __init__(self, inner: Link, attacker: Attacker) -> None:
        self._inner = inner
        self._attacker = attacker
        self._coming: asyncio.Task[Sequence[FromGateway]] | None = None
        self._answers: list[FromGateway] = []
        self._has_answers = asyncio.Event()
        self._is_welcomed = False
        self._is_genuine = False  # what was returned last

    async def receive(self) -> Sequence[FromGateway]:
        self._is_genuine = False
        wait_s = self._attacker.wait_s() if self._is_welcomed and self._attacker.has_root else None
        if self._coming is None:
            self._coming = asyncio.create_task(_received(self._inner), name="sim.hostile.receive")
        answering = asyncio.create_task(self._has_answers.wait(), name="sim.hostile.answer")
        try:
            await asyncio.wait({self._coming, answering}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answering.cancel()
        if self._has_answers.is_set():
            answers, self._answers = self._answers, []
            self._has_answers.clear()
            return answers
        if self._coming.done():
            coming, self._coming = self._coming, None
            batch = [self._attacker.change(message) for message in coming.result()]
            self._is_genuine = True
            self._is_welcomed = self._is_welcomed or any(isinstance(one, Welcome) for one in batch)
            return batch
        attack = self._attacker.invent()
        return [] if attack is None else [attack.message]

    def confirm(self) -> None:
        if self._is_genuine:  # a poll may have ended meanwhile that nobody was shown yet
            self._inner.confirm()

    async def send(self, messages: Sequence[FromDevice]) -> None:
        passing: list[FromDevice] = []
        for message in messages:
            if isinstance(message, Report | Ack) and self._attacker.is_forged(message.deployment):
                if isinstance(message, Report):
                    self._answers.append(Recorded(message.id, "recorded"))
                    self._has_answers.set()
            else:
                passing.append(message)
        if passing:
            await self._inner.send(passing)

    def abort(self) -> None:
        abort(self._inner)

    async def close(self) -> None:
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
            self._coming = None
        await self._inner.close()


async def _received(link: Link) -> Sequence[FromGateway]:
    return await link.receive()


class HostileFetch:
    """``Fetch`` from a server that serves what it likes."""

    def __init__(self, inner: Fetch, attacker: Attacker) -> None:
        self._inner = inner
        self._attacker = attacker

    def fetch(self, uri: str, *, offset: int, etag: str | None) -> AbstractAsyncContextManager[Fetched]:
        return self._fetch(uri, offset, etag)

    @asynccontextmanager
    async def _fetch(self, uri: str, offset: int, etag: str | None) -> AsyncIterator[Fetched]:
        attacker = self._attacker
        attacker.downloads += 1
        async with self._inner.fetch(uri, offset=offset, etag=etag) as fetched:
            match attacker.plan.download:
                case "endless":
                    changed = Fetched(0, None, None, _endless())
                case "oversized":
                    changed = replace(fetched, size=2 * (fetched.size or 1))
                case "slow":
                    changed = replace(fetched, chunks=_trickle(fetched.chunks))
                case "other":
                    changed = replace(fetched, chunks=_other(fetched.chunks))
                case "truncated" if attacker.downloads <= 2:
                    remaining = (fetched.size or 0) - fetched.offset
                    changed = replace(
                        fetched, chunks=_first(fetched.chunks, max(_HALF_MIN_BYTES, remaining // 2))
                    )
                case _:
                    changed = fetched
            if changed is not fetched:
                attacker.served(attacker.plan.download)
            yield changed


async def _endless() -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(0)
        yield _CHUNK


async def _trickle(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        for start in range(len(chunk)):
            await asyncio.sleep(_TRICKLE_S)
            yield chunk[start : start + 1]


async def _other(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk.translate(_OTHER)


async def _first(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk[:size]
        size -= len(chunk)
        if size <= 0:
            return
