"""What a person sees of the demo: what was done above, what happens below; on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

STYLES = {"committed": "green", "rejected": "red", "failed": "red", "rolled_back": "yellow"}
ENDS = ("committed", "rejected", "failed", "rolled_back", "timed_out", "cancelled", "superseded")
_ORDER = ("notified", "received", "verified", "downloading", "installing", "rebooting", *ENDS)


class View:
    """Steps, commands, and the fleet's state; on a terminal live, else a line each."""

    def __init__(self, devices: int) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._devices = devices
        self._step = ""
        self._counts: Mapping[str, int] = {}
        self._alerts: int | None = None
        self._live: Live | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        live = Live(console=self._console, get_renderable=self._picture, refresh_per_second=8, transient=True)
        with live:
            self._live = live
            yield
        self._live = None

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Tick ``title`` off once the block is over."""
        self._step = title
        if self._live is None:
            self._console.print(Text(f"… {title}"))
        yield
        self._console.print(Text("✓ ", "bold green") + Text(title, "bold"))
        self._step = ""

    def say(self, command: str) -> None:
        """Show a command that is run."""
        self._console.print(Text(f"  $ {command}", "cyan"))

    def note(self, text: str) -> None:
        self._console.print(Text(f"  {text}", "dim"))

    def rollout(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def alerts(self, received: int) -> None:
        self._alerts = received

    def _picture(self) -> RenderableType:
        lines: list[RenderableType] = []
        if self._counts:
            ended = sum(self._counts.get(state, 0) for state in ENDS)
            states = Text()
            for state in _ORDER:
                if self._counts.get(state):
                    states.append(f"{state} {self._counts[state]}  ", STYLES.get(state, "cyan"))
            lines.append(_bar("update", ended, self._devices))
            lines.append(states)
        if self._alerts is not None:
            lines.append(_bar("alert", self._alerts, self._devices))
        if self._step:
            lines.append(Spinner("dots", Text(self._step)))
        return Group(*lines)


def _bar(name: str, completed: int, total: int) -> Table:
    bar = Table.grid(padding=(0, 1))
    bar.add_row(f"{name:7}", ProgressBar(total=total, completed=completed, width=40), f"{completed}/{total}")
    return bar


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what came of it, for people, on standard output."""
    refused = ", ".join(f"{code} {count}" for code, count in summary["refused"].items()) or "none"
    table = Table(title="What the gateway says", title_justify="left", show_header=False)
    table.add_row("devices", str(summary["devices"]))
    table.add_row("alert received", f"{summary['alerts_received']}")
    table.add_row("update received", str(summary["updates_received"]))
    table.add_row("verified", str(summary["verified"]))
    table.add_row("installed", str(summary["committed"]))
    table.add_row("refused", refused)
    table.add_row(
        "publish to received", f"p50 {summary['received_p50_ms']} ms, p99 {summary['received_p99_ms']} ms"
    )
    table.add_row("slots hold the image", f"{summary['slots_checked']} read, byte by byte")
    table.add_row("took", f"{summary['seconds']} s")
    console = Console(file=sys.stdout, highlight=False)
    console.print(table)
    for device_id, reason in summary["unexpected"].items():
        console.print(f"{device_id}: {reason}", markup=False, style="red")
