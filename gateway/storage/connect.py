"""``Connect``: a device said hello. Enrolment, attributes, subscriptions by the origin's word, acks.

After a network's failure thousands of devices come back in a second, so the handler works on all of a flush
at once, and the number of its statements does not depend on how many they are. What the device's hello says
about deployments is judged in ``reports``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, select

from device_sdk.wire.limits import CHANNELS_MAX
from device_sdk.wire.messages import Hello
from device_sdk.wire.names import ChannelName, own_channel
from gateway.errors import ConflictError, CredentialRefusedError, GatewayError, OriginUnavailableError
from gateway.fleet.facts import Connect, Judged
from gateway.fleet.model import Channel, Connected, ConnectedSubscription
from gateway.identity import ChannelKind, ResumedVerdict, Verdict
from gateway.ids import random_uint32
from gateway.storage import offers, reports
from gateway.storage.channels import ensure_channels
from gateway.storage.devices import installed_json, json_text
from gateway.storage.dialect import Columns, execute_rows, move_positions, padded
from gateway.storage.standing import CLOSE_BY_PROOF, standing, subscription_rows
from gateway.storage.subscriptions import add_subscriptions
from gateway.storage.tables import device, fleet, subscription
from gateway.telemetry import SparseLog, logger

UNKNOWN_FLEET_RETRY_S: Final = 30

_log = SparseLog(logger(__name__), interval_s=10.0)


@dataclass(slots=True)
class _Arrival:
    """One device that connects, as far as it is known while the handler goes on."""

    write: Connect | Judged
    fleet: Any  # row: id, name, root_version
    device: Any = None  # row, once found: id, enrolment_id, is_enabled, boot_id, directive_sequence
    subscriptions: list[ConnectedSubscription] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        return self.write.verdict

    @property
    def hello(self) -> Hello:
        assert isinstance(self.write, Connect), "only asked for where one was said"
        return self.write.hello

    @property
    def enrolment_id(self) -> bytes | None:
        """What the device must be enrolled as, since it shows a ticket; None: it may be enrolled now."""
        return self.verdict.enrolment_id if isinstance(self.verdict, ResumedVerdict) else None

    @property
    def is_same(self) -> bool:
        """Whether the device is enrolled as it was when it was given its ticket, if it shows one."""
        expected = self.enrolment_id
        return expected is None or (self.device is not None and self.device.enrolment_id == expected)

    @property
    def key(self) -> int:
        assert self.device is not None, "the device is found or enrolled first"
        key: int = self.device.id
        return key


def connect(connection: Connection, writes: Sequence[Connect]) -> Sequence[Connected | GatewayError]:
    """Return what each device finds, in order. A device that connects twice in a flush does so in turn."""
    results: list[Connected | GatewayError | None] = [None] * len(writes)
    waiting = list(range(len(writes)))
    while waiting:
        turn: dict[tuple[str, str], int] = {}
        later = []
        for index in waiting:
            verdict = writes[index].verdict
            if turn.setdefault((verdict.fleet, verdict.device_id), index) != index:
                later.append(index)
        found = _connect(connection, [writes[index] for index in turn.values()])
        for index, result in zip(turn.values(), found, strict=True):
            results[index] = result
        waiting = later
    return [result for result in results if result is not None]


def _connect(connection: Connection, writes: Sequence[Connect]) -> list[Connected | GatewayError]:
    fleets = _fleets(connection, {write.verdict.fleet for write in writes})
    arrivals = [
        _Arrival(write, fleets[write.verdict.fleet]) for write in writes if write.verdict.fleet in fleets
    ]
    _enrol(connection, arrivals)
    admitted = [one for one in arrivals if one.device is not None and one.is_same and one.device.is_enabled]
    stale = {(one.verdict.fleet, one.verdict.device_id) for one in arrivals if not one.is_same}
    if admitted:
        _update_devices(connection, admitted)
        _stand(connection, admitted, _apply_grants(connection, admitted))
    connected = _connected(connection, admitted)
    keys = {(one.verdict.fleet, one.verdict.device_id): connected[one.key] for one in admitted}
    return [
        keys.get(named) or _refusal(write, is_known=write.verdict.fleet in fleets, is_stale=named in stale)
        for write in writes
        for named in [(write.verdict.fleet, write.verdict.device_id)]
    ]


def judged(connection: Connection, writes: Sequence[Judged]) -> Sequence[None]:
    """Make attributes and subscriptions of connected devices what the origin says now: its last word."""
    latest = {(write.verdict.fleet, write.verdict.device_id): write for write in writes}
    fleets = _fleets(connection, {fleet_name for fleet_name, _ in latest})
    found = [
        _Arrival(write, fleets[fleet_name])
        for (fleet_name, _), write in latest.items()
        if fleet_name in fleets
    ]
    _find_devices(connection, found)
    known = [one for one in found if one.device is not None]
    if known:
        rows = sorted((one.key, json_text(dict(one.verdict.attributes))) for one in known)
        execute_rows(connection, _JUDGED_DEVICE, rows, _JUDGE)
        _apply_grants(connection, known)
    return [None] * len(writes)


def _refusal(write: Connect, *, is_known: bool, is_stale: bool) -> GatewayError:
    if is_stale:
        return ConflictError("the ticket is of an earlier enrolment", code="enrolment_changed")
    if is_known:
        return CredentialRefusedError("the operator disabled the device", code="device_disabled")
    return OriginUnavailableError(
        f"no operator made the fleet {write.verdict.fleet}",
        code="unknown_fleet",
        retry_after_s=UNKNOWN_FLEET_RETRY_S,
    )


# Made once, as those below: what it costs to make a statement is more than what it costs to run it.
_FLEETS: Final = select(fleet.c.id, fleet.c.name, fleet.c.root_version).where(
    fleet.c.name.in_(bindparam("names", expanding=True))
)


def _fleets(connection: Connection, names: set[Any]) -> dict[str, Any]:
    return {row.name: row for row in connection.execute(_FLEETS, {"names": padded(names)})}


# --- the device ---------------------------------------------------------------------------------------------


def _enrol(connection: Connection, arrivals: Sequence[_Arrival]) -> None:
    """Find each device's row, locked; make those that are missing."""
    _find_devices(connection, arrivals)
    new = [one for one in arrivals if one.device is None and one.enrolment_id is None]
    rows = [
        (
            one.fleet.id,
            one.verdict.device_id,
            secrets.token_bytes(16),
            random_uint32(),
            "{}",
            "[]",
            one.write.now_ms,
        )
        for one in new
    ]
    execute_rows(connection, _NEW_DEVICE, rows, _ENROL)
    _find_devices(connection, new)


