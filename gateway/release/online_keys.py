"""The keys that the gateway signs with: alerts, directives, statements (PROTOCOL §7.4).

Three files in one directory, made at the first start, mode 0600. The operator's root document names their
public halves. Offline keys, root and release, are never here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from device_sdk.wire.errors import WireError
from device_sdk.wire.keys import PrivateKey, Role
from gateway.errors import ConfigError

_ROLES = (Role.ALERT, Role.DIRECTIVE, Role.STATEMENT)


@dataclass(frozen=True, slots=True)
class OnlineKeys:
    """One key for each online role, no two alike."""

    alert: PrivateKey
    directive: PrivateKey
    statement: PrivateKey

    @classmethod
    def open(cls, directory: Path) -> OnlineKeys:
        """Return the keys in ``directory``; what is missing is made and synced to the disk.

        Several processes may open one directory at the same time: they all get the same keys.

        Raises:
            ConfigError: A file that others may read, that is no key, or the same key twice.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for role in _ROLES:
                _make(directory / f"{role}.pem")
            _sync(directory)
        except OSError as error:
            raise ConfigError([f"online keys cannot be made in {directory}: {error.strerror}"]) from error
        keys = {role: _load(directory / f"{role}.pem") for role in _ROLES}
        if len({key.kid for key in keys.values()}) != len(keys):
            raise ConfigError([f"{directory} holds one key under two roles; remove the copy, and restart"])
        return cls(keys[Role.ALERT], keys[Role.DIRECTIVE], keys[Role.STATEMENT])


def _make(path: Path) -> None:
    """Make a key at ``path`` if there is none: whole and synced under another name before it has this one."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    PrivateKey.generate().save(draft)
    try:
        # A link never replaces: whoever was first wins, and everybody loads that one.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _load(path: Path) -> PrivateKey:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
                raise ConfigError([f"{path} may be read by others; chmod 600 {path}"])
            return PrivateKey.from_pem(file.read())
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from error
    except WireError as error:
        raise ConfigError([f"{path} is not a signing key without a password: {error}"]) from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
