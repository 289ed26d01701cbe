"""Give devices' uplinks to the operator's backend: one POST each, that any web framework understands.

The body is the device's data as it is, ``Content-Type`` what it said of it. ``Fleetcast-Fleet`` and
``Fleetcast-Device`` name the device, ``Fleetcast-Uplink`` the uplink: it is the same when it is sent again.
2xx: taken. 400, 409, 410, 413, 415 and 422 are about the message: refused for good. Everything else (also 401
and 404, which are about the configuration) may be otherwise later.
"""

from __future__ import annotations

from typing import Final

from device_sdk.wire.messages import Uplink
from device_sdk.wire.names import DeviceId, FleetName
from gateway.errors import OriginUnavailableError
from gateway.origin.http import OriginHTTP

REFUSALS: Final = frozenset({400, 409, 410, 413, 415, 422})


class UplinkBackend:
    """``session.uplinks.Backend`` over HTTP.

    Args:
        http: Open.
        token: Sent as a bearer token, by which the backend knows this gateway.
    """

    def __init__(self, http: OriginHTTP, *, url: str, token: str | None = None) -> None:
        self._http = http
        self._url = url
        self._authorization = [] if token is None else [("Authorization", f"Bearer {token}")]

    async def take(self, fleet: FleetName, device_id: DeviceId, uplink: Uplink) -> bool:
        answer = await self._http.ask(
            "POST",
            self._url,
            headers=[
                *self._authorization,
                ("Content-Type", uplink.content_type),
                ("Fleetcast-Fleet", fleet),
                ("Fleetcast-Device", device_id),
                ("Fleetcast-Uplink", uplink.id.hex()),
            ],
            body=uplink.data,
        )
        if 200 <= answer.status < 300:
            return True
        if answer.status in REFUSALS:
            return False
        raise OriginUnavailableError(f"the backend answered {answer.status}")
