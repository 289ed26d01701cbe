"""Paths of the operator API, below ``/api/v1``."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlencode


def path_of(*segments: str) -> str:
    """Return the path of ``segments``, each escaped."""
    return "".join("/" + quote(segment, safe="~:") for segment in segments)


def fleet_path(fleet: str, *segments: str) -> str:
    """Return the path of something in ``fleet``."""
    return path_of("fleets", fleet, *segments)


def with_query(path: str, query: Mapping[str, object]) -> str:
    """Return ``path`` with those of ``query`` that are not None."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path
