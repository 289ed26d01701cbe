"""Which devices a rollout means: a small language, its parser and its predicate.

``docs/reference/selectors.md`` is the same for operators. The tree is frozen and says nothing about a
database; ``gateway.storage.selectors`` makes SQL of it, and a property test holds the two equal.

    selector   = term *( "or" term )
    term       = factor *( "and" factor )
    factor     = "not" factor / "(" selector ")" / comparison
    comparison = field operator value / field "in" "(" value *( "," value ) ")"
    field      = "device_id" / "tag" / "origin." NAME / "reported." NAME
    operator   = "==" / "!=" / "<" / "<=" / ">" / ">="
    value      = STRING / NUMBER / "true" / "false"

A comparison is true or false, never unknown. It is true only if the device has the attribute, with a value
of the literal's type (text, number, boolean): so ``!=`` means "has another value", and ``not … ==`` means
"has not this value". Text is compared by code point, and versions are text: "1.10" is below "1.9".
"""

from __future__ import annotations

import enum
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeVar

from device_sdk.wire.limits import ATTRIBUTE_LEN_MAX, INTEGER_MAX
from gateway.errors import PeerError

Value = str | int | float | bool

LENGTH_MAX: Final = 2000  # characters of a selector
DEPTH_MAX: Final = 16  # parentheses and nots inside each other
TERMS_MAX: Final = 64  # comparisons
VALUES_MAX: Final = 100  # values of one ``in``


class SelectorError(PeerError):
    """Not a selector. ``column`` is where, from 1."""

    code = "bad_selector"

    def __init__(self, reason: str, column: int) -> None:
        super().__init__(f"column {column}: {reason}")
        self.reason = reason
        self.column = column


class Source(enum.Enum):
    """Where a device has what is compared."""

    DEVICE_ID = "device_id"
    TAG = "tag"
    ORIGIN = "origin"
    REPORTED = "reported"


@dataclass(frozen=True, slots=True)
class Field:
    """What is compared; ``name`` only for the two kinds of attribute."""

    source: Source
    name: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """``field operator value``. A tag has ``==`` alone, a boolean ``==`` and ``!=``."""

    field: Field
    operator: str
    value: Value


@dataclass(frozen=True, slots=True)
class OneOf:
    """``field in (…)``: the same as ``==`` with any of ``values``."""

    field: Field
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Not:
    term: Selector


@dataclass(frozen=True, slots=True)
class And:
    terms: tuple[Selector, ...]


@dataclass(frozen=True, slots=True)
class Or:
    terms: tuple[Selector, ...]


