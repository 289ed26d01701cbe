"""Commands on the gateway's machine: a database that is made, and tokens that open it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli.program import app
from gateway.identity import OperatorToken, Scope, token_sha256
from gateway.storage.engine import DatabaseLimits, open_database
from gateway.storage.fleet_store import SQLFleetStore
from gateway.telemetry import Metrics

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``fleetcast`` in a folder of its own."""
    for name in [name for name in os.environ if name.startswith("FLEETCAST_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


CREATE = ("token", "create", "--name", "alice", "--scope", "publish", "--scope", "devices")


def stored_token(secret: str) -> OperatorToken | None:
    async def read() -> OperatorToken | None:
        url = f"sqlite:///{Path('fleetcast-data/fleetcast.db').absolute()}"
        async with open_database(url, limits=DatabaseLimits(), metrics=Metrics()) as database:
            return await SQLFleetStore(database).operator_token(token_sha256(secret))

    return asyncio.run(read())


def rows(table: str) -> int:
    with sqlite3.connect("fleetcast-data/fleetcast.db") as connection:
        count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    connection.close()
    return count


class TestToken:
    def test_token_of_a_new_database_is_printed_once_and_stored_as_a_hash(self, run: Run) -> None:
        result = run(*CREATE, "--fleet", "acme", "--create-fleet")
        assert result.exit_code == 0
        secret = result.stdout.strip()
        token = stored_token(secret)
        assert token is not None
        assert (token.name, token.fleet, token.expires_at) == ("alice", "acme", None)
        assert token.scopes == {Scope.PUBLISH, Scope.DEVICES}
        assert secret.encode() not in Path("fleetcast-data/fleetcast.db").read_bytes()

    def test_token_of_all_fleets_expires(self, run: Run) -> None:
        token = stored_token(run(*CREATE, "--expires-days", "2").stdout.strip())
        assert token is not None
        assert token.fleet is None
        assert token.expires_at == token.created_at + 2 * 24 * 3600 * 1000

    def test_file_is_its_owners_alone_and_never_overwritten(self, run: Run, tmp_path: Path) -> None:
        result = run(*CREATE, "--output", "operator.token")
        assert (result.exit_code, result.stdout) == (0, "")
        file = tmp_path / "operator.token"
        assert file.stat().st_mode & 0o777 == 0o600
        before = file.read_text()
        assert stored_token(before.strip()) is not None
        again = run(*CREATE, "--output", "operator.token")
        assert again.exit_code == 1
        assert "[file_exists]" in again.stderr
        assert file.read_text() == before
        assert rows("operator_token") == 1

    def test_token_that_cannot_be_written_is_not_stored(self, run: Run) -> None:
        assert run(*CREATE, "--output", "no/such/folder").exit_code == 1
        assert not Path("fleetcast-data").exists()

    def test_fleet_that_is_not_there_is_not_made_by_accident(self, run: Run, tmp_path: Path) -> None:
        result = run(*CREATE, "--fleet", "acmee", "--output", "operator.token")
        assert result.exit_code == 2
        assert "--create-fleet" in result.stderr
        assert not (tmp_path / "operator.token").exists()
        assert (rows("fleet"), rows("operator_token")) == (0, 0)

    def test_fleet_that_is_there_is_kept(self, run: Run) -> None:
        for _ in range(2):
            assert run(*CREATE, "--fleet", "acme", "--create-fleet").exit_code == 0
        assert (rows("fleet"), rows("operator_token")) == (1, 2)

    @pytest.mark.parametrize(
        "arguments",
        [
            (*CREATE, "--create-fleet"),
            (*CREATE, "--fleet", "no fleet"),
            (*CREATE, "--scope", "emperor"),
            ("token", "create", "--name", "", "--scope", "read"),
            ("token", "create", "--name", "alice"),
        ],
    )
    def test_wrong_usage_makes_no_database(
        self, run: Run, tmp_path: Path, arguments: tuple[str, ...]
    ) -> None:
        assert run(*arguments).exit_code == 2
        assert list(tmp_path.iterdir()) == []


class TestSchema:
    def test_state_of_nothing_is_behind(self, run: Run) -> None:
        result = run("db", "state", "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert (found["current"], found["is_current"]) == (None, False)

    def test_upgrade_brings_it_up_to_date_and_can_be_repeated(self, run: Run) -> None:
        for _ in range(2):
            assert run("db", "upgrade").exit_code == 0
        assert run("db", "state").exit_code == 0

    def test_newer_database_is_left_alone(self, run: Run) -> None:
        run("db", "upgrade")
        with sqlite3.connect("fleetcast-data/fleetcast.db") as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.close()
        for command in (("db", "upgrade"), CREATE):
            result = run(*command)
            assert result.exit_code == 1
            assert "[schema_newer]" in result.stderr
        assert rows("operator_token") == 0

    def test_postgresql_that_is_away_is_one_line(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text('[database]\nurl = "postgresql://nobody@127.0.0.1:1/x"\n')
        for command in (("db", "state"), ("db", "upgrade"), CREATE):
            result = run(*command, "--config", "c.toml")
            assert result.exit_code == 1
            assert result.stderr.count("\n") == 1
            assert "[storage_unavailable]" in result.stderr


class TestBackup:
    def test_copy_is_the_database_and_never_overwrites(self, run: Run) -> None:
        run(*CREATE, "--fleet", "acme", "--create-fleet")
        result = run("db", "backup", "--output", "copy.db", "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout) == {
            "file": "copy.db",
            "size_bytes": Path("copy.db").stat().st_size,
        }
        with sqlite3.connect("copy.db") as connection:
            assert connection.execute("SELECT name FROM fleet").fetchall() == [("acme",)]
        connection.close()
        again = run("db", "backup", "--output", "copy.db")
        assert again.exit_code == 1
        assert "[file_exists]" in again.stderr

    def test_there_is_nothing_to_copy(self, run: Run, tmp_path: Path) -> None:
        result = run("db", "backup", "--output", "copy.db")
        assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
        assert "[storage_unavailable]" in result.stderr

    def test_postgresql_has_a_program_of_its_own(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text('[database]\nurl = "postgresql://nobody@127.0.0.1:1/x"\n')
        result = run("db", "backup", "--output", "copy.db", "--config", "c.toml")
        assert result.exit_code == 1
        assert "pg_dump [not_embedded]" in result.stderr


class TestRestored:
    def test_every_channel_gets_a_new_epoch(self, run: Run) -> None:
        run(*CREATE, "--fleet", "acme", "--create-fleet")
        with sqlite3.connect("fleetcast-data/fleetcast.db") as connection:
            connection.execute(
                "INSERT INTO channel (fleet_id, name, kind, epoch, created_at)"
                " VALUES (1, 'ops', 'alert', 7, 0)"
            )
        connection.close()
        assert json.loads(run("db", "restored", "--json").stdout) == {"channels": 1}
        with sqlite3.connect("fleetcast-data/fleetcast.db") as connection:
            assert connection.execute("SELECT epoch FROM channel").fetchone() != (7,)
        connection.close()
        assert run("db", "restored").stdout.startswith("1 channels have a new epoch")

    def test_a_gateway_that_runs_must_be_stopped_first(self, run: Run) -> None:
        run(*CREATE, "--fleet", "acme", "--create-fleet")
        with sqlite3.connect("fleetcast-data/fleetcast.db") as gateway:
            gateway.execute("SELECT 1 FROM fleet").fetchall()
            result = run("db", "restored")
        gateway.close()
        assert result.exit_code == 1
        assert "stop it first [database_in_use]" in result.stderr

    def test_a_schema_that_is_behind_is_upgraded_first(self, run: Run) -> None:
        result = run("db", "restored")
        assert result.exit_code == 1
        assert "[schema_behind]" in result.stderr


def test_a_gateway_does_not_start_on_a_newer_schema(run: Run) -> None:
    run("db", "upgrade")
    with sqlite3.connect("fleetcast-data/fleetcast.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    result = run("serve")
    assert result.exit_code == 2
    assert "of a newer release (revision 9999)" in result.stderr
