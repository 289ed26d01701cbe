"""A simulation as a person sees it: live on a terminal, and its end as a few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from firmware_sim.invariants import Invariant
from firmware_sim.result import Result

_STYLES = {
    "committed": "green",
    "rejected": "red",
    "failed": "red",
    "rolled_back": "yellow",
    "idle": "dim",
}
_REFRESH_PER_S = 8


@contextmanager
def live_view(console: Console) -> Iterator[Callable[[Result], None] | None]:
    """Show results as they come; yields what is told each, None where there is no terminal to show them."""
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, refresh_per_second=_REFRESH_PER_S, transient=True) as live:
        yield lambda result: live.update(picture(result))


def picture(result: Result) -> RenderableType:
    """Return ``result`` as a bar and a table."""
    settled = result.devices - len(result.unmet)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        Text(f"{result.scenario}", style="bold"),
        ProgressBar(total=result.devices, completed=settled, width=40),
        f"{settled}/{result.devices} as expected",
        f"{result.seconds:.0f} s",
    )
    return Group(bar, _facts(result))


def _facts(result: Result) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("connected", f"{result.connected} of {result.devices}, {_counts(result.welcomes)}")
    states = Text()
    for state, count in sorted(result.states.items()):
        states.append(f"{state} {count}  ", style=_STYLES.get(state, "cyan"))
    table.add_row("updates", states)
    if result.refused:
        table.add_row("refused", Text(_counts(result.refused), style="red"))
    order = "each once, in order" if result.is_in_order else "NOT EACH ONCE AND IN ORDER"
    table.add_row("alerts", f"{result.alerts} on {result.devices_alerted} devices, {order}")
    table.add_row("faults", _counts(result.faults) or "none")
    table.add_row("boots", str(result.boots))
    if result.attacks:
        table.add_row("attacks", f"{sum(one['tried'] for one in result.attacks.values())} tried")
    held = Text(f"{len(Invariant)} held", "green")
    if any(result.breaks.values()):
        held = Text(_counts({name.value: count for name, count in result.breaks.items()}), "bold red")
    table.add_row("invariants", held)
    return table


def print_end(console: Console, result: Result) -> None:
    """Print how it ended."""
    verdict = Text("as expected", "bold green") if result.is_ok else Text("not as expected", "bold red")
    console.print(Text(f"{result.scenario}, seed {result.seed}: "), verdict, f"after {result.seconds:.1f} s")
    console.print(_facts(result))
    for device_id, missing in list(result.unmet.items())[:20]:
        console.print(f"  {device_id}: {missing}", markup=False)
    for broken in result.broken[:20]:
        console.print(
            f"  {broken.device_id}: {broken.invariant} is broken, seed {broken.seed}, event {broken.event}: "
            f"{broken.detail}",
            markup=False,
        )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
