"""The one place that makes requests to the operator's side: bounded in time, size and number.

An answer is a status, headers and a body; what it means is for ``forward_auth``, ``introspection`` and
``jwks``. Redirects are not followed: a token must not travel to where the configuration does not point.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.clock import Clock
from gateway.errors import OriginUnavailableError
from gateway.origin.circuit import Circuit, Outcome
from gateway.origin.limits import OriginLimits
from gateway.telemetry import Metrics, logger

_log = logger("origin")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the origin answered, whole."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def cache_s(self) -> float | None:
        """``max-age`` of ``Cache-Control``, in seconds; None if there is none.

        ``no-store`` is not heeded: authorisation servers send it with everything, meaning caches on the
        way, and RFC 7662 §4 leaves the resource server its own.
        """
        for part in ",".join(self.headers.getall(hdrs.CACHE_CONTROL, [])).split(","):
            name, _, value = part.strip().partition("=")
            if name.lower() == "max-age" and value.isascii() and value.isdigit() and len(value) < 10:
                return float(value)
        return None

    def retry_after_s(self, limits: OriginLimits) -> float | None:
        """``Retry-After`` in seconds, at most ``retry_after_s_max``; None without one, or for a date."""
        value = self.headers.get(hdrs.RETRY_AFTER, "")
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            return None
        return min(float(value), limits.retry_after_s_max)


class OriginHTTP:
    """Requests to one origin. Use it as an async context manager; requests only inside.

    Args:
        limits: See ``OriginLimits``.
        clock: Monotonic time for the circuit.
        metrics: The node's.
        circuit: Which of the node's circuits it is.
    """

    def __init__(
        self,
        *,
        limits: OriginLimits,
        clock: Clock,
        metrics: Metrics,
        circuit: Literal["origin", "uplink"] = "origin",
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._metrics = metrics
        self._circuit = Circuit(limits)
        self._circuit_name = circuit
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> OriginHTTP:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.limits.origin_concurrency_max),
            cookie_jar=aiohttp.DummyCookieJar(),  # one device's cookie is not another's
            timeout=aiohttp.ClientTimeout(),  # none: ``_exchange`` bounds the whole, at half the price
            skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Return the answer to one request, whatever its status below 500 but 429.

        Raises:
            OriginUnavailableError: The circuit is open (``origin_circuit_open``); no answer in time, no
                connection, broken HTTP, 429 or 5xx (``origin_unavailable``): these count against the circuit.
                An answer that is too long (``origin_malformed``) does not: the origin is there.
        """
        assert self._session is not None, "used outside of its context"
        turn = self._circuit.begin(self._clock.monotonic())
        outcome = Outcome.ABANDONED
        try:
            answer = await self._exchange(self._session, method, url, headers, form if body is None else body)
            failed = answer.status == 429 or answer.status >= 500
            outcome = Outcome.FAILED if failed else Outcome.ANSWERED
        except OriginUnavailableError:
            outcome = Outcome.ANSWERED
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            outcome = Outcome.FAILED
            raise OriginUnavailableError(
                f"no answer: {type(error).__name__}", retry_after_s=self.limits.circuit_open_s
            ) from error
        finally:
            self._end(turn, outcome)
        if failed:
            wait_s = answer.retry_after_s(self.limits) or self.limits.circuit_open_s
            raise OriginUnavailableError(f"answered {answer.status}", retry_after_s=wait_s)
        return answer

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]],
        data: Mapping[str, str] | bytes | None,
    ) -> Answer:
        # The session's own timeout would not cover the wait for a free connection under every circumstance.
        async with asyncio.timeout(self.limits.origin_timeout_s):
            # Compressed answers would make answer_size_bytes_max a bound on the wrong thing.
            sent = CIMultiDict([*headers, (hdrs.ACCEPT_ENCODING, "identity"), (hdrs.USER_AGENT, "fleetcast")])
            if isinstance(data, Mapping):
                sent[hdrs.CONTENT_TYPE] = "application/x-www-form-urlencoded"
            async with session.request(
                method, url, headers=sent, data=data, allow_redirects=False
            ) as response:
                return Answer(response.status, response.headers, await self._body(response))

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        size_max = self.limits.answer_size_bytes_max
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > size_max:
                raise OriginUnavailableError(
                    f"an answer of more than {size_max} bytes", code="origin_malformed", retry_after_s=30.0
                )
        return bytes(body)

    def _end(self, turn: int, outcome: Outcome) -> None:
        before = self._circuit.state
        self._circuit.end(turn, outcome, self._clock.monotonic())
        after = self._circuit.state
        self._metrics.circuit_is(after, of=self._circuit_name)
        if after is not before:
            _log.warning("circuit", of=self._circuit_name, before=before, after=after)
