"""An origin that judges requests: GET /auth, by its bearer token.

A token's entry is ``{"json": verdict}`` or ``{"headers": {...}}``; without an entry it answers 401, with
``null`` 403.
"""

from __future__ import annotations

from aiohttp import web
from control import Control, serve


def make_app() -> web.Application:
    control = Control()

    async def auth(request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in control.tokens:
            return web.Response(status=401)
        match control.tokens[token]:
            case {"json": verdict}:
                return web.json_response(verdict)
            case {"headers": headers}:
                return web.Response(status=204, headers=headers)
            case _:
                return web.Response(status=403)

    app = web.Application()
    app.add_routes([web.get("/auth", control.wrap(auth)), *control.routes()])
    return app


if __name__ == "__main__":
    serve(make_app)