_DEVICES: Final = (
    select(
        device.c.id,
        device.c.device_id,
        device.c.enrolment_id,
        device.c.is_enabled,
        device.c.boot_id,
        device.c.directive_sequence,
    )
    .where(
        device.c.fleet_id == bindparam("fleet"), device.c.device_id.in_(bindparam("devices", expanding=True))
    )
    .order_by(device.c.id)
    .with_for_update()
)


def _find_devices(connection: Connection, arrivals: Sequence[_Arrival]) -> None:
    of_fleet: dict[int, dict[str, _Arrival]] = {}
    for one in arrivals:
        of_fleet.setdefault(one.fleet.id, {})[one.verdict.device_id] = one
    for fleet_key, by_id in sorted(of_fleet.items()):
        for row in connection.execute(_DEVICES, {"fleet": fleet_key, "devices": padded(by_id)}):
            by_id[row.device_id].device = row


_NEW_DEVICE: Final[Columns] = (
    ("fleet_id", "bigint"),
    ("device_id", "text"),
    ("enrolment_id", "bytea"),
    ("bucket", "bigint"),
    ("empty", "jsonb"),
    ("tags", "jsonb"),
    ("enrolled_at", "bigint"),
)
_ENROL: Final = """
    INSERT INTO device
        (fleet_id, device_id, enrolment_id, bucket, origin, reported, installed, tags, enrolled_at)
    SELECT fleet_id, device_id, enrolment_id, bucket, empty, empty, empty, tags, enrolled_at
    FROM incoming WHERE true
    ON CONFLICT DO NOTHING"""


def _update_devices(connection: Connection, admitted: Sequence[_Arrival]) -> None:
    rows = [
        (
            one.key,
            None if one.enrolment_id is not None else json_text(dict(one.verdict.attributes)),
            json_text(dict(one.hello.attributes)),
            json_text(installed_json(one.hello.installed)),
            one.hello.boot_id,
            one.hello.last_directive,
            one.hello.root_version,
            one.write.now_ms,
        )
        for one in sorted(admitted, key=lambda one: one.key)
    ]
    execute_rows(connection, _SEEN_DEVICE, rows, _SEE)


