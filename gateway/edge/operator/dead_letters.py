"""Alerts that were given up for a device: looking at them, and sending one again."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from device_sdk.wire.names import own_channel
from device_sdk.wire.signed.alert import parse_alert_payload
from gateway.edge.operator.body import Flag, NoQuery, OrderedPage, Time
from gateway.edge.operator.fields import AnyName, DeviceName
from gateway.edge.operator.paging import page
from gateway.edge.operator.results import DeadLetterResult
from gateway.edge.operator.route import FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.acts import Replay
from gateway.fleet.filters import DeadLetterFilter
from gateway.fleet.model import Appended, DeadLetter
from gateway.identity import Scope

DEAD_LETTER: Final = f"{FLEET}/dead-letters/{{id}}"


class DeadLetterQuery(OrderedPage):
    """Which dead letters."""

    device_id: DeviceName | None = Field(default=None, description="Of this device.")
    channel: AnyName | None = Field(default=None, description="Of alerts of this channel.")
    reason: Literal["nacked", "expired", "attempts"] | None = Field(default=None, description="Why.")
    is_requeued: Flag | None = Field(default=None, description="Whether it was sent again.")
    since: Time | None = Field(default=None, description="Given up then or later, ms UTC.")
    before: Time | None = Field(default=None, description="Given up before, ms UTC.")


async def list_dead_letters(call: Call[None, DeadLetterQuery]) -> Answer:
    store, fleet_key, query = call.services.fleets, call.fleet.key, call.query
    filter = DeadLetterFilter(
        device_id=query.device_id,
        channel=query.channel,
        reason=query.reason,
        is_requeued=query.is_requeued,
        since=query.since,
        before=query.before,
    )
    return await page(
        call,
        lambda beyond, limit: store.dead_letters(
            fleet_key, filter=filter, is_newest_first=query.is_newest_first, beyond=beyond, limit=limit
        ),
        kind=int,
        key=lambda dead: dead.id,
        show=DeadLetterResult.of,
    )


async def show_dead_letter(call: Call[None, NoQuery]) -> Answer:
    return Answer(DeadLetterResult.of(await _dead_letter(call)))


async def requeue_dead_letter(call: Call[None, NoQuery]) -> Outcome:
    """Append the alert to the device's own channel, and mark it, in one transaction (PROTOCOL §2.5)."""
    store, fleet = call.services.fleets, call.fleet
    dead = await _dead_letter(call)
    try:
        _, message = await store.message(fleet.key, dead.message_id)
    except NotFoundError as error:
        raise ConflictError(
            "the alert is no longer kept, so there is nothing to send again", code="alert_pruned"
        ) from error
    payload = parse_alert_payload(message.payload)

    def requeued(appended: Appended) -> DeadLetterResult:
        return DeadLetterResult.of(dead, requeued_as=appended.messages[0].id)

    outcome = await call.services.alerts.publish(
        fleet,
        own_channel(dead.device_id),
        data=payload.data,
        content_type=payload.content_type,
        ttl_s=None,
        key=None,
        original_id=payload.original_id or message.id,
        requeues=dead.id,
        act=call.act(requeued),
    )
    return outcome if isinstance(outcome, Replay) else Answer(requeued(outcome))


async def _dead_letter(call: Call[None, NoQuery]) -> DeadLetter:
    text = call.path["id"]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise NotFoundError("there is no such dead letter")
    return await call.services.fleets.dead_letter(call.fleet.key, int(text))


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        method="GET",
        path=f"{FLEET}/dead-letters",
        operation="dead-letters.list",
        scope=Scope.READ,
        summary="List the alerts that were given up for a device, the oldest first.",
        handler=list_dead_letters,
        query=DeadLetterQuery,
        result=ListOf[DeadLetterResult],
    ),
    Route(
        method="GET",
        path=DEAD_LETTER,
        operation="dead-letters.show",
        scope=Scope.READ,
        summary="Show such an alert; `alert_id` leads to what it says.",
        handler=show_dead_letter,
        result=DeadLetterResult,
    ),
    Route(
        method="POST",
        path=f"{DEAD_LETTER}/requeue",
        operation="dead-letters.requeue",
        scope=Scope.PUBLISH,
        summary="Send such an alert again, on the device's own channel, as a new alert.",
        handler=requeue_dead_letter,
        result=DeadLetterResult,
        errors={"already_requeued": 409, "alert_pruned": 409},
    ),
)
