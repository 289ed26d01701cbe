"""The services of a table, of which a test brings those that it needs."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from gateway.edge.operator import OperatorServices


def services_of(**given: Any) -> OperatorServices:
    """Return services that are None but for ``given``."""
    needed = [
        one.name
        for one in fields(OperatorServices)
        if one.init and one.default is MISSING and one.default_factory is MISSING
    ]
    return OperatorServices(**dict.fromkeys(needed) | given)
