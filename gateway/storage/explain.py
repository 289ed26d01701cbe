"""What is known of one device and one release, read in one moment for ``rollout.explain``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, or_, select

from device_sdk.wire.messages import Installed
from device_sdk.wire.names import DeviceId
from gateway.errors import NotFoundError
from gateway.rollout.deployment import State
from gateway.rollout.explain import Facts, RolloutFacts
from gateway.rollout.model import DeploymentRow
from gateway.rollout.rollout import RolloutState
from gateway.rollout.selector import Subject
from gateway.storage.devices import device_by_id
from gateway.storage.engine import Database
from gateway.storage.rollouts import deployment_rows, rollout_rows
from gateway.storage.tables import deployment, release, rollout, subscription

ROLLOUTS_MAX: Final = 500  # the newest
DEPLOYMENTS_MAX: Final = 1_000  # of the device and the component; the newest
_STANDING: Final = (RolloutState.RUNNING.value, RolloutState.PAUSED.value)


class SQLExplanations:
    """Facts for explanations on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def facts(self, fleet_key: int, device_id: DeviceId, release_id: bytes) -> Facts:
        """Raises NotFoundError: no such device, or no such release."""
        return await self._database.read(lambda conn: facts_of(conn, fleet_key, device_id, release_id))


def facts_of(conn: Connection, fleet_key: int, device_id: DeviceId, release_id: bytes) -> Facts:
    one = device_by_id(conn, fleet_key, device_id)
    wanted = conn.execute(
        select(release.c.component, release.c.sequence, release.c.manifest_digest).where(
            release.c.id == release_id, release.c.fleet_id == fleet_key
        )
    ).one_or_none()
    if wanted is None:
        raise NotFoundError("no such release")
    deployments = deployment_rows(
        conn,
        fleet_key,
        deployment.c.device_key == one.key,
        deployment.c.component == wanted.component,
        limit=DEPLOYMENTS_MAX,
    )
    active = next((row for row in deployments if row.state.is_active), None)
    installed: Installed | None = one.installed.get(wanted.component)
    return Facts(
        device_key=one.key,
        subject=Subject(one.device_id, one.origin, one.reported, frozenset(one.tags)),
        is_enabled=one.is_enabled,
        last_seen_at=one.last_seen_at,
        bucket=one.bucket,
        installed=installed,
        release_id=release_id,
        component=wanted.component,
        sequence=wanted.sequence,
        manifest_digest=wanted.manifest_digest,
        active=active,
        committed_sequence=_committed(conn, one.key, wanted.component),
        rollouts=_rollouts(conn, fleet_key, one.key, wanted.component, release_id, deployments),
    )


def _rollouts(
    conn: Connection,
    fleet_key: int,
    device_key: int,
    component: str,
    release_id: bytes,
    deployments: Sequence[DeploymentRow],
) -> tuple[RolloutFacts, ...]:
    """Return the rollouts of the release, and those that stand in the device's way or have stood there."""
    channels = set(
        conn.scalars(select(subscription.c.channel_id).where(subscription.c.device_key == device_key))
    )
    past: dict[bytes, DeploymentRow] = {}
    for row in sorted(deployments, key=lambda row: row.attempt):
        if not row.state.is_active:
            past[row.rollout_id] = row
    found = rollout_rows(
        conn,
        fleet_key,
        rollout.c.component == component,
        or_(
            rollout.c.release_id == release_id,
            rollout.c.state.in_(_STANDING),
            rollout.c.id.in_({row.rollout_id for row in deployments}),
        ),
        limit=ROLLOUTS_MAX,
    )
    digests: dict[bytes, bytes] = {
        row.id: row.manifest_digest
        for row in conn.execute(
            select(release.c.id, release.c.manifest_digest).where(
                release.c.id.in_({one.release_id for one in found})
            )
        )
    }
    return tuple(
        RolloutFacts(
            rollout=one,
            manifest_digest=digests[one.release_id],
            is_subscribed=one.channel_id in channels,
            past=past.get(one.id),
        )
        for one in found
    )


def _committed(conn: Connection, device_key: int, component: str) -> int | None:
    sequence: int | None = conn.scalar(
        select(release.c.sequence)
        .join(deployment, deployment.c.release_id == release.c.id)
        .where(
            deployment.c.device_key == device_key,
            deployment.c.component == component,
            deployment.c.state == State.COMMITTED.value,
        )
        .order_by(release.c.sequence.desc())
        .limit(1)
    )
    return sequence
