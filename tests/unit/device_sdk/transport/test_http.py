"""Addresses and headers: what a peer may make the device do with them."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from yarl import URL

from device_sdk.transport.download import resolve
from device_sdk.transport.http import Endpoint, parse_gateway_url, retry_after_s
from device_sdk.update.ports import FetchError

GATEWAY = URL("https://gw.example/edge")


class TestGatewayURL:
    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("https://gw.example", "https://gw.example"),
            ("ws://127.0.0.1:8080/edge/", "http://127.0.0.1:8080/edge/"),
            ("wss://gw.example", "https://gw.example"),
        ],
    )
    def test_http_and_websocket_schemes_are_one(self, text, url):
        assert parse_gateway_url(text) == URL(url)

    @pytest.mark.parametrize(
        "text",
        ["gw.example", "ftp://gw.example", "https://", "https://u:p@gw.example", "https://gw/?a=1", ""],
    )
    def test_what_is_not_a_gateway_is_refused(self, text):
        with pytest.raises(ValueError):
            parse_gateway_url(text)

    def test_paths_begin_below_the_urls_own(self):
        endpoint = Endpoint(url=GATEWAY, fleet="acme", device_id="d")
        assert endpoint.path("v1/device/connect") == URL("https://gw.example/edge/v1/device/connect")


class TestArtifactURI:
    @pytest.mark.parametrize(
        ("uri", "url"),
        [
            ("/v1/device/artifacts/aa", "https://gw.example/edge/v1/device/artifacts/aa"),
            ("v1/device/artifacts/aa", "https://gw.example/edge/v1/device/artifacts/aa"),
            ("https://cdn.example/fw?x=1", "https://cdn.example/fw?x=1"),
            ("//cdn.example/fw", "https://cdn.example/fw"),
        ],
    )
    def test_a_path_is_the_gateways_and_a_url_is_its_own(self, uri, url):
        assert resolve(GATEWAY, uri) == URL(url)

    @pytest.mark.parametrize(
        "uri", ["file:///etc/passwd", "ftp://cdn/fw", "https://u:p@cdn/fw", "http://[", "data:,x"]
    )
    def test_other_schemes_and_credentials_are_refused(self, uri):
        with pytest.raises(FetchError):
            resolve(GATEWAY, uri)


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (None, None),
            ("17", 17.0),
            (" 0 ", 0.0),
            ("9" * 40, 7 * 86_400.0),
            ("Fri, 15 Jan 2027 08:00:10 GMT", 10.0),
            ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
            ("-1", None),
            ("soon", None),
            ("1.5", None),
        ],
    )
    def test_seconds_and_dates_are_read_and_nonsense_is_not(self, value, seconds):
        now = datetime(2027, 1, 15, 8, tzinfo=UTC)
        assert retry_after_s(value, now=lambda: now) == seconds


def test_the_wire_alone_brings_no_http_client_along():
    code = (
        "import sys, device_sdk, device_sdk.wire.messages, device_sdk.core, device_sdk.store\n"
        "assert 'aiohttp' not in sys.modules\n"
        "assert device_sdk.DeviceClient and 'aiohttp' in sys.modules\n"
        "assert all(getattr(device_sdk, name) for name in device_sdk.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
