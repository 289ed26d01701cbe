from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url

from gateway.config import Config, effective, example, load_config, reference, warnings_of
from gateway.config.files import SECRETS
from gateway.config.keys import keys, tables
from gateway.errors import ConfigError
from gateway.identity import IdentityLimits
from gateway.origin import OriginLimits
from tests.harness.config_reads import keys_that_are_read

DOCUMENT = Path(__file__).parents[3] / "docs/reference/configuration.md"


def load(tmp_path: Path, text: str, **environ: str) -> Config:
    path = tmp_path / "fleetcast.toml"
    path.touch(mode=0o600)
    path.write_text(text)
    return load_config(path, environ)


def problems(tmp_path: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    return caught.value.problems


class TestDefaults:
    def test_no_file_and_no_environment_is_a_whole_configuration(self):
        config = load_config(None, {})
        assert config.identity.mode is None
        assert (config.server.listen_host, config.server.listen_port) == ("127.0.0.1", 8080)
        assert config.database_url == f"sqlite:///{Path.cwd()}/fleetcast-data/fleetcast.db"
        assert warnings_of(config) != [], "no origin is named"

    def test_configuration_cannot_be_changed(self):
        with pytest.raises(ValueError, match="frozen"):
            load_config(None, {}).server.listen_port = 1


class TestEnvironment:
    def test_a_variable_wins_over_the_file(self, tmp_path):
        config = load(tmp_path, "[server]\nlisten_port = 1", FLEETCAST_SERVER_LISTEN_PORT="2")
        assert config.server.listen_port == 2

    @pytest.mark.parametrize(
        ("variable", "text", "read"),
        [
            ("FLEETCAST_SERVER_LISTEN_HOST", "8080", lambda c: c.server.listen_host == "8080"),
            ("FLEETCAST_DEVICE_HEARTBEAT_S", "30", lambda c: c.device.heartbeat_s == 30.0),
            ("FLEETCAST_DEVICE_CONNECTIONS_MAX", "1_000", lambda c: c.device.connections_max == 1000),
            ("FLEETCAST_METRICS_ENABLED", "false", lambda c: c.metrics.enabled is False),
            ("FLEETCAST_SERVER_DATA_DIR", "a/b", lambda c: c.server.data_dir == Path("a/b")),
            ("FLEETCAST_LOG_FORMAT", "json", lambda c: c.log.format == "json"),
        ],
    )
    def test_text_becomes_the_type_of_the_key(self, variable, text, read):
        assert read(load_config(None, {variable: text}))

    @pytest.mark.parametrize("text", ["X-Serial, X-Model", '["X-Serial", "X-Model"]'])
    def test_lists_are_arrays_or_separated_by_commas_and_tables_are_made(self, text):
        config = load_config(
            None,
            {
                "FLEETCAST_IDENTITY_MODE": "forward_auth",
                "FLEETCAST_IDENTITY_FORWARD_AUTH_URL": "http://origin/auth",
                "FLEETCAST_IDENTITY_FORWARD_AUTH_FORWARD_HEADERS": text,
            },
        )
        assert config.identity.forward_auth is not None
        assert config.identity.forward_auth.forward_headers == ("X-Serial", "X-Model")

    def test_an_unknown_variable_is_a_problem_with_a_suggestion(self, tmp_path):
        (problem,) = problems(tmp_path, "", FLEETCAST_SERVER_LISTENPORT="1")
        assert problem.startswith("FLEETCAST_SERVER_LISTENPORT: no such key")
        assert "did you mean FLEETCAST_SERVER_LISTEN_PORT?" in problem

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("FLEETCAST_URL", "http://x"),
            ("FLEETCAST_TOKEN_FILE", "x"),
            ("FLEETCAST_PORT", "tcp://10.0.0.1:8080"),
            ("FLEETCAST_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("FLEETCAST_SERVICE_HOST", "10.0.0.1"),
            ("FLEETCAST_SERVICE_PORT_HTTP", "8080"),
            ("PATH", "/bin"),
        ],
    )
    def test_variables_of_others_are_left_alone(self, variable, text):
        assert load_config(None, {variable: text}) == load_config(None, {})

    def test_no_two_keys_share_a_variable(self):
        variables = [key.variable for key in keys()]
        assert len(variables) == len(set(variables))


