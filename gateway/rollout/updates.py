"""What sessions ask for: the update a device should have, signed when it is sent.

The store decides and commits (``store``); here the directive is signed over what was committed, and joined
to its manifest. The order is the point: the sequence is durable before anything is signed with it
(PROTOCOL §7.2), the attempt before it is sent (§3.3).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.names import DeviceId, FleetName
from device_sdk.wire.signed import Directive, Statement, sign_directive, sign_statement
from gateway.clock import Clock
from gateway.rollout.limits import OFFER_LEN_MAX, UpdateLimits
from gateway.rollout.model import Offer, Push, Pushes
from gateway.rollout.store import RolloutStore
from gateway.telemetry import Metrics

_ENVELOPES_MAX: Final = 64  # kept in memory, at most 8 MiB; the oldest used goes first
_SIGNED_AT_ONCE: Final = 16  # about 1 ms of the loop's time


class Updates:
    """Offer and redeliver deployments, sign directives and statements.

    Args:
        directive_key, statement_key: The gateway's online keys.
        limits: Lives and attempts.
    """

    def __init__(
        self,
        store: RolloutStore,
        *,
        directive_key: PrivateKey,
        statement_key: PrivateKey,
        clock: Clock,
        metrics: Metrics,
        limits: UpdateLimits | None = None,
    ) -> None:
        self._store = store
        self._directive_key = directive_key
        self._statement_key = statement_key
        self._clock = clock
        self._metrics = metrics
        self._limits = limits or UpdateLimits()
        self._envelopes: OrderedDict[bytes, bytes] = OrderedDict()

    async def offer(self, device_keys: Sequence[int]) -> Sequence[Offer]:
        """Return what these devices are to be sent, at most one deployment for each component.

        Missing deployments are created in one transaction. A deployment that was pushed before and not
        acknowledged is among them, under the same attempt unless the device has booted since.

        Args:
            device_keys: At most ``OFFER_LEN_MAX``, each connected here.

        Raises:
            StorageUnavailableError: Nothing may be sent.
        """
        assert len(device_keys) <= OFFER_LEN_MAX, "the caller batches"
        # Most devices that come back have nothing to do: they must not take locks to learn that.
        concerned = await self._store.concerned(device_keys)
        if not concerned:
            return ()
        return await self._signed(
            await self._store.offer(concerned, now_ms=self._clock.now_ms(), limits=self._limits)
        )

    async def redeliver(self, device_key: int, deployment_id: bytes) -> Offer | None:
        """Return the deployment for one more attempt, or None if it is not to be sent any more.

        Its rollout is looked at again, the attempt is durable, and the directive is signed anew if less than
        half of its life is left (PROTOCOL §7.3). With its attempts spent it is ``timed_out``.

        Raises:
            StorageUnavailableError: Nothing may be sent.
        """
        offers = await self._signed(
            await self._store.redeliver(
                device_key, deployment_id, now_ms=self._clock.now_ms(), limits=self._limits
            )
        )
        return offers[0] if offers else None

    async def cancelling(self, device_keys: Sequence[int]) -> Sequence[tuple[int, bytes]]:
        """Return (device, deployment) for what these devices are to be told to cancel.

        Raises:
            StorageUnavailableError: As the store has it.
        """
        return await self._store.cancelling(device_keys, now_ms=self._clock.now_ms())

    def statement(
        self,
        fleet: FleetName,
        device: DeviceId,
        *,
        nonce: bytes,
        latest_directive: int,
        root_version: int,
    ) -> bytes:
        """Return a statement, COSE_Sign1, that echoes ``nonce`` (PROTOCOL §7.5).

        Args:
            latest_directive, root_version: As the device's hello found them (``fleet.Connected``).
        """
        now_ms = self._clock.now_ms()
        self._metrics.signatures["statement"].inc()
        return sign_statement(
            Statement(
                fleet=fleet,
                device=device,
                nonce=nonce,
                latest_directive=latest_directive,
                root_version=root_version,
                time=now_ms,
                expires_at=now_ms + self._limits.statement_ttl_s * 1000,
            ),
            self._statement_key,
        )

    async def _signed(self, found: Pushes) -> list[Offer]:
        for state in found.states:
            self._metrics.deployments[state.value].inc()
        offers = []
        for index, push in enumerate(found.pushes):
            if index % _SIGNED_AT_ONCE == _SIGNED_AT_ONCE - 1:
                await asyncio.sleep(0)  # other devices are waiting for this loop
            offers.append(
                Offer(
                    device_key=push.device_key,
                    deployment_id=push.deployment_id,
                    component=push.component,
                    directive=self._sign(push),
                    manifest=await self._envelope(push.release_id),
                    attempt=push.attempt,
                    superseded=push.superseded,
                )
            )
        return offers

    def _sign(self, push: Push) -> bytes:
        self._metrics.signatures["directive"].inc()
        return sign_directive(
            Directive(
                fleet=push.fleet,
                device=push.device_id,
                enrolment=push.enrolment_id,
                deployment=push.deployment_id,
                manifest_digest=push.manifest_digest,
                sequence=push.directive_sequence,
                issued_at=push.issued_at,
                expires_at=push.expires_at,
                install_by=push.install_by,
                component=push.component,
            ),
            self._directive_key,
        )

    async def _envelope(self, release_id: bytes) -> bytes:
        envelope = self._envelopes.get(release_id)
        if envelope is None:
            envelope = self._envelopes[release_id] = await self._store.envelope(release_id)
            while len(self._envelopes) > _ENVELOPES_MAX:
                self._envelopes.popitem(last=False)
        self._envelopes.move_to_end(release_id)
        return envelope
