"""Create the schema.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite gives only INTEGER PRIMARY KEY its rowid, so keys are BIGINT on PostgreSQL alone.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
ID = sa.LargeBinary(16)
NAME = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")

TABLES = (
    "revocation",
    "audit",
    "idempotency",
    "operator_token",
    "report",
    "deployment",
    "rollout",
    "release",
    "artifact",
    "delivery_fact",
    "live_interval",
    "dead_letter",
    "message",
    "subscription",
    "device",
    "channel",
    "release_key",
    "fleet",
)  # dependents first


def upgrade() -> None:
    op.create_table(
        "fleet",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("root_version", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("root_document", sa.LargeBinary()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fleet"),
        sa.UniqueConstraint("name", name="uq_fleet_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "release_key",
        sa.Column("fleet_id", KEY, nullable=False),
        sa.Column("kid", sa.LargeBinary(32), nullable=False),
        sa.Column("public_pem", sa.Text(), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleet.id"], name="fk_release_key_fleet_id"),
        sa.PrimaryKeyConstraint("fleet_id", "kid", name="pk_release_key"),
    )
    op.create_table(
        "channel",
        sa.Column("id", KEY, nullable=False),
        sa.Column("fleet_id", KEY, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("floor", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("starts_at_earliest", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("retention_age_s", sa.BigInteger()),
        sa.Column("retention_count", sa.BigInteger()),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleet.id"], name="fk_channel_fleet_id"),
        sa.PrimaryKeyConstraint("id", name="pk_channel"),
        sa.UniqueConstraint("fleet_id", "name", name="uq_channel_fleet_id_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "device",
        sa.Column("id", KEY, nullable=False),
        sa.Column("fleet_id", KEY, nullable=False),
        sa.Column("device_id", NAME, nullable=False),
        sa.Column("enrolment_id", ID, nullable=False),
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("origin", JSON, nullable=False),
        sa.Column("reported", JSON, nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("installed", JSON, nullable=False),
        sa.Column("boot_id", ID),
        sa.Column("directive_sequence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("root_version", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger()),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleet.id"], name="fk_device_fleet_id"),
        sa.PrimaryKeyConstraint("id", name="pk_device"),
        sa.UniqueConstraint("fleet_id", "device_id", name="uq_device_fleet_id_device_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_device_bucket", "device", ["fleet_id", "bucket"])
    op.create_table(
        "subscription",
        sa.Column("id", KEY, nullable=False),
        sa.Column("device_key", KEY, nullable=False),
        sa.Column("channel_id", KEY, nullable=False),
        sa.Column("by_origin", sa.Boolean(), nullable=False),
        sa.Column("by_operator", sa.Boolean(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("stuck_offset", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel_id"], ["channel.id"], name="fk_subscription_channel_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["device_key"], ["device.id"], name="fk_subscription_device_key", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_subscription"),
        sa.UniqueConstraint("device_key", "channel_id", name="uq_subscription_device_key_channel_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_subscription_channel_id", "subscription", ["channel_id", "device_key"])
    op.create_table(
        "message",
        sa.Column("channel_id", KEY, nullable=False),
        sa.Column("offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("kid", sa.LargeBinary(32), nullable=False),
        sa.Column("key", sa.String(128)),
        sa.Column("superseded_by", sa.BigInteger()),
        sa.Column("original_id", ID),
        sa.Column("accepted_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["channel_id"], ["channel.id"], name="fk_message_channel_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("channel_id", "offset", name="pk_message"),
        sa.UniqueConstraint("id", name="uq_message_id"),
    )
    op.create_index(
        "ix_message_key",
        "message",
        ["channel_id", "key"],
        sqlite_where=sa.text("key IS NOT NULL AND superseded_by IS NULL"),
        postgresql_where=sa.text("key IS NOT NULL AND superseded_by IS NULL"),
    )
    op.create_table(
        "dead_letter",
        sa.Column("id", KEY, nullable=False),
        sa.Column("device_key", KEY, nullable=False),
        sa.Column("channel_id", KEY, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("message_id", ID, nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("code", sa.String(64)),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("requeued_as", ID),
        sa.ForeignKeyConstraint(
            ["channel_id"], ["channel.id"], name="fk_dead_letter_channel_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["device_key"], ["device.id"], name="fk_dead_letter_device_key", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letter"),
        sa.UniqueConstraint(
            "device_key",
            "channel_id",
            "epoch",
            "offset",
            name="uq_dead_letter_device_key_channel_id_epoch_offset",
        ),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "live_interval",
        sa.Column("id", ID, nullable=False),
        sa.Column("device_key", sa.BigInteger(), nullable=False),
        sa.Column("channel_id", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger()),
        sa.Column("closed_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_live_interval"),
    )
    op.create_index("ix_live_interval_channel_id", "live_interval", ["channel_id", "device_key", "first"])
    op.create_index(
        "ix_live_interval_open",
        "live_interval",
        ["device_key"],
        sqlite_where=sa.text("last IS NULL"),
        postgresql_where=sa.text("last IS NULL"),
    )
    op.create_index("ix_live_interval_opened_at", "live_interval", ["opened_at"])
    op.create_table(
        "delivery_fact",
        sa.Column("id", KEY, nullable=False),
        sa.Column("device_key", sa.BigInteger(), nullable=False),
        sa.Column("channel_id", sa.BigInteger(), nullable=False),
        sa.Column("fact", sa.SmallInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_delivery_fact"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_delivery_fact_channel_id", "delivery_fact", ["channel_id", "device_key", "fact", "last"]
    )
    op.create_table(
        "artifact",
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("fleet_id", KEY, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleet.id"], name="fk_artifact_fleet_id"),
        sa.PrimaryKeyConstraint("digest", "fleet_id", name="pk_artifact"),
    )
    op.create_table(
        "release",
        sa.Column("id", ID, nullable=False),
        sa.Column("fleet_id", KEY, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("component", sa.String(128), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("vendor_id", ID, nullable=False),
        sa.Column("class_id", ID, nullable=False),
        sa.Column("manifest_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("image_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("image_size", sa.BigInteger(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("kid", sa.LargeBinary(32), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleet.id"], name="fk_release_fleet_id"),
        sa.PrimaryKeyConstraint("id", name="pk_release"),
        sa.UniqueConstraint("fleet_id", "manifest_digest", name="uq_release_fleet_id_manifest_digest"),
    )
    op.create_table(
        "rollout",
        sa.Column("id", ID, nullable=False),
        sa.Column("fleet_id", KEY, nullable=False),
        sa.Column("channel_id", KEY, nullable=False),
        sa.Column("release_id", ID, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("shift", sa.BigInteger(), nullable=False),
        sa.Column("selector", sa.Text()),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("boundary", sa.BigInteger(), nullable=False),
        sa.Column("boundary_at", sa.BigInteger(), nullable=False),
        sa.Column("component", sa.String(128), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channel.id"], name="fk_rollout_channel_id"),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleet.id"], name="fk_rollout_fleet_id"),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name="fk_rollout_release_id"),
        sa.PrimaryKeyConstraint("id", name="pk_rollout"),
    )
    op.create_index("ix_rollout_channel_id", "rollout", ["channel_id", "state"])
    op.create_table(
        "deployment",
        sa.Column("id", ID, nullable=False),
        sa.Column("rollout_id", ID, nullable=False),
        sa.Column("release_id", ID, nullable=False),
        sa.Column("device_key", KEY, nullable=False),
        sa.Column("component", sa.String(128), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("is_cancelling", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("is_inferred", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("is_forgotten", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("directive_sequence", sa.BigInteger(), nullable=False),
        sa.Column("directive_issued_at", sa.BigInteger(), nullable=False),
        sa.Column("directive_expires_at", sa.BigInteger(), nullable=False),
        sa.Column("directive_install_by", sa.BigInteger(), nullable=False),
        sa.Column("sends", sa.Integer(), server_default="0", nullable=False),
        sa.Column("report_seq", sa.BigInteger(), server_default="-1", nullable=False),
        sa.Column("progress", sa.Integer()),
        sa.Column("code", sa.String(64)),
        sa.Column("detail", sa.Text()),
        sa.Column("boot_id", ID),
        sa.Column("notified_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger()),
        sa.Column("received_at", sa.BigInteger()),
        sa.Column("verified_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_key"], ["device.id"], name="fk_deployment_device_key", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name="fk_deployment_release_id"),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"], name="fk_deployment_rollout_id"),
        sa.PrimaryKeyConstraint("id", name="pk_deployment"),
    )
    op.create_index("ix_deployment_device_key", "deployment", ["device_key"])
    op.create_index("ix_deployment_rollout_id", "deployment", ["rollout_id", "state"])
    op.create_index(
        "uq_deployment_active",
        "deployment",
        ["device_key", "component"],
        unique=True,
        sqlite_where=sa.text("is_active"),
        postgresql_where=sa.text("is_active"),
    )

    op.create_table(
        "report",
        sa.Column("device_key", KEY, nullable=False),
        sa.Column("report_id", ID, nullable=False),
        sa.Column("deployment_id", ID, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.Integer()),
        sa.Column("code", sa.String(64)),
        sa.Column("detail", sa.Text()),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("status_code", sa.String(64)),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_key"], ["device.id"], name="fk_report_device_key", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("device_key", "report_id", name="pk_report"),
    )
    op.create_index("ix_report_deployment_id", "report", ["deployment_id", "seq"])
    op.create_table(
        "operator_token",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("fleet_id", KEY),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleet.id"], name="fk_operator_token_fleet_id"),
        sa.PrimaryKeyConstraint("id", name="pk_operator_token"),
        sa.UniqueConstraint("sha256", name="uq_operator_token_sha256"),
    )
    op.create_table(
        "idempotency",
        sa.Column("token_id", ID, nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("token_id", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])
    op.create_table(
        "audit",
        sa.Column("id", KEY, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("fleet_id", KEY),
        sa.Column("token_id", ID, nullable=False),
        sa.Column("operator", sa.String(128), nullable=False),
        sa.Column("operation", sa.String(64), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("details", JSON, nullable=False),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleet.id"], name="fk_audit_fleet_id"),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_fleet_id", "audit", ["fleet_id", "id"])
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_table(
        "revocation",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("fleet_id", KEY, nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(32)),
        sa.Column("device_id", NAME),
        sa.Column("reason", sa.String(256)),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("token_id", ID, nullable=False),
        sa.Column("operator", sa.String(128), nullable=False),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleet.id"], name="fk_revocation_fleet_id"),
        sa.PrimaryKeyConstraint("sequence", name="pk_revocation"),
    )
    op.create_index("ix_revocation_fleet_id", "revocation", ["fleet_id", "sequence"])


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
