"""What a device has come to, as seen from outside: by its link, its handler and its boots. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, Final

from device_sdk.update.procedure import Step, is_final
from device_sdk.wire.messages import FromDevice, FromGateway, Recorded, Report, Welcome
from firmware_sim.scenario import Expectation
from firmware_sim.trace import Trace

DEPLOYMENTS_KEPT_MAX: Final = 64
LATENCIES_KEPT_MAX: Final = 1_000
REPORTS_KEPT_MAX: Final = 512


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


@dataclass(slots=True)
class Record:
    """One device.

    Attributes:
        alerts: Handled, by the device's own durable count.
        disorders: Alerts that came to the handler twice, or behind a later one.
        latencies_ms: From an alert's issue to the handler's commit, on one clock; the newest are kept.
        welcomes: Connections that the gateway welcomed, by transport.
        power_cuts: How often the power went.
        crash: What ended the device for good; it should be None.
    """

    alerts: int = 0
    disorders: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT_MAX))
    welcomes: Counter[str] = field(default_factory=Counter)
    boots: int = 0
    power_cuts: int = 0
    is_connected: bool = False
    crash: str | None = None
    trace: Trace = field(default_factory=Trace)
    deployments: OrderedDict[bytes, Told] = field(default_factory=OrderedDict)
    _reports: OrderedDict[bytes, tuple[bytes, int]] = field(default_factory=OrderedDict)

    @property
    def last(self) -> Told | None:
        """What was told of the newest deployment."""
        return next(reversed(self.deployments.values()), None)

    @property
    def state(self) -> str:
        """The state of the newest deployment, ``idle`` if there is none."""
        return self.last.state if self.last is not None else "idle"

    def sent(self, message: FromDevice) -> None:
        """The device said ``message``."""
        if not isinstance(message, Report):
            return
        told = self.deployments.get(message.deployment)
        if told is None or message.seq > told.seq:
            self.deployments[message.deployment] = Told(message.seq, message.state, message.code)
        _bound(self.deployments, DEPLOYMENTS_KEPT_MAX)
        self._reports[message.id] = (message.deployment, message.seq)
        _bound(self._reports, REPORTS_KEPT_MAX)

    def received(self, message: FromGateway, transport: str) -> None:
        """The device was told ``message``."""
        match message:
            case Welcome():
                self.welcomes[transport] += 1
            case Recorded():
                deployment, seq = self._reports.get(message.id, (b"", 0))
                told = self.deployments.get(deployment)
                if told is not None and told.seq == seq:
                    told.is_recorded = True
            case _:
                pass

    def unmet(self, expected: Expectation) -> str | None:
        """Return what is missing of ``expected``, None if nothing is."""
        told = self.last
        if self.crash is not None:
            return f"it crashed: {self.crash}"
        if self.disorders:
            return f"{self.disorders} alerts were repeated or out of order"
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


def _bound(kept: OrderedDict[bytes, Any], count_max: int) -> None:
    while len(kept) > count_max:
        kept.popitem(last=False)
