"""Alerts: publishing, reading them back, what became of them, and giving one up another time."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final

from pydantic import Field, model_validator

from device_sdk.wire.limits import ALERT_SIZE_MAX
from device_sdk.wire.names import own_channel
from device_sdk.wire.signed.alert import CONTENT_TYPE_LEN_MAX, KEY_LEN_MAX, parse_alert_payload
from gateway.edge.operator.body import JsonBody, NoQuery, Page, Strict, check_depth
from gateway.edge.operator.channels import CHANNEL
from gateway.edge.operator.cursor import encode_cursor
from gateway.edge.operator.paging import page
from gateway.edge.operator.results import (
    AlertResult,
    DeadLetterResult,
    DeliveryResult,
    ListedAlertResult,
    WholeAlertResult,
)
from gateway.edge.operator.route import FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.edge.problem import FieldError, RequestError
from gateway.errors import ConflictError, LimitExceededError, NotFoundError
from gateway.fleet.model import Appended
from gateway.fleet.store import Idempotency, Replay
from gateway.identity import Scope
from gateway.ids import parse_id

# Payloads are read to show their type and size: at most this many are in memory at once.
PAYLOADS_MAX: Final = 100
# Requeueing is by dead letter, whoever asks: one namespace of idempotency keys for all of it.
_REQUEUER: Final = bytes(16)

_CONTENT_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?:\s*;[\x20-\x7e]+)?\Z")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*\Z")


class AlertBody(Strict):
    """An alert: exactly one of `text`, `json` and `data`, at most 64 KiB of it."""

    text: str | None = Field(default=None, description="Sent as `text/plain; charset=utf-8`.")
    json_: Any = Field(
        default=None,
        alias="json",
        description="Any JSON value but null; sent as `application/json`, compact.",
    )
    data: str | None = Field(
        default=None, description="Bytes, base64url unpadded; sent as `application/octet-stream`."
    )
    content_type: str | None = Field(
        default=None, max_length=CONTENT_TYPE_LEN_MAX, description="Instead of the one above."
    )
    ttl_s: int | None = Field(
        default=None, ge=1, description="Seconds after which it is no longer delivered; null: the gateway's."
    )
    key: str | None = Field(
        default=None,
        min_length=1,
        max_length=KEY_LEN_MAX,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="A newer alert of the channel with the same key supersedes this one.",
    )

    @model_validator(mode="after")
    def _check(self) -> AlertBody:
        given = [name for name in ("text", "json_", "data") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("an alert has exactly one of text, json and data")
        if self.content_type is not None and not _CONTENT_TYPE.match(self.content_type):
            raise ValueError("content_type is a media type such as text/plain; charset=utf-8")
        check_depth(self.json_)
        return self

    def content(self) -> tuple[bytes, str]:
        """Return the data and its content type.

        Raises:
            RequestError: ``data`` is not base64url.
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
        idempotency=call.idempotency(_appended),
    )
    return outcome if isinstance(outcome, Replay) else Answer(_appended(outcome))


async def list_alerts(call: Call[None, Page]) -> Answer:
    store = call.services.fleets
    channel = await store.channel(call.fleet.key, call.channel_name())
    limit, before = call.query.limit, call.after(0) or None
    items: list[ListedAlertResult] = []
    while len(items) <= limit:
        wanted = min(PAYLOADS_MAX, limit + 1 - len(items))
        messages = await store.messages(channel.id, before=before, limit=wanted)
        items += [ListedAlertResult.of(channel, message) for message in messages]
        if len(messages) < wanted:
            break
        before = messages[-1].offset
    next_cursor = encode_cursor(call.operation, items[limit - 1].offset) if len(items) > limit else None
    return Answer(ListOf[ListedAlertResult](items=items[:limit], next_cursor=next_cursor))


async def show_alert(call: Call[None, NoQuery]) -> Answer:
    channel, message = await call.services.fleets.message(call.fleet.key, call.id())
    return Answer(WholeAlertResult.of(channel, message))


async def list_deliveries(call: Call[None, Page]) -> Answer:
    store = call.services.fleets
    channel, message = await store.message(call.fleet.key, call.id())
    epoch = channel.epoch  # a payload from before `db restored` names another
    return await page(
        call,
        lambda after, limit: store.deliveries(channel.id, epoch, message.offset, after=after, limit=limit),
        first="",
        key=lambda delivery: str(delivery.device_id),
        show=lambda delivery: DeliveryResult.of(message, delivery),
    )


async def list_dead_letters(call: Call[None, Page]) -> Answer:
    store, fleet_key = call.services.fleets, call.fleet.key
    return await page(
        call,
        lambda after, limit: store.dead_letters(fleet_key, after=after, limit=limit),
        first=0,
        key=lambda dead: dead.id,
        show=DeadLetterResult.of,
    )


async def requeue_dead_letter(call: Call[None, NoQuery]) -> Answer:
    """Append the alert to the device's own channel, once, however often and by whomever this is asked."""
    store, fleet = call.services.fleets, call.fleet
    dead = await store.dead_letter(fleet.key, _dead_letter_id(call.path["id"]))
    if dead.requeued_as is not None:
        raise ConflictError("it was requeued before; requeued_as is the alert", code="already_requeued")
    try:
        _, message = await store.message(fleet.key, dead.message_id)
    except NotFoundError as error:
        raise ConflictError(
            "the alert is no longer kept, so there is nothing to send again", code="alert_pruned"
        ) from error
    payload = parse_alert_payload(message.payload)
    outcome = await call.services.alerts.publish(
        fleet,
        own_channel(dead.device_id),
        data=payload.data,
        content_type=payload.content_type,
        ttl_s=None,
        key=None,
        original_id=payload.original_id or message.id,
        idempotency=Idempotency(
            _REQUEUER,
            f"dead-letter/{dead.id}",
            dead.message_id.ljust(32, b"\0"),
            lambda appended: (201, _appended(appended).model_dump_json().encode()),
        ),
    )
    alert_id = _replayed_id(outcome) if isinstance(outcome, Replay) else outcome.messages[0].id
    await store.mark_requeued(dead.id, alert_id)
    return Answer(DeadLetterResult.of(dead, requeued_as=alert_id))


def _appended(appended: Appended) -> AlertResult:
    return AlertResult.of(appended.channel, appended.messages[0])


def _replayed_id(replay: Replay) -> bytes:
    return parse_id(json.loads(replay.body)["id"])


def _dead_letter_id(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise NotFoundError("there is no such dead letter")
    return int(text)


def _base64url(text: str) -> bytes:
    if _BASE64URL.match(text):
        try:
            data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except binascii.Error:
            data = b""
        if base64.urlsafe_b64encode(data).decode().rstrip("=") == text:
            return data
    raise _bad_field("data", "must be base64url without padding")


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
        query=Page,
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
        takes_idempotency_key=True,
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
        path=f"{FLEET}/dead-letters",
        operation="dead-letters.list",
        scope=Scope.READ,
        summary="List the alerts that were given up for a device, the oldest first.",
        handler=list_dead_letters,
        query=Page,
        result=ListOf[DeadLetterResult],
    ),
    Route(
        method="POST",
        path=f"{FLEET}/dead-letters/{{id}}/requeue",
        operation="dead-letters.requeue",
        scope=Scope.PUBLISH,
        summary="Send such an alert again, on the device's own channel, as a new alert.",
        handler=requeue_dead_letter,
        result=DeadLetterResult,
        errors={"already_requeued": 409, "alert_pruned": 409},
    ),
)
