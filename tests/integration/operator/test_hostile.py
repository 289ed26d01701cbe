"""Malformed and hostile requests to every operation, each with its answer; and that nothing came of them."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest

from gateway.edge.operator.refusals import refusals_of
from gateway.edge.operator.table import TABLE
from gateway.storage.tables import metadata
from tests.harness.operator_api import RELEASE_KEY, STRANGER, Api

BAD = "invalid_body"
QUERY = "invalid_query"
GONE = "not_found"
PEM = RELEASE_KEY.public.to_pem().decode()
DEEP = b'{"json":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@dataclass(frozen=True)
class Case:
    """One request: the operation's, but for what is given here."""

    operation: str
    status: int
    code: str | None
    body: Any = None
    raw: bytes | None = None
    query: str = ""
    path: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    token: str = "all-admin"


def case(operation: str, status: int, code: str | None, body: Any = None, **given: Any) -> Case:
    return Case(operation, status, code, body, **given)


# Lists take pages; each has the parameters that it has, and no others.
PAGES = [
    *[
        case(operation, 400, QUERY, query=query)
        for operation, query in (
            ("fleets.list", "limit=0"),
            ("fleets.list", "limit=1001"),
            ("channels.list", "limit=-1"),
            ("channels.subscribers", "limit=1e3"),
            ("alerts.list", "limit=ten"),
            ("alerts.list", "order=up"),
            ("alerts.list", "accepted_since=yesterday"),
            ("alerts.list", "accepted_before=9007199254740992"),
            ("alerts.list", "key=" + "k" * 129),
            ("alerts.deliveries", "limit=%D9%A1"),  # a digit, of another script
            ("alerts.facts", ""),
            ("alerts.facts", "device_id=~pump"),
            ("devices.list", "limit=1&limit=2"),
            ("devices.list", "offset=5"),
            ("devices.list", "is_connected=yes"),
            ("devices.list", "is_enabled=1"),
            ("devices.list", "sort=bucket"),
            ("devices.list", "seen_since=-1"),
            ("devices.list", "tag=a%20b"),
            ("devices.list", "selector="),
            ("devices.list", "selector=" + "a" * 2001),
            ("devices.deployments", "state=done"),
            ("devices.explain", ""),
            ("devices.explain", "release=7"),
            ("devices.explain", f"release={STRANGER}&device=x"),
            ("dead-letters.list", "reason=bored"),
            ("dead-letters.list", "is_requeued=maybe"),
            ("dead-letters.list", "since=1.5"),
            ("releases.list", "component=%00"),
            ("releases.publish", "name=%0A"),
            ("rollouts.list", "state=walking"),
            ("rollouts.list", f"release_id={STRANGER[:-1]}"),
            ("rollouts.deployments", "order="),
            ("rollouts.explain", "device="),
            ("tokens.list", "fleet=~x"),
            ("revocations.list", "after=1"),
            ("audit.list", "operation=everything"),
            ("audit.list", "token_id=me"),
            ("audit.list", "target=%20"),
            ("keys.list", "limit=1"),
            ("subscriptions.list", "limit=1"),
            ("fleets.show", "x=1"),
            ("root.show", "version=1"),
            ("deployments.facts", "limit=1"),
            ("rollouts.pause", "force=true"),
        )
    ],
    *[
        case(operation, 400, "bad_cursor", query=query)
        for operation, query in (
            ("fleets.list", "cursor=x"),
            ("channels.list", "cursor=" + "A" * 600),
            ("devices.list", "cursor="),
            ("devices.list", "cursor=gmxkZXZpY2VzLmxpc3RhYQ%3D%3D"),
            ("devices.list", "sort=last_seen_at&cursor=gmxkZXZpY2VzLmxpc3RhYQ"),  # of the list by id
            ("alerts.list", "cursor=..%2F..%2Fetc"),
            ("tokens.list", "cursor=%00"),
            ("audit.list", "cursor=gmphdWRpdC5saXN0IA"),
        )
    ],
    case("devices.list", 400, "bad_selector", query="selector=" + quote("1 == 1")),
    case("devices.list", 400, "bad_selector", query="selector=" + quote("tag == 'x' or 1=1 --")),
    case("devices.list", 400, "bad_selector", query="selector=" + quote("(" * 40 + 'tag == "a"' + ")" * 40)),
]

