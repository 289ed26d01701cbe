from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.websocket.codec import (
    TRANSITIONS,
    Close,
    Codec,
    Event,
    Message,
    Ping,
    Pong,
    State,
    Step,
    Violation,
)
from gateway.websocket.frames import mask
from gateway.websocket.limits import WebSocketLimits

LIMITS = WebSocketLimits(message_size_bytes_max=70_000, fragments_max=4)
KEY = bytes.fromhex("37fa213d")
FIN, MASKED = 0x80, 0x80
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def sent(first: int, payload: bytes = b"", *, length: bytes | None = None) -> bytes:
    """A masked frame. ``length``: the second byte and the extended length, if not the right ones."""
    if length is None:
        size = len(payload)
        if size <= 125:
            length = bytes((MASKED | size,))
        elif size <= 0xFFFF:
            length = bytes((MASKED | 126,)) + size.to_bytes(2, "big")
        else:
            length = bytes((MASKED | 127,)) + size.to_bytes(8, "big")
    return bytes((first,)) + length + KEY + mask(KEY, payload)


def close(code: int, reason: bytes = b"") -> bytes:
    return sent(FIN | CLOSE, code.to_bytes(2, "big") + reason)


def events(codec: Codec, *reads: bytes) -> list[Event]:
    found: list[Event] = []
    for data in reads:
        codec.receive(data)
        while (event := codec.next_event()) is not None:
            found.append(event)
    return found


def read_at_once(data: bytes) -> Sequence[bytes]:
    return [data]


