"""From a request to a handler and back: the same steps, in the same order, for every route.

1. Who asks (401), and may they do this in that fleet (403)? Nothing else of the request is looked at before.
2. Is the fleet there (404)?
3. Query, headers and body, by the route's declaration (400, 408, 413, 415, 422).
4. A route whose fleet is named there: 1. and 2. for that fleet.
5. The handler.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from device_sdk.wire.errors import WireError
from device_sdk.wire.names import FleetName, parse_fleet_name
from gateway.edge.operator.body import check_content_type, parse_query, read_body
from gateway.edge.operator.lately import Lately
from gateway.edge.operator.route import Answer, AnyRoute, Call, Outcome
from gateway.edge.operator.services import OperatorServices
from gateway.edge.problem import RequestError
from gateway.errors import CredentialRefusedError, NotFoundError
from gateway.fleet.acts import Replay
from gateway.fleet.model import Fleet
from gateway.identity import Operator, authenticate, authorise, token_sha256
from gateway.telemetry import logger

_log = logger("operator")

_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}\Z")
# A client that forgot the quotes means no other version.
_ETAG: Final = re.compile(r'("?)([0-9]{1,16})\1\Z')
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Dispatcher:
    """Make aiohttp's routes of ours."""

    def __init__(self, services: OperatorServices) -> None:
        self._services = services
        limits = services.limits
        # A fleet's key and name never change; its root version is read from the store by who shows it.
        self._fleets: Lately[FleetName, Fleet] = Lately(
            clock=services.clock, keep_s=limits.token_cache_s, entries_max=limits.token_cache_entries_max
        )

    def routes(self, table: Sequence[AnyRoute]) -> list[web.RouteDef]:
        """Return ``table`` as aiohttp has it."""
        # aiohttp would add HEAD to each GET; here a HEAD is a route of its own, or 405.
        return [
            web.route(
                route.method,
                route.path,
                self._handler(route),
                **({"allow_head": False} if route.method == "GET" else {}),
            )
            for route in table
        ]

    def _handler(self, route: AnyRoute) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            operator = await self._operator(request)
            fleet_name = FleetName(request.match_info["fleet"]) if route.is_fleet_bound else None
            authorise(operator, route.scope, operator.fleet if route.is_shared else fleet_name)
            fleet = await self._fleet(fleet_name) if fleet_name is not None else None
            call = await self._call(route, request, operator, fleet)
            if route.is_shared and (named := _named_fleet(call)) is not None:
                authorise(operator, route.scope, named)
                call = replace(call, found_fleet=await self._fleet(named))
            response = _response(route, call, await route.handler(call))
            if route.method not in ("GET", "HEAD"):
                (_log.debug if route.is_frequent else _log.info)(
                    "changed",
                    operation=route.operation,
                    operator=operator.name,
                    token_id=operator.token_id.hex(),
                    status=response.status,
                    **call.path,
                )
            return response

        return handle

    async def _operator(self, request: web.Request) -> Operator:
        value = request.headers.get("Authorization")
        if value is None:
            raise CredentialRefusedError("the request has no token", code="credential_missing")
        scheme, _, credential = value.partition(" ")
        if scheme.lower() != "bearer":
            raise CredentialRefusedError("the token's scheme is Bearer", code="credential_missing")
        sha256 = token_sha256(credential.strip())
        token = await self._services.believed.value(
            sha256, lambda: self._services.fleets.operator_token(sha256)
        )
        return authenticate(token, now_ms=self._services.clock.now_ms())

    async def _fleet(self, name: FleetName) -> Fleet:
        try:
            parse_fleet_name(name)
        except WireError as error:
            raise NotFoundError("there is no such fleet") from error
        fleet = await self._fleets.value(name, lambda: self._services.fleets.fleet(name))
        assert fleet is not None, "the store raises instead"
        return fleet

    async def _call(
        self, route: AnyRoute, request: web.Request, operator: Operator, fleet: Fleet | None
    ) -> Call[Any, Any]:
        query = parse_query(route.query, request.query)
        if_match = _if_match(request) if route.takes_if_match else None
        idempotency_key = _idempotency_key(request) if route.takes_idempotency_key else None
        body, sha256 = None, b""
        if route.body.is_streamed:
            check_content_type(request, route.body.content_type)
        elif route.body.content_type:
            limits = self._services.limits
            raw = await read_body(
                request,
                route.body,
                size_bytes_max=limits.body_size_bytes_max,
                timeout_s=limits.body_timeout_s,
            )
            body = route.body.parse(raw)
            if idempotency_key is not None:
                sha256 = _request_sha256(request, raw)
        elif idempotency_key is not None:
            sha256 = _request_sha256(request, b"")
        return Call(
            services=self._services,
            operator=operator,
            route=route,
            path=dict(request.match_info),
            query=query,
            body=body,
            request=request,
            found_fleet=fleet,
            if_match=if_match,
            idempotency_key=idempotency_key,
            request_sha256=sha256,
        )


def _named_fleet(call: Call[Any, Any]) -> FleetName | None:
    """Return the fleet that the request of a shared route names, or the token's own."""
    named: FleetName | None = getattr(call.body, "fleet", None) or getattr(call.query, "fleet", None)
    return named or call.operator.fleet


def _response(route: AnyRoute, call: Call[Any, Any], outcome: Outcome) -> web.StreamResponse:
    headers = dict(_HEADERS)
    match outcome:
        case web.StreamResponse():
            return outcome
        case Replay(status=status, body=body):
            headers["Idempotency-Replayed"] = "true"
        case Answer(result=result):
            status = outcome.status or route.statuses[0]
            assert status in route.statuses, f"{route.operation} does not declare {status}"
            body = b"" if result is None else result.model_dump_json().encode()
            if outcome.version is not None:
                headers["ETag"] = f'"{outcome.version}"'
    if status == 201:
        assert route.location is not None, "a route that makes something says where it is"
        headers["Location"] = route.location.format_map({**json.loads(body), **call.path})
    return web.Response(
        status=status, body=body or None, content_type="application/json" if body else None, headers=headers
    )


def _if_match(request: web.Request) -> int | None:
    value = request.headers.get("If-Match")
    if value is None or value.strip() == "*":
        return None
    found = _ETAG.match(value.strip())
    if found is None:
        raise RequestError(
            400, "bad_if_match", "If-Match is not one ETag of this API; send the one that a GET answered."
        )
    return int(found[2])


def _idempotency_key(request: web.Request) -> str | None:
    value = request.headers.get("Idempotency-Key")
    if value is not None and not _IDEMPOTENCY_KEY.match(value):
        raise RequestError(400, "bad_idempotency_key", "Idempotency-Key is 1..255 visible ASCII characters.")
    return value


def _request_sha256(request: web.Request, raw: bytes) -> bytes:
    """Return the hash of what makes two requests the same: method, path, parameters, type and body."""
    parts = (
        request.method,
        request.path,
        "&".join(sorted(f"{name}={value}" for name, value in request.query.items())),
        request.content_type,
    )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}\n".encode())
    digest.update(raw)
    return digest.digest()