# What is in a path is a name, or nothing is there.
PATHS = [
    case(operation, 404, code, path=path, **({"body": body} if body is not None else {}))
    for operation, path, code, body in (
        ("fleets.show", {"fleet": "nowhere"}, GONE, None),
        ("fleets.show", {"fleet": "~acme"}, GONE, None),
        ("fleets.show", {"fleet": "acme%00"}, GONE, None),
        ("fleets.show", {"fleet": "acme%2F..%2Fother"}, GONE, None),
        ("fleets.show", {"fleet": "acme'--"}, GONE, None),
        ("channels.show", {"channel": "a" * 129}, GONE, None),
        ("channels.show", {"channel": "%F0%9F%92%A3"}, GONE, None),
        ("channels.delete", {"channel": "no"}, GONE, None),
        ("channels.change", {"channel": "no"}, GONE, {}),
        ("devices.show", {"device_id": "%2e%2e%2f%2e%2e%2fetc"}, GONE, None),
        ("devices.show", {"device_id": "a%0d%0aX:%20y"}, GONE, None),
        ("devices.delete", {"device_id": "~pump"}, GONE, None),
        ("devices.change", {"device_id": "no"}, GONE, {"is_enabled": False}),
        ("devices.deployments", {"device_id": "no"}, GONE, None),
        ("subscriptions.put", {"device_id": "no"}, GONE, {}),
        ("subscriptions.delete", {"channel": "no"}, GONE, None),
        ("subscriptions.list", {"device_id": "no"}, GONE, None),
        ("alerts.show", {"id": "7"}, GONE, None),
        ("alerts.show", {"id": "%7B" + STRANGER + "%7D"}, "no_such_route", None),
        ("alerts.deliveries", {"id": "0" * 400}, GONE, None),
        ("dead-letters.show", {"id": "-1"}, GONE, None),
        ("dead-letters.show", {"id": "9" * 30}, GONE, None),
        ("dead-letters.show", {"id": "%D9%A1"}, GONE, None),
        ("dead-letters.requeue", {"id": "1e3"}, GONE, None),
        ("release-keys.show", {"kid": "zz"}, GONE, None),
        ("release-keys.delete", {"kid": "A" * 16}, GONE, None),
        ("release-keys.put", {"kid": "..%2F..%2Fkeys"}, GONE, {"public_pem": PEM}),
        ("releases.show", {"id": STRANGER}, GONE, None),
        ("releases.envelope", {"id": "x"}, GONE, None),
        ("artifacts.fetch", {"sha256": "..%2f..%2fkeys%2falert.pem"}, GONE, None),
        ("artifacts.fetch", {"sha256": "F" * 64}, GONE, None),
        ("rollouts.show", {"id": STRANGER}, GONE, None),
        ("rollouts.pause", {"id": STRANGER}, GONE, None),
        ("rollouts.resume", {"id": "x"}, GONE, None),
        ("rollouts.finish", {"id": STRANGER}, GONE, None),
        ("rollouts.abort", {"id": "%00"}, GONE, None),
        ("rollouts.widen", {"id": STRANGER}, GONE, {"percent": 1}),
        ("deployments.show", {"id": "null"}, GONE, None),
        ("deployments.facts", {"id": STRANGER}, GONE, None),
        ("tokens.show", {"id": STRANGER}, GONE, None),
        ("tokens.revoke", {"id": "me"}, GONE, None),
        ("fleets.show", {"fleet": ""}, "no_such_route", None),
        ("devices.show", {"device_id": "pump/"}, "no_such_route", None),
        ("devices.show", {"device_id": "../../.."}, "no_such_route", None),
    )
] + [case("artifacts.head", 404, None, path={"sha256": "0" * 63})]

