"""The codec against an independent peer: the sans-I/O protocols of the ``websockets`` package."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close as PeerClose
from websockets.frames import Frame
from websockets.frames import Opcode as PeerOpcode
from websockets.protocol import State as PeerState
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from gateway.websocket.codec import Close, Codec, Event, Message, Ping, Pong, Violation
from gateway.websocket.frames import Opcode, close_frame, frame
from gateway.websocket.limits import WebSocketLimits

SIZE_MAX = 300
LIMITS = WebSocketLimits(message_size_bytes_max=SIZE_MAX, fragments_max=1000)
URI = parse_uri("ws://gateway/")
QUIET = logging.getLogger("quiet")
QUIET.disabled = True

splits = st.lists(st.integers(0, 2000), max_size=12)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    points = sorted({0, len(data), *(point for point in at if point < len(data))})
    return [data[a:b] for a, b in pairwise(points)]


def received(codec: Codec, reads: list[bytes]) -> list[Event]:
    events: list[Event] = []
    for data in reads:
        codec.receive(data)
        while (event := codec.next_event()) is not None:
            events.append(event)
    return events


def pieces(payload: bytes) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.integers(0, len(payload)), max_size=4).map(
        lambda at: [payload[a:b] for a, b in zip([0, *sorted(at)], [*sorted(at), len(payload)], strict=True)]
    )


controls = st.lists(st.tuples(st.sampled_from(["ping", "pong"]), st.binary(max_size=125)), max_size=2)
messages = st.one_of(
    st.text(max_size=70).map(lambda text: (True, text.encode())),
    st.binary(max_size=SIZE_MAX).map(lambda data: (False, data)),
).flatmap(lambda message: st.tuples(st.just(message), pieces(message[1]), controls))


@given(script=st.lists(messages, max_size=6), code=st.sampled_from([None, 1000, 3000, 4999]), at=splits)
def test_what_a_client_sends_in_fragments_and_reads_is_what_we_read(script, code, at):
    client = ClientProtocol(URI, state=PeerState.OPEN, logger=QUIET)
    expected: list[Event] = []
    for (is_text, payload), fragments, between in script:
        for index, fragment in enumerate(fragments):
            is_final = index == len(fragments) - 1
            if index:
                client.send_continuation(fragment, is_final)
            elif is_text:
                client.send_text(fragment, is_final)
            else:
                client.send_binary(fragment, is_final)
            if not is_final:
                for kind, data in between:
                    (client.send_ping if kind == "ping" else client.send_pong)(data)
                    expected.append(Ping(data) if kind == "ping" else Pong(data))
        expected.append(Message(is_text, payload))
    client.send_close(code, "" if code is None else "bye")
    expected.append(Close(1005, "") if code is None else Close(code, "bye"))

    assert received(Codec(LIMITS), cut(b"".join(client.data_to_send()), at)) == expected


server_frames = st.one_of(
    st.tuples(st.sampled_from([Opcode.TEXT]), st.text(max_size=40_000).map(str.encode)),
    st.tuples(st.sampled_from([Opcode.BINARY]), st.sampled_from([0, 1, 125, 126, 65535, 65536]).map(bytes)),
    st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125)),
)


@given(
    sent=st.lists(server_frames, max_size=5),
    code=st.sampled_from([1000, 1011, 4000, 4503]),
    reason=st.text(max_size=100),
    at=splits,
)
def test_what_we_send_a_client_reads(sent, code, reason, at):
    client = ClientProtocol(URI, state=PeerState.OPEN, logger=QUIET)
    data = b"".join(frame(opcode, payload) for opcode, payload in sent) + close_frame(code, reason)
    for chunk in cut(data, at):
        client.receive_data(chunk)
    *frames, last = client.events_received()
    assert [(frame.opcode, bytes(frame.data)) for frame in frames] == sent
    assert last.opcode is PeerOpcode.CLOSE
    read = PeerClose.parse(last.data)
    assert read.code == code
    assert reason.startswith(read.reason)
    assert client.parser_exc is None


class UncheckedFrame(Frame):
    """A frame that can be wrong and is serialised all the same."""

    def check(self) -> None:
        pass


frames_good_and_bad = st.builds(
    UncheckedFrame,
    st.sampled_from([*PeerOpcode, PeerOpcode.CONT, PeerOpcode.CONT, PeerOpcode.TEXT, PeerOpcode.BINARY]),
    st.one_of(
        st.text(st.characters(max_codepoint=127), max_size=SIZE_MAX + 20).map(str.encode),
        st.sampled_from([b"", b"\x03", b"\x03\xe8", b"\x03\xedx", b"\x0f\xa0ok", b"\x03\xe8\xff"]),
    ),
    fin=st.booleans(),
    rsv1=st.sampled_from([False] * 30 + [True]),
    rsv3=st.sampled_from([False] * 30 + [True]),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Whole frames, in an order that need not make sense; sometimes one bit of a first byte is flipped."""
    data = b""
    for good_or_bad in draw(st.lists(frames_good_and_bad, min_size=1, max_size=8)):
        is_masked = draw(st.sampled_from([True] * 20 + [False]))
        raw = bytearray(good_or_bad.serialize(mask=is_masked, extensions=[]))
        if draw(st.sampled_from([False] * 20 + [True])):
            raw[0] ^= 1 << draw(st.integers(0, 7))
        data += raw
    return data


