"""The demo's processes, the operator's shell and the operator API, all at home in one folder."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
_PR_SET_PDEATHSIG = 1


class DemoError(Exception):
    """The demo cannot go on."""


class Interrupted(BaseException):
    """A signal asks to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stage:
    """What runs, in one folder. ``close`` ends all of it; ``keep`` leaves the gateway and its origin.

    Args:
        say: Told each command before it runs.

    Attributes:
        variables: Of the operator's shell.
    """

    def __init__(self, folder: Path, *, is_kept: bool, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._is_kept = is_kept
        self._say = say
        self.variables: dict[str, str] = {}
        self._is_starting = False
        self._deferred: int | None = None

    def interrupt(self, number: int, _frame: object = None) -> None:
        """Raise Interrupted; while a process is being started, once it is known."""
        if not self._is_starting:
            raise Interrupted(number)
        self._deferred = number

    # --- processes ----------------------------------------------------------------------------------------

    def start(self, name: str, *command: object) -> None:
        """Start a process in the background, its output in ``name``.log and ``name``.out."""
        words = [str(word) for word in command]
        self._say(shlex.join([Path(words[0]).name, *words[1:]]) + " &")
        outlives_us = self._is_kept and name != "devices"
        self._is_starting = True
        with (self.folder / f"{name}.log").open("wb") as log, (self.folder / f"{name}.out").open("wb") as out:
            self.processes[name] = subprocess.Popen(
                words,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=_plain_environment(),
                start_new_session=True,  # Ctrl-C is ours: we end them in order
                preexec_fn=None if outlives_us else _die_with_parent,
            )
        self._is_starting = False
        if self._deferred is not None:
            raise Interrupted(self._deferred)

    def await_output(self, name: str) -> str:
        """Return the first line that a process prints."""
        path = self.folder / f"{name}.out"
        self.until(lambda: b"\n" in path.read_bytes(), f"{name} says nothing")
        return path.read_text().splitlines()[0]

    def until(self, is_so: Callable[[], bool], otherwise: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once ``is_so``.

        Raises:
            DemoError: A process ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not is_so():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(otherwise)
            time.sleep(0.1)

    def check(self) -> None:
        """Raise DemoError if a process ended by itself."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                tail = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-20:]
                raise DemoError("\n".join([f"{name} ended with status {process.returncode}", *tail]))

    def end(self, name: str) -> str:
        """Stop a process in good order; return what it printed."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        _wait(process)
        return (self.folder / f"{name}.out").read_text()

    def close(self, *, keep: bool) -> None:
        """Stop everything, devices first, and remove the folder; with ``keep`` stop the devices alone."""
        for name in ("devices", "gateway", "origin"):
            if name in self.processes and not (keep and name != "devices"):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.end(name)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def stop_command(self) -> str:
        """Return the command that ends what was kept; what it needs is written to the folder."""
        pids = {name: [process.pid, _started_at(process.pid)] for name, process in self.processes.items()}
        (self.folder / "processes.json").write_text(json.dumps(pids))
        return shlex.join(
            [sys.executable, str(Path(__file__).with_name("demo.py")), "--stop", str(self.folder)]
        )

    # --- the operator -------------------------------------------------------------------------------------

    def export(self, **variables: str) -> None:
        """Set variables for the commands that follow."""
        self.variables |= variables
        self._say("export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()))

    def run(self, *command: object) -> str:
        """Run a command of the venv; return what it printed.

        Raises:
            DemoError: It failed.
        """
        words = [str(word) for word in command]
        self._say(shlex.join(words))
        done = subprocess.run(
            [BIN / words[0], *words[1:]],
            cwd=self.folder,
            env=_plain_environment() | self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise DemoError(f"{shlex.join(words)}\n{done.stderr.strip()}")
        return done.stdout

    def reads(self, *command: object) -> Any:
        """Run a command that prints JSON; return that."""
        return json.loads(self.run(*command))

    def api(self, path: str) -> Any:
        """Return what the operator API says at ``/api/v1/fleets/{fleet}`` and ``path``."""
        url, fleet = self.variables["FLEETCAST_URL"], self.variables["FLEETCAST_FLEET"]
        token = (self.folder / self.variables["FLEETCAST_TOKEN_FILE"]).read_text().strip()
        request = urllib.request.Request(
            f"{url}/api/v1/fleets/{fleet}{path}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def api_list(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the items of a list of the operator API."""
        cursor = ""
        while True:
            page = self.api(f"{path}?limit=1000{cursor}")
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            cursor = f"&cursor={page['next_cursor']}"

    def is_ready(self, url: str) -> bool:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def stop_kept(folder: Path) -> None:
    """End what an earlier demo left running in ``folder``, and remove it."""
    for pid, started_at in json.loads((folder / "processes.json").read_text()).values():
        if _started_at(pid) != started_at:
            continue  # it ended, and the number may be another's
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _started_at(pid) == started_at and time.monotonic() < deadline:
            time.sleep(0.05)
    shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _plain_environment() -> dict[str, str]:
    """Return the environment without settings that are meant for another gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLEETCAST_")}


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _started_at(pid: int) -> str | None:
    """Return when a process started, in the kernel's ticks; None if there is none, or a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
