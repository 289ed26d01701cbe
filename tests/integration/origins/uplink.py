"""A backend that takes uplinks: POST /uplink, answered 204. ``_seen`` has what it took, ``data`` in hex."""

from __future__ import annotations

from aiohttp import web
from control import Control, serve


def make_app() -> web.Application:
    control = Control()

    async def take(request: web.Request) -> web.Response:
        control.requests[-1]["data"] = (await request.read()).hex()
        return web.Response(status=204)

    app = web.Application()
    app.add_routes([web.post("/uplink", control.wrap(take)), *control.routes()])
    return app


if __name__ == "__main__":
    serve(make_app)
