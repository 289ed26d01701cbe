"""The OpenAPI document against the table it is made from, and the page that shows it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gateway.edge.operator import OperatorLimits
from gateway.edge.operator.body import JsonBody, Strict
from gateway.edge.operator.examples import EXAMPLES
from gateway.edge.operator.openapi import _component, document
from gateway.edge.operator.pages import POLICY, page_routes
from gateway.edge.operator.refusals import refusals_of
from gateway.edge.operator.route import AnyRoute
from gateway.edge.operator.table import TABLE

DOCS = Path(__file__).parents[5] / "gateway/edge/operator/docs"
DOCUMENT = document(OperatorLimits(ttl_max_s=1000))
MODELS = {
    _component(model): model
    for route in TABLE
    for model in (route.result, getattr(route.body, "model", None))
    if isinstance(model, type)
}


def values(node: Any, key: str) -> Iterator[Any]:
    """Yield everything under ``key``, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from values(item, key)


def operation_of(route: AnyRoute) -> Any:
    return DOCUMENT["paths"][route.path][route.method.lower()]


@pytest.mark.parametrize("route", TABLE, ids=lambda route: route.operation)
class TestEveryOperation:
    def test_is_there_with_all_that_it_takes(self, route: AnyRoute) -> None:
        operation = operation_of(route)
        assert operation["operationId"] == route.operation
        parameters = {(one["in"], one["name"]) for one in operation["parameters"]}
        wanted = {("path", name) for name in route.parameters}
        wanted |= {("query", name) for name in route.query.model_fields}
        wanted |= {("header", "Idempotency-Key")} if route.method == "POST" else set()
        wanted |= {("header", "If-Match")} if route.takes_if_match else set()
        assert parameters == wanted
        assert ("requestBody" in operation) == bool(route.body.content_type)

    def test_says_every_answer_and_every_refusal_with_its_codes(self, route: AnyRoute) -> None:
        responses = operation_of(route)["responses"]
        refusals = refusals_of(route)
        assert set(responses) == {str(status) for status in (*route.statuses, *refusals)}
        for status, codes in refusals.items():
            name = responses[str(status)]["$ref"].rsplit("/", 1)[-1]
            shared = DOCUMENT["components"]["responses"][name]
            assert all(f"`{code}`" in shared["description"] for code in codes)
            if route.method != "HEAD":
                (schema,) = values(shared["content"], "schema")
                assert schema["properties"]["code"]["enum"] == codes
                assert schema["properties"]["status"]["const"] == status

    def test_its_parameters_are_never_null(self, route: AnyRoute) -> None:
        for parameter in operation_of(route)["parameters"]:
            assert "anyOf" not in parameter["schema"]
            assert parameter["schema"].get("default", "") is not None


def test_every_reference_leads_somewhere() -> None:
    for reference in values(DOCUMENT, "$ref"):
        node = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_a_link_names_an_operation_and_all_that_its_path_takes() -> None:
    routes = {route.operation: route for route in TABLE}
    links = [link for group in values(DOCUMENT["paths"], "links") for link in group.values()]
    assert len(links) > 30
    for link in links:
        assert set(link["parameters"]) == set(routes[link["operationId"]].parameters)


def test_what_a_201_made_is_linked_to_what_can_be_done_with_it() -> None:
    made = DOCUMENT["paths"]["/api/v1/fleets/{fleet}/devices"]["post"]["responses"]["201"]
    assert made["links"]["devices.show"]["parameters"] == {
        "fleet": "$request.path.fleet",
        "device_id": "$response.body#/device_id",
    }
    assert {"devices.change", "devices.delete", "devices.deployments"} <= set(made["links"])


def test_limits_of_the_gateway_are_in_it() -> None:
    ttl = DOCUMENT["components"]["schemas"]["AlertBody"]["properties"]["ttl_s"]
    assert ttl["anyOf"][0]["maximum"] == 1000


def test_it_is_json() -> None:
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


class TestExamples:
    def test_every_model_has_one(self) -> None:
        assert set(MODELS) <= set(EXAMPLES) <= set(DOCUMENT["components"]["schemas"])

    @pytest.mark.parametrize("name", sorted(MODELS))
    def test_each_is_what_it_is_an_example_of(self, name: str) -> None:
        model: type[BaseModel] = MODELS[name]
        example = dict(EXAMPLES[name])
        shown = model.model_validate_json(json.dumps(example))
        if not issubclass(model, Strict):  # an answer leaves no field out
            assert json.loads(shown.model_dump_json(by_alias=True)) == example

    def test_bodies_are_strict(self) -> None:
        assert all(issubclass(r.body.model, Strict) for r in TABLE if isinstance(r.body, JsonBody))


class TestPage:
    @pytest.fixture
    def ask(self, ask_of: Callable[..., Any]) -> Any:
        return ask_of(page_routes(OperatorLimits()))

    async def test_the_document_is_given_without_a_token_and_once(self, ask: Any) -> None:
        answer = await ask("GET", "/api/v1/openapi.json")
        assert (answer.status, answer.json()["openapi"]) == (200, "3.1.0")
        again = await ask("GET", "/api/v1/openapi.json", headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status, again.body) == (304, b"")
        other = await ask("GET", "/api/v1/openapi.json", headers={"If-None-Match": '"x"'})
        assert other.status == 200

    def test_it_brings_no_script_and_no_style_of_its_own(self) -> None:
        page = (DOCS / "index.html").read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", page)
        assert "http:" not in page
        assert "https:" not in page
        assert "'unsafe" not in POLICY
        assert POLICY.startswith("default-src 'none'; script-src 'self'")

    def test_the_page_asks_no_validator(self) -> None:
        assert "validatorUrl: null" in (DOCS / "docs.js").read_text()

    def test_what_is_vendored_is_what_was_published_with_its_licence(self) -> None:
        sums = dict(line.split("  ")[::-1] for line in (DOCS / "vendor/SHA256SUMS").read_text().splitlines())
        assert set(sums) == {path.name for path in (DOCS / "vendor").iterdir()} - {"SHA256SUMS"}
        assert "LICENSE" in sums
        for name, sha256 in sums.items():
            assert hashlib.sha256((DOCS / "vendor" / name).read_bytes()).hexdigest() == sha256, name
