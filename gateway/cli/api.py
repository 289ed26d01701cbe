"""The operator API as a client sees it: requests with a token, answers as JSON, refusals as ``Failure``.

Synchronous, one connection a request, every wait bounded. Redirects are not followed and proxies not used: a
token goes to the address it was given for and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

from gateway.cli.failure import AnswerFailure, Failure, UnreachableFailure, UsageFailure
from gateway.cli.paths import with_query

Json = dict[str, Any]

ANSWER_SIZE_BYTES_MAX: Final = 64 * 1024 * 1024
PAGE_LEN: Final = 1000
UPLOAD_BLOCK_BYTES: Final = 256 * 1024
REPEATS_S: Final = (0.5, 1.0, 2.0, 4.0)  # waits before a request that may be repeated is
RETRY_AFTER_S_MAX: Final = 10.0
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx: header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, decoded; None if there is none."""
        if not self.body:
            return None
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Failure("the gateway's answer is not JSON", code="bad_answer") from error


class Api:
    """A gateway's operator API.

    Args:
        url: ``http://`` or ``https://`` and a host; a path before ``/api/v1`` may follow.
        token: Of an operator.
        timeout_s: Longest wait for a connection, and for the next bytes of it.
        sleep: Waits between repeats.
    """

    def __init__(
        self, url: str, token: str, *, timeout_s: float = 30.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username:
            raise UsageFailure(f"{url!r} is not an address such as https://fleet.example.com")
        self.url = url.rstrip("/")
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = port
        self._prefix = parts.path.rstrip("/") + "/api/v1"
        self._token = token
        self._timeout_s = timeout_s
        self._sleep = sleep

    def get(self, path: str, **query: object) -> Json:
        """Return the JSON object at ``path``, which begins with a slash and stands below ``/api/v1``."""
        answer: Json = self.send("GET", with_query(path, query)).json()
        return answer

    def items(self, path: str, *, limit: int, **query: object) -> Iterator[Json]:
        """Yield at most ``limit`` items of the list at ``path``, a page at a time."""
        cursor: str | None = None
        while limit > 0:
            page = self.get(path, limit=min(limit, PAGE_LEN), cursor=cursor, **query)
            items = page["items"][:limit]
            yield from items
            limit -= len(items)
            cursor = page.get("next_cursor")
            if cursor is None or not items:
                return

    def post(
        self, path: str, body: object = None, *, idempotency_key: str | None = None, **query: object
    ) -> Json:
        """POST ``body`` as JSON and return the answer's.

        With an ``idempotency_key`` it is repeatable, see ``send``.
        """
        answer = self.send(
            "POST",
            with_query(path, query),
            body=_encode(body),
            headers={"Idempotency-Key": idempotency_key} if idempotency_key is not None else None,
            is_repeatable=idempotency_key is not None,
        )
        found: Json = answer.json() or {}
        return found

    def put(self, path: str, body: object = None) -> Json:
        """PUT ``body`` as JSON and return the answer's."""
        found: Json = self.send("PUT", path, body=_encode(body)).json() or {}
        return found

    def patch(self, path: str, body: object) -> Json:
        """PATCH ``body`` as JSON and return the answer's."""
        found: Json = self.send("PATCH", path, body=_encode(body)).json() or {}
        return found

    def delete(self, path: str) -> Answer:
        """DELETE what is at ``path``."""
        return self.send("DELETE", path)

    def exists(self, path: str) -> bool:
        """Return whether HEAD ``path`` finds something."""
        try:
            self.send("HEAD", path)
        except AnswerFailure as failure:
            if failure.status == 404:
                return False
            raise
        return True

    def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = _JSON,
        headers: Mapping[str, str] | None = None,
        is_repeatable: bool = False,
    ) -> Answer:
        """Send one request and return its answer if it is a 2xx.

        One that is repeatable, so that twice is once, is sent again while the gateway is unreachable or says
        *later*, a few times.

        Raises:
            UnreachableFailure: No answer.
            AnswerFailure: Another answer.
        """
        sent = ({"Content-Type": content_type} if body is not None else {}) | dict(headers or {})
        for wait_s in REPEATS_S if is_repeatable else ():
            try:
                return self._exchange(method, path, body, sent)
            except UnreachableFailure:
                self._sleep(wait_s)
            except AnswerFailure as failure:
                if not failure.is_passing:
                    raise
                self._sleep(min(failure.retry_after_s or wait_s, RETRY_AFTER_S_MAX))
        return self._exchange(method, path, body, sent)

    def upload(
        self, path: str, file: BinaryIO, size_bytes: int, *, on_progress: Callable[[int], None]
    ) -> Answer:
        """PUT ``size_bytes`` of ``file``; ``on_progress`` is told the bytes of each block that was sent."""

        def blocks() -> Iterator[bytes]:
            left = size_bytes
            while left > 0:
                block = file.read(min(left, UPLOAD_BLOCK_BYTES))
                if not block:
                    raise Failure("the file became shorter while it was read", code="file_changed")
                yield block
                left -= len(block)
                on_progress(len(block))

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        return self._exchange("PUT", path, blocks(), headers)

    def _exchange(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None, headers: Mapping[str, str]
    ) -> Answer:
        assert path.startswith("/"), "paths are below /api/v1"
        connection = self._connection()
        try:
            broken = self._write(connection, method, path, body, headers)
            try:
                response = connection.getresponse()
                data = response.read(ANSWER_SIZE_BYTES_MAX + 1)
            except (OSError, http.client.HTTPException) as error:
                raise broken or error from error
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableFailure(self._explain(error)) from error
        finally:
            connection.close()
        if len(data) > ANSWER_SIZE_BYTES_MAX:
            raise Failure("the gateway's answer is too long; is this the right address?", code="bad_answer")
        found = {name.lower(): value for name, value in response.getheaders()}
        if not 200 <= response.status < 300:
            raise self._refusal(response.status, found, data)
        return Answer(response.status, found, data)

    def _connection(self) -> http.client.HTTPConnection:
        if self._is_tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)

    def _write(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None,
        headers: Mapping[str, str],
    ) -> OSError | None:
        """Send the request; return the error if the gateway hung up meanwhile: it may have said why."""
        connection.connect()
        try:
            connection.request(
                method,
                self._prefix + path,
                body,
                {
                    "Accept": _JSON,
                    "Authorization": f"Bearer {self._token}",
                    "User-Agent": "fleetcast-cli",
                    **headers,
                },
            )
        except (BrokenPipeError, ConnectionResetError) as error:
            return error
        return None

    def _explain(self, error: Exception) -> str:
        advice = "is the gateway running, and is --url (FLEETCAST_URL) right?"
        match error:
            case ssl.SSLCertVerificationError():
                reason = f"its certificate is not trusted: {error.verify_message}"
                advice = "name the file of the authority that signed it in SSL_CERT_FILE"
            case TimeoutError():
                reason = f"no answer within {self._timeout_s:g} s"
            case ConnectionRefusedError():
                reason = "nobody listens there"
            case socket.gaierror():
                reason = "no such host"
            case _:
                reason = str(error) or type(error).__name__
        return f"cannot reach {self.url}: {reason}; {advice}"

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> AnswerFailure:
        problem = _problem(headers, body)
        if problem is None:
            return AnswerFailure(
                f"{self.url} answered {status} and said nothing of why; is it a Fleetcast gateway?",
                code=f"http_{status}",
                status=status,
                retry_after_s=_retry_after_s(headers),
            )
        sentence = str(problem.get("detail") or problem.get("title") or http.client.responses.get(status, ""))
        return AnswerFailure(
            sentence,
            code=str(problem.get("code") or f"http_{status}"),
            status=status,
            details=[_format_error(item) for item in problem.get("errors") or ()],
            retry_after_s=_retry_after_s(headers),
        )


def _encode(body: object) -> bytes | None:
    return None if body is None else json.dumps(body, ensure_ascii=False).encode()


def _problem(headers: Mapping[str, str], body: bytes) -> Json | None:
    if "json" not in headers.get("content-type", ""):
        return None
    try:
        problem = json.loads(body)
    except ValueError:
        return None
    return problem if isinstance(problem, dict) else None


def _format_error(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    where = item.get("field") or item.get("pointer") or item.get("name")
    what = item.get("detail") or item.get("message") or item
    return f"{where}: {what}" if where else str(what)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
