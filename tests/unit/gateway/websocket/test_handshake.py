from __future__ import annotations

import base64

import pytest
from multidict import CIMultiDict
from websockets.client import ClientProtocol
from websockets.http11 import Response
from websockets.uri import parse_uri

from gateway.websocket.handshake import Handshake, HandshakeError, parse_handshake

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GOOD = (
    ("Host", "gateway"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Version", "13"),
)
HTTP11 = (1, 1)


def parse(*, method="GET", http_version=HTTP11, without=(), **headers: str | tuple[str, ...]) -> Handshake:
    """Parse ``GOOD`` with headers replaced: ``sec_websocket_key=…``, a tuple for more than one line."""
    replaced = {name.replace("_", "-"): value for name, value in headers.items()}
    found = CIMultiDict(
        (name, value) for name, value in GOOD if name.lower() not in replaced and name.lower() not in without
    )
    for name, value in replaced.items():
        for line in (value,) if isinstance(value, str) else value:
            found.add(name, line)
    return parse_handshake(method=method, http_version=http_version, headers=found)


def test_the_example_of_the_rfc():
    handshake = parse(sec_websocket_protocol="chat, superchat")
    assert handshake == Handshake("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", ("chat", "superchat"))
    assert handshake.response("chat") == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )


@pytest.mark.parametrize("subprotocol", [None, "a", "b"])
def test_an_independent_client_takes_the_answer(subprotocol):
    client = ClientProtocol(parse_uri("ws://gateway/"), subprotocols=["a", "b"])
    request = client.connect()
    handshake = parse_handshake(
        method="GET", http_version=HTTP11, headers=CIMultiDict(request.headers.raw_items())
    )
    client.send_request(request)
    client.receive_data(handshake.response(subprotocol))
    (response,) = client.events_received()
    assert isinstance(response, Response)
    assert client.handshake_exc is None
    assert client.subprotocol == subprotocol


@pytest.mark.parametrize(
    "headers",
    [
        {"upgrade": "WebSocket"},
        {"upgrade": " websocket ,"},
        {"connection": "keep-alive, UPGRADE"},
        {"connection": ("keep-alive", "upgrade")},
        {"http_version": (1, 2)},
    ],
)
def test_what_the_rfc_allows_is_accepted(headers):
    assert parse(**headers).accept == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"method": "POST"}, 405, "websocket_handshake"),
        ({"http_version": (1, 0)}, 400, "websocket_handshake"),
        ({"without": ("upgrade",)}, 426, "websocket_handshake"),
        ({"upgrade": "h2c"}, 400, "websocket_handshake"),
        ({"upgrade": "websocket, h2c"}, 400, "websocket_handshake"),
        ({"upgrade": ("websocket", "websocket")}, 400, "websocket_handshake"),
        ({"without": ("connection",)}, 426, "websocket_handshake"),
        ({"connection": "keep-alive"}, 426, "websocket_handshake"),
        ({"connection": "upgraded"}, 426, "websocket_handshake"),
        ({"without": ("sec-websocket-key",)}, 400, "websocket_handshake"),
        ({"sec_websocket_key": "nonsense"}, 400, "websocket_handshake"),
        ({"sec_websocket_key": base64.b64encode(bytes(15)).decode()}, 400, "websocket_handshake"),
        ({"sec_websocket_key": base64.b64encode(bytes(17)).decode()}, 400, "websocket_handshake"),
        ({"sec_websocket_key": KEY[:-2]}, 400, "websocket_handshake"),
        ({"sec_websocket_key": f"{KEY[:8]}!{KEY[8:]}"}, 400, "websocket_handshake"),
        ({"sec_websocket_key": f"{KEY[:-3]}é=="}, 400, "websocket_handshake"),
        ({"sec_websocket_key": (KEY, KEY)}, 400, "websocket_handshake"),
        ({"without": ("sec-websocket-version",)}, 426, "websocket_version"),
        ({"sec_websocket_version": "8"}, 426, "websocket_version"),
        ({"sec_websocket_version": "013"}, 426, "websocket_version"),
        ({"sec_websocket_version": ("13", "8")}, 400, "websocket_handshake"),
        ({"sec_websocket_protocol": "a, a"}, 400, "websocket_handshake"),
        ({"sec_websocket_protocol": ("a", "a")}, 400, "websocket_handshake"),
        ({"sec_websocket_protocol": "a b"}, 400, "websocket_handshake"),
        ({"sec_websocket_protocol": "a\r\nSet-Cookie: b"}, 400, "websocket_handshake"),
    ],
)
def test_what_it_forbids_is_refused(headers, status, code):
    with pytest.raises(HandshakeError) as refused:
        parse(**headers)
    assert (refused.value.http_status, refused.value.code) == (status, code)


def test_another_version_is_told_ours():
    with pytest.raises(HandshakeError) as refused:
        parse(sec_websocket_version="8")
    assert ("Sec-WebSocket-Version", "13") in refused.value.headers


def test_a_plain_request_is_told_to_upgrade():
    with pytest.raises(HandshakeError) as refused:
        parse(without=("upgrade", "connection"))
    assert dict(refused.value.headers) == {"Upgrade": "websocket", "Connection": "Upgrade"}


class TestSubprotocol:
    def test_the_client_prefers_and_the_server_supports(self):
        handshake = parse(sec_websocket_protocol=("x, json", "cbor"))
        assert handshake.subprotocols == ("x", "json", "cbor")
        assert handshake.choose(["cbor", "json"]) == "json"

    @pytest.mark.parametrize("offered", ["", "x", "CBOR"])
    def test_a_client_that_offers_none_of_ours_is_refused(self, offered):
        with pytest.raises(HandshakeError) as refused:
            parse(sec_websocket_protocol=offered).choose(["cbor", "json"])
        assert (refused.value.http_status, refused.value.code) == (400, "websocket_subprotocol")

    def test_answering_with_one_that_was_not_offered_is_our_bug(self):
        with pytest.raises(AssertionError):
            parse(sec_websocket_protocol="a").response("b")
