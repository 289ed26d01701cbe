"""From the configuration to the judge and the backend of uplinks it asks for, open while the node runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.clock import Clock
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.identity import Judge, UnconfiguredJudge
from gateway.origin.forward_auth import ForwardAuthJudge
from gateway.origin.http import OriginHTTP
from gateway.origin.introspection import IntrospectionJudge
from gateway.origin.jwks import KeyRingSource
from gateway.origin.jwt import JWTJudge
from gateway.origin.limits import OriginLimits
from gateway.origin.uplink import UplinkBackend
from gateway.telemetry import Metrics

SECRET_SIZE_BYTES_MAX = 4096


@asynccontextmanager
async def open_judge(config: Config, *, clock: Clock, metrics: Metrics) -> AsyncIterator[Judge]:
    """Yield the judge of ``identity.mode``; without a mode, one that knows nobody.

    Close the ``Identity`` that uses it first.

    Raises:
        ConfigError: The client secret's file cannot be read, or is empty.
    """
    identity = config.identity
    async with OriginHTTP(limits=identity.limits(OriginLimits), clock=clock, metrics=metrics) as http:
        match identity.mode:
            case None:
                yield UnconfiguredJudge()
            case "forward_auth":
                assert identity.forward_auth is not None, "the configuration was checked"
                yield ForwardAuthJudge(
                    http, url=identity.forward_auth.url, forward_headers=identity.forward_auth.forward_headers
                )
            case "introspection":
                assert identity.introspection is not None, "the configuration was checked"
                yield IntrospectionJudge(
                    http,
                    url=identity.introspection.url,
                    client_id=identity.introspection.client_id,
                    client_secret=_secret(
                        "identity.introspection.client_secret_file",
                        identity.introspection.client_secret_file,
                    ),
                    client_auth=identity.introspection.client_auth,
                )
            case "jwt":
                assert identity.jwt is not None, "the configuration was checked"
                keys = KeyRingSource(
                    http,
                    url=identity.jwt.jwks_url,
                    clock=clock,
                    jwks_refresh_s=identity.jwt.jwks_refresh_s,
                    jwks_refetch_min_s=identity.jwt.jwks_refetch_min_s,
                )
                try:
                    yield JWTJudge(
                        keys,
                        issuer=identity.jwt.issuer,
                        audience=identity.jwt.audience,
                        algorithms=identity.jwt.algorithms,
                        clock=clock,
                    )
                finally:
                    await keys.close()


@asynccontextmanager
async def open_uplink_backend(
    config: Config, *, clock: Clock, metrics: Metrics
) -> AsyncIterator[UplinkBackend | None]:
    """Yield the backend of ``uplink.url``; None without one.

    Raises:
        ConfigError: The token's file cannot be read, is empty, or holds what no header carries.
    """
    uplink = config.uplink
    if uplink.url is None:
        yield None
        return
    token = None
    if uplink.token_file is not None:
        token = _secret("uplink.token_file", uplink.token_file)
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(["uplink.token_file: a bearer token is printable ASCII without spaces"])
    limits = OriginLimits(
        origin_timeout_s=uplink.timeout_s,
        origin_concurrency_max=uplink.concurrency_max,
        circuit_failures=config.identity.circuit_failures,
        circuit_open_s=config.identity.circuit_open_s,
        circuit_open_max_s=config.identity.circuit_open_max_s,
    )
    async with OriginHTTP(limits=limits, clock=clock, metrics=metrics, circuit="uplink") as http:
        yield UplinkBackend(http, url=uplink.url, token=token)


def _secret(key: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            secret = file.read(SECRET_SIZE_BYTES_MAX).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{key}: cannot read {path}: {error}"]) from error
    if not secret:
        raise ConfigError([f"{key}: {path} is empty; put the secret in it"])
    return secret
