"""Releases: made, signed and inspected offline; published to a gateway."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli.failure import AnswerFailure, RefusedFailure, UsageFailure
from gateway.cli.options import (
    DEFAULT_URL,
    AsJson,
    FleetOption,
    Limit,
    PasswordFile,
    TokenFile,
    Url,
    connect,
    load_private_key,
)
from gateway.cli.output import format_size, format_time, note, print_facts, print_json, print_table
from gateway.cli.paths import fleet_path, with_query

if TYPE_CHECKING:
    from device_sdk.wire.suit import Manifest
    from gateway.cli.api import Api
    from gateway.release import Inspection

ARTIFACT_URI: Final = "/v1/device/artifacts/"
ENVELOPE_TYPE: Final = "application/suit-envelope+cose"
# An envelope longer than the wire allows is read just far enough to be refused as that.
_READ_SIZE_MAX: Final = 1024 * 1024
# A gateway's refusal with one of these is about the content, not about the request.
_CONTENT_CODES: Final = frozenset(
    {"bad_signature", "digest_mismatch", "malformed", "too_large", "unknown_key", "unsupported"}
)

app = typer.Typer(
    no_args_is_help=True, help="Releases: create, sign and inspect work offline, publish sends to a gateway."
)

EnvelopeFile = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="A SUIT envelope.")
]
OutputFile = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the envelope.")
]


@app.command("create")
def create(
    image: Annotated[
        Path,
        typer.Option(
            "--image",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="What devices install.",
        ),
    ],
    vendor: Annotated[
        str, typer.Option("--vendor", metavar="DOMAIN", help="Your domain; it makes the vendor's UUID.")
    ],
    device_class: Annotated[
        str, typer.Option("--class", metavar="NAME", help="Kind of device; it makes the class's UUID.")
    ],
    component: Annotated[
        str, typer.Option("--component", metavar="NAME", help="What is replaced, for example main:app.")
    ],
    output: OutputFile,
    sequence: Annotated[
        str,
        typer.Option(
            "--sequence",
            metavar="N|auto",
            help="Rises with every release of the component; auto takes the seconds since 1970.",
        ),
    ] = "auto",
    version: Annotated[
        str | None, typer.Option("--version", metavar="TEXT", help="For people, up to 128 characters.")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="For people, up to 1,024 characters.")
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri",
            metavar="URI",
            help="Where devices fetch the image; without it from the gateway, by its digest.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device-uuid", metavar="UUID", help="The only device that may install it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Describe an image in an unsigned SUIT envelope. Works offline.

    The envelope names the image by size and SHA-256, so the image may travel by any way. A device never goes
    back to a lower sequence: to roll a fleet back, release the old image with a higher one.

        fleetcast release create --image app.bin --vendor acme.example --class tc3 \\
            --component main:app --version 1.4.0 -o app.suit
    """
    from device_sdk.wire.errors import WireError
    from device_sdk.wire.suit.target import class_identifier, vendor_identifier
    from gateway.release import ReleaseContent, author_envelope

    digest, size = _hash(image)
    vendor_id = vendor_identifier(vendor)
    try:
        envelope = author_envelope(
            ReleaseContent(
                vendor_identifier=vendor_id,
                class_identifier=class_identifier(vendor_id, device_class),
                component=component,
                sequence_number=_parse_sequence(sequence),
                image_digest=digest,
                image_size=size,
                uri=uri if uri is not None else ARTIFACT_URI + digest.hex(),
                device_identifier=_parse_uuid(device) if device is not None else None,
                version=version,
                description=description,
            )
        )
    except WireError as error:
        raise UsageFailure(f"no release can say that: {error}") from error
    _write(output, envelope)
    _show_manifest(_read_manifest(envelope), as_json=as_json)


