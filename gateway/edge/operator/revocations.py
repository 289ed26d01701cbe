"""Credentials of devices that an operator takes back: one token, or all that a device has now."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from device_sdk.wire.names import parse_device_id
from gateway.edge.operator.body import JsonBody, NoQuery, Page, Strict
from gateway.edge.operator.fields import DeviceName, Label, Name
from gateway.edge.operator.paging import page
from gateway.edge.operator.results import RevocationResult
from gateway.edge.operator.route import API, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.errors import NotFoundError, UnavailableError
from gateway.fleet.acts import Replay
from gateway.fleet.model import Fleet, Revocation
from gateway.identity import Scope

REVOCATIONS: Final = f"{API}/revocations"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Reason = Annotated[Label, Field(max_length=256)]


class RevocationBody(Strict):
    """What is taken back: exactly one of `token_sha256` and `device_id`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": [name],
                    "properties": {name: {"type": "string"}, other: {"type": "null"}},
                }
                for name, other in (("token_sha256", "device_id"), ("device_id", "token_sha256"))
            ]
        }
    )

    fleet: Name = Field(description="Whose.")
    token_sha256: Sha256 | None = Field(
        default=None, description="SHA-256 of a device's bearer token: refused from now on, for good."
    )
    device_id: DeviceName | None = Field(
        default=None,
        description="Its sessions and tickets end; its origin is asked anew when it comes back.",
    )
    reason: Reason | None = Field(default=None, description="For people.")

    @model_validator(mode="after")
    def _check(self) -> RevocationBody:
        if (self.token_sha256 is None) == (self.device_id is None):
            raise ValueError("a revocation has exactly one of token_sha256 and device_id")
        return self


class RevocationsQuery(Page):
    """Of which fleet."""

    fleet: Name | None = Field(default=None, description="Of this fleet; without it, all that you may see.")


async def revoke(call: Call[RevocationBody, NoQuery]) -> Outcome:
    body, fleet = call.body, call.fleet
    outcome = await call.services.revocations.revoke(
        fleet,
        token_sha256=None if body.token_sha256 is None else bytes.fromhex(body.token_sha256),
        device_id=None if body.device_id is None else parse_device_id(body.device_id),
        reason=body.reason,
        now_ms=call.now_ms,
        token_id=call.operator.token_id,
        operator=call.operator.name,
        act=call.act(RevocationResult.of),
    )
    if isinstance(outcome, Replay):
        return outcome
    await _take_effect(call, fleet, outcome)
    return Answer(RevocationResult.of(outcome))


async def _take_effect(call: Call[RevocationBody, NoQuery], fleet: Fleet, made: Revocation) -> None:
    """End what lives on this node; others read the feed."""
    services = call.services
    if made.token_sha256 is not None:
        services.credentials.revoke(made.token_sha256)
        services.sessions.revoked(fleet.key, token_sha256=made.token_sha256)
    if made.device_id is not None:
        services.credentials.forget_device(fleet.name, made.device_id)
        with suppress(NotFoundError):  # it never connected
            device = await services.fleets.device(fleet.key, made.device_id)
            services.sessions.revoked(fleet.key, device_key=device.key)
    # A device may come back with what the origin says after this row: until it is read, nobody can tell.
    with suppress(UnavailableError):
        await services.feed.catch_up()


async def list_revocations(call: Call[None, RevocationsQuery]) -> Answer:
    store, fleet = call.services.revocations, call.found_fleet
    fleet_key = None if fleet is None else fleet.key
    return await page(
        call,
        lambda after, limit: store.revocations(fleet_key=fleet_key, after=after or 0, limit=limit),
        kind=int,
        key=lambda revocation: revocation.sequence,
        show=RevocationResult.of,
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        method="GET",
        path=REVOCATIONS,
        operation="revocations.list",
        scope=Scope.READ,
        summary="List what was taken back, the oldest first.",
        handler=list_revocations,
        query=RevocationsQuery,
        result=ListOf[RevocationResult],
        is_shared=True,
    ),
    Route(
        method="POST",
        path=REVOCATIONS,
        operation="revocations.create",
        scope=Scope.DEVICES,
        summary="Take a device's credential back. Its sessions end at once here, within 5 s elsewhere.",
        handler=revoke,
        body=JsonBody(RevocationBody),
        statuses=(200,),
        result=RevocationResult,
        is_shared=True,
    ),
)
