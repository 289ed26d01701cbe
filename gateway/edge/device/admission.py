"""From a request to an admitted device, and from its hello to an open session. Shared by every transport."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import PROTOCOL_VERSION, Hello
from device_sdk.wire.names import DeviceId, FleetName
from gateway.edge.rejections import rejection
from gateway.errors import (
    CredentialRefusedError,
    OriginUnavailableError,
    ProtocolViolationError,
    UnavailableError,
    WrongIdentityError,
)
from gateway.fleet.facts import Connect, Judged
from gateway.fleet.model import Connected
from gateway.identity import Credential, Identity, Verdict, validity
from gateway.session.session import Session, State
from gateway.session.sessions import Sessions

if TYPE_CHECKING:
    from gateway.edge.device.poll import PollSession

FLEET_HEADER = "Fleetcast-Fleet"
DEVICE_HEADER = "Fleetcast-Device"


class StatementSource(Protocol):
    """Who signs statements; ``rollout.Updates`` does."""

    def statement(
        self,
        fleet: FleetName,
        device: DeviceId,
        *,
        nonce: bytes,
        latest_directive: int,
        root_version: int,
    ) -> bytes:
        """Return a statement that echoes the device's ``nonce`` (PROTOCOL §7.5)."""
        ...


class Admission:
    """Judge devices and open their sessions.

    Args:
        accept_rate_per_s: New connections a second that the node wants: what ``spread_s`` is made of.
        connections_max: More are answered 503.
        outbox_size_bytes_max: Unsent bytes of one connection; above it a device that provokes answers and
            does not read them is closed as a slow consumer.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        sessions: Sessions,
        statements: StatementSource,
        accept_rate_per_s: int,
        connections_max: int,
        outbox_size_bytes_max: int,
    ) -> None:
        self.identity = identity
        self.sessions = sessions
        self.node = sessions.node
        self.connections = 0
        self.polled: dict[tuple[str, str], PollSession] = {}
        self._per_fleet: Counter[str] = Counter()
        self.is_draining = False
        self._statements = statements
        self._accept_rate_per_s = accept_rate_per_s
        self._connections_max = connections_max
        self.outbox_size_bytes_max = outbox_size_bytes_max

    def check_room(self) -> None:
        """Raise UnavailableError if the node takes no further connection."""
        if self.is_draining:
            raise UnavailableError("the node is stopping", code="draining", retry_after_s=self.spread_s())
        if self.connections >= self._connections_max:
            raise UnavailableError(
                "connections_max is reached", code="too_many_connections", retry_after_s=self.spread_s() + 1
            )

    def entered(self, session: Session, transport: str) -> None:
        """A connection begins: it is counted, and visited until ``left``."""
        self.connections += 1
        self._per_fleet[session.verdict.fleet] += 1
        self.sessions.watch(session, session.verdict.device_id)
        self.node.metrics.connects[transport].inc()
        self.node.metrics.connections[transport].inc()

    def left(self, session: Session, transport: str) -> None:
        """The connection ended."""
        self.connections -= 1
        fleet = session.verdict.fleet
        self._per_fleet[fleet] -= 1
        if not self._per_fleet[fleet]:
            del self._per_fleet[fleet]
        if transport == "longpoll" and self.polled.get((fleet, session.verdict.device_id)) is session:
            del self.polled[fleet, session.verdict.device_id]
        self.sessions.unwatch(session, session.verdict.device_id)
        self.sessions.forget(session)
        self.node.metrics.connections[transport].dec()

    async def judge(self, request: web.Request) -> tuple[Credential, Verdict]:
        """Return what ``request`` presents, and who that is by the origin's word.

        Raises:
            CredentialRefusedError, OriginUnavailableError: As ``Identity.admit``.
        """
        credential = _credential(request)
        verdict = await self.identity.admit(
            credential,
            claimed_fleet=request.headers.get(FLEET_HEADER),
            claimed_device=request.headers.get(DEVICE_HEADER),
        )
        return credential, verdict

    async def judge_polled(self, request: web.Request) -> Verdict:
        """As ``judge``, for a request within a polled session.

        An origin that gives no answer turns nobody away who is connected (PROTOCOL §5.5): until a WebSocket
        would be closed for it, the session's last verdict stands for the credential that opened it.
        """
        try:
            _, verdict = await self.judge(request)
        except OriginUnavailableError:
            claim = (request.headers.get(FLEET_HEADER, ""), request.headers.get(DEVICE_HEADER, ""))
            session = self.polled.get(claim)
            if session is None or session.credential_key != self.identity.key(_credential(request)):
                raise
            carried = validity(session.verdict, limits=self.identity.limits, jitter=0.5)
            if self.node.clock.now_ms() >= carried.ends_at:
                raise
            return session.verdict
        return verdict

    async def connect(self, session: Session, hello: Hello) -> None:
        """Commit ``hello`` and open ``session`` with what was found; the device's old session ends.

        Raises:
            ProtocolViolationError: Another protocol version.
            WrongIdentityError: The hello names another device than the token.
            CredentialRefusedError: The device is disabled.
            OriginUnavailableError: The fleet is not known here.
            StorageUnavailableError: Nothing is lost; the device comes back.
        """
        verdict, node = session.verdict, self.node
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolViolationError(f"protocol {hello.protocol}", code="protocol_version")
        named = (hello.fleet or verdict.fleet, hello.device or verdict.device_id)
        if named != (verdict.fleet, verdict.device_id):
            raise WrongIdentityError("the hello names another device than the token")
        mark = self.sessions.mark()
        connected: Connected = await node.writer.commit(Connect(verdict, hello, node.clock.now_ms()))
        statement = None
        if hello.nonce is not None:
            statement = self._statements.statement(
                verdict.fleet,
                verdict.device_id,
                nonce=hello.nonce,
                latest_directive=connected.directive_sequence,
                root_version=connected.root_version,
            )
        if session.state is not State.CONNECTING:
            return  # it went meanwhile
        self.sessions.register(session, connected.device_key)
        session.start(
            hello,
            connected,
            statement=statement,
            spread_s=self.spread_s(verdict.fleet),
            now=node.clock.monotonic(),
        )
        self.sessions.opened(session, since=mark)
        session.offer_updates()

    def spread_s(self, fleet: str | None = None) -> int:
        """Over how many seconds the devices of ``fleet`` (None: of all) should return (PROTOCOL §4.9)."""
        count = self.connections if fleet is None else self._per_fleet[fleet]
        return ceil(count / self._accept_rate_per_s)

    async def revalidate(self, session: Session, credential: Credential) -> Verdict:
        """Ask the origin again, past the cache; take up what changed.

        Raises:
            CredentialRefusedError, OriginUnavailableError: As ``Identity.admit``.
            StorageUnavailableError: What changed is not taken up.
        """
        before = session.verdict
        verdict = await self.identity.admit(
            credential, claimed_fleet=before.fleet, claimed_device=before.device_id, fresh=True
        )
        is_changed = (verdict.channels, verdict.attributes) != (before.channels, before.attributes)
        if is_changed:
            await self.node.writer.commit(Judged(verdict, self.node.clock.now_ms()))
        session.verdict = verdict  # not before: what is not committed is a change at the next check, too
        if is_changed:
            self.sessions.subscriptions_changed(session.device_key)
        return verdict


def close_code_of(error: CredentialRefusedError) -> CloseCode:
    """Return the close code for a session whose credential is no longer good."""
    if type(error) is CredentialRefusedError:
        return CloseCode.CREDENTIAL_REVOKED  # it was good, and now it is not
    return rejection(error).close_code


def _credential(request: web.Request) -> Credential:
    return Credential.from_headers(
        request.headers.items(),
        remote=request.remote,
        scheme=request.scheme,
        method=request.method,
        target=request.path_qs,
    )