# A body is of its type, its form and its size.
BODIES = [
    case("fleets.create", 422, BAD, {}),
    case("fleets.create", 422, BAD, {"name": "a/b"}),
    case("fleets.create", 422, BAD, {"name": ["acme"]}),
    case("fleets.create", 422, BAD, {"name": "x" * 129}),
    case("fleets.create", 409, "fleet_exists", {"name": "acme"}),
    case("fleets.create", 400, "malformed_json", raw=b"{"),
    case("fleets.create", 400, "malformed_json", raw=b'{"name":"a","name":"b"}'),
    case("fleets.create", 400, "malformed_json", raw=b"\xff\xfe{}"),
    case("fleets.create", 400, "malformed_json", raw=b'{"name":"\\ud800"}'),
    case("fleets.create", 422, BAD, raw=b"[]"),
    case("fleets.create", 422, BAD, raw=b"null"),
    case("fleets.create", 422, BAD, raw=b'"acme"'),
    case(
        "fleets.create",
        415,
        "unsupported_media_type",
        raw=b"name=x",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ),
    case("fleets.create", 415, "unsupported_media_type", raw=b"{}", headers={"Content-Type": "text/json"}),
    case(
        "fleets.create",
        415,
        "unsupported_media_type",
        raw=b"{}",
        headers={"Content-Type": "application/json; charset=utf-16"},
    ),
    case("fleets.create", 415, "unsupported_media_type", raw=b"{}", headers={"Content-Encoding": "gzip"}),
    case("fleets.create", 413, "too_large", raw=b" " * (3 << 20)),
    case("fleets.create", 400, "bad_idempotency_key", {"name": "n"}, headers={"Idempotency-Key": "a b"}),
    case("fleets.create", 400, "bad_idempotency_key", {"name": "n"}, headers={"Idempotency-Key": "k" * 256}),
    case("fleets.create", 400, "bad_idempotency_key", {"name": "n"}, headers={"Idempotency-Key": ""}),
    case("channels.create", 422, BAD, {"name": "~pump", "kind": "alert"}),
    case("channels.create", 422, BAD, {"name": "x", "kind": "grip"}),
    case("channels.create", 422, BAD, {"name": "x", "kind": "alert", "retention_count": 0}),
    case("channels.create", 422, BAD, {"name": "x", "kind": "alert", "retention_age_s": 60.5}),
    case("channels.create", 422, BAD, {"name": "x", "kind": "alert", "starts_at_earliest": 1}),
    case("channels.create", 422, BAD, {"name": "x", "kind": "alert", "fleet_id": 2}),
    case("channels.change", 422, BAD, {"name": "y"}),
    case("channels.change", 400, "bad_if_match", {}, headers={"If-Match": 'W/"1"'}),
    case("channels.change", 412, "stale_version", {}, headers={"If-Match": '"999"'}),
    case("channels.delete", 412, "stale_version", headers={"If-Match": '"999"'}),
    case("alerts.publish", 422, BAD, {}),
    case("alerts.publish", 422, BAD, {"text": "x", "data": "eA"}),
    case("alerts.publish", 422, BAD, {"text": None}),
    case("alerts.publish", 422, BAD, {"data": "eA=="}),
    case("alerts.publish", 422, BAD, {"data": "e"}),
    case("alerts.publish", 422, BAD, {"data": "eB"}),  # bits that are not zero
    case("alerts.publish", 422, BAD, {"data": "+/+/"}),
    case("alerts.publish", 422, BAD, {"text": "x", "ttl_s": 0}),
    case("alerts.publish", 422, BAD, {"text": "x", "ttl_s": 1001}),
    case("alerts.publish", 422, BAD, {"text": "x", "key": ""}),
    case("alerts.publish", 422, BAD, {"text": "x", "key": "a\nb"}),
    case("alerts.publish", 422, BAD, {"text": "x", "content_type": "text"}),
    case("alerts.publish", 422, BAD, {"text": "x", "content_type": "text/plain\r\nX: y"}),
    case("alerts.publish", 413, "too_large", {"text": "x" * 65_537}),
    case("alerts.publish", 413, "too_large", {"json": ["é" * 40_000]}),
    case("alerts.publish", 400, "malformed_json", raw=DEEP),
    case("alerts.publish", 422, BAD, {"json": json.loads("[" * 70 + "]" * 70)}),
    case("alerts.publish", 400, "malformed_json", raw=b'{"json":NaN}'),
    case("alerts.publish", 400, "malformed_json", raw=b'{"json":1e999}'),
    case("alerts.publish", 404, GONE, {"text": "x"}, path={"channel": "no"}),
    case("alerts.publish", 409, "wrong_kind", {"text": "x"}, path={"channel": "fw"}),
    case("devices.create", 422, BAD, {"device_id": "x" * 128}),
    case("devices.create", 422, BAD, {"device_id": "~x"}),
    case("devices.create", 422, BAD, {"device_id": "x", "tags": ["a", "a"]}),
    case("devices.create", 422, BAD, {"device_id": "x", "tags": ["a b"]}),
    case("devices.create", 422, BAD, {"device_id": "x", "tags": [str(n) for n in range(33)]}),
    case("devices.create", 422, BAD, {"device_id": "x", "tags": "a"}),
    case("devices.create", 409, "device_exists", {"device_id": "pump"}),
    case("devices.change", 422, BAD, {"is_enabled": "no"}),
    case("devices.change", 422, BAD, {"origin": {"admin": True}}),
    case("devices.change", 412, "stale_version", {}, headers={"If-Match": '"999"'}),
    case("devices.delete", 400, "bad_if_match", headers={"If-Match": '"1", "2"'}),
    case("subscriptions.put", 422, BAD, {"offset": 7}),
    case("subscriptions.put", 409, "own_channel", {}, path={"channel": "~pump"}),
    case("subscriptions.delete", 409, "own_channel", path={"channel": "~pump"}),
    case("channels.delete", 409, "own_channel", path={"channel": "~pump"}),
    case("release-keys.put", 422, BAD, {"public_pem": "-----BEGIN PRIVATE KEY-----"}),
    case("release-keys.put", 422, BAD, {"public_pem": "x" * 100_000}),
    case("release-keys.put", 422, "kid_mismatch", {"public_pem": PEM}),
    case("root.put", 400, "malformed", raw=b"\xd2\x84\x43\xa1\x01\x26\xa0\x40\x40"),
    case("root.put", 400, "malformed", raw=b"\x9f" * 1000),
    case("root.put", 413, "too_large", raw=b"x" * (1 << 20)),
    case("root.put", 400, "bad_if_match", raw=b"x", headers={"If-Match": "first"}),
    case("root.put", 415, "unsupported_media_type", raw=b"x", headers={"Content-Type": "application/json"}),
    case("releases.publish", 409, "no_release_key", raw=b"\xa0"),
    case("releases.publish", 413, "too_large", raw=b"x" * (1 << 18)),
    case("artifacts.put", 400, "digest_mismatch", raw=b"another"),
    case("artifacts.put", 413, "too_large", raw=b"x" * ((1 << 20) + 1)),
    case("artifacts.put", 404, GONE, raw=b"x", path={"sha256": "..%2fx"}),
    case("rollouts.start", 422, BAD, {"release_id": STRANGER, "channel": "fw", "percent": 0}),
    case("rollouts.start", 422, BAD, {"release_id": STRANGER, "channel": "fw", "percent": 100.5}),
    case("rollouts.start", 422, BAD, {"release_id": STRANGER, "channel": "fw", "percent": True}),
    case(
        "rollouts.start", 422, BAD, {"release_id": STRANGER, "channel": "fw", "percent": 1, "priority": 1e9}
    ),
    case("rollouts.start", 422, BAD, {"release_id": "x", "channel": "fw", "percent": 1}),
    case(
        "rollouts.start",
        422,
        "bad_selector",
        {"release_id": STRANGER, "channel": "fw", "percent": 1, "selector": "); DROP TABLE device; --"},
    ),
    case("rollouts.start", 404, GONE, {"release_id": STRANGER, "channel": "fw", "percent": 1}),
    case("rollouts.widen", 422, BAD, {"percent": -1}),
    case("rollouts.widen", 422, BAD, {"state": "running"}),
    case("tokens.create", 422, BAD, {"name": "x", "scopes": []}),
    case("tokens.create", 422, BAD, {"name": "x", "scopes": ["root"]}),
    case("tokens.create", 422, BAD, {"name": "x", "scopes": ["read", "read"]}),
    case("tokens.create", 422, BAD, {"name": "x", "scopes": ["read"], "expires_in_s": -1}),
    case("tokens.create", 422, BAD, {"name": "x", "scopes": ["read"], "sha256": "0" * 64}),
    case("tokens.create", 404, GONE, {"name": "x", "scopes": ["read"], "fleet": "nowhere"}),
    case(
        "tokens.create",
        403,
        "permission_denied",
        {"name": "x", "scopes": ["read"], "fleet": "acme"},
        token="other-admin",
    ),
    case("revocations.create", 422, BAD, {"fleet": "acme"}),
    case("revocations.create", 422, BAD, {"fleet": "acme", "device_id": "p", "token_sha256": "0" * 64}),
    case("revocations.create", 422, BAD, {"fleet": "acme", "token_sha256": "Z" * 64}),
    case("revocations.create", 422, BAD, {"device_id": "pump"}),
    case("revocations.create", 404, GONE, {"fleet": "nowhere", "device_id": "pump"}),
    case(
        "revocations.create",
        403,
        "permission_denied",
        {"fleet": "acme", "device_id": "p"},
        token="other-admin",
    ),
]
CASES = PAGES + PATHS + BODIES
ROUTES = {route.operation: route for route in TABLE}
HERE = {
    "fleet": "acme",
    "channel": "ops",
    "device_id": "pump",
    "id": STRANGER,
    "kid": "0" * 16,
    "sha256": "0" * 64,
}


