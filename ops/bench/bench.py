"""Measure a gateway process from outside, beside other programs on the same machine and in the same run.

    make bench BENCH_ARGS="[--only NAME ...] [--devices N] [--rounds N] [--json]"

Every measurement verifies itself: devices check that offsets are contiguous, and afterwards the database must
have the position and the facts of every device; what is not so is an error, not a figure. Timings on a shared
machine are noisy: quote ratios. What each figure means and what bounds it is in docs/performance.md.

measurements:
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acked import acked
from catchup import catchup
from connects import connects
from fanout import fanout, peers
from idle import idle
from longpoll import longpoll
from rig import BenchError, say
from rollout import rollout
from storm import storm


@dataclass(frozen=True)
class Measurement:
    """One of those that ``--only`` names.

    Attributes:
        run: Given a folder, a number of devices and of rounds; returns figures by name.
        devices, rounds: Unless the command line says otherwise.
    """

    run: Callable[[Path, int, int], dict[str, Any]]
    devices: int
    rounds: int
    about: str


MEASUREMENTS = {
    "fanout": Measurement(fanout, 5_000, 7, "alerts to connected devices, beside a floor in C"),
    "peers": Measurement(peers, 5_000, 5, "the same, beside nchan and Pushpin"),
    "idle": Measurement(idle, 5_000, 1, "memory of an idle device connection"),
    "connects": Measurement(
        connects, 10_000, 3, "new authenticated connections: the origin asked, and by ticket"
    ),
    "acked": Measurement(
        acked, 5_000, 3, "alerts acknowledged one by one and committed, on SQLite and PostgreSQL"
    ),
    "longpoll": Measurement(longpoll, 2_000, 20, "long-polls that are all answered, and all come again"),
    "catchup": Measurement(catchup, 15_000, 1, "a fleet 1,000 alerts behind, and live alerts meanwhile"),
    "rollout": Measurement(rollout, 100_000, 5, "starting, widening, pausing a rollout to enrolled devices"),
    "storm": Measurement(storm, 15_000, 1, "the gateway is killed, and every device comes back to it"),
}


def main() -> int:
    width = max(map(len, MEASUREMENTS))
    told = "\n".join(
        f"  {name:{width}}  {one.about} ({one.devices:,} devices, {one.rounds} rounds)"
        for name, one in MEASUREMENTS.items()
    )
    parser = argparse.ArgumentParser(
        description=f"{__doc__}{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="make bench",
    )
    parser.add_argument(
        "--only", choices=MEASUREMENTS, action="append", metavar="NAME", help="may be repeated; else all"
    )
    parser.add_argument("--devices", type=int, help="instead of each measurement's own number")
    parser.add_argument("--rounds", type=int, help="likewise")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the course of the storm as SVG")
    parser.add_argument("--json", action="store_true", help="end with one flat JSON object on stdout")
    arguments = parser.parse_args()
    if min(arguments.devices or 1, arguments.rounds or 1) < 1:
        parser.error("--devices and --rounds are at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so leave nothing behind
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fleetcast-bench-") as name:
        folder = Path(name)
        for only in arguments.only or MEASUREMENTS:
            one = MEASUREMENTS[only]
            try:
                results |= one.run(folder, arguments.devices or one.devices, arguments.rounds or one.rounds)
            except (BenchError, subprocess.CalledProcessError) as error:
                say(f"error: {only}: {error}")
                return 1
        plot = folder / "storm.svg"
        if arguments.plot and plot.exists():
            arguments.plot.write_bytes(plot.read_bytes())
    if arguments.json:
        print(json.dumps(results))
    else:
        width = max(map(len, results))
        for key, value in results.items():
            print(f"{key:{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
