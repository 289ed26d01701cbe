from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.edge import health
from gateway.errors import StorageUnavailableError
from gateway.telemetry import Metrics


class Node:
    """What a node's health is made of."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False
        self.drains = False

    async def ask(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


def routes(node: Node, metrics: Metrics, **options: object) -> list:
    return health.routes(
        metrics=metrics,
        ask_database=node.ask,
        is_draining=lambda: node.drains,
        check_timeout_s=0.01,
        **options,
    )


class TestHealthz:
    async def test_a_process_that_answers_is_alive_whatever_its_database(
        self, ask_of: Callable, metrics: Metrics
    ) -> None:
        node = Node()
        node.error = StorageUnavailableError()
        answer = await ask_of(routes(node, metrics))("GET", "/healthz")
        assert (answer.status, answer.json()) == (200, {"status": "alive"})


class TestReadyz:
    async def test_ready(self, ask_of: Callable, metrics: Metrics) -> None:
        answer = await ask_of(routes(Node(), metrics))("GET", "/readyz")
        assert answer.status == 200
        assert answer.json() == {"status": "ready", "checks": {"database": "ok", "draining": "ok"}}

    async def test_a_database_that_fails_is_named(self, ask_of: Callable, metrics: Metrics) -> None:
        node = Node()
        node.error = StorageUnavailableError()
        answer = await ask_of(routes(node, metrics))("GET", "/readyz")
        assert answer.status == 503
        assert answer.json()["checks"] == {"database": "failed", "draining": "ok"}

    async def test_a_database_that_hangs_is_not_waited_for(self, ask_of: Callable, metrics: Metrics) -> None:
        node = Node()
        node.hangs = True
        answer = await ask_of(routes(node, metrics))("GET", "/readyz")
        assert answer.status == 503

    async def test_a_draining_node_gets_no_more_traffic(self, ask_of: Callable, metrics: Metrics) -> None:
        node = Node()
        node.drains = True
        answer = await ask_of(routes(node, metrics))("GET", "/readyz")
        assert answer.status == 503
        assert answer.json()["checks"] == {"database": "ok", "draining": "failed"}


class TestMetrics:
    async def test_prometheus_text(self, ask_of: Callable, metrics: Metrics) -> None:
        answer = await ask_of(routes(Node(), metrics))("GET", "/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert b"fleetcast_alerts_published_total" in answer.body

    async def test_not_there_when_it_is_off(self, ask_of: Callable, metrics: Metrics) -> None:
        answer = await ask_of(routes(Node(), metrics, is_metrics_enabled=False))("GET", "/metrics")
        assert answer.status == 404
