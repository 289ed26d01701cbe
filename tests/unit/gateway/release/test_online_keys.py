from __future__ import annotations

import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from device_sdk.wire.keys import PrivateKey
from gateway.errors import ConfigError
from gateway.release.online_keys import OnlineKeys

ROLES = ("alert", "directive", "statement")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "online"


def kids(keys: OnlineKeys) -> list[bytes]:
    return [keys.alert.kid, keys.directive.kid, keys.statement.kid]


def test_three_distinct_keys_are_made_for_the_owner_alone(directory: Path) -> None:
    keys = OnlineKeys.open(directory)
    assert len(set(kids(keys))) == 3
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {
        f"{role}.pem": 0o600 for role in ROLES
    }


def test_they_are_the_same_at_the_next_start(directory: Path) -> None:
    assert kids(OnlineKeys.open(directory)) == kids(OnlineKeys.open(directory))


def test_one_that_is_missing_is_made_and_the_others_stay(directory: Path) -> None:
    before = OnlineKeys.open(directory)
    (directory / "statement.pem").unlink()
    after = OnlineKeys.open(directory)
    assert (after.alert.kid, after.directive.kid) == (before.alert.kid, before.directive.kid)
    assert after.statement.kid != before.statement.kid


def test_those_who_start_at_once_have_the_same_keys(directory: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: kids(OnlineKeys.open(directory)), range(8)))
    assert found == [found[0]] * 8
    assert {path.name for path in directory.iterdir()} == {f"{role}.pem" for role in ROLES}


def test_an_operators_own_key_is_taken(directory: Path) -> None:
    own = PrivateKey.generate()
    directory.mkdir(parents=True)
    own.save(directory / "alert.pem")
    assert OnlineKeys.open(directory).alert.kid == own.kid


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_key_that_others_may_read_is_refused_with_the_cure(directory: Path, mode: int) -> None:
    OnlineKeys.open(directory)
    path = directory / "directive.pem"
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        OnlineKeys.open(directory)


def test_one_key_under_two_roles_is_refused(directory: Path) -> None:
    OnlineKeys.open(directory)
    shutil.copy2(directory / "alert.pem", directory / "statement.pem")
    with pytest.raises(ConfigError, match="one key under two roles"):
        OnlineKeys.open(directory)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused_and_left_alone(directory: Path, content: bytes) -> None:
    OnlineKeys.open(directory)
    path = directory / "alert.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a signing key"):
        OnlineKeys.open(directory)
    assert path.read_bytes() == content


def test_an_encrypted_key_is_refused(directory: Path) -> None:
    directory.mkdir(parents=True)
    PrivateKey.generate().save(directory / "alert.pem", password=b"secret")
    with pytest.raises(ConfigError, match="without a password"):
        OnlineKeys.open(directory)


def test_a_directory_in_the_place_of_a_key_is_refused(directory: Path) -> None:
    (directory / "alert.pem").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"alert\.pem"):
        OnlineKeys.open(directory)


def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        OnlineKeys.open(tmp_path / "file" / "keys")


def test_a_half_made_key_of_a_crash_is_in_nobodys_way(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / ".alert.pem.0123").write_bytes(b"half")
    keys = OnlineKeys.open(directory)
    assert len(set(kids(keys))) == 3
    assert os.listdir(directory).count(".alert.pem.0123") == 1
