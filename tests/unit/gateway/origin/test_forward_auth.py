from __future__ import annotations

import pytest

from gateway.identity import Credential
from gateway.origin.forward_auth import repeated_headers

FORWARDED = [
    ("X-Forwarded-For", "203.0.113.9"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "fleet.example.com"),
    ("X-Forwarded-Method", "GET"),
    ("X-Forwarded-Uri", "/v1/device/connect?x=1"),
]


def credential(*headers: tuple[str, str], remote: str | None = "203.0.113.9") -> Credential:
    return Credential.from_headers(
        [("Host", "fleet.example.com"), ("Authorization", "Bearer abc"), *headers],
        remote=remote,
        scheme="https",
        target="/v1/device/connect?x=1",
    )


def repeated(*headers: tuple[str, str], allowed: frozenset[str] | None = None) -> list[tuple[str, str]]:
    found = list(repeated_headers(credential(*headers), allowed))
    assert found[-5:] == FORWARDED
    return found[:-5]


def test_end_to_end_headers_are_repeated_in_order_with_repetitions():
    headers = (("X-A", "1"), ("Cookie", "a=b"), ("X-A", "2"))
    assert repeated(*headers) == [("Authorization", "Bearer abc"), *headers]


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Content-Length",
        "Content-Type",
        "Content-Encoding",
        "Expect",
        "Range",
        "If-None-Match",
        "If-Modified-Since",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Protocol",
        "Accept-Encoding",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Anything",
        "Fleetcast-Channels",
        "Fleetcast-Attributes",
        "Fleetcast-Expires",
    ],
)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_headers_of_the_connection_and_spoofed_ones_are_not(name, spell):
    assert repeated((spell(name), "x")) == [("Authorization", "Bearer abc")]


def test_headers_that_connection_names_are_not_repeated_but_the_token_always_is():
    found = repeated(("connection", "close, X-Hop ,authorization"), ("x-hop", "1"), ("X-Keep", "2"))
    assert found == [("Authorization", "Bearer abc"), ("X-Keep", "2")]


def test_an_allow_list_still_drops_what_must_not_travel():
    found = repeated(("X-A", "1"), ("X-B", "2"), ("Upgrade", "x"), allowed=frozenset({"x-a", "upgrade"}))
    assert found == [("X-A", "1")]


@pytest.mark.parametrize("value", ["\udcff", "a\x01b", "a\x1fb"])
def test_values_that_no_client_can_send_are_left_out(value):
    assert repeated(("X-A", value)) == [("Authorization", "Bearer abc")]


def test_an_unknown_client_address_is_not_made_up():
    names = [name for name, _ in repeated_headers(credential(remote=None), None)]
    assert "X-Forwarded-For" not in names
