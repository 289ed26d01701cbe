"""A selector as a SQL condition on ``device``: true for the devices its predicate is true for.

Every comparison is true or false, never NULL, so that NOT and AND mean what they mean in Python. How a value
is taken out of JSON, and the order of text, is in ``dialect``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, bindparam, false, func, not_, or_

from gateway.rollout.selector import (
    And,
    Comparison,
    Field,
    Not,
    OneOf,
    Or,
    Selector,
    Source,
    Value,
    type_name,
)
from gateway.storage.dialect import json_boolean, json_contains, json_number, json_text
from gateway.storage.tables import device

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ACCESSORS: Final[Mapping[str, Callable[..., ColumnElement[Any]]]] = {
    "text": json_text,
    "number": json_number,
    "boolean": json_boolean,
}


def condition(selector: Selector) -> ColumnElement[bool]:
    """Return the condition that ``selector`` is."""
    match selector:
        case And(terms):
            return and_(*(condition(term) for term in terms))
        case Or(terms):
            return or_(*(condition(term) for term in terms))
        case Not(term):
            return not_(condition(term).self_group())
        case OneOf(of, values):
            return or_(*(_comparison(of, "==", value) for value in values))
        case Comparison(of, name, value):
            return _comparison(of, name, value)


def _comparison(of: Field, name: str, value: Value) -> ColumnElement[bool]:
    match of.source:
        case Source.TAG:
            return json_contains(device.c.tags, value)
        case Source.DEVICE_ID:
            return _OPERATORS[name](device.c.device_id, value)  # type: ignore[no-any-return]
        case Source.ORIGIN | Source.REPORTED:
            column = device.c.origin if of.source is Source.ORIGIN else device.c.reported
            actual = _ACCESSORS[type_name(value)](column, of.name)
            # NULL: the device has no such attribute, or one of another type.
            return func.coalesce(_OPERATORS[name](actual, bindparam(None, value, actual.type)), false())
