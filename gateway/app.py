"""The composition root: the one module that knows everybody.

``open_gateway`` builds a node from a configuration, in the order in which its parts need each other, and
takes it down in the opposite one: devices are told to go, what they said last is committed, and only then
the database is let go. ``serve`` is that as a process.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import uvloop
from aiohttp import web

from device_sdk.wire.names import FleetName
from gateway.clock import Clock, SystemClock
from gateway.config import Config, Supervisor, read_supervisor, warnings_of
from gateway.edge import artifacts, health
from gateway.edge.artifacts import ArtifactTransfers, TransferLimits
from gateway.edge.device import Admission, device_routes, drain
from gateway.edge.operator import OperatorLimits, OperatorServices, operator_routes
from gateway.edge.problem import problem_middleware
from gateway.errors import ConfigError, GatewayError, OriginUnavailableError
from gateway.fleet.alerts import AlertLimits as PublishLimits
from gateway.fleet.alerts import Alerts, AlertSigner, LogReader
from gateway.fleet.log import AlertLog
from gateway.hub import Hub
from gateway.identity import Identity, IdentityLimits, RevocationFeed, TicketKeys
from gateway.origin import open_judge, open_uplink_backend
from gateway.release.online_keys import OnlineKeys
from gateway.release.service import ReleaseService
from gateway.release.store import ArtifactLimits, ArtifactStore
from gateway.rollout import RolloutService, UpdateLimits, Updates
from gateway.session.limits import SessionLimits
from gateway.session.ports import Node
from gateway.session.sessions import Sessions
from gateway.session.uplinks import NoUplinks, UplinkLimits, Uplinks, UplinkSink
from gateway.storage.audit import SQLAuditLog
from gateway.storage.engine import Database, DatabaseLimits, open_database
from gateway.storage.explain import SQLExplanations
from gateway.storage.fleet_store import SQLFleetStore
from gateway.storage.hot import hot_handlers
from gateway.storage.message_facts import SQLMessageFacts
from gateway.storage.releases import SQLReleaseStore
from gateway.storage.revocations import SQLRevocationStore
from gateway.storage.rollouts import SQLRolloutStore
from gateway.storage.schema import migrate, schema_state
from gateway.storage.ticket_keys import SQLTicketKeyStore
from gateway.storage.tokens import SQLTokenStore
from gateway.storage.writer import BatchWriter
from gateway.supervise import Notifier, inherited_sockets, keep_alive
from gateway.telemetry import Metrics, configure_logs, logger
from gateway.tls import ServerTLS, server_tls, tls_warnings
from gateway.websocket import WebSocketLimits

_log = logger("app")

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_CONFIG: Final = 2
_GC_THRESHOLDS: Final = (20_000, 20, 50)
_HEADER_SIZE_MAX: Final = 16 * 1024  # one header: a bearer token of 8 KiB, and room
_UPLOAD_LEFTOVER_AGE_MS: Final = 3600 * 1000


@dataclass(frozen=True, slots=True)
class Gateway:
    """A node that listens.

    Attributes:
        address: Host and port it is bound to.
    """

    config: Config
    address: tuple[str, int]
    sessions: Sessions
    admission: Admission
    alerts: Alerts
    metrics: Metrics
    writer: BatchWriter
    tls: ServerTLS | None

    @property
    def url(self) -> str:
        """Where it answers on this machine."""
        scheme = "https" if self.config.server.tls_cert is not None else "http"
        host, port = self.address
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def status(self) -> str:
        """One line for whoever looks after the process."""
        return f"{self.admission.connections} devices connected at {self.url}"


def serve(config: Config) -> int:
    """Run a node until SIGTERM or SIGINT; return the process's exit status."""
    if not __debug__:
        sys.stderr.write("fleetcast does not run under python -O: its assertions guard the fleet\n")
        return EXIT_FAILURE
    configure_logs(level=config.log.level, format=config.log.format)
    # As it comes, Python goes through every session there is again and again while more of them come: a tenth
    # of the CPU of a return of 8,000, and the loop stands for 100 ms. They are no garbage, and what is, dies
    # young; the few cycles that live longer may wait.
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        prepare(config)
        return uvloop.run(_serve(config, read_supervisor()))
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        return EXIT_CONFIG
    except (GatewayError, OSError) as error:
        _log.error("the gateway cannot run", error=str(error), code=getattr(error, "code", "os"))
        return EXIT_FAILURE


