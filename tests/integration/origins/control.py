"""What the three origins have in common: a control side that a test drives, and a log of what was asked.

    POST /_control   any of {tokens, behaviour, headers, reset}; see ``Control``
    POST /_release   answer the questions that are held
    GET  /_seen      {count, held, requests}; with ?held=n it waits until n questions are held at once

A script is run as ``python SCRIPT [--port N]`` and prints ``{"port": N}`` when it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control:
    """Behaviours: ``answer``; ``hold`` until released; ``status:503``; ``malformed``; ``huge``;
    ``redirect:URL``; ``hang_up``. ``headers`` are added to every answer. ``tokens`` maps a token to what the
    origin knows of it.
    """

    def __init__(self) -> None:
        self.changed = asyncio.Condition()
        self.reset()

    def reset(self) -> None:
        self.tokens: dict[str, object] = {}
        self.behaviour = "answer"
        self.headers: dict[str, str] = {}
        self.requests: list[dict[str, object]] = []
        self.held = 0
        self.released = asyncio.Event()

    def wrap(self, answer: Answer) -> Answer:
        async def handler(request: web.Request) -> web.StreamResponse:
            form = dict(await request.post()) if request.method == "POST" else {}
            self.requests.append(
                {
                    "method": request.method,
                    "headers": [list(pair) for pair in request.headers.items()],
                    "form": form,
                }
            )
            response = await self._behave(request) or await answer(request)
            response.headers.update(self.headers)
            return response

        return handler

    async def _behave(self, request: web.Request) -> web.StreamResponse | None:
        kind, _, argument = self.behaviour.partition(":")
        match kind:
            case "hold":
                await self._hold()
            case "status":
                return web.Response(status=int(argument), text="no")
            case "malformed":
                return web.Response(text="<html>It works!</html>", content_type="text/html")
            case "huge":
                return web.json_response({"padding": "x" * 200_000})
            case "redirect":
                return web.Response(status=302, headers={"Location": argument})
            case "hang_up":
                assert request.transport is not None
                request.transport.abort()
        return None

    async def _hold(self) -> None:
        self.held += 1
        try:
            async with self.changed:
                self.changed.notify_all()
            await self.released.wait()
        finally:
            self.held -= 1

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/_control", self._control),
            web.post("/_release", self._release),
            web.get("/_seen", self._seen),
        ]

    async def _control(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        if wanted.get("reset"):
            self.reset()
        self.tokens = wanted.get("tokens", self.tokens)
        self.behaviour = wanted.get("behaviour", self.behaviour)
        self.headers = wanted.get("headers", self.headers)
        return web.json_response({})

    async def _release(self, _request: web.Request) -> web.Response:
        self.behaviour = "answer"
        self.released.set()
        self.released = asyncio.Event()
        return web.json_response({})

    async def _seen(self, request: web.Request) -> web.Response:
        wanted = int(request.query.get("held", "0"))
        async with self.changed:
            await self.changed.wait_for(lambda: self.held >= wanted)
        return web.json_response({"count": len(self.requests), "held": self.held, "requests": self.requests})


def serve(make_app: Callable[[], web.Application]) -> None:
    """Run the app until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args().port

    async def run() -> None:
        runner = web.AppRunner(make_app(), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        sys.stdout.write(json.dumps({"port": runner.addresses[0][1]}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    asyncio.run(run())
