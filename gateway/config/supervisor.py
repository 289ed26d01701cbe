"""What systemd tells the process by variables: where it wants to hear, how often, and open sockets.

Beside ``load`` the only module of the gateway that reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_FIRST_DESCRIPTOR: Final = 3  # SD_LISTEN_FDS_START


@dataclass(frozen=True, slots=True)
class Supervisor:
    """Attributes:
    notify_address: Where states are sent; None: nobody listens.
    watchdog_s: Who says nothing for this long is killed; None: nobody watches.
    descriptors: Sockets that are bound already.
    """

    notify_address: str | None = None
    watchdog_s: float | None = None
    descriptors: range = range(0)


def read_supervisor(environ: Mapping[str, str] | None = None, *, pid: int | None = None) -> Supervisor:
    """Return what the environment says: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).

    What is meant for another process, or is no number, counts as not said.
    """
    environ = os.environ if environ is None else environ
    pid = os.getpid() if pid is None else pid
    watchdog_us = _number(environ, "WATCHDOG_USEC") if _is_ours(environ, "WATCHDOG_PID", pid, True) else 0
    count = _number(environ, "LISTEN_FDS") if _is_ours(environ, "LISTEN_PID", pid, False) else 0
    return Supervisor(
        notify_address=environ.get("NOTIFY_SOCKET") or None,
        watchdog_s=watchdog_us / 1_000_000 or None,
        descriptors=range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + count),
    )


def _is_ours(environ: Mapping[str, str], variable: str, pid: int, is_unset_ours: bool) -> bool:
    return environ[variable] == str(pid) if variable in environ else is_unset_ours


def _number(environ: Mapping[str, str], variable: str) -> int:
    text = environ.get(variable, "")
    return int(text) if text.isascii() and text.isdigit() else 0
