"""The operator API, ``/api/v1``: fleets, channels, devices, alerts, releases, rollouts, and who did what.

``table`` has every route; ``route`` says what a route is, ``dispatch`` runs one. Handlers are grouped by what
they are about and hold no rules of their own: those are in the services (``ports``, ``services``) that
``gateway.app`` passes in. The reference, docs/reference/api.md, is made from the table:
``python -m gateway.edge.operator > docs/reference/api.md``. So is the OpenAPI document (``openapi``), served
with a page that shows it (``pages``).
"""

from aiohttp import web

from gateway.edge.operator.dispatch import Dispatcher
from gateway.edge.operator.limits import OperatorLimits
from gateway.edge.operator.pages import page_routes
from gateway.edge.operator.ports import AlertService, DeviceSessions, OnlineKeys
from gateway.edge.operator.services import OperatorServices
from gateway.edge.operator.table import TABLE

__all__ = [
    "AlertService",
    "DeviceSessions",
    "OnlineKeys",
    "OperatorLimits",
    "OperatorServices",
    "operator_routes",
]


def operator_routes(services: OperatorServices) -> list[web.RouteDef]:
    """Return the routes of the API; ``problem_middleware`` must be around them."""
    return [*Dispatcher(services).routes(TABLE), *page_routes(services.limits)]
