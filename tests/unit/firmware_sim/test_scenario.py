"""Scenarios: what a file may say, and which devices come of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from firmware_sim.errors import ScenarioError
from firmware_sim.scenario import (
    ATTACKS,
    AlertTraffic,
    ClockFaults,
    Expectation,
    HostileGateway,
    LinkFaults,
    Outage,
    RolloutStart,
    plan,
    turns,
)
from firmware_sim.scenario_file import known_keys, parse_scenario

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
        assert len(plan(parse_scenario(path.read_text(), devices=12))) == 12

    def test_example_of_the_reference_is_good(self) -> None:
        (example,) = re.findall(r"```toml\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
        scenario = parse_scenario(example)
        assert len(plan(scenario)) == scenario.devices

    def test_every_key_is_in_the_reference_with_its_default_and_bound(self) -> None:
        rows = {}
        table = ""
        for line in REFERENCE.read_text().splitlines():
            if heading := re.match(r"### .*?`\[+([a-z.]+)\]+`", line):
                table = f"{heading[1]}."
            elif line.startswith("### Top level"):
                table = ""
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            if line.startswith("| `") and len(cells) == 4:
                rows[f"{table}{cells[0].strip('`')}"] = (cells[2], cells[3])
        for key in known_keys():
            assert key.path in rows, key
            default, bound = rows[key.path]
            assert (default, bound) == (f"`{key.default}`", key.bound or "–"), key.path
        assert rows.keys() == {key.path for key in known_keys()}

    def test_every_value_arrives(self) -> None:
        scenario = parse_scenario(
            """
            name = "x"
            devices = 2
            [[group]]
            name = "g"
            transport = { longpoll = 2, auto = 1 }
            encoding = "json"
            sequence = 7
            rate_window_s = 2
            attributes = { model = "tc3", year = 2026, isTest = true }
              [group.clock]
              kind = "resets"
              jumps = 2
              jump_s = [-5, 5]
              [group.link]
              delay_ms = 5
              cut = 0.5
              offline_s = [1, 2.5]
              tamper = "any"
              [group.flash]
              power_cuts = 3
              [group.boot]
              sick = 1
              [group.gateway]
              attacks = "all"
              download = "slow"
              [group.expect]
              state = ["committed", "failed"]
              code = "no_space"
            [[outage]]
            at_s = 3
            for_s = [1, 2]
            groups = ["g"]
            [[alert]]
            channel = "news"
            every_s = 0.5
            [[rollout]]
            percent = 5
            release = 2
            """
        )
        (group,) = scenario.groups
        assert group.transports == {"longpoll": 2, "auto": 1}
        assert group.encodings == {"json": 1}
        assert group.clock == ClockFaults(kind="resets", jumps=2, jump_s=(-5, 5))
        assert (group.sequence, group.rate_window_s) == (7, 2.0)
        assert group.gateway == HostileGateway(attacks=ATTACKS, download="slow")
        assert scenario.outages == (Outage(at_s=3, for_s=(1, 2), groups=("g",)),)
        assert scenario.alerts == (AlertTraffic(channel="news", every_s=(0.5, 0.5)),)
        assert scenario.rollouts == (RolloutStart(percent=5, release=2),)
        assert scenario.quiet_after_s == 5
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
            ("[[group]]\nclock = 'sun'", r"group\[1\].clock.kind: one of trusted, none, resets"),
            ("[[group]]\nclock = 'reset'", r"group\[1\].clock.kind: .*; the nearest is resets"),
            ("[[group]]\nlink.delay = 1", r"group\[1\].link.delay: no such key; the nearest is delay_ms"),
            ("[[group]]\nlink.delay_ms = -1", r"group\[1\].link.delay_ms: .*, 0..600000"),
            ("[[group]]\ngateway.attacks = 'lies'", r"group\[1\].gateway.attacks: one or some of forged_"),
            ("[[group]]\ngateway.attacks = ['moved']", r".*; the nearest is moved_alert"),
            ("[[group]]\ngateway.download = 3", r"group\[1\].gateway.download: one of genuine, endless"),
            ("[[group]]\n[[outage]]\ngroups = ['device']", r"outage\[1\].groups: .*the nearest is devices"),
            ("[[group]]\n[[outage]]\ngroups = 'devices'", r"outage\[1\].groups: an array of strings"),
            ("[[group]]\n[[alert]]\nuntil_s = 0", r"alert\[1\].until_s: before from_s"),
            ("[[group]]\n[[alert]]\nchannel = 'a b'", r"alert\[1\].channel: 1..128"),
            ("[[group]]\n[[rollout]]\npercent = 0", r"rollout\[1\].percent: a whole number, 1..100"),
            ("rollout = 1\n[[group]]", r"rollout: tables, \[\[rollout\]\]"),
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
