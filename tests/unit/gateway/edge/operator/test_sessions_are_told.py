"""What an operator changes reaches live sessions, once it is committed and only then."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from gateway.clock import FakeClock
from gateway.edge.operator import operator_routes
from gateway.errors import ConflictError, StorageUnavailableError
from gateway.fleet.acts import Replay
from gateway.fleet.model import Channel, Device, Fleet, Revocation, Subscription
from gateway.identity import OperatorToken, Scope, new_token, token_sha256
from tests.unit.gateway.edge.operator.services import services_of

TOKEN = new_token()
FLEET = Fleet(1, "acme", 0, 0)
DEVICE = Device(
    key=7,
    fleet_key=1,
    device_id="pump",
    enrolment_id=bytes(16),
    bucket=0,
    is_enabled=True,
    origin={},
    reported={},
    tags=(),
    installed={},
    directive_sequence=0,
    root_version=0,
    enrolled_at=0,
    last_seen_at=None,
    version=1,
)
CHANNEL = Channel(5, 1, "ops", "alert", 1, 0, 0, False, None, None, 1, 0)
SUBSCRIPTION = Subscription(3, 7, 5, "ops", "alert", False, True, 1, 0, 0, 0, 0)


class FakeStore:
    """One device in one channel. ``refuses`` makes every change fail."""

    def __init__(self) -> None:
        self.refuses = False
        self.replays = False
        self.ends = True

    async def operator_token(self, sha256: bytes) -> OperatorToken | None:
        assert sha256 == token_sha256(TOKEN)
        return OperatorToken(bytes(16), "admin", sha256, None, frozenset({Scope.ADMIN}), 0)

    async def fleet(self, _name: str) -> Fleet:
        return FLEET

    async def device(self, *_: Any) -> Device:
        return DEVICE

    async def channel(self, *_: Any) -> Channel:
        return CHANNEL

    async def update_device(self, _fleet: int, _id: str, changes: Mapping[str, Any], **_: Any) -> Device:
        self._change()
        return replace(DEVICE, **changes)

    async def delete_device(self, *_: Any, **__: Any) -> Device:
        self._change()
        return DEVICE

    async def subscribe(self, *_: Any, **__: Any) -> Subscription:
        self._change()
        return SUBSCRIPTION

    async def unsubscribe(self, *_: Any, **__: Any) -> bool:
        self._change()
        return self.ends

    async def subscriptions(self, _device: int) -> list[Subscription]:
        return [replace(SUBSCRIPTION, by_origin=True, by_operator=False)]

    async def update_channel(self, *_: Any, **__: Any) -> Channel:
        self._change()
        return CHANNEL

    async def delete_channel(self, *_: Any, **__: Any) -> Channel:
        self._change()
        return CHANNEL

    def _change(self) -> None:
        if self.refuses:
            raise ConflictError


class FakeSessions:
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def is_connected(self, _device_key: int) -> bool:
        return False

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda key, **more: self.told.append((name, key, more) if more else (name, key))


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def sessions() -> FakeSessions:
    return FakeSessions()


@pytest.fixture
def ask(ask_of: Callable, clock: FakeClock, store: FakeStore, sessions: FakeSessions) -> Callable:
    services = services_of(fleets=store, sessions=sessions, clock=clock)
    put = ask_of(operator_routes(services))
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    return lambda method, path, body=None: put(
        method, f"/api/v1/fleets/acme/{path}", headers=headers, body=body
    )


CHANGES = [
    ("PATCH", "devices/pump", b'{"is_enabled":false}', ("disabled", 7)),
    ("PATCH", "devices/pump", b'{"tags":["eu"]}', ("subscriptions_changed", 7)),
    ("DELETE", "devices/pump", None, ("disabled", 7)),
    ("PUT", "devices/pump/subscriptions/ops", None, ("subscriptions_changed", 7)),
    ("DELETE", "devices/pump/subscriptions/ops", None, ("subscriptions_changed", 7)),
    ("PATCH", "channels/ops", b'{"retention_age_s":60}', ("channel_changed", 5)),
    ("DELETE", "channels/ops", None, ("channel_changed", 5)),
]


@pytest.mark.parametrize(("method", "path", "body", "told"), CHANGES)
async def test_after_a_change(
    ask: Callable, sessions: FakeSessions, method: str, path: str, body: bytes | None, told: tuple[str, int]
) -> None:
    answer = await ask(method, path, body)
    assert answer.status in (200, 204)
    assert sessions.told == [told]


@pytest.mark.parametrize(("method", "path", "body", "told"), CHANGES)
async def test_not_after_a_refusal(
    ask: Callable,
    store: FakeStore,
    sessions: FakeSessions,
    method: str,
    path: str,
    body: bytes | None,
    told: tuple[str, int],
) -> None:
    store.refuses = True
    assert (await ask(method, path, body)).status == 409
    assert sessions.told == []


class FakeRevocations:
    """The feed. What the store refuses it refuses too."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def revoke(self, fleet: Fleet, *, now_ms: int, act: Any = None, **what: Any) -> Any:
        if self._store.replays:
            return Replay(200, b"{}")
        self._store._change()
        return Revocation(sequence=1, fleet_key=fleet.key, fleet=fleet.name, at=now_ms, **what)


