"""The OpenAPI 3.1 document, made from the table that routes and validates: they cannot say different things.

It is served at ``/api/v1/openapi.json``; nothing in it depends on who asks.

Every answer has its schema, every refusal its codes (``refusals``), every model its example (``examples``).
What a 201 made is linked to the operations on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.edge.operator.body import JsonBody, NoBody, StreamedBody
from gateway.edge.operator.examples import EXAMPLES, IDS, PARAMETERS
from gateway.edge.operator.limits import OperatorLimits
from gateway.edge.operator.refusals import COMMON, refusals_of
from gateway.edge.operator.route import AnyRoute, ListOf
from gateway.edge.operator.table import SECTIONS, TABLE
from gateway.edge.problem import CONTENT_TYPE as PROBLEM

VERSION: Final = "1"  # of the API, which is in its paths
JSON: Final = "application/json"

_DESCRIPTION: Final = """\
What an operator does with a gateway. Tokens are made by `fleetcast token create` or by `POST /api/v1/tokens`;
a token belongs to one fleet or to all, and has scopes. Times are milliseconds UTC, ids the text of a UUID,
digests and kids lower-case hexadecimal. docs/reference/api.md says the same for readers, and
docs/reference/codes.md has every code."""

_NAME: Final = r"^[A-Za-z0-9._:-][A-Za-z0-9._~:-]{0,127}$"
_UUID: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_ETAG: Final = r'^(\*|"[0-9]{1,16}"|[0-9]{1,16})$'
_WHEN: Final = {one.code: one.when for one in COMMON}

_PATH_SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "fleet": {"type": "string", "pattern": _NAME},
    "channel": {"type": "string", "pattern": r"^[A-Za-z0-9._~:-]{1,128}$"},
    "device_id": {"type": "string", "pattern": r"^[A-Za-z0-9._:-][A-Za-z0-9._~:-]{0,126}$"},
    "id": {"type": "string", "format": "uuid", "pattern": _UUID},
    "kid": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}
# A dead letter is counted, not named.
_NUMBER: Final = {"type": "string", "pattern": "^[0-9]{1,18}$"}


def document(limits: OperatorLimits) -> dict[str, Any]:
    """Return the document of a gateway with these limits."""
    schemas = _schemas()
    schemas["AlertBody"]["properties"]["ttl_s"]["anyOf"][0]["maximum"] = limits.ttl_max_s
    shared = _Shared()
    paths: dict[str, dict[str, Any]] = {}
    for title, routes in SECTIONS:
        for route in routes:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, title, shared)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fleetcast operator API",
            "version": VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This gateway."}],
        "tags": [{"name": title} for title, _ in SECTIONS],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "fct_…",
                    "description": "An operator's token.",
                }
            },
            "schemas": schemas,
            "responses": shared.responses,
        },
    }


def _operation(route: AnyRoute, tag: str, shared: _Shared) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": route.operation,
        "tags": [tag],
        "summary": route.summary,
        "description": f"Scope `{route.scope}`.",
        "parameters": list(_parameters(route)),
        "responses": dict(_responses(route, shared)),
    }
    if not isinstance(route.body, NoBody):
        found["requestBody"] = _request_body(route)
    return found


# --- what is asked --------------------------------------------------------------------------------------


def _parameters(route: AnyRoute) -> Iterator[dict[str, Any]]:
    for name in route.parameters:
        example, schema = PARAMETERS.get(name), _PATH_SCHEMAS[name]
        if name == "id":
            of = route.path.partition("/{id}")[0].rsplit("/", 1)[-1]
            example = IDS[of]
            schema = _NUMBER if of == "dead-letters" else schema
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "schema": dict(schema),
            "example": example,
        }
    schema = route.query.model_json_schema()
    required = schema.get("required", ())
    for name, declared in schema.get("properties", {}).items():
        parameter = {"name": name, "in": "query", "required": name in required}
        if "description" in declared:
            parameter["description"] = declared["description"]
        if name in required:
            parameter["example"] = PARAMETERS[name]
        yield parameter | {"schema": _without_null(declared)}
    if route.takes_idempotency_key:
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "The same request with the same key is done once and answered the same.",
            "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
            "example": "2f1c0d4e-nightly-7",
        }
    if route.takes_if_match:
        yield {
            "name": "If-Match",
            "in": "header",
            "required": False,
            "description": "The ETag that the client last saw; refused with 412 if it is another by now.",
            "schema": {"type": "string", "pattern": _ETAG},
            "example": '"3"',
        }


def _request_body(route: AnyRoute) -> dict[str, Any]:
    body = route.body
    if isinstance(body, JsonBody):
        name = _component(body.model)
        media = {"schema": {"$ref": f"#/components/schemas/{name}"}, "example": EXAMPLES[name]}
        return {"required": not body.is_optional, "content": {JSON: media}}
    what = "The image." if isinstance(body, StreamedBody) else "The signed object, as it is."
    return {"required": True, "description": what, "content": {body.content_type: {"schema": {}}}}


# --- what is answered -----------------------------------------------------------------------------------


class _Shared:
    """Refusals that many operations have, each told once."""

    def __init__(self) -> None:
        self.responses: dict[str, dict[str, Any]] = {}
        self._names: dict[tuple[bool, int, tuple[str, ...]], str] = {}

    def of(self, route: AnyRoute, status: int, codes: Sequence[str]) -> dict[str, Any]:
        """Return a reference to the refusal with ``status`` and ``codes``."""
        is_empty = route.method == "HEAD"
        key = (is_empty, status, tuple(codes))
        name = self._names.get(key)
        if name is None:
            count = sum(known[1] == status for known in self._names)
            name = self._names[key] = f"Refused{status}" + (f"_{count + 1}" if count else "")
            self.responses[name] = _refusal(status, codes, is_empty=is_empty)
        return {"$ref": f"#/components/responses/{name}"}


def _responses(route: AnyRoute, shared: _Shared) -> Iterator[tuple[str, dict[str, Any]]]:
    for status in route.statuses:
        yield str(status), _success(route, status)
    for status, codes in refusals_of(route).items():
        yield str(status), shared.of(route, status, codes)


def _success(route: AnyRoute, status: int) -> dict[str, Any]:
    found: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    headers = dict(_headers(route, status))
    if headers:
        found["headers"] = headers
    has_body = status not in (204, 304) and route.method != "HEAD"
    if route.result is not None and has_body:
        found["content"] = _content(route.result)
    links = dict(_links(route)) if status == 201 else {}
    if links:
        found["links"] = links
    return found


def _content(result: type[BaseModel] | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {result: {"schema": {}}}
    name = _component(result)
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}, "example": EXAMPLES[name]}}


def _headers(route: AnyRoute, status: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if route.is_versioned and route.method != "DELETE":
        yield "ETag", {"description": "The version.", "required": True, "schema": {"type": "string"}}
    if status == 201:
        yield (
            "Location",
            {
                "description": "Where it is.",
                "required": True,
                "schema": {"type": "string", "format": "uri-reference"},
            },
        )
    if route.takes_idempotency_key:
        yield (
            "Idempotency-Replayed",
            {
                "description": "There, and `true`, if the request was done before.",
                "schema": {"type": "string", "enum": ["true"]},
            },
        )


def _refusal(status: int, codes: Sequence[str], *, is_empty: bool) -> dict[str, Any]:
    told = (f"`{code}`: {_WHEN[code]}" if code in _WHEN else f"`{code}`" for code in codes)
    found: dict[str, Any] = {"description": "; ".join(told)}
    if status == HTTPStatus.UNAUTHORIZED:
        found["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        found["headers"] = {"Retry-After": {"required": True, "schema": {"type": "string"}}}
    if not is_empty:
        schema = {
            "allOf": [{"$ref": "#/components/schemas/Problem"}],
            "properties": {"code": {"enum": list(codes)}, "status": {"const": status}},
        }
        found["content"] = {PROBLEM: {"schema": schema, "example": _problem_example(status, codes[-1])}}
    return found


def _problem_example(status: int, code: str) -> dict[str, Any]:
    return {
        "type": f"urn:fleetcast:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "code": code,
    }


# --- links ----------------------------------------------------------------------------------------------


def _links(route: AnyRoute) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a link to each operation on what this one made, and to what is listed and made right below it."""
    assert route.location is not None, "a route that makes something says where it is"
    place = route.location.split("/")
    for other in TABLE:
        parts = other.path.split("/")
        # Below it, without a further parameter.
        if len(parts) < len(place) or any(part.startswith("{") for part in parts[len(place) :]):
            continue
        if not all(a == b or a[:1] == b[:1] == "{" for a, b in zip(place, parts, strict=False)):
            continue
        is_list = isinstance(other.result, type) and issubclass(other.result, ListOf)
        if len(parts) > len(place) and other.method != "POST" and not is_list:
            continue  # it need not be there
        parameters = {
            part[1:-1]: _expression(route, made[1:-1])
            for made, part in zip(place, parts, strict=False)
            if part.startswith("{")
        }
        if other.operation != route.operation:
            yield other.operation, {"operationId": other.operation, "parameters": parameters}