@pytest.fixture
async def world(api: Api) -> Api:
    await api.made("channels", {"name": "ops", "kind": "alert"})
    await api.made("channels", {"name": "fw", "kind": "update"})
    await api.made("devices", {"device_id": "pump"})
    return api


async def rows(api: Api) -> dict[str, int]:
    def count(connection: Any) -> dict[str, int]:
        return {
            name: connection.exec_driver_sql(f'SELECT count(*) FROM "{name}"').scalar_one()
            for name in metadata.tables
        }

    return await api.database.read(count)


def test_there_are_a_hundred_and_more_over_every_operation() -> None:
    assert len(CASES) >= 100
    assert {one.operation for one in CASES} == set(ROUTES)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.operation)
def test_its_refusal_is_declared(one: Case) -> None:
    if one.code not in (None, "no_such_route"):
        assert one.code in refusals_of(ROUTES[one.operation])[one.status]


async def test_each_has_its_answer_and_changes_nothing(world: Api) -> None:
    before = await rows(world)
    wrong = []
    for one in CASES:
        route = ROUTES[one.operation]
        path = route.path.format(**HERE | one.path) + (f"?{one.query}" if one.query else "")
        headers = {"Content-Type": route.body.content_type} if one.raw is not None else {}
        given = {name.replace("-", "_"): value for name, value in (headers | one.headers).items()}
        data = None if one.raw is None else io.BytesIO(one.raw)
        answer = await world.ask(route.method, path, one.body, data=data, token=one.token, **given)
        found = (answer.status, None if answer.document is None else answer.code)
        if found != (one.status, one.code):
            wrong.append((one.operation, one.query or one.path or one.body or one.raw, found))
    assert wrong == [], "\n".join(map(str, wrong))
    assert await rows(world) == before


HEAD = b"GET /api/v1/fleets HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/v1/fleets HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
RAW = {
    "no request": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "another version": (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    "a header without a name": (HEAD + b": x\r\n\r\n", 400),
    "a header that is folded": (HEAD + b"X: a\r\n b\r\n\r\n", 400),
    "a NUL in a header": (HEAD + b"X: \0\r\n\r\n", 400),
    "a header of 20 KB": (HEAD + b"X: " + b"x" * 20_000 + b"\r\n\r\n", 400),
    "a line of 20 KB": (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "a length and chunks": (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "an unknown transfer encoding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "a chunk that is no number": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
}


@pytest.mark.parametrize("name", RAW)
async def test_what_is_not_http_is_400_and_the_connection_ends(api: Api, name: str) -> None:
    sent, status = RAW[name]
    token = api.tokens["all-admin"].encode()
    sent = sent.replace(b"Host: x\r\n", b"Host: x\r\nAuthorization: Bearer " + token + b"\r\n")
    reader, writer = await asyncio.open_connection(*api.gateway.address)
    writer.write(sent)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.startswith((f"HTTP/1.1 {status} ".encode(), f"HTTP/1.0 {status} ".encode()))
    assert (await api.ask("GET", "/healthz", token=None)).status == 200
