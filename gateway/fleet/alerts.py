"""Publishing alerts: sign, append, and only then tell the hub (PROTOCOL §1.2, §1.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.limits import ALERT_SIZE_MAX
from device_sdk.wire.names import ChannelName, FleetName
from device_sdk.wire.signed import AlertPayload, alert_payload, sign_alert
from device_sdk.wire.signed.alert import parse_alert_payload
from gateway.clock import Clock
from gateway.errors import LimitExceededError, StorageUnavailableError
from gateway.fleet.acts import Act, Replay
from gateway.fleet.log import AlertLog, LogItem, Signed
from gateway.fleet.model import Appended, Draft, Fleet, StoredMessage
from gateway.fleet.store import Seal
from gateway.hub import Channel as HubChannel
from gateway.hub import Hub, device_channel
from gateway.ids import uuid7
from gateway.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class AlertLimits:
    """Bounds on what is published. The configuration's ``[alerts]`` has keys of the same names."""

    ttl_default_s: int | None = None
    ttl_max_s: int = 365 * 24 * 3600


class AppendStore(Protocol):
    """The part of ``FleetStore`` that publishing needs."""

    async def append(
        self,
        fleet_key: int,
        channel: ChannelName,
        drafts: Sequence[Draft],
        *,
        now_ms: int,
        kid: bytes,
        seal: Seal,
        requeues: int | None = None,
        act: Act[Appended] | None = None,
    ) -> Appended | Replay: ...


class AlertSigner:
    """The gateway's alert key: it vouches for each alert at its place in the log (PROTOCOL §7.4)."""

    def __init__(self, key: PrivateKey, metrics: Metrics) -> None:
        self._key = key
        self._metrics = metrics

    @property
    def kid(self) -> bytes:
        return self._key.kid

    def seal(
        self, fleet: FleetName, channel: ChannelName, epoch: int, offset: int, draft: Draft
    ) -> tuple[bytes, bytes]:
        """Return payload and signature of ``draft`` at its place; called within the transaction."""
        payload = alert_payload(
            AlertPayload(
                fleet=fleet,
                channel=channel,
                epoch=epoch,
                offset=offset,
                id=draft.id,
                issued_at=draft.issued_at,
                expires_at=draft.expires_at,
                content_type=draft.content_type,
                data=draft.data,
                key=draft.key,
                original_id=draft.original_id,
            )
        )
        self._metrics.signatures["alert"].inc()
        return payload, sign_alert(payload, self._key, fleet)

    def resign(self, fleet: FleetName, epoch: int, message: StoredMessage) -> Signed:
        """Return ``message`` as it is signed in ``epoch``: as it is stored, unless key or epoch changed.

        An epoch changes when a backup was restored; the stored signature then names no key.
        """
        algorithm = int(self._key.algorithm)
        if message.kid == self._key.kid:
            return Signed(message.payload, message.signature, message.kid, algorithm)
        payload = message.payload
        alert = parse_alert_payload(payload)
        if alert.epoch != epoch:
            payload = alert_payload(replace(alert, epoch=epoch))
        self._metrics.signatures["alert"].inc()
        return Signed(payload, sign_alert(payload, self._key, fleet), self._key.kid, algorithm)


class Alerts:
    """Publish alerts."""

    def __init__(
        self,
        store: AppendStore,
        *,
        hub: Hub,
        log: AlertLog,
        signer: AlertSigner,
        clock: Clock,
        metrics: Metrics,
        limits: AlertLimits,
    ) -> None:
        self._store = store
        self._hub = hub
        self._log = log
        self._signer = signer
        self._clock = clock
        self._metrics = metrics
        self._limits = limits

    async def publish(
        self,
        fleet: Fleet,
        channel: ChannelName,
        *,
        data: bytes,
        content_type: str,
        ttl_s: int | None = None,
        key: str | None = None,
        original_id: bytes | None = None,
        requeues: int | None = None,
        act: Act[Appended] | None = None,
    ) -> Appended | Replay:
        """Append one alert; return once it is committed. Devices that are connected are sent it at once.

        Args:
            ttl_s: Time to live; None: the configuration's default. A device that comes later is told
                ``advance(expired)``.
            key: A newer alert of the channel with the same key supersedes it.
            original_id: Of the alert that this one repeats.
            requeues: The dead letter that it sends again, once (``already_requeued``).

        Raises:
            LimitExceededError: Data or time to live over its bound.
            NotFoundError: No such channel.
            ConflictError: An update channel (``wrong_kind``), or ``idempotency_key_reused``.
            StorageUnavailableError: Whether it was appended is not known; repeat with the same
                Idempotency-Key.
        """
        if len(data) > ALERT_SIZE_MAX:
            raise LimitExceededError("alert", len(data), ALERT_SIZE_MAX)
        ttl_s = self._limits.ttl_default_s if ttl_s is None else ttl_s
        if ttl_s is not None and ttl_s > self._limits.ttl_max_s:
            raise LimitExceededError("ttl_max_s", ttl_s, self._limits.ttl_max_s)
        now_ms = self._clock.now_ms()
        draft = Draft(
            id=uuid7(now_ms),
            content_type=content_type,
            data=data,
            issued_at=now_ms,
            expires_at=None if ttl_s is None else now_ms + ttl_s * 1000,
            key=key,
            original_id=original_id,
        )
        # A client that goes away must not part the commit from the delivery.
        return await asyncio.shield(self._append(fleet, channel, [draft], now_ms, requeues, act))

    async def _append(
        self,
        fleet: Fleet,
        channel: ChannelName,
        drafts: Sequence[Draft],
        now_ms: int,
        requeues: int | None,
        act: Act[Appended] | None,
    ) -> Appended | Replay:
        try:
            appended = await self._store.append(
                fleet.key,
                channel,
                drafts,
                now_ms=now_ms,
                kid=self._signer.kid,
                seal=self._signer.seal,
                requeues=requeues,
                act=act,
            )
        except StorageUnavailableError:
            # It may be committed, and whoever repeats the request is then answered without a new append.
            self._hub.doubt(device_channel(fleet.key, channel))
            raise
        if isinstance(appended, Replay):
            return appended
        found = appended.channel
        items: list[LogItem] = [
            self._log.item(fleet.name, found.name, found.epoch, message) for message in appended.messages
        ]
        self._log.append(found.id, found.epoch, items)
        self._metrics.published.inc(len(items))
        self._hub.deliver(device_channel(fleet.key, found.name), found.epoch, items)
        return appended


class LogReader:
    """What the hub misses, read from the log (``hub.Reader``)."""

    def __init__(self, log: AlertLog) -> None:
        self._log = log

    async def missing(self, channel: HubChannel, first: int, last: int) -> Sequence[LogItem]:
        """Return what there is of the offsets ``first`` to ``last``, in order."""
        found: list[LogItem] = []
        offset = first
        while offset <= last:
            block = await self._log.block(channel.fleet, channel.name, channel.id, channel.epoch, offset)
            upto = min(block.upto, last)
            found += [block.items[at] for at in range(offset, upto + 1) if at in block.items]
            offset = max(upto, block.floor) + 1
        return found

    async def head(self, channel: HubChannel) -> int:
        """Return the last committed offset."""
        return await self._log.head(channel.id, channel.epoch)
