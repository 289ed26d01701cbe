from __future__ import annotations

from typing import Any

import pytest
from multidict import MultiDict
from pydantic import Field

from gateway.edge.operator.alerts import AlertBody
from gateway.edge.operator.body import Page, Strict, check_depth, parse_json, parse_query, validate
from gateway.edge.operator.channels import ChannelChangeBody
from gateway.edge.operator.devices import DeviceBody, DeviceChangeBody
from gateway.edge.problem import RequestError
from gateway.errors import LimitExceededError


class Example(Strict):
    name: str
    count: int = Field(default=0, ge=0)


def refused(document: object, model: type[Strict] = Example) -> RequestError:
    with pytest.raises(RequestError) as caught:
        validate(model, document, code="invalid_body", status=422)
    return caught.value


class TestJson:
    @pytest.mark.parametrize(
        ("raw", "value"),
        [(b"{}", {}), (b'{"a":[1,2.5,null]}', {"a": [1, 2.5, None]}), (b'"\\ud83d\\ude00"', "😀")],
    )
    def test_read(self, raw: bytes, value: object) -> None:
        assert parse_json(raw) == value

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{",
            b"{} {}",
            b"\xef\xbb\xbf{}",
            b'{"a":1,"a":2}',
            b'{"a":{"b":1,"b":1}}',
            b'{"a":NaN}',
            b'{"a":-Infinity}',
            b'{"a":1e999}',
            b'{"a":"\xff"}',
            b'{"a":"\\ud800"}',
            b'{"\\udc00":1}',
            b"[" * 100_000,
            b"1" * 5000,
            '{"a":1}'.encode("utf-16"),
        ],
        ids=lambda raw: repr(raw[:16]),
    )
    def test_refused(self, raw: bytes) -> None:
        with pytest.raises(RequestError) as caught:
            parse_json(raw)
        assert (caught.value.status, caught.value.code) == (400, "malformed_json")

    def test_depth_is_bounded(self) -> None:
        nested: Any = 1
        for _ in range(64):
            nested = [nested]
        check_depth(nested)
        with pytest.raises(ValueError, match="nested"):
            check_depth({"a": nested})


class TestModel:
    @pytest.mark.parametrize(
        ("document", "field"),
        [
            ({}, "name"),
            ({"name": 1}, "name"),
            ({"name": "a", "count": "1"}, "count"),
            ({"name": "a", "count": 1.0}, "count"),
            ({"name": "a", "count": True}, "count"),
            ({"name": "a", "count": -1}, "count"),
            ({"name": "a", "other": 1}, "other"),
            ([], ""),
            (None, ""),
        ],
    )
    def test_another_type_or_an_unknown_field_is_refused(self, document: object, field: str) -> None:
        error = refused(document)
        assert (error.status, error.code) == (422, "invalid_body")
        assert [fault.field for fault in error.errors] == [field]

    def test_every_fault_is_named_at_once(self) -> None:
        error = refused({"count": "1", "other": 2})
        assert {fault.field for fault in error.errors} == {"name", "count", "other"}
        assert "(2 more)" in str(error)

    def test_a_hostile_body_makes_no_long_answer(self) -> None:
        error = refused({"x" * 1000 + str(number): number for number in range(1000)})
        assert len(error.errors) == 20
        assert all(len(fault.field) <= 128 for fault in error.errors)


class TestQuery:
    def test_pages_have_defaults(self) -> None:
        assert parse_query(Page, MultiDict()) == Page(limit=100, cursor=None)

    @pytest.mark.parametrize("limit", ["1", "1000"])
    def test_limit(self, limit: str) -> None:
        assert parse_query(Page, MultiDict({"limit": limit})).limit == int(limit)

    @pytest.mark.parametrize(
        "query",
        [
            [("limit", "0")],
            [("limit", "1001")],
            [("limit", "-1")],
            [("limit", "1.0")],
            [("limit", "1_0")],
            [("limit", " 1")],
            [("limit", "٣")],
            [("limit", "9" * 5000)],
            [("limit", "")],
            [("limit", "1"), ("limit", "1")],
            [("offset", "1")],
        ],
    )
    def test_refused(self, query: list[tuple[str, str]]) -> None:
        with pytest.raises(RequestError) as caught:
            parse_query(Page, MultiDict(query))
        assert (caught.value.status, caught.value.code) == (400, "invalid_query")


