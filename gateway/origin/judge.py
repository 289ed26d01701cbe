"""From the configuration to the judge it asks for, open while the node runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
                    client_secret=_secret(config),
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


def _secret(config: Config) -> str:
    assert config.identity.introspection is not None, "only asked for in that mode"
    path = config.identity.introspection.client_secret_file
    try:
        with path.open("rb") as file:
            secret = file.read(SECRET_SIZE_BYTES_MAX).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            [f"identity.introspection.client_secret_file: cannot read {path}: {error}"]
        ) from error
    if not secret:
        raise ConfigError(
            [f"identity.introspection.client_secret_file: {path} is empty; put the secret in it"]
        )
    return secret
