"""From a request to an admitted device, and from its hello to an open session. Shared by every transport.

A new connection first gets its turn (``accept``), then it is judged: by the ticket that it shows, without a
question, or else by the origin.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aiohttp import web

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.errors import MalformedError
from device_sdk.wire.messages import PROTOCOL_VERSION, Hello, Ticket, decode_base64url
from device_sdk.wire.names import DeviceId, FleetName
from gateway.edge.device.accept import AcceptBucket, AcceptLane, AcceptLimits
from gateway.edge.rejections import rejection
from gateway.errors import (
    ConflictError,
    CredentialRefusedError,
    GatewayError,
    OriginUnavailableError,
    ProtocolViolationError,
    UnavailableError,
    WrongIdentityError,
)
from gateway.fleet.facts import Connect, Judged
from gateway.fleet.model import Connected
from gateway.identity import Credential, Identity, ResumedVerdict, Verdict, validity
from gateway.session.conversation import State
from gateway.session.session import Session
from gateway.session.sessions import Sessions

if TYPE_CHECKING:
    from gateway.edge.device.events import EventSession
    from gateway.edge.device.watched import Watched

FLEET_HEADER = "Fleetcast-Fleet"
DEVICE_HEADER = "Fleetcast-Device"
TICKET_HEADER = "Fleetcast-Ticket"


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


class Arrival(NamedTuple):
    """A connection whose turn it is. ``credential`` is None as long as nobody had to look at it."""

    request: web.Request
    credential: Credential | None
    resumed: ResumedVerdict | None


class Admission:
    """Judge devices and open their sessions.

    Args:
        accept_rate_per_s: New connections a second that the node takes; ``spread_s`` is made of it.
        accept_retry_max_s: Longest time that a device which is not taken is told to stay away.
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
        accept_retry_max_s: float = 300.0,
    ) -> None:
        self.identity = identity
        self.sessions = sessions
        self.node = sessions.node
        self.connections = 0
        self.polled: dict[tuple[str, str], EventSession] = {}
        self._per_fleet: Counter[str] = Counter()
        self.is_draining = False
        self._statements = statements
        self._accept_rate_per_s = accept_rate_per_s
        self._bucket = AcceptBucket(
            AcceptLimits(accept_rate_per_s=accept_rate_per_s, accept_retry_max_s=accept_retry_max_s),
            self.node.clock.monotonic(),
        )
        self._connections_max = connections_max
        self.outbox_size_bytes_max = outbox_size_bytes_max

    def check_room(self) -> None:
        """Raise UnavailableError if the node takes no further connection."""
        metrics = self.node.metrics
        if self.is_draining:
            metrics.not_accepted["draining"].inc()
            raise UnavailableError("the node is stopping", code="draining", retry_after_s=self.spread_s())
        if self.connections >= self._connections_max:
            metrics.not_accepted["full"].inc()
            raise UnavailableError(
                "connections_max is reached", code="too_many_connections", retry_after_s=self.spread_s() + 1
            )

    def enter(self, request: web.Request) -> Arrival:
        """Give a new connection its turn, before anything else is done for it; ``judged`` comes next.

        Raises:
            UnavailableError: No room, or not its turn: ``retry_after_s`` is this device's own.
            CredentialRefusedError: It shows a ticket and no credential.
        """
        self.check_room()
        credential = resumed = None
        if TICKET_HEADER in request.headers:
            credential, resumed = self._resumed(request)
        lane = AcceptLane.STRANGER if resumed is None else AcceptLane.TICKET
        node = self.node
        wait_s = self._bucket.take(lane, node.clock.monotonic(), jitter=node.random.random())
        if wait_s is not None:
            node.metrics.not_accepted[lane].inc()
            raise UnavailableError("more than the node takes", code="accept_rate", retry_after_s=wait_s)
        node.metrics.accepted[lane].inc()
        return Arrival(request, credential, resumed)

    async def judged(self, arrival: Arrival) -> tuple[Credential, Verdict]:
        """Return what a new connection presents, and who that is.

        Raises:
            CredentialRefusedError, OriginUnavailableError: As ``Identity.admit``.
        """
        credential = arrival.credential or _credential(arrival.request)
        return credential, arrival.resumed or await self._asked(arrival.request, credential)

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
        """Return what ``request`` presents, and who that is by its ticket or the origin's word.

        Raises:
            CredentialRefusedError, OriginUnavailableError: As ``Identity.admit``.
        """
        credential, resumed = self._resumed(request)
        return credential, resumed or await self._asked(request, credential)

    def _resumed(self, request: web.Request) -> tuple[Credential, ResumedVerdict | None]:
        """Return who shows a good ticket; None: it is as none, or there is none."""
        credential = _credential(request)
        text = request.headers.get(TICKET_HEADER)
        if text is None:
            return credential, None
        try:
            ticket = decode_base64url(text)
        except MalformedError:
            self.node.metrics.tickets_void["malformed"].inc()
            return credential, None
        return credential, self.identity.resume(
            credential,
            ticket,
            claimed_fleet=request.headers.get(FLEET_HEADER),
            claimed_device=request.headers.get(DEVICE_HEADER),
        )

    async def _asked(self, request: web.Request, credential: Credential) -> Verdict:
        return await self.identity.admit(
            credential,
            claimed_fleet=request.headers.get(FLEET_HEADER),
            claimed_device=request.headers.get(DEVICE_HEADER),
        )

    async def judge_polled(self, request: web.Request) -> tuple[Credential, Verdict]:
        """As ``judge``, for a request within a polled session.

        An origin that gives no answer turns nobody away who is connected (PROTOCOL §5.5): until a WebSocket
        would be closed for it, the session's last verdict stands for the credential that opened it.
        """
        try:
            return await self.judge(request)
        except OriginUnavailableError:
            credential = _credential(request)
            claim = (request.headers.get(FLEET_HEADER, ""), request.headers.get(DEVICE_HEADER, ""))
            session = self.polled.get(claim)
            if session is None or session.credential_key != self.identity.key(credential):
                raise
            carried = validity(session.verdict, limits=self.identity.limits, jitter=0.5)
            if self.node.clock.now_ms() >= carried.ends_at:
                raise
            return credential, session.verdict

    async def connect(self, session: Watched, hello: Hello, credential: Credential | None = None) -> None:
        """Commit ``hello`` and open ``session`` with what was found; the device's old session ends.

        Args:
            credential: What the session stands on, if it does not keep that itself.

        Raises:
            ProtocolViolationError: Another protocol version.
            WrongIdentityError: The hello names another device than the token.
            CredentialRefusedError: The device is disabled; or it came by a ticket, which did not do, and the
                origin says no.
            OriginUnavailableError: The fleet is not known here; or there was no word of the origin.
            StorageUnavailableError: Nothing is lost; the device comes back.
        """
        verdict, node = session.verdict, self.node
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolViolationError(f"protocol {hello.protocol}", code="protocol_version")
        named = (hello.fleet or verdict.fleet, hello.device or verdict.device_id)
        if named != (verdict.fleet, verdict.device_id):
            raise WrongIdentityError("the hello names another device than the token")
        mark = self.sessions.mark()
        connected = await self._connected(session, hello, credential)
        verdict, statement = session.verdict, None
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
        ticket = None
        if isinstance(verdict, ResumedVerdict):
            session.verdict = replace(
                verdict, enrolment_id=b""
            )  # it was looked up; the rest may be kept long
        else:
            ticket = self.identity.tickets.seal(
                verdict, enrolment_id=connected.enrolment_id, token_sha256=session.token_sha256
            )
        self.sessions.register(session, connected.device_key)
        session.start(
            hello,
            connected,
            statement=statement,
            spread_s=self.spread_s(verdict.fleet),
            now=node.clock.monotonic(),
            ticket=ticket,
        )
        self.sessions.opened(session, since=mark)
        session.offer_updates()

    async def _connected(self, session: Watched, hello: Hello, credential: Credential | None) -> Connected:
        """Commit ``hello``; a ticket of an earlier enrolment is as none, and the origin is asked."""
        verdict, node = session.verdict, self.node
        try:
            connected: Connected = await node.writer.commit(Connect(verdict, hello, node.clock.now_ms()))
        except ConflictError:
            assert isinstance(verdict, ResumedVerdict), "only a ticket names an enrolment"
            node.metrics.tickets_void["re_enrolled"].inc()
            session.judged(
                await self.identity.admit(
                    credential or session.credential,
                    claimed_fleet=verdict.fleet,
                    claimed_device=verdict.device_id,
                )
            )
            connected = await node.writer.commit(Connect(session.verdict, hello, node.clock.now_ms()))
        return connected

    async def give_ticket(self, session: Session) -> None:
        """Send the device a ticket of the origin's newest word, if there is one to be had."""
        try:
            enrolment_id = await self.sessions.enrolment_id(session)
        except GatewayError:
            return  # it has the one from before, which is good for a while
        ticket = self.identity.tickets.seal(
            session.verdict, enrolment_id=enrolment_id, token_sha256=session.token_sha256
        )
        if ticket is not None and session.state is State.OPEN:
            session.send(Ticket(ticket))

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
        await self.take_up(session, verdict)
        return verdict

    async def take_up(self, session: Session, verdict: Verdict) -> None:
        """Give the device what the origin says now, if that may be something else than it has.

        Raises:
            StorageUnavailableError: It is not taken up.
        """
        is_changed = not verdict.grants_as(session.verdict)
        if is_changed:
            await self.node.writer.commit(Judged(verdict, self.node.clock.now_ms()))
        session.judged(verdict)  # not before: what is not committed is a change at the next check, too
        if is_changed:
            self.sessions.subscriptions_changed(session.device_key)


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
