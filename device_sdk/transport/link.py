"""What the client knows of a transport: connect with a hello, receive, send, close."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from device_sdk.wire.messages import FromDevice, FromGateway, Hello

_NOT_THE_TRANSPORT: Final = frozenset({401, 403, 429, 502, 503, 504})


class LinkClosedError(Exception):
    """The connection is over, or could not be made.

    Attributes:
        reason: For logs.
        close_code: Of the peer's close frame.
        http_status: Of the answer that was not what it had to be.
        retry_after_s: What the server asked for, in seconds.
        is_continuity: The gateway has no session for us: say hello anew.
        blames_transport: Another transport might do better: it is neither the network nor a gateway that
            is down, busy or unwilling.
    """

    def __init__(
        self,
        reason: str,
        *,
        close_code: int | None = None,
        http_status: int | None = None,
        retry_after_s: float | None = None,
        is_continuity: bool = False,
        is_unreachable: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.close_code = close_code
        self.http_status = http_status
        self.retry_after_s = retry_after_s
        self.is_continuity = is_continuity
        self.blames_transport = not (
            is_unreachable
            or is_continuity
            or close_code is not None
            or retry_after_s is not None
            or http_status in _NOT_THE_TRANSPORT
        )

    def __str__(self) -> str:
        code = self.close_code or self.http_status
        return self.reason if code is None else f"{self.reason} ({code})"


class Link(Protocol):
    """One connection, opened by a hello. One task receives, one sends."""

    async def receive(self) -> Sequence[FromGateway]:
        """Return the next messages, in order; the first of all is the welcome. Empty: a sign of life.

        Raises:
            LinkClosedError: The connection is over; what came before was returned before.
        """
        ...

    def confirm(self) -> None:
        """Everything that ``receive`` returned so far is on stable storage.

        A transport that acknowledges by asking for more relies on it, and asks for the same again if it
        was not said.
        """
        ...

    async def send(self, messages: Sequence[FromDevice]) -> None:
        """Send ``messages``, in order.

        Raises:
            LinkClosedError: The connection is over; whether they arrived is not known.
        """
        ...

    async def close(self) -> None:
        """End the connection normally, within a few seconds. Never raises; a second call does nothing."""
        ...


class Transport(Protocol):
    """A way to the gateway."""

    @property
    def name(self) -> str:
        """``websocket``, ``longpoll``, or what a simulator calls its own."""
        ...

    async def connect(self, hello: Hello, token: str) -> Link:
        """Open a connection and say ``hello``.

        Raises:
            LinkClosedError: It could not be opened, or the credential was refused.
        """
        ...
