"""Devices and what they are subscribed to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import DEFAULT_URL, AsJson, FleetOption, Limit, TokenFile, Url, Yes, connect
from gateway.cli.output import format_time, print_facts, print_json, print_table
from gateway.cli.paths import fleet_path

if TYPE_CHECKING:
    from gateway.cli.api import Json

app = typer.Typer(no_args_is_help=True, help="Devices of a fleet.")

DeviceId = Annotated[str, typer.Argument(metavar="DEVICE")]
ChannelName = Annotated[str, typer.Argument(metavar="CHANNEL")]


@app.command("list")
def list_(
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List the fleet's devices."""
    items = list(connect(url, token_file).items(fleet_path(fleet, "devices"), limit=limit))
    if as_json:
        print_json(items)
        return
    print_table(
        ("device", "enabled", "installed", "tags", "last seen"),
        (
            (
                item["device_id"],
                item["is_enabled"],
                _installed(item),
                item["tags"],
                format_time(item["last_seen_at"]),
            )
            for item in items
        ),
        empty="no devices",
    )


@app.command("show")
def show(
    device_id: DeviceId,
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one device: attributes, what is installed, subscriptions, deployments."""
    api = connect(url, token_file)
    path = fleet_path(fleet, "devices", device_id)
    device = api.get(path)
    subscriptions = api.get(f"{path}/subscriptions")["items"]
    deployments = list(api.items(f"{path}/deployments", limit=20))
    if as_json:
        print_json(device | {"subscriptions": subscriptions, "deployments": deployments})
        return
    times = {name: format_time(device[name]) for name in ("enrolled_at", "last_seen_at")}
    print_facts(device | times | {"installed": _installed(device)})
    print()
    print_table(
        ("channel", "kind", "acknowledged", "by"),
        ((item["channel"], item["kind"], item["offset"], _wanted_by(item)) for item in subscriptions),
        empty="no subscriptions",
    )
    print()
    print_table(
        ("deployment", "component", "state", "code", "updated"),
        (
            (item["id"], item["component"], item["state"], item["code"], format_time(item["updated_at"]))
            for item in deployments
        ),
        empty="no deployments",
    )


@app.command("add")
def add(
    device_id: DeviceId,
    fleet: FleetOption,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="For selectors of rollouts; may be repeated.")
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Enrol a device ahead of its first connection, which would enrol it too."""
    device = connect(url, token_file).post(
        fleet_path(fleet, "devices"), {"device_id": device_id, "tags": tag or []}
    )
    print_json(device) if as_json else print(f"added device {device_id}")


@app.command("remove")
def remove(
    device_id: DeviceId,
    fleet: FleetOption,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
) -> None:
    """Delete a device with its history. If the origin still admits it, it will enrol again: see disable."""
    api = connect(url, token_file)
    if not yes:
        typer.confirm(f"Delete device {device_id} of {fleet}, and its history?", abort=True, err=True)
    api.delete(fleet_path(fleet, "devices", device_id))
    print(f"removed device {device_id}")


@app.command("disable")
def disable(
    device_id: DeviceId, fleet: FleetOption, url: Url = DEFAULT_URL, token_file: TokenFile = None
) -> None:
    """Close a device's connection and refuse it from now on, whatever the origin says."""
    _enable(url, token_file, fleet, device_id, is_enabled=False)
    print(f"disabled device {device_id}")


@app.command("enable")
def enable(
    device_id: DeviceId, fleet: FleetOption, url: Url = DEFAULT_URL, token_file: TokenFile = None
) -> None:
    """Admit a disabled device again."""
    _enable(url, token_file, fleet, device_id, is_enabled=True)
    print(f"enabled device {device_id}")


@app.command("subscribe")
def subscribe(
    device_id: DeviceId,
    channel: ChannelName,
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
) -> None:
    """Subscribe a device to a channel, beside what the origin grants. Takes effect at once."""
    connect(url, token_file).put(fleet_path(fleet, "devices", device_id, "subscriptions", channel))
    print(f"subscribed {device_id} to {channel}")


@app.command("unsubscribe")
def unsubscribe(
    device_id: DeviceId,
    channel: ChannelName,
    fleet: FleetOption,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
) -> None:
    """Take a subscription back. One that the origin grants stays until the origin no longer names it."""
    path = fleet_path(fleet, "devices", device_id, "subscriptions", channel)
    if connect(url, token_file).delete(path).status == 204:
        print(f"unsubscribed {device_id} from {channel}")
    else:
        print(f"{device_id} stays subscribed to {channel}: the origin grants it")


def _enable(url: str, token_file: Path | None, fleet: str, device_id: str, *, is_enabled: bool) -> None:
    connect(url, token_file).patch(fleet_path(fleet, "devices", device_id), {"is_enabled": is_enabled})


def _installed(device: Json) -> str:
    found = []
    for component, installed in device["installed"].items():
        name = installed.get("version") or installed["sequence"]
        found.append(f"{component}={name}")
    return ", ".join(found)


def _wanted_by(subscription: Json) -> str:
    return ", ".join(who for who in ("origin", "operator") if subscription[f"by_{who}"])
