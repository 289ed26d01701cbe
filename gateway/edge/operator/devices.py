"""Devices and their subscriptions."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from device_sdk.wire.names import ChannelName, parse_device_id
from gateway.edge.operator.body import JsonBody, NoQuery, Page, Strict
from gateway.edge.operator.fields import DeviceName, Tag
from gateway.edge.operator.paging import page, whole
from gateway.edge.operator.results import DeviceResult, SubscriptionResult
from gateway.edge.operator.route import FLEET, Answer, AnyRoute, Call, ListOf, Route
from gateway.errors import ConflictError
from gateway.identity import Scope

DEVICE: Final = f"{FLEET}/devices/{{device_id}}"
TAGS_MAX: Final = 32

Tags = Annotated[list[Tag], Field(max_length=TAGS_MAX, description="Each once; a selector can ask for them.")]


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


async def list_devices(call: Call[None, Page]) -> Answer:
    store, fleet_key = call.services.fleets, call.fleet.key
    return await page(
        call,
        lambda after, limit: store.devices(fleet_key, after=after, limit=limit),
        first="",
        key=lambda device: str(device.device_id),
        show=DeviceResult.of,
    )


async def create_device(call: Call[DeviceBody, NoQuery]) -> Answer:
    device = await call.services.fleets.create_device(
        call.fleet.key, parse_device_id(call.body.device_id), tags=call.body.tags, now_ms=call.now_ms
    )
    return Answer(DeviceResult.of(device), version=device.version)


async def show_device(call: Call[None, NoQuery]) -> Answer:
    device = await call.services.fleets.device(call.fleet.key, call.device_id())
    return Answer(DeviceResult.of(device), version=device.version)


async def change_device(call: Call[DeviceChangeBody, NoQuery]) -> Answer:
    changes = call.body.changes()
    device = await call.services.fleets.update_device(
        call.fleet.key, call.device_id(), changes, version=call.if_match
    )
    if not device.is_enabled:
        call.services.sessions.disabled(device.key)
    elif "tags" in changes:
        call.services.sessions.subscriptions_changed(device.key)
    return Answer(DeviceResult.of(device), version=device.version)


async def delete_device(call: Call[None, NoQuery]) -> Answer:
    device = await call.services.fleets.delete_device(call.fleet.key, call.device_id())
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
    subscription = await store.subscribe(device.key, channel.id, now_ms=call.now_ms)
    call.services.sessions.subscriptions_changed(device.key)
    return Answer(SubscriptionResult.of(subscription))


async def unsubscribe(call: Call[None, NoQuery]) -> Answer:
    store, name = call.services.fleets, call.channel_name()
    device = await store.device(call.fleet.key, call.device_id())
    channel = await store.channel(call.fleet.key, name)
    _check_not_own(name)
    has_ended = await store.unsubscribe(device.key, channel.id)
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
        summary="List the devices, by id.",
        handler=list_devices,
        query=Page,
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
