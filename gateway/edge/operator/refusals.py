"""What a route may refuse a request with, and when: its own codes, and those that follow from what it takes.

The reference and the OpenAPI document are made from it; a test holds what is answered against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from gateway.edge.operator.body import JsonBody, NoBody, Page
from gateway.edge.operator.route import AnyRoute


class Refusal(NamedTuple):
    """A code, the status it comes with, and what it is for."""

    code: str
    status: int
    when: str


COMMON: Final[tuple[Refusal, ...]] = (
    Refusal("bad_request", 400, "the request is not HTTP as it should be"),
    Refusal("malformed_json", 400, "the body is not JSON"),
    Refusal("body_incomplete", 400, "the body is not whole, or not encoded as it says"),
    Refusal("invalid_query", 400, "a parameter is unknown, there twice, or not what it must be"),
    Refusal("bad_cursor", 400, "`cursor` is not one that this list gave"),
    Refusal("bad_idempotency_key", 400, "`Idempotency-Key` is not one"),
    Refusal("bad_if_match", 400, "`If-Match` is not an ETag of this API"),
    Refusal("credential_missing", 401, "no token"),
    Refusal("credential_refused", 401, "no token of this gateway"),
    Refusal("credential_expired", 401, "the token's time is over"),
    Refusal("credential_revoked", 401, "the token was taken back"),
    Refusal("permission_denied", 403, "without the scope, or for another fleet"),
    Refusal("not_found", 404, "nothing there"),
    Refusal("no_such_route", 404, "nothing at this path, ever"),
    Refusal("method_not_allowed", 405, "`Allow` names the methods of the path"),
    Refusal("body_timeout", 408, "the body did not come in time"),
    Refusal("idempotency_key_reused", 409, "the key was used for another request"),
    Refusal("stale_version", 412, "`If-Match` is not the version that is there"),
    Refusal("too_large", 413, "the body, or what is in it, is longer than it may be"),
    Refusal("unsupported_media_type", 415, "another `Content-Type`, or a `Content-Encoding`"),
    Refusal("invalid_body", 422, "a field is missing, unknown or not what it must be"),
    Refusal("internal", 500, "a fault of the gateway"),
    Refusal("storage_unavailable", 503, "the database does not answer; `Retry-After`: when to come again"),
    Refusal("unavailable", 503, "another dependency is down"),
)
_COMMON: Final[Mapping[str, Refusal]] = {one.code: one for one in COMMON}

_ALWAYS: Final = (
    "bad_request",
    "invalid_query",
    "credential_missing",
    "credential_refused",
    "credential_expired",
    "credential_revoked",
    "permission_denied",
    "internal",
    "storage_unavailable",
    "unavailable",
)
_OF_A_BODY: Final = ("body_incomplete", "body_timeout", "too_large", "unsupported_media_type")


def refusals_of(route: AnyRoute) -> dict[int, list[str]]:
    """Return the codes that ``route`` may answer, by status."""
    codes = list(_ALWAYS)
    if issubclass(route.query, Page):
        codes.append("bad_cursor")
    if route.parameters or route.is_shared:
        codes.append("not_found")
    if not isinstance(route.body, NoBody):
        codes += _OF_A_BODY
    if isinstance(route.body, JsonBody):
        codes += ("malformed_json", "invalid_body")
    if route.takes_idempotency_key:
        codes += ("bad_idempotency_key", "idempotency_key_reused")
    if route.takes_if_match:
        codes += ("bad_if_match", "stale_version")
    found = {code: _COMMON[code].status for code in codes} | dict(route.errors)
    by_status: dict[int, list[str]] = {}
    for code, status in sorted(found.items(), key=lambda item: item[1]):
        by_status.setdefault(status, []).append(code)
    return by_status
