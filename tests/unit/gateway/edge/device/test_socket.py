"""A session on a WebSocket: hello in time, pings answered, bytes taken, and blame where it is due."""

from __future__ import annotations

from typing import Any

import pytest

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.limits import HELLO_SIZE_MAX
from device_sdk.wire.messages import (
    Ack,
    Alert,
    Error,
    Message,
    Position,
    Report,
    Welcome,
    encode_cbor,
    encode_json,
)
from device_sdk.wire.names import ChannelName
from gateway.edge.device.socket import SocketSession
from gateway.errors import (
    CredentialRefusedError,
    CredentialRevokedError,
    OriginUnavailableError,
    StorageUnavailableError,
    UnavailableError,
    WrongIdentityError,
)
from gateway.fleet.facts import Connect, Disconnected, Judged, Received
from gateway.identity import ChannelGrant
from gateway.session.conversation import State
from tests.unit.gateway.edge.device.node import Edge, FakeConnection
from tests.unit.gateway.session.node import EPOCH


@pytest.fixture
def edge() -> Edge:
    made = Edge()
    made.world.store.add("ops")
    made.finds("ops")
    return made


def connection_of(session: SocketSession) -> FakeConnection:
    connection = session.connection
    assert isinstance(connection, FakeConnection)
    return connection


def say(session: SocketSession, message: Message) -> None:
    if session.is_json:
        session.message(True, encode_json(message).encode())
    else:
        session.message(False, encode_cbor(message))


def taken(session: SocketSession) -> list[Message]:
    return connection_of(session).taken(is_json=session.is_json)


async def opened(edge: Edge, **options: Any) -> SocketSession:
    session = edge.socket(**options)
    say(session, edge.hello())
    await edge.world.settle()
    assert session.state is State.OPEN
    assert isinstance(taken(session)[0], Welcome)
    return session


def assert_closing(session: SocketSession, code: CloseCode) -> None:
    assert connection_of(session).closes == [code]
    assert session.state is State.CLOSED


def visit(edge: Edge, session: SocketSession, seconds: float) -> None:
    edge.world.clock.advance(seconds)
    session.visit(edge.world.clock.monotonic())


