"""Who may do what (P6): every route, asked by every kind of operator, and what each is answered.

``ROWS`` says for each operation the scope it asks for, how far it reaches, and what an operator who may is
answered to an empty request about things that are not there. A route without a row fails.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from gateway.edge.operator import operator_routes
from gateway.edge.operator.pages import DOCUMENT_PATH, FILE_PATH, PAGE_PATH
from gateway.edge.operator.route import AnyRoute
from gateway.edge.operator.table import TABLE
from gateway.identity import Scope
from tests.harness.operator_api import DIGEST, Api, path_of, publish_release
from tests.unit.gateway.edge.operator.services import services_of

FLEET = "fleet"  # below one fleet's path: its operators, and those of all fleets
SHARED = "shared"  # about what the token reaches, or the fleet that the request names
ALL = "all"  # operators of all fleets alone

OK = (200, None)
NOT_FOUND = (404, "not_found")
INVALID = (422, "invalid_body")
NO_BODY = (415, "unsupported_media_type")
NO_DEVICE = (400, "invalid_query")  # a parameter is needed


class Row(NamedTuple):
    scope: Scope
    reach: str
    answer: tuple[int, str | None]


READ, ADMIN = Scope.READ, Scope.ADMIN
PUBLISH, DEVICES, RELEASES, ROLLOUTS = Scope.PUBLISH, Scope.DEVICES, Scope.RELEASES, Scope.ROLLOUTS
ROWS = {
    "fleets.list": Row(READ, ALL, OK),
    "fleets.create": Row(ADMIN, ALL, INVALID),
    "fleets.show": Row(READ, FLEET, OK),
    "keys.list": Row(READ, FLEET, OK),
    "release-keys.show": Row(READ, FLEET, NOT_FOUND),
    "release-keys.put": Row(ADMIN, FLEET, INVALID),
    "release-keys.delete": Row(ADMIN, FLEET, NOT_FOUND),
    "root.show": Row(READ, FLEET, NOT_FOUND),
    "root.put": Row(ADMIN, FLEET, (400, "malformed")),
    "channels.list": Row(READ, FLEET, OK),
    "channels.create": Row(DEVICES, FLEET, INVALID),
    "channels.show": Row(READ, FLEET, NOT_FOUND),
    "channels.change": Row(DEVICES, FLEET, NOT_FOUND),
    "channels.delete": Row(DEVICES, FLEET, NOT_FOUND),
    "channels.subscribers": Row(READ, FLEET, NOT_FOUND),
    "alerts.list": Row(READ, FLEET, NOT_FOUND),
    "alerts.publish": Row(PUBLISH, FLEET, INVALID),
    "alerts.show": Row(READ, FLEET, NOT_FOUND),
    "alerts.deliveries": Row(READ, FLEET, NOT_FOUND),
    "alerts.facts": Row(READ, FLEET, NO_DEVICE),
    "dead-letters.list": Row(READ, FLEET, OK),
    "dead-letters.show": Row(READ, FLEET, NOT_FOUND),
    "dead-letters.requeue": Row(PUBLISH, FLEET, NOT_FOUND),
    "devices.list": Row(READ, FLEET, OK),
    "devices.create": Row(DEVICES, FLEET, INVALID),
    "devices.show": Row(READ, FLEET, NOT_FOUND),
    "devices.change": Row(DEVICES, FLEET, NOT_FOUND),
    "devices.delete": Row(DEVICES, FLEET, NOT_FOUND),
    "devices.deployments": Row(READ, FLEET, NOT_FOUND),
    "devices.explain": Row(READ, FLEET, NO_DEVICE),
    "subscriptions.list": Row(READ, FLEET, NOT_FOUND),
    "subscriptions.put": Row(DEVICES, FLEET, NOT_FOUND),
    "subscriptions.delete": Row(DEVICES, FLEET, NOT_FOUND),
    "releases.list": Row(READ, FLEET, OK),
    "releases.publish": Row(RELEASES, FLEET, (409, "no_release_key")),
    "releases.show": Row(READ, FLEET, NOT_FOUND),
    "releases.envelope": Row(READ, FLEET, NOT_FOUND),
    "artifacts.put": Row(RELEASES, FLEET, (400, "digest_mismatch")),
    "artifacts.fetch": Row(READ, FLEET, NOT_FOUND),
    "artifacts.head": Row(READ, FLEET, (404, None)),
    "rollouts.list": Row(READ, FLEET, OK),
    "rollouts.start": Row(ROLLOUTS, FLEET, INVALID),
    "rollouts.show": Row(READ, FLEET, NOT_FOUND),
    "rollouts.widen": Row(ROLLOUTS, FLEET, INVALID),
    "rollouts.pause": Row(ROLLOUTS, FLEET, NOT_FOUND),
    "rollouts.resume": Row(ROLLOUTS, FLEET, NOT_FOUND),
    "rollouts.finish": Row(ROLLOUTS, FLEET, NOT_FOUND),
    "rollouts.abort": Row(ROLLOUTS, FLEET, NOT_FOUND),
    "rollouts.deployments": Row(READ, FLEET, NOT_FOUND),
    "rollouts.explain": Row(READ, FLEET, NO_DEVICE),
    "deployments.show": Row(READ, FLEET, NOT_FOUND),
    "deployments.facts": Row(READ, FLEET, NOT_FOUND),
    "tokens.list": Row(ADMIN, SHARED, OK),
    "tokens.create": Row(ADMIN, SHARED, INVALID),
    "tokens.show": Row(ADMIN, SHARED, NOT_FOUND),
    "tokens.revoke": Row(ADMIN, SHARED, NOT_FOUND),
    "revocations.list": Row(READ, SHARED, OK),
    "revocations.create": Row(DEVICES, SHARED, INVALID),
    "audit.list": Row(READ, SHARED, OK),
}
PUBLIC = {("GET", DOCUMENT_PATH), ("GET", PAGE_PATH), ("GET", FILE_PATH)}
BAD_TOKENS = {
    None: "credential_missing",
    "unknown": "credential_refused",
    "expired": "credential_expired",
    "revoked": "credential_revoked",
}


def expected(row: Row, holder: str, scope: Scope) -> tuple[int, str | None]:
    """Return the answer of a cell: ``holder`` is the fleet of the token, or ``all``."""
    reaches = {FLEET: ("acme", "all"), SHARED: ("acme", "other", "all"), ALL: ("all",)}[row.reach]
    has_scope = row.scope is Scope.READ or scope in (row.scope, Scope.ADMIN)
    return row.answer if holder in reaches and has_scope else (403, "permission_denied")


async def answer(api: Api, route: AnyRoute, token: str | None, body: Any = None) -> tuple[int, str | None]:
    content_type = route.body.content_type
    is_json = content_type == "application/json"
    headers = {"Content_Type": content_type} if content_type and not is_json else {}
    data = b"" if headers else None
    given = await api.ask(
        route.method,
        path_of(route),
        ({} if body is None else body) if is_json else None,
        data=data,
        token=token,
        **headers,
    )
    document = given.document if isinstance(given.document, dict) else {}
    return given.status, document.get("code")


def test_every_route_has_its_row() -> None:
    assert set(ROWS) == {route.operation for route in TABLE}
    declared = {(route.method, route.path) for route in operator_routes(services_of())}
    assert declared == {(route.method, route.path) for route in TABLE} | PUBLIC


def test_a_row_says_what_its_route_declares() -> None:
    for route in TABLE:
        reach = FLEET if route.is_fleet_bound else SHARED if route.is_shared else ALL
        assert (route.scope, reach) == ROWS[route.operation][:2], route.operation


async def test_without_a_good_token_every_route_is_401(api: Api) -> None:
    cells = {
        (route.operation, token): await answer(api, route, token) for route in TABLE for token in BAD_TOKENS
    }
    wanted = {
        (route.operation, token): (401, None if route.method == "HEAD" else code)
        for route in TABLE
        for token, code in BAD_TOKENS.items()
    }
    assert cells == wanted
    asked = await api.ask("GET", "devices", token=None)
    assert asked.headers["WWW-Authenticate"] == 'Bearer realm="fleetcast"'


@pytest.mark.parametrize("holder", ["acme", "other", "all"])
async def test_every_scope_at_every_route(api: Api, holder: str) -> None:
    cells, wanted = {}, {}
    for route in TABLE:
        for scope in Scope:
            cell = (route.operation, scope.value)
            cells[cell] = await answer(api, route, f"{holder}-{scope}")
            wanted[cell] = expected(ROWS[route.operation], holder, scope)
            if route.method == "HEAD":
                wanted[cell] = (wanted[cell][0], None)
    assert cells == wanted


SHARED_NAMING_ACME = [
    ("GET", "/api/v1/tokens?fleet=acme", None),
    ("POST", "/api/v1/tokens", {"name": "mallory", "scopes": ["admin"], "fleet": "acme"}),
    ("GET", "/api/v1/revocations?fleet=acme", None),
    ("POST", "/api/v1/revocations", {"fleet": "acme", "device_id": "pump"}),
    ("GET", "/api/v1/audit?fleet=acme", None),
]


@pytest.mark.parametrize(("method", "path", "body"), SHARED_NAMING_ACME)
async def test_naming_another_fleet_is_403_whether_or_not_there_is_one(
    api: Api, method: str, path: str, body: Any
) -> None:
    allowed = await api.ask(method, path, body, token="acme-admin")
    assert allowed.status in (200, 201)
    for fleet in ("acme", "nowhere"):
        named = body | {"fleet": fleet} if body else None
        refused = await api.ask(method, path.replace("acme", fleet), named, token="other-admin")
        assert (refused.status, refused.code) == (403, "permission_denied"), fleet
    missing = body | {"fleet": "nowhere"} if body else None
    unknown = await api.ask(method, path.replace("acme", "nowhere"), missing, token="all-admin")
    assert (unknown.status, unknown.code) == (404, "not_found")


async def test_an_administrator_of_a_fleet_makes_no_token_beyond_it(api: Api) -> None:
    made = await api.ask("POST", "/api/v1/tokens", {"name": "x", "scopes": ["admin"]}, token="acme-admin")
    assert made.document["fleet"] == "acme"
    for_all = await api.ask("POST", "/api/v1/tokens", {"name": "x", "scopes": ["read"]}, token="all-admin")
    assert for_all.document["fleet"] is None
    for token_id in (made.document["id"], for_all.document["id"]):
        for method, action in (("GET", ""), ("POST", "/revoke")):
            hidden = await api.ask(method, f"/api/v1/tokens/{token_id}{action}", token="other-admin")
            assert (hidden.status, hidden.code) == (404, "not_found")
    still = await api.ask("GET", f"/api/v1/tokens/{made.document['id']}", token="all-admin")
    assert still.document["revoked_at"] is None
    listed = (await api.ask("GET", "/api/v1/tokens", token="other-admin")).document["items"]
    assert {token["fleet"] for token in listed} == {"other"}


async def test_the_description_of_the_api_asks_for_no_token(api: Api) -> None:
    for path in ("/api/v1/openapi.json", "/api/v1/docs", "/api/v1/docs/docs.js", "/api/v1/docs/LICENSE"):
        shown = await api.ask("GET", path, token=None)
        assert shown.status == 200, path
        assert shown.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert (await api.ask("GET", "/api/v1/docs/..%2f..%2ftable.py", token=None)).status == 404


async def test_nothing_of_one_fleet_is_found_in_another(api: Api) -> None:
    await api.made("channels", {"name": "ops", "kind": "alert"})
    await api.made("channels", {"name": "fw", "kind": "update"})
    await api.made("devices", {"device_id": "pump"})
    alert = await api.made("channels/ops/alerts", {"text": "x"})
    release = await publish_release(api)
    rollout = await api.made("rollouts", {"release_id": release["id"], "channel": "fw", "percent": 100})
    for path in (
        "channels/ops",
        "channels/ops/alerts",
        "channels/ops/subscribers",
        "channels/~pump",
        "devices/pump",
        "devices/pump/subscriptions",
        "devices/pump/deployments",
        f"devices/pump/explain?release={release['id']}",
        f"alerts/{alert['id']}",
        f"alerts/{alert['id']}/deliveries",
        f"releases/{release['id']}",
        f"releases/{release['id']}/envelope",
        f"artifacts/{DIGEST}",
        f"rollouts/{rollout['id']}",
        f"rollouts/{rollout['id']}/deployments",
        f"rollouts/{rollout['id']}/explain?device=pump",
    ):
        assert (await api.ask("GET", path)).status == 200, path
        other = await api.ask("GET", f"/api/v1/fleets/other/{path}", token="other-admin")
        assert (other.status, other.code) == (404, "not_found"), path
    for kind in ("channels", "devices", "releases", "rollouts", "dead-letters"):
        listed = await api.ask("GET", f"/api/v1/fleets/other/{kind}", token="other-admin")
        assert listed.document == {"items": [], "next_cursor": None}, kind
    changes = await api.ask("GET", "/api/v1/audit", token="other-read")
    assert changes.document["items"] == []
