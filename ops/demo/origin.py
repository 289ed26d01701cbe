"""An example origin: the part of your backend that Fleetcast asks who a device is.

It knows tokens and nothing else. The gateway sends it each device's ``Authorization`` header (forward-auth);
it answers which device that is, of which fleet, which channels the device has, and what else is known of it,
or 401. Fleetcast itself keeps no device credentials. docs/reference/identity.md has the whole contract.

    python ops/demo/origin.py --tokens tokens.txt --fleet acme --channel alert:ops --channel update:firmware

and in the gateway's configuration, with the address that this prints when it listens:

    [identity]
    mode = "forward_auth"
    [identity.forward_auth]
    url = "http://127.0.0.1:PORT/auth"

``tokens.txt`` has a device id, a blank and its token on each line; it is read anew for each question, so a
line that is added or removed counts at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import signal
from pathlib import Path

from aiohttp import web


def device_of(token: str, tokens_file: Path) -> str | None:
    """Return the device that ``token`` was given to, None if it was given to none."""
    for line in tokens_file.read_text().splitlines():
        device_id, _, known = line.partition(" ")
        if hmac.compare_digest(known.strip().encode(), token.encode()):
            return device_id
    return None


def make_app(tokens_file: Path, fleet: str, channels: list[dict[str, str]]) -> web.Application:
    async def auth(request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        device_id = device_of(token, tokens_file) if scheme.lower() == "bearer" and token else None
        if device_id is None:
            return web.Response(status=401)
        return web.json_response(
            {
                "device_id": device_id,
                "fleet": fleet,
                "channels": channels,
                "attributes": {"model": "tc3", "site": "oslo" if device_id[-1] in "02468" else "graz"},
            }
        )

    app = web.Application()
    app.router.add_get("/auth", auth)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tokens", type=Path, required=True, help="device id and token on each line")
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--channel", action="append", default=[], metavar="KIND:NAME")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    arguments = parser.parse_args()
    channels = [
        {"kind": kind, "name": name}
        for kind, _, name in (channel.partition(":") for channel in arguments.channel)
    ]

    asyncio.run(serve(make_app(arguments.tokens, arguments.fleet, channels), arguments.port))


async def serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}/auth", flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await runner.cleanup()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
