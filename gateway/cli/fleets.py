"""Fleets, and the one step that makes a fleet's devices trust its gateway: ``fleet trust``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli.failure import Failure, UsageFailure
from gateway.cli.options import (
    DEFAULT_URL,
    AsJson,
    FleetOption,
    Limit,
    PasswordFile,
    TokenFile,
    Url,
    Yes,
    connect,
    load_private_key,
)
from gateway.cli.output import format_time, note, print_facts, print_json, print_table
from gateway.cli.paths import fleet_path, path_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from device_sdk.wire.keys import PrivateKey, PublicKey, Role
    from gateway.cli.api import Json

DAY_MS: Final = 24 * 3600 * 1000

app = typer.Typer(no_args_is_help=True, help="Fleets: each has its devices, channels, releases and keys.")

FleetName = Annotated[str, typer.Argument(metavar="FLEET")]


@app.command("create")
def create(
    name: FleetName, url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Create a fleet. Its devices can connect from now on, if the origin says so."""
    fleet = connect(url, token_file).post("/fleets", {"name": name})
    print_json(fleet) if as_json else print(f"created fleet {fleet['name']}")


@app.command("list")
def list_(
    url: Url = DEFAULT_URL, token_file: TokenFile = None, limit: Limit = 100, as_json: AsJson = False
) -> None:
    """List the fleets that the token may see."""
    items = list(connect(url, token_file).items("/fleets", limit=limit))
    if as_json:
        print_json(items)
        return
    print_table(
        ("name", "root version", "created"),
        ((item["name"], item["root_version"], format_time(item["created_at"])) for item in items),
        empty="no fleets",
    )


