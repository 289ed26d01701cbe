"""What a route is: a declaration. Routing, authorisation, validation and the reference are made from it.

A route cannot be written without its scope, and what it does not declare it does not take: a parameter, a
field or a content type. ``dispatch`` runs it; ``table`` has all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from aiohttp import web
from pydantic import BaseModel

from device_sdk.wire.errors import WireError
from device_sdk.wire.names import ChannelName, DeviceId, parse_channel_name, parse_device_id
from gateway.edge.operator.body import Body, NoBody, NoQuery, Page, Strict
from gateway.edge.operator.cursor import Key, KeyT, decode_cursor, encode_cursor
from gateway.edge.operator.services import OperatorServices
from gateway.errors import NotFoundError
from gateway.fleet.acts import Act, AuditEntry, Idempotency, Replay
from gateway.fleet.model import Fleet
from gateway.identity import Operator, Scope
from gateway.ids import parse_id

BodyT = TypeVar("BodyT")
QueryT = TypeVar("QueryT", bound=BaseModel)
EffectT = TypeVar("EffectT")

API: Final = "/api/v1"
FLEET: Final = API + "/fleets/{fleet}"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_PARAMETER: Final = re.compile(r"{([a-z_0-9]+)}")
# For a route that does not say otherwise; what its handler takes decides the types.
_NO_BODY: Final[Any] = NoBody()
_NO_QUERY: Final[Any] = NoQuery


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler answers, in the form of its route's ``result``.

    Attributes:
        result: None: no body.
        status: None: the first of the route's ``statuses``.
        version: The ETag of what ``result`` shows.
    """

    result: BaseModel | None = None
    status: int | None = None
    version: int | None = None


class ListOf(BaseModel, Generic[EffectT]):
    """A page of a list."""

    items: list[EffectT]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[BodyT, QueryT]):
    """One request that is authorised and well formed.

    Attributes:
        path: The path's parameters, as they came.
        if_match: The version that the client last saw; None: it does not say.
        request_sha256: Of everything that makes the request what it is, if it has an ``idempotency_key``.
        found_fleet: The fleet of the path; of a route that has none there, the one that the request names or
            else the token's own. None: all fleets.
    """

    services: OperatorServices
    operator: Operator
    route: AnyRoute
    path: Mapping[str, str]
    query: QueryT
    body: BodyT
    request: web.Request
    found_fleet: Fleet | None = None
    if_match: int | None = None
    idempotency_key: str | None = None
    request_sha256: bytes = b""

    @property
    def fleet(self) -> Fleet:
        """The fleet of the path."""
        assert self.found_fleet is not None, "only a route below a fleet asks for it"
        return self.found_fleet

    @property
    def now_ms(self) -> int:
        return self.services.clock.now_ms()

    def channel_name(self) -> ChannelName:
        """Return the path's ``channel``. Raises NotFoundError: there can be none of that name."""
        return self._parsed("channel", parse_channel_name)

    def device_id(self) -> DeviceId:
        """Return the path's ``device_id``. Raises NotFoundError: there can be none of that name."""
        return self._parsed("device_id", parse_device_id)

    def id(self) -> bytes:
        """Return the path's ``id``. Raises NotFoundError: not a UUID."""
        return self._parsed("id", parse_id)

    def after(self, kind: type[KeyT]) -> KeyT | None:
        """Return the key after which this page begins; None: it is the first."""
        query = self.query
        assert isinstance(query, Page), "only a list has pages"
        return None if query.cursor is None else decode_cursor(query.cursor, self._list(), kind)

    def cursor(self, last: Key) -> str:
        """Return where the next page begins, after the item ``last``."""
        return encode_cursor(self._list(), last)

    def act(self, result_of: Callable[[EffectT], BaseModel]) -> Act[EffectT]:
        """Return what writes this POST down, and makes it happen once if its client asked for that.

        Args:
            result_of: What is answered; it is stored, so it holds no secret.
        """

        def respond(effect: EffectT) -> tuple[int, bytes]:
            return self.route.statuses[0], result_of(effect).model_dump_json().encode()

        def entry(effect: EffectT) -> AuditEntry:
            where = self.route.location
            if where is None:
                return self.audit()
            return self.audit(where.format_map({**result_of(effect).model_dump(), **self.path}))

        key = self.idempotency_key
        idempotency = None
        if key is not None:
            idempotency = Idempotency(self.operator.token_id, key, self.request_sha256, respond)
        return Act(entry, idempotency)

    def audit(self, target: str | None = None) -> AuditEntry:
        """Return the row that says who changed what; ``target`` is the path unless it is given."""
        details = self.body.audited() if isinstance(self.body, Strict) else {}
        details |= self.query.model_dump(mode="json", exclude_unset=True)
        return AuditEntry(
            at=self.now_ms,
            fleet_key=None if self.found_fleet is None else self.found_fleet.key,
            token_id=self.operator.token_id,
            operator=self.operator.name,
            operation=self.route.operation,
            target=(target or self.request.path).removeprefix(API + "/"),
            details=details,
        )

    def _list(self) -> str:
        """Return which list this is: with other filters, or in another order, it is another one."""
        wanted = self.query.model_dump(
            mode="json", exclude={"limit", "cursor"}, exclude_defaults=True, exclude_none=True
        )
        if not wanted:
            return self.route.operation
        text = json.dumps(wanted, sort_keys=True, ensure_ascii=True)
        return f"{self.route.operation}?{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _parsed(self, name: str, parse: Callable[[str], EffectT]) -> EffectT:
        try:
            return parse(self.path[name])
        except WireError as error:
            raise NotFoundError(f"there is no such {name}: {error}") from error


