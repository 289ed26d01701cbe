"""Who is let in, in which order it is found out, and what a ticket spares and does not spare."""

from __future__ import annotations

from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Goaway, Ticket, Welcome, encode_base64url
from device_sdk.wire.names import DeviceId
from gateway.edge.device.admission import Admission
from gateway.edge.device.drain import drain
from gateway.edge.device.socket import SocketSession
from gateway.errors import ConflictError, CredentialRefusedError, UnavailableError
from gateway.fleet.facts import Connect, Judged
from gateway.identity import ChannelGrant, ResumedVerdict
from gateway.session.conversation import State
from tests.unit.gateway.edge.device.node import CREDENTIAL, Edge, FakeConnection
from tests.unit.gateway.session.node import FLEET

TICKET = encode_base64url(b"a ticket")


@pytest.fixture
def edge() -> Edge:
    made = Edge()
    made.world.store.add("ops")
    made.identity.verdict = made.verdict()
    return made


def request(ticket: str | None = None, **headers: str) -> web.Request:
    sent = {"Authorization": "Bearer t", "Fleetcast-Fleet": "acme", "Fleetcast-Device": "d1"} | headers
    if ticket is not None:
        sent["Fleetcast-Ticket"] = ticket
    return make_mocked_request("GET", "/v1/device/connect", headers=sent)


def resumed(edge: Edge, **fields: Any) -> ResumedVerdict:
    return ResumedVerdict(
        DeviceId("d1"), FLEET.name, judged_at=edge.world.clock.now_ms(), enrolment_id=b"e" * 16, **fields
    )


def count(edge: Edge, name: str, **labels: str) -> float | None:
    return edge.world.node.metrics.registry.get_sample_value(f"fleetcast_{name}_total", labels)


def exhaust(admission: Admission, *, ticket: str | None = None) -> UnavailableError:
    """Enter until it is too much; return what the first who is too many is told."""
    while True:
        try:
            admission.enter(request(ticket))
        except UnavailableError as error:
            return error


class TestTurns:
    def test_more_than_the_rate_are_told_a_time_of_their_own_before_anything_is_done(self, edge: Edge):
        first = exhaust(edge.admission)
        assert (first.code, first.retry_after_s) == ("accept_rate", pytest.approx(0.01))
        with pytest.raises(UnavailableError) as second:
            edge.admission.enter(make_mocked_request("GET", "/"))  # no credential, and nobody looks
        assert second.value.retry_after_s == pytest.approx(0.02)
        assert edge.identity.asked == 0
        assert count(edge, "device_not_accepted", reason="stranger") == 2

    def test_a_good_ticket_goes_before_strangers(self, edge: Edge):
        exhaust(edge.admission)
        edge.identity.resumed = resumed(edge)
        edge.admission.enter(request(TICKET))
        assert count(edge, "device_accepted", lane="ticket") == 1

    @pytest.mark.parametrize("ticket", [TICKET, "not base64url!", "", "A" * 10_000])
    def test_one_that_is_as_none_makes_a_stranger(self, edge: Edge, ticket: str):
        exhaust(edge.admission)
        with pytest.raises(UnavailableError):
            edge.admission.enter(request(ticket))

    def test_a_node_that_is_full_or_stops_takes_nobody(self, edge: Edge):
        edge.identity.resumed = resumed(edge)
        for _ in range(10):
            edge.socket()
        with pytest.raises(UnavailableError) as full:
            edge.admission.enter(request(TICKET))
        assert full.value.code == "too_many_connections"
        edge.admission.is_draining = True
        with pytest.raises(UnavailableError) as stopping:
            edge.admission.enter(request(TICKET))
        assert stopping.value.code == "draining"


