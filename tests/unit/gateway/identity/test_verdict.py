from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from device_sdk.wire.errors import MalformedError
from gateway.identity import (
    ChannelGrant,
    Verdict,
    parse_claims,
    parse_json,
    parse_verdict,
    parse_verdict_headers,
)

GOOD = {
    "device_id": "dev-1",
    "fleet": "acme",
    "channels": [{"name": "ops", "kind": "alert"}, {"name": "fw:beta", "kind": "update"}],
    "attributes": {"model": "tc3", "cores": 2, "load": 0.5, "lab": True},
    "expires_at": 1_900_000_000_000,
}
VERDICT = Verdict(
    device_id="dev-1",
    fleet="acme",
    channels=(ChannelGrant("fw:beta", "update"), ChannelGrant("ops", "alert")),
    attributes={"model": "tc3", "cores": 2, "load": 0.5, "lab": True},
    expires_at=1_900_000_000_000,
)
HEADERS = {
    "Fleetcast-Device": "dev-1",
    "Fleetcast-Fleet": "acme",
    "Fleetcast-Channels": "alert:ops, update:fw:beta",
    "Fleetcast-Attributes": json.dumps(GOOD["attributes"]),
    "Fleetcast-Expires": "1900000000000",
}


class TestForms:
    def test_the_four_forms_say_the_same(self):
        claims = {name: GOOD[name] for name in ("fleet", "channels", "attributes")}
        claims |= {"sub": "dev-1", "exp": 1_900_000_000}
        assert parse_verdict(parse_json(json.dumps(GOOD).encode())) == VERDICT
        assert parse_claims({**claims, "active": True}) == VERDICT
        assert parse_verdict_headers(CIMultiDict(HEADERS)) == VERDICT

    def test_device_and_fleet_are_enough(self):
        least = Verdict(device_id="d", fleet="f")
        assert parse_verdict({"device_id": "d", "fleet": "f"}) == least
        assert parse_claims({"sub": "d", "fleet": "f"}) == least
        assert parse_verdict_headers({"Fleetcast-Device": "d", "Fleetcast-Fleet": "f"}) == least

    def test_null_is_absent(self):
        document = {"device_id": "d", "fleet": "f", "channels": None, "attributes": None, "expires_at": None}
        assert parse_verdict(document) == Verdict(device_id="d", fleet="f")
        assert parse_verdict({**GOOD, "attributes": {"region": None}}).attributes == {}

    def test_keys_that_are_not_ours_are_ignored(self):
        assert parse_verdict({**GOOD, "user": {"name": "x"}, "roles": []}) == VERDICT

    def test_a_channel_named_twice_the_same_way_is_one(self):
        assert parse_verdict({**GOOD, "channels": GOOD["channels"] * 2}) == VERDICT

    @pytest.mark.parametrize(
        ("iat", "issued_at"), [(7, 7000), (1.5, 1500), ("7", None), (-1, None), (None, None)]
    )
    def test_iat_is_read_where_it_is_one_and_never_needed(self, iat, issued_at):
        assert parse_claims({"sub": "d", "fleet": "f", "iat": iat}).issued_at == issued_at

    def test_exp_may_have_a_fraction(self):
        assert parse_claims({"sub": "d", "fleet": "f", "exp": 1.5}).expires_at == 1500


LONG = [{"name": f"c{n}", "kind": "alert"} for n in range(64)]


