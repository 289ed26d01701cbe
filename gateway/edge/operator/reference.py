"""docs/reference/api.md, made from the table: what is not declared is not documented."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from gateway.edge.operator.body import JsonBody, Page
from gateway.edge.operator.refusals import COMMON
from gateway.edge.operator.route import AnyRoute
from gateway.edge.operator.table import SECTIONS, TABLE
from gateway.identity import Scope

_INTRODUCTION: Final = """\
# Operator API

What an operator does with a gateway, over HTTP; those commands of `fleetcast` that talk to a gateway use
nothing else. This page is made from the routes: `python -m gateway.edge.operator > docs/reference/api.md`.

## Common to all routes

**Who asks.** `Authorization: Bearer fct_…`, a token of `fleetcast token create`. A token belongs to one fleet
or to all, and has scopes; a route names the one it asks for. Every token may read; `admin` includes all. A
token of another fleet is answered 403 `permission_denied`, whether or not such a fleet exists. A revoked
token is out within 5 s.

| scope | allows |
|---|---|
{scopes}

**Values.** JSON in UTF-8. Times are milliseconds UTC, ids the text of a UUID, digests and kids lower-case
hexadecimal. A field of an answer is null where it has nothing to say, never absent. Unknown fields and
parameters, a key twice in one object, and a value of another type than the one named are refused.

**Lists.** `?limit=` 1..1000 (default 100) and `?cursor=`; the answer is `{{"items": […], "next_cursor": …}}`,
and the list ends where `next_cursor` is null. A cursor is opaque, and good for its own list alone, with the
same filters and in the same order. Where a list takes `order`, `desc` begins at its other end.

**Doing it once.** Every POST takes `Idempotency-Key` (1..255 visible ASCII characters, of your making): the
same request with the same key is done once within a day and answered the same, with
`Idempotency-Replayed: true`. The same key with another request is 409 `idempotency_key_reused`.

**Not undoing others.** Where a route says *versioned*, GET answers an `ETag`, and a change that sends it as
`If-Match` is refused with 412 `stale_version` if somebody changed the thing in between.

