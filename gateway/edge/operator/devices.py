"""Devices and their subscriptions."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from device_sdk.wire.names import ChannelName, parse_device_id
from gateway.edge.operator.body import Flag, JsonBody, NoQuery, Page, Strict, Time
from gateway.edge.operator.fields import DeviceName, SelectorText, Tag, parsed_selector
from gateway.edge.operator.paging import page, whole
from gateway.edge.operator.results import DeviceResult, SubscriptionResult
from gateway.edge.operator.route import FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.errors import ConflictError
from gateway.fleet.acts import Replay
from gateway.fleet.filters import DeviceFilter, DeviceOrder
from gateway.fleet.model import Device
from gateway.identity import Scope

DEVICE: Final = f"{FLEET}/devices/{{device_id}}"
TAGS_MAX: Final = 32

Tags = Annotated[
    list[Tag],
    Field(
        max_length=TAGS_MAX,
        description="Each once; a selector can ask for them.",
        json_schema_extra={"uniqueItems": True},
    ),
]


class DeviceBody(Strict):
    """A device to be enrolled before it first connects."""

    device_id: DeviceName
    tags: Tags = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> DeviceBody:
        _check_once(self.tags)
        return self


class DeviceChangeBody(Strict):
    """What changes of a device; a field that is not there, or null, stays as it is."""

    tags: Tags | None = None
    is_enabled: bool | None = Field(default=None, description="false: refused until it is true again.")

    @model_validator(mode="after")
    def _check(self) -> DeviceChangeBody:
        _check_once(self.tags or [])
        return self

    def changes(self) -> dict[str, Any]:
        """Return the fields that were given."""
        return {name: value for name in ("tags", "is_enabled") if (value := getattr(self, name)) is not None}


class Nothing(Strict):
    """No fields, or no body at all."""


class DeviceQuery(Page):
    """Which devices, and in which order."""

    selector: SelectorText | None = Field(
        default=None, description="Those that it matches (selectors.md): tags, attributes."
    )
    tag: Tag | None = Field(default=None, description="With this tag.")
    is_enabled: Flag | None = Field(default=None, description="Whether the operator lets it in.")
    is_connected: Flag | None = Field(default=None, description="Whether it is connected to this node.")
    seen_since: Time | None = Field(default=None, description="Last seen then or later, ms UTC.")
    seen_before: Time | None = Field(default=None, description="Last seen before, or never, ms UTC.")
    sort: Literal["device_id", "last_seen_at"] = Field(
        default="device_id", description="By what; those never seen come before all others."
    )
    order: Literal["asc", "desc"] = Field(default="asc", description="Rising or falling.")


async def list_devices(call: Call[None, DeviceQuery]) -> Answer:
    store, fleet_key, query = call.services.fleets, call.fleet.key, call.query
    sessions = call.services.sessions
    filter = DeviceFilter(
        selector=parsed_selector(query.selector),
        tag=query.tag,
        is_enabled=query.is_enabled,
        is_connected=query.is_connected,
        connected=() if query.is_connected is None else sessions.connected(fleet_key),
        seen_since=query.seen_since,
        seen_before=query.seen_before,
    )
    order = DeviceOrder(by_last_seen=query.sort == "last_seen_at", is_descending=query.order == "desc")

    def show(device: Device) -> DeviceResult:
        return DeviceResult.of(device, is_connected=sessions.is_connected(device.key))

    if order.by_last_seen:
        return await page(
            call,
            lambda after, limit: store.devices(
                fleet_key, filter=filter, order=order, after=after, limit=limit
            ),
            kind=tuple[int, int],
            key=lambda device: (-1 if device.last_seen_at is None else device.last_seen_at, device.key),
            show=show,
        )
    return await page(
        call,
        lambda after, limit: store.devices(fleet_key, filter=filter, order=order, after=after, limit=limit),
        kind=str,
        key=lambda device: str(device.device_id),
        show=show,
    )


async def create_device(call: Call[DeviceBody, NoQuery]) -> Outcome:
    device = await call.services.fleets.create_device(
        call.fleet.key,
        parse_device_id(call.body.device_id),
        tags=call.body.tags,
        now_ms=call.now_ms,
        act=call.act(DeviceResult.of),
    )
    if isinstance(device, Replay):
        return device
    return Answer(DeviceResult.of(device), version=device.version)


async def show_device(call: Call[None, NoQuery]) -> Answer:
    device = await call.services.fleets.device(call.fleet.key, call.device_id())
    return _answer(call, device)


def _answer(call: Call[Any, Any], device: Device) -> Answer:
    is_connected = call.services.sessions.is_connected(device.key)
    return Answer(DeviceResult.of(device, is_connected=is_connected), version=device.version)


async def change_device(call: Call[DeviceChangeBody, NoQuery]) -> Answer:
    changes = call.body.changes()
    device = await call.services.fleets.update_device(
        call.fleet.key, call.device_id(), changes, version=call.if_match, audit=call.audit()
    )
    if not device.is_enabled:
        call.services.sessions.disabled(device.key)
    elif "tags" in changes:
        call.services.sessions.subscriptions_changed(device.key)
    return _answer(call, device)


async def delete_device(call: Call[None, NoQuery]) -> Answer:
    device = await call.services.fleets.delete_device(
        call.fleet.key, call.device_id(), version=call.if_match, audit=call.audit()
    )
    call.services.sessions.disabled(device.key)
    return Answer()


async def list_subscriptions(call: Call[None, NoQuery]) -> Answer:
    store = call.services.fleets
    device = await store.device(call.fleet.key, call.device_id())
    return whole([SubscriptionResult.of(row) for row in await store.subscriptions(device.key)])


async def subscribe(call: Call[Nothing, NoQuery]) -> Answer:
    store, name = call.services.fleets, call.channel_name()
    device = await store.device(call.fleet.key, call.device_id())
    channel = await store.channel(call.fleet.key, name)
    _check_not_own(name)
    subscription = await store.subscribe(device.key, channel.id, now_ms=call.now_ms, audit=call.audit())
    call.services.sessions.subscriptions_changed(device.key)
    return Answer(SubscriptionResult.of(subscription))


async def unsubscribe(call: Call[None, NoQuery]) -> Answer:
    store, name = call.services.fleets, call.channel_name()
    device = await store.device(call.fleet.key, call.device_id())
    channel = await store.channel(call.fleet.key, name)
    _check_not_own(name)
    has_ended = await store.unsubscribe(device.key, channel.id, audit=call.audit())
    call.services.sessions.subscriptions_changed(device.key)
    if has_ended:
        return Answer()
    left = [row for row in await store.subscriptions(device.key) if row.channel == name]
    return Answer(SubscriptionResult.of(left[0]), status=200) if left else Answer()


def _check_not_own(name: ChannelName) -> None:
    if name.startswith("~"):
        raise ConflictError(
            "a channel that begins with ~ has the one device it is named after, always", code="own_channel"
        )


def _check_once(tags: list[str]) -> None:
    if len(set(tags)) != len(tags):
        raise ValueError("tags: one is there twice")


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        method="GET",
        path=f"{FLEET}/devices",
        operation="devices.list",
        scope=Scope.READ,
        summary="List the devices, by id or by when they were last seen.",
        errors={"bad_selector": 400},
        handler=list_devices,
        query=DeviceQuery,
        result=ListOf[DeviceResult],
    ),
    Route(
        method="POST",
        path=f"{FLEET}/devices",
        operation="devices.create",
        scope=Scope.DEVICES,
        summary="Enrol a device ahead. One that the origin accepts enrols itself when it first connects.",
        handler=create_device,
        body=JsonBody(DeviceBody),
        statuses=(201,),
        result=DeviceResult,
        errors={"device_exists": 409},
        location=f"{FLEET}/devices/{{device_id}}",
    ),
    Route(
        method="GET",
        path=DEVICE,
        operation="devices.show",
        scope=Scope.READ,
        summary="Show a device.",
        handler=show_device,
        result=DeviceResult,
        is_versioned=True,
    ),
    Route(
        method="PATCH",
        path=DEVICE,
        operation="devices.change",
        scope=Scope.DEVICES,
        summary="Tag a device, disable it or enable it. A disabled one is disconnected and refused.",
        handler=change_device,
        body=JsonBody(DeviceChangeBody),
        result=DeviceResult,
        is_versioned=True,
    ),
    Route(
        method="DELETE",
        path=DEVICE,
        operation="devices.delete",
        scope=Scope.DEVICES,
        summary="Delete a device and all that is known of it. If its origin accepts it, it enrols anew.",
        handler=delete_device,
        statuses=(204,),
        is_versioned=True,
    ),
    Route(
        method="GET",
        path=f"{DEVICE}/subscriptions",
        operation="subscriptions.list",
        scope=Scope.READ,
        summary="List a device's channels and how far it has read in each. One page has them all.",
        handler=list_subscriptions,
        result=ListOf[SubscriptionResult],
    ),
    Route(
        method="PUT",
        path=f"{DEVICE}/subscriptions/{{channel}}",
        operation="subscriptions.put",
        scope=Scope.DEVICES,
        summary="Put a device into a channel, whatever its origin says. A connected one is told at once.",
        handler=subscribe,
        body=JsonBody(Nothing, is_optional=True),
        result=SubscriptionResult,
        errors={"own_channel": 409, "too_many_channels": 409},
    ),
    Route(
        method="DELETE",
        path=f"{DEVICE}/subscriptions/{{channel}}",
        operation="subscriptions.delete",
        scope=Scope.DEVICES,
        summary="Take the operator's wish back. 200 with what is left if the origin still wants it.",
        handler=unsubscribe,
        statuses=(204, 200),
        result=SubscriptionResult,
        errors={"own_channel": 409},
    ),
)
