"""Channels and who is in them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from device_sdk.wire.names import ChannelName
from gateway.edge.operator.body import JsonBody, NoQuery, Page, Strict
from gateway.edge.operator.fields import INTEGRAL, Name
from gateway.edge.operator.paging import page
from gateway.edge.operator.results import ChannelResult, SubscriberResult
from gateway.edge.operator.route import FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.errors import ConflictError
from gateway.fleet.acts import Replay
from gateway.identity import Scope

CHANNEL: Final = f"{FLEET}/channels/{{channel}}"

RetentionAge = Annotated[int, Field(ge=60, le=3650 * 24 * 3600), INTEGRAL]
RetentionCount = Annotated[int, Field(ge=1, le=100_000_000), INTEGRAL]


class ChannelBody(Strict):
    """A channel to be made."""

    name: Name
    kind: Literal["alert", "update"]
    starts_at_earliest: bool = Field(
        default=False, description="Devices that join begin with the oldest alert that is kept."
    )
    retention_age_s: RetentionAge | None = Field(default=None, description="null: the gateway's.")
    retention_count: RetentionCount | None = Field(default=None, description="null: the gateway's.")


class ChannelChangeBody(Strict):
    """What changes of a channel; a field that is not there stays as it is."""

    starts_at_earliest: bool | None = None
    retention_age_s: RetentionAge | None = Field(default=None, description="null: the gateway's.")
    retention_count: RetentionCount | None = Field(default=None, description="null: the gateway's.")

    def changes(self) -> dict[str, Any]:
        """Return the fields that were given."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if given.get("starts_at_earliest", True) is None:
            del given["starts_at_earliest"]
        return given


async def list_channels(call: Call[None, Page]) -> Answer:
    store, fleet_key = call.services.fleets, call.fleet.key
    return await page(
        call,
        lambda after, limit: store.channels(fleet_key, after=after or "", limit=limit),
        kind=str,
        key=lambda channel: str(channel.name),
        show=ChannelResult.of,
    )


async def create_channel(call: Call[ChannelBody, NoQuery]) -> Outcome:
    body = call.body
    channel = await call.services.fleets.create_channel(
        call.fleet.key,
        ChannelName(body.name),
        body.kind,
        now_ms=call.now_ms,
        starts_at_earliest=body.starts_at_earliest,
        retention_age_s=body.retention_age_s,
        retention_count=body.retention_count,
        act=call.act(ChannelResult.of),
    )
    if isinstance(channel, Replay):
        return channel
    return Answer(ChannelResult.of(channel), version=channel.version)


async def show_channel(call: Call[None, NoQuery]) -> Answer:
    channel = await call.services.fleets.channel(call.fleet.key, call.channel_name())
    return Answer(ChannelResult.of(channel), version=channel.version)


async def change_channel(call: Call[ChannelChangeBody, NoQuery]) -> Answer:
    channel = await call.services.fleets.update_channel(
        call.fleet.key,
        call.channel_name(),
        call.body.changes(),
        version=call.if_match,
        audit=call.audit(),
    )
    call.services.sessions.channel_changed(channel.id)
    return Answer(ChannelResult.of(channel), version=channel.version)


async def delete_channel(call: Call[None, NoQuery]) -> Answer:
    name = call.channel_name()
    if name.startswith("~"):
        raise ConflictError("a device's own channel goes when the device is deleted", code="own_channel")
    channel = await call.services.fleets.delete_channel(
        call.fleet.key, name, version=call.if_match, audit=call.audit()
    )
    call.services.sessions.channel_changed(channel.id)
    return Answer()


async def list_subscribers(call: Call[None, Page]) -> Answer:
    store = call.services.fleets
    channel = await store.channel(call.fleet.key, call.channel_name())
    return await page(
        call,
        lambda after, limit: store.subscribers(channel.id, after=after or 0, limit=limit),
        kind=int,
        key=lambda row: row[1].device_key,
        show=lambda row: SubscriberResult.of(*row),
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        method="GET",
        path=f"{FLEET}/channels",
        operation="channels.list",
        scope=Scope.READ,
        summary="List the channels, by name, without the devices' own.",
        handler=list_channels,
        query=Page,
        result=ListOf[ChannelResult],
    ),
    Route(
        method="POST",
        path=f"{FLEET}/channels",
        operation="channels.create",
        scope=Scope.DEVICES,
        summary="Make a channel: a log of alerts, or a name that rollouts are aimed at.",
        handler=create_channel,
        body=JsonBody(ChannelBody),
        statuses=(201,),
        result=ChannelResult,
        errors={"channel_exists": 409},
        location=f"{FLEET}/channels/{{name}}",
    ),
    Route(
        method="GET",
        path=CHANNEL,
        operation="channels.show",
        scope=Scope.READ,
        summary="Show a channel.",
        handler=show_channel,
        result=ChannelResult,
        is_versioned=True,
    ),
    Route(
        method="PATCH",
        path=CHANNEL,
        operation="channels.change",
        scope=Scope.DEVICES,
        summary="Change how long a channel keeps alerts, or where devices that join begin.",
        handler=change_channel,
        body=JsonBody(ChannelChangeBody),
        result=ChannelResult,
        is_versioned=True,
    ),
    Route(
        method="DELETE",
        path=CHANNEL,
        operation="channels.delete",
        scope=Scope.DEVICES,
        summary="Delete a channel with its alerts and subscriptions.",
        handler=delete_channel,
        statuses=(204,),
        errors={"channel_in_use": 409, "own_channel": 409},
        is_versioned=True,
    ),
    Route(
        method="GET",
        path=f"{CHANNEL}/subscribers",
        operation="channels.subscribers",
        scope=Scope.READ,
        summary="List a channel's devices, in the order in which they joined, and how far each has read.",
        handler=list_subscribers,
        query=Page,
        result=ListOf[SubscriberResult],
    ),
)
