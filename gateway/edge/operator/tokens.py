"""Operators' tokens. A fleet's administrator makes, sees and revokes those of that fleet alone."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from gateway.edge.operator.body import JsonBody, NoQuery, Page, Strict
from gateway.edge.operator.fields import INTEGRAL, Label, Name
from gateway.edge.operator.paging import page
from gateway.edge.operator.results import NewTokenResult, TokenResult
from gateway.edge.operator.route import API, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.errors import ConflictError
from gateway.fleet.acts import Replay
from gateway.identity import OperatorToken, Scope, new_token, token_sha256
from gateway.ids import uuid7

TOKENS: Final = f"{API}/tokens"
TOKEN: Final = f"{TOKENS}/{{id}}"
LIFE_MAX_S: Final = 10 * 366 * 24 * 3600

ScopeName = Annotated[Scope, Field(strict=False)]


class TokenBody(Strict):
    """A token to be made."""

    name: Label = Field(description="Whose it is, for people.")
    scopes: list[ScopeName] = Field(
        min_length=1,
        max_length=len(Scope),
        description="What it allows; every scope includes `read`.",
        json_schema_extra={"uniqueItems": True},
    )
    fleet: Name | None = Field(
        default=None, description="null: the fleet of the token that asks, or all fleets."
    )
    expires_in_s: Annotated[int, Field(ge=1, le=LIFE_MAX_S), INTEGRAL] | None = Field(
        default=None, description="How long it is good; null: until it is revoked."
    )

    @model_validator(mode="after")
    def _check(self) -> TokenBody:
        if len(set(self.scopes)) != len(self.scopes):
            raise ValueError("scopes: one is there twice")
        return self


class TokensQuery(Page):
    """Of which fleet."""

    fleet: Name | None = Field(default=None, description="Of this fleet; without it, all that you may see.")


async def create_token(call: Call[TokenBody, NoQuery]) -> Outcome:
    body, now_ms = call.body, call.now_ms
    secret = new_token()
    token = OperatorToken(
        id=uuid7(now_ms),
        name=body.name,
        sha256=token_sha256(secret),
        fleet=None if call.found_fleet is None else call.found_fleet.name,
        scopes=frozenset(body.scopes),
        created_at=now_ms,
        expires_at=None if body.expires_in_s is None else now_ms + body.expires_in_s * 1000,
    )
    # What is stored for a repeated request has no secret in it.
    made = await call.services.tokens.create(token, act=call.act(NewTokenResult.of))
    return made if isinstance(made, Replay) else Answer(NewTokenResult.of(made, secret=secret))


async def list_tokens(call: Call[None, TokensQuery]) -> Answer:
    tokens, fleet = call.services.tokens, call.found_fleet
    name = None if fleet is None else fleet.name
    return await page(
        call,
        lambda after, limit: tokens.tokens(name, after=after, limit=limit),
        kind=bytes,
        key=lambda token: token.id,
        show=TokenResult.of,
    )


async def show_token(call: Call[None, NoQuery]) -> Answer:
    token = await call.services.tokens.token(call.operator.fleet, call.id())
    return Answer(TokenResult.of(token))


async def revoke_token(call: Call[None, NoQuery]) -> Outcome:
    token_id = call.id()
    if token_id == call.operator.token_id:
        detail = "a token cannot revoke itself; make another, and do it with that"
        raise ConflictError(detail, code="own_token")
    token = await call.services.tokens.revoke(
        call.operator.fleet, token_id, now_ms=call.now_ms, act=call.act(TokenResult.of)
    )
    if isinstance(token, Replay):
        return token
    call.services.believed.forget(token.sha256)
    return Answer(TokenResult.of(token))


def _route(**declared: Any) -> AnyRoute:
    return Route(scope=Scope.ADMIN, is_shared=True, **declared)


ROUTES: Final[tuple[AnyRoute, ...]] = (
    _route(
        method="GET",
        path=TOKENS,
        operation="tokens.list",
        summary="List the tokens, the oldest first; revoked and expired ones too.",
        handler=list_tokens,
        query=TokensQuery,
        result=ListOf[TokenResult],
    ),
    _route(
        method="POST",
        path=TOKENS,
        operation="tokens.create",
        summary="Make a token. Its secret is in this answer and nowhere else.",
        handler=create_token,
        body=JsonBody(TokenBody),
        statuses=(201,),
        result=NewTokenResult,
        location=TOKEN,
    ),
    _route(
        method="GET",
        path=TOKEN,
        operation="tokens.show",
        summary="Show a token.",
        handler=show_token,
        result=TokenResult,
    ),
    _route(
        method="POST",
        path=f"{TOKEN}/revoke",
        operation="tokens.revoke",
        summary="Revoke a token. It stays in the list; this node refuses it at once, others within 5 s.",
        handler=revoke_token,
        result=TokenResult,
        errors={"own_token": 409},
    ),
)