def prepare(config: Config) -> None:
    """Make the data folder; bring the schema up to date (embedded) or check that it is (PostgreSQL).

    Call it while no event loop runs.

    Raises:
        ConfigError: The folder cannot be made; the schema is behind (PostgreSQL) or of a newer release.
    """
    data_dir = config.server.data_dir
    try:
        data_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"server.data_dir: cannot make {data_dir}: {error.strerror}"]) from error
    is_embedded = config.database_url.startswith("sqlite:")
    state = (migrate if is_embedded else schema_state)(config.database_url)
    if not state.is_known:
        raise ConfigError(
            [
                f"database.url: the schema is of a newer release (revision {state.current}); upgrade this "
                "program, or restore the backup from before the upgrade"
            ]
        )
    if not state.is_current:
        raise ConfigError(
            [
                f"database.url: the schema is at {state.current or 'nothing'}, this release needs "
                f"{state.head}; run `fleetcast db upgrade` with the same configuration"
            ]
        )


async def _serve(config: Config, supervisor: Supervisor) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    notifier = Notifier(supervisor.notify_address)
    async with open_gateway(config, sockets=inherited_sockets(supervisor.descriptors)) as gateway:
        loop.add_signal_handler(signal.SIGHUP, lambda: _reload(gateway, notifier))
        for warning in (*warnings_of(config), *tls_warnings(gateway.tls, now_s=time.time())):
            _log.warning("check the configuration", detail=warning)
        _log.info("listening", url=gateway.url, data_dir=str(config.server.data_dir))
        notifier.ready(gateway.status)
        watched = asyncio.create_task(
            keep_alive(
                notifier,
                watchdog_s=supervisor.watchdog_s,
                stuck_s=lambda: gateway.writer.stuck_s,
                status=lambda: gateway.status,
            ),
            name="supervise.watchdog",
        )
        await stop.wait()
        watched.cancel()
        _log.info("stopping", connections=gateway.admission.connections)
        notifier.stopping("devices are told to come back")
    return EXIT_OK


def _reload(gateway: Gateway, notifier: Notifier) -> None:
    """Take up what may change while the node runs: its certificate."""
    notifier.reloading()
    try:
        if gateway.tls is not None:
            gateway.tls.reload()
            gateway.metrics.certificate_expires_at_s.set(gateway.tls.expires_at)
            _log.info("certificate reloaded", expires_at=int(gateway.tls.expires_at))
        else:
            _log.info("nothing to reload: server.tls_cert is not set")
    except ConfigError as error:
        for problem in error.problems:
            _log.error("not reloaded, the old certificate stays", problem=problem)
    notifier.ready(gateway.status)