@app.command("show")
def show(
    name: FleetName, url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Show a fleet and the keys its devices and its gateway trust."""
    api = connect(url, token_file)
    fleet = api.get(path_of("fleets", name))
    keys = api.get(path_of("fleets", name, "keys"))
    if as_json:
        print_json(fleet | {"keys": keys})
        return
    print_facts(fleet | {"created_at": format_time(fleet["created_at"])})
    print()
    print_table(("role", "kid"), _listed_keys(keys))


@app.command("trust")
def trust(
    fleet: FleetOption,
    key: Annotated[
        Path,
        typer.Option(
            "--key",
            metavar="RELEASE.pem",
            help="The release key (private) that devices are provisioned with.",
        ),
    ],
    release_key: Annotated[
        list[Path] | None,
        typer.Option(
            "--release-key", metavar="PUB.pem", help="One more key that may sign releases; may be repeated."
        ),
    ] = None,
    threshold: Annotated[
        int, typer.Option("--threshold", min=1, help="How many of the release keys must sign a release.")
    ] = 1,
    expires_days: Annotated[
        int, typer.Option("--expires-days", min=1, max=3650, help="How long the root document is good.")
    ] = 365,
    password_file: PasswordFile = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    yes: Yes = False,
) -> None:
    """Say which keys the fleet's devices shall trust, signed with your release key.

    Devices know the release key alone. They accept this gateway's alerts and directives only once a root
    document, signed with that key, names the gateway's online keys. This command fetches those, shows them,
    signs the document here (the key does not leave this machine) and uploads it. Compare the fingerprints
    with what the gateway logged at its first start. Repeat it when keys change, and before it expires.

        fleetcast fleet trust --fleet acme --key release.pem
    """
    from gateway.cli.keys import load_public_half

    private = load_private_key(key, password_file)
    releases = list(dict.fromkeys([private.public, *map(load_public_half, release_key or ())]))
    if threshold > len(releases):
        raise UsageFailure(f"{threshold} signatures by {len(releases)} release keys can never be")
    api = connect(url, token_file)
    offer = parse_offer(api.get(fleet_path(fleet, "keys")))
    _show_trust(fleet, offer, releases)
    if not yes:
        typer.confirm(f"Sign this as version {offer.root_version + 1} for {fleet}?", abort=True, err=True)
    document = sign_document(
        fleet,
        private,
        offer,
        releases,
        threshold=threshold,
        now_ms=int(time.time() * 1000),
        lifetime_ms=expires_days * DAY_MS,
    )
    for public in releases:
        api.put(fleet_path(fleet, "release-keys", public.kid.hex()), {"public_pem": public.to_pem().decode()})
    api.send("PUT", fleet_path(fleet, "root"), body=document, content_type="application/cose")
    print(f"{fleet} trusts version {offer.root_version + 1}, signed by {private.kid.hex()}")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a gateway asks to be trusted with.

    Attributes:
        online: Its own keys by role: directive, statement, alert.
        root_version: Of the document that is in force; 0: none is.
        release_kids: Of the release keys registered so far, hexadecimal.
    """

    online: Mapping[Role, PublicKey]
    root_version: int
    release_kids: tuple[str, ...]


def parse_offer(answer: Json) -> Offer:
    """Return the keys in ``answer``, each found to be the one its kid names.

    Raises:
        Failure: ``bad_answer``: a key that is none, or not exactly one for each online role.
    """
    from device_sdk.wire.errors import WireError
    from device_sdk.wire.keys import PublicKey, Role

    online: dict[Role, PublicKey] = {}
    try:
        for item in answer["online"]:
            key = PublicKey.from_pem(item["public_pem"].encode())
            role = Role(item["role"])
            if key.kid.hex() != item["kid"] or role in online:
                raise ValueError(f"the {role} key is not what it is called")
            online[role] = key
        if online.keys() != {Role.DIRECTIVE, Role.STATEMENT, Role.ALERT}:
            raise ValueError("not one key for each of directive, statement and alert")
        return Offer(
            online, int(answer["root_version"]), tuple(item["kid"] for item in answer["release_keys"])
        )
    except (KeyError, ValueError, TypeError, AttributeError, WireError) as error:
        raise Failure(f"the gateway's keys cannot be used: {error}", code="bad_answer") from error


def sign_document(
    fleet: str,
    key: PrivateKey,
    offer: Offer,
    releases: Sequence[PublicKey],
    *,
    threshold: int,
    now_ms: int,
    lifetime_ms: int,
) -> bytes:
    """Return the root document, COSE_Sign1, that follows the one in force.

    Release keys are those the operator names. What the gateway lists is not believed: a gateway that was
    taken over must not be able to slip in a release key of its own.
    """
    from device_sdk.wire.errors import WireError
    from device_sdk.wire.keys import Role
    from device_sdk.wire.names import parse_fleet_name
    from device_sdk.wire.signed.root import RootDocument, RootKey, sign_root

    try:
        document = RootDocument(
            fleet=parse_fleet_name(fleet),
            version=offer.root_version + 1,
            issued_at=now_ms,
            expires_at=now_ms + lifetime_ms,
            keys=(
                *(RootKey(Role.RELEASE, public) for public in releases),
                *(RootKey(role, public) for role, public in offer.online.items()),
            ),
            thresholds={Role.RELEASE: threshold} if threshold > 1 else {},
        )
        return sign_root(document, key)
    except WireError as error:
        raise UsageFailure(f"no such root document can be signed: {error}") from error


def _show_trust(fleet: str, offer: Offer, releases: Sequence[PublicKey]) -> None:
    from gateway.cli.keys import fingerprint

    rows: list[tuple[str, str, str]] = [
        *(("release", public.algorithm.name, fingerprint(public)) for public in releases),
        *((role.value, public.algorithm.name, fingerprint(public)) for role, public in offer.online.items()),
    ]
    print(f"Devices of {fleet} will trust these keys, and no others:")
    print_table(("role", "algorithm", "fingerprint (SHA-256; its first 16 digits are the kid)"), rows)
    named = {public.kid.hex() for public in releases}
    dropped = [kid for kid in offer.release_kids if kid not in named]
    if dropped:
        note(
            f"warning: registered at the gateway, but not named here and so no longer trusted by devices: "
            f"{', '.join(dropped)}; name them with --release-key to keep them"
        )


def _listed_keys(keys: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        *(("release", item["kid"]) for item in keys["release_keys"]),
        *((item["role"], item["kid"]) for item in keys["online"]),
    ]
