"""The program as a whole: help that is quick, and errors that are one line and an exit status."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from gateway.cli.local import ScopeName
from gateway.identity import Scope

Run = Callable[..., Result]

HEAVY = {"sqlalchemy", "alembic", "pydantic", "aiohttp", "cryptography", "asyncpg", "uvloop"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['fleetcast', '--help']\n"
        "from gateway.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "Usage: fleetcast" in done.stdout
    assert HEAVY & set(done.stderr.split()) == set()


def test_scopes_are_the_gateways() -> None:
    assert [name.value for name in ScopeName] == [scope.value for scope in Scope]


def test_nothing_asked_is_help(run: Run) -> None:
    assert "Usage: fleetcast" in run().output


def test_mistyped_command_is_suggested(run: Run) -> None:
    result = run("rolout")
    assert result.exit_code == 2
    assert "rollout" in result.stderr


@pytest.mark.parametrize(
    "command", ["fleet list", "device list --fleet a", "release publish {file} --fleet a"]
)
def test_no_token_says_where_to_get_one(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    result = run(*command.format(file=tmp_path / "file").split())
    assert result.exit_code == 2
    assert "fleetcast token create" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"secret", b"fct_short", b"\xff"])
def test_file_without_a_token_is_wrong_usage(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    result = run("fleet", "list", "--token-file", tmp_path / "token")
    assert result.exit_code == 2
    assert "[usage]" in result.stderr
    assert "secret" not in result.output


@pytest.mark.parametrize(
    "url", ["localhost", "ftp://host", "http://", "http://host:port", "http://u:p@host", "http://host:99999"]
)
def test_what_is_no_address_is_wrong_usage(run: Run, tmp_path: Path, url: str) -> None:
    (tmp_path / "token").write_text("fct_" + "a" * 43)
    result = run("fleet", "list", FLEETCAST_URL=url, FLEETCAST_TOKEN_FILE=str(tmp_path / "token"))
    assert result.exit_code == 2
    assert "[usage]" in result.stderr


class TestCheckConfig:
    def test_every_problem_is_told(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text("[server]\nlisten_port = 99999\nlisten_hots = 'x'\n")
        result = run("check-config", "--config", tmp_path / "c.toml")
        assert result.exit_code == 2
        assert result.stdout == ""
        assert [line.startswith("error: ") for line in result.stderr.splitlines()] == [True, True]

    def test_example_is_a_configuration(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text(run("check-config", "--example").stdout)
        shown = run("check-config", "--config", tmp_path / "c.toml")
        assert shown.exit_code == 0
        assert shown.stdout == run("check-config").stdout

    def test_variable_names_the_file(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text("[server]\nlisten_port = 1234\n")
        assert "listen_port = 1234" in run("check-config", FLEETCAST_CONFIG=str(tmp_path / "c.toml")).stdout

    def test_serve_refuses_the_same_configuration(self, run: Run, tmp_path: Path) -> None:
        assert run("serve", "--config", tmp_path / "missing.toml").exit_code == 2
