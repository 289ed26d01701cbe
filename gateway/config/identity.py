"""The keys of ``[identity]`` and its tables: how the operator's origin is asked who a device is."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from gateway.config.section import DAY_S, FilePath, HttpUrl, Names, Section

# What a JWT may be signed with. Symmetric algorithms and "none" are not here: a key that the gateway can read
# at a public address must never be one that can sign.
JWT_ALGORITHMS: Final = (
    "ES256",
    "ES384",
    "ES512",
    "Ed25519",
    "EdDSA",
    "PS256",
    "PS384",
    "PS512",
    "RS256",
    "RS384",
    "RS512",
)


def _jwt_algorithms(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if name not in JWT_ALGORITHMS:
            raise ValueError(f"{name!r} is not one of {', '.join(JWT_ALGORITHMS)}")
    return value


Algorithms = Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(_jwt_algorithms)]


class ForwardAuth(Section):
    """Ask the origin by repeating the device's request headers to an address."""

    url: HttpUrl = Field(
        description="Address that is asked with GET; 2xx admits, 401 and 403 refuse.",
        examples=["http://127.0.0.1:9000/fleetcast/auth"],
    )
    forward_headers: Names = Field(
        default=(),
        max_length=64,
        description="Request headers to repeat beside Authorization; empty: all but the connection's own.",
    )


class Introspection(Section):
    """Ask an RFC 7662 endpoint."""

    url: HttpUrl = Field(
        description="Introspection endpoint of the authorisation server.",
        examples=["http://127.0.0.1:9000/oauth/introspect"],
    )
    client_id: str = Field(
        min_length=1, max_length=256, description="The gateway's client id there.", examples=["fleetcast"]
    )
    client_secret_file: FilePath = Field(
        description="File that holds the client secret, and nothing else.", examples=["secrets/introspection"]
    )
    client_auth: Literal["basic", "post"] = Field(
        default="basic",
        description="How the secret is sent: in the Authorization header (basic) or in the form (post).",
    )


class Jwt(Section):
    """Judge signed tokens with the origin's published keys."""

    jwks_url: HttpUrl = Field(
        description="Address of the JSON Web Key Set.",
        examples=["https://id.example.com/.well-known/jwks.json"],
    )
    issuer: str = Field(
        min_length=1,
        max_length=512,
        description="What the claim iss must be.",
        examples=["https://id.example.com"],
    )
    audience: str = Field(
        min_length=1,
        max_length=512,
        description="What the claim aud must be, or contain.",
        examples=["fleetcast"],
    )
    algorithms: Algorithms = Field(
        default=("ES256", "Ed25519"),
        description="Signature algorithms that are accepted; symmetric ones never are.",
    )
    jwks_refresh_s: float = Field(
        default=300.0,
        ge=10,
        le=DAY_S,
        description="How old the key set may be before it is fetched again; the old one serves meanwhile.",
    )
    jwks_refetch_min_s: float = Field(
        default=10.0,
        ge=0.1,
        le=3600,
        description="Shortest time between two fetches, however many unknown kids are seen.",
    )


class Identity(Section):
    """Who a device is: the operator's origin says so, in one of three ways."""

    mode: Literal["forward_auth", "introspection", "jwt"] | None = Field(
        default=None,
        description="How tokens are judged; without it devices are answered 503 origin_unconfigured.",
        examples=["forward_auth"],
    )
    positive_cache_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="How long an accepting verdict is reused; never beyond its own expiry.",
    )
    negative_cache_s: float = Field(
        default=5.0,
        ge=0,
        le=60,
        description="How long a refusing verdict is reused.",
    )
    cache_entries_max: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="Verdicts kept; the least recently used goes first.",
    )
    origin_timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="Longest wait for one answer of the origin."
    )
    origin_concurrency_max: int = Field(
        default=32, ge=1, le=1024, description="Requests to the origin at the same time."
    )
    origin_queue_max: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Tokens that may wait to be asked about; at the bound origin_unavailable.",
    )
    origin_queue_wait_s: float = Field(
        default=10.0,
        gt=0,
        le=120,
        description="Longest wait of a token before it is asked about; then origin_unavailable.",
    )
    circuit_failures: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Unknown answers in a row that open the circuit: the origin is left alone.",
    )
    circuit_open_s: float = Field(
        default=1.0,
        gt=0,
        le=300,
        description="How long the circuit stays open the first time; it doubles at each failed probe.",
    )
    circuit_open_max_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Longest time the circuit stays open.",
    )
    revalidate_s: float = Field(
        default=900.0,
        ge=1,
        le=7 * DAY_S,
        description="Longest life of a verdict; asked again at 80 % of its life, give or take 10 %.",
    )
    origin_stale_max_s: float = Field(
        default=3600.0,
        ge=0,
        le=7 * DAY_S,
        description="How long a connected device outlives its verdict while the origin gives no answer.",
    )
    ticket_life_s: float = Field(
        default=900.0,
        ge=0,
        le=900,
        description="How long after the origin's word a ticket stands in for it at a return; 0 gives none.",
    )
    revocations_interval_s: float = Field(
        default=1.0, ge=0.05, le=2, description="Time between two reads of what operators took back."
    )
    revocations_max: int = Field(
        default=1_000_000,
        ge=1000,
        le=100_000_000,
        description="Tokens, and devices, that the node remembers as revoked; the oldest go.",
    )
    forward_auth: ForwardAuth | None = Field(default=None, description='Used with mode = "forward_auth".')
    introspection: Introspection | None = Field(default=None, description='Used with mode = "introspection".')
    jwt: Jwt | None = Field(default=None, description='Used with mode = "jwt".')
