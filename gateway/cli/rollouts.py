"""Rollouts: started, watched, widened, paused, resumed, aborted."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.failure import ExitStatus
from gateway.cli.options import DEFAULT_URL, AsJson, FleetOption, Limit, TokenFile, Url, Yes, connect
from gateway.cli.output import format_counts, format_time, print_facts, print_json, print_table
from gateway.cli.paths import fleet_path

if TYPE_CHECKING:
    from gateway.cli.api import Json

app = typer.Typer(
    no_args_is_help=True, help="Bring a release to the devices of a channel, as fast as you dare."
)

RolloutId = Annotated[str, typer.Argument(metavar="ID")]
Percent = Annotated[
    int, typer.Option("--percent", min=1, max=100, help="Share of the matching devices; it never goes down.")
]


@app.command("start")
def start(
    fleet: FleetOption,
    release: Annotated[str, typer.Option("--release", metavar="ID", help="Which release.")],
    channel: Annotated[str, typer.Option("--channel", metavar="NAME", help="An update channel.")],
    percent: Percent = 100,
    selector: Annotated[
        str | None,
        typer.Option(
            "--selector",
            metavar="EXPRESSION",
            help="""Only devices it holds for, as origin.model == "tc3" and tag in ("eu", "lab").""",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="For people.")] = None,
    priority: Annotated[
        int,
        typer.Option(
            "--priority", min=-1000, max=1000, help="Of two rollouts for one component the higher one wins."
        ),
    ] = 0,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Bring a release to devices of a channel.

    Devices that are connected are notified at once, others when they come back.

        fleetcast rollout start --fleet acme --release ID --channel firmware --percent 10 \\
            --selector 'origin.model == "tc3" and tag in ("eu", "lab")'
    """
    asked = {
        "release_id": release,
        "channel": channel,
        "percent": percent,
        "selector": selector,
        "name": name,
        "priority": priority,
    }
    rollout = connect(url, token_file).post(
        fleet_path(fleet, "rollouts"),
        {field: value for field, value in asked.items() if value is not None},
        idempotency_key=str(uuid.uuid4()),
    )
    print_json(rollout) if as_json else _show(rollout)


@app.command("list")
def list_(
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List the fleet's rollouts."""
    items = list(connect(url, token_file).items(fleet_path(fleet, "rollouts"), limit=limit))
    if as_json:
        print_json(items)
        return
    print_table(
        ("id", "name", "state", "channel", "percent", "devices", "created"),
        (
            (
                item["id"],
                item["name"],
                item["state"],
                item["channel"],
                item["percent"],
                format_counts(item["counts"]),
                format_time(item["created_at"]),
            )
            for item in items
        ),
        empty="no rollouts",
    )


@app.command("show")
def show(
    rollout_id: RolloutId,
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one rollout and how many devices are in each state."""
    rollout = connect(url, token_file).get(fleet_path(fleet, "rollouts", rollout_id))
    print_json(rollout) if as_json else _show(rollout)


@app.command("watch")
def watch(
    rollout_id: RolloutId,
    fleet: FleetOption,
    interval_s: Annotated[
        float,
        typer.Option("--interval", min=0.1, max=60.0, metavar="SECONDS", help="Time between two looks."),
    ] = 1.0,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout", min=0.0, metavar="SECONDS", help="Give up after so long, exit status 1."),
    ] = None,
    exit_status: Annotated[
        bool, typer.Option("--exit-status", help="Exit status 1 if a device ended otherwise than committed.")
    ] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rollout as one line of JSON at every change.")
    ] = False,
) -> None:
    """Watch a rollout until every device that it reaches has ended.

    Ctrl-C stops the watching, not the rollout. While the gateway cannot be reached it is tried again for
    two minutes.
    """
    from gateway.cli.watch import Standing, changes, follow

    api = connect(url, token_file)
    path = fleet_path(fleet, "rollouts", rollout_id)
    last = follow(changes(lambda: api.get(path), interval_s=interval_s, timeout_s=timeout_s), as_json=as_json)
    if exit_status and not Standing.of(last).is_success:
        raise typer.Exit(ExitStatus.FAILURE)


@app.command("pause")
def pause(
    rollout_id: RolloutId,
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Notify nobody new until resume. Devices that are under way go on."""
    _act(rollout_id, fleet, url, token_file, "pause", as_json=as_json)


@app.command("resume")
def resume(
    rollout_id: RolloutId,
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a paused rollout."""
    _act(rollout_id, fleet, url, token_file, "resume", as_json=as_json)


@app.command("abort")
def abort(
    rollout_id: RolloutId,
    fleet: FleetOption,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """End a rollout for good: nobody is notified any more, and devices up to downloading are cancelled."""
    if not yes:
        typer.confirm(f"Abort rollout {rollout_id}? It cannot be resumed.", abort=True, err=True)
    _act(rollout_id, fleet, url, token_file, "abort", as_json=as_json)


@app.command("widen")
def widen(
    rollout_id: RolloutId,
    fleet: FleetOption,
    percent: Percent,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Admit more devices."""
    rollout = connect(url, token_file).patch(fleet_path(fleet, "rollouts", rollout_id), {"percent": percent})
    print_json(rollout) if as_json else _show(rollout)


def _act(
    rollout_id: str, fleet: str, url: str, token_file: Path | None, action: str, *, as_json: bool
) -> None:
    rollout = connect(url, token_file).post(fleet_path(fleet, "rollouts", rollout_id, action))
    print_json(rollout) if as_json else _show(rollout)


def _show(rollout: Json) -> None:
    times = {name: format_time(rollout[name]) for name in ("created_at", "updated_at")}
    print_facts(rollout | times | {"counts": format_counts(rollout["counts"])})