@asynccontextmanager
async def open_gateway(
    config: Config, *, clock: Clock | None = None, sockets: Sequence[socket.socket] = ()
) -> AsyncIterator[Gateway]:
    """Yield a node that listens; ``prepare`` comes before. Leaving the block drains it.

    Args:
        sockets: Listening ones to use in place of ``server.listen_host`` and ``listen_port``.

    Raises:
        ConfigError: Keys, certificates or addresses that cannot be used.
    """
    clock = clock or SystemClock()
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        stack.enter_context(_alone(config))
        database = await stack.enter_async_context(
            open_database(config.database_url, limits=config.database.limits(DatabaseLimits), metrics=metrics)
        )
        keys = OnlineKeys.open(config.server.data_dir / "keys")
        # What an operator compares before a root document vouches for them.
        _log.info(
            "online keys",
            **{role: getattr(keys, role).kid.hex() for role in ("alert", "directive", "statement")},
        )
        images = ArtifactStore(config.server.data_dir / "artifacts", config.updates.limits(ArtifactLimits))
        await asyncio.to_thread(images.sweep, modified_before_ms=clock.now_ms() - _UPLOAD_LEFTOVER_AGE_MS)
        store = SQLFleetStore(database)
        if database.dialect == "sqlite":  # what a killed node left open; nobody else has this database
            await store.close_intervals(now_ms=clock.now_ms())
        tasks = _Tasks()
        stack.push_async_callback(tasks.close)
        writer = BatchWriter(
            database,
            clock=clock,
            metrics=metrics,
            flush_interval_ms=config.database.flush_interval_ms,
            flush_rows_max=config.database.flush_rows_max,
            queue_rows_max=config.database.queue_rows_max,
            handlers=hot_handlers(clock),
        )
        tasks.spawn(writer.run(), name="storage.writer")
        stack.push_async_callback(writer.close)
        signer = AlertSigner(keys.alert, metrics)
        log = AlertLog(
            store,
            resign=signer.resign,
            metrics=metrics,
            size_bytes_max=config.device.block_cache_size_bytes_max,
            reads_max=config.device.catch_up_concurrency_max,
        )
        stack.push_async_callback(log.close)
        hub = Hub(LogReader(log), clock=clock)
        stack.push_async_callback(hub.stop)
        alerts = Alerts(
            store,
            hub=hub,
            log=log,
            signer=signer,
            clock=clock,
            metrics=metrics,
            limits=config.alerts.limits(PublishLimits),
        )
        rollout_store = SQLRolloutStore(database)
        updates = Updates(
            rollout_store,
            directive_key=keys.directive,
            statement_key=keys.statement,
            clock=clock,
            metrics=metrics,
            limits=config.updates.limits(UpdateLimits, attempts_max=config.device.attempts_max),
        )
        rollouts = RolloutService(rollout_store, metrics=metrics)
        await rollouts.recover(now_ms=clock.now_ms())
        judge = await stack.enter_async_context(open_judge(config, clock=clock, metrics=metrics))
        identity = Identity(
            judge, clock=clock, limits=config.identity.limits(IdentityLimits), metrics=metrics
        )
        stack.push_async_callback(identity.close)
        backend = await stack.enter_async_context(open_uplink_backend(config, clock=clock, metrics=metrics))
        uplinks: UplinkSink = NoUplinks()
        if backend is not None:
            uplinks = Uplinks(
                backend, limits=config.uplink.limits(UplinkLimits), metrics=metrics, random=random.Random()
            )
        node = Node(
            clock=clock,
            random=random.Random(),
            hub=hub,
            log=log,
            writer=writer,
            updates=updates,
            subscriptions=store,
            limits=config.device.limits(
                SessionLimits,
                update_redeliver_min_s=config.updates.redeliver_min_s,
                update_redeliver_max_s=config.updates.redeliver_max_s,
            ),
            metrics=metrics,
            spawn=tasks.spawn,
            uplinks=uplinks,
        )
        sessions = Sessions(node, store=store, cancels=updates, wheel_s=config.device.wheel_s)
        rollouts.subscribe(sessions)
        admission = Admission(
            identity=identity,
            sessions=sessions,
            statements=updates,
            accept_rate_per_s=config.device.accept_rate_per_s,
            connections_max=config.device.connections_max,
            outbox_size_bytes_max=config.device.outbox_size_bytes_max,
            accept_retry_max_s=config.device.accept_retry_max_s,
        )
        revocations = SQLRevocationStore(database)
        feed = RevocationFeed(
            revocations,
            identity.revocations,
            listener=sessions.taken_back,
            interval_s=config.identity.revocations_interval_s,
            clock=clock,
            metrics=metrics,
        )
        ticket_keys = TicketKeys(SQLTicketKeyStore(database), identity.tickets, clock=clock)
        await feed.catch_up()
        await ticket_keys.refresh()
        tasks.spawn(feed.run(), name="identity.revocations")
        tasks.spawn(ticket_keys.run(), name="identity.ticket_keys")
        releases = ReleaseService(SQLReleaseStore(database))
        transfers = ArtifactTransfers(
            images,
            releases,
            clock=clock,
            metrics=metrics,
            limits=TransferLimits(downloads_max=config.updates.artifact_concurrency_max),
        )
        services = OperatorServices(
            fleets=store,
            alerts=alerts,
            releases=releases,
            rollouts=rollouts,
            transfers=transfers,
            online_keys=keys,
            sessions=sessions,
            credentials=identity,
            tokens=SQLTokenStore(database),
            revocations=revocations,
            feed=feed,
            audit=SQLAuditLog(database),
            facts=SQLMessageFacts(database),
            explanations=SQLExplanations(database),
            clock=clock,
            limits=OperatorLimits(
                body_size_bytes_max=config.server.body_size_bytes_max,
                attempts_max=config.device.attempts_max,
                ttl_max_s=config.alerts.ttl_max_s,
            ),
        )
        application = web.Application(
            middlewares=[problem_middleware(metrics=metrics, clock=clock)],
            client_max_size=config.server.body_size_bytes_max,
        )
        application.on_response_prepare.append(_anonymous)
        application.add_routes(
            [
                *health.routes(
                    metrics=metrics,
                    ask_database=lambda: _ask(database),
                    is_draining=lambda: admission.is_draining,
                    is_metrics_enabled=config.metrics.enabled,
                ),
                *device_routes(
                    admission,
                    websocket_limits=WebSocketLimits(),
                    longpoll_wait_max_s=config.device.longpoll_wait_max_s,
                ),
                *artifacts.device_routes(transfers, _DeviceFleet(admission, store).key),
                *operator_routes(services),
            ]
        )
        tasks.spawn(sessions.turn(), name="session.wheel")
        tasks.spawn(_retention(config, store, log, clock), name="fleet.retention")
        runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=config.server.shutdown_grace_s,
            max_field_size=_HEADER_SIZE_MAX,
            auto_decompress=False,  # the API and the device plane refuse encodings, with a code
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        tls = server_tls(config)
        context = None
        if tls is not None:
            context = tls.context
            metrics.certificate_expires_at_s.set(tls.expires_at)
        listening = sockets or [_listen(config)]
        sites = [
            web.SockSite(runner, one, ssl_context=context, backlog=config.server.backlog) for one in listening
        ]
        for site in sites:
            await site.start()
        host, port = listening[0].getsockname()[:2]
        try:
            yield Gateway(config, (host, port), sessions, admission, alerts, metrics, writer, tls)
        finally:
            # Whoever comes meanwhile is told to come later, and /readyz says that it is not ready.
            await drain(admission, grace_s=config.server.shutdown_grace_s)
            for site in sites:
                await site.stop()