_SEEN_DEVICE: Final[Columns] = (
    ("id", "bigint"),
    ("origin", "jsonb"),
    ("reported", "jsonb"),
    ("installed", "jsonb"),
    ("boot_id", "bytea"),
    ("last_directive", "bigint"),
    ("root_version", "bigint"),
    ("seen_at", "bigint"),
)
_SEE: Final = """
    UPDATE device AS d SET origin = coalesce(i.origin, d.origin), reported = i.reported,
        installed = i.installed, boot_id = i.boot_id, root_version = i.root_version, last_seen_at = i.seen_at,
        directive_sequence = CASE WHEN d.directive_sequence < i.last_directive
                                  THEN i.last_directive ELSE d.directive_sequence END
    FROM incoming AS i WHERE d.id = i.id"""

_JUDGED_DEVICE: Final[Columns] = (("id", "bigint"), ("origin", "jsonb"))
_JUDGE: Final = "UPDATE device AS d SET origin = i.origin FROM incoming AS i WHERE d.id = i.id"


# --- its channels -------------------------------------------------------------------------------------------


def _apply_grants(connection: Connection, admitted: Sequence[_Arrival]) -> Sequence[Row[Any]]:
    """Make subscriptions what the verdicts say, leaving those that an operator made; return their rows.

    Who resumes has those it had: what the origin said last is here, and a ticket may be from before that.
    """
    have: dict[int, dict[str, Row[Any]]] = {one.key: {} for one in admitted}
    rows = subscription_rows(connection, list(have))
    for row in rows:
        have[row.device_key][row.name] = row
    channels = _missing_channels(connection, admitted, have)
    added: list[tuple[int, Channel, bool, bool]] = []
    by_origin: list[tuple[int, bool]] = []
    ended: list[int] = []
    for one in admitted:
        mine = have[one.key]
        own = own_channel(one.verdict.device_id)
        granted: dict[ChannelName, ChannelKind] = {own: "alert"}
        if one.enrolment_id is None:
            granted |= {grant.name: grant.kind for grant in one.verdict.channels}
        else:
            granted |= {ChannelName(name): row.kind for name, row in mine.items() if row.by_origin}
        kept = 0
        for name, row in mine.items():
            is_granted = granted.get(ChannelName(name)) == row.kind
            if is_granted != row.by_origin and (is_granted or row.by_operator):
                by_origin.append((row.id, is_granted))
            elif row.by_origin and not is_granted:
                ended.append(row.id)
                continue
            kept += 1
        for name, kind in granted.items():
            if name in mine:
                at_kind = mine[name].kind
            else:
                at = channels[one.fleet.id, name]
                at_kind = at.kind
                if at_kind == kind and kept < CHANNELS_MAX:
                    added.append((one.key, at, True, False))
                    kept += 1
                    continue
            if at_kind != kind or name not in mine:
                _skip(one, name, kind, at_kind)
    if ended:
        connection.execute(delete(subscription).where(subscription.c.id.in_(ended)))
    execute_rows(connection, _BY_ORIGIN, sorted(by_origin), _SET_BY_ORIGIN)
    add_subscriptions(connection, sorted(added, key=_new_order), admitted[0].write.now_ms)
    return subscription_rows(connection, list(have)) if added or ended else rows


def _missing_channels(
    connection: Connection, admitted: Sequence[_Arrival], have: Mapping[int, Mapping[str, Row[Any]]]
) -> Mapping[tuple[int, str], Channel]:
    wanted: dict[tuple[int, ChannelName], ChannelKind] = {}
    for one in admitted:
        mine = have[one.key]
        own = own_channel(one.verdict.device_id)
        if own not in mine:
            wanted[one.fleet.id, own] = "alert"
        for grant in one.verdict.channels:
            if grant.name not in mine:
                wanted.setdefault((one.fleet.id, grant.name), grant.kind)
    return ensure_channels(connection, wanted, admitted[0].write.now_ms) if wanted else {}


def _new_order(new: tuple[int, Channel, bool, bool]) -> tuple[int, int]:
    return new[0], new[1].id


def _skip(one: _Arrival, name: str, kind: str, at_kind: str) -> None:
    reason = "too many channels" if kind == at_kind else f"the channel is of kind {at_kind}"
    _log.warning(
        "grant_skipped",
        one.write.now_ms / 1000,
        fleet=one.verdict.fleet,
        device_id=one.verdict.device_id,
        channel=name,
        kind=kind,
        reason=reason,
    )


