"""The command line against a gateway: ``fleetcast serve`` in a process of its own, on SQLite."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from device_sdk.wire.keys import PrivateKey, Role
from device_sdk.wire.signed.root import verify_root
from gateway.cli.api import Api
from gateway.cli.program import app
from tests.harness.gateway import GatewayProcess

FLEET = "acme"
IMAGE = os.urandom(300_000)
STRANGER_ID = str(uuid.UUID(int=7))


class Operator:
    """An operator's shell: variables that name the gateway, a folder with a release key and an image."""

    def __init__(self, gateway: GatewayProcess, folder: Path) -> None:
        self.folder = folder
        self.variables = {
            "FLEETCAST_URL": gateway.url,
            "FLEETCAST_TOKEN_FILE": str(gateway.folder / "operator.token"),
            "FLEETCAST_FLEET": FLEET,
        }
        self.api = Api(gateway.url, gateway.token)
        self.key = PrivateKey.generate()
        self.key.save(folder / "release.pem")
        (folder / "image").write_bytes(IMAGE)

    def run(self, *arguments: object, text: str | None = None) -> Result:
        words = [str(argument) for argument in arguments]
        result = CliRunner().invoke(app, words, env=self.variables, input=text)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def does(self, *arguments: object) -> str:
        """Run what must succeed; return its standard output."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def reads(self, *arguments: object) -> Any:
        return json.loads(self.does(*arguments, "--json"))

    def fails(self, status: int, code: str, *arguments: object) -> None:
        result = self.run(*arguments)
        assert result.exit_code == status, result.output
        assert f"[{code}]" in result.stderr

    def release(self, *arguments: object, key: str | None = "release.pem") -> Path:
        """Return a new envelope of the image, signed unless ``key`` is None."""
        envelope = self.folder / f"{uuid.uuid4()}.suit"
        self.does(
            *("release", "create", "--image", self.folder / "image", "--vendor", "acme.example"),
            *("--class", "tc3", "--component", "main:app", "--version", "1.4.0", "--output", envelope),
            *arguments,
        )
        if key is not None:
            self.does("release", "sign", envelope, "--key", self.folder / key, "--output", envelope)
        return envelope


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    gateway = GatewayProcess(tmp_path_factory.mktemp("gateway"), fleet=FLEET)
    with asyncio.Runner() as runner:
        runner.run(gateway.__aenter__())
        try:
            yield Operator(gateway, tmp_path_factory.mktemp("operator"))
        finally:
            runner.run(gateway.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def trusted(operator: Operator) -> Operator:
    operator.does("fleet", "trust", "--key", operator.folder / "release.pem", "--yes")
    return operator


@pytest.fixture(scope="module")
def published(trusted: Operator) -> dict[str, Any]:
    found: dict[str, Any] = trusted.reads(
        "release", "publish", trusted.release("--sequence", "100"), "--image", trusted.folder / "image"
    )
    return found


Start = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def start(trusted: Operator, published: dict[str, Any]) -> Start:
    """Start a rollout on a new channel with a few devices."""

    def start(*arguments: object) -> dict[str, Any]:
        channel = f"firmware-{uuid.uuid4().hex[:8]}"
        trusted.does("channel", "create", channel, "--kind", "update")
        for number in range(4):
            trusted.does("device", "add", f"{channel}-{number}")
            trusted.does("device", "subscribe", f"{channel}-{number}", channel)
        found: dict[str, Any] = trusted.reads(
            "rollout", "start", "--release", published["id"], "--channel", channel, *arguments
        )
        return found

    return start


class TestFleet:
    def test_token_of_one_fleet_sees_no_list_of_all(self, operator: Operator) -> None:
        operator.fails(1, "permission_denied", "fleet", "list")
        operator.fails(1, "permission_denied", "fleet", "show", "another")
        assert operator.reads("fleet", "show", FLEET)["name"] == FLEET

    def test_trust_is_asked_about_and_can_be_refused(self, operator: Operator) -> None:
        before = operator.reads("fleet", "show", FLEET)
        result = operator.run("fleet", "trust", "--key", operator.folder / "release.pem", text="n\n")
        assert result.exit_code == 1
        for key in before["keys"]["online"]:
            assert key["kid"] in result.stdout
        assert operator.reads("fleet", "show", FLEET) == before

    def test_devices_with_the_release_key_learn_the_gateways_keys(self, trusted: Operator) -> None:
        data = trusted.api.send("GET", f"/fleets/{FLEET}/root").body
        document = verify_root(data, [trusted.key.public], fleet=FLEET)
        online = {key["role"]: key["kid"] for key in trusted.reads("fleet", "show", FLEET)["keys"]["online"]}
        for role in (Role.DIRECTIVE, Role.STATEMENT, Role.ALERT):
            assert [kid.hex() for kid in document.keys_of(role)] == [online[role.value]]

    def test_trust_again_is_the_next_version(self, trusted: Operator) -> None:
        version = trusted.reads("fleet", "show", FLEET)["root_version"]
        trusted.does("fleet", "trust", "--key", trusted.folder / "release.pem", "--yes")
        assert trusted.reads("fleet", "show", FLEET)["root_version"] == version + 1


class TestChannels:
    def test_channel_is_made_shown_and_deleted(self, operator: Operator) -> None:
        operator.does("channel", "create", "lab", "--kind", "alert", "--retention-count", "5")
        shown = operator.reads("channel", "show", "lab")
        assert (shown["kind"], shown["retention_count"]) == ("alert", 5)
        assert "lab" in operator.does("channel", "list")
        operator.fails(1, "channel_exists", "channel", "create", "lab", "--kind", "alert")
        assert operator.run("channel", "delete", "lab", text="n\n").exit_code == 1
        operator.does("channel", "delete", "lab", "--yes")
        operator.fails(1, "not_found", "channel", "show", "lab")


class TestDevices:
    def test_device_is_added_disabled_enabled_and_removed(self, operator: Operator) -> None:
        operator.does("device", "add", "pump-1", "--tag", "eu", "--tag", "lab")
        assert operator.reads("device", "show", "pump-1")["tags"] == ["eu", "lab"]
        operator.does("device", "disable", "pump-1")
        assert not operator.reads("device", "show", "pump-1")["is_enabled"]
        operator.does("device", "enable", "pump-1")
        assert "pump-1" in operator.does("device", "list")
        operator.does("device", "remove", "pump-1", "--yes")
        operator.fails(1, "not_found", "device", "show", "pump-1")

    def test_subscription_is_given_and_taken_back(self, operator: Operator) -> None:
        operator.does("channel", "create", "news", "--kind", "alert")
        operator.does("device", "add", "pump-2")
        operator.does("device", "subscribe", "pump-2", "news")
        channels = [item["channel"] for item in operator.reads("device", "show", "pump-2")["subscriptions"]]
        assert "news" in channels
        assert "operator" in operator.does("device", "show", "pump-2")
        operator.does("device", "unsubscribe", "pump-2", "news")
        channels = [item["channel"] for item in operator.reads("device", "show", "pump-2")["subscriptions"]]
        assert "news" not in channels


class TestAlerts:
    def test_alert_is_sent_once_and_its_facts_are_shown(self, operator: Operator) -> None:
        operator.does("channel", "create", "ops", "--kind", "alert")
        operator.does("device", "add", "pump-3")
        operator.does("device", "subscribe", "pump-3", "ops")
        send = ("alert", "send", "--channel", "ops", "--idempotency-key", "one", "--print-json")
        first, second = (json.loads(operator.does(*send, "--json", '{"level": 3}')) for _ in range(2))
        assert first == second
        assert [item["id"] for item in operator.reads("alert", "list", "--channel", "ops")] == [first["id"]]
        shown = operator.reads("alert", "show", first["id"])
        assert shown["json"] == {"level": 3}
        (delivery,) = shown["deliveries"]
        assert (delivery["device_id"], delivery["received_at"]) == ("pump-3", None)
        assert "0 of 1 devices" in operator.does("alert", "show", first["id"])
        operator.fails(1, "idempotency_key_reused", *send, "--text", "another")

    def test_channel_that_is_not_there_is_said(self, operator: Operator) -> None:
        operator.fails(1, "not_found", "alert", "send", "--channel", "nowhere", "--text", "x")
        operator.fails(1, "not_found", "alert", "show", STRANGER_ID)

    def test_no_dead_letters_are_no_rows(self, operator: Operator) -> None:
        assert operator.does("dead-letter", "list") == ""
        assert operator.reads("dead-letter", "list") == []
        operator.fails(1, "not_found", "dead-letter", "requeue", "17")


class TestReleases:
    def test_signed_release_is_published_with_its_image_once(
        self, trusted: Operator, published: dict[str, Any]
    ) -> None:
        assert (published["component"], published["sequence"]) == ("main:app", 100)
        path = f"/fleets/{FLEET}/artifacts/{published['image_digest']}"
        assert trusted.api.send("GET", path).body == IMAGE
        again = trusted.run(
            *("release", "publish", trusted.release("--sequence", "100")),
            *("--image", trusted.folder / "image", "--json"),
        )
        assert json.loads(again.stdout)["id"] == published["id"]
        assert "has the image already" in again.stderr
        assert published["id"] in trusted.does("release", "list")
        assert trusted.reads("release", "show", published["id"]) == published

    def test_unsigned_and_foreign_releases_are_refused(self, trusted: Operator) -> None:
        before = trusted.reads("release", "list")
        trusted.fails(3, "unknown_key", "release", "publish", trusted.release("--sequence", "101", key=None))
        PrivateKey.generate().save(trusted.folder / "foreign.pem")
        foreign = trusted.release("--sequence", "102", key="foreign.pem")
        trusted.fails(3, "unknown_key", "release", "publish", foreign)
        assert trusted.reads("release", "list") == before

    def test_another_image_is_not_even_uploaded(self, trusted: Operator) -> None:
        other = trusted.folder / "other"
        other.write_bytes(IMAGE + b"!")
        trusted.fails(
            *(3, "digest_mismatch", "release", "publish", trusted.release("--sequence", "103")),
            *("--image", other),
        )


class TestRollouts:
    def test_rollout_is_started_paused_widened_resumed_and_aborted(
        self, trusted: Operator, start: Start
    ) -> None:
        rollout = start("--percent", "25", "--selector", 'tag in ("eu")', "--name", "first")
        assert (rollout["state"], rollout["percent"], rollout["name"]) == ("running", 25, "first")
        assert rollout["id"] in trusted.does("rollout", "list")
        assert trusted.reads("rollout", "pause", rollout["id"])["state"] == "paused"
        assert trusted.reads("rollout", "widen", rollout["id"], "--percent", "50")["percent"] == 50
        trusted.fails(1, "boundary_moves_up", "rollout", "widen", rollout["id"], "--percent", "10")
        assert trusted.reads("rollout", "resume", rollout["id"])["state"] == "running"
        assert trusted.run("rollout", "abort", rollout["id"], text="n\n").exit_code == 1
        assert trusted.reads("rollout", "abort", rollout["id"], "--yes")["state"] == "aborted"
        trusted.fails(1, "rollout_state", "rollout", "resume", rollout["id"])
        assert trusted.does("deployment", "list", "--rollout", rollout["id"]) == ""

    def test_watching_ends_when_it_is_over_or_when_told(self, trusted: Operator, start: Start) -> None:
        rollout = start()
        trusted.fails(
            *(1, "watch_timeout", "rollout", "watch", rollout["id"], "--interval", "0.1"),
            *("--timeout", "0.1", "--json"),
        )
        trusted.does("rollout", "abort", rollout["id"], "--yes")
        (line,) = trusted.does("rollout", "watch", rollout["id"], "--json").splitlines()
        assert json.loads(line)["state"] == "aborted"
        assert trusted.run("rollout", "watch", rollout["id"], "--exit-status").exit_code == 1

    def test_what_is_not_there_is_said(self, trusted: Operator) -> None:
        trusted.fails(1, "not_found", "rollout", "show", STRANGER_ID)
        trusted.fails(1, "not_found", "deployment", "show", STRANGER_ID)

    def test_bad_selector_says_where(self, trusted: Operator, published: dict[str, Any]) -> None:
        trusted.does("channel", "create", "firmware", "--kind", "update")
        result = trusted.run(
            *("rollout", "start", "--release", published["id"], "--channel", "firmware"),
            *("--selector", "origin.model =="),
        )
        assert result.exit_code == 1
        assert "[bad_selector]" in result.stderr
