"""What an HTTP client is told when a request fails: problem details (RFC 9457), whatever failed.

``rejections`` says which status and which code; here is the document around them, and the one middleware
that turns every error into it, those of aiohttp's router included. Operators (``/api/``) are told what was
wrong and what to do; a device is told the code alone. A fault of ours is a 500 with an id under which the log
has it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from math import ceil
from typing import Final, NamedTuple

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from device_sdk.errors import UpdateError
from device_sdk.wire.errors import WireError
from gateway.clock import Clock
from gateway.edge.rejections import rejection
from gateway.errors import GatewayError, PeerError, UnavailableError
from gateway.telemetry import Metrics, logger

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:fleetcast:problem:"
OPERATOR_PATH: Final = "/api/"


_log = logger("edge")

# The fix, where the error's own text does not say it.
_HINTS: Final[Mapping[str, str]] = {
    "credential_missing": "Send the header Authorization: Bearer fct_….",
    "credential_refused": "Send a token made by `fleetcast token create` on this gateway's database.",
    "credential_expired": "Make another with `fleetcast token create`.",
    "credential_revoked": "Make another with `fleetcast token create`.",
    "idempotency_key_reused": "Use a new Idempotency-Key for a new request.",
    "stale_version": "Read it again, and send the ETag of what you read as If-Match.",
    "storage_unavailable": (
        "The database does not answer in time. Whether anything was changed is unknown: repeat the request, "
        "with the same Idempotency-Key where it takes one."
    ),
    "unavailable": "Repeat the request later.",
}
_HTTP_CODES: Final[Mapping[int, tuple[str, str]]] = {
    404: ("no_such_route", "There is nothing at this path; docs/reference/api.md has every route."),
    405: ("method_not_allowed", "This path has other methods; the header Allow names them."),
    413: ("too_large", "The body is longer than this route allows."),
    415: ("unsupported_media_type", "This route takes another Content-Type."),
}


class FieldError(NamedTuple):
    """One thing that is wrong with a request. ``field`` is a dotted path into the body, or a parameter."""

    field: str
    detail: str


class RequestError(PeerError):
    """A request that HTTP or the route's declaration refuses, with the status that says so."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail, code=code)
        self.status = status
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document. Its type and its title follow from ``code``."""

    status: int
    code: str
    detail: str | None = None
    errors: tuple[FieldError, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    incident: str | None = None

    def response(self) -> web.Response:
        """Return the answer."""
        document: dict[str, object] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "code": self.code,
        }
        if self.detail:
            document["detail"] = self.detail
        if self.errors:
            document["errors"] = [error._asdict() for error in self.errors]
        if self.incident is not None:
            document["incident"] = self.incident
        response = web.Response(
            status=self.status,
            body=msgspec.json.encode(document),
            content_type=CONTENT_TYPE,
            headers={"Cache-Control": "no-store", **self.headers},
        )
        if self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            response.force_close()  # the rest of the body is not read
        return response


def problem_of(error: WireError | UpdateError | GatewayError, *, is_operator: bool) -> Problem:
    """Return what the client that caused or met ``error`` is told."""
    told = rejection(error)
    status = told.http_status
    headers: Mapping[str, str] = {}
    errors: tuple[FieldError, ...] = ()
    if isinstance(error, RequestError):
        status, headers, errors = error.status, error.headers, error.errors
    elif told.code == "stale_version":
        status = HTTPStatus.PRECONDITION_FAILED  # RFC 9110 §13.1.1: If-Match is false
    if status == HTTPStatus.UNAUTHORIZED:
        invalid = "" if told.code == "credential_missing" else ', error="invalid_token"'  # RFC 6750 §3
        headers = {**headers, "WWW-Authenticate": f'Bearer realm="fleetcast"{invalid}'}
    if told.retry_after_s is not None:
        headers = {**headers, "Retry-After": str(max(1, ceil(told.retry_after_s)))}
    detail = _detail(error, told.code) if is_operator else None
    return Problem(int(status), told.code, detail, errors if is_operator else (), headers)


def problem_of_http(error: web.HTTPException, *, is_operator: bool) -> Problem:
    """Return aiohttp's own refusal as a problem; ``Allow`` stays."""
    code, detail = _HTTP_CODES.get(error.status, ("bad_request", ""))
    headers = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    return Problem(error.status, code, detail if is_operator else None, headers=headers)


def problem_middleware(*, metrics: Metrics, clock: Clock) -> Middleware:
    """Return the middleware that answers every error as a problem and counts every answer.

    It must be the outermost one. An answer that has begun cannot be taken back: its handler cuts the
    connection.
    """

    @web.middleware
    async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = clock.monotonic()
        is_operator = request.path.startswith(OPERATOR_PATH)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            if error.status < HTTPStatus.BAD_REQUEST:
                raise
            response = problem_of_http(error, is_operator=is_operator).response()
        except web.RequestPayloadError:
            problem = Problem(400, "body_incomplete", "The body is not whole, or not encoded as it says.")
            response = problem.response()
        except ConnectionError:
            raise  # the peer is gone, aiohttp closes
        except Exception as error:
            response = _problem_of_any(error, request, is_operator=is_operator).response()
        metrics.http_answered(_pattern(request), response.status, clock.monotonic() - started)
        return response

    return problems


def _problem_of_any(error: Exception, request: web.Request, *, is_operator: bool) -> Problem:
    if isinstance(error, WireError | UpdateError | GatewayError):
        problem = problem_of(error, is_operator=is_operator)
        if problem.status != HTTPStatus.INTERNAL_SERVER_ERROR:
            return problem
    incident = secrets.token_hex(8)
    _log.error(
        "request_failed",
        incident=incident,
        method=request.method,
        route=_pattern(request),
        exc_info=error,
    )
    detail = f"A fault of the gateway; its log has it as incident {incident}." if is_operator else None
    return Problem(500, "internal", detail, incident=incident)


def _detail(error: Exception, code: str) -> str:
    hint = _HINTS.get(code, "")
    # Why a dependency is down is for the log.
    text = "" if isinstance(error, UnavailableError) and hint else str(error)
    if text:
        text = text[0].upper() + text[1:]
        text += "" if text.endswith((".", "!", "?")) else "."
    return f"{text} {hint}".strip()


def _pattern(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"
