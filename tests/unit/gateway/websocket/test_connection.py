from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from gateway.websocket.connection import Connection
from gateway.websocket.frames import Opcode, close_frame, frame, mask
from gateway.websocket.limits import WebSocketLimits

LIMITS = WebSocketLimits(turn_events_max=4, close_timeout_s=5.0)
KEY = b"\x11\x22\x33\x44"


def sent(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A masked client frame."""
    return bytes((0x80 * fin | opcode, 0x80 | len(payload))) + KEY + mask(KEY, payload)


def sent_close(code: int, reason: str = "") -> bytes:
    return sent(Opcode.CLOSE, code.to_bytes(2, "big") + reason.encode())


BAD = b"\xff\xff"


class FakeTimer:
    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeLoop:
    """Calls that are run, and timers that fire, when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: list[Callable[[], None]] = []
        self.timers: list[FakeTimer] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self.now + delay, callback)
        self.timers.append(timer)
        return timer

    def run(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for timer in self.timers:
            if timer.at <= self.now and not timer.is_cancelled:
                timer.is_cancelled = True
                timer.callback()


class FakeTransport(asyncio.Transport):
    """A socket whose other end is the test. Bytes that the peer does not take stay in the write buffer."""

    def __init__(self, loop: FakeLoop, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("192.0.2.7", 4711)})
        self._loop = loop
        self._protocol = protocol
        self.sent: list[bytes] = []
        self.buffer = 0
        self.is_reading_now = True
        self.has_half_close = True
        self.eof_sent = False
        self.is_aborted = False
        self._is_closing = False
        self._is_lost = False
        self.watermarks: tuple[int | None, int | None] = (None, None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.watermarks = high, low

    def get_write_buffer_size(self) -> int:
        return self.buffer

    def write(self, data: bytes) -> None:
        assert not self.eof_sent, "cannot write after write_eof"
        if not self._is_closing:
            self.sent.append(data)

    def can_write_eof(self) -> bool:
        return self.has_half_close

    def write_eof(self) -> None:
        self.eof_sent = True

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.is_reading_now = False

    def resume_reading(self) -> None:
        self.is_reading_now = True

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self.buffer:
                self._loop.call_soon(self.lose)

    def abort(self) -> None:
        self._is_closing = True
        self.is_aborted = True
        self._loop.call_soon(self.lose)

    def lose(self, error: Exception | None = None) -> None:
        self._is_closing = True
        if not self._is_lost:
            self._is_lost = True
            self._protocol.connection_lost(error)

    def peer_sends(self, *reads: bytes) -> None:
        for data in reads:
            if not self._is_closing:
                self._protocol.data_received(data)

    def peer_shuts_down(self) -> None:
        if not self._protocol.eof_received():
            self.close()


class Recorder:
    """A listener that keeps what it was told, and does what the test wants when told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.on: dict[str, Callable[[], None]] = {}

    def _record(self, name: str, *arguments: object) -> None:
        assert not any(call[0] == "closed" for call in self.calls), "closed is the last call"
        self.calls.append((name, *arguments))
        self.on.get(name, lambda: None)()

    def message(self, is_text: bool, payload: bytes) -> None:
        self._record("message", is_text, payload)

    def pong(self, payload: bytes) -> None:
        self._record("pong", payload)

    def paused(self) -> None:
        self._record("paused")

    def resumed(self) -> None:
        self._record("resumed")

    def closed(self, code: int, reason: str) -> None:
        self._record("closed", code, reason)


class Link:
    """A connection between a recorder and a fake transport."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.listener = Recorder()
        self.connection = Connection(self.listener, LIMITS, self.loop)  # type: ignore[arg-type]
        self.transport = FakeTransport(self.loop, self.connection)
        self.connection.connection_made(self.transport)

    @property
    def calls(self) -> list[tuple[object, ...]]:
        return self.listener.calls

    def peer_sends(self, *reads: bytes) -> None:
        self.transport.peer_sends(*reads)


@pytest.fixture
def link() -> Link:
    return Link()


class TestMessages:
    def test_each_is_delivered_whole_and_in_order(self, link):
        link.peer_sends(
            sent(Opcode.BINARY, b"ack"),
            sent(Opcode.TEXT, b"text"),
            sent(Opcode.BINARY, b"1") + sent(Opcode.BINARY, b"2"),
            sent(Opcode.TEXT, b"a", fin=False) + sent(Opcode.CONTINUATION, b"b")[:3],
            sent(Opcode.CONTINUATION, b"b")[3:],
        )
        assert link.calls == [
            ("message", False, b"ack"),
            ("message", True, b"text"),
            ("message", False, b"1"),
            ("message", False, b"2"),
            ("message", True, b"ab"),
        ]
        assert link.transport.sent == []

    def test_the_short_cut_is_not_taken_within_a_message(self, link):
        link.peer_sends(sent(Opcode.TEXT, b"a", fin=False), sent(Opcode.BINARY, b"whole"))
        assert link.calls == [("closed", 1002, "message out of sequence")]

    def test_the_short_cut_is_not_taken_within_a_frame(self, link):
        inner = sent(Opcode.BINARY, b"inner")
        payload = bytes(8) + mask(KEY, inner)
        outer = sent(Opcode.BINARY, payload)
        assert outer.endswith(inner)
        link.peer_sends(outer[: -len(inner)], inner)
        assert link.calls == [("message", False, payload)]

    def test_another_listener_may_take_over(self, link):
        successor = Recorder()
        link.listener.on["message"] = lambda: setattr(link.connection, "listener", successor)
        link.peer_sends(sent(Opcode.BINARY, b"hello") + sent(Opcode.BINARY, b"ack"))
        link.transport.lose()
        assert link.calls == [("message", False, b"hello")]
        assert successor.calls == [("message", False, b"ack"), ("closed", 1006, "")]

    @pytest.mark.parametrize("second", [b"", sent(Opcode.TEXT, b"y")], ids=["short cut", "parser"])
    def test_a_listener_that_raises_closes_with_internal_error(self, link, second):
        link.listener.on["message"] = raise_error
        with capture_logs() as logs:
            link.peer_sends(sent(Opcode.BINARY, b"x") + second, sent(Opcode.BINARY, b"z"))
        assert [log["event"] for log in logs] == ["listener_failed"]
        assert link.transport.sent == [close_frame(1011)]
        assert link.calls == [("message", False, b"x")]
        link.peer_sends(sent_close(1011))
        assert link.calls[1:] == [("closed", 1011, "")]


def raise_error() -> None:
    raise RuntimeError("our bug")


class TestTurns:
    def test_one_peer_does_not_keep_the_loop(self, link):
        link.peer_sends(b"".join(sent(Opcode.BINARY, bytes((i,))) for i in range(10)))
        assert len(link.calls) == LIMITS.turn_events_max
        assert not link.transport.is_reading_now
        link.loop.run()
        assert [call[2] for call in link.calls] == [bytes((i,)) for i in range(10)]
        assert link.transport.is_reading_now

    def test_the_rest_is_not_delivered_to_a_connection_that_is_gone(self, link):
        link.peer_sends(b"".join(sent(Opcode.BINARY, bytes((i,))) for i in range(10)))
        link.transport.lose()
        link.loop.run()
        assert [call[0] for call in link.calls] == ["message"] * LIMITS.turn_events_max + ["closed"]


class TestReading:
    def test_nothing_is_delivered_while_paused(self, link):
        link.listener.on["message"] = link.connection.pause_reading
        link.peer_sends(sent(Opcode.BINARY, b"1") + sent(Opcode.TEXT, b"2"), sent(Opcode.BINARY, b"3"))
        assert link.calls == [("message", False, b"1")]
        assert not link.transport.is_reading_now

        link.listener.on.clear()
        link.connection.resume_reading()
        assert len(link.calls) == 1, "not from within the call"
        link.loop.run()
        assert [call[2] for call in link.calls] == [b"1", b"2", b"3"]
        assert link.transport.is_reading_now
        link.peer_sends(sent(Opcode.BINARY, b"4"))
        assert link.calls[-1] == ("message", False, b"4")

    def test_a_pause_before_the_turn_comes_holds(self, link):
        link.connection.pause_reading()
        link.connection.resume_reading()
        link.connection.pause_reading()
        link.loop.run()
        assert not link.transport.is_reading_now

    def test_a_close_reads_on_to_find_the_peers(self, link):
        link.connection.pause_reading()
        link.peer_sends(sent(Opcode.BINARY, b"late") + sent_close(4001))
        link.connection.close(4001)
        link.loop.run()
        assert link.calls == [("closed", 4001, "")]

    def test_resuming_what_is_not_paused_does_nothing(self, link):
        link.connection.resume_reading()
        assert link.loop.soon == []


class TestPings:
    def test_a_ping_is_answered(self, link):
        link.peer_sends(sent(Opcode.PING, b"p"))
        assert link.transport.sent == [frame(Opcode.PONG, b"p")]
        assert link.calls == []

    def test_a_pong_is_told(self, link):
        link.connection.ping(b"now")
        assert link.transport.sent == [frame(Opcode.PING, b"now")]
        link.peer_sends(sent(Opcode.PONG, b"now"))
        assert link.calls == [("pong", b"now")]

    def test_while_the_peer_does_not_read_only_the_newest_ping_is_remembered(self, link):
        link.connection.pause_writing()
        for i in range(100):
            link.peer_sends(sent(Opcode.PING, bytes((i,))))
        assert link.transport.sent == []
        link.connection.resume_writing()
        link.connection.pause_writing()
        link.connection.resume_writing()
        assert link.transport.sent == [frame(Opcode.PONG, bytes((99,)))]

    def test_a_pong_that_waited_is_not_sent_after_a_close(self, link):
        link.connection.pause_writing()
        link.peer_sends(sent(Opcode.PING, b"p"))
        link.connection.close(1000)
        link.connection.resume_writing()
        assert link.transport.sent == [close_frame(1000)]


class TestWriting:
    def test_write_is_the_transports_own(self, link):
        assert link.connection.write == link.transport.write

    def test_the_transport_gets_the_limits(self, link):
        assert link.transport.watermarks == (LIMITS.write_buffer_high_bytes, LIMITS.write_buffer_low_bytes)

    def test_what_is_not_sent_can_be_asked(self, link):
        link.transport.buffer = 17
        assert link.connection.write_buffer_size == 17
        assert link.connection.remote == "192.0.2.7"
        link.transport.lose()
        assert link.connection.write_buffer_size == 0
        assert link.connection.remote is None

    def test_a_full_buffer_is_told_and_an_empty_one_again(self, link):
        link.connection.pause_writing()
        link.connection.resume_writing()
        assert link.calls == [("paused",), ("resumed",)]

    @pytest.mark.parametrize("name", ["paused", "resumed"])
    def test_a_listener_that_raises_closes_with_internal_error(self, link, name):
        link.listener.on[name] = raise_error
        with capture_logs() as logs:
            link.connection.pause_writing()
            link.connection.resume_writing()
        assert len(logs) == 1
        assert link.transport.sent == [close_frame(1011)]

    def test_a_transport_without_an_address_has_none(self, link):
        link.transport._extra["peername"] = ""
        assert link.connection.remote is None


class TestOurClose:
    def test_it_is_sent_once_and_is_the_last(self, link):
        link.connection.close(4001, "slow")
        link.connection.close(1000)
        link.connection.write(frame(Opcode.BINARY, b"late"))
        link.connection.ping()
        link.peer_sends(sent(Opcode.PING, b"p"))
        assert link.transport.sent == [close_frame(4001, "slow")]
        assert link.calls == []
        assert not link.connection.is_open
        assert link.connection.closed_by_us

    def test_the_peers_answer_ends_it_with_our_code(self, link):
        link.connection.close(4001, "slow")
        link.peer_sends(sent(Opcode.BINARY, b"late"), sent_close(1000))
        assert link.calls == [("closed", 4001, "slow")]
        assert link.transport.is_closing()
        assert len(link.transport.sent) == 1, "a close is not answered with a second one"
        link.loop.run()
        assert link.loop.timers[0].is_cancelled

    def test_a_peer_that_does_not_answer_is_dropped_at_the_deadline(self, link):
        link.connection.close(4000)
        link.loop.advance(LIMITS.close_timeout_s - 0.01)
        assert not link.transport.is_aborted
        link.loop.advance(0.01)
        assert link.transport.is_aborted
        link.loop.run()
        assert link.calls == [("closed", 4000, "")]

    def test_a_violation_instead_of_the_answer_ends_it_too(self, link):
        link.connection.close(4000)
        link.peer_sends(BAD)
        assert link.calls == [("closed", 4000, "")]
        assert link.transport.sent == [close_frame(4000)]
        assert link.transport.is_closing()

    def test_a_listener_may_close_from_within_a_message(self, link):
        link.listener.on["message"] = lambda: link.connection.close(4009)
        link.peer_sends(sent(Opcode.BINARY, b"1") + sent(Opcode.BINARY, b"2"))
        assert link.calls == [("message", False, b"1")]


class TestPeersClose:
    def test_it_is_answered_with_its_code_and_the_transport_let_go(self, link):
        link.peer_sends(sent_close(1001, "bye") + sent(Opcode.BINARY, b"late"))
        assert link.transport.sent == [close_frame(1001)]
        assert link.calls == [("closed", 1001, "bye")]
        assert link.transport.is_closing()
        assert not link.connection.closed_by_us
        link.loop.run()
        assert len(link.calls) == 1

    def test_without_a_code_it_is_answered_without_one(self, link):
        link.peer_sends(sent(Opcode.CLOSE))
        assert link.transport.sent == [b"\x88\x00"]
        assert link.calls == [("closed", 1005, "")]

    def test_a_peer_that_reads_nothing_more_is_dropped_at_the_deadline(self, link):
        link.transport.buffer = 1000
        link.peer_sends(sent_close(1000))
        link.loop.run()
        assert not link.transport.is_aborted
        link.loop.advance(LIMITS.close_timeout_s)
        assert link.transport.is_aborted
        link.loop.run()
        assert link.calls == [("closed", 1000, "")]


class TestViolation:
    def test_it_is_answered_and_our_half_shut_down(self, link):
        link.peer_sends(sent(Opcode.BINARY, b"ok") + BAD + sent(Opcode.BINARY, b"late"))
        assert link.transport.sent == [close_frame(1002, "reserved bits set")]
        assert link.transport.eof_sent
        assert not link.transport.is_closing(), "unread bytes would reset it and lose the close frame"
        assert link.calls == [("message", False, b"ok"), ("closed", 1002, "reserved bits set")]
        assert link.connection.closed_by_us

    def test_what_follows_is_thrown_away_until_the_peer_hangs_up(self, link):
        link.peer_sends(BAD, *[bytes(100_000)] * 10)
        assert link.connection._codec.buffered_bytes == 0
        link.connection.write(b"late")
        link.transport.peer_shuts_down()
        link.loop.run()
        assert len(link.calls) == 1
        assert link.loop.timers[0].is_cancelled

    def test_a_peer_that_does_not_hang_up_is_dropped_at_the_deadline(self, link):
        link.peer_sends(BAD)
        link.loop.advance(LIMITS.close_timeout_s)
        assert link.transport.is_aborted

    def test_without_half_close_the_transport_is_closed(self, link):
        link.transport.has_half_close = False
        link.peer_sends(BAD)
        assert link.transport.sent == [close_frame(1002, "reserved bits set")]
        assert link.transport.is_closing()


class TestLoss:
    def test_a_reset_is_told_once(self, link):
        link.transport.lose(ConnectionResetError())
        link.connection.write(b"late")
        link.connection.ping()
        link.connection.close(1000)
        link.connection.abort()
        link.connection.resume_reading()
        link.connection.pause_reading()
        assert link.calls == [("closed", 1006, "")]
        assert link.transport.sent == []
        assert not link.connection.is_open
        assert not link.connection.closed_by_us

    def test_a_peer_that_shuts_down_its_half_is_gone(self, link):
        link.transport.buffer = 1000  # and it will not be read
        link.transport.peer_shuts_down()
        assert link.calls == [("closed", 1006, "")]
        link.loop.advance(LIMITS.close_timeout_s)
        assert link.transport.is_aborted

    def test_an_abort_is_told_from_the_loop(self, link):
        link.connection.abort()
        assert link.calls == []
        assert not link.connection.is_open
        link.loop.run()
        assert link.calls == [("closed", 1006, "")]

    def test_one_that_never_had_a_transport_is_closed_too(self):
        listener = Recorder()
        connection = Connection(listener, LIMITS, FakeLoop())  # type: ignore[arg-type]
        assert not connection.is_open
        connection.connection_lost(None)
        assert listener.calls == [("closed", 1006, "")]

    def test_a_listener_that_raises_at_the_end_is_logged(self, link):
        link.listener.on["closed"] = raise_error
        with capture_logs() as logs:
            link.transport.lose()
        assert [log["event"] for log in logs] == ["listener_failed"]


def test_a_connection_has_no_dict(link):
    assert not hasattr(link.connection, "__dict__")
    assert link.connection._codec is None
    link.peer_sends(sent(Opcode.TEXT, b"a", fin=False))
    assert not hasattr(link.connection._codec, "__dict__")
    link.peer_sends(sent(Opcode.CONTINUATION))
    assert link.connection._codec is None, "nothing to remember"
