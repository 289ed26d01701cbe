from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.frames import Opcode as PeerOpcode

from gateway.websocket.frames import (
    NO_STATUS,
    FrameError,
    Opcode,
    close_frame,
    frame,
    is_close_code,
    mask,
    parse_close,
    small_message,
)

KEY = bytes.fromhex("37fa213d")


class TestFrame:
    # RFC 6455 §5.7, the unmasked examples.
    @pytest.mark.parametrize(
        ("opcode", "payload", "expected"),
        [
            (Opcode.TEXT, b"Hello", bytes.fromhex("810548656c6c6f")),
            (Opcode.PING, b"Hello", bytes.fromhex("890548656c6c6f")),
            (Opcode.BINARY, bytes(256), bytes.fromhex("827e0100") + bytes(256)),
            (Opcode.BINARY, bytes(65536), bytes.fromhex("827f0000000000010000") + bytes(65536)),
        ],
        ids=["text", "ping", "256 bytes", "64 KiB"],
    )
    def test_examples_of_the_rfc(self, opcode, payload, expected):
        assert frame(opcode, payload) == expected

    @pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
    def test_the_length_takes_the_fewest_bytes(self, size):
        peer = Frame(PeerOpcode.BINARY, bytes(size)).serialize(mask=False, extensions=[])
        assert frame(Opcode.BINARY, bytes(size)) == peer

    def test_a_control_frame_of_126_bytes_is_our_bug(self):
        with pytest.raises(AssertionError):
            frame(Opcode.PING, bytes(126))


class TestCloseFrame:
    def test_it_carries_code_and_reason(self):
        assert close_frame(4001, "slow") == b"\x88\x06\x0f\xa1slow"

    def test_no_status_has_no_body(self):
        assert close_frame(NO_STATUS) == b"\x88\x00"

    def test_a_long_reason_is_cut_between_characters(self):
        sent = close_frame(1000, "é" * 100)
        assert len(sent) <= 2 + 125
        assert parse_close(sent[2:]) == (1000, "é" * 61)

    @pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 2999, 5000])
    def test_a_code_that_may_not_be_sent_is_our_bug(self, code):
        assert not is_close_code(code)
        with pytest.raises(AssertionError):
            close_frame(code)


class TestParseClose:
    @pytest.mark.parametrize("code", [1000, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999])
    def test_a_code_alone_is_enough(self, code):
        assert parse_close(code.to_bytes(2, "big")) == (code, "")

    def test_an_empty_body_has_no_status(self):
        assert parse_close(b"") == (NO_STATUS, "")

    def test_one_byte_is_refused(self):
        with pytest.raises(FrameError):
            parse_close(b"\x03")


class TestMask:
    def test_the_example_of_the_rfc(self):
        assert mask(KEY, bytes.fromhex("7f9f4d5158")) == b"Hello"

    @given(key=st.binary(min_size=4, max_size=4), data=st.binary(max_size=600))
    def test_it_is_the_loop_of_the_rfc(self, key, data):
        assert mask(key, data) == bytes(byte ^ key[i % 4] for i, byte in enumerate(data))
        assert mask(key, memoryview(data)) == mask(key, data)


class TestSmallMessage:
    @given(payload=st.binary(max_size=125))
    def test_it_reads_a_whole_small_frame(self, payload):
        assert small_message(Frame(PeerOpcode.BINARY, payload).serialize(mask=True, extensions=[])) == payload

    @given(text=st.text(st.characters(max_codepoint=300), max_size=62))
    def test_it_reads_text_that_needs_no_judgement(self, text):
        data = Frame(PeerOpcode.TEXT, text.encode()).serialize(mask=True, extensions=[])
        assert small_message(data) == (text.encode() if text.isascii() else None)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x82",
            b"\x82\x85" + KEY + b"1234",
            b"\x82\x85" + KEY + b"123456",
            b"\x82\x05123456789",
            Frame(PeerOpcode.BINARY, b"x", fin=False).serialize(mask=True, extensions=[]),
            b"\xc2\x81" + KEY + b"x",
            Frame(PeerOpcode.TEXT, b"\xff").serialize(mask=True, extensions=[]),
            Frame(PeerOpcode.PING, b"x").serialize(mask=True, extensions=[]),
            Frame(PeerOpcode.CONT, b"x").serialize(mask=True, extensions=[]),
            Frame(PeerOpcode.BINARY, bytes(126)).serialize(mask=True, extensions=[]),
            Frame(PeerOpcode.BINARY, b"x").serialize(mask=False, extensions=[]),
            # Lengths at which a masked 126 or 127 could be mistaken for a length.
            b"\x82\xfe" + bytes(130),
            b"\x82\xff" + bytes(131),
        ],
        ids=[
            "nothing",
            "one byte",
            "short",
            "long",
            "unmasked",
            "not final",
            "reserved bit",
            "not UTF-8",
            "ping",
            "continuation",
            "126 bytes",
            "no mask",
            "16-bit length",
            "64-bit length",
        ],
    )
    def test_it_leaves_everything_else_to_the_parser(self, data):
        assert small_message(data) is None
