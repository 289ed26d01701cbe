"""What machines ask of a node: is it alive, should it get traffic, how is it doing. No token is asked for.

``/healthz`` says that the process answers; it touches nothing else, so that a slow database gets no node
killed. ``/readyz`` says whether to send it traffic: the database answers and the node is not draining.
``/metrics`` is Prometheus's text, rendered in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from gateway.errors import UnavailableError
from gateway.telemetry import CONTENT_TYPE, Metrics, logger

CHECK_TIMEOUT_S: Final = 2.0
_HEADERS: Final = {"Cache-Control": "no-store"}

_log = logger("health")


def routes(
    *,
    metrics: Metrics,
    ask_database: Callable[[], Awaitable[object]],
    is_draining: Callable[[], bool],
    is_metrics_enabled: bool = True,
    check_timeout_s: float = CHECK_TIMEOUT_S,
) -> list[web.RouteDef]:
    """Return the three routes.

    Args:
        ask_database: Reads something small; raises UnavailableError.
        is_draining: Whether the node is about to stop.
    """

    async def healthz(_request: web.Request) -> web.Response:
        return _json({"status": "alive"})

    async def readyz(_request: web.Request) -> web.Response:
        checks = {"database": await database(), "draining": "failed" if is_draining() else "ok"}
        is_ready = all(result == "ok" for result in checks.values())
        return _json(
            {"status": "ready" if is_ready else "not_ready", "checks": checks},
            status=200 if is_ready else 503,
        )

    async def database() -> str:
        try:
            async with asyncio.timeout(check_timeout_s):
                await ask_database()
        except (UnavailableError, TimeoutError) as error:
            _log.warning("not_ready", check="database", error=type(error).__name__)
            return "failed"
        return "ok"

    async def show_metrics(_request: web.Request) -> web.Response:
        body = await asyncio.to_thread(metrics.render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE, **_HEADERS})

    found = [web.get("/healthz", healthz), web.get("/readyz", readyz)]
    return [*found, web.get("/metrics", show_metrics)] if is_metrics_enabled else found


def _json(document: dict[str, object], *, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(document), content_type="application/json", headers=_HEADERS
    )
