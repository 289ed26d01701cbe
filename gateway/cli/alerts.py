"""Alerts: sent to a channel, and what became of them for each device."""

from __future__ import annotations

import base64
import json
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli.failure import UsageFailure
from gateway.cli.options import DEFAULT_URL, AsJson, FleetOption, Limit, TokenFile, Url, connect
from gateway.cli.output import format_time, print_facts, print_json, print_table
from gateway.cli.paths import fleet_path

if TYPE_CHECKING:
    from gateway.cli.api import Json

# Read just far enough that the gateway, which knows the limit, refuses what is over it.
_DATA_SIZE_MAX: Final = 1024 * 1024

app = typer.Typer(no_args_is_help=True, help="Alerts to all devices of a channel.")


@app.command("send")
def send(
    fleet: FleetOption,
    channel: Annotated[str, typer.Option("--channel", metavar="NAME", help="To whom.")],
    text: Annotated[str | None, typer.Option("--text", metavar="TEXT", help="The alert, as text.")] = None,
    json_text: Annotated[
        str | None, typer.Option("--json", metavar="JSON", help="The alert, as a JSON document.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="The alert, as bytes; - is standard input.")
    ] = None,
    content_type: Annotated[
        str | None,
        typer.Option(
            "--content-type", metavar="TYPE", help="What it is, if not plain text, JSON or just bytes."
        ),
    ] = None,
    ttl_s: Annotated[
        int | None,
        typer.Option("--ttl", min=1, metavar="SECONDS", help="How long it is worth delivering."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="TEXT", help="It replaces the channel's earlier alerts with this key."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            metavar="TEXT",
            help="The same key twice sends once; without it each invocation makes one for its own retries.",
        ),
    ] = None,
    print_json_: Annotated[bool, typer.Option("--print-json", help="Print the answer as JSON.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
) -> None:
    """Send an alert to all devices of a channel, with one of --text, --json, --file.

    When this returns, the alert is committed: devices that are away get it when they come back.

        fleetcast alert send --fleet acme --channel ops --text 'Boil your water' --ttl 86400
    """
    body = _body(text, json_text, file)
    asked = {"content_type": content_type, "ttl_s": ttl_s, "key": key}
    body |= {field: value for field, value in asked.items() if value is not None}
    alert = connect(url, token_file).post(
        fleet_path(fleet, "channels", channel, "alerts"),
        body,
        idempotency_key=idempotency_key or str(uuid.uuid4()),
    )
    if print_json_:
        print_json(alert)
    else:
        print(f"accepted {alert['id']} on {alert['channel']} at offset {alert['offset']}")


@app.command("list")
def list_(
    fleet: FleetOption,
    channel: Annotated[str, typer.Option("--channel", metavar="NAME", help="Of which channel.")],
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List a channel's alerts, the newest first."""
    path = fleet_path(fleet, "channels", channel, "alerts")
    items = list(connect(url, token_file).items(path, limit=limit))
    if as_json:
        print_json(items)
        return
    print_table(
        ("id", "offset", "accepted", "expires", "key"),
        (
            (
                item["id"],
                item["offset"],
                format_time(item["accepted_at"]),
                format_time(item.get("expires_at")),
                item.get("key"),
            )
            for item in items
        ),
        empty="no alerts",
    )


@app.command("show")
def show(
    alert_id: Annotated[str, typer.Argument(metavar="ID")],
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    limit: Limit = 1000,
    as_json: AsJson = False,
) -> None:
    """Show an alert and its facts for each device: accepted, sent, received."""
    api = connect(url, token_file)
    path = fleet_path(fleet, "alerts", alert_id)
    alert = api.get(path)
    deliveries = list(api.items(f"{path}/deliveries", limit=limit))
    if as_json:
        print_json(alert | {"deliveries": deliveries})
        return
    times = {name: format_time(alert.get(name)) for name in ("accepted_at", "expires_at")}
    received = sum(item["received_at"] is not None for item in deliveries)
    print_facts(alert | times | {"received": f"{received} of {len(deliveries)} devices"})
    print()
    print_table(
        ("device", "sent", "attempts", "received", "dead letter"),
        (
            (
                item["device_id"],
                format_time(item["sent_at"]),
                item["attempts"],
                format_time(item["received_at"]),
                item["dead_letter"],
            )
            for item in deliveries
        ),
        empty="no devices",
    )


def _body(text: str | None, json_text: str | None, file: Path | None) -> Json:
    """Return the request's body for the one of the three that is given."""
    given: list[dict[str, Any]] = []
    if text is not None:
        given.append({"text": text})
    if json_text is not None:
        try:
            given.append({"json": json.loads(json_text)})
        except ValueError as error:
            raise UsageFailure(f"--json is not a JSON document: {error}") from error
    if file is not None:
        given.append({"data": base64.urlsafe_b64encode(_read(file)).decode().rstrip("=")})
    if len(given) != 1:
        raise UsageFailure("an alert is one of --text, --json and --file")
    return given[0]


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read(_DATA_SIZE_MAX)
    try:
        with file.open("rb") as source:
            return source.read(_DATA_SIZE_MAX)
    except OSError as error:
        raise UsageFailure(f"cannot read {file}: {error.strerror}") from error