class TestHello:
    async def test_opens_the_session_once_it_is_committed(self, edge: Edge) -> None:
        session = edge.socket()
        edge.world.writer.is_held = True
        say(session, edge.hello())
        await edge.world.settle()
        assert taken(session) == []
        assert not connection_of(session).is_reading  # what comes behind the hello waits for it
        edge.world.writer.held[0].set_result(edge.world.connected("ops"))
        await edge.world.settle()
        assert [type(message) for message in taken(session)] == [Welcome]
        assert connection_of(session).is_reading
        assert edge.sessions.of_device(11) is session

    async def test_with_a_nonce_is_answered_with_a_statement(self, edge: Edge) -> None:
        session = edge.socket()
        say(session, edge.hello(nonce=b"n" * 16))
        await edge.world.settle()
        (welcome,) = taken(session)
        assert isinstance(welcome, Welcome)
        assert welcome.statement == b"statement"

    @pytest.mark.parametrize(("seconds", "is_closed"), [(9.9, False), (10.0, True)])
    async def test_deadline_is_exclusive(self, edge: Edge, seconds: float, is_closed: bool) -> None:
        session = edge.socket()
        visit(edge, session, seconds)
        assert connection_of(session).closes == ([CloseCode.HELLO_TIMEOUT] if is_closed else [])

    async def test_that_the_database_keeps_waiting_is_not_late(self, edge: Edge) -> None:
        session = edge.socket()
        edge.world.writer.is_held = True
        say(session, edge.hello())
        await edge.world.settle()
        visit(edge, session, 10)
        assert_closing(session, CloseCode.STORAGE_UNAVAILABLE)
        edge.world.writer.held[0].set_result(edge.world.connected("ops"))
        await edge.world.settle()
        assert edge.sessions.of_device(11) is None
        assert edge.world.hub_channel("ops") is None

    async def test_that_is_oversized_is_not_read(self, edge: Edge) -> None:
        session = edge.socket()
        session.message(False, b"\x00" * (HELLO_SIZE_MAX + 1))
        assert_closing(session, CloseCode.MESSAGE_TOO_BIG)
        assert not edge.world.writer.of(Connect)

    @pytest.mark.parametrize(
        "message",
        [Ack(), Report(b"r" * 16, b"d" * 16, 1, "verified"), Error("x")],
        ids=["ack", "report", "error"],
    )
    async def test_before_which_anything_else_comes_is_a_policy_violation(
        self, edge: Edge, message: Message
    ) -> None:
        session = edge.socket()
        say(session, message)
        assert_closing(session, CloseCode.POLICY_VIOLATION)
        assert not edge.world.writer.writes

    async def test_second_one_is_answered_with_an_error(self, edge: Edge) -> None:
        session = await opened(edge)
        say(session, edge.hello())
        await edge.world.settle()
        assert taken(session) == [Error("unexpected_message")]
        assert len(edge.world.writer.of(Connect)) == 1

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"protocol": 2}, CloseCode.POLICY_VIOLATION),
            ({"device": "d2"}, CloseCode.WRONG_IDENTITY),
            ({"fleet": "other"}, CloseCode.WRONG_IDENTITY),
        ],
    )
    async def test_of_another_version_or_device_is_refused_and_not_committed(
        self, edge: Edge, changes: dict[str, Any], code: CloseCode
    ) -> None:
        session = edge.socket()
        say(session, edge.hello(**changes))
        await edge.world.settle()
        assert_closing(session, code)
        assert not edge.world.writer.of(Connect)

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (StorageUnavailableError("away"), CloseCode.STORAGE_UNAVAILABLE),
            (CredentialRefusedError("no", code="device_disabled"), CloseCode.DEVICE_DISABLED),
            (OriginUnavailableError("unknown", code="unknown_fleet"), CloseCode.ORIGIN_UNAVAILABLE),
            (ValueError("our bug"), CloseCode.INTERNAL_ERROR),
        ],
        ids=["storage", "disabled", "fleet", "bug"],
    )
    async def test_that_cannot_be_committed_is_answered_by_whose_fault_it_is(
        self, edge: Edge, error: Exception, code: CloseCode
    ) -> None:
        session = edge.socket()
        edge.world.writer.is_held = True
        say(session, edge.hello())
        await edge.world.settle()
        edge.world.writer.held[0].set_exception(error)
        await edge.world.settle()
        assert_closing(session, code)
        assert edge.admission.connections == 0

    async def test_of_a_connection_that_goes_meanwhile_opens_nothing(self, edge: Edge) -> None:
        session = edge.socket()
        edge.world.writer.is_held = True
        say(session, edge.hello())
        await edge.world.settle()
        session.closed(1006, "")
        edge.world.writer.held[0].set_result(edge.world.connected("ops"))
        await edge.world.settle()
        assert session.state is State.CLOSED
        assert edge.sessions.of_device(11) is None
        assert edge.admission.connections == 0
        assert edge.world.hub_channel("ops") is None


class TestMessages:
    @pytest.mark.parametrize("is_json", [False, True], ids=["cbor", "json"])
    async def test_frame_of_the_other_encoding_is_unsupported_data(self, edge: Edge, is_json: bool) -> None:
        session = await opened(edge, is_json=is_json)
        session.message(not is_json, encode_cbor(Ack()))
        assert_closing(session, CloseCode.UNSUPPORTED_DATA)

    @pytest.mark.parametrize("payload", [b"", b"\xff", b"\xa1\x00", b"{}", b"\xa0"])
    async def test_malformed_one_is_a_policy_violation(self, edge: Edge, payload: bytes) -> None:
        session = await opened(edge)
        session.message(False, payload)
        assert_closing(session, CloseCode.POLICY_VIOLATION)

    async def test_of_a_later_version_is_ignored(self, edge: Edge) -> None:
        session = await opened(edge)
        session.message(False, b"\xa1\x00\x17")
        assert session.state is State.OPEN
        assert taken(session) == []

    @pytest.mark.parametrize("is_json", [False, True], ids=["cbor", "json"])
    async def test_ack_moves_the_position_whichever_way_it_is_read(self, edge: Edge, is_json: bool) -> None:
        session = await opened(edge, is_json=is_json)
        await edge.world.publish("ops", 3)
        say(session, Ack(positions={"ops": Position(EPOCH, 2)}))
        say(session, Ack(positions={"ops": Position(EPOCH, 3)}, window=7))
        assert [(fact.first, fact.last) for fact in edge.world.writer.of(Received)] == [(1, 2), (3, 3)]
        say(session, Ack(positions={"ops": Position(EPOCH, 9)}))
        assert [m for m in taken(session) if isinstance(m, Error)] == [Error("bad_position", "ops")]
        assert session.credit == 7

    async def test_after_the_close_are_thrown_away(self, edge: Edge) -> None:
        session = await opened(edge)
        await edge.world.publish("ops", 3)
        session.close(CloseCode.SHUTDOWN)
        say(session, Ack(positions={"ops": Position(EPOCH, 3)}))
        session.message(False, b"\xff")
        assert connection_of(session).closes == [CloseCode.SHUTDOWN]
        assert not edge.world.writer.of(Received)