class TestProblems:
    def test_every_problem_is_reported_at_once(self, tmp_path):
        found = problems(
            tmp_path,
            '[server]\nlisten_port = 70000\nlisen_host = "x"\n'
            '[log]\nlevel = "loud"\n[identity.jwt]\n[devise]',
            FLEETCAST_DEVICE_ATTEMPTS_MAX="many",
            FLEETCAST_NOPE="1",
        )
        text = "\n".join(found)
        for part in (
            "server.listen_port: input should be less than or equal to 65535 (it is 70000)",
            "server.lisen_host: no such key; did you mean server.listen_host?",
            "log.level",
            "identity.jwt.jwks_url: is missing",
            "identity.jwt.issuer: is missing",
            "identity.jwt.audience: is missing",
            "devise: no such key; did you mean device?",
            "FLEETCAST_DEVICE_ATTEMPTS_MAX (key device.attempts_max)",
            "FLEETCAST_NOPE: no such key",
        ):
            assert part in text
        assert len(found) == 9

    def test_a_problem_names_the_file_the_key_and_the_fix(self, tmp_path):
        (problem,) = problems(tmp_path, "[server]\nlisten_port = -1")
        assert problem.startswith(f"{tmp_path}/fleetcast.toml: server.listen_port: ")
        assert problem.endswith("give a whole number 0..65535")

    def test_a_key_in_the_wrong_table_is_pointed_to_its_own(self, tmp_path):
        (problem,) = problems(tmp_path, "[server]\nheartbeat_s = 25")
        assert "did you mean device.heartbeat_s?" in problem

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("server = 1", "server: must be a table; write [server] above its keys"),
            ("[server]\nlisten_port = '8080'", "server.listen_port"),
            ("[server]\nlisten_port = true", "server.listen_port"),
            ("[device]\nheartbeat_s = nan", "device.heartbeat_s"),
            ("[device]\nheartbeat_s = inf", "device.heartbeat_s"),
            ("[identity.forward_auth]\nurl = 'ftp://x'", "http:// or https://"),
            ("[identity.forward_auth]\nurl = 'http://u:p@x'", "must not carry a user name"),
            ("[database]\npassword_file = 'p'", "name the user in database.url"),
            ("[database]\nurl = 'postgresql://db/x'\npassword_file = 'p'", "name the user in database.url"),
            ("[database]\nurl = 'sqlite:///x'\npassword_file = 'p'", "name the user in database.url"),
            ("[database]\nurl = 'postgresql://u:p@db/x'\npassword_file = 'p'", "remove one of the two"),
            ("[device]\noutbox_size_bytes_max = 600000", "over device.outbox_size_bytes_max"),
            ("[database]\nurl = 'mysql://x'", "must start with sqlite:///"),
            ("[server]\ntls_cert = 'c'", "server.tls_key: is missing"),
            ("[identity]\nmode = 'jwt'", "identity.jwt: is missing"),
            ("[identity.forward_auth]\nurl = 'http://x'", 'set identity.mode = "forward_auth"'),
            ("[identity]\nnegative_cache_s = 60\npositive_cache_s = 6", "over identity.positive_cache_s"),
            ("[device]\nredeliver_min_s = 300\nredeliver_max_s = 10", "over device.redeliver_max_s"),
            ("[database]\nflush_rows_max = 200\nqueue_rows_max = 100", "over database.queue_rows_max"),
            ("[updates]\ndirective_ttl_s = 61\ninstall_by_s = 60", "over updates.install_by_s"),
            ("[alerts]\nttl_default_s = 2\nttl_max_s = 1", "over alerts.ttl_max_s"),
            ("[device]\npong_timeout_s = 26", "over device.heartbeat_s"),
            ("a = ", "not TOML: "),
        ],
    )
    def test_bad_values_and_relations(self, tmp_path, text, part):
        assert part in "\n".join(problems(tmp_path, text))

    @pytest.mark.parametrize("algorithm", ["none", "HS256", "HS512", "RSA-OAEP"])
    def test_symmetric_and_absent_signatures_cannot_be_configured(self, tmp_path, algorithm):
        text = (
            '[identity]\nmode = "jwt"\n[identity.jwt]\njwks_url = "http://x"\nissuer = "i"\naudience = "a"\n'
        )
        (problem,) = problems(tmp_path, f'{text}algorithms = ["ES256", "{algorithm}"]')
        assert f"'{algorithm}' is not one of" in problem

    def test_a_secret_in_an_address_is_never_repeated(self, tmp_path):
        text = "\n".join(problems(tmp_path, "[database]\nurl = 'mysql://fleet:hunter2@db/x'"))
        assert "hunter2" not in text

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / "nope.toml", {})
        assert str(tmp_path / "nope.toml") in str(caught.value)

    def test_a_file_that_is_not_text(self, tmp_path):
        path = tmp_path / "fleetcast.toml"
        path.write_bytes(b"# \xff")
        with pytest.raises(ConfigError, match="not UTF-8 at byte 2"):
            load_config(path, {})

    def test_a_file_that_is_far_too_long_is_not_parsed(self, tmp_path):
        (problem,) = problems(tmp_path, "#" * (1024 * 1024 + 1))
        assert "is this the right file?" in problem

    def test_a_variable_for_a_table_that_the_file_has_as_a_value(self, tmp_path):
        (problem,) = problems(tmp_path, "log = 'debug'", FLEETCAST_LOG_LEVEL="debug")
        assert "log: must be a table" in problem

    def test_a_secret_file_that_cannot_be_read(self, tmp_path):
        text = (
            '[identity]\nmode = "introspection"\n[identity.introspection]\nurl = "http://x"\n'
            f'client_id = "g"\nclient_secret_file = "{tmp_path}/none"'
        )
        (problem,) = problems(tmp_path, text)
        assert "identity.introspection.client_secret_file: cannot read" in problem