@pytest.mark.parametrize(
    "changes",
    [
        {"device_id": None},
        {"device_id": 7},
        {"device_id": ""},
        {"device_id": "a b"},
        {"device_id": "~dev-1"},
        {"device_id": "d" * 128},
        {"device_id": "dev-1\n"},
        {"fleet": None},
        {"fleet": "a/b"},
        {"fleet": ["acme"]},
        {"channels": "ops"},
        {"channels": {"ops": "alert"}},
        {"channels": ["ops"]},
        {"channels": [{"name": "ops"}]},
        {"channels": [{"name": "ops", "kind": "Alert"}]},
        {"channels": [{"name": "ops", "kind": ["alert"]}]},
        {"channels": [{"name": "~dev-1", "kind": "alert"}]},
        {"channels": [{"name": "ops", "kind": "alert"}, {"name": "ops", "kind": "update"}]},
        {"channels": LONG},
        {"attributes": []},
        {"attributes": {"a b": 1}},
        {"attributes": {"a": [1]}},
        {"attributes": {"a": {"b": 1}}},
        {"attributes": {"a": "x" * 1025}},
        {"attributes": {"a": "line\nbreak"}},
        {"attributes": {"a": 2**53}},
        {"attributes": {"a": float("inf")}},
        {"attributes": {f"a{n}": 1 for n in range(65)}},
        {"expires_at": "1900000000000"},
        {"expires_at": 1.5},
        {"expires_at": True},
        {"expires_at": -1},
        {"expires_at": 2**53},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_half_a_verdict_is_none(changes):
    with pytest.raises(MalformedError):
        parse_verdict({**GOOD, **changes})


@pytest.mark.parametrize("document", [None, [], "x", 1, True, [GOOD]])
def test_a_verdict_is_an_object(document):
    with pytest.raises(MalformedError):
        parse_verdict(document)
    with pytest.raises(MalformedError):
        parse_claims(document)


@pytest.mark.parametrize("exp", ["soon", True, -1, 2**53, [1], float("nan")])
def test_exp_is_a_numeric_date(exp):
    with pytest.raises(MalformedError):
        parse_claims({"sub": "d", "fleet": "f", "exp": exp})


@pytest.mark.parametrize(
    "changes",
    [
        {"Fleetcast-Channels": "ops"},
        {"Fleetcast-Channels": "alert:"},
        {"Fleetcast-Channels": "alert:a b"},
        {"Fleetcast-Channels": "alert:ops;update:fw"},
        {"Fleetcast-Attributes": "model=tc3"},
        {"Fleetcast-Attributes": "[]"},
        {"Fleetcast-Attributes": '{"a": 1, "a": 2}'},
        {"Fleetcast-Expires": ""},
        {"Fleetcast-Expires": "soon"},
        {"Fleetcast-Expires": "-1"},
        {"Fleetcast-Expires": "1e12"},
        {"Fleetcast-Expires": "١٩"},
        {"Fleetcast-Expires": "9" * 17},
        {"Fleetcast-Fleet": ""},
    ],
    ids=str,
)
def test_headers_that_are_not_a_verdict(changes):
    with pytest.raises(MalformedError):
        parse_verdict_headers({**HEADERS, **changes})


def test_63_channels_are_allowed_since_the_64th_is_the_devices_own():
    assert len(parse_verdict({**GOOD, "channels": LONG[:63]}).channels) == 63


class TestJson:
    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{",
            b"\xff",
            b"NaN",
            b'{"a": Infinity}',
            b'{"a": 1, "a": 1}',
            b'{"x": {"a": 1, "a": 2}}',
            b"[" * 50_000,
            b" " * 70_000 + b"1",
            b"1" * 5_000,
        ],
        ids=lambda raw: repr(raw[:12]),
    )
    def test_what_is_not_one_plain_document_is_malformed(self, raw):
        with pytest.raises(MalformedError):
            parse_json(raw)

    @given(st.binary(max_size=200))
    def test_any_bytes_parse_or_are_malformed(self, raw):
        with contextlib.suppress(MalformedError):
            parse_json(raw)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from([*GOOD, "sub", "exp"]), documents))
def test_any_document_is_a_verdict_or_malformed(document):
    for parse in (parse_verdict, parse_claims):
        with contextlib.suppress(MalformedError):
            assert isinstance(parse({"device_id": "d", "sub": "d", "fleet": "f", **document}), Verdict)


def test_the_examples_of_the_reference_page_say_the_same():
    page = (Path(__file__).parents[4] / "docs/reference/identity.md").read_text()
    document, headers = re.findall(r"^```(?:json)?\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    pairs = [line.split(": ", 1) for line in headers.splitlines()]
    verdict = parse_verdict(parse_json(document.encode()))
    assert verdict == parse_verdict_headers(CIMultiDict(pairs))
    assert verdict.channels == (ChannelGrant("firmware", "update"), ChannelGrant("ops", "alert"))
