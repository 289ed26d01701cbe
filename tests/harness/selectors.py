"""Strategies: selectors as trees and as text, and devices that they may or may not match."""

from __future__ import annotations

from hypothesis import strategies as st

from gateway.rollout.selector import (
    And,
    Comparison,
    Field,
    Not,
    OneOf,
    Or,
    Selector,
    Source,
    Subject,
    Value,
)

# Few names and values, so that comparisons often hold; the odd ones are about order and quoting.
NAMES = st.sampled_from(["model", "firmware", "a.b", "x:y~z-1", "n"])
TEXTS = st.sampled_from(
    [
        "",
        "a",
        "B",
        "tc3",
        "1.4.0",
        "1.10.0",
        "1.9",
        "é",
        "z\u0301",
        "\U0001f600",
        "\uffff",
        '"',
        "\\",
        "a b",
        "true",
        "1",
    ]
) | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=4)
NUMBERS = (
    st.integers(-3, 3)
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.integers(-1000, 1000).map(lambda n: n / 8)
    | st.sampled_from([0.0, -0.0, 1.0, 1e21, 0.1, -2.5])
)
VALUES = TEXTS | NUMBERS | st.booleans()
TAGS = st.sampled_from(["eu", "lab", "é", '"q"', ""])
DEVICE_IDS = st.sampled_from(["a", "B", "pump-7", "pump-70", "z.9"])

ATTRIBUTES = st.builds(Field, st.sampled_from([Source.ORIGIN, Source.REPORTED]), NAMES)
ORDER = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
EQUALITY = st.sampled_from(["==", "!="])
COMPARISONS: st.SearchStrategy[Selector] = st.one_of(
    st.builds(Comparison, ATTRIBUTES, ORDER, TEXTS | NUMBERS),
    st.builds(Comparison, ATTRIBUTES, EQUALITY, st.booleans()),
    st.builds(Comparison, st.just(Field(Source.DEVICE_ID)), ORDER, DEVICE_IDS),
    st.builds(Comparison, st.just(Field(Source.TAG)), st.just("=="), TAGS),
    st.builds(OneOf, ATTRIBUTES, st.lists(VALUES, min_size=1, max_size=3).map(tuple)),
    st.builds(OneOf, st.just(Field(Source.TAG)), st.lists(TAGS, min_size=1, max_size=3).map(tuple)),
    st.builds(
        OneOf, st.just(Field(Source.DEVICE_ID)), st.lists(DEVICE_IDS, min_size=1, max_size=3).map(tuple)
    ),
)
SELECTORS: st.SearchStrategy[Selector] = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=2, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)
SUBJECTS = st.builds(
    Subject,
    DEVICE_IDS,
    st.dictionaries(NAMES, VALUES, max_size=4),
    st.dictionaries(NAMES, VALUES, max_size=4),
    st.frozensets(TAGS, max_size=3),
)


def text_of(selector: Selector) -> str:
    """Return a text that says ``selector``, with as many parentheses as it needs."""
    match selector:
        case And(terms):
            return " and ".join(_inside(term, (And, Or)) for term in terms)
        case Or(terms):
            return " or ".join(_inside(term, (Or,)) for term in terms)
        case Not(term):
            return "not " + _inside(term, (And, Or))
        case OneOf(field, values):
            return f"{_field(field)} in ({', '.join(map(_value, values))})"
        case Comparison(field, operator, value):
            return f"{_field(field)} {operator} {_value(value)}"


def _inside(term: Selector, parenthesised: tuple[type, ...]) -> str:
    text = text_of(term)
    return f"({text})" if isinstance(term, parenthesised) else text


def _field(field: Field) -> str:
    return f"{field.source.value}.{field.name}" if field.name else field.source.value


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
