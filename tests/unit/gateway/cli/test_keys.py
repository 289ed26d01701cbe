"""``fleetcast key``: what is written, with which mode, and never over anything."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from device_sdk.wire.keys import Algorithm, PrivateKey, PublicKey

Run = Callable[..., Result]


class TestGenerate:
    @pytest.mark.parametrize(
        ("name", "algorithm"), [("ed25519", Algorithm.ED25519), ("p256", Algorithm.ESP256)]
    )
    def test_pair_is_written_and_the_secret_is_its_owners_alone(
        self, run: Run, tmp_path: Path, name: str, algorithm: Algorithm
    ) -> None:
        result = run("key", "generate", "--output", tmp_path / "release", "--algorithm", name, "--json")
        assert result.exit_code == 0
        private = PrivateKey.load(tmp_path / "release.pem")
        assert private.algorithm is algorithm
        assert PublicKey.load(tmp_path / "release.pub.pem") == private.public
        assert (tmp_path / "release.pem").stat().st_mode & 0o777 == 0o600
        assert json.loads(result.stdout)["kid"] == private.kid.hex()

    @pytest.mark.parametrize("there", ["release.pem", "release.pub.pem"])
    def test_file_that_is_there_is_never_overwritten(self, run: Run, tmp_path: Path, there: str) -> None:
        (tmp_path / there).write_bytes(b"precious")
        result = run("key", "generate", "--output", tmp_path / "release")
        assert result.exit_code == 1
        assert "[file_exists]" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == [there]
        assert (tmp_path / there).read_bytes() == b"precious"

    def test_folder_that_is_not_there_is_one_line(self, run: Run, tmp_path: Path) -> None:
        result = run("key", "generate", "--output", tmp_path / "no" / "release")
        assert result.exit_code == 1
        assert result.stderr.endswith("release.pem: No such file or directory [file]\n")

    def test_password_encrypts_the_secret(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("correct horse\n")
        result = run("key", "generate", "--output", tmp_path / "k", "--password-file", tmp_path / "password")
        assert result.exit_code == 0
        assert b"ENCRYPTED" in (tmp_path / "k.pem").read_bytes()
        PrivateKey.load(tmp_path / "k.pem", password=b"correct horse")

    def test_empty_password_is_none_and_so_refused(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("\n")
        result = run("key", "generate", "--output", tmp_path / "k", "--password-file", tmp_path / "password")
        assert result.exit_code == 2
        assert not (tmp_path / "k.pem").exists()


class TestShow:
    def test_kid_and_fingerprint_are_what_openssl_computes(self, run: Run, tmp_path: Path) -> None:
        run("key", "generate", "--output", tmp_path / "k")
        shown = json.loads(run("key", "show", tmp_path / "k.pub.pem", "--json").stdout)
        der = subprocess.run(
            ["openssl", "pkey", "-pubin", "-in", tmp_path / "k.pub.pem", "-outform", "DER"],
            check=True,
            capture_output=True,
        ).stdout
        digest = subprocess.run(["sha256sum"], input=der, check=True, capture_output=True).stdout.decode()
        assert shown["fingerprint"] == digest.split()[0]
        assert shown["kid"] == digest[:16]

    def test_private_key_shows_its_public_half_alone(self, run: Run, tmp_path: Path) -> None:
        run("key", "generate", "--output", tmp_path / "k")
        private = run("key", "show", tmp_path / "k.pem")
        assert private.stdout == run("key", "show", tmp_path / "k.pub.pem").stdout
        assert "PRIVATE" not in private.output

    def test_encrypted_key_asks_for_its_password(self, run: Run, tmp_path: Path) -> None:
        PrivateKey.generate().save(tmp_path / "k.pem", password=b"secret")
        assert run("key", "show", tmp_path / "k.pem", text="secret\n").exit_code == 0
        wrong = run("key", "show", tmp_path / "k.pem", text="guess\n")
        assert wrong.exit_code == 2
        assert "[usage]" in wrong.stderr

    @pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\n"])
    def test_what_is_no_key_is_wrong_usage(self, run: Run, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "k").write_bytes(content)
        assert run("key", "show", tmp_path / "k").exit_code == 2
        assert run("key", "show", tmp_path / "missing").exit_code == 2