class TestSecrets:
    URL = "postgresql://fleet@db/x"

    @pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o777])
    @pytest.mark.parametrize("key", SECRETS)
    def test_a_secret_that_everybody_can_reach_is_refused_with_the_command_that_mends_it(
        self, tmp_path, key, mode
    ):
        for name in ("cert", "key", "password", "client", "uplink"):
            (tmp_path / name).touch(mode=0o600)
        files = dict(zip(SECRETS, ("key", "password", "client", "uplink"), strict=True))
        (tmp_path / files[key]).chmod(mode)
        (problem,) = problems(
            tmp_path,
            f'[server]\ntls_cert = "{tmp_path}/cert"\ntls_key = "{tmp_path}/key"\n'
            f'[database]\nurl = "{self.URL}"\npassword_file = "{tmp_path}/password"\n'
            '[identity]\nmode = "introspection"\n[identity.introspection]\nurl = "http://x"\n'
            f'client_id = "g"\nclient_secret_file = "{tmp_path}/client"\n'
            f'[uplink]\nurl = "http://x"\ntoken_file = "{tmp_path}/uplink"',
        )
        assert f"{key}: everybody on this machine has access to {tmp_path / files[key]}" in problem
        assert problem.endswith(f"run: chmod o= {tmp_path / files[key]}")

    def test_a_group_may_share_a_secret(self, tmp_path):
        secret = tmp_path / "password"
        secret.write_text("hunter2\n")
        secret.chmod(0o640)
        text = f'[database]\nurl = "{self.URL}"\npassword_file = "{secret}"'
        assert load(tmp_path, text).database_url == "postgresql://fleet:hunter2@db/x"

    def test_a_password_may_hold_anything(self, tmp_path):
        secret = tmp_path / "password"
        secret.touch(mode=0o600)
        secret.write_text("a@b/c:d?é#%\n")
        config = load(tmp_path, f'[database]\nurl = "{self.URL}"\npassword_file = "{secret}"')
        assert make_url(config.database_url).password == "a@b/c:d?é#%"
        assert load(tmp_path, effective(config)) == config, "what is shown is what was set"
        assert "a%40b" not in effective(config)

    def test_a_password_in_a_file_that_everybody_can_read_is_refused(self, tmp_path):
        text = '[database]\nurl = "postgresql://fleet:hunter2@db/x"'
        load(tmp_path, text)
        (tmp_path / "fleetcast.toml").chmod(0o644)
        (problem,) = problems(tmp_path, text)
        assert "database.url: holds a password, and everybody" in problem
        assert "hunter2" not in problem
        assert load(tmp_path, "", FLEETCAST_DATABASE_URL="postgresql://fleet:hunter2@db/x")