@given(data=streams(), at=splits)
def test_we_refuse_what_an_independent_server_refuses(data, at):
    server = ServerProtocol(state=PeerState.OPEN, max_size=SIZE_MAX, logger=QUIET)
    server.receive_data(data)
    frames = server.events_received()

    ours = received(Codec(LIMITS), cut(data, at))

    peer_refused = None if server.parser_exc is None or server.close_sent is None else server.close_sent.code
    if str(server.parser_exc) == "incomplete fragmented message":
        return  # a close between fragments, which §5.4 allows ("control frames MAY be injected")
    refused = ours[-1].code if ours and isinstance(ours[-1], Violation) else None
    accepted = [event for event in ours if not isinstance(event, Violation)]
    if refused == 1007:  # their sans-I/O layer leaves the UTF-8 of messages to the layer above, and reads on
        assert accepted == assembled(frames)[: len(accepted)]
        return
    if {refused, peer_refused} != {1002, 1009}:  # two faults in one frame: they look at the size first
        assert refused == peer_refused
    assert accepted == assembled(frames)


def assembled(frames: list[Frame]) -> list[Event]:
    """What the frames mean that an independent parser accepted."""
    events: list[Event] = []
    is_text, parts = False, b""
    for accepted in frames:
        data = bytes(accepted.data)
        match accepted.opcode:
            case PeerOpcode.PING:
                events.append(Ping(data))
            case PeerOpcode.PONG:
                events.append(Pong(data))
            case PeerOpcode.CLOSE:
                close = PeerClose.parse(data)
                events.append(Close(int(close.code), close.reason))
            case _:
                if accepted.opcode is not PeerOpcode.CONT:
                    is_text, parts = accepted.opcode is PeerOpcode.TEXT, b""
                parts += data
                if accepted.fin:
                    events.append(Message(is_text, parts))
    return events


@given(reads=st.lists(st.binary(max_size=400), max_size=20))
def test_any_bytes_end_in_events_and_keep_memory_bounded(reads):
    codec = Codec(LIMITS)
    for data in reads:
        for event in received(codec, [data]):
            assert isinstance(event, Event)
        # One message being put together, one frame that is not complete, its header.
        assert codec.buffered_bytes <= 2 * SIZE_MAX + 14


@pytest.mark.parametrize("size", [1, 1000])
def test_one_bytes_object_is_read_as_many(size):
    payload = b"z" * 250
    data = Frame(PeerOpcode.BINARY, payload).serialize(mask=True, extensions=[]) * 40
    reads = [data[i : i + size] for i in range(0, len(data), size)]
    assert received(Codec(LIMITS), reads) == [Message(False, payload)] * 40
