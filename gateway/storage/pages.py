"""The part of a list that follows a key, in either order."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select


def by_id(
    query: Select[Any], id: ColumnElement[Any], is_newest_first: bool, beyond: bytes | int | None
) -> Select[Any]:
    """Return ``query`` in the order of ``id``, from ``beyond``, exclusively; ids rise with time."""
    if beyond is not None:
        query = query.where(id < beyond if is_newest_first else id > beyond)
    return query.order_by(id.desc() if is_newest_first else id)
