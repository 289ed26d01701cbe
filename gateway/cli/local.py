"""Commands of the machine that runs the gateway: they read its configuration and its database."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli.failure import ExitStatus, Failure, UsageFailure
from gateway.cli.options import AsJson, ConfigFile, load_configuration, write_secret
from gateway.cli.output import note, print_facts, print_json

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.identity import OperatorToken
    from gateway.storage.schema import SchemaState

DAY_MS: Final = 24 * 3600 * 1000
RESTORED_TIMEOUT_MS: Final = (
    3600 * 1000
)  # of one statement: it goes through every fact of a thousand channels
TOKEN_NAME_LEN_MAX: Final = 128


class ScopeName(enum.StrEnum):
    """``gateway.identity.Scope``, without what importing that costs."""

    READ = "read"
    PUBLISH = "publish"
    DEVICES = "devices"
    RELEASES = "releases"
    ROLLOUTS = "rollouts"
    ADMIN = "admin"


database = typer.Typer(no_args_is_help=True, help="The database's schema.")
tokens = typer.Typer(no_args_is_help=True, help="Operator tokens, made on the database itself.")


def serve(config: ConfigFile = None) -> None:
    """Run the gateway until it is told to stop (Ctrl-C, SIGTERM).

    Without a configuration it runs on safe defaults: SQLite, keys and artifacts in ./fleetcast-data, plain
    HTTP on 127.0.0.1:8080. An embedded database is migrated at the start; PostgreSQL must be, by
    fleetcast db upgrade. SIGHUP takes up a new certificate; under systemd it says when it is ready, pats the
    watchdog, and takes sockets that are open already.
    """
    configuration = load_configuration(config)
    from gateway.app import serve as serve_gateway

    raise typer.Exit(serve_gateway(configuration))


def check_config(
    config: ConfigFile = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a file with every key, its meaning and default.")
    ] = False,
) -> None:
    """Check the configuration and print what is in force, or print an example.

    Every problem is shown, and the exit status is 2, if there is one. What can be run but is seldom meant,
    such as plain HTTP on a public address, is a warning on standard error.
    """
    from gateway.config import effective, warnings_of
    from gateway.config import example as example_file
    from gateway.tls import server_tls, tls_warnings

    if example:
        print(example_file(), end="")
        return
    configuration = load_configuration(config)
    tls = server_tls(configuration)
    print(effective(configuration), end="")
    for warning in (*warnings_of(configuration), *tls_warnings(tls, now_s=time.time())):
        note(f"warning: {warning}")


@database.command("upgrade")
def upgrade(config: ConfigFile = None) -> None:
    """Bring the schema to the one of this version.

    Safe to repeat, and while the version before is still serving.
    """
    from gateway.storage.schema import migrate

    found = migrate(load_configuration(config).database_url)
    _check_schema(found)
    print(f"the schema is at {found.current}")


@database.command("state")
def state(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the schema's version and the one that this program needs; exit status 1 if they differ."""
    from gateway.storage.schema import schema_state

    found = schema_state(load_configuration(config).database_url)
    facts = {"current": found.current, "needed": found.head, "is_current": found.is_current}
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)
    if not found.is_current:
        raise typer.Exit(ExitStatus.FAILURE)


@database.command("backup")
def backup(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="A new file, mode 0600."),
    ],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Copy the embedded database to a new file, beside a running gateway.

    The copy is of one moment, read back and found whole. PostgreSQL is copied by pg_dump. Keys and artifacts
    are folders beside the database: copy them after it.

        fleetcast db backup -o fleetcast-2026-11-24.db
    """
    from gateway.storage.backup import copy_database

    try:
        size_bytes = copy_database(load_configuration(config).database_url, output)
    except FileExistsError:
        raise Failure(f"{output} is there already; it is not overwritten", code="file_exists") from None
    if as_json:
        print_json({"file": str(output), "size_bytes": size_bytes})
    else:
        print(f"{output}: {size_bytes} bytes")


@database.command("restored")
def restored(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Say that this database was restored from a backup: the step before the gateway starts again.

    Every channel gets a new epoch, in one transaction. Devices have read further than the backup knows: they
    are told that history was lost, go on from where the backup has them, and know by its id what they see
    twice. The gateways must be stopped.
    """
    from gateway.storage.backup import check_unused
    from gateway.storage.schema import schema_state

    configuration = load_configuration(config)
    url = configuration.database_url
    _check_schema(schema_state(url))
    check_unused(url)
    count = asyncio.run(_renew_epochs(configuration))
    if as_json:
        print_json({"channels": count})
    else:
        print(f"{count} channels have a new epoch; each device is told when it connects")