class TestWarnings:
    GOOD = '[identity]\nmode = "forward_auth"\n[identity.forward_auth]\nurl = "http://127.0.0.1/a"\n'

    @pytest.mark.parametrize(
        "text",
        [
            "",
            '[server]\nlisten_host = "::1"',
            '[server]\nlisten_host = "localhost"',
            '[server]\nlisten_host = "10.0.0.1"\ntls_cert = "{0}/c"\ntls_key = "{0}/k"\n'
            "[metrics]\nenabled = false",
            '[database]\nurl = "postgresql://u@db/x?sslmode=verify-full"',
            '[database]\nurl = "postgresql://u@localhost/x"',
            '[database]\nurl = "postgresql:///x"',
        ],
    )
    def test_none_where_all_is_well(self, tmp_path, text):
        for name in "ck":
            (tmp_path / name).touch(mode=0o600)
        assert warnings_of(load(tmp_path, self.GOOD + text.format(tmp_path))) == []

    @pytest.mark.parametrize(
        ("text", "starts"),
        [
            ('[server]\nlisten_host = "0.0.0.0"', ["server.tls_cert is not set", "metrics.enabled is true"]),
            ('[server]\nlisten_host = "::"', ["server.tls_cert is not set", "metrics.enabled is true"]),
            ('[database]\nurl = "postgresql://u@db/x"', ["database.url reaches db without"]),
            ('[database]\nurl = "postgresql://u@db/x?sslmode=require"', ["database.url reaches db without"]),
            ('[database]\nurl = "postgresql://u:p@127.0.0.1/x"', ["database.url holds a password"]),
        ],
    )
    def test_what_is_seldom_meant(self, tmp_path, text, starts):
        found = warnings_of(load(tmp_path, self.GOOD + text))
        assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts

    def test_an_origin_in_the_clear(self, tmp_path):
        (found,) = warnings_of(load(tmp_path, self.GOOD.replace("127.0.0.1", "id.example.com")))
        assert found.startswith("identity.forward_auth.url is plain HTTP to id.example.com")
        keys_url = (
            '[identity]\nmode = "jwt"\n[identity.jwt]\njwks_url = "http://x"\nissuer = "i"\naudience = "a"'
        )
        (found,) = warnings_of(load(tmp_path, keys_url))
        assert "read or replace keys" in found

    def test_no_mode_admits_nobody(self, tmp_path):
        (found,) = warnings_of(load(tmp_path, ""))
        assert found.startswith("identity.mode is not set")


class TestExample:
    def test_example_as_printed_is_the_defaults(self, tmp_path):
        assert load(tmp_path, example()) == load_config(None, {})

    def test_example_with_every_key_set_loads_and_has_every_key(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        secrets = [f"secrets/{name}" for name in ("introspection", "database", "uplink")]
        for name in ("tls/fleetcast.crt", "tls/fleetcast.key", *secrets):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch(mode=0o600)
        text = re.sub(r"^#(?! )", "", example(), flags=re.MULTILINE)
        config = load(tmp_path, text)
        assert config.identity.mode == "forward_auth"
        assert config.server.tls_key == Path("tls/fleetcast.key")
        for key in keys():
            assert f"\n{key.name} = " in text

    def test_every_key_and_table_says_what_it_means(self):
        for key in keys():
            assert key.field.description, key.path
            assert key.field.description.endswith("."), key.path
        for name, section in tables().items():
            assert section.__doc__, name

    def test_every_number_has_a_bound(self):
        assert [key.path for key in keys() if key.type in (int, float) and not key.bound] == []


class TestEffective:
    def test_effective_values_load_back_to_the_same_configuration(self, tmp_path):
        config = load(tmp_path, '[identity]\nmode="forward_auth"\n[identity.forward_auth]\nurl="http://o/a"')
        again = load(tmp_path, effective(config))
        assert again.identity == config.identity
        assert again.device == config.device
        assert again.database_url == config.database_url

    def test_lists_quotes_and_control_characters_survive(self, tmp_path):
        config = load(
            tmp_path,
            '[server]\ndata_dir = "a \\"b\\" \\u007f ä"\n[identity]\nmode = "forward_auth"\n'
            '[identity.forward_auth]\nurl = "http://o/a"\nforward_headers = ["X-A", "X-B"]',
        )
        again = load(tmp_path, effective(config))
        assert again.server.data_dir == Path('a "b" \x7f ä')
        assert again.identity == config.identity

    def test_the_database_password_is_hidden(self, tmp_path):
        config = load(tmp_path, '[database]\nurl="postgresql://fleet:hunter2@db:5432/x"')
        text = effective(config)
        assert "hunter2" not in text
        assert "postgresql://fleet:***@db:5432/x" in text


def test_reference_page_is_current():
    assert DOCUMENT.read_text() == reference(), (
        "run: python -m gateway.config > docs/reference/configuration.md"
    )


def test_the_reference_page_is_printed_by_the_module():
    printed = subprocess.run(
        [sys.executable, "-m", "gateway.config"],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert printed.stdout.decode() == reference()


def test_limits_are_filled_from_keys_of_the_same_name():
    @dataclasses.dataclass(frozen=True)
    class Limits:
        heartbeat_s: float = 1.0
        attempts_max: int = 1
        of_its_own: int = 7
        given: int = 1

    limits = load_config(None, {}).device.limits(Limits, given=3)
    assert limits == Limits(heartbeat_s=25.0, attempts_max=20, of_its_own=7, given=3)


@pytest.mark.parametrize("limits_class", [IdentityLimits, OriginLimits])
def test_defaults_of_the_keys_and_of_the_limits_are_the_same(limits_class):
    assert load_config(None, {}).identity.limits(limits_class) == limits_class()


def test_every_key_has_an_effect():
    assert {key.path for key in keys()} - keys_that_are_read() == set()
