"""The report is one page: well formed, with all of its data, and nothing in it that asks anybody for more."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import pytest

from device_sdk.wire.keys import PrivateKey
from firmware_sim.invariants import Invariant
from firmware_sim.report import render, report_document
from firmware_sim.scenario_file import parse_scenario
from firmware_sim.simulation import Simulation

VOID = {"meta", "link", "br", "img", "input", "hr"}
NASTY = "</script><script>alert(1)</script><!-- & \" '"
SCENARIO = f"""
name = "nasty"
description = '''{NASTY}'''
devices = 3
[[group]]
name = "some"
count = 2
  [group.gateway]
  attacks = "forged_cancel"
  [group.expect]
  state = "rejected"
  code = "rollback"
  alerts_min = 2
[[group]]
name = "others"
[[outage]]
at_s = 7
[[rollout]]
at_s = 3
"""


class Page(HTMLParser):
    """What a page consists of; its elements have to nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.contents: list[tuple[str, dict[str, str], str]] = []
        self.words: list[str] = []
        self._raw: tuple[str, dict[str, str]] | None = None
        self.feed(text)
        self.close()
        assert self.open == [], "every element ends"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in found.items()]
        if tag not in VOID:
            self.open.append(tag)
        self._raw = (tag, found) if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._raw = None

    def handle_data(self, data: str) -> None:
        if self._raw is not None:
            self.contents.append((*self._raw, data))
        else:
            self.words.append(data)

    def content(self, tag: str, kind: str | None = None) -> list[str]:
        return [data for name, found, data in self.contents if name == tag and found.get("type") == kind]


def make_document(*, breaks: bool = False) -> dict[str, Any]:
    scenario = parse_scenario(SCENARIO)
    simulation = Simulation(
        scenario,
        url="http://127.0.0.1:1",
        fleet="acme",
        tokens={f"sim-{number:04}": "token" for number in (1, 2, 3)},
        release_keys=[PrivateKey.generate().public],
        seed=77,
    )
    series = simulation.series
    series.meter.latency.add(12.0)
    series.meter.refused["rollback"] += 1
    series.sample(1.0, {"connected": 3}, {"idle": 3})
    series.sample(2.0, {"connected": 2, "waiting": 1}, {"committed": 3})
    device = simulation.devices[0]
    device.trace.event("handle", "ops", 1, 2, b"\x01")
    device.invariants.check(Invariant.ALERTS_ONCE, NASTY if breaks else None)
    result = simulation.result()
    return report_document(scenario, result, simulation.devices, ["fleetcast-sim", "run", "a b.toml"])


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return make_document()


@pytest.fixture(scope="module")
def text(document: dict[str, Any]) -> str:
    return render(document)


class TestData:
    def test_data_goes_into_the_page_and_comes_out_the_same(
        self, text: str, document: dict[str, Any]
    ) -> None:
        (data,) = Page(text).content("script", "application/json")
        assert json.loads(data) == document == json.loads(json.dumps(document))

    def test_document_has_what_the_plots_need(self, document: dict[str, Any]) -> None:
        series = document["series"]
        columns = [series["at_s"], series["alerts_per_s"], series["connects_per_s"]]
        columns += [series["failed_connects_per_s"]]
        for name in ("latency_ms", "round_trip_ms", "welcome_ms", "phases", "states", "refused"):
            columns += series[name].values()
        assert {len(column) for column in columns} == {2}
        assert document["marks"] == [{"at_s": 7.0, "what": "outage"}]
        assert document["groups"][0] == {
            "name": "some",
            "devices": 2,
            "expected": "rejected with rollback, 2 alerts",
            "states": {"idle": 2},
            "unmet": 2,
        }
        assert document["result"]["seed"] == 77

    def test_what_devices_and_scenarios_say_is_text(self, document: dict[str, Any]) -> None:
        text = render(make_document(breaks=True))
        page = Page(text)
        assert [found.get("type") for tag, found, _ in page.contents if tag == "script"] == [
            "application/json",
            None,
            None,
        ]
        assert NASTY in "".join(page.words)


class TestPolicy:
    def test_page_asks_nobody_for_anything(self, text: str) -> None:
        page = Page(text)
        for tag, name, value in page.attributes:
            assert name not in ("src", "href", "srcset", "style", "action"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            assert "//" not in value or name == "content", (tag, name, value)
        for content in (*page.content("style"), *page.content("script")):
            assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(|WebSocket", content)
            hosts = set(re.findall(r"https?://[^\s\"'/]+", content))
            assert hosts <= {"https://github.com"}, hosts  # in a comment of uPlot

    def test_policy_allows_what_is_in_the_page_and_nothing_else(self, text: str) -> None:
        page = Page(text)
        (policy,) = [v for tag, name, v in page.attributes if name == "content" and "default-src" in v]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
        assert rules.keys() == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
        assert rules["script-src"].split() == [digest(one) for one in page.content("script")]
        assert rules["style-src"].split() == [digest(one) for one in page.content("style")]

    def test_vendored_files_are_those_that_were_checked_and_their_licence_is_in_the_page(
        self, text: str
    ) -> None:
        folder = resources.files("firmware_sim.report") / "vendor"
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            expected, name = line.split()
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
        assert "Permission is hereby granted" in text


def digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


class TestWords:
    def test_verdict_seed_and_command_are_there(self, text: str) -> None:
        words = "".join(Page(text).words)
        assert "not as expected" in words  # the devices have not even started
        assert "seed 77" in words
        assert shlex.join(["fleetcast-sim", "run", "a b.toml"]) in words
        for invariant in Invariant:
            assert invariant.value in words

    def test_broken_invariant_shows_device_event_and_how_to_replay_it(self) -> None:
        words = "".join(Page(render(make_document(breaks=True))).words)
        assert "1 broken" in words
        assert "sim-0001, seed 77, event 2" in words
        assert "--only-device sim-0001 --trace trace.jsonl" in words
        assert "ops 1 2 01" in words

    def test_series_of_nothing_is_a_page_too(self) -> None:
        document = make_document()
        for name, columns in document["series"].items():
            document["series"][name] = [] if isinstance(columns, list) else {column: [] for column in columns}
        Page(render(document))