@tokens.command("create")
def create_token(
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="Whose it is, for people.")],
    scope: Annotated[
        list[ScopeName], typer.Option("--scope", help="What it allows; may be repeated. All include read.")
    ],
    fleet: Annotated[
        str | None, typer.Option("--fleet", metavar="NAME", help="For this fleet only; without it for all.")
    ] = None,
    create_fleet: Annotated[
        bool, typer.Option("--create-fleet", help="Create the fleet too, if it is not there.")
    ] = False,
    expires_days: Annotated[
        int | None, typer.Option("--expires-days", min=1, max=3650, help="Without it, it does not expire.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write it to this new file, mode 0600, and do not print it.",
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Make an operator token, on the database itself. Needs no running gateway, and works beside one.

    The token is shown once; the database holds only its hash. An embedded database that is not there yet is
    made.

        fleetcast token create --name alice --scope admin --fleet acme --create-fleet -o operator.token
    """
    from gateway.storage.schema import migrate, schema_state

    if create_fleet and fleet is None:
        raise UsageFailure("--create-fleet needs --fleet")
    if not 1 <= len(name) <= TOKEN_NAME_LEN_MAX:
        raise UsageFailure(f"--name is 1..{TOKEN_NAME_LEN_MAX} characters")
    configuration = load_configuration(config)
    now_ms = int(time.time() * 1000)
    secret, token = _new_token(name, scope, fleet, now_ms, expires_days)
    # The file comes first: a token that is stored and that nobody has cannot be taken back.
    with _new_file(output, secret):
        url = configuration.database_url
        _check_schema(migrate(url) if url.startswith("sqlite") else schema_state(url))
        asyncio.run(_store_token(configuration, token, create_fleet=create_fleet, now_ms=now_ms))
    if output is None:
        print(secret)
        note("this is the only time it is shown")
    else:
        note(f"token {name!r} is in {output}")


@contextlib.contextmanager
def _new_file(path: Path | None, secret: str) -> Iterator[None]:
    """Write ``secret`` to ``path``, if it is one; take it back if the block fails."""
    if path is None:
        yield
        return
    try:
        write_secret(path, secret + "\n")
    except FileExistsError:
        raise Failure(f"{path} is there already; it is not overwritten", code="file_exists") from None
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _check_schema(state: SchemaState) -> None:
    """Raise Failure unless the schema is the one that this program needs."""
    if not state.is_known:
        raise Failure(
            f"the database is of a newer version (revision {state.current}); upgrade this program",
            code="schema_newer",
        )
    if not state.is_current:
        raise Failure(
            f"the schema is at {state.current}, not {state.head}; run fleetcast db upgrade",
            code="schema_behind",
        )


def _new_token(
    name: str, scopes: Sequence[str], fleet: str | None, now_ms: int, expires_days: int | None
) -> tuple[str, OperatorToken]:
    from device_sdk.wire.errors import WireError
    from device_sdk.wire.names import parse_fleet_name
    from gateway.identity import OperatorToken, new_token, parse_scopes, token_sha256
    from gateway.ids import uuid7

    secret = new_token()
    try:
        fleet_name = parse_fleet_name(fleet) if fleet is not None else None
    except WireError as error:
        raise UsageFailure(f"--fleet: {error}") from error
    return secret, OperatorToken(
        id=uuid7(now_ms),
        name=name,
        sha256=token_sha256(secret),
        fleet=fleet_name,
        scopes=parse_scopes(scopes),
        created_at=now_ms,
        expires_at=now_ms + expires_days * DAY_MS if expires_days is not None else None,
    )


async def _renew_epochs(config: Config) -> int:
    from gateway.storage.engine import DatabaseLimits, open_database
    from gateway.storage.epochs import renew_epochs
    from gateway.telemetry import Metrics

    limits = config.database.limits(DatabaseLimits, statement_timeout_ms=RESTORED_TIMEOUT_MS)
    async with open_database(config.database_url, limits=limits, metrics=Metrics()) as database:
        return await database.write(renew_epochs)


async def _store_token(config: Config, token: OperatorToken, *, create_fleet: bool, now_ms: int) -> None:
    from gateway.errors import ConflictError, NotFoundError
    from gateway.storage.engine import DatabaseLimits, open_database
    from gateway.storage.fleet_store import SQLFleetStore
    from gateway.telemetry import Metrics

    limits = config.database.limits(DatabaseLimits)
    async with open_database(config.database_url, limits=limits, metrics=Metrics()) as database:
        store = SQLFleetStore(database)
        if create_fleet and token.fleet is not None:
            with contextlib.suppress(ConflictError):
                await store.create_fleet(token.fleet, now_ms=now_ms)
        try:
            await store.create_operator_token(token)
        except NotFoundError as error:
            raise UsageFailure(f"there is no fleet {token.fleet}; add --create-fleet to make it") from error
