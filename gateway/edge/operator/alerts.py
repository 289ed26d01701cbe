"""Alerts: publishing, reading them back, and what became of them on each device."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, model_validator

from device_sdk.wire.limits import ALERT_SIZE_MAX
from device_sdk.wire.names import parse_device_id
from device_sdk.wire.signed.alert import CONTENT_TYPE_LEN_MAX, KEY_LEN_MAX
from gateway.edge.operator.body import JsonBody, NoQuery, Page, Strict, Time, check_depth
from gateway.edge.operator.channels import CHANNEL
from gateway.edge.operator.fields import INTEGRAL, DeviceName
from gateway.edge.operator.paging import page, whole
from gateway.edge.operator.results import (
    AlertResult,
    DeliveryResult,
    FactResult,
    ListedAlertResult,
    WholeAlertResult,
)
from gateway.edge.operator.route import FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.edge.problem import FieldError, RequestError
from gateway.errors import LimitExceededError
from gateway.fleet.acts import Replay
from gateway.fleet.filters import AlertFilter
from gateway.fleet.model import Appended
from gateway.identity import Scope

# Payloads are read to show their type and size: at most this many are in memory at once.
PAYLOADS_MAX: Final = 100

_TYPE: Final = r"[A-Za-z0-9!#$&^_.+-]+"
_CONTENT_TYPE: Final = rf"^{_TYPE}/{_TYPE}( *;[\x20-\x7e]+)?$"
# Unpadded, and with nothing in the bits that the last character has too many.
_BASE64URL: Final = r"^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-][AQgw]|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048])?$"


AlertKey = Annotated[str, Field(min_length=1, max_length=KEY_LEN_MAX, pattern=r"^[^\x00-\x1f\x7f]*$")]


def _one_of_three(schema: dict[str, Any]) -> None:
    names, null = ("text", "json", "data"), {"type": "null"}
    schema["oneOf"] = [
        {
            "required": [name],
            "properties": {other: {"not": null} if other == name else null for other in names},
        }
        for name in names
    ]


class AlertBody(Strict):
    """An alert: exactly one of `text`, `json` and `data`, at most 64 KiB of it."""

    model_config = ConfigDict(json_schema_extra=_one_of_three)

    text: str | None = Field(default=None, description="Sent as `text/plain; charset=utf-8`.")
    json_: Any = Field(
        default=None,
        alias="json",
        description="Any JSON value but null; sent as `application/json`, compact.",
    )
    data: Annotated[str, Field(pattern=_BASE64URL)] | None = Field(
        default=None, description="Bytes, base64url unpadded; sent as `application/octet-stream`."
    )
    content_type: Annotated[str, Field(max_length=CONTENT_TYPE_LEN_MAX, pattern=_CONTENT_TYPE)] | None = (
        Field(default=None, description="Instead of the one above.")
    )
    ttl_s: Annotated[int, Field(ge=1), INTEGRAL] | None = Field(
        default=None, description="Seconds after which it is no longer delivered; null: the gateway's."
    )
    key: AlertKey | None = Field(
        default=None,
        description="A newer alert of the channel with the same key supersedes this one.",
    )

    @model_validator(mode="after")
    def _check(self) -> AlertBody:
        given = [name for name in ("text", "json_", "data") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("an alert has exactly one of text, json and data")
        check_depth(self.json_)
        return self

    def audited(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"content_type", "ttl_s", "key"}, exclude_unset=True)

    def content(self) -> tuple[bytes, str]:
        """Return the data and its content type.

        Raises:
            LimitExceededError: More than 64 KiB.
        """
        if self.text is not None:
            data, content_type = self.text.encode(), "text/plain; charset=utf-8"
        elif self.data is not None:
            data, content_type = _base64url(self.data), "application/octet-stream"
        else:
            data = json.dumps(self.json_, ensure_ascii=False, separators=(",", ":")).encode()
            content_type = "application/json"
        if len(data) > ALERT_SIZE_MAX:
            raise LimitExceededError("alert_size_bytes", len(data), ALERT_SIZE_MAX)
        return data, self.content_type or content_type


class AlertQuery(Page):
    """Which of a channel's alerts."""

    accepted_since: Time | None = Field(default=None, description="Accepted then or later, ms UTC.")
    accepted_before: Time | None = Field(default=None, description="Accepted before, ms UTC.")
    key: AlertKey | None = Field(default=None, description="With this key.")
    order: Literal["asc", "desc"] = Field(default="desc", description="By offset; `desc`: the newest first.")


class FactsQuery(NoQuery):
    """Of which device."""

    device_id: DeviceName


