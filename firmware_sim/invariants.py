"""What must hold of a device at every moment, whatever happens to it: checked while it runs. Pure.

One ``Invariants`` watches one device from outside: what the gateway truly said (``genuine``), what passed its
link, what its application got, and what its flash holds at each boot. It trusts nothing that the SDK says of
itself where the flash can be asked. A broken invariant names the device, its seed, and the event of its
trace; the run goes on, and its exit status is 1.
"""

from __future__ import annotations

import enum
from array import array
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from device_sdk.update.procedure import TRANSITIONS, Step, is_final
from device_sdk.wire.errors import WireError
from device_sdk.wire.messages import (
    Ack,
    Advance,
    Alert,
    FromDevice,
    FromGateway,
    Hello,
    Installed,
    Lost,
    Nack,
    Position,
    Recorded,
    Report,
    Subscriptions,
    Welcome,
)
from firmware_sim.durable import Floors, signed_map
from firmware_sim.genuine import Genuine, bound
from firmware_sim.trace import Event, Trace

BROKEN_KEPT_MAX: Final = 16
RECENT_LEN: Final = 12
DEPLOYMENTS_KEPT_MAX: Final = 64
REPORTS_KEPT_MAX: Final = 512
IDS_KEPT: Final = 1024
RANGES_KEPT_MAX: Final = 4096
EPOCHS_KEPT_MAX: Final = 4
_REPORTS_SAFE_MAX: Final = 128
"""With more reports waiting than this the SDK may be at its bound, where old ones go."""


class Invariant(enum.StrEnum):
    """What must hold; ``MEANINGS`` says each in a sentence."""

    ALERTS_IN_ORDER = "alerts_in_order"
    ALERTS_ONCE = "alerts_once"
    ACKNOWLEDGED_KEPT = "acknowledged_kept"
    SLOTS_KNOWN = "slots_known"
    FLOORS_NEVER_FALL = "floors_never_fall"
    REPORTS_MONOTONE = "reports_monotone"
    REFUSED_UNTOUCHED = "refused_untouched"
    ONLY_GENUINE = "only_genuine"
    ATTACKS_REFUSED = "attacks_refused"
    SURVIVES = "survives"


MEANINGS: Final[Mapping[Invariant, str]] = {
    Invariant.ALERTS_IN_ORDER: (
        "A channel's alerts reach the application in order, and none is missing that the gateway did not say "
        "will not come and the device did not refuse."
    ),
    Invariant.ALERTS_ONCE: "The application, which commits with each alert, gets each alert once.",
    Invariant.ACKNOWLEDGED_KEPT: (
        "What the device acknowledged is on it after a restart: positions, alerts, deployments, outcomes."
    ),
    Invariant.SLOTS_KNOWN: (
        "The slot that boots holds the factory's image, or one that the operator signed, whole."
    ),
    Invariant.FLOORS_NEVER_FALL: "Root version, directive, time and release floors never go down.",
    Invariant.REPORTS_MONOTONE: (
        "A deployment's reports have rising numbers and go forward through the procedure; an outcome stays."
    ),
    Invariant.REFUSED_UNTOUCHED: (
        "A release that was refused, failed or was rolled back neither runs confirmed nor is a floor."
    ),
    Invariant.ONLY_GENUINE: (
        "Root, directive, floors and what runs come from what the gateway and the operator truly signed."
    ),
    Invariant.ATTACKS_REFUSED: "Nothing that a hostile gateway made up is accepted.",
    Invariant.SURVIVES: "The device's program does not end by a fault of its own.",
}


