"""The bench's origin: forward-auth that answers at once and admits everybody.

A token is ``CHANNEL/DEVICE/GENERATION``; it says which device it is of and which alert channel that has. The
generation makes it another token of the same device, which the gateway has not seen.
"""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from nginx import nginx
from rig import free_port

FLEET = "bench"
_NAME = "[A-Za-z0-9._~:-]+"
_MAPS = f"""
  map $http_authorization $token_channel {{
    "~^Bearer (?<found_channel>{_NAME})/{_NAME}/[0-9]+$" $found_channel;
    default "";
  }}
  map $http_authorization $token_device {{
    "~^Bearer {_NAME}/(?<found_device>{_NAME})/[0-9]+$" $found_device;
    default "";
  }}
"""
_SERVER = f"""
    location = /auth {{
      if ($token_device = "") {{ return 401; }}
      add_header Fleetcast-Fleet {FLEET};
      add_header Fleetcast-Device $token_device;
      add_header Fleetcast-Channels alert:$token_channel;
      return 204;
    }}
    location = /status {{ stub_status; }}
"""


def token(channel: str, device: str, generation: str = "0") -> str:
    return f"{channel}/{device}/{generation}"


class Origin:
    def __init__(self, port: int) -> None:
        self._port = port
        self._looks = 0

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path) -> Iterator[Origin]:
        port = free_port()
        with nginx(folder, port, _SERVER, http=_MAPS):
            yield cls(port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/auth"

    def requests(self) -> int:
        """Return how many questions it was asked so far."""
        self._looks += 1
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/status", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        # "server accepts handled requests", then the three numbers: the last counts these looks as well.
        return int(lines[2].split()[2]) - self._looks
