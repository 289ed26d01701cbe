"""Signing keys: made and looked at offline."""

from __future__ import annotations

import enum
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.failure import Failure, UsageFailure
from gateway.cli.options import AsJson, PasswordFile, load_private_key, read_secret
from gateway.cli.output import print_facts, print_json

if TYPE_CHECKING:
    from device_sdk.wire.keys import PublicKey

app = typer.Typer(
    no_args_is_help=True, help="Keys that sign releases. They stay with you: no gateway needs one."
)


class KeyAlgorithm(enum.StrEnum):
    """What a key is."""

    ED25519 = "ed25519"
    P256 = "p256"


@app.command("generate")
def generate(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PREFIX", help="Writes PREFIX.pem and PREFIX.pub.pem.")
    ],
    algorithm: Annotated[
        KeyAlgorithm, typer.Option("--algorithm", help="Ed25519, or ECDSA on P-256 with SHA-256.")
    ] = KeyAlgorithm.ED25519,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key pair. PREFIX.pem is the secret, mode 0600; PREFIX.pub.pem goes into devices.

    No file is overwritten. With --password-file the secret is encrypted.
    """
    from device_sdk.wire.keys import Algorithm, PrivateKey

    private, public = Path(f"{output}.pem"), Path(f"{output}.pub.pem")
    for path in (private, public):
        if path.exists():
            raise Failure(f"{path} is there already; keys are never overwritten", code="file_exists")
    password = read_secret(password_file).encode() if password_file is not None else None
    if password == b"":
        raise UsageFailure(f"{password_file} holds no password")
    key = PrivateKey.generate(Algorithm.ED25519 if algorithm is KeyAlgorithm.ED25519 else Algorithm.ESP256)
    key.save(private, password=password)
    with public.open("xb") as file:
        file.write(key.public.to_pem())
    facts = _facts(key.public) | {"private": str(private), "public": str(public)}
    print_json(facts) if as_json else print_facts(facts)


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="PEM of a public or a private key.")],
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Show a key's name (kid) and fingerprint. The secret half is never shown."""
    key = load_public_half(file, password_file)
    print_json(_facts(key)) if as_json else print_facts(_facts(key))


def load_public_half(path: Path, password_file: Path | None = None) -> PublicKey:
    """Return the public key in ``path``, or the public half of the private one there.

    Raises:
        UsageFailure: No such file, or no key of ours in it.
    """
    from device_sdk.wire.errors import WireError
    from device_sdk.wire.keys import PublicKey

    try:
        pem = path.read_bytes()
    except OSError as error:
        raise UsageFailure(f"cannot read {path}: {error.strerror}") from error
    if b"PRIVATE KEY" in pem:
        return load_private_key(path, password_file).public
    try:
        return PublicKey.from_pem(pem)
    except WireError as error:
        raise UsageFailure(f"{path}: {error}") from error


def fingerprint(key: PublicKey) -> str:
    """Return the SHA-256 of ``key`` as SubjectPublicKeyInfo; its first 16 digits are the kid."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_public_key,
    )

    der = load_pem_public_key(key.to_pem()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _facts(key: PublicKey) -> dict[str, object]:
    return {
        "kid": key.kid.hex(),
        "algorithm": key.algorithm.name,
        "fingerprint": fingerprint(key),
    }
