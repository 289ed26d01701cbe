"""Rollouts: the queries behind what operators do and see, and ``SQLRolloutStore`` that runs them.

What devices are sent is in ``offers``, what they report in ``reports``. Every action locks the rollout's row
FOR UPDATE: whoever creates a deployment holds it FOR SHARE, so an abort waits for those who were first, and
those who come later see it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, func, select, true, union, update

from device_sdk.wire.names import ChannelName, DeviceId
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.acts import Act, Replay
from gateway.rollout.deployment import CANCELLABLE, State
from gateway.rollout.limits import OFFER_LEN_MAX, UpdateLimits
from gateway.rollout.model import Changed, DeploymentRow, NewRollout, Pushes, RolloutFilter
from gateway.rollout.rollout import (
    SPACE,
    Action,
    Rollout,
    RolloutState,
    admitted_count,
    after,
    share_boundary,
    widened,
)
from gateway.rollout.selector import parse_selector
from gateway.storage import offers
from gateway.storage.audit import performed
from gateway.storage.dialect import pass_turnstile
from gateway.storage.engine import Database
from gateway.storage.pages import by_id
from gateway.storage.selectors import condition
from gateway.storage.tables import artifact, channel, deployment, device, release, rollout, subscription

CANCELLED_AT_ONCE: Final = 5_000  # deployments in one transaction of an abort

_CANCELLABLE: Final = tuple(sorted(state.value for state in CANCELLABLE))


class SQLRolloutStore:
    """A ``RolloutStore`` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_rollout(
        self,
        fleet_key: int,
        new: NewRollout,
        *,
        now_ms: int,
        act: Act[Rollout] | None = None,
    ) -> Rollout | Replay:
        return await self._database.write(
            lambda conn: performed(
                conn, act, now_ms, lambda conn: create_rollout(conn, fleet_key, new, now_ms)
            )
        )

    async def change_rollout(
        self,
        fleet_key: int,
        rollout_id: bytes,
        action: Action,
        *,
        percent: int | None = None,
        version: int | None = None,
        now_ms: int,
        act: Act[Changed] | None = None,
    ) -> Changed | Replay:
        def change(conn: Connection) -> Changed:
            return change_rollout(conn, fleet_key, rollout_id, action, percent, version, now_ms)

        return await self._database.write(lambda conn: performed(conn, act, now_ms, change))

    async def cancel_rest(self, *, now_ms: int) -> int:
        return await self._database.write(lambda conn: cancel_rest(conn, now_ms))

    async def rollout(self, fleet_key: int, rollout_id: bytes) -> Rollout:
        return await self._database.read(lambda conn: rollout_of(conn, fleet_key, rollout_id))

    async def rollouts(
        self,
        fleet_key: int,
        *,
        filter: RolloutFilter | None = None,
        is_newest_first: bool = False,
        after: bytes | None = None,
        limit: int = 100,
    ) -> Sequence[Rollout]:
        return await self._database.read(
            lambda conn: rollouts(conn, fleet_key, filter or RolloutFilter(), is_newest_first, after, limit)
        )

    async def rollout_counts(self) -> Mapping[str, int]:
        return await self._database.read(rollout_counts)

    async def deployments(
        self,
        fleet_key: int,
        *,
        rollout_id: bytes | None = None,
        device_id: str | None = None,
        states: Collection[State] = (),
        is_newest_first: bool = False,
        after: bytes | None = None,
        limit: int = 100,
    ) -> Sequence[DeploymentRow]:
        return await self._database.read(
            lambda conn: deployments(
                conn, fleet_key, rollout_id, device_id, states, is_newest_first, after, limit
            )
        )

    async def deployment(self, fleet_key: int, deployment_id: bytes) -> DeploymentRow:
        return await self._database.read(lambda conn: deployment_row(conn, fleet_key, deployment_id))

    async def concerned(self, device_keys: Sequence[int]) -> Sequence[int]:
        return await self._database.read(lambda conn: offers.concerned(conn, device_keys))

    async def offer(self, device_keys: Sequence[int], *, now_ms: int, limits: UpdateLimits) -> Pushes:
        assert len(device_keys) <= OFFER_LEN_MAX, "the caller batches"
        return await self._database.write(
            lambda conn: offers.offer(conn, device_keys, now_ms=now_ms, limits=limits)
        )

    async def redeliver(
        self, device_key: int, deployment_id: bytes, *, now_ms: int, limits: UpdateLimits
    ) -> Pushes:
        return await self._database.write(
            lambda conn: offers.redeliver(conn, device_key, deployment_id, now_ms=now_ms, limits=limits)
        )

    async def cancelling(self, device_keys: Sequence[int], *, now_ms: int) -> Sequence[tuple[int, bytes]]:
        return await self._database.read(lambda conn: offers.cancelling(conn, device_keys, now_ms=now_ms))

    async def envelope(self, release_id: bytes) -> bytes:
        return await self._database.read(lambda conn: envelope(conn, release_id))


