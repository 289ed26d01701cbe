"""How a request's body and query become values: strictly, and with every fault named at once.

A body is read here and nowhere else, but for an artifact's, which is streamed (``gateway.edge.artifacts``).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, cast

from aiohttp import web
from multidict import MultiMapping
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from device_sdk.wire.limits import INTEGER_MAX
from gateway.edge.incoming import read_some, too_slow
from gateway.edge.problem import FieldError, RequestError

BodyT = TypeVar("BodyT", covariant=True)
ModelT = TypeVar("ModelT", bound=BaseModel)

DEPTH_MAX: Final = 64
PAGE_LEN_MAX: Final = 1000
ERRORS_MAX: Final = 20
FIELD_LEN_MAX: Final = 128
JSON: Final = "application/json"


class Strict(BaseModel):
    """A body: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def audited(self) -> dict[str, Any]:
        """Return what of it is written down in the audit: what was given, without payloads and secrets."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class NoQuery(BaseModel):
    """A route without parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _decimal(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) <= 16):
        raise ValueError("must be a whole number")
    return value


def _flag(value: object) -> object:
    if isinstance(value, str) and value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value


Flag = Annotated[bool, BeforeValidator(_flag)]
Time = Annotated[int, Field(ge=0, le=INTEGER_MAX), BeforeValidator(_decimal)]
"""Milliseconds UTC."""


class Page(NoQuery):
    """Which part of a list."""

    limit: Annotated[int, Field(ge=1, le=PAGE_LEN_MAX), BeforeValidator(_decimal)] = Field(
        default=100, description="Items at most."
    )
    cursor: str | None = Field(
        default=None, description="`next_cursor` of the page before; without it the list begins at its start."
    )


class OrderedPage(Page):
    """Which part of a list that can be read from either end."""

    order: Literal["asc", "desc"] = Field(default="asc", description="`desc`: the newest first.")

    @property
    def is_newest_first(self) -> bool:
        return self.order == "desc"


class Body(Generic[BodyT]):
    """What a route takes. ``content_type`` is empty where it takes nothing."""

    content_type: str = ""
    is_streamed: bool = False

    def size_bytes_max(self, otherwise: int) -> int:
        """Return how long it may be; ``otherwise`` is the bound of bodies in general."""
        return otherwise

    def parse(self, raw: bytes) -> BodyT:
        """Return the value of ``raw``. Raises RequestError."""
        raise AssertionError("a route without a body reads none")


class NoBody(Body[None]):
    """A body that is there all the same is not looked at."""


class JsonBody(Body[ModelT]):
    """A JSON object by ``model``.

    Args:
        is_optional: No body at all is an empty object.
    """

    content_type = JSON

    def __init__(self, model: type[ModelT], *, is_optional: bool = False) -> None:
        self.model = model
        self.is_optional = is_optional

    def parse(self, raw: bytes) -> ModelT:
        if not raw and self.is_optional:
            return self.model()
        return validate(self.model, parse_json(raw), code="invalid_body", status=422)


class RawBody(Body[bytes]):
    """Bytes of another format, checked by who takes them."""

    def __init__(self, content_type: str, *, size_bytes_max: int) -> None:
        self.content_type = content_type
        self._size_bytes_max = size_bytes_max

    def size_bytes_max(self, otherwise: int) -> int:
        return min(self._size_bytes_max, otherwise)

    def parse(self, raw: bytes) -> bytes:
        return raw


class StreamedBody(Body[None]):
    """Bytes that the handler reads from the connection, piece by piece."""

    content_type = "application/octet-stream"
    is_streamed = True


async def read_body(request: web.Request, body: Body[Any], *, size_bytes_max: int, timeout_s: float) -> bytes:
    """Return the request's body once it is of the type and the length that ``body`` allows.

    Raises:
        RequestError: It is not (413, 415), or did not come in time (408).
    """
    if not request.body_exists:
        return b""
    check_content_type(request, body.content_type)
    allowed = body.size_bytes_max(size_bytes_max)
    announced = request.content_length
    if announced is not None and announced > allowed:
        raise _too_large(allowed)
    raw = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while piece := await read_some(request):
                raw += piece
                if len(raw) > allowed:
                    raise _too_large(allowed)
    except TimeoutError as error:
        raise too_slow(timeout_s) from error
    return bytes(raw)


def check_content_type(request: web.Request, content_type: str) -> None:
    """Raise RequestError (415) unless the body is ``content_type``, in UTF-8 if JSON, and not packed."""
    if request.headers.get("Content-Type") is None or request.content_type != content_type:
        raise _unsupported(f"Send the body as Content-Type: {content_type}.")
    if content_type == JSON and (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise _unsupported("JSON is sent in UTF-8.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _unsupported("Send the body without a Content-Encoding.")


def parse_json(raw: bytes) -> object:
    """Return the document in ``raw``: UTF-8, no key twice in an object, finite numbers, no lone surrogates.

    Raises:
        RequestError: Anything else.
    """
    try:
        text = raw.decode()
        document = json.loads(
            text, object_pairs_hook=_object_once, parse_constant=_refuse_constant, parse_float=_finite
        )
        if "\\u" in text:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise _malformed("it is not UTF-8, or it holds half of a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg}, line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise _malformed("it is nested too deeply") from error
    except ValueError as error:
        raise _malformed(str(error)) from error
    return cast(object, document)


def parse_query(model: type[ModelT], query: MultiMapping[str]) -> ModelT:
    """Return the query's parameters.

    Raises:
        RequestError: One is unknown, there twice, or not what it must be.
    """
    values = dict(query)
    if len(values) != len(query):
        raise RequestError(400, "invalid_query", "A parameter is there twice.")
    return validate(model, values, code="invalid_query", status=400)


def validate(model: type[ModelT], document: object, *, code: str, status: int) -> ModelT:
    """Return ``document`` as ``model``.

    Raises:
        RequestError: It is not; ``errors`` has every fault, up to ``ERRORS_MAX``.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        errors = tuple(_field_errors(error))
        raise RequestError(status, code, _sentence(errors), errors=errors) from error


def check_depth(value: object, *, depth_max: int = DEPTH_MAX) -> None:
    """Raise ValueError if ``value`` has more than ``depth_max`` lists and objects inside each other."""
    if isinstance(value, dict | list):
        if depth_max == 0:
            raise ValueError(f"must not be nested more than {DEPTH_MAX} deep")
        for item in value.values() if isinstance(value, dict) else value:
            check_depth(item, depth_max=depth_max - 1)


def _field_errors(error: ValidationError) -> Iterable[FieldError]:
    found: Iterable[Mapping[str, Any]] = cast(
        "list[dict[str, Any]]", error.errors(include_url=False, include_context=False, include_input=False)
    )
    for fault in list(found)[:ERRORS_MAX]:
        field = ".".join(str(part) for part in fault["loc"])[:FIELD_LEN_MAX]
        detail = str(fault["msg"]).removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            detail = "there is no such field here"
        elif fault["type"] == "model_type":
            detail = "must be an object"
        yield FieldError(field, detail)


def _sentence(errors: tuple[FieldError, ...]) -> str:
    first = errors[0]
    text = f"{first.field}: {first.detail}" if first.field else first.detail
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{text}{more}"


def _object_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice in one object")
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _malformed(why: str) -> RequestError:
    return RequestError(400, "malformed_json", f"The body is not JSON: {why}.")


def _unsupported(detail: str) -> RequestError:
    return RequestError(415, "unsupported_media_type", detail)


def _too_large(allowed: int) -> RequestError:
    return RequestError(413, "too_large", f"The body is longer than {allowed} bytes.")