async def _retention(config: Config, store: SQLFleetStore, log: AlertLog, clock: Clock) -> None:
    """Prune what is older than its channel keeps, for ever, a bounded number of rows at a time."""
    while True:
        await asyncio.sleep(config.alerts.retention_interval_s)
        try:
            while pruned := await store.prune(
                now_ms=clock.now_ms(),
                age_s=config.alerts.retention_age_s,
                count=config.alerts.retention_count,
                dead_letter_age_s=config.alerts.dead_letter_age_s,
                rows_max=config.database.flush_rows_max * 10,
            ):
                for channel_id, _ in pruned:
                    log.forget(channel_id)
        except GatewayError as error:
            _log.warning("retention did not run", code=error.code)


@contextmanager
def _alone(config: Config) -> Iterator[None]:
    """Hold the data folder: two nodes on one embedded database would each miss what the other publishes.

    Raises:
        ConfigError: Another gateway holds it.
    """
    path = config.server.data_dir / "lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(
            [f"server.data_dir: another gateway runs on {path.parent}; stop it or name another"]
        ) from error
    finally:
        os.close(descriptor)


async def _anonymous(_request: web.Request, response: web.StreamResponse) -> None:
    """Leave out which program, and of which version, answers."""
    response.headers.popall("Server", None)


async def _ask(database: Database) -> None:
    await database.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())


def _listen(config: Config) -> socket.socket:
    server = config.server
    try:
        family = socket.AF_INET6 if ":" in server.listen_host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((server.listen_host, server.listen_port))
    except OSError as error:
        raise ConfigError(
            [
                f"server.listen_host, server.listen_port: cannot listen on {server.listen_host}:"
                f"{server.listen_port}: {error.strerror}; is another gateway running? choose another port"
            ]
        ) from error
    return listening


class _DeviceFleet:
    """Who a device is that fetches an artifact: judged as any device, known by its fleet's key."""

    def __init__(self, admission: Admission, store: SQLFleetStore) -> None:
        self._admission = admission
        self._store = store
        self._keys: dict[FleetName, int] = {}  # fleets are few, and are never deleted

    async def key(self, request: web.Request) -> int:
        _, verdict = await self._admission.judge(request)
        key = self._keys.get(verdict.fleet)
        if key is None:
            try:
                key = self._keys[verdict.fleet] = (await self._store.fleet(verdict.fleet)).key
            except GatewayError as error:
                raise OriginUnavailableError(
                    "the fleet is not known here", code="unknown_fleet", retry_after_s=30.0
                ) from error
        return key


class _Tasks:
    """Tasks that nobody awaits: kept while they run, and heard if they fail."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def close(self) -> None:
        """End what still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task failed", task=task.get_name(), exc_info=error)
