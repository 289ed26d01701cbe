"""All routes of the operator API, in the order of the reference."""

from __future__ import annotations

from typing import Final

from gateway.edge.operator import (
    alerts,
    audit,
    channels,
    dead_letters,
    devices,
    fleets,
    releases,
    revocations,
    rollouts,
    tokens,
)
from gateway.edge.operator.route import AnyRoute

SECTIONS: Final[tuple[tuple[str, tuple[AnyRoute, ...]], ...]] = (
    ("Fleets, keys and root documents", fleets.ROUTES),
    ("Channels", channels.ROUTES),
    ("Alerts", alerts.ROUTES),
    ("Dead letters", dead_letters.ROUTES),
    ("Devices", devices.ROUTES),
    ("Releases and images", releases.ROUTES),
    ("Rollouts and deployments", rollouts.ROUTES),
    ("Tokens of operators", tokens.ROUTES),
    ("Revocations of devices' credentials", revocations.ROUTES),
    ("Audit", audit.ROUTES),
)
TABLE: Final[tuple[AnyRoute, ...]] = tuple(route for _, routes in SECTIONS for route in routes)

assert len({route.operation for route in TABLE}) == len(TABLE), "an operation has one route"
assert len({(route.method, route.path) for route in TABLE}) == len(TABLE), "a route has one operation"