Outcome = Answer | Replay | web.StreamResponse
Handler = Callable[[Call[BodyT, QueryT]], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Generic[BodyT, QueryT]):
    """One operation of the API.

    Attributes:
        path: With parameters in braces; one below ``{fleet}`` is authorised for that fleet, another only for
            operators of all fleets unless it is ``is_shared``.
        operation: Unique and stable: ``noun.verb``.
        summary: A sentence for the reference.
        statuses: Of success; the first is the usual one.
        result: The model of the answer's body, or its content type, or None.
        errors: Beyond those that every route has, by code.
        location: Where a 201 says the new thing is: a path with parameters of the path and of the result.
        is_versioned: A GET answers an ETag; a change takes If-Match.
        is_shared: About the fleet that the request names as ``fleet`` in its body or query, or else about all
            that the token reaches.
        is_frequent: Not written to the log at level info.
    """

    method: str
    path: str
    operation: str
    scope: Scope
    summary: str
    handler: Handler[BodyT, QueryT]
    body: Body[BodyT] = _NO_BODY
    query: type[QueryT] = _NO_QUERY
    statuses: tuple[int, ...] = (200,)
    result: type[BaseModel] | str | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    location: str | None = None
    is_versioned: bool = False
    is_shared: bool = False
    is_frequent: bool = False

    def __post_init__(self) -> None:
        assert self.method in _METHODS, f"{self.operation}: no method of ours"
        assert self.path.startswith(API + "/"), f"{self.operation}: outside the API"
        assert self.method not in ("GET", "HEAD") or isinstance(self.body, NoBody), "reading takes no body"
        assert self.method != "POST" or not self.is_versioned, "an action has no ETag"
        assert 201 not in self.statuses or self.location, f"{self.operation}: a 201 says where"
        assert self.method != "POST" or len(self.statuses) == 1, "what is repeated has one answer"
        assert not (self.is_shared and self.is_fleet_bound), "its fleet is in the path"

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the path's parameters, in order."""
        return tuple(_PARAMETER.findall(self.path))

    @property
    def is_fleet_bound(self) -> bool:
        """Whether it is about the one fleet of its path."""
        return "fleet" in self.parameters

    @property
    def takes_idempotency_key(self) -> bool:
        """Whether its client may repeat it and have it done once."""
        return self.method == "POST"

    @property
    def takes_if_match(self) -> bool:
        """Whether it is refused if what it changes is another version than the client last saw."""
        return self.is_versioned and self.method not in ("GET", "HEAD")


AnyRoute = Route[Any, Any]
