"""A process under systemd: saying how it is, taking sockets that are open already, being watched.

sd_notify(3) is a datagram of ``NAME=value`` lines; nothing of systemd is linked or imported. Without a
supervisor every call here does nothing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Final

from gateway.errors import ConfigError
from gateway.telemetry import logger

_log = logger("supervise")

_SEND_TIMEOUT_S: Final = 1.0
_BEATS: Final = 3  # in each period: one that is late or lost gets nobody killed


class Notifier:
    """Tell the supervisor at ``address`` (``NOTIFY_SOCKET``; ``@`` begins an abstract one); None: nobody."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def ready(self, status: str) -> None:
        """The start, or a reload, is done."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def alive(self, status: str) -> None:
        """Pat the watchdog."""
        self._send("WATCHDOG=1", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        target = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_TIMEOUT_S)
                sender.sendto("\n".join(lines).encode(), target)
        except OSError as error:
            _log.warning("the supervisor was not told", state=lines[0], error=error.strerror or str(error))


async def keep_alive(
    notifier: Notifier,
    *,
    watchdog_s: float | None,
    stuck_s: Callable[[], float],
    status: Callable[[], str],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Pat the watchdog while the node makes progress; None: return at once.

    It runs on the event loop, so it is silent when that is; and it is silent when the database writer has
    been at one transaction for a whole period. A database that is away is no such case: the writer then
    fails and tries again, and a restart would only lose what waits in it.

    Args:
        stuck_s: For how long the writer has made no progress.
        status: One line for ``systemctl status``.
    """
    if watchdog_s is None:
        return
    was_stuck = False
    while True:
        waited_s = stuck_s()
        is_stuck = waited_s >= watchdog_s
        if not is_stuck:
            notifier.alive(status())
        elif not was_stuck:
            _log.error("the database writer is stuck: the watchdog is left to bite", stuck_s=waited_s)
        was_stuck = is_stuck
        await sleep(watchdog_s / _BEATS)


def inherited_sockets(descriptors: Iterable[int]) -> Sequence[socket.socket]:
    """Return the listening TCP sockets that were passed on (sd_listen_fds(3)); they are the caller's.

    Raises:
        ConfigError: One is something else.
    """
    with ExitStack() as taken:
        found = [taken.enter_context(_listening_socket(descriptor)) for descriptor in descriptors]
        taken.pop_all()
    return found


def _listening_socket(descriptor: int) -> socket.socket:
    try:
        one = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError([f"LISTEN_FDS: descriptor {descriptor}: {error.strerror}"]) from error
    is_listening = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not is_listening or one.family not in (socket.AF_INET, socket.AF_INET6):
        one.close()
        raise ConfigError(
            [f"LISTEN_FDS: descriptor {descriptor} is no listening TCP socket; use ListenStream=PORT"]
        )
    one.set_inheritable(False)
    one.setblocking(False)
    return one
