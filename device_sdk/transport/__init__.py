"""How messages travel: a WebSocket, or a long-poll where none can be had; and how images are fetched.

``link`` is what ``client`` knows of a transport; the others need aiohttp and are imported by name.
"""

from device_sdk.transport.link import Link, LinkClosedError, Transport

__all__ = ["Link", "LinkClosedError", "Transport"]
