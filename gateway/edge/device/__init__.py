"""The device plane over HTTP: WebSocket, long-poll, acknowledgements and reports (``fleetcast.v1``).

``accept`` gives a connection its turn, ``admission`` asks who it is, ``socket`` and ``poll`` are the
transports of a session, ``routes`` the paths, ``drain`` the end. What a session does is ``gateway.session``.
"""

from gateway.edge.device.admission import Admission
from gateway.edge.device.drain import drain
from gateway.edge.device.routes import device_routes

__all__ = ["Admission", "device_routes", "drain"]