def alert(document: object) -> AlertBody:
    return validate(AlertBody, document, code="invalid_body", status=422)


class TestAlert:
    @pytest.mark.parametrize(
        ("document", "data", "content_type"),
        [
            ({"text": "grüß"}, "grüß".encode(), "text/plain; charset=utf-8"),
            ({"text": ""}, b"", "text/plain; charset=utf-8"),
            ({"json": {"b": 1, "a": ["ü"]}}, '{"b":1,"a":["ü"]}'.encode(), "application/json"),
            ({"json": False}, b"false", "application/json"),
            ({"data": "_-8"}, b"\xff\xef", "application/octet-stream"),
            ({"data": ""}, b"", "application/octet-stream"),
            ({"data": "AA", "content_type": "application/cbor"}, b"\0", "application/cbor"),
            ({"text": "<a/>", "content_type": "text/xml; charset=utf-8"}, b"<a/>", "text/xml; charset=utf-8"),
        ],
    )
    def test_content(self, document: object, data: bytes, content_type: str) -> None:
        assert alert(document).content() == (data, content_type)

    @pytest.mark.parametrize(
        "document",
        [
            {},
            {"text": None},
            {"json": None},
            {"text": "a", "json": 1},
            {"text": "a", "data": "AA"},
            {"json_": 1},
            {"text": "a", "content_type": "text"},
            {"text": "a", "content_type": "text/plain\nx: y"},
            {"text": "a", "content_type": "text/" + "a" * 200},
            {"text": "a", "ttl_s": 0},
            {"text": "a", "ttl_s": 1.5},
            {"text": "a", "key": ""},
            {"text": "a", "key": "k" * 129},
            {"text": "a", "key": "k\0"},
        ],
    )
    def test_refused(self, document: object) -> None:
        assert refused(document, AlertBody).code == "invalid_body"

    @pytest.mark.parametrize("data", ["AA==", "A", "AB", "A A", "A+8", "AA\n"])
    def test_bytes_have_one_form(self, data: str) -> None:
        with pytest.raises(RequestError) as caught:
            alert({"data": data}).content()
        assert caught.value.errors[0].field == "data"

    def test_64_kib_is_the_bound(self) -> None:
        assert len(alert({"text": "a" * 65_536}).content()[0]) == 65_536
        with pytest.raises(LimitExceededError):
            alert({"text": "a" * 65_537}).content()


class TestChanges:
    def test_what_is_not_there_stays_and_null_is_the_default(self) -> None:
        assert ChannelChangeBody().changes() == {}
        assert ChannelChangeBody(retention_age_s=None).changes() == {"retention_age_s": None}
        assert ChannelChangeBody(starts_at_earliest=None).changes() == {}
        assert DeviceChangeBody(tags=[]).changes() == {"tags": []}
        assert DeviceChangeBody(is_enabled=None).changes() == {}

    @pytest.mark.parametrize(
        "document",
        [
            {"device_id": "~a"},
            {"device_id": ""},
            {"device_id": "a" * 128},
            {"device_id": "a b"},
            {"device_id": "a\n"},
            {"device_id": "a", "tags": ["x", "x"]},
            {"device_id": "a", "tags": ["x y"]},
            {"device_id": "a", "tags": [str(number) for number in range(33)]},
        ],
    )
    def test_devices_that_could_not_be(self, document: object) -> None:
        assert refused(document, DeviceBody).code == "invalid_body"