class FakeFeed:
    """A feed whose database is away."""

    async def catch_up(self) -> None:
        raise StorageUnavailableError


class Credentials:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def revoke(self, token_sha256: bytes) -> None:
        self.told.append(token_sha256)

    def forget_device(self, fleet: str, device_id: str) -> None:
        self.told.append((fleet, device_id))


class TestRevocations:
    @pytest.fixture
    def told(self) -> Credentials:
        return Credentials()

    @pytest.fixture
    def revoke(
        self, ask_of: Callable, clock: FakeClock, store: FakeStore, sessions: FakeSessions, told: Credentials
    ) -> Callable:
        services = services_of(
            fleets=store,
            sessions=sessions,
            clock=clock,
            credentials=told,
            revocations=FakeRevocations(store),
            feed=FakeFeed(),
        )
        put = ask_of(operator_routes(services))
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        return lambda **body: put(
            "POST",
            "/api/v1/revocations",
            headers=headers,
            body=json.dumps({"fleet": "acme", **body}).encode(),
        )

    async def test_of_a_token(self, revoke: Callable, sessions: FakeSessions, told: Credentials) -> None:
        assert (await revoke(token_sha256="ab" * 32)).status == 200
        assert told.told == [b"\xab" * 32]
        assert sessions.told == [("revoked", 1, {"token_sha256": b"\xab" * 32})]

    async def test_of_a_device(self, revoke: Callable, sessions: FakeSessions, told: Credentials) -> None:
        assert (await revoke(device_id="pump")).status == 200
        assert told.told == [("acme", "pump")]
        assert sessions.told == [("revoked", 1, {"device_key": 7})]

    async def test_not_after_a_refusal_or_a_repeat(
        self, revoke: Callable, store: FakeStore, sessions: FakeSessions, told: Credentials
    ) -> None:
        store.refuses = True
        assert (await revoke(device_id="pump")).status == 409
        store.replays = True
        assert (await revoke(device_id="pump")).status == 200
        assert (told.told, sessions.told) == ([], [])


async def test_what_changes_nothing_for_the_device_is_not_told(ask: Callable, sessions: FakeSessions) -> None:
    await ask("PATCH", "devices/pump", b"{}")
    await ask("PATCH", "devices/pump", b'{"is_enabled":true}')
    assert sessions.told == []


async def test_a_channel_that_the_origin_still_wants_is_shown(ask: Callable, store: FakeStore) -> None:
    store.ends = False
    answer = await ask("DELETE", "devices/pump/subscriptions/ops")
    assert answer.status == 200
    assert (answer.json()["by_origin"], answer.json()["by_operator"]) == (True, False)
