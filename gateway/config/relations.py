"""Relations between keys: what is wrong with values that are good by themselves, and the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.config.model import Config

# A relation yields (key, what is wrong and how to put it right).
Relation = Callable[[Config], Iterator[tuple[str, str]]]


def _at_most(small: str, large: str) -> Relation:
    def relation(config: Config) -> Iterator[tuple[str, str]]:
        least, most = value_of(config, small), value_of(config, large)
        if least is not None and most is not None and least > most:
            yield small, f"is {least}, over {large} = {most}; lower it, or raise {large}"

    return relation


def _tls_needs_both(config: Config) -> Iterator[tuple[str, str]]:
    server = config.server
    if (server.tls_cert is None) != (server.tls_key is None):
        missing = "server.tls_key" if server.tls_key is None else "server.tls_cert"
        yield missing, "is missing; tls_cert and tls_key come together, or not at all"


def _mode_needs_its_table(config: Config) -> Iterator[tuple[str, str]]:
    identity = config.identity
    tables = ("forward_auth", "introspection", "jwt")
    if identity.mode is not None:
        if getattr(identity, identity.mode) is None:
            yield (
                f"identity.{identity.mode}",
                f'is missing; identity.mode = "{identity.mode}" needs that table',
            )
        return
    for table in tables:
        if getattr(identity, table) is not None:
            yield (
                "identity.mode",
                f'is missing, but [identity.{table}] is there; set identity.mode = "{table}"',
            )


def _password_needs_a_user(config: Config) -> Iterator[tuple[str, str]]:
    database = config.database
    if database.password_file is None:
        return
    parts = urlsplit(database.url or "")
    if not parts.scheme.startswith("postgresql") or not parts.username:
        yield (
            "database.password_file",
            "is the password of nobody; name the user in database.url = postgresql://USER@HOST/NAME",
        )
    elif parts.password is not None:
        yield "database.password_file", "is there beside a password in database.url; remove one of the two"


def _token_needs_a_url(config: Config) -> Iterator[tuple[str, str]]:
    if config.uplink.token_file is not None and config.uplink.url is None:
        yield (
            "uplink.url",
            "is missing, but uplink.token_file is there; name the backend too",
        )


RELATIONS: Final[Sequence[Relation]] = (
    _tls_needs_both,
    _mode_needs_its_table,
    _password_needs_a_user,
    _token_needs_a_url,
    _at_most("database.flush_rows_max", "database.queue_rows_max"),
    _at_most("identity.negative_cache_s", "identity.positive_cache_s"),
    _at_most("identity.circuit_open_s", "identity.circuit_open_max_s"),
    _at_most("identity.jwt.jwks_refetch_min_s", "identity.jwt.jwks_refresh_s"),
    _at_most("device.pong_timeout_s", "device.heartbeat_s"),
    _at_most("device.window_size_bytes_max", "device.outbox_size_bytes_max"),
    _at_most("device.page_size_bytes_max", "device.outbox_size_bytes_max"),
    _at_most("device.redeliver_min_s", "device.redeliver_max_s"),
    _at_most("updates.redeliver_min_s", "updates.redeliver_max_s"),
    _at_most("updates.directive_ttl_s", "updates.install_by_s"),
    _at_most("uplink.retry_min_s", "uplink.retry_max_s"),
    _at_most("uplink.device_queue_len_max", "uplink.queue_len_max"),
    _at_most("alerts.ttl_default_s", "alerts.ttl_max_s"),
)


def value_of(config: Config, key: str) -> Any:
    """Return the value of a dotted key; None also where its table is not there."""
    value: Any = config
    for name in key.split("."):
        if value is None:
            return None
        value = getattr(value, name)
    return value
