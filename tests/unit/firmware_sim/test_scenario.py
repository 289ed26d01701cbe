"""Scenarios: what a file may say, and which devices come of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from firmware_sim.errors import ScenarioError
from firmware_sim.scenario import Expectation, LinkFaults, plan, turns
from firmware_sim.scenario_file import parse_scenario

SHIPPED = sorted((Path(__file__).parents[3] / "firmware_sim" / "scenarios").glob("*.toml"))
DEMO = Path(__file__).parents[3] / "ops" / "demo" / "fleet.toml"
REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "simulator.md"


def problems(text: str, devices: int | None = None) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, devices=devices)
    return list(caught.value.problems)


class TestFile:
    @pytest.mark.parametrize("path", [*SHIPPED, DEMO], ids=lambda path: path.stem)
    def test_those_that_come_along_are_good(self, path: Path) -> None:
        scenario = parse_scenario(path.read_text())
        assert len(plan(scenario)) == scenario.devices
        assert len(plan(parse_scenario(path.read_text(), devices=5))) == 5

    def test_example_of_the_reference_is_good(self) -> None:
        (example,) = re.findall(r"```toml\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
        scenario = parse_scenario(example)
        assert len(plan(scenario)) == scenario.devices

    def test_every_value_arrives(self) -> None:
        scenario = parse_scenario(
            """
            name = "x"
            devices = 2
            [[group]]
            name = "g"
            transport = { longpoll = 2, auto = 1 }
            encoding = "json"
            clock = "none"
            sequence = 7
            attributes = { model = "tc3", year = 2026, isTest = true }
              [group.link]
              delay_ms = 5
              cut = 0.5
              offline_s = [1, 2.5]
              tamper = "any"
              [group.flash]
              power_cuts = 3
              [group.boot]
              sick = 1
              [group.expect]
              state = ["committed", "failed"]
              code = "no_space"
            """
        )
        (group,) = scenario.groups
        assert group.transports == {"longpoll": 2, "auto": 1}
        assert group.encodings == {"json": 1}
        assert (group.clock, group.sequence) == ("none", 7)
        assert group.attributes == {"model": "tc3", "year": 2026, "isTest": True}
        assert group.link == LinkFaults(delay_ms=(5, 5), cut=0.5, offline_s=(1, 2.5), tamper="any")
        assert (group.flash.power_cuts, group.boot.sick) == (3, 1.0)
        assert group.expect == Expectation(states=("committed", "failed"), code="no_space")

    def test_every_problem_is_told_at_once(self) -> None:
        found = problems(
            """
            seed = -1
            colour = "red"
            [[group]]
            count = 3
            share = 2
            transport = "pigeon"
              [group.link]
              cut = 2
              delay_ms = [5, 1]
              rot = 1
              [group.expect]
              state = "happy"
            """
        )
        keys = sorted(problem.split(":")[0] for problem in found)
        assert keys == sorted(
            [
                *("seed", "colour", "group[1].share", "group[1].transport", "group[1].link.cut"),
                *("group[1].link.delay_ms", "group[1].link.rot", "group[1].expect.state"),
            ]
        )

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("devices = 1 = 2", "not TOML"),
            ("devices = 3", r"group: at least one \[\[group\]\]"),
            ("group = 3", "group: at least one"),
            ("devices = 0\n[[group]]", "devices: a whole number, 1..100000"),
            ("devices = true\n[[group]]", "devices: a whole number"),
            ("duration_s = 'x'\n[[group]]", "duration_s: a number"),
            ("name = 3\n[[group]]", "name: a string"),
            ("id_prefix = '~'\n[[group]]", "id_prefix: "),
            ("component = 'a b'\n[[group]]", "component: "),
            ("[[group]]\nlink = 3", r"group\[1\].link: a table"),
            ("[[group]]\nattributes = { a = [] }", r"group\[1\].attributes: "),
            ("[[group]]\ntransport = { websocket = 0 }", r"group\[1\].transport: "),
            ("[[group]]\nclock = 'sun'", r"group\[1\].clock: one of trusted, none"),
            ("[[group]]\nname='a'\n[[group]]\nname='a'", "group: 'a' is there twice"),
            ("devices = 2\n[[group]]\ncount = 3", "devices: 2, and the groups count 3"),
            ("devices = 4\n[[group]]\ncount = 3", "devices: 4, and the groups count only 3"),
        ],
    )
    def test_what_is_wrong_is_named(self, text: str, problem: str) -> None:
        (found,) = problems(text)
        assert re.match(problem, found), found


class TestPlan:
    def test_counted_groups_come_first_and_shares_divide_the_rest(self) -> None:
        text = "devices = 50\n" + "".join(
            f"[[group]]\nname = '{name}'\n{size}\n"
            for name, size in (
                ("a", "share = 3"),
                ("b", "share = 1"),
                ("one", "count = 1"),
                ("c", "share = 1"),
            )
        )
        names = [one.group.name for one in plan(parse_scenario(text))]
        assert {name: names.count(name) for name in "abc"} == {"a": 29, "b": 10, "c": 10}
        assert names.count("one") == 1

    def test_ids_are_the_prefix_and_a_number_over_all_groups(self) -> None:
        text = "devices = 3\nid_prefix = 'p-'\n[[group]]\nname = 'a'\ncount = 1\n[[group]]\nname = 'b'"
        assert [one.device_id for one in plan(parse_scenario(text))] == ["p-0001", "p-0002", "p-0003"]

    def test_turns_keep_the_shares_at_every_length(self) -> None:
        for count in range(40):
            names = turns({"a": 3, "b": 1}, count)
            assert abs(names.count("a") - count * 3 / 4) <= 1
        assert turns({"a": 1, "b": 1}, 4).count("a") == 2
