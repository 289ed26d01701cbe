"""The ends of systemd that a service meets: the socket where it is heard."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import TracebackType
from typing import Self


class NotifySocket:
    """``with NotifySocket(path) as heard``: what a process under ``NOTIFY_SOCKET`` says, in order.

    Attributes:
        address: For ``NOTIFY_SOCKET``.
        said: Every message so far, as its lines.
    """

    def __init__(self, path: Path | str) -> None:
        self.address = str(path)
        self.said: list[list[str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def __enter__(self) -> Self:
        self._socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self._socket.setblocking(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def read(self) -> list[list[str]]:
        """Return what has come and was not read."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                self.said += found
                return found

    async def until(self, line: str) -> list[str]:
        """Return the next message that has ``line``; those before it are passed over."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while True:
                message = (await loop.sock_recv(self._socket, 65536)).decode().split("\n")
                self.said.append(message)
                if line in message:
                    return message
