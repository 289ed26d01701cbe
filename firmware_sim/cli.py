"""``fleetcast-sim``: run a fleet of virtual devices against a gateway.

Heavy imports stand inside the commands, so that ``--help`` stays fast.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

import typer
from typer.core import TyperGroup

from firmware_sim.errors import ScenarioError

if TYPE_CHECKING:
    from device_sdk import PublicKey
    from firmware_sim.result import Result
    from firmware_sim.scenario import Scenario
    from firmware_sim.simulation import Simulation
    from firmware_sim.trace import Event

USAGE: Final = 2


class Program(TyperGroup):
    """The commands: what they raise ends in lines on standard error and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except ScenarioError as error:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
        except OSError as error:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(USAGE)


app: Final = typer.Typer(
    name="fleetcast-sim",
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

ScenarioArgument = Annotated[
    str,
    typer.Argument(metavar="SCENARIO", help="A TOML file, or the name of a scenario that comes along."),
]
DevicesOption = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", min=1, max=100_000, help="Instead of the scenario's number."),
]


@app.callback()
def fleetcast_sim() -> None:
    """A fleet of virtual devices that can be broken on purpose.

    The devices run the real device SDK; flash, power, bootloader, clock and network are simulated and fail as
    the scenario says, drawn from one seed. They need a gateway (fleetcast serve) whose origin knows their
    tokens:

        fleetcast-sim tokens flaky --output tokens.txt

        fleetcast-sim run flaky --fleet acme --tokens tokens.txt --release-key release.pub.pem

    Exit status: 0 every device ended as the scenario expects and every invariant held, 1 not so, 2 wrong
    usage or scenario.
    """


