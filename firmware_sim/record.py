"""What a device has come to, as seen from outside: by its link, its handler and its boots. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from device_sdk.update.procedure import Step, is_final
from device_sdk.wire.messages import (
    FromDevice,
    FromGateway,
    Nack,
    Recorded,
    Report,
    StatementMessage,
    Welcome,
)
from firmware_sim.genuine import bound
from firmware_sim.meter import Series
from firmware_sim.scenario import Expectation

DEPLOYMENTS_KEPT_MAX: Final = 64
REPORTS_KEPT_MAX: Final = 512
NACKS_KEPT_MAX: Final = 512


@dataclass(slots=True)
class Told:
    """The newest report of one deployment.

    Attributes:
        is_recorded: The gateway said that it has committed it.
    """

    seq: int
    state: str
    code: str | None
    is_recorded: bool = False


class _Sent(NamedTuple):
    """A report that was sent, and when it was last."""

    deployment: bytes
    seq: int
    at_s: float


@dataclass(slots=True)
class Record:
    """One device. What all devices count together goes to ``series``.

    Attributes:
        phase: What it does now, of ``meter.PHASES``.
        alerts: Handled, by the device's own durable count.
        welcomes: Connections that the gateway welcomed, by transport.
        failed: Attempts that it did not, by reason.
        statements: That the gateway signed for it.
        power_cuts: How often the power went.
        crash: What ended the device for good; it should be None.
    """

    series: Series = field(default_factory=Series)
    phase: str = "off"
    alerts: int = 0
    welcomes: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    statements: int = 0
    boots: int = 0
    power_cuts: int = 0
    crash: str | None = None
    deployments: OrderedDict[bytes, Told] = field(default_factory=OrderedDict)
    _reports: OrderedDict[bytes, _Sent] = field(default_factory=OrderedDict)
    _nacks: OrderedDict[Nack, None] = field(default_factory=OrderedDict)
    _connecting_at: float = 0.0

    @property
    def last(self) -> Told | None:
        """What was told of the newest deployment."""
        return next(reversed(self.deployments.values()), None)

    @property
    def state(self) -> str:
        """The state of the newest deployment, ``idle`` if there is none."""
        return self.last.state if self.last is not None else "idle"

    # --- what happens -------------------------------------------------------------------------------------

    def connecting(self, now_s: float) -> None:
        """The device tries to connect."""
        self._connecting_at = now_s

    def connection_failed(self, reason: str) -> None:
        """No connection came about."""
        self.failed[reason] += 1
        self.series.meter.failed[reason] += 1

    def handled(self, latency_ms: float) -> None:
        """The application committed an alert, so long after it was issued."""
        self.alerts += 1
        self.series.meter.alerts += 1
        self.series.meter.latency.add(latency_ms)

    def sent(self, message: FromDevice, now_s: float) -> None:
        """The device said ``message``."""
        match message:
            case Report():
                self._report(message, now_s)
            case Nack() if message not in self._nacks:
                self._nacks[message] = None
                bound(self._nacks, NACKS_KEPT_MAX)
                self.series.meter.refused[message.code] += 1
            case _:
                pass

    def refused(self, code: str) -> None:
        """The device refused something that its gateway never said."""
        self.series.meter.refused[code] += 1

    def _report(self, report: Report, now_s: float) -> None:
        told = self.deployments.get(report.deployment)
        if told is None or report.seq > told.seq:
            self.deployments[report.deployment] = Told(report.seq, report.state, report.code)
            bound(self.deployments, DEPLOYMENTS_KEPT_MAX)
            if report.code is not None and report.state != Step.COMMITTED:
                self.series.meter.refused[report.code] += 1
        self._reports[report.id] = _Sent(report.deployment, report.seq, now_s)
        bound(self._reports, REPORTS_KEPT_MAX)

    def received(self, message: FromGateway, transport: str, now_s: float) -> None:
        """The device was told ``message``."""
        match message:
            case Welcome():
                self.welcomes[transport] += 1
                self.statements += message.statement is not None
                self.series.meter.connected += 1
                self.series.meter.welcome.add((now_s - self._connecting_at) * 1000)
            case StatementMessage():
                self.statements += 1
            case Recorded():
                sent = self._reports.pop(message.id, None)
                if sent is None:
                    return
                self.series.meter.round_trip.add((now_s - sent.at_s) * 1000)
                told = self.deployments.get(sent.deployment)
                if told is not None and told.seq == sent.seq:
                    told.is_recorded = True
            case _:
                pass

    # --- what came of it ----------------------------------------------------------------------------------

    def unmet(self, expected: Expectation) -> str | None:
        """Return what is missing of ``expected``, None if nothing is."""
        if self.crash is not None:
            return f"it crashed: {self.crash}"
        told = self.last
        if expected.states:
            if told is None or told.state not in expected.states:
                return f"its state is {self.state}"
            if not told.is_recorded:
                return f"{told.state} is not recorded"
        if expected.code is not None and (told is None or told.code != expected.code):
            return f"its code is {told.code if told else None}"
        if self.alerts < expected.alerts_min:
            return f"it handled {self.alerts} of {expected.alerts_min} alerts"
        return None

    @property
    def is_refusal(self) -> bool:
        """Whether the newest deployment ended in a refusal or a failure."""
        told = self.last
        if told is None or not is_final(Step(told.state)):
            return False
        return told.state != Step.COMMITTED
