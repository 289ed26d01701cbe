from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from gateway.clock import FakeClock
from gateway.edge.problem import problem_middleware
from gateway.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, without a socket in between."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


Ask = Callable[..., Awaitable[Answered]]


@pytest.fixture
def ask_of(clock: FakeClock, metrics: Metrics) -> Callable[[Sequence[web.RouteDef]], Ask]:
    """Return a way to put requests to routes inside the problem middleware."""

    def ask_routes(routes: Sequence[web.RouteDef]) -> Ask:
        application = web.Application(middlewares=[problem_middleware(metrics=metrics, clock=clock)])
        application.add_routes(routes)
        application.freeze()

        async def ask(
            method: str,
            path: str,
            *,
            headers: Mapping[str, str] | None = None,
            body: bytes | None = None,
            is_endless: bool = False,
        ) -> Answered:
            loop = asyncio.get_running_loop()
            protocol = BaseProtocol(loop)
            protocol.transport = asyncio.Transport()  # connected, as far as a reader asks
            payload = StreamReader(protocol, limit=1 << 20, loop=loop)
            sent = dict(headers or {})
            if body is not None:
                sent.setdefault("Content-Length", str(len(body)))
                payload.feed_data(body)
            if not is_endless:
                payload.feed_eof()
            request = make_mocked_request(method, path, headers=sent, payload=payload, app=application)
            response = await application._handle(request)
            assert isinstance(response, web.Response)
            content = response.body if isinstance(response.body, bytes) else b""
            return Answered(response.status, response.headers, content)

        return ask

    return ask_routes


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A stream for ``configure_logs``; what that changes in the process is put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()
