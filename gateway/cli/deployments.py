"""Deployments: one device, one release, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import DEFAULT_URL, AsJson, FleetOption, Limit, TokenFile, Url, connect
from gateway.cli.output import format_time, print_facts, print_json, print_table
from gateway.cli.paths import fleet_path

if TYPE_CHECKING:
    from gateway.cli.api import Json

app = typer.Typer(no_args_is_help=True, help="One device's way to one release.")

_TIMES = ("notified_at", "sent_at", "received_at", "verified_at", "ended_at", "updated_at")


@app.command("list")
def list_(
    fleet: FleetOption,
    rollout: Annotated[str, typer.Option("--rollout", metavar="ID", help="Of which rollout.")],
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    limit: Limit = 1000,
    as_json: AsJson = False,
) -> None:
    """List a rollout's deployments."""
    path = fleet_path(fleet, "rollouts", rollout, "deployments")
    items = list(connect(url, token_file).items(path, limit=limit))
    if as_json:
        print_json(items)
        return
    print_table(
        ("id", "device", "state", "progress", "code", "attempt", "updated"),
        (
            (
                item["id"],
                item["device_id"],
                item["state"],
                item["progress"],
                item["code"],
                item["attempt"],
                format_time(item["updated_at"]),
            )
            for item in items
        ),
        empty="no deployments",
    )


@app.command("show")
def show(
    deployment_id: Annotated[str, typer.Argument(metavar="ID")],
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one deployment, with the time of each fact."""
    deployment: Json = connect(url, token_file).get(fleet_path(fleet, "deployments", deployment_id))
    if as_json:
        print_json(deployment)
    else:
        print_facts(deployment | {name: format_time(deployment[name]) for name in _TIMES})