class Broken(NamedTuple):
    """One invariant that did not hold, once.

    Attributes:
        event: Number of the newest event of the device's trace.
        recent: That one and those before it.
    """

    invariant: Invariant
    device_id: str
    seed: int
    event: int
    at_s: float
    detail: str
    recent: tuple[Event, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "invariant": self.invariant.value,
            "device": self.device_id,
            "seed": self.seed,
            "event": self.event,
            "at_s": round(self.at_s, 3),
            "detail": self.detail,
            "recent": [event.document(self.device_id) for event in self.recent],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """What is on a device when it has booted, before anything is said.

    Attributes:
        inbox: Channel, epoch and offset of the alerts that wait for the application.
        handled: By channel: epoch and offset that the application committed last, and how many it did.
        has_nack: Whether a refusal of an alert waits to be sent.
        jobs: Deployments that are held.
        reports: Ids of the reports that wait to be recorded, and each one's deployment and state.
        image_digest: SHA-256 of what the running slot holds; empty if the factory's image runs.
    """

    inbox: Collection[tuple[str, int, int]] = ()
    handled: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    has_nack: Callable[[str, int, int], bool] = lambda channel, epoch, offset: False
    jobs: Collection[bytes] = ()
    reports: Mapping[bytes, tuple[bytes, str]] = field(default_factory=dict)
    image_digest: bytes = b""


class _Ranges:
    """Offsets, as ranges that neither touch nor overlap, in order."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, last: int) -> None:
        start = bisect_right(self._firsts, first) - 1
        if start < 0 or self._lasts[start] < first - 1:
            start += 1
        end = bisect_right(self._firsts, last + 1)
        if start < end:
            first = min(first, self._firsts[start])
            last = max(last, self._lasts[end - 1])
        self._firsts[start:end] = [first]
        self._lasts[start:end] = [last]
        if len(self._firsts) > RANGES_KEPT_MAX:
            del self._firsts[0], self._lasts[0]

    def __contains__(self, offset: int) -> bool:
        index = bisect_right(self._firsts, offset) - 1
        return index >= 0 and offset <= self._lasts[index]

    def missing(self, first: int, last: int) -> list[int]:
        """Return what of ``first``..``last`` is in no range; at most 1,000 of it."""
        found: list[int] = []
        offset = first
        while offset <= last and len(found) < 1000:
            index = bisect_right(self._firsts, offset) - 1
            if index >= 0 and offset <= self._lasts[index]:
                offset = self._lasts[index] + 1
            else:
                found.append(offset)
                offset += 1
        return found


@dataclass(slots=True)
class _Channel:
    """One channel of a device.

    Attributes:
        handled: Where the application stands, by its own durable word; None before its first alert.
        in_hand: Handed to the application, whose commit may or may not be on flash, and the alert's id.
        acked: What the device acknowledged; None: nothing that still counts.
        rebased: Where the gateway told the device to go on, until the first alert behind it is handled.
        is_new: Subscribed to anew: where it begins is the gateway's to say.
        is_repeated: History may have been repeated: ids are looked at.
        ids: Of the newest alerts handled, hashed.
    """

    handled: Position | None = None
    in_hand: tuple[Position, bytes] | None = None
    acked: Position | None = None
    rebased: Position | None = None
    is_new: bool = False
    is_repeated: bool = False
    ids: array[int] = field(default_factory=lambda: array("q"))
    next_id: int = 0
    _excused: OrderedDict[int, _Ranges] = field(default_factory=OrderedDict)

    def excuse(self, epoch: int, first: int, last: int) -> None:
        """These offsets do not reach the application: passed over, refused, or known."""
        if epoch not in self._excused:
            self._excused[epoch] = _Ranges()
            bound(self._excused, EPOCHS_KEPT_MAX)
        self._excused[epoch].add(first, last)

    def excused(self, epoch: int) -> _Ranges:
        return self._excused.get(epoch) or _Ranges()

    def committed(self, position: Position, id: bytes) -> None:
        self.handled, self.in_hand = position, None
        if len(self.ids) < IDS_KEPT:
            self.ids.append(hash(id))
        else:
            self.ids[self.next_id] = hash(id)
            self.next_id = (self.next_id + 1) % IDS_KEPT


@dataclass(slots=True)
class _Told:
    """What was reported of a deployment last."""

    seq: int
    step: Step


class Invariants:
    """The invariants of one device.

    Attributes:
        broken: The first ``BROKEN_KEPT_MAX`` that did not hold.
        counts: How often each did not.
        checks: How often each was looked at.
    """

    def __init__(self, *, device_id: str, seed: int, trace: Trace, genuine: Genuine) -> None:
        self._device_id = device_id
        self._seed = seed
        self._trace = trace
        self._genuine = genuine
        self._channels: dict[str, _Channel] = {}
        self._floors = Floors()
        self._told: OrderedDict[bytes, _Told] = OrderedDict()
        self._reports: OrderedDict[bytes, tuple[bytes, int, str]] = OrderedDict()
        self._deployments: OrderedDict[bytes, None] = OrderedDict()  # acknowledged
        self._outcomes: OrderedDict[bytes, bytes] = OrderedDict()  # sent and not recorded
        self._committed: set[bytes] = set()  # manifest digests
        self._refused: set[bytes] = set()
        self._factory: bytes | None = None  # manifest digest of what ran first
        self.broken: list[Broken] = []
        self.counts: Counter[Invariant] = Counter()
        self.checks: Counter[Invariant] = Counter()

    def fail(self, invariant: Invariant, detail: str) -> None:
        """Note that ``invariant`` does not hold now."""
        self.counts[invariant] += 1
        self._trace.event("broken", invariant.value, detail)
        if len(self.broken) < BROKEN_KEPT_MAX:
            trace = self._trace
            recent = tuple(trace.recent)[-RECENT_LEN:]
            self.broken.append(
                Broken(invariant, self._device_id, self._seed, trace.number, trace.now_s, detail, recent)
            )

    def check(self, invariant: Invariant, failure: str | None) -> None:
        """Note that ``invariant`` was looked at; ``failure`` says what is wrong, None: nothing."""
        self.checks[invariant] += 1
        if failure is not None:
            self.fail(invariant, failure)

    # --- what passes the link -----------------------------------------------------------------------------

    def hello(self, hello: Hello) -> None:
        """The device opens a connection: positions that it acknowledged are there."""
        self.checks[Invariant.ACKNOWLEDGED_KEPT] += 1
        for name, channel in self._channels.items():
            acked = channel.acked
            if acked is None:
                continue
            position = hello.positions.get(name)
            if position is None:
                self.fail(
                    Invariant.ACKNOWLEDGED_KEPT, f"{name}: acknowledged {acked.offset}, and no position"
                )
            elif position.epoch == acked.epoch and position.offset < acked.offset:
                detail = f"{name}: acknowledged {acked.offset}, and stands at {position.offset}"
                self.fail(Invariant.ACKNOWLEDGED_KEPT, detail)

    def received(self, message: FromGateway) -> None:
        """The device was told ``message``."""
        match message:
            case Alert():
                channel = self._channels.get(message.channel)
                if channel is not None and channel.is_repeated:
                    self._repeated(channel, message)
            case Advance():
                self._channel(message.channel).excuse(message.epoch, message.first, message.last)
            case Lost():
                self._rebase(message.channel, Position(message.epoch, message.offset))
            case Welcome():
                for name in self._channels.keys() - message.heads.keys():
                    self._unsubscribed(name)
            case Subscriptions():
                for name in message.removed:
                    self._unsubscribed(name)
                for name, position in message.added.items():
                    self._rebase(name, position)
            case Recorded():
                self._outcomes.pop(message.id, None)
            case _:
                pass

    def sent(self, message: FromDevice) -> None:
        """The device says ``message``."""
        match message:
            case Ack():
                for name, position in message.positions.items():
                    channel = self._channel(name)
                    acked = channel.acked
                    if acked is None or acked.epoch != position.epoch or acked.offset < position.offset:
                        channel.acked = position
                if message.deployment is not None:
                    self._deployments[message.deployment] = None
                    bound(self._deployments, DEPLOYMENTS_KEPT_MAX)
            case Nack():
                self._channel(message.channel).excuse(message.epoch, message.offset, message.offset)
            case Report():
                self._report(message)
            case _:
                pass

    def _report(self, report: Report) -> None:
        self.checks[Invariant.REPORTS_MONOTONE] += 1
        step = Step(report.state)
        known = self._reports.get(report.id)
        if known is not None:
            if known != (report.deployment, report.seq, report.state):
                self.fail(Invariant.REPORTS_MONOTONE, f"report {report.id.hex()} is repeated as another")
            return
        self._reports[report.id] = (report.deployment, report.seq, report.state)
        bound(self._reports, REPORTS_KEPT_MAX)
        told = self._told.get(report.deployment)
        if told is not None:
            # What is not held has no numbers of its own: each refusal of it is its first report.
            is_refused_again = step is told.step and step in (Step.REJECTED, Step.CANCELLED)
            if report.seq <= told.seq and not is_refused_again:
                detail = f"{report.deployment.hex()}: number {report.seq} after {told.seq}"
                self.fail(Invariant.REPORTS_MONOTONE, detail)
            if step not in _FOLLOWING[told.step]:
                detail = f"{report.deployment.hex()}: {step} after {told.step}"
                self.fail(Invariant.REPORTS_MONOTONE, detail)
        self._told[report.deployment] = _Told(report.seq, step)
        bound(self._told, DEPLOYMENTS_KEPT_MAX)
        if is_final(step):
            self._outcomes[report.id] = report.deployment
            bound(self._outcomes, DEPLOYMENTS_KEPT_MAX)
        release = self._genuine.deployments.get(report.deployment)
        if release is None:
            return
        if step is Step.COMMITTED:
            self._committed.add(release.manifest_digest)
        elif is_final(step):
            self._refused.add(release.manifest_digest)
        else:
            self._refused.discard(release.manifest_digest)  # it is tried again

    # --- what the application gets ------------------------------------------------------------------------

    def handing_over(
        self,
        *,
        channel: str,
        position: Position,
        id: bytes,
        before: Position | None,
        has_nack: Callable[[str, int, int], bool],
    ) -> None:
        """The application gets an alert; ``before`` is where it stands by what it committed itself."""
        self.checks[Invariant.ALERTS_IN_ORDER] += 1
        self.checks[Invariant.ALERTS_ONCE] += 1
        state = self._channel(channel)
        if state.is_repeated and hash(id) in state.ids:
            self.fail(Invariant.ALERTS_ONCE, f"{channel}: {id.hex()} again, at {position.offset}")
        bases: list[Position] = []
        gaps: list[str | None] = []
        for base in (before, state.rebased):
            if base is not None and base.epoch == position.epoch:
                bases.append(base)
                gaps.append(self._gap(channel, state, base, position, has_nack))
        if bases and bases[-1] is state.rebased and gaps[-1] is None:
            state.rebased = None
        if before is not None and not state.is_new and None not in gaps:
            detail = gaps[0] if gaps else f"epoch {position.epoch} after {before.epoch}, and nobody said so"
            is_again = bool(bases) and position.offset <= bases[0].offset
            is_again = is_again and position.offset not in state.excused(position.epoch)
            self.fail(
                Invariant.ALERTS_ONCE if is_again else Invariant.ALERTS_IN_ORDER, f"{channel}: {detail}"
            )
        state.is_new = False
        state.in_hand = (position, id)

    def _gap(
        self,
        name: str,
        channel: _Channel,
        base: Position,
        position: Position,
        has_nack: Callable[[str, int, int], bool],
    ) -> str | None:
        """Return what is wrong with ``position`` coming after ``base``; None: nothing."""
        if position.offset <= base.offset:
            return f"{position.offset} after {base.offset}"
        if position.offset == base.offset + 1:
            return None
        missing = [
            offset
            for offset in channel.excused(position.epoch).missing(base.offset + 1, position.offset - 1)
            if not has_nack(name, position.epoch, offset)
        ]
        return f"{_span(missing)} missing before {position.offset}" if missing else None

    def handled(self, channel: str) -> None:
        """The application has committed the alert that it got last."""
        state = self._channel(channel)
        assert state.in_hand is not None, "handed over before"
        state.committed(*state.in_hand)

    # --- what is on flash ---------------------------------------------------------------------------------

    def booted(self, booted: Booted) -> None:
        """The device has booted: what it acknowledged is there, and what runs is known."""
        self.checks[Invariant.SURVIVES] += 1
        self.checks[Invariant.ACKNOWLEDGED_KEPT] += 1
        for name, channel in self._channels.items():
            self._check_handled(name, channel, booted)
            self._check_inbox(name, channel, booted)
        held = {*booted.jobs, *(deployment for deployment, _ in booted.reports.values())}
        for deployment in self._deployments:
            told = self._told.get(deployment)
            if deployment not in held and (told is None or not is_final(told.step)):
                detail = f"deployment {deployment.hex()} was acknowledged, and is gone"
                self.fail(Invariant.ACKNOWLEDGED_KEPT, detail)
        if len(booted.reports) < _REPORTS_SAFE_MAX:
            for id, deployment in self._outcomes.items():
                if id not in booted.reports:
                    detail = f"the outcome of {deployment.hex()} is not recorded, and is gone"
                    self.fail(Invariant.ACKNOWLEDGED_KEPT, detail)
        self.checks[Invariant.SLOTS_KNOWN] += 1
        if booted.image_digest and not self._genuine.is_image(booted.image_digest):
            self.fail(Invariant.SLOTS_KNOWN, f"the slot that boots holds {booted.image_digest.hex()}")

    def _check_handled(self, name: str, channel: _Channel, booted: Booted) -> None:
        """What the application committed is there; the commit under way when the power went may be."""
        found = booted.handled.get(name)
        stands = None if found is None else Position(found[0], found[1])
        in_hand, channel.in_hand = channel.in_hand, None
        if stands == channel.handled:
            return
        if stands is not None and in_hand is not None and stands == in_hand[0]:
            channel.committed(*in_hand)
            return
        detail = f"{name}: the application committed {channel.handled}, and stands at {stands}"
        self.fail(Invariant.ACKNOWLEDGED_KEPT, detail)

    def _check_inbox(self, name: str, channel: _Channel, booted: Booted) -> None:
        acked, handled = channel.acked, channel.handled
        if acked is None or channel.rebased is not None:
            return
        if handled is None or handled.epoch != acked.epoch:
            return  # where its subscription began is not known
        missing = [
            offset
            for offset in channel.excused(acked.epoch).missing(handled.offset + 1, acked.offset)
            if (name, acked.epoch, offset) not in booted.inbox
            and not booted.has_nack(name, acked.epoch, offset)
        ]
        if missing:
            detail = f"{name}: {_span(missing)} acknowledged, not handled, and gone"
            self.fail(Invariant.ACKNOWLEDGED_KEPT, detail)

    def stands(self, floors: Floors, running: Installed | None) -> None:
        """The device's floors, and what its component runs, are these now."""
        self.checks[Invariant.FLOORS_NEVER_FALL] += 1
        self.checks[Invariant.ONLY_GENUINE] += 1
        self.checks[Invariant.REFUSED_UNTOUCHED] += 1
        for what, now, before in self._pairs(floors):
            if now < before:
                self.fail(Invariant.FLOORS_NEVER_FALL, f"{what} fell from {before} to {now}")
        genuine = self._genuine
        if floors.root_version and floors.root_version not in genuine.root_versions:
            self.fail(Invariant.ONLY_GENUINE, f"root document {floors.root_version} is nobody's")
        if floors.directive and floors.directive not in genuine.directives:
            self.fail(Invariant.ONLY_GENUINE, f"directive {floors.directive} is nobody's")
        for component, (sequence, digest) in floors.releases.items():
            self._check_release(f"the floor of {component}", sequence, digest)
        if self._factory is None and running is not None:
            self._factory = running.digest
        if running is not None and running.digest != self._factory:
            self._check_release("what runs", running.sequence, running.digest, running.is_confirmed)
        self._floors = floors

    def _pairs(self, floors: Floors) -> list[tuple[str, int, int]]:
        before = self._floors
        return [
            ("the root version", floors.root_version, before.root_version),
            ("the directive", floors.directive, before.directive),
            ("the time", floors.time_ms, before.time_ms),
            *(
                (f"the floor of {name}", floors.releases.get(name, (0, b""))[0], sequence)
                for name, (sequence, _) in before.releases.items()
            ),
        ]

    def _check_release(self, what: str, sequence: int, digest: bytes, is_confirmed: bool = True) -> None:
        release = self._genuine.releases.get(digest)
        if release is None or release.sequence != sequence:
            self.fail(Invariant.ONLY_GENUINE, f"{what}, {sequence}, is no release that was offered")
        elif is_confirmed and digest in self._refused - self._committed:
            self.fail(Invariant.REFUSED_UNTOUCHED, f"{what} is release {sequence}, which was refused")

    # --- parts --------------------------------------------------------------------------------------------

    def _channel(self, name: str) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel()
        return channel

    def _rebase(self, name: str, position: Position) -> None:
        """The gateway says where the device goes on."""
        channel = self._channel(name)
        channel.rebased, channel.acked = position, None  # until it says so itself
        channel.is_repeated = True

    def _unsubscribed(self, name: str) -> None:
        """The device has the channel no more; subscribed again, it begins elsewhere."""
        if (channel := self._channels.get(name)) is not None:
            channel.rebased = channel.acked = None
            channel.is_new = True

    def _repeated(self, channel: _Channel, alert: Alert) -> None:
        """After ``lost``, an alert may come that the device knows by its id: it is not handed over again."""
        try:
            id = signed_map(alert.body).get(5)
        except WireError:
            return
        if isinstance(id, bytes) and hash(id) in channel.ids:
            channel.excuse(alert.epoch, alert.offset, alert.offset)


def _span(offsets: list[int]) -> str:
    few = ", ".join(map(str, offsets[:5]))
    return few if len(offsets) <= 5 else f"{few} … ({len(offsets)})"


def _closure() -> dict[Step, frozenset[Step]]:
    """Return, for each step, the steps that may come after it, itself included."""
    following: dict[Step, frozenset[Step]] = {}

    def reach(step: Step) -> frozenset[Step]:
        if step not in following:
            following[step] = frozenset({step}).union(*map(reach, TRANSITIONS[step].values()))
        return following[step]

    for step in Step:
        reach(step)
    return following


_FOLLOWING: Final = _closure()
