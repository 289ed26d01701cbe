"""A client of the operator API that is one operator after the other, on a whole node and a real database."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aiohttp import ClientSession
from yarl import URL

from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.suit.target import class_identifier, vendor_identifier
from gateway.app import Gateway, open_gateway
from gateway.clock import Clock
from gateway.config import Config
from gateway.edge.operator.route import AnyRoute
from gateway.identity import OperatorToken, Scope, new_token, token_sha256
from gateway.ids import uuid7
from gateway.release import ReleaseContent, author_envelope, sign_envelope
from gateway.storage.engine import Database, DatabaseLimits, open_database
from gateway.storage.fleet_store import SQLFleetStore
from gateway.telemetry import Metrics

RELEASE_KEY = PrivateKey.from_seed(b"r" * 32)
IMAGE = bytes(range(256)) * 4
DIGEST = hashlib.sha256(IMAGE).hexdigest()
ENVELOPE_TYPE = "application/suit-envelope+cose"
VENDOR = vendor_identifier("acme.example")
RELEASE = ReleaseContent(
    vendor_identifier=VENDOR,
    class_identifier=class_identifier(VENDOR, "tc3"),
    component="main",
    sequence_number=7,
    image_digest=hashlib.sha256(IMAGE).digest(),
    image_size=len(IMAGE),
    uri=f"/v1/device/artifacts/{DIGEST}",
    version="1.4.0",
)
ENVELOPE = sign_envelope(author_envelope(RELEASE), [RELEASE_KEY])
STRANGER = str(uuid.UUID(int=1))


@dataclass
class Answered:
    status: int
    headers: Any
    body: bytes
    document: Any

    @property
    def code(self) -> str:
        code: str = self.document["code"]
        return code


class Api:
    """A client that is one operator after the other."""

    def __init__(
        self, http: ClientSession, gateway: Gateway, tokens: dict[str, str], database: Database
    ) -> None:
        self._http = http
        self._url = gateway.url
        self.gateway = gateway
        self.tokens = tokens
        self.database = database

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = "acme-admin",
        data: bytes | io.BytesIO | None = None,
        **headers: str,
    ) -> Answered:
        """Ask below /api/v1; a path without a slash in front is below fleet acme."""
        full = path if path.startswith("/") else f"/api/v1/fleets/acme{'/' if path else ''}{path}"
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["Content-Type"] = "application/json"
        if token is not None:
            sent["Authorization"] = f"Bearer {self.tokens[token]}"
        # What is escaped is sent as it is.
        url = URL(self._url + full, encoded="%" in full)
        async with self._http.request(
            method, url, json=body, data=data, headers=sent, skip_auto_headers=["Content-Type"]
        ) as response:
            raw = await response.read()
            is_json = "json" in response.headers.get("Content-Type", "")
            document = await response.json(content_type=None) if raw and is_json else None
            return Answered(response.status, response.headers, raw, document)

    async def made(self, path: str, body: Any, **headers: str) -> Any:
        """POST and return what was made."""
        answer = await self.ask("POST", path, body, **headers)
        assert answer.status == 201, answer.body
        return answer.document

    async def seen(self, path: str) -> Any:
        """GET what must be there."""
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer.body
        return answer.document


@asynccontextmanager
async def opened_api(url: str, data_dir: Path, clock: Clock, **tables: Any) -> AsyncIterator[Api]:
    """Yield the API of a node with the fleets ``acme`` and ``other``, and an operator of every kind."""
    data_dir.mkdir(exist_ok=True)
    settings = {
        "server": {"listen_port": 0, "data_dir": data_dir},
        "database": {"url": url},
        "updates": {"artifact_size_bytes_max": 1 << 20},
        "alerts": {"ttl_max_s": 1000},
    } | tables
    async with (
        open_database(url, limits=DatabaseLimits(), metrics=Metrics()) as database,
        open_gateway(Config.model_validate(settings), clock=clock) as gateway,
        ClientSession() as http,
    ):
        store = SQLFleetStore(database)
        for name in ("acme", "other"):
            await store.create_fleet(name, now_ms=clock.now_ms())
        tokens = {}
        for name, token in operators(clock.now_ms()).items():
            tokens[name] = new_token()
            await store.create_operator_token(replace(token, sha256=token_sha256(tokens[name])))
        tokens["unknown"] = new_token()
        yield Api(http, gateway, tokens, database)


def operators(now_ms: int) -> dict[str, OperatorToken]:
    def token(name: str, fleet: str | None, *scopes: Scope) -> OperatorToken:
        return OperatorToken(uuid7(now_ms), name, b"", fleet, frozenset(scopes), now_ms)

    found = {f"acme-{scope}": token(f"acme-{scope}", "acme", scope) for scope in Scope}
    found |= {f"all-{scope}": token(f"all-{scope}", None, scope) for scope in Scope}
    found |= {f"other-{scope}": token(f"other-{scope}", "other", scope) for scope in Scope}
    found["revoked"] = replace(token("revoked", None, Scope.ADMIN), revoked_at=now_ms)
    found["expired"] = replace(token("expired", None, Scope.ADMIN), expires_at=now_ms)
    return found


async def publish_release(api: Api, *, sequence: int = 7) -> Any:
    """Register the key, upload image and release; return the release."""
    pem = RELEASE_KEY.public.to_pem().decode()
    await api.ask("PUT", f"release-keys/{RELEASE_KEY.kid.hex()}", {"public_pem": pem})
    await api.ask("PUT", f"artifacts/{DIGEST}", data=IMAGE, Content_Type="application/octet-stream")
    envelope = sign_envelope(author_envelope(replace(RELEASE, sequence_number=sequence)), [RELEASE_KEY])
    answer = await api.ask("POST", "releases", data=envelope, Content_Type=ENVELOPE_TYPE)
    assert answer.status == 201, answer.body
    return answer.document


def path_of(route: AnyRoute) -> str:
    """Return the route's path below fleet acme, about things that are not there."""
    return route.path.format(
        fleet="acme",
        channel="nobody",
        device_id="nobody",
        id=STRANGER,
        kid="0" * 16,
        sha256="0" * 64,
    )
