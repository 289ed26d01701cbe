"""Processes that measure and are measured: started, told what to do line by line, ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
QUIET_S = 0.5  # after the last acknowledgement was sent: the gateway commits them
STOP_TIMEOUT_S = 30
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_LIBC = ctypes.CDLL(None)


class BenchError(Exception):
    """What was measured is not what was promised, or something to measure with is missing."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build(name: str, folder: Path) -> Path:
    """Compile the C program ``name``, once in ``folder``."""
    program = folder / name
    if program.exists():
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("no C compiler: apt-get install gcc libc6-dev")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, "-O2", *warnings, "-o", program, HERE / f"{name}.c"], check=True)
    return program


def found(name: str) -> str:
    """Return where the program ``name`` of a Debian package is."""
    places = (os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")
    path = shutil.which(name, path=":".join(places))
    if path is None:
        raise BenchError(f"{name} is not installed; as root: make bench-packages")
    return path


def start(command: Sequence[object], **options: Any) -> subprocess.Popen[str]:
    """Run ``command``, a process group of its own, until ``stop``, or until this process is no more."""
    return subprocess.Popen(
        [str(word) for word in command],
        text=True,
        start_new_session=True,
        preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        **options,
    )


@contextlib.contextmanager
def running(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run ``command`` until the end of the block."""
    process = start(command, **options)
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):  # what it left behind would answer in the next run's place
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise BenchError(f"{Path(process.args[0]).name} ended")  # type: ignore[index, arg-type]
    return line


class Load:
    """A load program, told what to do line by line. All devices are connected once it is made.

    Attributes:
        opened: What it said of that.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.opened: dict[str, Any] = self.answer()

    @classmethod
    @contextlib.contextmanager
    def connected(cls, program: Path, **options: object) -> Iterator[Self]:
        """Run ``program`` with ``options`` in the place of flags; True is a flag without a value."""
        flags = [
            f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')}={value}"
            for name, value in options.items()
            if value is not None and value is not False
        ]
        with running([program, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            yield cls(process)

    def __call__(self, order: str) -> dict[str, Any]:
        self.tell(order)
        return self.answer()

    def tell(self, order: str) -> None:
        """Give an order and go on; ``answer`` waits for it to be carried out."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(first_line(self._process))
        return answer

    def settle(self) -> dict[str, Any]:
        settled = self("settle")
        time.sleep(QUIET_S)
        return settled


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(
    is_so: Callable[[], bool], timeout_s: float, otherwise: str, *, interval_s: float = 0.05
) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise BenchError(otherwise)
        time.sleep(interval_s)
