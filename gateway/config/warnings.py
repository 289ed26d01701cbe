"""What can be run, but is seldom meant: said by ``check-config`` and in the log at the start.

Pure: the files are not looked at here (``files``), nor is the certificate's end (``gateway.tls``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from typing import Final
from urllib.parse import parse_qs, urlsplit

from gateway.config.model import Config
from gateway.config.relations import value_of

Check = Callable[[Config], Iterator[tuple[str, str]]]

_ORIGIN_URLS: Final = (
    "identity.forward_auth.url",
    "identity.introspection.url",
    "identity.jwt.jwks_url",
    "uplink.url",
)
_CARRIED: Final = {"identity.jwt.jwks_url": "keys", "uplink.url": "devices' messages"}
_VERIFIED: Final = ("verify-ca", "verify-full")


def warnings_of(config: Config) -> Sequence[str]:
    """Return sentences that begin with the key; none where all is as it should be."""
    return [f"{key} {what}" for warning in _WARNINGS for key, what in warning(config)]


def _plain_http(config: Config) -> Iterator[tuple[str, str]]:
    server = config.server
    if server.tls_cert is None and not _is_loopback(server.listen_host):
        yield (
            "server.tls_cert",
            f"is not set, and {server.listen_host} is reached from other machines: tokens travel in the "
            "clear. Set tls_cert and tls_key, or listen on 127.0.0.1 behind a proxy that speaks TLS",
        )


def _public_metrics(config: Config) -> Iterator[tuple[str, str]]:
    if config.metrics.enabled and not _is_loopback(config.server.listen_host):
        yield (
            "metrics.enabled",
            "is true: GET /metrics answers whoever reaches the port, without a token. Set it to false, or "
            "have a proxy refuse that path",
        )


def _no_origin(config: Config) -> Iterator[tuple[str, str]]:
    if config.identity.mode is None:
        yield (
            "identity.mode",
            "is not set: no device is admitted, each is answered 503 origin_unconfigured. Say how tokens are "
            "judged: forward_auth, introspection or jwt",
        )


def _origin_in_the_clear(config: Config) -> Iterator[tuple[str, str]]:
    for key in _ORIGIN_URLS:
        url = value_of(config, key)
        if url is None:
            continue
        parts = urlsplit(url)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            what = _CARRIED.get(key, "devices' tokens")
            yield (
                key,
                f"is plain HTTP to {parts.hostname}: who sits between can read or replace {what}. Use https",
            )


def _tickets_that_run_out(config: Config) -> Iterator[tuple[str, str]]:
    life_s, asked_s = config.identity.ticket_life_s, config.identity.revalidate_s
    if life_s and asked_s * 0.9 > life_s:
        yield (
            "identity.revalidate_s",
            f"is {asked_s:g}, but a ticket ends after ticket_life_s = {life_s:g}: until they are asked about "
            "again connected devices have none that is good, and a restart asks the origin about all of them",
        )


def _password_in_the_file(config: Config) -> Iterator[tuple[str, str]]:
    if urlsplit(config.database.url or "").password:
        yield "database.url", "holds a password; put it in a file and name that in database.password_file"


def _database_in_the_clear(config: Config) -> Iterator[tuple[str, str]]:
    parts = urlsplit(config.database.url or "")
    if not parts.scheme.startswith("postgresql") or _is_loopback(parts.hostname or "localhost"):
        return
    query = parse_qs(parts.query)
    mode = (query.get("sslmode") or query.get("ssl") or [""])[-1]
    if mode not in _VERIFIED:
        yield (
            "database.url",
            f"reaches {parts.hostname} without checking who that is; add ?sslmode=verify-full",
        )


_WARNINGS: Final[Sequence[Check]] = (
    _plain_http,
    _public_metrics,
    _no_origin,
    _origin_in_the_clear,
    _tickets_that_run_out,
    _password_in_the_file,
    _database_in_the_clear,
)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("/")  # a folder: PostgreSQL's own socket