async def publish_alert(call: Call[AlertBody, NoQuery]) -> Outcome:
    body = call.body
    ttl_max_s = call.services.limits.ttl_max_s
    if body.ttl_s is not None and body.ttl_s > ttl_max_s:
        raise _bad_field("ttl_s", f"is more than this gateway's {ttl_max_s} (alerts.ttl_max_s)")
    data, content_type = body.content()
    outcome = await call.services.alerts.publish(
        call.fleet,
        call.channel_name(),
        data=data,
        content_type=content_type,
        ttl_s=body.ttl_s,
        key=body.key,
        act=call.act(_appended),
    )
    return outcome if isinstance(outcome, Replay) else Answer(_appended(outcome))


async def list_alerts(call: Call[None, AlertQuery]) -> Answer:
    store, query = call.services.fleets, call.query
    channel = await store.channel(call.fleet.key, call.channel_name())
    filter = AlertFilter(
        accepted_since=query.accepted_since, accepted_before=query.accepted_before, key=query.key
    )
    limit, beyond = query.limit, call.after(int)
    items: list[ListedAlertResult] = []
    while len(items) <= limit:
        wanted = min(PAYLOADS_MAX, limit + 1 - len(items))
        messages = await store.messages(
            channel.id, filter=filter, is_oldest_first=query.order == "asc", beyond=beyond, limit=wanted
        )
        items += [ListedAlertResult.of(channel, message) for message in messages]
        if len(messages) < wanted:
            break
        beyond = messages[-1].offset
    next_cursor = call.cursor(items[limit - 1].offset) if len(items) > limit else None
    return Answer(ListOf[ListedAlertResult](items=items[:limit], next_cursor=next_cursor))


async def show_alert(call: Call[None, NoQuery]) -> Answer:
    channel, message = await call.services.fleets.message(call.fleet.key, call.id())
    return Answer(WholeAlertResult.of(channel, message))


async def list_deliveries(call: Call[None, Page]) -> Answer:
    store = call.services.fleets
    channel, message = await store.message(call.fleet.key, call.id())
    return await page(
        call,
        lambda after, limit: store.deliveries(
            channel.id, channel.epoch, message.offset, after=after or "", limit=limit
        ),
        kind=str,
        key=lambda delivery: str(delivery.device_id),
        show=lambda delivery: DeliveryResult.of(message, delivery),
    )


async def show_alert_facts(call: Call[None, FactsQuery]) -> Answer:
    device_id = parse_device_id(call.query.device_id)
    facts = await call.services.facts.of_alert(call.fleet.key, call.id(), device_id)
    return whole([FactResult.of(fact) for fact in facts])


def _appended(appended: Appended) -> AlertResult:
    return AlertResult.of(appended.channel, appended.messages[0])


def _base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _bad_field(field: str, problem: str) -> RequestError:
    return RequestError(422, "invalid_body", f"{field}: {problem}", errors=[FieldError(field, problem)])


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        method="GET",
        path=f"{CHANNEL}/alerts",
        operation="alerts.list",
        scope=Scope.READ,
        summary="List a channel's alerts, the newest first, without what they say.",
        handler=list_alerts,
        query=AlertQuery,
        result=ListOf[ListedAlertResult],
    ),
    Route(
        method="POST",
        path=f"{CHANNEL}/alerts",
        operation="alerts.publish",
        scope=Scope.PUBLISH,
        summary="Send an alert to every device of a channel. It is committed when this is answered.",
        handler=publish_alert,
        body=JsonBody(AlertBody),
        statuses=(201,),
        result=AlertResult,
        errors={"wrong_kind": 409},
        location=f"{FLEET}/alerts/{{id}}",
        is_frequent=True,
    ),
    Route(
        method="GET",
        path=f"{FLEET}/alerts/{{id}}",
        operation="alerts.show",
        scope=Scope.READ,
        summary="Show an alert.",
        handler=show_alert,
        result=WholeAlertResult,
    ),
    Route(
        method="GET",
        path=f"{FLEET}/alerts/{{id}}/deliveries",
        operation="alerts.deliveries",
        scope=Scope.READ,
        summary="What became of an alert on each device of its channel, by device id.",
        handler=list_deliveries,
        query=Page,
        result=ListOf[DeliveryResult],
    ),
    Route(
        method="GET",
        path=f"{FLEET}/alerts/{{id}}/facts",
        operation="alerts.facts",
        scope=Scope.READ,
        summary="All that is known of an alert on one device, in the order of time. One page has it all.",
        handler=show_alert_facts,
        query=FactsQuery,
        result=ListOf[FactResult],
    ),
)
