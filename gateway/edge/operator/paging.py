"""One page of any list: what the store has, one more than asked for to know whether it goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from gateway.edge.operator.body import Page
from gateway.edge.operator.cursor import encode_cursor
from gateway.edge.operator.results import Result
from gateway.edge.operator.route import Answer, Call, ListOf

RowT = TypeVar("RowT")
KeyT = TypeVar("KeyT", str, int, bytes)
BodyT = TypeVar("BodyT")


async def page(
    call: Call[BodyT, Page],
    read: Callable[[KeyT, int], Awaitable[Sequence[RowT]]],
    *,
    first: KeyT,
    key: Callable[[RowT], KeyT],
    show: Callable[[RowT], Result],
) -> Answer:
    """Return the page that ``call`` asks for.

    Args:
        read: Returns at most so many rows after a key, in the order of ``key``.
        first: The key before the first page.
    """
    limit = call.query.limit
    rows = await read(call.after(first), limit + 1)
    next_cursor = encode_cursor(call.operation, key(rows[limit - 1])) if len(rows) > limit else None
    return Answer(ListOf[Any](items=[show(row) for row in rows[:limit]], next_cursor=next_cursor))


def whole(rows: Sequence[Result]) -> Answer:
    """Return a list that is one page by its nature."""
    return Answer(ListOf[Any](items=list(rows), next_cursor=None))
