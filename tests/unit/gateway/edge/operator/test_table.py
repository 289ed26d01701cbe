"""The table as a whole: what every route must have, and the page that is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from gateway.edge.operator.body import JsonBody, NoBody, Page, RawBody, StreamedBody
from gateway.edge.operator.reference import reference
from gateway.edge.operator.route import AnyRoute, Call, Route
from gateway.edge.operator.table import TABLE
from gateway.identity import Scope

WHOLE = ("keys.list", "subscriptions.list")  # one page by their nature
PAGE = Path(__file__).parents[5] / "docs/reference/api.md"


def by_operation(route: AnyRoute) -> str:
    return route.operation


def test_the_reference_is_current() -> None:
    assert PAGE.read_text() == reference(), "python -m gateway.edge.operator > docs/reference/api.md"


@pytest.mark.parametrize("route", TABLE, ids=by_operation)
class TestEveryRoute:
    def test_reading_asks_for_read_and_changing_for_more(self, route: AnyRoute) -> None:
        is_reading = route.method in ("GET", "HEAD") and not route.operation.startswith("tokens.")
        assert (route.scope is Scope.READ) == is_reading

    def test_only_fleets_themselves_stand_outside_of_a_fleet(self, route: AnyRoute) -> None:
        assert route.is_fleet_bound or route.is_shared or route.path == "/api/v1/fleets"

    def test_a_list_has_pages(self, route: AnyRoute) -> None:
        if route.operation.endswith(".list") and route.operation not in WHOLE:
            assert issubclass(route.query, Page)

    def test_what_has_a_version_is_changed_by_version(self, route: AnyRoute) -> None:
        shown = [one for one in TABLE if one.method == "GET" and one.path == route.path]
        if route.method in ("PUT", "PATCH", "DELETE") and shown and shown[0].is_versioned:
            assert route.takes_if_match

    def test_every_post_can_be_repeated(self, route: AnyRoute) -> None:
        assert route.takes_idempotency_key == (route.method == "POST")

    def test_its_handler_takes_what_it_declares(self, route: AnyRoute) -> None:
        call = get_type_hints(route.handler)["call"]
        assert call.__origin__ is Call
        body, query = get_args(call)
        assert query is route.query
        match route.body:
            case JsonBody(model=model):
                assert body is model
            case RawBody():
                assert body is bytes
            case NoBody() | StreamedBody():
                assert body is type(None)


class TestDeclaring:
    def test_a_route_cannot_be_without_a_scope(self) -> None:
        async def handle(_call: object) -> None: ...

        with pytest.raises(TypeError, match="scope"):
            Route(method="GET", path="/api/v1/x", operation="x", summary="", handler=handle)  # type: ignore

    @pytest.mark.parametrize(
        "fields",
        [
            {"method": "TRACE"},
            {"path": "/x"},
            {"body": RawBody("a/b", size_bytes_max=1)},
            {"method": "POST", "statuses": (201,)},
            {"method": "POST", "statuses": (200, 202)},
            {"path": "/api/v1/fleets/{fleet}/x", "is_shared": True},
            {"method": "POST", "is_versioned": True},
        ],
    )
    def test_a_declaration_that_makes_no_sense_is_our_bug(self, fields: dict[str, object]) -> None:
        async def handle(_call: object) -> None: ...

        declared = {
            "method": "GET",
            "path": "/api/v1/x",
            "operation": "x",
            "scope": Scope.READ,
            "summary": "",
            "handler": handle,
        }
        with pytest.raises(AssertionError):
            Route(**declared | fields)  # type: ignore
