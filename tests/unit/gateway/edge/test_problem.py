from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from aiohttp import web

from device_sdk.errors import RollbackError
from device_sdk.wire.errors import BadSignatureError, LimitError
from gateway.clock import FakeClock
from gateway.edge.problem import FieldError, RequestError, problem_middleware, problem_of
from gateway.errors import (
    ConflictError,
    CredentialRefusedError,
    GatewayError,
    LimitExceededError,
    NotFoundError,
    PermissionDeniedError,
    StorageUnavailableError,
    UnavailableError,
)
from gateway.telemetry import Metrics, configure_logs


def raising(error: BaseException, path: str = "/api/v1/x") -> list[web.RouteDef]:
    async def handle(_request: web.Request) -> web.StreamResponse:
        raise error

    return [web.get(path, handle)]


class TestEveryErrorIsAProblem:
    @pytest.mark.parametrize(
        ("error", "status", "code"),
        [
            (NotFoundError("no such device"), 404, "not_found"),
            (PermissionDeniedError("no scope"), 403, "permission_denied"),
            (CredentialRefusedError("no"), 401, "credential_refused"),
            (ConflictError("is there", code="channel_exists"), 409, "channel_exists"),
            (ConflictError("changed", code="stale_version"), 412, "stale_version"),
            (LimitExceededError("alert", 2, 1), 413, "too_large"),
            (LimitError("cbor", 2, 1), 413, "too_large"),
            (BadSignatureError("no"), 400, "bad_signature"),
            (RollbackError("root version", 1, 2), 422, "rollback"),
            (StorageUnavailableError("tcp 10.0.0.3 refused"), 503, "storage_unavailable"),
            (RequestError(415, "unsupported_media_type", "send JSON"), 415, "unsupported_media_type"),
            (web.HTTPRequestEntityTooLarge(1, 2), 413, "too_large"),
            (web.HTTPForbidden(), 403, "bad_request"),
            (web.RequestPayloadError("chunks"), 400, "body_incomplete"),
        ],
    )
    async def test_by_its_code(self, ask_of: Callable, error: Exception, status: int, code: str) -> None:
        answer = await ask_of(raising(error))("GET", "/api/v1/x")
        assert answer.status == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Cache-Control"] == "no-store"
        document = answer.json()
        assert (document["status"], document["code"]) == (status, code)
        assert document["type"] == f"urn:fleetcast:problem:{code}"
        assert document["title"]

    async def test_a_path_without_a_route_is_404(self, ask_of: Callable) -> None:
        answer = await ask_of(raising(NotFoundError()))("GET", "/api/v1/y")
        assert (answer.status, answer.json()["code"]) == (404, "no_such_route")

    async def test_another_method_is_405_with_allow(self, ask_of: Callable) -> None:
        answer = await ask_of(raising(NotFoundError()))("PUT", "/api/v1/x")
        assert (answer.status, answer.json()["code"]) == (405, "method_not_allowed")
        assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}

    async def test_fields_that_are_wrong_are_listed(self, ask_of: Callable) -> None:
        error = RequestError(422, "invalid_body", "name: no", errors=[FieldError("name", "no")])
        answer = await ask_of(raising(error))("GET", "/api/v1/x")
        assert answer.json()["errors"] == [{"field": "name", "detail": "no"}]

    async def test_unavailable_says_when_to_come_again(self, ask_of: Callable) -> None:
        answer = await ask_of(raising(UnavailableError("busy", retry_after_s=2.2)))("GET", "/api/v1/x")
        assert answer.headers["Retry-After"] == "3"

    @pytest.mark.parametrize(
        ("code", "challenge"),
        [
            ("credential_missing", 'Bearer realm="fleetcast"'),
            ("credential_refused", 'Bearer realm="fleetcast", error="invalid_token"'),
        ],
    )
    async def test_401_challenges(self, ask_of: Callable, code: str, challenge: str) -> None:
        answer = await ask_of(raising(CredentialRefusedError("no", code=code)))("GET", "/api/v1/x")
        assert answer.headers["WWW-Authenticate"] == challenge

    async def test_a_redirect_passes(self, ask_of: Callable, metrics: Metrics, clock: FakeClock) -> None:
        with pytest.raises(web.HTTPFound):
            await ask_of(raising(web.HTTPFound("/y")))("GET", "/api/v1/x")

    async def test_a_peer_that_is_gone_is_left_to_aiohttp(self, ask_of: Callable) -> None:
        with pytest.raises(ConnectionResetError):
            await ask_of(raising(ConnectionResetError()))("GET", "/api/v1/x")


class TestWhatIsTold:
    async def test_an_operator_is_told_what_is_wrong_and_what_to_do(self, ask_of: Callable) -> None:
        answer = await ask_of(raising(ConflictError("it is version 3", code="stale_version")))(
            "GET", "/api/v1/x"
        )
        assert answer.json()["detail"].startswith("It is version 3. Read it again")

    async def test_a_device_is_told_the_code_alone(self, ask_of: Callable) -> None:
        answer = await ask_of(raising(NotFoundError("secret"), "/v1/device/x"))("GET", "/v1/device/x")
        assert "detail" not in answer.json()
        assert b"secret" not in answer.body

    async def test_why_a_dependency_is_down_is_not_told(self, ask_of: Callable) -> None:
        answer = await ask_of(raising(StorageUnavailableError("tcp 10.0.0.3 refused")))("GET", "/api/v1/x")
        assert b"10.0.0.3" not in answer.body
        assert "Idempotency-Key" in answer.json()["detail"]

    @pytest.mark.parametrize("error", [ValueError("a secret"), GatewayError("a secret")])
    async def test_a_fault_of_ours_is_an_id_that_the_log_has(
        self, ask_of: Callable, stream: io.StringIO, error: Exception
    ) -> None:
        configure_logs(format="json", stream=stream)
        answer = await ask_of(raising(error))("GET", "/api/v1/x")
        assert answer.status == 500
        assert b"a secret" not in answer.body
        incident = answer.json()["incident"]
        assert incident in answer.json()["detail"]
        assert incident in stream.getvalue()
        assert "a secret" in stream.getvalue()


class TestMiddleware:
    async def test_answers_are_counted_by_pattern_and_class(self, ask_of: Callable, metrics: Metrics) -> None:
        ask = ask_of(raising(NotFoundError(), "/api/v1/{name}"))
        await ask("GET", "/api/v1/a")
        await ask("GET", "/api/v1/b")
        await ask("GET", "/nowhere")
        text = metrics.render().decode()
        assert 'fleetcast_http_request_seconds_count{route="/api/v1/{name}",status="4xx"} 2.0' in text
        assert 'fleetcast_http_request_seconds_count{route="unmatched",status="4xx"} 1.0' in text

    def test_it_is_one_that_aiohttp_takes(self, metrics: Metrics, clock: FakeClock) -> None:
        assert web.Application(middlewares=[problem_middleware(metrics=metrics, clock=clock)])


def test_a_sentence_ends_once() -> None:
    problem = problem_of(NotFoundError("gone."), is_operator=True)
    assert problem.detail == "Gone."