**Who did it.** Every change leaves a row in the [audit](#get-apiv1audit), written with the change itself.

**For programs.** `GET /api/v1/openapi.json` is this page as OpenAPI 3.1, and `GET /api/v1/docs` shows it in a
browser, without anything from elsewhere. Neither asks for a token.

**Refusals** are problem details (RFC 9457), `application/problem+json`: `type`, `title`, `status`, `code`
(stable, [codes.md](codes.md)), `detail` (what is wrong and what to do) and, where fields are wrong, `errors`,
a list of `{{"field", "detail"}}`. A 500 carries `incident`, the id under which the gateway's log has it. Any
route may answer:

| status | code | when |
|---|---|---|
{refusals}
"""

_ENUMS: Final = ("/ReasonCode", "/Scope")  # sets of codes, not objects

_SCOPES: Final[Mapping[Scope, str]] = {
    Scope.READ: "look at everything of the fleet but tokens",
    Scope.PUBLISH: "send alerts, requeue dead letters",
    Scope.DEVICES: "devices, channels, subscriptions, revocations",
    Scope.RELEASES: "upload releases and images",
    Scope.ROLLOUTS: "start, widen, pause, resume, finish, abort",
    Scope.ADMIN: "fleets, tokens, keys, root documents, and all of the above",
}


def reference() -> str:
    """Return docs/reference/api.md."""
    scopes = "\n".join(f"| `{scope}` | {_SCOPES[scope]} |" for scope in Scope)
    refusals = "\n".join(f"| {one.status} | `{one.code}` | {one.when} |" for one in COMMON)
    lines = [_INTRODUCTION.format(scopes=scopes, refusals=refusals)]
    for title, routes in SECTIONS:
        lines += [f"## {title}", ""]
        for route in routes:
            lines += _route(route)
    lines += ["## Objects", ""]
    for name, model in sorted(_models().items()):
        lines += [f"### {name}", "", _doc(model), "", *_fields(model, is_body=False), ""]
    return "\n".join(lines).rstrip() + "\n"


def _route(route: AnyRoute) -> Iterator[str]:
    yield from (f"### `{route.method} {route.path}`", "", route.summary, "")
    facts = [f"`{route.operation}`", f"scope `{route.scope}`"]
    facts += ["versioned"] if route.is_versioned else []
    facts += ["fleet by `fleet` in the request, or the token's"] if route.is_shared else []
    yield from (" · ".join(facts), "")
    if isinstance(route.body, JsonBody):
        if route.body.model.model_fields:
            yield from (
                f"Body, `{route.body.content_type}`:",
                "",
                *_fields(route.body.model, is_body=True),
                "",
            )
    elif route.body.content_type:
        yield from (f"Body: `{route.body.content_type}`.", "")
    own = [name for name in route.query.model_fields if name not in Page.model_fields]
    if issubclass(route.query, Page):
        yield from (f"Query: `limit`, `cursor`{', and:' if own else '.'}", "")
    elif own:
        yield from ("Query:", "")
    if own:
        yield from (*_fields(route.query, is_body=True, only=own), "")
    yield from (f"Answers {_answers(route)}.", "")
    if route.errors:
        errors = ", ".join(f"{status} `{code}`" for code, status in route.errors.items())
        yield from (f"Refused with {errors}.", "")


def _answers(route: AnyRoute) -> str:
    statuses = " or ".join(str(status) for status in route.statuses)
    match route.result:
        case None:
            return statuses
        case str():
            return f"{statuses}, `{route.result}`"
        case model:
            item = _item(model)
            what = f"a list of {_link(item)}" if item is not None else _link(model)
            return f"{statuses} with {what}"


def _models() -> dict[str, type[BaseModel]]:
    """Return every object that an answer holds, by name."""
    found: dict[str, type[BaseModel]] = {}
    for route in TABLE:
        if isinstance(route.result, type):
            _add(_item(route.result) or route.result, found)
    return found


def _add(model: type[BaseModel], found: dict[str, type[BaseModel]]) -> None:
    found[_name(model)] = model
    for field in model.model_fields.values():
        annotation = field.annotation
        for inner in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel) and _name(inner) not in found:
                _add(inner, found)


def _item(model: type[BaseModel]) -> type[BaseModel] | None:
    """Return what a list is a list of; None: not a list."""
    arguments = model.__pydantic_generic_metadata__["args"]
    return arguments[0] if arguments else None


def _name(model: type[BaseModel]) -> str:
    return model.__name__.removesuffix("Result")


def _link(model: type[BaseModel]) -> str:
    return f"[{_name(model)}](#{_name(model).lower()})"


def _fields(model: type[BaseModel], *, is_body: bool, only: Collection[str] = ()) -> Iterator[str]:
    schema = model.model_json_schema(mode="validation" if is_body else "serialization")
    required = set(schema.get("required", ()))
    yield from ("| field | type | meaning |", "|---|---|---|")
    for name, field in schema.get("properties", {}).items():
        if only and name not in only:
            continue
        facts = [field["description"]] if "description" in field else []
        if is_body and name in required:
            facts.insert(0, "Required.")
        elif is_body and field.get("default") not in (None, "", []):
            facts.append(f"Default {_literal(field['default'])}.")
        yield f"| `{name}` | {_type(field)} | {' '.join(facts)} |"


def _type(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "$ref" in field and str(field["$ref"]).endswith(_ENUMS):
        return "text"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        name = str(field["$ref"]).rsplit("/", 1)[-1].removesuffix("Result")
        return f"[{name}](#{name.lower()})"
    kind = field.get("type")
    if kind == "array":
        most = f", at most {field['maxItems']}" if "maxItems" in field else ""
        return f"list of {_type(field['items'])}{most}"
    if kind == "object":
        values = field.get("additionalProperties")
        return f"object of {_type(values)}" if isinstance(values, Mapping) else "object"
    return f"{kind or 'any'}{_bounds(field)}"


def _bounds(field: Mapping[str, Any]) -> str:
    low, high = field.get("minimum", field.get("minLength")), field.get("maximum", field.get("maxLength"))
    unit = " characters" if "maxLength" in field else ""
    if high is not None:
        return f", {low or 0}..{high}{unit}" if low is not None else f", at most {high}{unit}"
    if low is not None:
        return f", from {low}"
    if "pattern" in field:
        return f", `{str(field['pattern']).replace('|', chr(92) + '|')}`"
    return ""


def _literal(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _doc(model: type[BaseModel]) -> str:
    return re.sub(r"\s+", " ", model.__doc__ or "").strip()
