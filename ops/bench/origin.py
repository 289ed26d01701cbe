"""The bench's origin: forward-auth that admits everybody, as the device that the token names.

python origin.py --fleet NAME --channel NAME      prints its port when it listens
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import uvloop
from aiohttp import web


async def main(fleet: str, channel: str) -> None:
    async def auth(request: web.Request) -> web.Response:
        device = request.headers["Authorization"].removeprefix("Bearer ")
        headers = {
            "Fleetcast-Device": device,
            "Fleetcast-Fleet": fleet,
            "Fleetcast-Channels": f"alert:{channel}",
        }
        return web.Response(status=204, headers=headers)

    app = web.Application()
    app.router.add_get("/auth", auth)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--channel", required=True)
    arguments = parser.parse_args()
    try:
        uvloop.run(main(arguments.fleet, arguments.channel))
    except KeyboardInterrupt:
        sys.exit(0)
