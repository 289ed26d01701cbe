"""Measure a gateway process from outside, beside a floor in C on the same machine and in the same run.

    make bench BENCH_ARGS="[--only fanout|idle] [--devices N] [--rounds N] [--json]"

fanout: alerts to N connected, authenticated, live devices that check offsets and acknowledge. A round is some
bursts (one alert, from the first byte at any device to the last byte at the last) and a sequence (each alert
published when the last was delivered to all); rounds of the gateway and of the floor alternate, the frame is
as long for both. Afterwards the database must have the position and the facts of every device.

idle: memory (PSS) over the baseline for each idle device connection.

Timings on a shared machine are noisy: quote ratios. With --json the last line of stdout is one flat object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fanout import fanout
from idle import idle
from rig import BenchError, say


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="make bench"
    )
    parser.add_argument("--only", choices=["fanout", "idle"], help="one of them; without it, all")
    parser.add_argument("--devices", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="end with one flat JSON object on stdout")
    arguments = parser.parse_args()
    if arguments.devices < 1 or arguments.rounds < 1:
        parser.error("--devices and --rounds are at least 1")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fleetcast-bench-") as name:
        folder = Path(name)
        try:
            if arguments.only in (None, "fanout"):
                results |= fanout(folder, arguments.devices, arguments.rounds)
            if arguments.only in (None, "idle"):
                results |= idle(folder, arguments.devices)
        except (BenchError, subprocess.CalledProcessError) as error:
            say(f"error: {error}")
            return 1
    if arguments.json:
        print(json.dumps(results))
    else:
        width = max(map(len, results))
        for key, value in results.items():
            print(f"{key:{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