_BY_ORIGIN: Final[Columns] = (("id", "bigint"), ("is_granted", "boolean"))
_SET_BY_ORIGIN: Final = """
    UPDATE subscription SET by_origin = incoming.is_granted
    FROM incoming WHERE subscription.id = incoming.id"""


# --- its positions ------------------------------------------------------------------------------------------


def _stand(connection: Connection, admitted: Sequence[_Arrival], rows: Sequence[Row[Any]]) -> None:
    """Take acks from the hellos (PROTOCOL §2.3), then see where each device stands."""
    by_key = {one.key: one for one in admitted}
    acks = {}
    for row in rows:
        told = by_key[row.device_key].hello.positions.get(row.name)
        if (
            told is not None
            and row.kind == "alert"
            and told.epoch == row.epoch == row.channel_epoch
            and row.offset < told.offset <= row.head
        ):
            acks[row.id] = (row, told.offset)
    move_positions(
        connection,
        [
            (key, row.device_key, row.channel_id, row.epoch, row.offset + 1, offset, _now(by_key, row))
            for key, (row, offset) in sorted(acks.items())
        ],
    )
    if acks:
        rows = subscription_rows(connection, list(by_key))
    for row, found in zip(rows, standing(connection, rows), strict=True):
        by_key[row.device_key].subscriptions.append(found)
    execute_rows(
        connection, _LEFT_OPEN, sorted((key, one.write.now_ms) for key, one in by_key.items()), _CLOSE_LEFT
    )


def _now(by_key: Mapping[int, _Arrival], row: Row[Any]) -> int:
    return by_key[row.device_key].write.now_ms


_LEFT_OPEN: Final[Columns] = (("device_key", "bigint"), ("at", "bigint"))
# The session that is displaced by this connection, if it lives, closes it again with what it knows.
_CLOSE_LEFT: Final = f"""
    UPDATE live_interval AS v SET closed_at = incoming.at, {CLOSE_BY_PROOF}
    FROM incoming WHERE v.device_key = incoming.device_key AND v.last IS NULL"""


# --- what it is told ----------------------------------------------------------------------------------------


def _connected(connection: Connection, admitted: Sequence[_Arrival]) -> dict[int, Connected]:
    documents = _documents(connection, admitted)
    ended, cancelling = _deployments(connection, admitted)
    results = {}
    for one in admitted:
        assert one.device is not None, "only found devices are admitted"
        results[one.key] = Connected(
            fleet_key=one.fleet.id,
            device_key=one.key,
            enrolment_id=one.device.enrolment_id,
            directive_sequence=max(one.device.directive_sequence, one.hello.last_directive),
            previous_boot_id=one.device.boot_id,
            subscriptions=tuple(one.subscriptions),
            root_version=one.fleet.root_version,
            root_document=(
                documents.get(one.fleet.id) if one.hello.root_version < one.fleet.root_version else None
            ),
            cancelling=tuple(cancelling.get(one.key, ())),
            ended=ended.get(one.key, ()),
        )
    return results


def _documents(connection: Connection, admitted: Sequence[_Arrival]) -> Mapping[int, bytes]:
    """Return the root documents of fleets of which a device here holds an older one."""
    wanted = {one.fleet.id for one in admitted if one.hello.root_version < one.fleet.root_version}
    if not wanted:
        return {}
    query = select(fleet.c.id, fleet.c.root_document).where(fleet.c.id.in_(wanted))
    return {row.id: row.root_document for row in connection.execute(query)}


def _deployments(
    connection: Connection, admitted: Sequence[_Arrival]
) -> tuple[Mapping[int, tuple[bytes, ...]], Mapping[int, list[bytes]]]:
    """Return the deployments that the hellos' evidence ended, and those to cancel, for each device."""
    cancelling: dict[int, list[bytes]] = {}
    if not admitted:
        return {}, cancelling
    now_ms = admitted[0].write.now_ms
    ended = reports.evidence_of(connection, {one.key: one.hello for one in admitted}, now_ms)
    if ended is None:
        return {}, cancelling
    for device_key, deployment_id in offers.cancelling(
        connection, [one.key for one in admitted], now_ms=now_ms
    ):
        cancelling.setdefault(device_key, []).append(deployment_id)
    return ended, cancelling
