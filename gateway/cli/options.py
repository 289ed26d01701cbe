"""The options that many commands share, and what is made of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli.failure import UsageFailure

if TYPE_CHECKING:
    from device_sdk.wire.keys import PrivateKey
    from gateway.cli.api import Api
    from gateway.config import Config

DEFAULT_URL: Final = "http://127.0.0.1:8080"
_TOKEN = re.compile(r"fct_[A-Za-z0-9_-]{43}\Z")
_TOKEN_FILE_SIZE_MAX: Final = 4096

Url = Annotated[
    str,
    typer.Option("--url", envvar="FLEETCAST_URL", metavar="URL", help="Address of the gateway."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="FLEETCAST_TOKEN_FILE",
        metavar="FILE",
        help="File that holds an operator token, and nothing else.",
    ),
]
FleetOption = Annotated[
    str,
    typer.Option("--fleet", envvar="FLEETCAST_FLEET", metavar="NAME", help="Which fleet."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of columns.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most so many.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="FLEETCAST_CONFIG",
        metavar="FILE",
        help="TOML file; without it everything has its default.",
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="File that holds the password of the private key; without it an encrypted key asks.",
    ),
]


def connect(url: str, token_file: Path | None) -> Api:
    """Return the gateway at ``url`` as the operator whose token ``token_file`` holds.

    Raises:
        UsageFailure: No file, not a token in it, or not an address.
    """
    from gateway.cli.api import Api

    if token_file is None:
        raise UsageFailure(
            "no operator token; name its file with --token-file or FLEETCAST_TOKEN_FILE "
            "(fleetcast token create makes one)"
        )
    token = read_secret(token_file)
    if not _TOKEN.match(token):
        raise UsageFailure(f"{token_file} does not hold an operator token (fct_ and 43 characters)")
    return Api(url, token)


def load_configuration(path: Path | None) -> Config:
    """Return the configuration in ``path``, or the defaults. Raises ConfigError."""
    from gateway.config import load_config

    return load_config(path)


def load_private_key(path: Path, password_file: Path | None) -> PrivateKey:
    """Return the private key in ``path``; an encrypted one without ``password_file`` asks on the terminal.

    Raises:
        UsageFailure: No such file, not a private key of ours, or not its password.
    """
    from device_sdk.wire.errors import WireError
    from device_sdk.wire.keys import PrivateKey

    try:
        pem = path.read_bytes()
    except OSError as error:
        raise UsageFailure(f"cannot read {path}: {error.strerror}") from error
    password = read_secret(password_file).encode() if password_file is not None else None
    if password is None and b"ENCRYPTED" in pem:
        password = str(typer.prompt(f"Password of {path}", hide_input=True, err=True)).encode()
    try:
        return PrivateKey.from_pem(pem, password=password)
    except WireError as error:
        raise UsageFailure(f"{path}: {error}") from error


def read_secret(path: Path) -> str:
    """Return the text in ``path`` without white space around it."""
    try:
        with path.open("rb") as file:
            raw = file.read(_TOKEN_FILE_SIZE_MAX)
        return raw.decode().strip()
    except OSError as error:
        raise UsageFailure(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageFailure(f"{path} is not text") from error


def write_secret(path: Path, text: str) -> None:
    """Write ``text`` to the new file ``path``, mode 0600. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
