"""Alerts to connected devices, beside the floor and other servers; then what the database knows of them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from contest import Score, contest
from facts import check_facts
from node import CHANNEL, Gateway
from peers import nchan, pushpin
from rig import BenchError, Load, build, first_line, running, say

Contender = Callable[[Path, int, int], AbstractContextManager[Load]]
"""Given a folder, a number of clients and the bytes of a frame's payload: a load that is connected to it."""


def fanout(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Measure fan-out beside the floor."""
    own, scores = _beside({"floor": _floor}, folder, "fanout", devices, rounds)
    ours, floor = scores["ours"], scores["floor"]
    return {
        "fanout_devices": devices,
        "fanout_rounds": rounds,
        **own,
        **ours.figures("fanout_"),
        **floor.figures("fanout_floor_"),
        **ours.compared(floor, "floor"),
    }


def peers(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Measure fan-out beside nchan and Pushpin."""
    contenders: Mapping[str, Contender] = {"nchan": nchan, "pushpin": pushpin}
    _, scores = _beside(contenders, folder, "peers", devices, rounds)
    ours = scores["ours"]
    results: dict[str, Any] = {"peers_devices": devices, "peers_rounds": rounds, **ours.figures("peers_")}
    for name in contenders:
        results |= scores[name].figures(f"peers_{name}_") | ours.compared(scores[name], name)
    return results


def _beside(
    contenders: Mapping[str, Contender], folder: Path, name: str, devices: int, rounds: int
) -> tuple[dict[str, Any], dict[str, Score]]:
    with ExitStack() as stack:
        gateway = stack.enter_context(Gateway.started(folder / name))
        say(f"{name}: {devices:,} devices connect, as many to each other server ...")
        ours = stack.enter_context(gateway.load(folder, devices, "device"))
        frame = ours("burst")["frame_size"]  # also the first alert of each session: not measured
        ours.settle()
        loads = {"ours": ours}
        for other, contender in contenders.items():
            theirs = stack.enter_context(contender(folder, devices, frame - _head_size(frame)))
            if (actual := theirs("burst")["frame_size"]) != frame:
                raise BenchError(f"{other}'s frame is {actual} bytes, ours {frame}")
            loads[other] = theirs
        scores = contest(loads, rounds)
        settled = ours.settle()
        check_facts(gateway.url, CHANNEL, devices, settled["offset"])
        say(
            f"  positions and facts of {devices:,} devices up to offset {settled['offset']}"
            " are in the database"
        )
    own = {
        "fanout_frame_bytes": frame,
        "fanout_alerts": settled["offset"],
        "fanout_repeats": settled["repeats"],
    }
    return own, scores


def _head_size(frame: int) -> int:
    return 4 if frame > 127 else 2


@contextlib.contextmanager
def _floor(folder: Path, devices: int, payload: int) -> Iterator[Load]:
    with running([build("floor", folder)], stdout=subprocess.PIPE) as floor:
        options = {"port": first_line(floor), "count": devices, "publish_body": "x" * payload}
        with Load.connected(build("load", folder), **options) as load:
            yield load
