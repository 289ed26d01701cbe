"""The program: its commands put together, and errors turned into exit statuses."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from gateway.cli import (
    alerts,
    channels,
    dead_letters,
    deployments,
    devices,
    fleets,
    keys,
    local,
    releases,
    rollouts,
)
from gateway.cli.failure import ExitStatus, Failure
from gateway.errors import ConfigError, GatewayError

HERE: Final = "On the gateway's machine"
OFFLINE: Final = "Offline, with the release key"
REMOTE: Final = "Through the operator API"


class Program(TyperGroup):
    """The root of the commands: what they raise ends in one line on standard error and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except Failure as failure:
            _end(failure.render(), failure.exit_status)
        except ConfigError as error:
            _end("\n".join(f"error: {problem}" for problem in error.problems), ExitStatus.USAGE)
        except GatewayError as error:
            _end(f"error: {error.detail or type(error).__name__} [{error.code}]", ExitStatus.FAILURE)
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            _end(f"error: {where}{error.strerror or error} [file]", ExitStatus.FAILURE)


app: Final = typer.Typer(
    name="fleetcast",
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        print(f"fleetcast {version('fleetcast')}")
        raise typer.Exit


@app.callback()
def fleetcast(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Alerts and signed software updates for fleets of devices.

    A first day: serve; token create; key generate and fleet trust; channel create; release create, sign and
    publish; rollout start and watch; alert send.

    Commands that talk to a gateway find it by --url and --token-file, or by FLEETCAST_URL and
    FLEETCAST_TOKEN_FILE; the fleet by --fleet or FLEETCAST_FLEET.

    Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused: a signature or a digest.
    """


app.command("serve", rich_help_panel=HERE)(local.serve)
app.command("check-config", rich_help_panel=HERE)(local.check_config)
app.add_typer(local.database, name="db", rich_help_panel=HERE)
app.add_typer(local.tokens, name="token", rich_help_panel=HERE)
app.add_typer(keys.app, name="key", rich_help_panel=OFFLINE)
app.add_typer(releases.app, name="release", rich_help_panel=OFFLINE)
app.add_typer(fleets.app, name="fleet", rich_help_panel=REMOTE)
app.add_typer(channels.app, name="channel", rich_help_panel=REMOTE)
app.add_typer(devices.app, name="device", rich_help_panel=REMOTE)
app.add_typer(alerts.app, name="alert", rich_help_panel=REMOTE)
app.add_typer(rollouts.app, name="rollout", rich_help_panel=REMOTE)
app.add_typer(deployments.app, name="deployment", rich_help_panel=REMOTE)
app.add_typer(dead_letters.app, name="dead-letter", rich_help_panel=REMOTE)


def main() -> None:
    """Run the command line of this process; does not return."""
    app(prog_name="fleetcast")


def _end(text: str, status: ExitStatus) -> None:
    print(text, file=sys.stderr)
    sys.exit(status)
