"""Every table. Queries are elsewhere; how a schema came to be is in ``migrations/``.

Times are integer milliseconds UTC (``…_at``), ids that travel are 16 raw bytes, states are the enum's value.
A fleet is the tenant: everything below it carries its integer key. Integer keys never leave the gateway, and
none is used twice (AUTOINCREMENT): a write that comes late must not hit somebody else's row.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives only INTEGER PRIMARY KEY its rowid, so the key is BIGINT on PostgreSQL alone.
Key = BigInteger().with_variant(Integer(), "sqlite")
Json = JSON().with_variant(JSONB(), "postgresql")
Id = LargeBinary(16)
# Names are compared byte by byte on both databases, so that lists have one order everywhere.
Name = String(128).with_variant(String(128, collation="C"), "postgresql")

fleet = Table(
    "fleet",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", Name, nullable=False, unique=True),
    Column("root_version", BigInteger, nullable=False, server_default="0"),
    Column("root_document", LargeBinary),  # COSE_Sign1, signed offline
    Column("created_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

# Offline keys whose signature the gateway asks of an uploaded release.
release_key = Table(
    "release_key",
    metadata,
    Column("fleet_id", ForeignKey("fleet.id"), primary_key=True),
    Column("kid", LargeBinary(32), primary_key=True),
    Column("public_pem", Text, nullable=False),
    Column("added_at", BigInteger, nullable=False),
)

channel = Table(
    "channel",
    metadata,
    Column("id", Key, primary_key=True),
    Column("fleet_id", ForeignKey("fleet.id"), nullable=False),
    Column("name", Name, nullable=False),
    Column("kind", String(8), nullable=False),  # alert | update
    Column("epoch", BigInteger, nullable=False),
    Column("head", BigInteger, nullable=False, server_default="0"),  # the last committed offset; 0: none yet
    Column("floor", BigInteger, nullable=False, server_default="0"),  # offsets <= floor are pruned
    Column("starts_at_earliest", Boolean, nullable=False, server_default=text("false")),
    Column("retention_age_s", BigInteger),  # null: the configuration's default
    Column("retention_count", BigInteger),
    Column("version", BigInteger, nullable=False, server_default="1"),  # ETag
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("fleet_id", "name"),
    sqlite_autoincrement=True,
)

device = Table(
    "device",
    metadata,
    Column("id", Key, primary_key=True),
    Column("fleet_id", ForeignKey("fleet.id"), nullable=False),
    Column("device_id", Name, nullable=False),
    Column("enrolment_id", Id, nullable=False),  # random; renewed by delete or re-enrol
    Column("bucket", BigInteger, nullable=False),  # random uint32: who is a canary
    Column("is_enabled", Boolean, nullable=False, server_default=text("true")),
    Column("origin", Json, nullable=False),  # attributes the origin gave; authoritative
    Column("reported", Json, nullable=False),  # attributes the device gave; never used for authorisation
    Column("tags", Json, nullable=False),  # list of the operator's tags
    Column("installed", Json, nullable=False),  # component → [sequence, version, digest hex, is_confirmed]
    Column("boot_id", Id),
    Column("directive_sequence", BigInteger, nullable=False, server_default="0"),
    Column("root_version", BigInteger, nullable=False, server_default="0"),
    Column("enrolled_at", BigInteger, nullable=False),
    Column("last_seen_at", BigInteger),
    Column("version", BigInteger, nullable=False, server_default="1"),
    UniqueConstraint("fleet_id", "device_id"),
    Index("ix_device_bucket", "fleet_id", "bucket"),
    sqlite_autoincrement=True,
)

# Made by the origin's verdict, by an operator, or by both; it ends when neither wants it any more.
subscription = Table(
    "subscription",
    metadata,
    Column("id", Key, primary_key=True),
    Column("device_key", ForeignKey("device.id", ondelete="CASCADE"), nullable=False),
    Column("channel_id", ForeignKey("channel.id", ondelete="CASCADE"), nullable=False),
    Column("by_origin", Boolean, nullable=False),
    Column("by_operator", Boolean, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),  # acknowledged, cumulative
    Column("stuck_offset", BigInteger, nullable=False, server_default="0"),  # oldest sent and not acked
    Column("attempts", Integer, nullable=False, server_default="0"),  # at stuck_offset
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("device_key", "channel_id"),
    Index("ix_subscription_channel_id", "channel_id", "device_key"),
    sqlite_autoincrement=True,
)

message = Table(
    "message",
    metadata,
    Column("channel_id", ForeignKey("channel.id", ondelete="CASCADE"), primary_key=True),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Id, nullable=False, unique=True),  # UUIDv7, made before the insert
    Column("payload", LargeBinary, nullable=False),  # what is signed: CBOR, deterministic
    Column("signature", LargeBinary, nullable=False),  # cached, by the key ``kid``
    Column("kid", LargeBinary(32), nullable=False),
    Column("key", String(128)),  # a newer message with the same key supersedes this one
    Column("superseded_by", BigInteger),  # offset of that one
    Column("original_id", Id),  # of the message this one requeues
    Column("accepted_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Index(
        "ix_message_key",
        "channel_id",
        "key",
        sqlite_where=text("key IS NOT NULL AND superseded_by IS NULL"),
        postgresql_where=text("key IS NOT NULL AND superseded_by IS NULL"),
    ),
)

dead_letter = Table(
    "dead_letter",
    metadata,
    Column("id", Key, primary_key=True),
    Column("device_key", ForeignKey("device.id", ondelete="CASCADE"), nullable=False),
    Column("channel_id", ForeignKey("channel.id", ondelete="CASCADE"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("message_id", Id, nullable=False),
    Column("reason", String(16), nullable=False),  # nacked | expired | attempts
    Column("code", String(64)),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("at", BigInteger, nullable=False),
    Column("requeued_as", Id),
    UniqueConstraint("device_key", "channel_id", "epoch", "offset"),
    sqlite_autoincrement=True,
)

# Within a live interval a message was sent when it was accepted: one row for a session, not one a publish.
# Neither this table nor the next has foreign keys: they are the hottest, and checking two keys a row would
# cost more than the row. What a deleted device or channel leaves is swept by retention.
live_interval = Table(
    "live_interval",
    metadata,
    Column("id", Id, primary_key=True),
    Column("device_key", BigInteger, nullable=False),
    Column("channel_id", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("first", BigInteger, nullable=False),  # the first offset that would be sent live
    Column("opened_at", BigInteger, nullable=False),
    Column("last", BigInteger),  # null while it is open
    Column("closed_at", BigInteger),
    Index("ix_live_interval_channel_id", "channel_id", "device_key", "first"),
    Index("ix_live_interval_opened_at", "opened_at"),
    Index(
        "ix_live_interval_open",
        "device_key",
        sqlite_where=text("last IS NULL"),
        postgresql_where=text("last IS NULL"),
    ),
)

# Facts of alerts as ranges: pages and redeliveries (sent), coalesced acks (received).
delivery_fact = Table(
    "delivery_fact",
    metadata,
    Column("id", Key, primary_key=True),
    Column("device_key", BigInteger, nullable=False),
    Column("channel_id", BigInteger, nullable=False),
    Column("fact", SmallInteger, nullable=False),  # 1 sent, 2 received
    Column("epoch", BigInteger, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Index("ix_delivery_fact_channel_id", "channel_id", "device_key", "fact", "last"),
    sqlite_autoincrement=True,
)

artifact = Table(
    "artifact",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),  # SHA-256; the file is named by it
    Column("fleet_id", ForeignKey("fleet.id"), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

release = Table(
    "release",
    metadata,
    Column("id", Id, primary_key=True),
    Column("fleet_id", ForeignKey("fleet.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("version", String(128), nullable=False),
    Column("component", String(128), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("vendor_id", LargeBinary(16), nullable=False),
    Column("class_id", LargeBinary(16), nullable=False),
    Column("manifest_digest", LargeBinary(32), nullable=False),
    Column("image_digest", LargeBinary(32), nullable=False),
    Column("image_size", BigInteger, nullable=False),
    Column("uri", Text, nullable=False),
    Column("kid", LargeBinary(32), nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("fleet_id", "manifest_digest"),
)

rollout = Table(
    "rollout",
    metadata,
    Column("id", Id, primary_key=True),
    Column("fleet_id", ForeignKey("fleet.id"), nullable=False),
    Column("channel_id", ForeignKey("channel.id"), nullable=False),
    Column("release_id", ForeignKey("release.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("state", String(16), nullable=False),  # running | paused | aborted | finished
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("shift", BigInteger, nullable=False),  # random uint32
    Column("selector", Text),  # null: every device of the channel
    Column("percent", Integer, nullable=False),  # 0..100 as last asked
    Column("boundary", BigInteger, nullable=False),  # effective buckets < boundary are admitted; <= 2^32
    Column("boundary_at", BigInteger, nullable=False),
    Column("component", String(128), nullable=False),
    Column("sequence", BigInteger, nullable=False),  # the release's, for the order of precedence
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False, server_default="1"),
    Index("ix_rollout_channel_id", "channel_id", "state"),
)

deployment = Table(
    "deployment",
    metadata,
    Column("id", Id, primary_key=True),
    Column("rollout_id", ForeignKey("rollout.id"), nullable=False),
    Column("release_id", ForeignKey("release.id"), nullable=False),
    Column("device_key", ForeignKey("device.id", ondelete="CASCADE"), nullable=False),
    Column("component", String(128), nullable=False),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("state", String(16), nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("is_cancelling", Boolean, nullable=False, server_default=text("false")),
    Column("is_inferred", Boolean, nullable=False, server_default=text("false")),
    Column(
        "is_forgotten", Boolean, nullable=False, server_default=text("false")
    ),  # by the device: send again
    Column("directive_sequence", BigInteger, nullable=False),
    Column("directive_issued_at", BigInteger, nullable=False),
    Column("directive_expires_at", BigInteger, nullable=False),
    Column("directive_install_by", BigInteger, nullable=False),
    Column("sends", Integer, nullable=False, server_default="0"),  # attempts to push it, durable
    Column("report_seq", BigInteger, nullable=False, server_default="-1"),  # the highest folded
    Column("progress", Integer),
    Column("code", String(64)),
    Column("detail", Text),
    Column("boot_id", Id),  # the device's, when it was last sent or when it reported rebooting
    Column("notified_at", BigInteger, nullable=False),  # accepted: the row was committed
    Column("sent_at", BigInteger),
    Column("received_at", BigInteger),
    Column("verified_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("updated_at", BigInteger, nullable=False),
    Index("ix_deployment_rollout_id", "rollout_id", "state"),
    Index("ix_deployment_device_key", "device_key"),
    Index(
        "uq_deployment_active",
        "device_key",
        "component",
        unique=True,
        sqlite_where=text("is_active"),
        postgresql_where=text("is_active"),
    ),
)

# Every report is appended; the deployment's state is folded from them in ``seq`` order.
report = Table(
    "report",
    metadata,
    Column("device_key", ForeignKey("device.id", ondelete="CASCADE"), primary_key=True),
    Column("report_id", Id, primary_key=True),
    Column("deployment_id", Id, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("progress", Integer),
    Column("code", String(64)),
    Column("detail", Text),
    Column("status", String(12), nullable=False),  # recorded | refused, as the device was told
    Column("status_code", String(64)),
    Column("at", BigInteger, nullable=False),
    Index("ix_report_deployment_id", "deployment_id", "seq"),
)

operator_token = Table(
    "operator_token",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(128), nullable=False),
    Column("sha256", LargeBinary(32), nullable=False, unique=True),
    Column("fleet_id", ForeignKey("fleet.id")),  # null: every fleet
    Column("scopes", Json, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)

# Written in the transaction of the effect it guards, so a repeat finds either both or neither.
idempotency = Table(
    "idempotency",
    metadata,
    Column("token_id", Id, primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request_sha256", LargeBinary(32), nullable=False),
    Column("status", Integer, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_idempotency_created_at", "created_at"),
)

# Every change that an operator made, written in the transaction of that change.
audit = Table(
    "audit",
    metadata,
    Column("id", Key, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("fleet_id", ForeignKey("fleet.id")),  # null: about the node or all fleets
    Column("token_id", Id, nullable=False),
    Column("operator", String(128), nullable=False),  # the token's name at that time
    Column("operation", String(64), nullable=False),
    Column("target", Text, nullable=False),  # the path below /api/v1 of what was changed
    Column("details", Json, nullable=False),  # what was asked for, without payloads and secrets
    Index("ix_audit_fleet_id", "fleet_id", "id"),
    Index("ix_audit_at", "at"),
    sqlite_autoincrement=True,
)

# A feed: nodes read it by sequence. Sequences commit in order, so that a reader passes none by.
revocation = Table(
    "revocation",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("fleet_id", ForeignKey("fleet.id"), nullable=False),
    Column("token_sha256", LargeBinary(32)),  # of a device's bearer token; null: a device
    Column("device_id", Name),  # every credential that it has now; null: a token
    Column("reason", String(256)),
    Column("at", BigInteger, nullable=False),
    Column("token_id", Id, nullable=False),  # the operator's
    Column("operator", String(128), nullable=False),
    Index("ix_revocation_fleet_id", "fleet_id", "sequence"),
)

# What seals resume tickets, shared by all nodes: the newest, and the one before.
ticket_key = Table(
    "ticket_key",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # random uint32
    Column("secret", LargeBinary(32), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