@app.command()
def run(
    scenario: ScenarioArgument,
    fleet: Annotated[
        str, typer.Option(metavar="NAME", envvar="FLEETCAST_FLEET", help="The fleet that all devices are of.")
    ],
    tokens: Annotated[
        Path,
        typer.Option(
            metavar="FILE", dir_okay=False, exists=True, help="A device id and its token on each line."
        ),
    ],
    release_key: Annotated[
        list[Path],
        typer.Option(
            metavar="PUB.pem", dir_okay=False, exists=True, help="What devices trust; may be repeated."
        ),
    ],
    url: Annotated[
        str, typer.Option(metavar="URL", envvar="FLEETCAST_URL", help="Address of the gateway.")
    ] = "http://127.0.0.1:8080",
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Instead of the scenario's: other faults.")
    ] = None,
    devices: DevicesOption = None,
    only_device: Annotated[
        str | None, typer.Option(metavar="ID", help="Switch on that device alone, with all that befalls it.")
    ] = None,
    operator_token: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            exists=True,
            help="Send the scenario's alerts and start its rollouts, with this token.",
        ),
    ] = None,
    release: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="Of a release, for the scenario's rollouts: the first, the second, …"
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            dir_okay=False,
            help="Write a page with plots there, and FILE.json beside it.",
        ),
    ] = None,
    stay: Annotated[
        bool, typer.Option("--stay", help="Go on until Ctrl-C or SIGTERM, whatever comes of it.")
    ] = False,
    keep_flash: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", exists=False, help="Write each device's slots there, at the end and at SIGUSR1."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write every event there, a line of JSON each."),
    ] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the devices log, on standard error.")
    ] = False,
) -> None:
    """Switch the devices on, and run until all are as expected or the scenario's time is over."""
    import asyncio

    import uvloop
    from rich.console import Console

    from firmware_sim.operator import Operator
    from firmware_sim.report import report_document
    from firmware_sim.simulation import Simulation, write_flash
    from firmware_sim.tokens import parse_tokens
    from firmware_sim.view import live_view, print_end

    if report is not None and report.suffix == ".json":
        raise typer.BadParameter("the JSON goes beside it, under that name", param_hint="--report")
    _log_to_stderr(verbose)
    found = _load(scenario, devices)
    actual_seed = found.seed if seed is None else seed
    operator = None
    if operator_token is not None:
        operator = Operator(
            found,
            url=url,
            fleet=fleet,
            token=operator_token.read_text().strip(),
            releases=release or (),
            seed=actual_seed,
        )
    elif found.alerts or found.rollouts:
        print("note: without --operator-token somebody else sends alerts and updates", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        simulation = Simulation(
            found,
            url=url,
            fleet=fleet,
            tokens=parse_tokens(tokens.read_text()),
            release_keys=[_key(path) for path in release_key],
            seed=seed,
            only=only_device,
            operator=operator,
            sink=None if trace is None else _sink(stack.enter_context(trace.open("w"))),
        )
        console = Console(stderr=True)
        show = stack.enter_context(live_view(console))
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        result = runner.run(_run(simulation, show, has_end=not stay, keep_flash=keep_flash))
    if keep_flash is not None:
        write_flash(simulation.devices, keep_flash)
    if report is not None:
        command = _command(
            *("run", scenario, "--seed", actual_seed, "--devices", found.devices, "--url", url),
            *("--fleet", fleet, "--tokens", tokens),
            *(word for path in release_key for word in ("--release-key", path)),
            *(() if operator_token is None else ("--operator-token", operator_token)),
            *(word for id in release or () for word in ("--release", id)),
            *(() if only_device is None else ("--only-device", only_device)),
        )
        _write_report(report, report_document(found, result, simulation.devices, command))
    if is_json:
        print(json.dumps(result.document(), separators=(",", ":")), flush=True)
    else:
        print_end(Console(), result)
    raise typer.Exit(0 if result.is_ok else 1)


@app.command()
def check(scenario: ScenarioArgument, devices: DevicesOption = None) -> None:
    """Check a scenario and show its devices, without running it."""
    from firmware_sim.scenario import sizes

    found = _load(scenario, devices)
    print(f"{found.name}: {found.devices} devices, seed {found.seed}, at most {found.duration_s:g} s")
    for group, size in zip(found.groups, sizes(found, []), strict=True):
        expected = " or ".join(group.expect.states) or "anything"
        code = f" with {group.expect.code}" if group.expect.code else ""
        mix = ", ".join(group.transports)
        print(f"  {size:6} {group.name}: {mix}; expected: {expected}{code}")
    for outage in found.outages:
        print(f"  outage at {outage.at_s:g} s: {', '.join(outage.groups) or 'all'}")
    for alerts in found.alerts:
        print(f"  alerts to {alerts.channel}, {alerts.from_s:g} to {alerts.until_s:g} s")
    for rollout in found.rollouts:
        print(f"  rollout of release {rollout.release} at {rollout.at_s:g} s, {rollout.percent} %")


@app.command("list")
def list_scenarios() -> None:
    """List the scenarios that come along; ``show`` prints one, to start from."""
    for name in _names():
        print(f"{name:16} {_load(name, None).description}")


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a scenario that comes along."""
    print(_text(name), end="")


@app.command()
def tokens(
    scenario: ScenarioArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A new file, mode 0600.")],
    devices: DevicesOption = None,
) -> None:
    """Make a random token for each device of a scenario: for the origin to know, and for run."""
    from firmware_sim.tokens import make_tokens

    made = make_tokens(_load(scenario, devices))
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{device_id} {token}\n" for device_id, token in made.items())


def main() -> None:
    """Run the program."""
    app()


async def _run(
    simulation: Simulation, show: Callable[[Result], None] | None, *, has_end: bool, keep_flash: Path | None
) -> Result:
    import asyncio
    import gc
    import signal

    from firmware_sim.simulation import write_flash

    # Devices are many small objects that live long: looking through them took 29 % of the time of 1,000
    # devices that get an alert each second, and takes 6 % so.
    gc.set_threshold(50_000, 20, 50)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if keep_flash is not None:
        loop.add_signal_handler(signal.SIGUSR1, write_flash, simulation.devices, keep_flash)
    return await simulation.run(stop, show=show, has_end=has_end)


def _load(name: str, devices: int | None) -> Scenario:
    from firmware_sim.scenario_file import parse_scenario

    text = _text(name)
    try:
        return parse_scenario(text, devices=devices)
    except ScenarioError as error:
        raise ScenarioError([f"{name}: {problem}" for problem in error.problems]) from error


def _text(name: str) -> str:
    if name in _names():
        return (resources.files("firmware_sim") / "scenarios" / f"{name}.toml").read_text()
    path = Path(name)
    if not path.exists():
        nearest = difflib.get_close_matches(name, _names(), 1)
        hint = f"; the nearest is {nearest[0]}" if nearest else ""
        raise ScenarioError([f"{name}: neither a file nor one of {', '.join(_names())}{hint}"])
    return path.read_text()


def _names() -> list[str]:
    folder = resources.files("firmware_sim") / "scenarios"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def _key(path: Path) -> PublicKey:
    from device_sdk import PublicKey
    from device_sdk.wire.errors import WireError

    try:
        return PublicKey.load(path)
    except WireError as error:
        raise ScenarioError([f"{path}: {error}"]) from error


def _command(*words: object) -> list[str]:
    return ["fleetcast-sim", *map(str, words)]


def _write_report(path: Path, document: dict[str, Any]) -> None:
    from firmware_sim.report import render

    path.write_text(render(document))
    path.with_suffix(".json").write_text(json.dumps(document) + "\n")


def _sink(file: TextIO) -> Callable[[str, Event], None]:
    def write(device_id: str, event: Event) -> None:
        file.write(json.dumps(event.document(device_id), separators=(",", ":")) + "\n")

    return write


def _log_to_stderr(is_verbose: bool) -> None:
    """Show the SDK's log, or what is a fault of this program alone: devices are broken on purpose."""
    logging.basicConfig(
        level=logging.INFO if is_verbose else logging.CRITICAL,
        format="%(asctime)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
