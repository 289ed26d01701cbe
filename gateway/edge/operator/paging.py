"""One page of any list: what the store has, and one more where it may, to know whether the list goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from gateway.edge.operator.body import PAGE_LEN_MAX, Page
from gateway.edge.operator.cursor import KeyT
from gateway.edge.operator.results import Result
from gateway.edge.operator.route import Answer, Call, ListOf

RowT = TypeVar("RowT")
BodyT = TypeVar("BodyT")
QueryT = TypeVar("QueryT", bound=Page)


async def page(
    call: Call[BodyT, QueryT],
    read: Callable[[KeyT | None, int], Awaitable[Sequence[RowT]]],
    *,
    kind: type[KeyT],
    key: Callable[[RowT], KeyT],
    show: Callable[[RowT], Result],
) -> Answer:
    """Return the page that ``call`` asks for.

    Args:
        read: Returns at most so many rows after a key, in the order of ``key``; None: from the start.
        kind: Of the key.
    """
    limit = call.query.limit
    wanted = min(limit + 1, PAGE_LEN_MAX)  # stores give no more than that at once
    rows = await read(call.after(kind), wanted)
    goes_on = len(rows) > limit or len(rows) == wanted == limit
    next_cursor = call.cursor(key(rows[limit - 1])) if goes_on else None
    return Answer(ListOf[Any](items=[show(row) for row in rows[:limit]], next_cursor=next_cursor))


def whole(rows: Sequence[Result]) -> Answer:
    """Return a list that is one page by its nature."""
    return Answer(ListOf[Any](items=list(rows), next_cursor=None))