# --- commands -------------------------------------------------------------------------------------------


def create_rollout(conn: Connection, fleet_key: int, new: NewRollout, now_ms: int) -> Rollout:
    """Insert a running rollout with its first boundary."""
    # FOR SHARE: the channel must not be deleted between this look and the commit.
    aimed = conn.execute(
        select(channel)
        .where(channel.c.fleet_id == fleet_key, channel.c.name == new.channel)
        .with_for_update(read=True)
    ).one_or_none()
    if aimed is None:
        raise NotFoundError("no such channel")
    if aimed.kind != "update":
        raise ConflictError("the channel carries alerts, not updates", code="wrong_kind")
    found = _release(conn, fleet_key, new.release_id)
    population = _matching(fleet_key, aimed.id, new.selector)
    conn.execute(
        rollout.insert().values(
            id=new.id,
            fleet_id=fleet_key,
            channel_id=aimed.id,
            release_id=found.id,
            name=new.name or found.name,
            state=RolloutState.RUNNING.value,
            priority=new.priority,
            shift=new.shift,
            selector=new.selector,
            percent=new.percent,
            boundary=_boundary(conn, population, new.percent, new.shift),
            boundary_at=now_ms,
            component=found.component,
            sequence=found.sequence,
            created_at=now_ms,
            updated_at=now_ms,
        )
    )
    return rollout_of(conn, fleet_key, new.id)


