"""Gateways that start ten times as fast: forked from a process that has imported everything.

Each is a process of its own that runs ``fleetcast ARGUMENTS``, as the command line does; it only need not
read a thousand modules first. For tests that start many. Run as a module this is the process that forks: it
takes ``["start", log, *arguments]`` and ``["poll", pid]``, a line each, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent.parent


class Forked:
    """A gateway of a nursery: the part of ``subprocess.Popen`` that ``GatewayProcess`` uses."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            answer = self._nursery.ask("poll", self.pid)
            self.returncode = None if answer == "running" else int(answer)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("fleetcast", timeout or 0)
            time.sleep(0.005)
        return status


class Nursery:
    """``with Nursery() as nursery``; give it to ``GatewayProcess``. Used by one thread at a time."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("FLEETCAST_")},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def launch(self, *arguments: str, log: Path) -> Forked:
        """Start ``fleetcast ARGUMENTS``; what it says is appended to ``log``."""
        return Forked(self, int(self.ask("start", str(log), *arguments)))

    def ask(self, *question: str | int) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer, "the nursery ended"
        return answer


def _main() -> None:

    import gateway.app
    import gateway.cli.program  # noqa: F401

    running: set[int] = set()
    for line in sys.stdin:
        match json.loads(line):
            case ["start", log, *arguments]:
                pid = _start(log, arguments)
                running.add(pid)
                answer = str(pid)
            case ["poll", number]:
                pid, status = os.waitpid(number, os.WNOHANG)
                running.discard(pid)
                answer = str(os.waitstatus_to_exitcode(status)) if pid else "running"
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    for pid in running:  # whoever wanted them is gone
        os.kill(pid, signal.SIGKILL)


def _start(log: str, arguments: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        (2, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["fleetcast", *arguments]
    from gateway.cli import main

    status = 1
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)  # not back into the loop of the one that forked it


if __name__ == "__main__":
    _main()