class TestPings:
    async def test_answered_ones_measure_the_round_trip(self, edge: Edge) -> None:
        session = await opened(edge)
        visit(edge, session, 25)
        assert connection_of(session).pings == 1
        edge.world.clock.advance(0.25)
        session.pong(b"")
        assert session.rtt_s == pytest.approx(0.25)
        visit(edge, session, 24.7)
        assert connection_of(session).pings == 1
        visit(edge, session, 0.1)
        assert connection_of(session).pings == 2

    async def test_unanswered_one_closes(self, edge: Edge) -> None:
        session = await opened(edge)
        visit(edge, session, 25)
        visit(edge, session, 19.9)
        assert session.state is State.OPEN
        visit(edge, session, 0.1)
        assert_closing(session, CloseCode.NO_PONG)

    async def test_pong_that_nobody_asked_for_measures_nothing(self, edge: Edge) -> None:
        session = await opened(edge)
        session.pong(b"")
        assert session.rtt_s == 0

    async def test_who_is_not_read_from_is_not_expected_to_answer(self, edge: Edge) -> None:
        session = await opened(edge)
        visit(edge, session, 25)
        edge.world.writer.is_held = True
        for number in range(16):
            say(session, Report(bytes([number]) * 16, b"d" * 16, 1, "verified"))
        await edge.world.settle()
        assert not connection_of(session).is_reading
        for _ in range(10):
            visit(edge, session, 10)
        assert session.state is State.OPEN

    async def test_are_spread_over_the_first_interval(self, edge: Edge) -> None:
        sessions = [edge.socket() for _ in range(8)]
        for session in sessions:
            session.state = State.OPEN
            visit(edge, session, 0)
        edge.world.clock.advance(14)
        for session in sessions:
            session.visit(edge.world.clock.monotonic())
        assert 0 < sum(connection_of(session).pings for session in sessions) < 8


class TestSlowConsumer:
    async def test_that_drains_nothing_is_closed_and_dropped(self, edge: Edge) -> None:
        session = await opened(edge)
        connection_of(session).write_buffer_size = 100_000
        session.paused()
        visit(edge, session, 59.9)
        assert session.state is State.OPEN
        visit(edge, session, 0.1)
        assert_closing(session, CloseCode.SLOW_CONSUMER)
        assert connection_of(session).is_aborted

    async def test_that_drains_a_byte_now_and_then_is_not(self, edge: Edge) -> None:
        session = await opened(edge)
        connection_of(session).write_buffer_size = 100_000
        session.paused()
        for _ in range(20):
            connection_of(session).write_buffer_size -= 1
            visit(edge, session, 40)
        assert session.state is State.OPEN

    async def test_that_provokes_answers_and_reads_none_is_closed(self, edge: Edge) -> None:
        session = await opened(edge)
        session.paused()
        connection_of(session).write_buffer_size = (1 << 20) + 1
        say(session, Ack(positions={"nowhere": Position(EPOCH, 1)}))
        assert_closing(session, CloseCode.SLOW_CONSUMER)

    async def test_gets_what_it_missed_when_it_reads_again(self, edge: Edge) -> None:
        session = await opened(edge)
        session.paused()
        await edge.world.publish("ops", 3)
        assert taken(session) == []
        session.resumed()
        assert [m.offset for m in taken(session) if isinstance(m, Alert)] == [1, 2, 3]