class TestTickets:
    async def test_the_origin_is_not_asked_about_who_shows_one(self, edge: Edge):
        edge.identity.resumed = resumed(edge)
        credential, verdict = await edge.admission.judged(edge.admission.enter(request(TICKET)))
        assert (credential.token, verdict) == ("t", edge.identity.resumed)
        assert edge.identity.asked == 0

    async def test_the_origin_is_asked_about_who_shows_none_or_a_bad_one(self, edge: Edge):
        for ticket in (None, TICKET, "!"):
            await edge.admission.judged(edge.admission.enter(request(ticket)))
        assert edge.identity.asked == 3

    async def test_a_ticket_without_a_token_is_worth_nothing(self, edge: Edge):
        edge.identity.resumed = resumed(edge)
        bare = make_mocked_request("GET", "/", headers={"Fleetcast-Ticket": TICKET})
        with pytest.raises(CredentialRefusedError):
            edge.admission.enter(bare)

    async def hello(self, edge: Edge, session: SocketSession, **hello: Any) -> list[Any]:
        edge.finds("ops")
        await edge.admission.connect(session, edge.hello(**hello), CREDENTIAL)
        return cast(FakeConnection, session.connection).taken()

    async def test_the_welcome_brings_one_that_this_node_opens(self, edge: Edge):
        (welcome,) = await self.hello(edge, edge.socket())
        assert isinstance(welcome, Welcome)
        assert welcome.ticket is not None
        edge.identity.tickets._revocations.read(edge.world.clock.monotonic())
        opened = edge.identity.tickets.open(
            welcome.ticket, token_sha256=CREDENTIAL.sha256, claimed_fleet="acme", claimed_device="d1"
        )
        assert opened.enrolment_id == b"e" * 16

    async def test_who_came_by_one_is_given_no_other(self, edge: Edge):
        session = edge.socket(verdict=resumed(edge))
        (welcome,) = await self.hello(edge, session)
        assert isinstance(welcome, Welcome)
        assert welcome.ticket is None
        (write,) = edge.world.writer.of(Connect)
        assert write.verdict.enrolment_id == b"e" * 16
        assert isinstance(session.verdict, ResumedVerdict)
        assert session.verdict.enrolment_id == b""

    async def test_one_of_an_earlier_enrolment_is_as_none(self, edge: Edge):
        session = edge.socket(verdict=resumed(edge))
        writer = edge.world.writer
        commit = writer.commit
        writer.commit = lambda write: (  # type: ignore[method-assign]
            self.failed() if isinstance(write.verdict, ResumedVerdict) else commit(write)
        )
        (welcome,) = await self.hello(edge, session)
        assert isinstance(welcome, Welcome)
        assert welcome.ticket is not None
        assert edge.identity.asked == 1
        assert session.verdict is edge.identity.verdict
        assert count(edge, "identity_tickets_void", reason="re_enrolled") == 1

    async def failed(self) -> None:
        raise ConflictError("enrolled anew", code="enrolment_changed")

    async def test_the_first_check_after_one_takes_up_whatever_the_origin_says(self, edge: Edge):
        edge.directory.keys["d1"] = 11
        edge.directory.found[11] = ()
        session = edge.socket(verdict=resumed(edge))
        await self.hello(edge, session)
        edge.identity.verdict = edge.verdict()  # no channels, as a ticket has none to say
        for _ in range(2):
            edge.world.clock.advance(900)
            edge.identity.verdict = edge.verdict()
            session.visit(edge.world.clock.monotonic())
            await edge.world.settle()
            cast(FakeConnection, session.connection)
            session.pong(b"")
        assert len(edge.world.writer.of(Judged)) == 1

    async def test_a_connected_device_is_given_a_new_one_when_the_origin_was_asked(self, edge: Edge):
        edge.directory.keys["d1"] = 11
        session = edge.socket()
        await self.hello(edge, session)
        edge.world.clock.advance(900)
        edge.identity.verdict = edge.verdict(channels=(ChannelGrant("ops", "alert"),))  # type: ignore[arg-type]
        edge.directory.found[11] = edge.world.connected("ops").subscriptions
        session.visit(edge.world.clock.monotonic())
        await edge.world.settle()
        tickets = [m for m in cast(FakeConnection, session.connection).taken() if isinstance(m, Ticket)]
        assert len(tickets) == 1

    async def test_a_database_that_is_away_costs_only_the_new_one(self, edge: Edge):
        session = edge.socket()
        await self.hello(edge, session)
        edge.world.clock.advance(900)
        edge.identity.verdict = edge.verdict()
        edge.directory.failures = 1
        session.visit(edge.world.clock.monotonic())
        await edge.world.settle()
        assert session.state is State.OPEN
        assert not [m for m in cast(FakeConnection, session.connection).taken() if isinstance(m, Ticket)]


class TestDrain:
    async def test_each_device_is_told_a_time_of_its_own_and_then_closed(self, edge: Edge):
        edge.admission._accept_rate_per_s = 1
        sessions = []
        for number in range(10):
            session = edge.socket(verdict=edge.verdict(f"d{number}"))
            edge.finds("ops")
            edge.world.writer.results[Connect] = edge.world.connected("ops")
            sessions.append(session)
        await edge.admission.connect(sessions[0], edge.hello(), CREDENTIAL)
        cast(FakeConnection, sessions[0].connection).taken()
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            edge.world.clock.advance(seconds)
            if len(waits) == 3:
                for session in sessions[1:]:
                    cast(FakeConnection, session.connection).is_gone = True

        await drain(edge.admission, grace_s=1.0, sleep=sleep)
        assert edge.admission.is_draining
        told = cast(FakeConnection, sessions[0].connection).taken()
        assert [type(message) for message in told] == [Goaway]
        assert told[0].code == 4000
        assert 0 <= told[0].retry_after_s <= 10
        for session in sessions:
            connection = cast(FakeConnection, session.connection)
            assert connection.closes == [CloseCode.SHUTDOWN]
        # The others went; the one that did not is cut off when the grace is over.
        assert cast(FakeConnection, sessions[0].connection).is_aborted
        assert not cast(FakeConnection, sessions[1].connection).is_aborted
        assert 0.9 <= sum(waits) <= 1.1

    async def test_a_device_that_has_not_said_hello_is_only_closed(self, edge: Edge):
        session = edge.socket()
        cast(FakeConnection, session.connection).is_gone = True
        await drain(edge.admission, grace_s=1.0)
        assert cast(FakeConnection, session.connection).taken() == []
        assert cast(FakeConnection, session.connection).closes == [CloseCode.SHUTDOWN]

    async def test_times_are_spread_over_the_fleet(self, edge: Edge):
        edge.admission._accept_rate_per_s = 1
        edge.admission._connections_max = 1000
        told = set()
        sessions = [edge.socket(verdict=edge.verdict(f"d{number}")) for number in range(200)]
        for session in sessions:
            session.state = State.OPEN
            cast(FakeConnection, session.connection).is_gone = True
        await drain(edge.admission, grace_s=1.0)
        for session in sessions:
            (goaway,) = cast(FakeConnection, session.connection).taken()
            told.add(goaway.retry_after_s)
        assert min(told) < 20
        assert 180 < max(told) <= 200
        assert len(told) > 80
