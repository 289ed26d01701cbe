"""The API's description, for programs and for people, and the files of its page.

No token is asked for: it says nothing that this repository does not say.

The page is swagger-ui, vendored under ``docs/vendor`` with its licence (``ops/dev/vendor-swagger``). It works
without any other host, and under a policy that lets nothing else in.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from gateway.edge.operator.limits import OperatorLimits
from gateway.edge.operator.openapi import document
from gateway.edge.operator.route import API
from gateway.errors import NotFoundError

DOCUMENT_PATH: Final = f"{API}/openapi.json"
PAGE_PATH: Final = f"{API}/docs"
FILE_PATH: Final = f"{PAGE_PATH}/{{file}}"

_FOLDER: Final = Path(__file__).parent / "docs"
_FILES: Final = {
    "docs.js": (_FOLDER / "docs.js", "text/javascript"),
    "swagger-ui-bundle.js": (_FOLDER / "vendor/swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": (_FOLDER / "vendor/swagger-ui.css", "text/css"),
    "LICENSE": (_FOLDER / "vendor/LICENSE", "text/plain"),
    "NOTICE": (_FOLDER / "vendor/NOTICE", "text/plain"),
}
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "Cache-Control": "no-cache",  # asked again each time, and answered 304
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes(limits: OperatorLimits) -> list[web.RouteDef]:
    """Return the routes of the description of a gateway with these limits."""
    description = _Description(limits)
    return [
        web.get(DOCUMENT_PATH, description.show),
        web.get(PAGE_PATH, _page),
        web.get(FILE_PATH, _file),
    ]


class _Description:
    """openapi.json, made when it is first asked for."""

    def __init__(self, limits: OperatorLimits) -> None:
        self._limits = limits
        self._made: tuple[bytes, str] | None = None

    async def show(self, request: web.Request) -> web.Response:
        if self._made is None:
            self._made = await asyncio.to_thread(self._make)  # 0.1 s, which the loop has not
        body, etag = self._made
        headers = _HEADERS | {"ETag": f'"{etag}"'}
        if request.if_none_match and any(one.value == etag for one in request.if_none_match):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type="application/json", headers=headers)

    def _make(self) -> tuple[bytes, str]:
        body = msgspec.json.encode(document(self._limits))
        return body, hashlib.sha256(body).hexdigest()[:32]


async def _page(_request: web.Request) -> web.FileResponse:
    return _send(_FOLDER / "index.html", "text/html")


async def _file(request: web.Request) -> web.FileResponse:
    found = _FILES.get(request.match_info["file"])
    if found is None:
        raise NotFoundError("the page has no such file")
    return _send(*found)


def _send(path: Path, content_type: str) -> web.FileResponse:
    headers = _HEADERS | {"Content-Type": f"{content_type}; charset=utf-8"}
    return web.FileResponse(path, headers=headers)
