"""Who changed what, and when."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from gateway.edge.operator.body import Page, Time
from gateway.edge.operator.fields import Id, Name
from gateway.edge.operator.paging import page
from gateway.edge.operator.results import ChangeResult
from gateway.edge.operator.route import API, Answer, AnyRoute, Call, ListOf, Route
from gateway.fleet.acts import AuditFilter
from gateway.identity import Scope
from gateway.ids import parse_id

Operation = Annotated[str, Field(pattern=r"^[a-z-]{1,32}\.[a-z-]{1,32}$")]
Target = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[\x21-\x7e]+$")]


class AuditQuery(Page):
    """Which changes."""

    fleet: Name | None = Field(default=None, description="Of this fleet; without it, all that you may see.")
    token_id: Id | None = Field(default=None, description="By this token.")
    operation: Operation | None = Field(default=None, description="Of this operation, `noun.verb`.")
    target: Target | None = Field(default=None, description="Of this thing: its path below /api/v1.")
    since: Time | None = Field(default=None, description="Made then or later, ms UTC.")
    before: Time | None = Field(default=None, description="Made before, ms UTC.")


async def list_changes(call: Call[None, AuditQuery]) -> Answer:
    log, query, fleet = call.services.audit, call.query, call.found_fleet
    filter = AuditFilter(
        fleet_key=None if fleet is None else fleet.key,
        token_id=None if query.token_id is None else parse_id(query.token_id),
        operation=query.operation,
        target=query.target,
        since=query.since,
        before=query.before,
    )
    return await page(
        call,
        lambda before, limit: log.changes(filter, before=before, limit=limit),
        kind=int,
        key=lambda row: row.id,
        show=ChangeResult.of,
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        method="GET",
        path=f"{API}/audit",
        operation="audit.list",
        scope=Scope.READ,
        summary="List who changed what and when, the newest first. Kept for 400 days.",
        handler=list_changes,
        query=AuditQuery,
        result=ListOf[ChangeResult],
        is_shared=True,
    ),
)