def _expression(route: AnyRoute, name: str) -> str:
    return f"$request.path.{name}" if name in route.parameters else f"$response.body#/{name}"


# --- schemas --------------------------------------------------------------------------------------------


def _schemas() -> dict[str, Any]:
    """Return the schema of every body and every answer, by the name of its component."""
    models: dict[tuple[type[BaseModel], Any], None] = {}
    for route in TABLE:
        if isinstance(route.body, JsonBody):
            models[route.body.model, "validation"] = None
        if isinstance(route.result, type):
            models[route.result, "serialization"] = None
    _, found = models_json_schema(tuple(models), ref_template="#/components/schemas/{model}")
    renamed = {name: _renamed(name) for name in found["$defs"]}
    schemas = {renamed[name]: _tidied(schema, renamed) for name, schema in sorted(found["$defs"].items())}
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]
    schemas["Problem"] = _PROBLEM
    return schemas


_PROBLEM: Final[Mapping[str, Any]] = {
    "title": "Problem",
    "description": "Why a request was refused (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable; docs/reference/codes.md has each."},
        "detail": {"type": "string", "description": "What is wrong, and what to do."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "detail"],
                "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
        "incident": {"type": "string", "description": "Of a 500: under which the gateway's log has it."},
    },
}


def _component(model: type[BaseModel]) -> str:
    arguments = model.__pydantic_generic_metadata__["args"]
    if arguments and issubclass(model, ListOf):
        return _renamed(arguments[0].__name__) + "List"
    return _renamed(model.__name__)


def _renamed(name: str) -> str:
    """Return the component's name of a model's: ``DeviceResult`` is a Device."""
    of_list = re.fullmatch(r"ListOf_(\w+)_", name)
    if of_list:
        return _renamed(of_list[1]) + "List"
    return name.removesuffix("Result")


def _tidied(schema: Any, renamed: Mapping[str, str]) -> Any:
    """Return ``schema`` with its references renamed, and without titles that repeat a field's name."""
    if isinstance(schema, list):
        return [_tidied(item, renamed) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        if key == "$ref":
            value = "#/components/schemas/" + renamed[str(value).rsplit("/", 1)[-1]]
        elif key == "properties":
            value = {name: _tidied(item, renamed) for name, item in value.items()}
        else:
            value = _tidied(value, renamed)
        found[key] = value
    return found


def _without_null(declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter, which is there or is not, and never null."""
    found = {key: value for key, value in declared.items() if key not in ("title", "description")}
    options = found.pop("anyOf", None)
    if options is not None:
        (one,) = [option for option in options if option != {"type": "null"}]
        found |= {key: value for key, value in one.items() if key not in ("title", "description")}
    if found.get("default", ...) is None:
        del found["default"]
    return found
