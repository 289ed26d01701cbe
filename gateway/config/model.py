"""Every configuration key: its name, type, default, bound and meaning, once.

What reads files and the environment is ``load``; what prints the model for people is ``describe``. A
field's description is a sentence; its unit is the end of its name (``_s``, ``_ms``, ``_bytes``). Keys about
the origin are in ``identity``, relations between keys in ``relations``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway.config.identity import Identity
from gateway.config.section import DAY_S, KIB, MIB, FilePath, HttpUrl, Section, with_password


def _database_url(value: str) -> str:
    if not value.startswith(("sqlite:///", "postgresql://", "postgresql+asyncpg://")):
        raise ValueError("must start with sqlite:///, postgresql:// or postgresql+asyncpg://")
    return value


DatabaseUrl = Annotated[str, AfterValidator(_database_url)]


class Server(Section):
    """Where the gateway listens, and where its files are."""

    listen_host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    listen_port: int = Field(
        default=8080,
        ge=0,
        le=65535,
        description="Port to listen on; 0 takes a free one.",
    )
    data_dir: FilePath = Field(
        default=Path("fleetcast-data"),
        description="Folder of the embedded database, online keys and artifacts; made if it is not there.",
    )
    tls_cert: FilePath | None = Field(
        default=None,
        description="PEM file with the certificate chain; without it the gateway speaks plain HTTP.",
        examples=["tls/fleetcast.crt"],
    )
    tls_key: FilePath | None = Field(
        default=None, description="PEM file with the private key of tls_cert.", examples=["tls/fleetcast.key"]
    )
    shutdown_grace_s: float = Field(
        default=10.0,
        ge=0,
        le=600,
        description="How long a stopping node waits for devices to leave; then as long for other requests.",
    )
    backlog: int = Field(
        default=4096, ge=1, le=65535, description="Connections the kernel holds before they are accepted."
    )
    body_size_bytes_max: int = Field(
        default=2 * MIB,
        ge=64 * KIB,
        le=64 * MIB,
        description="Longest request body that is not an artifact; longer ones are answered 413.",
    )


class Database(Section):
    """The truth. The embedded SQLite needs no key; PostgreSQL needs a url."""

    url: DatabaseUrl | None = Field(
        default=None,
        description="sqlite:///PATH, or postgresql://USER@HOST/NAME; without it SQLite in server.data_dir.",
        examples=["postgresql://fleetcast@127.0.0.1/fleetcast"],
    )
    password_file: FilePath | None = Field(
        default=None,
        description="File that holds the password of the url's user, and nothing else.",
        examples=["secrets/database"],
    )
    pool_size: int = Field(default=8, ge=1, le=200, description="PostgreSQL connections kept open by a node.")
    pool_overflow: int = Field(
        default=8, ge=0, le=200, description="PostgreSQL connections opened above pool_size while it is busy."
    )
    pool_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=120,
        description="How long a query waits for a connection; then storage_unavailable.",
    )
    readers: int = Field(default=2, ge=1, le=16, description="SQLite reader threads beside the one writer.")
    flush_interval_ms: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="How long the batching writer gathers rows before it commits them; under load up to 25.",
    )
    flush_rows_max: int = Field(
        default=500, ge=1, le=50_000, description="Rows that make the batching writer commit at once."
    )
    queue_rows_max: int = Field(
        default=20_000,
        ge=100,
        le=1_000_000,
        description="Rows that may wait for the writer; above it producers wait, then storage_unavailable.",
    )


class Device(Section):
    """Device connections: flow control, liveness and redelivery."""

    connections_max: int = Field(
        default=200_000,
        ge=1,
        le=2_000_000,
        description="Device connections of a node; more are answered 503.",
    )
    accept_rate_per_s: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="New device connections that the node takes a second; more are told when to come.",
    )
    accept_retry_max_s: float = Field(
        default=300.0,
        ge=1,
        le=3600,
        description="Longest time that a device is told to stay away when the node takes no more.",
    )
    hello_timeout_s: float = Field(
        default=10.0, ge=1, le=120, description="From the accepted connection to the device's hello."
    )
    heartbeat_s: float = Field(
        default=25.0,
        ge=5,
        le=1800,
        description="Time between the pings of an idle connection; a missed one closes it.",
    )
    pong_timeout_s: float = Field(
        default=20.0, ge=1, le=600, description="From a ping to the close of a connection that stays silent."
    )
    drain_timeout_s: float = Field(
        default=60.0,
        ge=5,
        le=600,
        description="A socket that takes no byte for this long is closed as a slow consumer.",
    )
    outbox_size_bytes_max: int = Field(
        default=2 * MIB,
        ge=512 * KIB,
        le=64 * MIB,
        description="Bytes queued for one connection; above it the device falls behind.",
    )
    window_max: int = Field(
        default=1024,
        ge=1,
        le=1024,
        description="Unacknowledged alerts that a device gets at most; it asks for its own window, often 32.",
    )
    window_size_bytes_max: int = Field(
        default=256 * KIB, ge=128 * KIB, le=16 * MIB, description="Unacknowledged bytes of a device."
    )
    page_len_max: int = Field(default=300, ge=1, le=300, description="Alerts in one page of the log.")
    page_size_bytes_max: int = Field(
        default=MIB,
        ge=128 * KIB,
        le=MIB,
        description="Bytes in one page of the log.",
    )
    catch_up_concurrency_max: int = Field(
        default=8,
        ge=1,
        le=256,
        description="Reads of the log at the same time.",
    )
    block_cache_size_bytes_max: int = Field(
        default=64 * MIB,
        ge=MIB,
        le=16 * 1024 * MIB,
        description="Encoded blocks of the log kept in memory; the oldest used goes first.",
    )
    longpoll_wait_max_s: int = Field(
        default=55,
        ge=1,
        le=55,
        description="Longest wait a long-poll may ask for.",
    )
    longpoll_idle_s: float = Field(
        default=120.0,
        ge=60,
        le=3600,
        description="A session without a poll for this long is forgotten; the device says hello again.",
    )
    redeliver_min_s: float = Field(
        default=10.0, ge=1, le=300, description="First wait before an unacknowledged item is sent again."
    )
    redeliver_max_s: float = Field(
        default=300.0,
        ge=1,
        le=3600,
        description="Longest wait; it doubles up to here.",
    )
    wheel_s: float = Field(
        default=2.0,
        ge=0.05,
        le=5,
        description="How often each session's deadlines are looked at: the accuracy of all of them.",
    )
    attempts_max: int = Field(
        default=20, ge=1, le=1000, description="Attempts after which an item becomes a dead letter."
    )


class Alerts(Section):
    """The alert log."""

    retention_age_s: int = Field(
        default=7 * DAY_S,
        ge=60,
        le=3650 * DAY_S,
        description="Age at which alerts leave the log, unless the channel says otherwise.",
    )
    retention_count: int = Field(
        default=100_000,
        ge=1,
        le=100_000_000,
        description="Alerts a channel keeps, unless the channel says otherwise.",
    )
    ttl_default_s: int | None = Field(
        default=None,
        ge=1,
        le=3650 * DAY_S,
        description="Time to live of an alert that names none; without it, retention alone ends it.",
        examples=[86400],
    )
    ttl_max_s: int = Field(
        default=365 * DAY_S,
        ge=1,
        le=3650 * DAY_S,
        description="Longest time to live that a publisher may ask for.",
    )
    dead_letter_age_s: int = Field(
        default=90 * DAY_S, ge=3600, le=3650 * DAY_S, description="How long dead letters are kept."
    )
    retention_interval_s: float = Field(
        default=60.0, ge=1, le=DAY_S, description="Time between two runs of retention."
    )


class Updates(Section):
    """Releases, artifacts and the gateway's directives."""

    artifact_size_bytes_max: int = Field(
        default=1024 * MIB,
        ge=1,
        le=64 * 1024 * MIB,
        description="Longest artifact; an upload is refused at the first byte above it.",
    )
    artifact_concurrency_max: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Artifact downloads at the same time; more are answered 503 with Retry-After.",
    )
    directive_ttl_s: int = Field(
        default=3600,
        ge=60,
        le=30 * DAY_S,
        description="How long after signing a device may accept a directive.",
    )
    install_by_s: int = Field(
        default=7 * DAY_S,
        ge=60,
        le=365 * DAY_S,
        description="How long after signing a device may start to install.",
    )
    redeliver_min_s: float = Field(
        default=10.0, ge=1, le=3600, description="First wait before an unacknowledged update is sent again."
    )
    redeliver_max_s: float = Field(
        default=300.0,
        ge=1,
        le=DAY_S,
        description="Longest wait; it doubles up to here.",
    )


