"""Dead letters: alerts that were given up for one device."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.options import DEFAULT_URL, AsJson, FleetOption, Limit, TokenFile, Url, connect
from gateway.cli.output import format_time, print_json, print_table
from gateway.cli.paths import fleet_path

app = typer.Typer(no_args_is_help=True, help="Alerts that were given up for one device.")


@app.command("list")
def list_(
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, each with its reason: nacked, expired, or attempts spent."""
    path = fleet_path(fleet, "dead-letters")
    items = list(connect(url, token_file).items(path, limit=limit))
    if as_json:
        print_json(items)
        return
    print_table(
        ("id", "device", "channel", "offset", "reason", "code", "attempts", "at", "requeued as"),
        (
            (
                item["id"],
                item["device_id"],
                item["channel"],
                item["offset"],
                item["reason"],
                item["code"],
                item["attempts"],
                format_time(item["at"]),
                item["requeued_as"],
            )
            for item in items
        ),
        empty="no dead letters",
    )


@app.command("requeue")
def requeue(
    dead_letter: Annotated[str, typer.Argument(metavar="ID")],
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Send the alert again, to that device alone: on its own channel, under a new id."""
    answer = connect(url, token_file).post(fleet_path(fleet, "dead-letters", dead_letter, "requeue"))
    print_json(answer) if as_json else print(f"requeued {dead_letter} as {answer['requeued_as']}")
