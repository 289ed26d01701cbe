"""Reading a request's body from its connection."""

from __future__ import annotations

from aiohttp import web

from gateway.edge.problem import RequestError


async def read_some(request: web.Request) -> bytes:
    """Return what came of the body since the last time, at least a byte; empty at its end.

    Raises:
        ConnectionError: The client is gone.
    """
    try:
        return await request.content.readany()
    except RuntimeError as error:  # aiohttp's, for a connection that is closed already
        raise ConnectionResetError("the client is gone") from error


def too_slow(timeout_s: float) -> RequestError:
    """Return the refusal of a body that did not come within ``timeout_s``."""
    return RequestError(408, "body_timeout", f"The body did not come within {timeout_s:g} s.")
