"""``fleetcast-sim`` without a gateway: what it shows, makes and refuses."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from device_sdk.wire.keys import PrivateKey
from firmware_sim.cli import app
from firmware_sim.errors import ScenarioError
from firmware_sim.tokens import parse_tokens


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_scenarios_that_come_along_are_listed_shown_and_checked() -> None:
    status, names, _ = invoke("list")
    assert status == 0
    for line in names.splitlines():
        name = line.split()[0]
        assert invoke("show", name)[1].startswith(f'name = "{name}"')
        assert invoke("check", name)[0] == 0


def test_check_shows_groups_and_expectations() -> None:
    status, text, _ = invoke("check", "flaky", "--devices", 10)
    assert status == 0
    assert "flaky: 10 devices, seed 7, at most 240 s" in text
    assert "1 tampered: websocket; expected: rejected with bad_signature" in text
    assert "  alerts to ops, 3 to 20 s\n  rollout of release 1 at 5 s, 100 %\n" in text
    assert "  outage at 10 s: region\n" in invoke("check", "mass-reconnect")[1]


def test_bad_scenario_is_usage_and_every_problem_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("seed = -1\ncolour = 1\n[[group]]\n")
    status, text, errors = invoke("check", path)
    assert (status, text) == (2, "")
    assert sorted(errors.splitlines()) == [
        f"error: {path}: colour: no such key",
        f"error: {path}: seed: a whole number, 0..{2**63}",
    ]


def test_unknown_scenario_is_usage() -> None:
    status, _, errors = invoke("check", "power-cut")
    assert status == 2
    assert "neither a file nor one of bricking-release, clock-reset, flaky" in errors
    assert errors.endswith("; the nearest is power-cuts\n")


def test_tokens_are_new_secret_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    assert invoke("tokens", "steady", "--output", path, "--devices", 4)[0] == 0
    tokens = parse_tokens(path.read_text())
    assert list(tokens) == ["sim-0001", "sim-0002", "sim-0003", "sim-0004"]
    assert len(set(tokens.values())) == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    status, _, errors = invoke("tokens", "steady", "--output", path)
    assert status == 2
    assert "File exists" in errors
    assert path.read_text() == before


def test_devices_without_tokens_are_usage(tmp_path: Path) -> None:
    tokens, key = tmp_path / "tokens.txt", tmp_path / "key.pub.pem"
    tokens.write_text("# none\nsim-0001 secret\n")
    key.write_bytes(PrivateKey.generate().public.to_pem())
    run = ("run", "steady", "--fleet", "acme", "--tokens", tokens, "--release-key", key)
    status, _, errors = invoke(*run)
    assert status == 2
    assert "19 devices have no token, for example sim-0002" in errors
    for wrong in (
        *(("--url", "gateway.example"), ("--fleet", "~x")),
        *(("--only-device", "nobody"), ("--report", "report.json")),
    ):
        assert invoke(*run, *wrong)[0] == 2
    key.write_text("no key")
    assert invoke(*run)[0] == 2


@pytest.mark.parametrize("text", ["only-an-id", "a b c", "a one\na two"])
def test_tokens_file_is_read_strictly(text: str) -> None:
    with pytest.raises(ScenarioError):
        parse_tokens(text)
