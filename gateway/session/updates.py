"""The updates of a session: asked for, pushed until they are acknowledged, reported on until it is recorded.

Which deployment a device has is decided by ``gateway.rollout``; a session carries it. An update goes out once
its attempt is committed, and again at its own times; a report is answered once it is committed.
"""

from __future__ import annotations

from device_sdk.wire.messages import Cancel, Message, Recorded, Report, Update
from gateway.errors import UnavailableError
from gateway.fleet.facts import DeploymentReceived, Reported
from gateway.identity import Verdict
from gateway.session.conversation import Conversation, State
from gateway.session.ports import Node, UpdateOffer, commit
from gateway.telemetry import logger

_log = logger("session")


class Pending:
    """An update that was sent and not acknowledged."""

    __slots__ = ("deadline", "is_busy", "sends")

    def __init__(self, deadline: float, sends: int) -> None:
        self.deadline = deadline
        self.sends = sends
        self.is_busy = False


class Updates(Conversation):
    """A conversation about deployments.

    Attributes:
        update_channels: Ids of the channels by which rollouts reach the device.
        pending: Updates that were sent and not acknowledged, by deployment.
        wants_offer: A question about updates was left open.
    """

    __slots__ = ("pending", "update_channels", "wants_offer")

    def __init__(self, node: Node, verdict: Verdict, *, is_json: bool, now: float) -> None:
        super().__init__(node, verdict, is_json=is_json, now=now)
        self.update_channels: tuple[int, ...] = ()
        self.pending: dict[bytes, Pending] | None = None
        self.wants_offer = False

    # --- to the device ------------------------------------------------------------------------------------

    def offer_updates(self) -> None:
        """Ask which update this device should get, and push it."""
        if self.update_channels and self.state is State.OPEN:
            self._work(self._offer(), "offer")

    async def _offer(self) -> None:
        self.wants_offer = False
        try:
            offers = await self.node.updates.offer([self.device_key])
        except UnavailableError as error:
            _log.warning("updates not offered", device=self.verdict.device_id, code=error.code)
            self.wants_offer = True  # ``visit`` asks again; nothing else of this session is in doubt
            return
        for offer in offers:
            self.push(offer)

    def push(self, offer: UpdateOffer) -> None:
        """Send an update whose attempt is committed; it is sent again until it is acknowledged."""
        if self.state is not State.OPEN:
            return
        for deployment in offer.superseded:
            self.cancel(deployment)
        sends = offer.attempt
        known = self.pending.get(offer.deployment_id) if self.pending is not None else None
        if known is not None and known.sends >= sends:
            return  # it is on its way: asked for twice, it is found twice
        limits = self.node.limits
        wait = self._wait(sends - 1, limits.update_redeliver_min_s, limits.update_redeliver_max_s)
        if self.pending is None:
            self.pending = {}
        self.pending[offer.deployment_id] = Pending(self.node.clock.monotonic() + wait, sends)
        self.node.metrics.updates_sent.inc()
        if sends > 1:
            self.node.metrics.updates_redelivered.inc()
        self._send_update(
            Update(
                deployment=offer.deployment_id,
                directive=offer.directive,
                manifest=offer.manifest,
                attempt=sends,
                waiting=0,
            )
        )

    def _send_update(self, update: Update) -> None:
        """Write an update, which is sent again until it is acknowledged."""
        self.send(update)

    def cancel(self, deployment: bytes) -> None:
        """Tell the device to stop, if it still can."""
        if self.state is not State.OPEN:
            return
        if self.pending is not None:
            self.pending.pop(deployment, None)
        self.send(Cancel(deployment))

    # --- redelivery ---------------------------------------------------------------------------------------

    def _visit_updates(self, now: float) -> None:
        if self.wants_offer:
            self.offer_updates()
        if self.pending is not None:
            for deployment, pending in list(self.pending.items()):
                if now >= pending.deadline and not pending.is_busy:
                    pending.is_busy = True
                    self._work(self._redeliver_update(deployment, pending), "redeliver")

    async def _redeliver_update(self, deployment: bytes, pending: Pending) -> None:
        try:
            offer = await self.node.updates.redeliver(self.device_key, deployment)
        except UnavailableError as error:
            _log.warning("update not sent again", device=self.verdict.device_id, code=error.code)
            pending.deadline = self.node.clock.monotonic() + self.node.limits.update_redeliver_min_s
            return
        finally:
            pending.is_busy = False
        if self.pending is None or self.pending.get(deployment) is not pending:
            return  # acknowledged meanwhile
        if offer is None:
            self.pending.pop(deployment, None)
        else:
            self.push(offer)

    # --- from the device ----------------------------------------------------------------------------------

    async def _deployment_received(self, deployment: bytes) -> None:
        await commit(
            self.node.writer, DeploymentReceived(self.device_key, deployment, self.node.clock.now_ms())
        )
        if self.pending is not None:
            self.pending.pop(deployment, None)
            if not self.pending:
                self.pending = None

    async def _reported(self, report: Report) -> None:
        answers = await self.recorded(report)
        if self.state is State.OPEN:
            self.send(*answers)

    async def recorded(self, report: Report) -> list[Message]:
        """Commit ``report``; return the answer to it.

        Raises:
            StorageUnavailableError: The device repeats the report.
        """
        answer, cancel, ended = await record(self.node, self.device_key, self.boot_id, report)
        if self.pending is not None:
            self.pending.pop(report.deployment, None)  # who reports on it has it
        if ended:
            self.offer_updates()
        return [answer, *([Cancel(report.deployment)] if cancel else [])]


async def record(node: Node, device_key: int, boot_id: bytes, report: Report) -> tuple[Recorded, bool, bool]:
    """Commit ``report``; return what the device is told, whether to cancel, whether the deployment ended.

    Raises:
        StorageUnavailableError: The device repeats the report.
    """
    outcome = await commit(node.writer, Reported(device_key, report, boot_id, node.clock.now_ms()))
    node.metrics.reports[outcome.status].inc()
    if outcome.entered is not None:
        node.metrics.deployments[outcome.entered.value].inc()
    return Recorded(report.id, outcome.status, outcome.code), outcome.cancel, outcome.ended