def change_rollout(
    conn: Connection,
    fleet_key: int,
    rollout_id: bytes,
    action: Action,
    percent: int | None,
    version: int | None,
    now_ms: int,
) -> Changed:
    """Apply an operator's action under the row's lock."""
    pass_turnstile(conn, is_closing=True)
    row = conn.execute(
        select(rollout).where(rollout.c.id == rollout_id, rollout.c.fleet_id == fleet_key).with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFoundError("no such rollout")
    if version is not None and version != row.version:
        raise ConflictError("the rollout has changed since", code="stale_version")
    state = after(RolloutState(row.state), action)
    changes: dict[str, Any] = {"state": state.value}
    if action is Action.WIDEN:
        assert percent is not None, "widen says how far"
        changes |= _widening(conn, row, percent, now_ms)
    if any(getattr(row, name) != value for name, value in changes.items()):
        changes |= {"updated_at": now_ms, "version": row.version + 1}
        conn.execute(update(rollout).where(rollout.c.id == rollout_id).values(changes))
    cancelled = _abort_deployments(conn, row, now_ms) if state is RolloutState.ABORTED else 0
    return Changed(rollout_of(conn, fleet_key, rollout_id), cancelled)


def cancel_rest(conn: Connection, now_ms: int) -> int:
    """Cancel some deployments that an abort left, in whatever rollout; return how many that were."""
    return _cancel(conn, rollout.c.state == RolloutState.ABORTED.value, now_ms)


def _widening(conn: Connection, row: Any, percent: int, now_ms: int) -> dict[str, Any]:
    if percent < row.percent:
        raise ConflictError(
            f"the rollout is at {row.percent} percent, and a boundary only moves up", code="boundary_moves_up"
        )
    asked = _boundary(conn, _population(row), percent, row.shift)
    boundary = widened(row.boundary, asked)
    moved = {"boundary_at": now_ms} if boundary != row.boundary else {}
    return {"percent": percent, "boundary": boundary, **moved}


def _abort_deployments(conn: Connection, row: Any, now_ms: int) -> int:
    """Cancel what can be, ask for the rest; as many as fit one transaction."""
    if row.state == RolloutState.ABORTED.value:
        return 0  # asked before; ``cancel_rest`` does what that left
    conn.execute(
        update(deployment)
        .where(
            deployment.c.rollout_id == row.id,
            deployment.c.state.in_([State.INSTALLING.value, State.REBOOTING.value]),
        )
        .values(is_cancelling=True, updated_at=now_ms)
    )
    return _cancel(conn, rollout.c.id == row.id, now_ms)


def _cancel(conn: Connection, of: ColumnElement[bool], now_ms: int) -> int:
    ids = (
        select(deployment.c.id)
        .join(rollout, rollout.c.id == deployment.c.rollout_id)
        .where(of, deployment.c.state.in_(_CANCELLABLE))
        .order_by(deployment.c.id)
        .limit(CANCELLED_AT_ONCE)
        .with_for_update(of=deployment)
    )
    found = conn.execute(ids).scalars().all()
    for start in range(0, len(found), 1000):
        conn.execute(
            update(deployment)
            .where(deployment.c.id.in_(found[start : start + 1000]))
            .values(
                state=State.CANCELLED.value,
                is_active=False,
                is_forgotten=False,
                # What was never written to a connection has nobody to tell.
                is_cancelling=deployment.c.sends > 0,
                ended_at=now_ms,
                updated_at=now_ms,
            )
        )
    return len(found)


def _release(conn: Connection, fleet_key: int, release_id: bytes) -> Any:
    """Return the release to roll out, whose image devices can fetch."""
    found = conn.execute(
        select(release.c.id, release.c.name, release.c.component, release.c.sequence, release.c.uri)
        .add_columns(release.c.image_digest, release.c.image_size)
        .where(release.c.id == release_id, release.c.fleet_id == fleet_key)
    ).one_or_none()
    if found is None:
        raise NotFoundError("no such release")
    if found.uri.startswith("/"):
        is_here = conn.execute(
            select(true()).where(
                artifact.c.digest == found.image_digest,
                artifact.c.fleet_id == fleet_key,
                artifact.c.size_bytes == found.image_size,
            )
        ).first()
        if is_here is None:
            raise ConflictError(
                f"devices would fetch the image from this gateway, which has none of SHA-256 "
                f"{found.image_digest.hex()} and {found.image_size} bytes; put the artifact first",
                code="artifact_missing",
            )
    return found


# --- boundaries -----------------------------------------------------------------------------------------


def _matching(fleet_key: int, channel_id: int, selector: str | None) -> Select[Any]:
    """Select the devices that a rollout means now: id and bucket."""
    query = (
        select(device.c.id, device.c.bucket)
        .join(subscription, subscription.c.device_key == device.c.id)
        .where(device.c.fleet_id == fleet_key, device.c.is_enabled, subscription.c.channel_id == channel_id)
    )
    return query if selector is None else query.where(condition(parse_selector(selector)))


def _population(row: Any) -> Any:
    """Select the devices that a rollout means now or meant when it notified them (PROTOCOL §6.3).

    A selector such as ``reported.firmware < "1.4"`` empties itself as the rollout succeeds.
    """
    notified = (
        select(device.c.id, device.c.bucket)
        .join(deployment, deployment.c.device_key == device.c.id)
        .where(deployment.c.rollout_id == row.id)
    )
    return union(_matching(row.fleet_id, row.channel_id, row.selector), notified)


def _boundary(conn: Connection, population: Any, percent: int, shift: int) -> int:
    devices = population.subquery()
    matching = conn.execute(select(func.count()).select_from(devices)).scalar_one()
    count = admitted_count(percent, matching)
    if count is None:
        return share_boundary(percent)
    effective = (devices.c.bucket + shift) % SPACE
    last = conn.execute(select(effective).order_by(effective).limit(1).offset(count - 1)).scalar_one()
    return int(last) + 1


# --- views ----------------------------------------------------------------------------------------------


def rollout_of(conn: Connection, fleet_key: int, rollout_id: bytes) -> Rollout:
    """Return a rollout with its counts and its target."""
    row = conn.execute(
        _rollouts().where(rollout.c.id == rollout_id, rollout.c.fleet_id == fleet_key)
    ).one_or_none()
    if row is None:
        raise NotFoundError("no such rollout")
    target = conn.execute(select(func.count()).select_from(_population(row).subquery())).scalar_one()
    return _view(row, _counts(conn, [rollout_id])[rollout_id], target)


def rollouts(
    conn: Connection,
    fleet_key: int,
    filter: RolloutFilter,
    is_newest_first: bool,
    after: bytes | None,
    limit: int,
) -> list[Rollout]:
    """Return rollouts by id, with their counts."""
    query = _rollouts().where(rollout.c.fleet_id == fleet_key)
    if filter.state is not None:
        query = query.where(rollout.c.state == filter.state.value)
    if filter.channel is not None:
        query = query.where(channel.c.name == filter.channel)
    if filter.release_id is not None:
        query = query.where(rollout.c.release_id == filter.release_id)
    rows = conn.execute(by_id(query, rollout.c.id, is_newest_first, after).limit(limit)).all()
    counts = _counts(conn, [row.id for row in rows])
    return [_view(row, counts[row.id], None) for row in rows]


def rollout_counts(conn: Connection) -> dict[str, int]:
    """Return how many rollouts are in each state."""
    rows = conn.execute(select(rollout.c.state, func.count().label("n")).group_by(rollout.c.state))
    return {row.state: row.n for row in rows}


def deployments(
    conn: Connection,
    fleet_key: int,
    rollout_id: bytes | None,
    device_id: str | None,
    states: Collection[State],
    is_newest_first: bool,
    after: bytes | None,
    limit: int,
) -> list[DeploymentRow]:
    """Return deployments of a rollout, of a device, or of both, by id."""
    query = _deployments(fleet_key)
    if rollout_id is not None:
        if not conn.execute(
            select(true()).where(rollout.c.id == rollout_id, rollout.c.fleet_id == fleet_key)
        ).first():
            raise NotFoundError("no such rollout")
        query = query.where(deployment.c.rollout_id == rollout_id)
    if device_id is not None:
        key = conn.execute(
            select(device.c.id).where(device.c.device_id == device_id, device.c.fleet_id == fleet_key)
        ).scalar_one_or_none()
        if key is None:
            raise NotFoundError("no such device")
        query = query.where(deployment.c.device_key == key)
    if states:
        query = query.where(deployment.c.state.in_([state.value for state in states]))
    query = by_id(query, deployment.c.id, is_newest_first, after)
    return [_deployment(row) for row in conn.execute(query.limit(limit))]


def deployment_row(conn: Connection, fleet_key: int, deployment_id: bytes) -> DeploymentRow:
    """Return one deployment."""
    row = conn.execute(_deployments(fleet_key).where(deployment.c.id == deployment_id)).one_or_none()
    if row is None:
        raise NotFoundError("no such deployment")
    return _deployment(row)


def rollout_rows(
    conn: Connection, fleet_key: int, *conditions: ColumnElement[bool], limit: int
) -> list[Rollout]:
    """Return rollouts without their counts, the newest first."""
    query = _rollouts().where(rollout.c.fleet_id == fleet_key, *conditions)
    return [_view(row, {}, None) for row in conn.execute(query.order_by(rollout.c.id.desc()).limit(limit))]


def deployment_rows(
    conn: Connection, fleet_key: int, *conditions: ColumnElement[bool], limit: int
) -> list[DeploymentRow]:
    """Return deployments, the newest first."""
    query = _deployments(fleet_key).where(*conditions).order_by(deployment.c.id.desc())
    return [_deployment(row) for row in conn.execute(query.limit(limit))]


def envelope(conn: Connection, release_id: bytes) -> bytes:
    """Return a release's envelope."""
    found = conn.execute(select(release.c.envelope).where(release.c.id == release_id)).scalar_one_or_none()
    if found is None:
        raise NotFoundError("no such release")
    return bytes(found)


def _rollouts() -> Select[Any]:
    return select(rollout, channel.c.name.label("channel")).join(
        channel, channel.c.id == rollout.c.channel_id
    )


def _deployments(fleet_key: int) -> Select[Any]:
    return (
        select(deployment, device.c.device_id)
        .join(device, device.c.id == deployment.c.device_key)
        .where(device.c.fleet_id == fleet_key)
    )


def _counts(conn: Connection, rollout_ids: Sequence[bytes]) -> dict[bytes, dict[str, int]]:
    counts: dict[bytes, dict[str, int]] = defaultdict(dict)
    for rollout_id, state, count in conn.execute(
        select(deployment.c.rollout_id, deployment.c.state, func.count())
        .where(deployment.c.rollout_id.in_(rollout_ids))
        .group_by(deployment.c.rollout_id, deployment.c.state)
    ):
        counts[rollout_id][state] = count
    return counts


def _view(row: Any, counts: Mapping[str, int], target_count: int | None) -> Rollout:
    return Rollout(
        id=row.id,
        fleet_key=row.fleet_id,
        channel_id=row.channel_id,
        channel=ChannelName(row.channel),
        release_id=row.release_id,
        name=row.name,
        state=RolloutState(row.state),
        priority=row.priority,
        shift=row.shift,
        selector=row.selector,
        percent=row.percent,
        boundary=row.boundary,
        component=row.component,
        sequence=row.sequence,
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
        counts=counts,
        target_count=target_count,
    )


def _deployment(row: Any) -> DeploymentRow:
    return DeploymentRow(
        id=row.id,
        rollout_id=row.rollout_id,
        release_id=row.release_id,
        device_key=row.device_key,
        device_id=DeviceId(row.device_id),
        component=row.component,
        attempt=row.attempt,
        state=State(row.state),
        progress=row.progress,
        code=row.code,
        detail=row.detail,
        is_cancelling=row.is_cancelling,
        is_inferred=row.is_inferred,
        sends=row.sends,
        notified_at=row.notified_at,
        sent_at=row.sent_at,
        received_at=row.received_at,
        verified_at=row.verified_at,
        ended_at=row.ended_at,
        updated_at=row.updated_at,
    )