Selector = Comparison | OneOf | Not | And | Or
Predicate = Callable[["Subject"], bool]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a selector can ask of a device."""

    device_id: str
    origin: Mapping[str, Value] = field(default_factory=dict)
    reported: Mapping[str, Value] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()


# --- the predicate --------------------------------------------------------------------------------------

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def predicate(selector: Selector) -> Predicate:
    """Return the function that says whether a device is meant."""
    match selector:
        case And(terms):
            parts = [predicate(term) for term in terms]
            return lambda subject: all(part(subject) for part in parts)
        case Or(terms):
            parts = [predicate(term) for term in terms]
            return lambda subject: any(part(subject) for part in parts)
        case Not(term):
            inner = predicate(term)
            return lambda subject: not inner(subject)
        case OneOf(of, values):
            return predicate(Or(tuple(Comparison(of, "==", value) for value in values)))
        case Comparison(of, name, value):
            return _comparison(of, name, value)


def _comparison(of: Field, name: str, value: Value) -> Predicate:
    compare = _OPERATORS[name]
    kind = type_name(value)
    match of.source:
        case Source.TAG:
            return lambda subject: value in subject.tags
        case Source.DEVICE_ID:
            return lambda subject: compare(subject.device_id, value)
        case Source.ORIGIN | Source.REPORTED:
            is_origin = of.source is Source.ORIGIN

            def holds(subject: Subject) -> bool:
                actual = (subject.origin if is_origin else subject.reported).get(of.name)
                return actual is not None and type_name(actual) == kind and compare(actual, value)

            return holds


def type_name(value: Value) -> str:
    """Return ``text``, ``boolean`` or ``number``: only values of one type are compared."""
    if isinstance(value, str):
        return "text"
    # A bool is an int in Python, and must not be one here.
    return "boolean" if isinstance(value, bool) else "number"


# --- the parser -----------------------------------------------------------------------------------------

_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9._~:-]*")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_OPERATOR: Final = re.compile(r"==|!=|<=|>=|<|>")
_STRING: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_ESCAPE: Final = re.compile(r"\\(.)")
_BLANK: Final = re.compile(r"[ \t\r\n]*")
_ATTRIBUTE_NAME_LEN_MAX: Final = 128
_RESERVED: Final = frozenset({"and", "or", "not", "in", "true", "false"})

T = TypeVar("T")


def parse_selector(text: str) -> Selector:
    """Return the selector that ``text`` says.

    Raises:
        SelectorError: It says none, or one over a limit; the error names the column.
    """
    if len(text) > LENGTH_MAX:
        raise SelectorError(f"a selector is at most {LENGTH_MAX} characters", LENGTH_MAX + 1)
    return _Parser(text).parse()


class _Parser:
    """Recursive descent; its depth is bounded by ``DEPTH_MAX``."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._terms = 0
        self._skip_blank()

    def parse(self) -> Selector:
        selector = self._disjunction()
        if self._at < len(self._text):
            self._refuse("expected 'and', 'or' or the end")
        return selector

    def _disjunction(self) -> Selector:
        terms = [self._conjunction()]
        while self._take_word("or"):
            terms.append(self._conjunction())
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _conjunction(self) -> Selector:
        terms = [self._factor()]
        while self._take_word("and"):
            terms.append(self._factor())
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _factor(self) -> Selector:
        if self._take_word("not"):
            return Not(self._nested(self._factor))
        if self._take_sign("("):
            selector = self._nested(self._disjunction)
            self._expect_sign(")")
            return selector
        return self._comparison()

    def _nested(self, parse: Callable[[], T]) -> T:
        if self._depth == DEPTH_MAX:
            self._refuse(f"nested deeper than {DEPTH_MAX}")
        self._depth += 1
        result = parse()
        self._depth -= 1
        return result

    def _comparison(self) -> Selector:
        if self._terms == TERMS_MAX:
            self._refuse(f"more than {TERMS_MAX} comparisons")
        self._terms += 1
        of = self._field()
        if self._take_word("in"):
            return self._one_of(of)
        start = self._at
        match = _OPERATOR.match(self._text, self._at)
        if match is None:
            self._refuse("expected ==, !=, <, <=, >, >= or in")
        self._advance(match.end())
        if of.source is Source.TAG and match[0] != "==":
            self._refuse("a tag takes == and in; for the opposite write not tag == …", start)
        value = self._value(of)
        if isinstance(value, bool) and match[0] not in ("==", "!="):
            self._refuse("a boolean takes == and !=", start)
        return Comparison(of, match[0], value)

    def _one_of(self, of: Field) -> Selector:
        self._expect_sign("(")
        values = [self._value(of)]
        while self._take_sign(","):
            if len(values) == VALUES_MAX:
                self._refuse(f"more than {VALUES_MAX} values")
            values.append(self._value(of))
        self._expect_sign(")")
        return OneOf(of, tuple(values))

    def _field(self) -> Field:
        start = self._at
        match = _WORD.match(self._text, self._at)
        if match is None or match[0] in _RESERVED:
            self._refuse("expected device_id, tag, origin.NAME or reported.NAME")
        source, dot, name = match[0].partition(".")
        if source in ("origin", "reported"):
            if not dot or not name:
                self._refuse(f"{source} needs a name: {source}.NAME")
            if len(name) > _ATTRIBUTE_NAME_LEN_MAX:
                self._refuse(f"an attribute's name is at most {_ATTRIBUTE_NAME_LEN_MAX} characters")
        elif dot or source not in ("device_id", "tag"):
            self._refuse("expected device_id, tag, origin.NAME or reported.NAME", start)
        self._advance(match.end())
        return Field(Source(source), name)

    def _value(self, of: Field) -> Value:
        start = self._at
        value = self._literal()
        if of.source in (Source.TAG, Source.DEVICE_ID) and not isinstance(value, str):
            self._refuse(f"{of.source.value} is compared with text", start)
        return value

    def _literal(self) -> Value:
        if self._take_word("true"):
            return True
        if self._take_word("false"):
            return False
        if self._text.startswith('"', self._at):
            return self._string()
        match = _NUMBER.match(self._text, self._at)
        if match is None:
            self._refuse('expected "text", a number, true or false')
        if match[1] is None and match[2] is None:
            number: int | float = int(match[0])
            is_sound = abs(number) <= INTEGER_MAX
        else:
            number = float(match[0])
            is_sound = math.isfinite(number)
        if not is_sound:
            self._refuse("the number is too large")
        self._advance(match.end())
        return number

    def _string(self) -> str:
        match = _STRING.match(self._text, self._at)
        if match is None:
            self._refuse('text without its closing ", or a \\ that escapes neither " nor \\')
        value = _ESCAPE.sub(r"\1", match[1])
        if len(value) > ATTRIBUTE_LEN_MAX:
            self._refuse(f"text is at most {ATTRIBUTE_LEN_MAX} characters")
        # No database holds these two, so they could never match alike in both.
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
            self._refuse("text holds no NUL and no lone surrogate")
        self._advance(match.end())
        return value

    def _take_word(self, word: str) -> bool:
        match = _WORD.match(self._text, self._at)
        if match is None or match[0] != word:
            return False
        self._advance(match.end())
        return True

    def _take_sign(self, sign: str) -> bool:
        if not self._text.startswith(sign, self._at):
            return False
        self._advance(self._at + 1)
        return True

    def _expect_sign(self, sign: str) -> None:
        if not self._take_sign(sign):
            self._refuse(f"expected {sign}")

    def _advance(self, at: int) -> None:
        self._at = at
        self._skip_blank()

    def _skip_blank(self) -> None:
        match = _BLANK.match(self._text, self._at)
        assert match is not None, "it matches the empty text"
        self._at = match.end()

    def _refuse(self, reason: str, at: int | None = None) -> NoReturn:
        raise SelectorError(reason, (self._at if at is None else at) + 1)