def read_byte_by_byte(data: bytes) -> Sequence[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


RESERVED = [
    *((f"reserved bits {bits:#x}", sent(FIN | bits | TEXT, b"x"), 1002) for bits in (0x40, 0x20, 0x10, 0x70)),
    ("reserved bit on a continuation", sent(BINARY, b"x") + sent(FIN | 0x40 | CONT, b"x"), 1002),
    ("reserved bit on a ping", sent(FIN | 0x40 | PING), 1002),
    ("reserved bit on a close", sent(FIN | 0x20 | CLOSE), 1002),
    *((f"reserved opcode {op:#x}", sent(FIN | op, b"x"), 1002) for op in (*range(3, 8), *range(0xB, 0x10))),
]
CONTROL = [
    ("fragmented close", sent(CLOSE), 1002),
    ("fragmented ping", sent(PING, b"x"), 1002),
    ("fragmented pong", sent(PONG, b"x"), 1002),
    ("close of 126 bytes", sent(FIN | CLOSE, (1000).to_bytes(2, "big") + bytes(124)), 1002),
    ("ping of 126 bytes", sent(FIN | PING, bytes(126)), 1002),
    ("pong of 126 bytes", sent(FIN | PONG, bytes(126)), 1002),
    ("ping of 64 KiB", sent(FIN | PING, bytes(65536)), 1002),
    ("ping with a long length of 1", sent(FIN | PING, b"x", length=b"\xfe\x00\x01"), 1002),
]
MASKING = [
    (f"unmasked {name}", bytes((FIN | opcode, 1)) + b"x", 1002)
    for name, opcode in (("text", TEXT), ("binary", BINARY), ("ping", PING), ("pong", PONG), ("close", CLOSE))
] + [
    ("unmasked and empty", bytes((FIN | BINARY, 0)), 1002),
    ("unmasked continuation", sent(BINARY, b"x") + bytes((FIN | CONT, 1)) + b"x", 1002),
    ("unmasked 16-bit length", bytes((FIN | BINARY, 126, 0, 200)) + bytes(200), 1002),
]
SEQUENCE = [
    ("continuation of nothing", sent(FIN | CONT, b"x"), 1002),
    ("fragment of nothing", sent(CONT, b"x"), 1002),
    ("continuation of a whole message", sent(FIN | BINARY, b"x") + sent(FIN | CONT, b"x"), 1002),
    (
        "continuation of an ended message",
        sent(TEXT, b"x") + sent(FIN | CONT, b"x") + sent(FIN | CONT, b"x"),
        1002,
    ),
    ("text within a message", sent(BINARY, b"x") + sent(FIN | TEXT, b"x"), 1002),
    ("binary within a message", sent(TEXT, b"x") + sent(FIN | BINARY, b"x"), 1002),
    ("two beginnings", sent(TEXT, b"x") + sent(TEXT, b"x"), 1002),
]
LENGTHS = [
    ("0 in 16 bits", sent(FIN | BINARY, b"", length=b"\xfe\x00\x00"), 1002),
    ("125 in 16 bits", sent(FIN | BINARY, bytes(125), length=b"\xfe\x00\x7d"), 1002),
    ("0 in 64 bits", sent(FIN | BINARY, b"", length=b"\xff" + bytes(8)), 1002),
    ("125 in 64 bits", sent(FIN | BINARY, bytes(125), length=b"\xff" + (125).to_bytes(8, "big")), 1002),
    ("126 in 64 bits", sent(FIN | BINARY, bytes(126), length=b"\xff" + (126).to_bytes(8, "big")), 1002),
    ("65535 in 64 bits", sent(FIN | TEXT, bytes(65535), length=b"\xff" + (65535).to_bytes(8, "big")), 1002),
    ("most significant bit", sent(FIN | BINARY, b"", length=b"\xff\x80" + bytes(7)), 1002),
    ("all bits of the length", sent(FIN | BINARY, b"", length=b"\xff" + b"\xff" * 8), 1002),
]
CLOSING = [
    ("close body of one byte", sent(FIN | CLOSE, b"\x03"), 1002),
    *(
        (f"close code {code}", close(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    ),
    ("close reason is not UTF-8", close(1000, b"\xff"), 1007),
    ("close reason ends within a character", close(1000, b"\xe2\x82"), 1007),
]
UTF8 = [
    ("lone continuation byte", sent(FIN | TEXT, b"\x80"), 1007),
    ("byte 0xFE", sent(FIN | TEXT, b"ok\xfe"), 1007),
    ("overlong slash", sent(FIN | TEXT, b"\xc0\xaf"), 1007),
    ("overlong null", sent(FIN | TEXT, b"\xe0\x80\x80"), 1007),
    ("surrogate", sent(FIN | TEXT, b"\xed\xa0\x80"), 1007),
    ("beyond U+10FFFF", sent(FIN | TEXT, b"\xf4\x90\x80\x80"), 1007),
    ("character cut at the end", sent(FIN | TEXT, b"\xe2\x82"), 1007),
    ("first fragment, message not ended", sent(TEXT, b"\xc0"), 1007),
    ("second fragment, message not ended", sent(TEXT, b"a") + sent(CONT, b"\xff"), 1007),
    ("character cut by the last fragment", sent(TEXT, b"\xe2") + sent(FIN | CONT, b"\x82"), 1007),
    ("character cut, then another", sent(TEXT, b"\xe2\x82") + sent(FIN | CONT, b"a"), 1007),
    ("character cut, then an empty end", sent(TEXT, b"\xe2\x82") + sent(FIN | CONT), 1007),
]
# Without their payload: what is too large is refused before it is waited for.
SIZES = [
    ("one frame over the limit", sent(FIN | BINARY, length=b"\xff" + (70_001).to_bytes(8, "big")), 1009),
    ("2^62 bytes", sent(FIN | BINARY, length=b"\xff\x40" + bytes(7)), 1009),
    ("first fragment over the limit", sent(TEXT, length=b"\xff" + (70_001).to_bytes(8, "big")), 1009),
    (
        "fragments over the limit together",
        sent(BINARY, bytes(70_000)) + sent(CONT) + sent(FIN | CONT, length=b"\x81"),
        1009,
    ),
    ("too many fragments", sent(BINARY, b"x") + sent(CONT) * 3 + sent(CONT), 1008),
    ("too many fragments, at the end", sent(TEXT) + sent(CONT) * 3 + sent(FIN | CONT), 1008),
]
VIOLATIONS = RESERVED + CONTROL + MASKING + SEQUENCE + LENGTHS + CLOSING + UTF8 + SIZES

MESSAGE = sent(FIN | BINARY, b"later")


class TestViolations:
    @pytest.mark.parametrize("read", [read_at_once, read_byte_by_byte])
    @pytest.mark.parametrize(
        ("data", "code"),
        [pytest.param(data, code, id=name) for name, data, code in VIOLATIONS],
    )
    def test_each_is_answered_with_its_code_and_nothing_after_it_is_read(self, data, code, read):
        codec = Codec(LIMITS)
        found = events(codec, *read(data + MESSAGE))
        assert [event.code for event in found if isinstance(event, Violation)] == [code]
        assert isinstance(found[-1], Violation)
        assert Message(False, b"later") not in found
        assert codec.state is State.CLOSED
        assert codec.buffered_bytes == 0
        assert events(codec, MESSAGE) == []
        assert codec.buffered_bytes == 0

    def test_a_header_is_refused_before_its_payload_arrives(self):
        for header in (
            b"\xc2\xfe",  # a reserved bit
            b"\x83\xfe",  # a reserved opcode
            b"\x89\xfe",  # a long ping
            b"\x82\x7e",  # not masked
            b"\x82\xfe\x00\x10",  # not minimal: only here the length itself is needed
        ):
            found = events(Codec(LIMITS), header + bytes(8 if len(header) > 2 else 0))
            assert [type(event) for event in found] == [Violation]


RFC_EXAMPLES = [
    ("masked text", "818537fa213d7f9f4d5158", [Message(True, b"Hello")]),
    ("masked pong", "8a8537fa213d7f9f4d5158", [Pong(b"Hello")]),
]


class TestMessages:
    @pytest.mark.parametrize(("data", "expected"), [pytest.param(d, e, id=n) for n, d, e in RFC_EXAMPLES])
    def test_examples_of_the_rfc(self, data, expected):
        assert events(Codec(LIMITS), bytes.fromhex(data)) == expected

    @pytest.mark.parametrize("read", [read_at_once, read_byte_by_byte])
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            pytest.param(sent(FIN | BINARY), [Message(False, b"")], id="empty binary"),
            pytest.param(sent(FIN | TEXT), [Message(True, b"")], id="empty text"),
            pytest.param(sent(FIN | BINARY, b"\xff"), [Message(False, b"\xff")], id="binary is not UTF-8"),
            pytest.param(
                sent(FIN | TEXT, "þ€𐍈".encode()), [Message(True, "þ€𐍈".encode())], id="2, 3, 4 bytes"
            ),
            pytest.param(
                sent(FIN | BINARY, b"1") + sent(FIN | BINARY, b"2") + sent(FIN | TEXT, b"3"),
                [Message(False, b"1"), Message(False, b"2"), Message(True, b"3")],
                id="three in one read",
            ),
            pytest.param(
                sent(TEXT, b"He") + sent(CONT, b"ll") + sent(FIN | CONT, b"o"),
                [Message(True, b"Hello")],
                id="fragments",
            ),
            pytest.param(
                sent(BINARY) + sent(CONT) + sent(FIN | CONT), [Message(False, b"")], id="empty fragments"
            ),
            pytest.param(
                sent(TEXT, b"\xe2") + sent(CONT, b"\x82") + sent(FIN | CONT, b"\xac"),
                [Message(True, "€".encode())],
                id="a character over three fragments",
            ),
            pytest.param(
                sent(TEXT, b"a") + sent(FIN | PING, b"p") + sent(FIN | PONG, b"q") + sent(FIN | CONT, b"b"),
                [Ping(b"p"), Pong(b"q"), Message(True, b"ab")],
                id="control frames between fragments",
            ),
            pytest.param(
                sent(BINARY, b"x") + sent(CONT) * 2 + sent(FIN | CONT),
                [Message(False, b"x")],
                id="as many fragments as allowed",
            ),
            pytest.param(sent(FIN | PING, bytes(125)), [Ping(bytes(125))], id="longest ping"),
            pytest.param(sent(FIN | CLOSE), [Close(1005, "")], id="close without a code"),
            pytest.param(close(4999, "tschüß".encode()), [Close(4999, "tschüß")], id="close with a reason"),
            pytest.param(sent(BINARY, b"x") + close(1001), [Close(1001, "")], id="close between fragments"),
        ],
    )
    def test_what_the_rfc_allows_is_read(self, data, expected, read):
        assert events(Codec(LIMITS), *read(data)) == expected

    @pytest.mark.parametrize("size", [125, 126, 65535, 65536, 70_000])
    def test_every_form_of_length_up_to_the_limit_is_read(self, size):
        data = sent(FIN | BINARY, bytes(size))
        codec = Codec(LIMITS)
        assert events(codec, data[:3], data[3:9], data[9:-1]) == []
        assert events(codec, data[-1:]) == [Message(False, bytes(size))]
        assert codec.is_idle

    def test_the_limit_is_of_the_whole_message_to_the_byte(self):
        fragments = sent(BINARY, bytes(40_000)), sent(FIN | CONT, bytes(30_000))
        assert events(Codec(LIMITS), *fragments) == [Message(False, bytes(70_000))]

    def test_each_message_has_the_whole_limit(self):
        codec = Codec(LIMITS)
        for _ in range(3):
            assert len(events(codec, sent(BINARY, bytes(40_000)), sent(FIN | CONT, bytes(30_000)))) == 1

    def test_events_that_are_not_taken_wait_as_bytes(self):
        codec = Codec(LIMITS)
        codec.receive(sent(FIN | BINARY, b"1") + sent(FIN | BINARY, b"2"))
        assert codec.next_event() == Message(False, b"1")
        codec.receive(sent(FIN | BINARY, b"3"))
        codec.receive(sent(FIN | BINARY, b"4"))
        assert [codec.next_event() for _ in range(4)] == [
            *(Message(False, payload) for payload in (b"2", b"3", b"4")),
            None,
        ]
        assert codec.is_idle

    def test_it_is_idle_only_between_messages(self):
        codec = Codec(LIMITS)
        assert codec.is_idle
        assert events(codec, sent(BINARY, b"x")) == []
        assert not codec.is_idle
        assert events(codec, sent(FIN | CONT)[:3]) == []
        assert not codec.is_idle
        assert codec.buffered_bytes == 1 + 3
        events(codec, sent(FIN | CONT)[3:])
        assert codec.is_idle
        assert codec.buffered_bytes == 0


STEPS = {
    Step.MESSAGE: (sent(FIN | TEXT, b"m"), Message(True, b"m")),
    Step.PING: (sent(FIN | PING, b"p"), Ping(b"p")),
    Step.PONG: (sent(FIN | PONG, b"q"), Pong(b"q")),
    Step.PEER_CLOSE: (close(1000), Close(1000, "")),
    Step.VIOLATION: (b"\xff\xff", Violation(1002, "reserved bits set")),
}


def codec_in(state: State) -> Codec:
    codec = Codec(LIMITS)
    if state is State.CLOSING:
        assert codec.sent_close()
    if state is State.CLOSED:
        codec.lost()
    assert codec.state is state
    return codec


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_every_state_takes_every_step(state, step):
    codec = codec_in(state)
    next_state = TRANSITIONS[state].get(step)
    if step is Step.OWN_CLOSE:
        assert codec.sent_close() is (next_state is not None)
    elif step is Step.LOST:
        codec.lost()
    else:
        data, event = STEPS[step]
        assert events(codec, data) == ([] if next_state is None else [event])
    assert codec.state is (next_state or state)


class TestClosing:
    def test_after_our_close_only_the_peers_close_is_read(self):
        codec = codec_in(State.CLOSING)
        data = sent(FIN | BINARY, b"late") + sent(TEXT, b"a") + sent(FIN | PING) + sent(FIN | CONT, b"b")
        assert events(codec, data) == []
        assert events(codec, close(4001)) == [Close(4001, "")]

    def test_after_the_peers_close_nothing_is_read(self):
        codec = Codec(LIMITS)
        assert events(codec, close(1000) + MESSAGE, MESSAGE) == [Close(1000, "")]
        assert codec.buffered_bytes == 0
        assert not codec.sent_close()