@app.command("sign")
def sign(
    file: EnvelopeFile,
    key: Annotated[
        list[Path], typer.Option("--key", metavar="KEY.pem", help="A private key; may be repeated.")
    ],
    output: OutputFile,
    password_file: PasswordFile = None,
) -> None:
    """Add a signature to an envelope. Works offline; run it where the key is.

    Whoever signs vouches for all of it: look at it first, with release inspect.

        fleetcast release sign app.suit --key release.pem -o app.suit
    """
    from device_sdk.wire.errors import WireError
    from gateway.release import sign_envelope

    private_keys = [load_private_key(path, password_file) for path in key]
    try:
        signed = sign_envelope(_read(file), private_keys)
    except WireError as error:
        raise RefusedFailure(f"{file}: not signed: {error}", code=error.code) from error
    _write(output, signed)
    for private in private_keys:
        print(f"signed by {private.kid.hex()} ({private.algorithm.name})")


@app.command("inspect")
def inspect(
    file: EnvelopeFile,
    key: Annotated[
        list[Path], typer.Option("--key", metavar="PUB.pem", help="A trusted public key; may be repeated.")
    ],
    threshold: Annotated[
        int, typer.Option("--threshold", min=1, help="How many of them must have signed.")
    ] = 1,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Also check that this is the image the envelope names.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify an envelope as a device would, and show what it says. Works offline.

    Exit status 0: verified. 3: refused; standard error and the JSON name the stable code. 2: wrong usage.
    """
    from gateway.cli.keys import load_public_half
    from gateway.release import inspect_release

    keys = list(dict.fromkeys(load_public_half(path) for path in key))
    if threshold > len(keys):
        raise UsageFailure(f"{threshold} signatures by {len(keys)} keys can never be")
    found = inspect_release(_read(file), keys, threshold=threshold)
    code, reason = found.code, found.reason
    if code is None and image is not None and found.manifest is not None:
        code, reason = _compare_image(image, found.manifest)
    if as_json:
        print_json(_inspection_json(found, code, reason))
    else:
        _show_inspection(found, code)
    if code is not None:
        raise RefusedFailure(f"{file}: refused: {reason}", code=code)


@app.command("publish")
def publish(
    file: EnvelopeFile,
    fleet: FleetOption,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Upload the image first, if the gateway has it not.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="Another name than component and version.")
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Upload a signed envelope, and with --image its image. Publishing twice is publishing once.

    The gateway verifies it with the fleet's release keys (see fleet trust) and refuses what a device would
    refuse: exit status 3.

        fleetcast release publish app.suit --image app.bin --fleet acme
    """
    api = connect(url, token_file)
    envelope = _read(file)
    if image is not None:
        _upload(api, fleet, image, _read_manifest(envelope))
    path = with_query(fleet_path(fleet, "releases"), {"name": name})
    try:
        answer = api.send("POST", path, body=envelope, content_type=ENVELOPE_TYPE, is_repeatable=True)
    except AnswerFailure as failure:
        if failure.code in _CONTENT_CODES:
            raise RefusedFailure(f"{file}: refused by the gateway: {failure}", code=failure.code) from failure
        raise
    if as_json:
        print_json(answer.json())
    else:
        _show_release(answer.json())


@app.command("list")
def list_(
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List the fleet's releases."""
    items = list(connect(url, token_file).items(fleet_path(fleet, "releases"), limit=limit))
    if as_json:
        print_json(items)
        return
    print_table(
        ("id", "name", "component", "version", "sequence", "size", "created"),
        (
            (
                item["id"],
                item["name"],
                item["component"],
                item["version"],
                item["sequence"],
                format_size(item["image_size"]),
                format_time(item["created_at"]),
            )
            for item in items
        ),
        empty="no releases",
    )


@app.command("show")
def show(
    release_id: Annotated[str, typer.Argument(metavar="ID")],
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one release."""
    release = connect(url, token_file).get(fleet_path(fleet, "releases", release_id))
    if as_json:
        print_json(release)
    else:
        _show_release(release)


def _parse_sequence(text: str) -> int:
    from device_sdk.wire.limits import INTEGER_MAX

    if text == "auto":
        return int(time.time())
    if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > INTEGER_MAX:
        raise UsageFailure(f"--sequence is auto, or a whole number up to {INTEGER_MAX}, not {text!r}")
    return int(text)


def _parse_uuid(text: str) -> bytes:
    import uuid

    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise UsageFailure(f"{text!r} is not a UUID") from None


def _hash(image: Path) -> tuple[bytes, int]:
    with image.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return digest, file.tell()


def _read(file: Path) -> bytes:
    with file.open("rb") as source:
        return source.read(_READ_SIZE_MAX)


def _write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, whole or not at all: it may be the file it was made of."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _read_manifest(envelope: bytes) -> Manifest:
    """Return what ``envelope`` says, whoever signed it.

    Raises:
        RefusedFailure: It cannot be read.
    """
    from gateway.release import inspect_release

    found = inspect_release(envelope, ())
    if found.manifest is None:
        raise RefusedFailure(f"not a release: {found.reason}", code=found.code or "malformed")
    return found.manifest


def _compare_image(image: Path, manifest: Manifest) -> tuple[str | None, str | None]:
    if _hash(image) == (manifest.image_digest, manifest.image_size):
        return None, None
    return "digest_mismatch", f"{image} is not the image that the envelope names"


def _manifest_json(manifest: Manifest) -> dict[str, Any]:
    import uuid

    def as_uuid(value: bytes | None) -> str | None:
        return None if value is None else str(uuid.UUID(bytes=value)) if len(value) == 16 else value.hex()

    return {
        "manifest_digest": manifest.digest.hex(),
        "component": str(manifest.component),
        "sequence": manifest.sequence_number,
        "version": manifest.version,
        "description": manifest.description,
        "vendor_id": as_uuid(manifest.vendor_identifier),
        "class_id": as_uuid(manifest.class_identifier),
        "device_id": as_uuid(manifest.device_identifier),
        "image_digest": manifest.image_digest.hex(),
        "image_size": manifest.image_size,
        "uri": manifest.uri,
        "is_installable": manifest.is_installable,
    }


def _show_manifest(manifest: Manifest, *, as_json: bool) -> None:
    facts = _manifest_json(manifest)
    print_json(facts) if as_json else print_facts(facts)


def _inspection_json(found: Inspection, code: str | None, reason: str | None) -> dict[str, Any]:
    return {
        "verified": code is None,
        "code": code,
        "reason": reason,
        "signatures": [
            {
                "kid": signature.kid.hex() if signature.kid is not None else None,
                "algorithm": signature.algorithm,
                "verified": signature.code is None,
                "code": signature.code,
            }
            for signature in found.signatures
        ],
        "manifest": _manifest_json(found.manifest) if found.manifest is not None else None,
    }


def _show_inspection(found: Inspection, code: str | None) -> None:
    print("verified" if code is None else f"REFUSED: {code}")
    for signature in found.signatures:
        kid = signature.kid.hex() if signature.kid is not None else "(no kid)"
        print(f"signature  {kid}  {'good' if signature.code is None else signature.code}")
    if found.manifest is not None:
        print("it says:" if code is None else "it says, without proof:")
        print_facts(_manifest_json(found.manifest))


def _upload(api: Api, fleet: str, image: Path, manifest: Manifest) -> None:
    from gateway.cli.progress import upload_bar

    code, reason = _compare_image(image, manifest)
    if code is not None:
        raise RefusedFailure(f"not uploaded: {reason}", code=code)
    path = fleet_path(fleet, "artifacts", manifest.image_digest.hex())
    if api.exists(path):
        note(f"the gateway has the image already ({format_size(manifest.image_size)})")
        return
    with image.open("rb") as file, upload_bar(image.name, manifest.image_size) as advance:
        api.upload(path, file, manifest.image_size, on_progress=advance)


def _show_release(release: dict[str, Any]) -> None:
    print_facts(release | {"created_at": format_time(release["created_at"])})
