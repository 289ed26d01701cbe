"""Scenarios that come along, against a gateway: what they promise, both sides tell, and the flash shows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from firmware_sim.attacks import CHANGED, INVENTED
from tests.integration.sim_stage import open_stage

pytestmark = pytest.mark.timeout(150)

ANSWERS = {
    "alert_as_directive": "unknown_key",
    "forged_alert": "bad_signature",
    "forged_cancel": "cancelled",
    "forged_directive": "bad_signature",
    "mixed_manifest": "mix_and_match",
    "moved_alert": "mix_and_match",
    "other_device": "wrong_device",
    "renamed_deployment": "mix_and_match",
    "truncated_alert": "malformed",
    "truncated_directive": "malformed",
    "truncated_manifest": "malformed",
    "unknown_signer": "unknown_key",
}


async def test_hostile_gateway_gets_nothing_installed_and_nothing_believed(tmp_path: Path) -> None:
    async with open_stage(tmp_path, "hostile-gateway") as stage:
        status, result = await stage.simulate(
            "hostile-gateway", *stage.as_operator, "--report", tmp_path / "report.html"
        )
        assert (status, result["unmet"], result["crashes"]) == (0, {}, {}), result
        assert result["broken"] == []
        assert result["invariants"]["attacks_refused"]["checks"] >= 80
        attacks = result["attacks"]
        assert attacks.keys() >= INVENTED.keys() | CHANGED.keys()
        for name, one in attacks.items():
            assert one["answers"].keys() == ({ANSWERS[name]} if name in ANSWERS else set()), name
            # The run may end while the last one is on its way.
            for count in one["answers"].values():
                assert one["tried"] - 1 <= count <= one["tried"], name

        report = json.loads((tmp_path / "report.json").read_text())
        assert report["result"] == result
        assert "</html>" in (tmp_path / "report.html").read_text()
        groups = {group["name"]: group["devices"] for group in report["groups"]}
        members = iter(f"sim-{number:04}" for number in range(1, result["devices"] + 1))
        ids = {name: [next(members) for _ in range(size)] for name, size in groups.items()}
        old, new = stage.images
        factory = b""
        for name, running in {
            **dict.fromkeys(("besieged", "misled", "cut"), (new,)),
            "mixed": (old, factory),  # the old one, unless it was superseded before it was there
            **dict.fromkeys(("truncated", "endless", "oversized", "slow", "other"), (factory,)),
        }.items():
            assert {stage.image(device_id) for device_id in ids[name]} <= set(running), name

        # Nothing that was made up ever came to the gateway: it knows what it offered itself.
        first, second = await stage.deployments()
        assert {one["device_id"] for one in (*first, *second)} == {
            one for each in ids.values() for one in each
        }
        assert Counter(one["state"] for one in second) == result["states"]
        assert Counter(one["code"] for one in second if one["code"]) == result["refused"]


async def test_bricking_release_is_rolled_back_everywhere_and_the_rollout_shows_it(tmp_path: Path) -> None:
    async with open_stage(tmp_path, "bricking-release", "--devices", 10) as stage:
        status, result = await stage.simulate("bricking-release", "--devices", 10, *stage.as_operator)
        assert (status, result["unmet"], result["broken"]) == (0, {}, []), result
        assert result["states"] == {"rolled_back": 10}
        (rollout,) = (await stage.gateway.call("GET", "/rollouts"))["items"]
        assert rollout["counts"] == {"rolled_back": 10}
        (deployments,) = await stage.deployments()
        assert {(one["state"], one["code"]) for one in deployments} == {("rolled_back", "boot_failed")}
        assert all(stage.image(one["device_id"]) == b"" for one in deployments)


async def test_one_device_is_replayed_alone_with_its_faults_at_their_places(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(
        'devices = 4\nduration_s = 3\nlasts_s = 2\n[[group]]\nname = "a"\nstart_within_s = 0\n'
        "[group.link]\nrefuse = 0.5\noffline_s = 0.01\n[group.expect]\nalerts_min = 1\n"
        "[[alert]]\nuntil_s = 1\nfrom_s = 0.5\n"
    )
    async with open_stage(tmp_path, scenario) as stage:
        first, whole = await stage.simulate(scenario, *stage.as_operator)
        assert whole["alerts_sent"] == 1
        faults = [one for one in events(stage.folder) if one["device"] == "sim-0003" and one["fault"]]
        again, alone = await stage.simulate(scenario, *stage.as_operator, "--only-device", "sim-0003")
        assert (whole["devices"], alone["devices"]) == (4, 1)
        assert {one["device"] for one in events(stage.folder)} == {"sim-0003"}
        replayed = [one for one in events(stage.folder) if one["fault"]]
        shared = min(len(faults), len(replayed))
        assert [one["where"] for one in replayed[:shared]] == [one["where"] for one in faults[:shared]]
        assert {first, again} <= {0, 1}  # a device that is refused for 3 s gets no alert


def events(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "trace").read_text().splitlines()]
