"""Types that the bodies of several routes share."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from gateway.edge.problem import FieldError, RequestError
from gateway.rollout import SelectorError, parse_selector

# A fleet, a device's id, a channel by an operator: 1..128 of the alphabet, not beginning with ~ (names.py).
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-][A-Za-z0-9._~:-]{0,127}$", description="A name.")]
# Any channel, a device's own among them.
AnyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~:-]{1,128}$", description="A name.")]
DeviceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-][A-Za-z0-9._~:-]{0,126}$", description="An id.")]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~:-]{1,128}$")]


def _integral(value: object) -> object:
    # 5.0 is an integer, says JSON Schema, and some clients' only number is a float.
    return int(value) if isinstance(value, float) and value.is_integer() else value


INTEGRAL: Final = BeforeValidator(
    _integral
)  # the last of an integer's annotations: it hides them from the schema
SelectorText = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")]
Label = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Id = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", description="A UUID."),
]


def parsed_selector(text: str | None) -> str | None:
    """Return ``text``, which is a selector or None. Raises RequestError (``bad_selector``)."""
    if text is not None:
        try:
            parse_selector(text)
        except SelectorError as error:
            raise RequestError(
                400, error.code, f"selector, {error}", errors=[FieldError("selector", str(error))]
            ) from error
    return text