class TestVerdict:
    async def test_that_runs_out_ends_the_session(self, edge: Edge) -> None:
        verdict = edge.verdict(expires_at=edge.world.clock.now_ms() + 100_000)
        edge.identity.error = OriginUnavailableError("away")
        session = await opened(edge, verdict=verdict)
        visit(edge, session, 159)
        session.pong(b"")
        await edge.world.settle()
        assert session.state is State.OPEN
        visit(edge, session, 1)
        assert_closing(session, CloseCode.VERDICT_EXPIRED)

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (CredentialRefusedError("no"), CloseCode.CREDENTIAL_REVOKED),
            (CredentialRevokedError("no"), CloseCode.CREDENTIAL_REVOKED),
            (WrongIdentityError("no"), CloseCode.WRONG_IDENTITY),
        ],
    )
    async def test_that_is_taken_back_ends_the_session(
        self, edge: Edge, error: Exception, code: CloseCode
    ) -> None:
        session = await opened(edge)
        edge.identity.error = error
        await checked(edge, session)
        assert_closing(session, code)

    async def test_that_is_left_open_ends_nothing(self, edge: Edge) -> None:
        session = await opened(edge)
        edge.identity.error = OriginUnavailableError("away")
        await checked(edge, session)
        assert session.state is State.OPEN
        await checked(edge, session)
        assert edge.identity.asked == 2

    async def test_with_other_channels_is_committed_and_taken_up(self, edge: Edge) -> None:
        session = await opened(edge)
        edge.identity.verdict = edge.verdict(channels=(ChannelGrant(ChannelName("more"), "alert"),))
        edge.world.store.add("more")
        edge.directory.found[11] = edge.world.connected("more", "ops").subscriptions
        await checked(edge, session)
        assert len(edge.world.writer.of(Judged)) == 1
        assert sorted(lane.channel.name for lane in session.lanes) == ["more", "ops"]

    async def test_that_could_not_be_committed_is_committed_the_next_time(self, edge: Edge) -> None:
        session = await opened(edge)
        edge.identity.verdict = edge.verdict(channels=(ChannelGrant(ChannelName("more"), "alert"),))
        edge.world.store.add("more")
        edge.directory.found[11] = edge.world.connected("more", "ops").subscriptions
        edge.world.writer.fails = True
        await checked(edge, session)
        assert session.state is State.OPEN
        edge.world.writer.fails = False
        await checked(edge, session)
        assert sorted(lane.channel.name for lane in session.lanes) == ["more", "ops"]


async def checked(edge: Edge, session: SocketSession) -> None:
    """Let so much time pass that the verdict is asked for again; pings are answered."""
    before = edge.identity.asked
    for _ in range(1000):
        visit(edge, session, 15)
        session.pong(b"")
        await edge.world.settle()
        if edge.identity.asked > before:
            return
    raise AssertionError("the verdict was not asked for")


class TestEnd:
    async def test_of_the_connection_is_written_down_once(self, edge: Edge) -> None:
        session = await opened(edge)
        session.closed(1006, "")
        session.closed(1006, "")
        assert len(edge.world.writer.of(Disconnected)) == 1
        assert edge.admission.connections == 0
        assert len(edge.sessions) == 0

    async def test_newer_connection_of_the_device_replaces_it(self, edge: Edge) -> None:
        old = await opened(edge)
        await edge.world.publish("ops", 1)
        new = await opened(edge)
        assert_closing(old, CloseCode.REPLACED)
        assert edge.sessions.of_device(11) is new
        old.closed(1000, "")
        assert edge.sessions.of_device(11) is new
        assert edge.admission.connections == 1

    async def test_alert_that_only_the_old_connection_got_comes_over_the_new_one(self, edge: Edge) -> None:
        """Published between the new hello's commit and its start, to a channel that nobody else has."""
        old = await opened(edge)
        session = edge.socket()
        edge.world.writer.is_held = True
        say(session, edge.hello())
        await edge.world.settle()
        found = edge.world.connected("ops")  # before the alert
        await edge.world.publish("ops", 1)
        assert [m.offset for m in taken(old) if isinstance(m, Alert)] == [1]
        edge.world.writer.held[0].set_result(found)
        await edge.world.settle()
        assert_closing(old, CloseCode.REPLACED)
        assert [m.offset for m in taken(session) if isinstance(m, Alert)] == [1]


class TestRoom:
    async def test_is_bounded_and_counted(self, edge: Edge) -> None:
        for number in range(10):
            edge.admission.check_room()
            edge.socket(verdict=edge.verdict(f"d{number}"))
        with pytest.raises(UnavailableError, match="connections_max"):
            edge.admission.check_room()

    async def test_is_none_while_the_node_stops(self, edge: Edge) -> None:
        edge.admission.is_draining = True
        with pytest.raises(UnavailableError, match="stopping"):
            edge.admission.check_room()
