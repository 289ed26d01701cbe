"""The steps that every route shares, on a small table of its own and without a database."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.clock import FakeClock
from gateway.edge.operator import OperatorLimits
from gateway.edge.operator.body import JsonBody, NoQuery, Page, RawBody, Strict
from gateway.edge.operator.dispatch import Dispatcher
from gateway.edge.operator.paging import page
from gateway.edge.operator.results import FleetResult, Result
from gateway.edge.operator.route import API, FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.acts import Replay
from gateway.fleet.model import Fleet
from gateway.identity import OperatorToken, Scope, new_token, token_sha256
from tests.unit.gateway.edge.operator.services import services_of

TOKENS = {name: new_token() for name in ("all", "acme", "reader", "publisher", "other", "revoked", "expired")}


class FakeFleets:
    """Fleets and tokens, and how often they were read."""

    def __init__(self, now_ms: int) -> None:
        self.names = {"acme": 1, "other": 2}
        self.reads: list[str] = []
        self.tokens = {
            token_sha256(TOKENS["all"]): _token("all", None, Scope.ADMIN),
            token_sha256(TOKENS["acme"]): _token("acme", "acme", Scope.ADMIN),
            token_sha256(TOKENS["reader"]): _token("reader", "acme", Scope.READ),
            token_sha256(TOKENS["publisher"]): _token("publisher", "acme", Scope.PUBLISH),
            token_sha256(TOKENS["other"]): _token("other", "other", Scope.ADMIN),
            token_sha256(TOKENS["revoked"]): replace(_token("revoked", None, Scope.ADMIN), revoked_at=1),
            token_sha256(TOKENS["expired"]): replace(_token("expired", None, Scope.ADMIN), expires_at=now_ms),
        }

    async def operator_token(self, sha256: bytes) -> OperatorToken | None:
        self.reads.append("token")
        return self.tokens.get(sha256)

    async def fleet(self, name: str) -> Fleet:
        self.reads.append("fleet")
        if name not in self.names:
            raise NotFoundError("there is no such fleet")
        return Fleet(self.names[name], name, 0, 0)

    async def fleets(self, *, after: str, limit: int) -> list[Fleet]:
        return [Fleet(key, name, 0, 0) for name, key in sorted(self.names.items()) if name > after][:limit]


def _token(name: str, fleet: str | None, scope: Scope) -> OperatorToken:
    return OperatorToken(hashlib.md5(name.encode()).digest(), name, b"", fleet, frozenset({scope}), 0)


class ThingBody(Strict):
    name: str


class ThingResult(Result):
    name: str
    fleet: str


class Things:
    """Handlers of a made-up noun; ``calls`` has what reached them."""

    def __init__(self) -> None:
        self.calls: list[Call[Any, Any]] = []
        self.answers: dict[tuple[bytes, str], tuple[bytes, Replay]] = {}

    async def make(self, call: Call[ThingBody, NoQuery]) -> Outcome:
        self.calls.append(call)
        result = ThingResult(name=call.body.name, fleet=call.fleet.name)
        idempotency = call.act(lambda thing: thing).idempotency
        if idempotency is None:
            return Answer(result)
        known = self.answers.get((idempotency.token_id, idempotency.key))
        if known is None:
            replay = Replay(*idempotency.respond(result))
            self.answers[idempotency.token_id, idempotency.key] = idempotency.request_sha256, replay
            return Answer(result)
        if known[0] != idempotency.request_sha256:
            raise ConflictError(code="idempotency_key_reused")
        return known[1]

    async def change(self, call: Call[bytes, NoQuery]) -> Answer:
        self.calls.append(call)
        if call.if_match not in (None, 3):
            raise ConflictError("it is version 3", code="stale_version")
        return Answer(ThingResult(name=call.id().hex(), fleet=call.fleet.name), version=4)

    async def remove(self, call: Call[None, NoQuery]) -> Answer:
        self.calls.append(call)
        return Answer()

    async def list(self, call: Call[None, Page]) -> Answer:
        self.calls.append(call)
        store = call.services.fleets
        return await page(
            call,
            lambda after, limit: store.fleets(after=after or "", limit=limit),
            kind=str,
            key=lambda fleet: str(fleet.name),
            show=FleetResult.of,
        )

    def table(self) -> tuple[AnyRoute, ...]:
        return (
            Route(
                method="POST",
                path=f"{FLEET}/things",
                operation="things.make",
                scope=Scope.PUBLISH,
                summary="",
                handler=self.make,
                body=JsonBody(ThingBody),
                statuses=(201,),
                result=ThingResult,
                location=f"{FLEET}/things/{{name}}",
            ),
            Route(
                method="PUT",
                path=f"{FLEET}/things/{{id}}",
                operation="things.change",
                scope=Scope.DEVICES,
                summary="",
                handler=self.change,
                body=RawBody("application/x", size_bytes_max=10),
                result=ThingResult,
                is_versioned=True,
            ),
            Route(
                method="DELETE",
                path=f"{FLEET}/things/{{id}}",
                operation="things.remove",
                scope=Scope.ADMIN,
                summary="",
                handler=self.remove,
                statuses=(204,),
            ),
            Route(
                method="GET",
                path=f"{API}/things",
                operation="things.list",
                scope=Scope.READ,
                summary="",
                handler=self.list,
                query=Page,
                result=ListOf[FleetResult],
            ),
        )


@pytest.fixture
def fleets(clock: FakeClock) -> FakeFleets:
    return FakeFleets(clock.now_ms())


@pytest.fixture
def things() -> Things:
    return Things()


@pytest.fixture
def ask(ask_of: Callable, clock: FakeClock, fleets: FakeFleets, things: Things) -> Callable:
    services = services_of(
        fleets=fleets, clock=clock, limits=OperatorLimits(body_size_bytes_max=100, body_timeout_s=0.01)
    )
    return ask_of(Dispatcher(services).routes(things.table()))


def bearer(name: str, **headers: str) -> dict[str, str]:
    found = {"Authorization": f"Bearer {TOKENS[name]}", "Content-Type": "application/json"}
    return found | {key.replace("_", "-"): value for key, value in headers.items()}


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


MAKE = ("POST", "/api/v1/fleets/acme/things")
CHANGE = ("PUT", "/api/v1/fleets/acme/things/00000000-0000-0000-0000-000000000001")


class TestWhoAsks:
    @pytest.mark.parametrize(
        ("headers", "code"),
        [
            ({}, "credential_missing"),
            ({"Authorization": "Basic eA=="}, "credential_missing"),
            ({"Authorization": TOKENS["acme"]}, "credential_missing"),
            ({"Authorization": "Bearer "}, "credential_refused"),
            ({"Authorization": "Bearer eyJ.a.b"}, "credential_refused"),
            ({"Authorization": "Bearer " + new_token()}, "credential_refused"),
            (bearer("revoked"), "credential_revoked"),
            (bearer("expired"), "credential_expired"),
        ],
    )
    async def test_without_a_good_token_nothing_is_done(
        self, ask: Callable, things: Things, headers: dict[str, str], code: str
    ) -> None:
        answer = await ask(*MAKE, headers=headers, body=body(name="x"))
        assert (answer.status, answer.json()["code"]) == (401, code)
        assert things.calls == []

    @pytest.mark.parametrize("token", ["reader", "other"])
    async def test_without_scope_or_fleet_nothing_is_done(
        self, ask: Callable, things: Things, token: str
    ) -> None:
        answer = await ask(*MAKE, headers=bearer(token), body=body(name="x"))
        assert (answer.status, answer.json()["code"]) == (403, "permission_denied")
        assert things.calls == []

    @pytest.mark.parametrize("fleet", ["other", "none", "~x", "%20"])
    async def test_whether_another_fleet_exists_is_not_told(self, ask: Callable, fleet: str) -> None:
        answer = await ask(
            "POST", f"/api/v1/fleets/{fleet}/things", headers=bearer("acme"), body=body(name="x")
        )
        assert (answer.status, answer.json()["code"]) == (403, "permission_denied")

    @pytest.mark.parametrize("fleet", ["none", "~x", "%20"])
    async def test_an_operator_of_all_fleets_is_told_that_one_is_not_there(
        self, ask: Callable, fleet: str
    ) -> None:
        answer = await ask(
            "POST", f"/api/v1/fleets/{fleet}/things", headers=bearer("all"), body=body(name="x")
        )
        assert (answer.status, answer.json()["code"]) == (404, "not_found")

    async def test_what_is_about_all_fleets_is_for_operators_of_all(self, ask: Callable) -> None:
        assert (await ask("GET", "/api/v1/things", headers=bearer("acme"))).status == 403
        assert (await ask("GET", "/api/v1/things", headers=bearer("all"))).status == 200

    async def test_a_stranger_learns_nothing_of_what_is_wrong_with_a_request(self, ask: Callable) -> None:
        answer = await ask("POST", "/api/v1/fleets/acme/things?x=1", body=b"{")
        assert answer.status == 401


class TestReadsOfTheDatabase:
    async def test_a_hot_route_reads_token_and_fleet_once_in_5_s(
        self, ask: Callable, fleets: FakeFleets, clock: FakeClock
    ) -> None:
        for _ in range(3):
            await ask(*MAKE, headers=bearer("publisher"), body=body(name="x"))
        assert fleets.reads == ["token", "fleet"]
        clock.advance(5)
        await ask(*MAKE, headers=bearer("publisher"), body=body(name="x"))
        assert fleets.reads == ["token", "fleet"] * 2

    async def test_a_revoked_token_is_out_within_5_s(
        self, ask: Callable, fleets: FakeFleets, clock: FakeClock
    ) -> None:
        sha256 = token_sha256(TOKENS["publisher"])
        assert (await ask(*MAKE, headers=bearer("publisher"), body=body(name="x"))).status == 201
        fleets.tokens[sha256] = replace(fleets.tokens[sha256], revoked_at=clock.now_ms())
        clock.advance(5)
        answer = await ask(*MAKE, headers=bearer("publisher"), body=body(name="x"))
        assert answer.json()["code"] == "credential_revoked"

    async def test_a_token_expires_on_time_though_it_is_remembered(
        self, ask: Callable, fleets: FakeFleets, clock: FakeClock
    ) -> None:
        sha256 = token_sha256(TOKENS["publisher"])
        fleets.tokens[sha256] = replace(fleets.tokens[sha256], expires_at=clock.now_ms() + 1000)
        assert (await ask(*MAKE, headers=bearer("publisher"), body=body(name="x"))).status == 201
        clock.advance(1)
        assert (await ask(*MAKE, headers=bearer("publisher"), body=body(name="x"))).status == 401


class TestBody:
    async def test_made_things_say_where_they_are(self, ask: Callable) -> None:
        answer = await ask(*MAKE, headers=bearer("publisher"), body=body(name="x"))
        assert answer.status == 201
        assert answer.json() == {"name": "x", "fleet": "acme"}
        assert answer.headers["Location"] == "/api/v1/fleets/acme/things/x"
        assert answer.headers["Cache-Control"] == "no-store"

    @pytest.mark.parametrize(
        ("headers", "content", "status", "code"),
        [
            ({"Content_Type": "text/plain"}, body(name="x"), 415, "unsupported_media_type"),
            ({"Content_Type": "application/json; charset=latin-1"}, b"{}", 415, "unsupported_media_type"),
            ({"Content_Encoding": "gzip"}, b"{}", 415, "unsupported_media_type"),
            ({}, b"{", 400, "malformed_json"),
            ({}, b'{"name":"x","name":"y"}', 400, "malformed_json"),
            ({}, b"", 400, "malformed_json"),
            ({}, b"{}", 422, "invalid_body"),
            ({}, body(name="x", other=1), 422, "invalid_body"),
            ({}, body(name="x" * 100), 413, "too_large"),
        ],
    )
    async def test_refused(
        self, ask: Callable, things: Things, headers: dict[str, str], content: bytes, status: int, code: str
    ) -> None:
        answer = await ask(*MAKE, headers=bearer("publisher", **headers), body=content)
        assert (answer.status, answer.json()["code"]) == (status, code)
        assert things.calls == []

    async def test_a_body_that_is_longer_than_announced_is_cut_at_the_bound(
        self, ask: Callable, things: Things
    ) -> None:
        headers = bearer("publisher", Transfer_Encoding="chunked", Content_Length="")
        del headers["Content-Length"]
        answer = await ask(*MAKE, headers=headers | {"Content-Length": "10"}, body=body(name="x" * 100))
        assert (answer.status, answer.json()["code"]) == (413, "too_large")
        assert things.calls == []

    async def test_a_body_that_does_not_come_is_not_waited_for(self, ask: Callable, things: Things) -> None:
        answer = await ask(
            *MAKE, headers=bearer("publisher", Content_Length="50"), body=b"{", is_endless=True
        )
        assert (answer.status, answer.json()["code"]) == (408, "body_timeout")
        assert things.calls == []

    async def test_a_route_has_a_bound_of_its_own(self, ask: Callable, things: Things) -> None:
        headers = bearer("acme", Content_Type="application/x")
        assert (await ask(*CHANGE, headers=headers, body=b"0123456789")).status == 200
        assert things.calls[0].body == b"0123456789"
        assert (await ask(*CHANGE, headers=headers, body=b"0123456789a")).status == 413

    @pytest.mark.parametrize("query", ["?x=1", "?limit=1"])
    async def test_unknown_parameters_are_refused(self, ask: Callable, things: Things, query: str) -> None:
        answer = await ask(MAKE[0], MAKE[1] + query, headers=bearer("publisher"), body=body(name="x"))
        assert (answer.status, answer.json()["code"]) == (400, "invalid_query")
        assert things.calls == []

    async def test_204_has_no_body(self, ask: Callable) -> None:
        answer = await ask("DELETE", CHANGE[1], headers=bearer("acme"))
        assert (answer.status, answer.body) == (204, b"")
        assert "Content-Type" not in answer.headers


class TestVersions:
    @pytest.mark.parametrize("if_match", ['"3"', "3", "*", None])
    async def test_a_change_of_the_version_that_is_there(self, ask: Callable, if_match: str | None) -> None:
        headers = bearer("acme", Content_Type="application/x")
        answer = await ask(*CHANGE, headers=headers | ({"If-Match": if_match} if if_match else {}), body=b"x")
        assert answer.status == 200
        assert answer.headers["ETag"] == '"4"'

    async def test_a_change_of_another_version_is_412(self, ask: Callable) -> None:
        headers = bearer("acme", Content_Type="application/x", If_Match='"2"')
        answer = await ask(*CHANGE, headers=headers, body=b"x")
        assert (answer.status, answer.json()["code"]) == (412, "stale_version")

    @pytest.mark.parametrize("if_match", ['"3', 'W/"3"', '"3", "4"', '"' + "9" * 17 + '"', "", "-3", "٣"])
    async def test_what_is_no_version_is_400(self, ask: Callable, things: Things, if_match: str) -> None:
        headers = bearer("acme", Content_Type="application/x", If_Match=if_match)
        answer = await ask(*CHANGE, headers=headers, body=b"x")
        assert (answer.status, answer.json()["code"]) == (400, "bad_if_match")
        assert things.calls == []

    async def test_an_id_that_is_none_is_not_there(self, ask: Callable) -> None:
        headers = bearer("acme", Content_Type="application/x")
        answer = await ask("PUT", "/api/v1/fleets/acme/things/7", headers=headers, body=b"x")
        assert (answer.status, answer.json()["code"]) == (404, "not_found")


class TestIdempotency:
    async def test_a_repeat_is_answered_the_same(self, ask: Callable) -> None:
        headers = bearer("publisher", Idempotency_Key="k-1")
        first = await ask(*MAKE, headers=headers, body=body(name="x"))
        again = await ask(*MAKE, headers=headers, body=body(name="x"))
        assert (again.status, again.body) == (first.status, first.body)
        assert again.headers["Location"] == first.headers["Location"]
        assert "Idempotency-Replayed" not in first.headers
        assert again.headers["Idempotency-Replayed"] == "true"

    async def test_another_request_with_the_key_is_another_hash(self, ask: Callable) -> None:
        headers = bearer("publisher", Idempotency_Key="k-1")
        await ask(*MAKE, headers=headers, body=body(name="x"))
        answer = await ask(*MAKE, headers=headers, body=body(name="y"))
        assert (answer.status, answer.json()["code"]) == (409, "idempotency_key_reused")

    async def test_keys_are_a_token_s_own(self, ask: Callable) -> None:
        await ask(*MAKE, headers=bearer("publisher", Idempotency_Key="k-1"), body=body(name="x"))
        answer = await ask(*MAKE, headers=bearer("acme", Idempotency_Key="k-1"), body=body(name="y"))
        assert answer.json()["name"] == "y"

    @pytest.mark.parametrize("key", ["", " ", "a b", "ä", "k" * 256])
    async def test_what_is_no_key_is_refused(self, ask: Callable, things: Things, key: str) -> None:
        answer = await ask(*MAKE, headers=bearer("publisher", Idempotency_Key=key), body=body(name="x"))
        assert (answer.status, answer.json()["code"]) == (400, "bad_idempotency_key")
        assert things.calls == []


class TestPages:
    async def test_the_cursor_goes_on_where_the_page_ended(self, ask: Callable) -> None:
        headers = bearer("all")
        first = (await ask("GET", "/api/v1/things?limit=1", headers=headers)).json()
        assert [item["name"] for item in first["items"]] == ["acme"]
        path = f"/api/v1/things?limit=1&cursor={first['next_cursor']}"
        last = (await ask("GET", path, headers=headers)).json()
        assert [item["name"] for item in last["items"]] == ["other"]
        assert last["next_cursor"] is None

    async def test_a_page_that_just_holds_all_is_the_last(self, ask: Callable) -> None:
        document = (await ask("GET", "/api/v1/things?limit=2", headers=bearer("all"))).json()
        assert (len(document["items"]), document["next_cursor"]) == (2, None)

    async def test_what_is_no_cursor_is_refused(self, ask: Callable) -> None:
        answer = await ask("GET", "/api/v1/things?cursor=x", headers=bearer("all"))
        assert (answer.status, answer.json()["code"]) == (400, "bad_cursor")


async def test_requests_at_once_do_not_mix(ask: Callable, things: Things) -> None:
    answers = await asyncio.gather(
        *(ask(*MAKE, headers=bearer("publisher"), body=body(name=str(number))) for number in range(20))
    )
    assert [answer.json()["name"] for answer in answers] == [str(number) for number in range(20)]
