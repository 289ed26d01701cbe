"""Channels: logs of alerts, and names that rollouts are aimed at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gateway.cli.options import DEFAULT_URL, AsJson, FleetOption, Limit, TokenFile, Url, Yes, connect
from gateway.cli.output import format_time, print_facts, print_json, print_table
from gateway.cli.paths import fleet_path

if TYPE_CHECKING:
    from gateway.cli.api import Json

app = typer.Typer(no_args_is_help=True, help="Channels: of alerts, or of updates.")

ChannelName = Annotated[str, typer.Argument(metavar="CHANNEL")]


@app.command("create")
def create(
    name: ChannelName,
    fleet: FleetOption,
    kind: Annotated[
        Literal["alert", "update"], typer.Option("--kind", help="What it carries: alerts, or rollouts.")
    ],
    from_earliest: Annotated[
        bool,
        typer.Option("--from-earliest", help="New subscribers also get the alerts that are still kept."),
    ] = False,
    retention_age_s: Annotated[
        int | None, typer.Option("--retention-age-s", min=60, help="Age at which alerts leave the log.")
    ] = None,
    retention_count: Annotated[
        int | None, typer.Option("--retention-count", min=1, help="How many alerts the log keeps.")
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Create a channel. Without retention options the gateway's configuration stands."""
    asked = {
        "name": name,
        "kind": kind,
        "starts_at_earliest": from_earliest,
        "retention_age_s": retention_age_s,
        "retention_count": retention_count,
    }
    body = {field: value for field, value in asked.items() if value is not None}
    channel = connect(url, token_file).post(fleet_path(fleet, "channels"), body)
    print_json(channel) if as_json else print(f"created {kind} channel {name}")


@app.command("list")
def list_(
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List the fleet's channels."""
    items = list(connect(url, token_file).items(fleet_path(fleet, "channels"), limit=limit))
    if as_json:
        print_json(items)
        return
    print_table(
        ("name", "kind", "head", "floor", "created"),
        (
            (item["name"], item["kind"], item.get("head"), item.get("floor"), format_time(item["created_at"]))
            for item in items
        ),
        empty="no channels",
    )


@app.command("show")
def show(
    name: ChannelName,
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one channel."""
    channel: Json = connect(url, token_file).get(fleet_path(fleet, "channels", name))
    if as_json:
        print_json(channel)
    else:
        print_facts(channel | {"created_at": format_time(channel["created_at"])})


@app.command("delete")
def delete(
    name: ChannelName,
    fleet: FleetOption,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
) -> None:
    """Delete a channel with its alerts and subscriptions. Refused while a rollout names it."""
    api = connect(url, token_file)
    if not yes:
        typer.confirm(
            f"Delete channel {name} of {fleet}, its alerts and subscriptions?", abort=True, err=True
        )
    api.delete(fleet_path(fleet, "channels", name))
    print(f"deleted channel {name}")
