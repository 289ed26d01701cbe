"""One device, its gateway's and its operator's keys, and an unreliable server, for the update tests.

A restart is ``World.open``: everything that is not on the flash is gone. State and slots share one
``MemoryFlash``, so that a loss of power can fall between any two bytes of a whole update.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from device_sdk.store import MemoryFlash, StateStore
from device_sdk.update import (
    Factory,
    Fetched,
    FetchError,
    RebootRequiredError,
    SlotInstaller,
    UpdateAgent,
    UpdateLimits,
)
from device_sdk.wire.cose import AuthenticBytes
from device_sdk.wire.keys import PrivateKey, Role
from device_sdk.wire.messages import Recorded, Report, Update
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from device_sdk.wire.signed import (
    Directive,
    RootDocument,
    RootKey,
    Statement,
    sign_directive,
    sign_root,
    sign_statement,
)
from device_sdk.wire.suit import Envelope, Manifest
from gateway.release import ReleaseContent, author_envelope, sign_envelope

FLEET, DEVICE = FleetName("acme"), DeviceId("dev-1")
VENDOR, CLASS = bytes([1] * 16), bytes([2] * 16)
ENROLMENT = bytes([7] * 16)
NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
IMAGE = bytes(range(256)) * 3
OLD_IMAGE = b"factory"

RELEASE = PrivateKey.from_seed(bytes([10] * 32))
RELEASE_2 = PrivateKey.from_seed(bytes([11] * 32))
DIRECTIVE = PrivateKey.from_seed(bytes([12] * 32))
STATEMENT = PrivateKey.from_seed(bytes([13] * 32))
ALERT = PrivateKey.from_seed(bytes([14] * 32))
STRANGER = PrivateKey.from_seed(bytes([99] * 32))


class FakeClock:
    """A clock that sleeping moves."""

    def __init__(self, *, wall_ms: int | None = NOW_MS) -> None:
        self._wall_ms = wall_ms
        self.now_s = 1000.0
        self._start_s = self.now_s
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def wall_ms(self) -> int | None:
        if self._wall_ms is None:
            return None
        return self._wall_ms + int((self.now_s - self._start_s) * 1000)

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        self.now_s += delay_s
        await asyncio.sleep(0)

    def advance(self, delay_s: float) -> None:
        self.now_s += delay_s

    def set_wall(self, wall_ms: int | None) -> None:
        self._wall_ms, self._start_s = wall_ms, self.now_s


class FlashSlotFiles:
    """``SlotFiles`` over a ``MemoryFlash``, which promises no more than ``SlotFiles`` asks for."""

    def __init__(self, flash: MemoryFlash, *, free: int = 1 << 20) -> None:
        self._flash = flash
        self.free = free

    def size(self, name: str) -> int:
        return len(self._flash.read(name) or b"")

    def read(self, name: str, offset: int, size: int) -> bytes:
        return (self._flash.read(name) or b"")[offset : offset + size]

    def append(self, name: str, data: bytes) -> None:
        self._flash.append(name, data)

    def truncate(self, name: str, size: int) -> None:
        self._flash.replace(name, (self._flash.read(name) or b"")[:size])

    def sync(self, name: str) -> None:
        if self._flash.read(name) is None:
            self._flash.append(name, b"")
        self._flash.sync(name)

    def replace(self, name: str, data: bytes) -> None:
        self._flash.replace(name, data)

    def free_bytes(self) -> int:
        return self.free


@dataclass
class Request:
    uri: str
    offset: int
    etag: str | None


Answer = Callable[[Request], "Fetched | Exception"]


class Server:
    """``Fetch``: an honest server of ``images``, or what ``script`` says, request by request."""

    def __init__(self, images: dict[str, bytes] | None = None, *, chunk: int = 100) -> None:
        self.images = {} if images is None else images
        self.chunk = chunk
        self.requests: list[Request] = []
        self.script: list[Answer] = []
        self.is_open = 0

    @asynccontextmanager
    async def fetch(self, uri: str, *, offset: int, etag: str | None) -> AsyncIterator[Fetched]:
        request = Request(uri, offset, etag)
        self.requests.append(request)
        answer = self.script.pop(0)(request) if self.script else self.honest(request)
        if isinstance(answer, Exception):
            raise answer
        self.is_open += 1
        try:
            yield answer
        finally:
            self.is_open -= 1

    def honest(self, request: Request) -> Fetched | Exception:
        image = self.images.get(request.uri)
        if image is None:
            return FetchError("status 404")
        return self.whole(image, request)

    def whole(self, image: bytes, request: Request, *, etag: str = '"1"') -> Fetched:
        is_same = request.etag in (None, etag)
        offset = request.offset if is_same else 0
        return Fetched(offset, len(image), etag, self.chunks(image[offset:]))

    async def chunks(self, data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), self.chunk):
            await asyncio.sleep(0)
            yield data[start : start + self.chunk]


def envelope(
    image: bytes = IMAGE,
    *,
    sequence: int = 5,
    keys: Sequence[PrivateKey] = (RELEASE,),
    **changes: Any,
) -> bytes:
    content = ReleaseContent(
        vendor_identifier=VENDOR,
        class_identifier=CLASS,
        component="main",
        sequence_number=sequence,
        image_digest=hashlib.sha256(image).digest(),
        image_size=len(image),
        uri="/image",
        version="1.2",
    )
    return sign_envelope(author_envelope(replace(content, **changes)), keys)


def manifest_of(data: bytes) -> Manifest:
    parsed = Envelope.parse(data)
    return Manifest.parse(AuthenticBytes(parsed.manifest), parsed.severed)


def deployment(number: int) -> bytes:
    return number.to_bytes(16, "big")


def root(version: int = 1, *, signer: PrivateKey = RELEASE, **changes: Any) -> bytes:
    document = RootDocument(
        fleet=FLEET,
        version=version,
        issued_at=NOW_MS - HOUR_MS,
        expires_at=NOW_MS + 1000 * HOUR_MS,
        keys=(
            RootKey(Role.DIRECTIVE, DIRECTIVE.public),
            RootKey(Role.STATEMENT, STATEMENT.public),
            RootKey(Role.ALERT, ALERT.public),
        ),
    )
    return sign_root(replace(document, **changes), signer)


@dataclass
class World:
    """A device on a flash. Attributes are set before ``open``."""

    flash: MemoryFlash = field(default_factory=MemoryFlash)
    clock: FakeClock = field(default_factory=FakeClock)
    server: Server = field(default_factory=lambda: Server({"/image": IMAGE}))
    limits: UpdateLimits = field(default_factory=UpdateLimits)
    components: tuple[str, ...] = ("main",)
    factory: dict[str, Factory] = field(default_factory=dict)
    capacity: int | None = None
    is_healthy: Callable[[], bool] = lambda: True
    enrolment: bytes | None = None
    device_uuid: bytes | None = None
    sent: list[Report] = field(default_factory=list)
    on_report: Callable[[Report], None] = lambda report: None
    statements_asked: int = 0
    boots: int = 0
    tries: int = 2

    def open(self, flash: MemoryFlash | None = None) -> UpdateAgent:
        """Boot, with nothing but what is on the flash."""
        self.flash = flash or self.flash
        self.boots += 1
        self.state = StateStore(self.flash)

        async def is_healthy(component: str) -> bool:
            return self.is_healthy()

        self.installer = SlotInstaller(
            FlashSlotFiles(self.flash),
            components=self.components,
            capacity_bytes=self.capacity,
            factory=self.factory,
            is_healthy=is_healthy,
            tries=self.tries,
        )
        numbers = itertools.count(self.boots << 64)
        self.agent = UpdateAgent(
            state=self.state,
            fleet=FLEET,
            device_id=DEVICE,
            anchors=[RELEASE.public],
            vendor=VENDOR,
            device_class=CLASS,
            device_uuid=self.device_uuid,
            installer=self.installer,
            fetch=self.server,
            clock=self.clock,
            send_report=self._send,
            limits=self.limits,
            random=lambda size: next(numbers).to_bytes(size, "big") if size >= 16 else bytes(size),
            enrolment=self.enrolment,
            request_statement=self._count_statement,
        )
        return self.agent

    def _send(self, report: Report) -> None:
        self.sent.append(report)
        self.on_report(report)

    def _count_statement(self) -> None:
        self.statements_asked += 1

    def open_trusting(self) -> UpdateAgent:
        """``open``, with the first root document adopted."""
        agent = self.open()
        assert agent.adopt_roots([root()]) is None
        return agent

    async def work(self) -> None:
        """Work until nothing is held, booting as often as that takes."""
        for _ in range(20):
            try:
                await self.agent.work()
                return
            except RebootRequiredError:
                self.open()
        raise AssertionError("it boots for ever")

    def update(
        self,
        number: int = 1,
        *,
        sequence: int = 100,
        manifest: bytes | None = None,
        key: PrivateKey = DIRECTIVE,
        message_deployment: bytes | None = None,
        **changes: Any,
    ) -> Update:
        manifest = envelope() if manifest is None else manifest
        try:
            about = manifest_of(manifest)
            digest, component = about.digest, about.component
        except Exception:
            digest, component = bytes(32), ChannelName("main")
        directive = Directive(
            fleet=FLEET,
            device=DEVICE,
            enrolment=ENROLMENT,
            deployment=deployment(number),
            manifest_digest=digest,
            sequence=sequence,
            issued_at=NOW_MS - 1000,
            expires_at=NOW_MS + HOUR_MS,
            install_by=NOW_MS + 24 * HOUR_MS,
            component=component,
        )
        signed = sign_directive(replace(directive, **changes), key)
        return Update(message_deployment or deployment(number), signed, manifest)

    def statement(self, nonce: bytes, *, key: PrivateKey = STATEMENT, **changes: Any) -> bytes:
        statement = Statement(
            fleet=FLEET,
            device=DEVICE,
            nonce=nonce,
            latest_directive=0,
            root_version=1,
            time=NOW_MS,
            expires_at=NOW_MS + HOUR_MS,
        )
        return sign_statement(replace(statement, **changes), key)

    # --- what is told, and what is on the flash ---

    def told(self, number: int = 1) -> list[tuple[str, str | None]]:
        """State and code of every report about a deployment that waits, oldest first."""
        return [
            (report.state, report.code)
            for report in self.agent.pending_reports()
            if report.deployment == deployment(number)
        ]

    def record_all(self) -> None:
        for report in self.agent.pending_reports():
            self.agent.recorded(Recorded(report.id, "recorded"))

    def trust(self) -> dict[str, object]:
        return dict(self.state.items("trust/"))

    def floors(self) -> dict[str, object]:
        return dict(self.state.items("trust/floor/"))

    def slots(self) -> dict[str, bytes]:
        """Every byte that an installer keeps."""
        return {name: data for name, data in self.flash.files.items() if name != "state"}

    def running_image(self, component: str = "main") -> bytes:
        return self.flash.files.get(self.installer.running_file(component), b"")