class Uplink(Section):
    """Messages of devices for the operator's backend."""

    url: HttpUrl | None = Field(
        default=None,
        description="Address that each message is POSTed to; without it devices keep theirs.",
        examples=["http://127.0.0.1:9000/fleetcast/uplink"],
    )
    token_file: FilePath | None = Field(
        default=None,
        description="File that holds the bearer token which is sent along, and nothing else.",
        examples=["secrets/uplink"],
    )
    timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="Longest wait for one answer of the backend."
    )
    concurrency_max: int = Field(
        default=32, ge=1, le=1024, description="Messages with the backend at the same time."
    )
    attempts_max: int = Field(
        default=3, ge=1, le=10, description="Attempts after which the device is told to come again later."
    )
    retry_min_s: float = Field(default=0.5, gt=0, le=60, description="First wait between two attempts.")
    retry_max_s: float = Field(default=5.0, gt=0, le=60, description="Longest such wait; it doubles.")
    queue_len_max: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Messages under way; more are answered uplink_busy."
    )
    queue_size_bytes_max: int = Field(
        default=64 * MIB, ge=64 * KIB, le=4096 * MIB, description="Bytes of the messages under way."
    )
    device_queue_len_max: int = Field(
        default=8, ge=1, le=1000, description="Messages of one device under way; they go one by one."
    )


class Log(Section):
    """Logs go to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is written."
    )
    format: Literal["json", "console"] = Field(
        default="console", description="One JSON object a line, or text for people."
    )


class Metrics(Section):
    """Prometheus metrics."""

    enabled: bool = Field(default=True, description="Whether GET /metrics is answered.")


class Config(Section):
    """The whole configuration, checked."""

    server: Server = Field(default_factory=Server, description="")
    database: Database = Field(default_factory=Database, description="")
    identity: Identity = Field(default_factory=Identity, description="")
    device: Device = Field(default_factory=Device, description="")
    alerts: Alerts = Field(default_factory=Alerts, description="")
    updates: Updates = Field(default_factory=Updates, description="")
    uplink: Uplink = Field(default_factory=Uplink, description="")
    log: Log = Field(default_factory=Log, description="")
    metrics: Metrics = Field(default_factory=Metrics, description="")

    @property
    def database_url(self) -> str:
        """The database's address, with its password; without a key, SQLite in the data folder.

        Reads ``database.password_file``, which ``load_config`` found readable.
        """
        url = self.database.url
        if url is None:
            return f"sqlite:///{self.server.data_dir.absolute() / 'fleetcast.db'}"
        path = self.database.password_file
        return url if path is None else with_password(url, path.read_text().strip())
