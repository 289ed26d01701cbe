"""An authorisation server's introspection endpoint (RFC 7662): POST /introspect, for one client.

A token's entry is its claims; without an entry it is not active. The client is gateway / s3cret+/ä.
"""

from __future__ import annotations

import base64
from urllib.parse import unquote_plus

from aiohttp import web
from control import Control, serve

CLIENT = ("gateway", "s3cret+/ä")


def presented(request: web.Request, form: dict[str, str]) -> tuple[str, str]:
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme == "Basic":
        name, _, secret = base64.b64decode(encoded).decode().partition(":")
        return unquote_plus(name), unquote_plus(secret)
    return form.get("client_id", ""), form.get("client_secret", "")


def make_app() -> web.Application:
    control = Control()

    async def introspect(request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        if presented(request, form) != CLIENT:
            return web.json_response({"error": "invalid_client"}, status=401)
        claims = control.tokens.get(form.get("token", ""))
        if not isinstance(claims, dict):
            return web.json_response({"active": False})
        return web.json_response({"active": True, **claims})

    app = web.Application()
    app.add_routes([web.post("/introspect", control.wrap(introspect)), *control.routes()])
    return app


if __name__ == "__main__":
    serve(make_app)
