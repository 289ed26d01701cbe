"""What the command line makes of a gateway's answers, good, bad and missing, over a real socket."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import api as cli_api
from gateway.cli.api import Api
from gateway.cli.failure import AnswerFailure, UnreachableFailure
from gateway.cli.program import app

TOKEN = "fct_" + "a" * 43
ALERT = {"id": "0190", "channel": "ops", "epoch": 1, "offset": 7, "accepted_at": 1, "expires_at": None}


@dataclass
class Scripted:
    """Answer ``(status, headers, body)`` in order, the last one for ever; ``requests`` is what came.

    A status of 0 hangs up without an answer.
    """

    script: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self, *script: tuple[int, object] | tuple[int, object, dict[str, str]]) -> None:
        """Answer JSON, as the operator API does; bytes go out as they are, and as text."""
        self.script = []
        for status, body, *headers in script:
            kind = "application/problem+json" if status >= 400 else "application/json"
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            merged = {"Content-Type": "text/plain" if isinstance(body, bytes) else kind}
            self.script.append((status, merged | (headers[0] if headers else {}), raw))

    def next(self) -> tuple[int, dict[str, str], bytes]:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    found = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.requests.append((self.command, self.path, headers, body))
            status, answer_headers, content = found.next()
            self.close_connection = True
            if status == 0:
                return
            self.send_response(status)
            for name, value in answer_headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def run(scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name in [name for name in os.environ if name.startswith("FLEETCAST_")]:
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(cli_api, "REPEATS_S", (0.0, 0.0, 0.0))

    def run(*arguments: object, **variables: str) -> Result:
        env = {
            "FLEETCAST_URL": scripted.url,
            "FLEETCAST_TOKEN_FILE": str(tmp_path / "token"),
            "FLEETCAST_FLEET": "acme",
        }
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env | variables)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def problem(status: int, code: str, detail: str = "It is so.", **more: Any) -> tuple[int, object]:
    return status, {"type": f"urn:x:{code}", "status": status, "code": code, "detail": detail, **more}


def assert_one_line(result: Result, code: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(f"[{code}]\n")
    assert result.stderr.count("\n") == 1


Run = Callable[..., Result]


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "code"), [(401, "credential_refused"), (403, "permission_denied"), (404, "not_found")]
    )
    def test_problem_is_one_line_with_its_code(
        self, run: Run, scripted: Scripted, status: int, code: str
    ) -> None:
        scripted.answers(problem(status, code))
        result = run("channel", "list")
        assert_one_line(result, code)
        assert "It is so." in result.stderr

    def test_every_field_that_is_wrong_is_told(self, run: Run, scripted: Scripted) -> None:
        errors = [{"field": "name", "detail": "is taken"}, {"field": "kind", "detail": "is odd"}]
        scripted.answers(problem(422, "invalid_body", errors=errors))
        result = run("channel", "create", "ops", "--kind", "alert")
        assert result.exit_code == 1
        assert result.stderr.splitlines()[1:] == ["  name: is taken", "  kind: is odd"]

    @pytest.mark.parametrize(
        ("status", "body", "code"),
        [
            (404, b"<html>nginx</html>", "http_404"),
            (502, b"", "http_502"),
            (500, [], "http_500"),
            (200, b"<html>hello</html>", "bad_answer"),
        ],
    )
    def test_something_else_at_the_address_is_said_so(
        self, run: Run, scripted: Scripted, status: int, body: object, code: str
    ) -> None:
        scripted.answers((status, body))
        assert_one_line(run("channel", "list"), code)

    def test_redirect_takes_the_token_nowhere(self, run: Run, scripted: Scripted) -> None:
        scripted.answers((302, b"", {"Location": "http://127.0.0.1:1/"}))
        assert_one_line(run("channel", "list"), "http_302")
        assert len(scripted.requests) == 1

    def test_token_is_sent_and_never_shown(self, run: Run, scripted: Scripted) -> None:
        scripted.answers(problem(401, "credential_refused"))
        assert TOKEN not in run("channel", "list").output
        assert scripted.requests[0][2]["authorization"] == f"Bearer {TOKEN}"


class TestUnreachable:
    def test_nobody_listens(self, run: Run) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, and so nobody else's, but not listening
            result = run("channel", "list", FLEETCAST_URL=f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert_one_line(result, "unreachable")
        assert "nobody listens there" in result.stderr

    def test_plain_http_where_tls_is_asked_for(self, run: Run, scripted: Scripted) -> None:
        scripted.answers((200, {}))
        result = run("channel", "list", FLEETCAST_URL=scripted.url.replace("http:", "https:"))
        assert_one_line(result, "unreachable")

    def test_hanging_up_is_no_answer(self, run: Run, scripted: Scripted) -> None:
        scripted.answers((0, b""))
        assert_one_line(run("channel", "list"), "unreachable")

    def test_silence_ends_after_the_timeout(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            gateway = Api(f"http://127.0.0.1:{silent.getsockname()[1]}", TOKEN, timeout_s=0.05)
            with pytest.raises(UnreachableFailure, match=r"no answer within 0\.05 s"):
                gateway.get("/fleets")


class TestPages:
    def test_list_follows_cursors_to_the_end(self, run: Run, scripted: Scripted) -> None:
        page = {"items": [{"n": 1}, {"n": 2}], "next_cursor": "two"}
        scripted.answers((200, page), (200, {"items": [{"n": 3}], "next_cursor": None}))
        assert json.loads(run("fleet", "list", "--json").stdout) == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert [request[1] for request in scripted.requests] == [
            "/api/v1/fleets?limit=100",
            "/api/v1/fleets?limit=98&cursor=two",
        ]

    def test_list_stops_at_its_limit(self, run: Run, scripted: Scripted) -> None:
        scripted.answers((200, {"items": [{"n": 1}, {"n": 2}], "next_cursor": "more"}))
        assert json.loads(run("fleet", "list", "--json", "--limit", "1").stdout) == [{"n": 1}]
        assert len(scripted.requests) == 1

    def test_names_are_escaped(self, run: Run, scripted: Scripted) -> None:
        scripted.answers(problem(404, "not_found"))
        run("device", "show", "../a b")
        assert scripted.requests[0][1] == "/api/v1/fleets/acme/devices/..%2Fa%20b"


class TestRepeats:
    def keys(self, scripted: Scripted) -> set[str]:
        return {headers["idempotency-key"] for _, _, headers, _ in scripted.requests}

    def test_alert_is_repeated_under_one_key(self, run: Run, scripted: Scripted) -> None:
        later = problem(503, "storage_unavailable")
        scripted.answers((0, b""), (*later, {"Retry-After": "0"}), (201, ALERT))
        result = run("alert", "send", "--channel", "ops", "--text", "hello")
        assert result.exit_code == 0
        assert result.stdout == "accepted 0190 on ops at offset 7\n"
        assert len(scripted.requests) == 3
        assert len(self.keys(scripted)) == 1

    def test_another_invocation_is_another_alert(self, run: Run, scripted: Scripted) -> None:
        scripted.answers((201, ALERT))
        for _ in range(2):
            run("alert", "send", "--channel", "ops", "--text", "hello")
        assert len(self.keys(scripted)) == 2

    def test_key_of_the_operator_is_used(self, run: Run, scripted: Scripted) -> None:
        scripted.answers((201, ALERT))
        run("alert", "send", "--channel", "ops", "--text", "hello", "--idempotency-key", "mine")
        assert self.keys(scripted) == {"mine"}

    def test_repeating_ends(self, run: Run, scripted: Scripted) -> None:
        scripted.answers(problem(503, "storage_unavailable"))
        assert_one_line(run("alert", "send", "--channel", "ops", "--text", "x"), "storage_unavailable")
        assert len(scripted.requests) == 4

    def test_no_is_not_repeated(self, run: Run, scripted: Scripted) -> None:
        scripted.answers(problem(409, "wrong_kind"))
        assert_one_line(run("alert", "send", "--channel", "ops", "--text", "x"), "wrong_kind")
        assert len(scripted.requests) == 1

    def test_waits_are_the_gateways_up_to_a_bound(self, scripted: Scripted) -> None:
        waits_s: list[float] = []
        later = problem(503, "unavailable")
        scripted.answers(
            (*later, {"Retry-After": "3"}), (*later, {"Retry-After": "3600"}), later, (201, ALERT)
        )
        gateway = Api(scripted.url, TOKEN, sleep=waits_s.append)
        gateway.post("/x", {}, idempotency_key="k")
        assert waits_s == [3.0, cli_api.RETRY_AFTER_S_MAX, cli_api.REPEATS_S[2]]

    def test_what_has_no_key_is_sent_once(self, run: Run, scripted: Scripted) -> None:
        scripted.answers((0, b""))
        assert_one_line(run("rollout", "abort", "r", "--yes"), "unreachable")
        assert len(scripted.requests) == 1


class TestAlertBody:
    def body(self, scripted: Scripted) -> Any:
        return json.loads(scripted.requests[-1][3])

    def test_text_json_and_file(self, run: Run, scripted: Scripted, tmp_path: Path) -> None:
        scripted.answers((201, ALERT))
        send = ("alert", "send", "--channel", "ops")
        run(*send, "--text", "grüß", "--ttl", "60", "--key", "k")
        assert self.body(scripted) == {"text": "grüß", "ttl_s": 60, "key": "k"}
        run(*send, "--json", '{"a": [1]}')
        assert self.body(scripted) == {"json": {"a": [1]}}
        (tmp_path / "f").write_bytes(b"\xff\xfe\x00")
        run(*send, "--file", tmp_path / "f", "--content-type", "image/x")
        assert self.body(scripted) == {"data": "__4A", "content_type": "image/x"}

    @pytest.mark.parametrize(
        "arguments", [(), ("--text", "a", "--json", "1"), ("--json", "{"), ("--file", "/nowhere/f")]
    )
    def test_anything_but_one_of_them_is_wrong_usage(
        self, run: Run, scripted: Scripted, arguments: tuple[str, ...]
    ) -> None:
        assert run("alert", "send", "--channel", "ops", *arguments).exit_code == 2
        assert scripted.requests == []


class TestUpload:
    def test_gateway_that_hangs_up_early_is_heard(self, tmp_path: Path) -> None:
        """A refusal at the first byte arrives although the rest cannot be sent any more."""
        size_bytes = 256 * 1024 * 1024
        answer = (
            b"HTTP/1.1 413 Too Large\r\nContent-Type: application/problem+json\r\nContent-Length: 20\r\n"
            b"Connection: close\r\n\r\n" + b'{"code":"too_large"}'
        )
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()

            def refuse() -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

            thread = threading.Thread(target=refuse)
            thread.start()
            image = tmp_path / "image"
            with image.open("wb") as file:
                file.truncate(size_bytes)
            sent: list[int] = []
            gateway = Api(f"http://127.0.0.1:{listening.getsockname()[1]}", TOKEN)
            with image.open("rb") as upload, pytest.raises(AnswerFailure) as caught:
                gateway.upload("/artifacts/x", upload, size_bytes, on_progress=sent.append)
            thread.join()
        assert caught.value.code == "too_large"
        assert sum(sent) < size_bytes
