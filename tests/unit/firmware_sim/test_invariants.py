"""Each invariant: a device that does right breaks none, and one planted fault is found, with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from device_sdk.wire.messages import (
    Ack,
    Advance,
    Alert,
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
from device_sdk.wire.signed import AlertPayload, alert_payload, assemble_alert
from firmware_sim.durable import Floors
from firmware_sim.genuine import Genuine, Release, Releases
from firmware_sim.invariants import (
    BROKEN_KEPT_MAX,
    IDS_KEPT,
    MEANINGS,
    Booted,
    Invariant,
    Invariants,
    _Ranges,
)
from firmware_sim.trace import Trace

EPOCH = 7
D1, D2 = b"1" * 16, b"2" * 16
OLD = Release(manifest_digest=b"m" * 32, sequence=10, image_digest=b"i" * 32, component="main")
NEW = Release(manifest_digest=b"n" * 32, sequence=11, image_digest=b"j" * 32, component="main")
FACTORY = Installed(0, "", b"", True)


def running(release: Release, *, is_confirmed: bool = True) -> Installed:
    return Installed(release.sequence, "", release.manifest_digest, is_confirmed)


def alert_id(offset: int, salt: str = "") -> bytes:
    return f"{offset:08}{salt:>8}".encode()


def body(offset: int, id: bytes) -> bytes:
    payload = AlertPayload(
        fleet="acme",  # type: ignore[arg-type]
        channel="ops",  # type: ignore[arg-type]
        epoch=EPOCH,
        offset=offset,
        id=id,
        issued_at=1,
        content_type="text/plain",
        data=b"",
    )
    return assemble_alert(alert_payload(payload), bytes(64), kid=bytes(8), algorithm=-19)


class World:
    """A device as its invariants see it: it keeps what it is told, unless a test makes it lose something."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.genuine = Genuine(Releases([]))
        self.invariants = Invariants(device_id="dev-1", seed=42, trace=self.trace, genuine=self.genuine)
        self.stands: Position | None = None
        self.count = 0
        self.inbox: set[tuple[str, int, int]] = set()
        self.nacks: set[tuple[str, int, int]] = set()

    def offer(self, deployment: bytes, release: Release, directive: int = 1) -> None:
        self.genuine.deployments[deployment] = release
        self.genuine.releases[release.manifest_digest] = release
        self.genuine.directives[directive] = None

    def handle(
        self, *offsets: int, epoch: int = EPOCH, salt: str = "", commits: bool = True, id: bytes | None = None
    ) -> None:
        for offset in offsets:
            self.trace.event("handle", offset)
            position = Position(epoch, offset)
            self.invariants.handing_over(
                channel="ops",
                position=position,
                id=id or alert_id(offset, salt),
                before=self.stands,
                has_nack=self.has_nack,
            )
            if commits:
                self.stands, self.count = position, self.count + 1
                self.invariants.handled("ops")

    def has_nack(self, channel: str, epoch: int, offset: int) -> bool:
        return (channel, epoch, offset) in self.nacks

    def ack(self, offset: int) -> None:
        self.invariants.sent(Ack(positions={"ops": Position(EPOCH, offset)}))

    def hello(self, *offsets: int, epoch: int = EPOCH) -> None:
        positions = dict.fromkeys(["ops"] * len(offsets), Position(epoch, max(offsets, default=0)))
        self.invariants.hello(Hello(protocol=1, window=1, boot_id=bytes(16), positions=positions))

    def boot(self, **changes: Any) -> None:
        handled = {"ops": (*self.stands, self.count)} if self.stands is not None else {}
        state: dict[str, Any] = {"inbox": self.inbox, "handled": handled, "has_nack": self.has_nack}
        self.invariants.booted(Booted(**(state | changes)))

    def report(self, deployment: bytes, seq: int, state: str, *, id: int | None = None) -> Report:
        report = Report(
            id=deployment[:8] + (seq if id is None else id).to_bytes(8, "big"),
            deployment=deployment,
            seq=seq,
            state=state,
        )
        self.invariants.sent(report)
        return report

    def broken(self) -> list[Invariant]:
        return [one.invariant for one in self.invariants.broken]


@pytest.fixture
def world() -> World:
    return World()


class TestAlertsInOrder:
    def test_each_after_the_one_before_is_right(self, world: World) -> None:
        world.handle(5, 6, 7)
        assert world.broken() == []

    def test_planted_gap_is_found_with_device_seed_and_event(self, world: World) -> None:
        world.handle(5, 6, 9)
        (broken,) = world.invariants.broken
        assert broken.invariant is Invariant.ALERTS_IN_ORDER
        assert (broken.device_id, broken.seed, broken.event) == ("dev-1", 42, world.trace.number)
        assert broken.detail == "ops: 7, 8 missing before 9"
        assert [event.kind for event in world.trace.recent][-2:] == ["handle", "broken"]

    def test_what_was_passed_over_refused_or_waits_as_a_refusal_is_not_missing(self, world: World) -> None:
        world.handle(1)
        world.invariants.received(Advance("ops", EPOCH, 2, 4, "expired"))
        world.invariants.sent(Nack("ops", EPOCH, 5, "bad_signature"))
        world.nacks.add(("ops", EPOCH, 6))
        world.handle(7)
        assert world.broken() == []

    def test_what_was_passed_over_in_another_epoch_is_missing(self, world: World) -> None:
        world.handle(1)
        world.invariants.received(Advance("ops", EPOCH + 1, 2, 2, "expired"))
        world.handle(3)
        assert world.broken() == [Invariant.ALERTS_IN_ORDER]

    def test_late_alert_that_was_passed_over_is_out_of_order(self, world: World) -> None:
        world.handle(1)
        world.invariants.received(Advance("ops", EPOCH, 2, 2, "superseded"))
        world.handle(3, 2)
        assert world.broken() == [Invariant.ALERTS_IN_ORDER]

    def test_another_epoch_needs_a_word_from_the_gateway(self, world: World) -> None:
        world.handle(5)
        world.handle(6, epoch=EPOCH + 1)
        assert world.broken() == [Invariant.ALERTS_IN_ORDER]

    def test_lost_history_begins_where_the_gateway_says(self, world: World) -> None:
        world.handle(5)
        world.invariants.received(Lost("ops", EPOCH + 1, 2, "epoch"))
        world.handle(6)  # it was in the inbox before
        world.handle(3, 4, epoch=EPOCH + 1, salt="new")
        assert world.broken() == []
        world.handle(9, epoch=EPOCH + 1, salt="new")
        assert world.broken() == [Invariant.ALERTS_IN_ORDER]

    def test_new_subscription_begins_anywhere(self, world: World) -> None:
        world.handle(5)
        world.invariants.received(Subscriptions(removed=("ops",)))
        world.invariants.received(Subscriptions(added={"ops": Position(EPOCH, 20)}))
        world.handle(21)
        world.invariants.received(welcome())
        world.handle(40, 41)
        assert world.broken() == []
        world.handle(50)
        assert world.broken() == [Invariant.ALERTS_IN_ORDER]


def welcome(**heads: Position) -> Welcome:
    return Welcome(session=bytes(16), heads=heads, heartbeat_s=25, spread_s=0, server_time=0)


class TestAlertsOnce:
    def test_planted_repetition_is_found(self, world: World) -> None:
        world.handle(1, 2)
        world.handle(2)
        assert world.broken() == [Invariant.ALERTS_ONCE]

    def test_handed_over_again_before_its_commit_is_right(self, world: World) -> None:
        world.handle(1)
        world.handle(2, commits=False)
        world.handle(2)
        assert world.broken() == []

    def test_commit_that_the_power_cut_kept_counts(self, world: World) -> None:
        world.handle(1)
        world.handle(2, commits=False)
        world.stands, world.count = Position(EPOCH, 2), 2
        world.boot()
        world.handle(3)
        assert world.broken() == []

    def test_same_id_at_another_place_after_lost_history_is_found(self, world: World) -> None:
        world.handle(1, 2)
        world.invariants.received(Lost("ops", EPOCH + 1, 0, "epoch"))
        world.handle(1, epoch=EPOCH + 1, id=alert_id(2))
        assert world.broken() == [Invariant.ALERTS_ONCE]

    def test_known_id_that_is_not_handed_over_is_not_missing(self, world: World) -> None:
        world.handle(1, 2)
        world.invariants.received(Lost("ops", EPOCH, 0, "ahead"))
        for offset in (1, 2):
            world.invariants.received(Alert("ops", EPOCH, offset, body(offset, alert_id(offset))))
        world.invariants.received(Alert("ops", EPOCH, 3, b"not a signed object"))
        world.stands = None
        world.handle(3)
        assert world.broken() == []

    def test_ids_that_are_remembered_are_bounded(self, world: World) -> None:
        world.handle(*range(1, IDS_KEPT + 3))
        world.invariants.received(Lost("ops", EPOCH + 1, 0, "epoch"))
        world.handle(1, epoch=EPOCH + 1, id=alert_id(2))  # the oldest are forgotten
        world.handle(2, epoch=EPOCH + 1, id=alert_id(5))
        assert world.broken() == [Invariant.ALERTS_ONCE]


class TestAcknowledgedKept:
    def test_what_was_acknowledged_and_is_there_is_right(self, world: World) -> None:
        world.handle(1)
        world.ack(3)
        world.invariants.sent(Ack(deployment=D1))
        world.inbox = {("ops", EPOCH, 2), ("ops", EPOCH, 3)}
        world.boot(jobs=[D1])
        world.hello(3)
        assert world.broken() == []

    @pytest.mark.parametrize("stands", [(), (2,)])
    def test_planted_position_that_went_back_is_found(self, world: World, stands: tuple[int, ...]) -> None:
        world.ack(3)
        world.ack(2)  # an older one, repeated: the newest counts
        world.hello(*stands)
        assert world.broken() == [Invariant.ACKNOWLEDGED_KEPT]

    def test_position_that_the_gateway_took_back_is_not_asked_for(self, world: World) -> None:
        world.ack(3)
        world.invariants.received(Lost("ops", EPOCH, 1, "ahead"))
        world.hello(1)
        world.ack(2)
        world.invariants.received(welcome())  # no longer subscribed
        world.hello()
        assert world.broken() == []

    def test_planted_loss_of_an_alert_in_the_inbox_is_found(self, world: World) -> None:
        world.handle(1)
        world.invariants.received(Advance("ops", EPOCH, 2, 2, "expired"))
        world.nacks.add(("ops", EPOCH, 3))
        world.ack(5)
        world.inbox = {("ops", EPOCH, 5)}
        world.boot()
        (broken,) = world.invariants.broken
        assert broken.detail == "ops: 4 acknowledged, not handled, and gone"

    def test_planted_loss_of_the_applications_commit_is_found(self, world: World) -> None:
        world.handle(1, 2)
        world.boot(handled={"ops": (EPOCH, 1, 1)})
        assert world.broken() == [Invariant.ACKNOWLEDGED_KEPT]

    def test_planted_loss_of_a_deployment_is_found(self, world: World) -> None:
        world.invariants.sent(Ack(deployment=D1))
        world.boot(jobs=[D2])
        assert world.broken() == [Invariant.ACKNOWLEDGED_KEPT]

    def test_deployment_whose_outcome_is_told_need_not_be_held(self, world: World) -> None:
        world.invariants.sent(Ack(deployment=D1))
        world.invariants.sent(Ack(deployment=D2))
        world.invariants.received(Recorded(world.report(D1, 3, "failed").id, "recorded"))
        world.boot(reports={b"r" * 16: (D2, "rejected")})
        assert world.broken() == []

    def test_planted_loss_of_an_outcome_is_found(self, world: World) -> None:
        world.report(D1, 3, "failed")
        world.boot()
        assert world.broken() == [Invariant.ACKNOWLEDGED_KEPT]


class TestSlotsKnown:
    def test_factory_and_offered_images_are_known(self, world: World) -> None:
        world.boot(image_digest=b"")
        world.offer(D1, OLD)
        world.boot(image_digest=OLD.image_digest)
        assert world.broken() == []

    def test_planted_foreign_or_torn_image_is_found(self, world: World) -> None:
        world.offer(D1, OLD)
        world.boot(image_digest=b"torn" * 8)
        assert world.broken() == [Invariant.SLOTS_KNOWN]


FLOORS = Floors(root_version=2, directive=5, time_ms=100, releases={"main/c": (10, OLD.manifest_digest)})
LOWER = [
    Floors(root_version=1, directive=5, time_ms=100, releases=FLOORS.releases),
    Floors(root_version=2, directive=4, time_ms=100, releases=FLOORS.releases),
    Floors(root_version=2, directive=5, time_ms=99, releases=FLOORS.releases),
    Floors(root_version=2, directive=5, time_ms=100, releases={}),
]


class TestFloors:
    @pytest.fixture(autouse=True)
    def offered(self, world: World) -> None:
        world.offer(D1, OLD, directive=5)
        world.genuine.directives[4] = None
        for version in (1, 2):
            world.genuine.root_versions[version] = None

    def test_what_rises_to_what_was_said_is_right(self, world: World) -> None:
        world.invariants.stands(Floors(), FACTORY)
        world.invariants.stands(FLOORS, running(OLD))
        world.invariants.stands(FLOORS, None)
        assert world.broken() == []

    @pytest.mark.parametrize("lower", LOWER)
    def test_planted_fall_of_each_is_found(self, world: World, lower: Floors) -> None:
        world.invariants.stands(FLOORS, FACTORY)
        world.invariants.stands(lower, FACTORY)
        assert world.broken() == [Invariant.FLOORS_NEVER_FALL]

    @pytest.mark.parametrize(
        ("floors", "runs"),
        [
            (Floors(root_version=3), FACTORY),
            (Floors(directive=9), FACTORY),
            (Floors(releases={"main/c": (12, b"x" * 32)}), FACTORY),
            (Floors(releases={"main/c": (12, OLD.manifest_digest)}), FACTORY),
            (Floors(), running(NEW)),
            (Floors(), Installed(11, "", OLD.manifest_digest, True)),
        ],
    )
    def test_planted_state_that_nobody_signed_is_found(
        self, world: World, floors: Floors, runs: Installed
    ) -> None:
        world.invariants.stands(Floors(), FACTORY)
        world.invariants.stands(floors, runs)
        assert world.broken() == [Invariant.ONLY_GENUINE]

    @pytest.mark.parametrize("end", ["rolled_back", "failed", "rejected"])
    def test_planted_release_that_runs_though_it_was_refused_is_found(self, world: World, end: str) -> None:
        world.invariants.stands(Floors(), FACTORY)
        world.report(D1, 4, end)
        world.invariants.stands(Floors(), running(OLD, is_confirmed=False))  # still on trial
        assert world.broken() == []
        world.invariants.stands(Floors(), running(OLD))
        assert world.broken() == [Invariant.REFUSED_UNTOUCHED]

    def test_planted_floor_of_a_refused_release_is_found(self, world: World) -> None:
        world.report(D1, 4, "rolled_back")
        world.invariants.stands(Floors(releases=FLOORS.releases), FACTORY)
        assert world.broken() == [Invariant.REFUSED_UNTOUCHED]

    def test_release_that_works_the_second_time_may_run(self, world: World) -> None:
        world.invariants.stands(Floors(), FACTORY)
        world.report(D1, 4, "rolled_back")
        world.offer(D2, OLD)
        world.report(D2, 1, "verified")
        world.invariants.stands(Floors(), running(OLD))  # confirmed, and not yet told
        world.report(D2, 5, "committed")
        world.invariants.stands(FLOORS, running(OLD))
        assert world.broken() == []


class TestReportsMonotone:
    def test_forward_with_gaps_and_repetitions_is_right(self, world: World) -> None:
        world.report(D1, 1, "verified")
        world.report(D1, 3, "installing")
        world.report(D1, 1, "verified")
        world.report(D1, 4, "installing")  # a note that moves nothing
        world.report(D1, 5, "committed")
        world.report(D1, 9, "committed")
        assert world.broken() == []

    @pytest.mark.parametrize(
        "plant",
        [
            lambda world: world.report(D1, 2, "downloading"),
            lambda world: world.report(D1, 3, "installing", id=99),
            lambda world: world.report(D1, 4, "verified"),
            lambda world: world.report(D1, 4, "rejected"),
            lambda world: world.report(D1, 3, "rebooting", id=3),
        ],
        ids=["older_number", "same_number", "backwards", "not_from_there", "other_content"],
    )
    def test_planted_report_is_found(self, world: World, plant: Callable[[World], Report]) -> None:
        world.report(D1, 3, "installing")
        plant(world)
        assert Invariant.REPORTS_MONOTONE in world.broken()

    def test_planted_second_outcome_is_found(self, world: World) -> None:
        world.report(D1, 5, "rolled_back")
        world.report(D1, 6, "committed")
        assert world.broken() == [Invariant.REPORTS_MONOTONE]

    def test_what_is_not_held_is_refused_by_the_same_number_again(self, world: World) -> None:
        world.report(D1, 1, "rejected", id=1)
        world.report(D1, 1, "rejected", id=2)
        assert world.broken() == []


class TestAll:
    def test_planted_crash_and_accepted_attack_are_found(self, world: World) -> None:
        world.invariants.check(Invariant.ATTACKS_REFUSED, None)
        assert world.broken() == []
        world.invariants.check(Invariant.ATTACKS_REFUSED, "it was taken")
        world.invariants.fail(Invariant.SURVIVES, "AssertionError")
        assert world.broken() == [Invariant.ATTACKS_REFUSED, Invariant.SURVIVES]
        assert world.invariants.checks[Invariant.ATTACKS_REFUSED] == 2

    def test_all_are_counted_and_the_first_are_kept(self, world: World) -> None:
        for number in range(50):
            world.invariants.fail(Invariant.SURVIVES, str(number))
        assert world.invariants.counts == {Invariant.SURVIVES: 50}
        assert len(world.invariants.broken) == BROKEN_KEPT_MAX
        document = world.invariants.broken[0].document()
        assert [(event["event"], event["kind"]) for event in document.pop("recent")] == [(1, "broken")]
        assert document == {
            "invariant": "survives",
            "device": "dev-1",
            "seed": 42,
            "event": 1,
            "at_s": 0.0,
            "detail": "0",
        }

    def test_each_has_a_meaning(self) -> None:
        assert MEANINGS.keys() == set(Invariant)


class TestRanges:
    def test_ranges_join_and_say_what_is_missing(self) -> None:
        ranges = _Ranges()
        for first, last in ((5, 6), (1, 2), (9, 9), (3, 3), (20, 30), (8, 25)):
            ranges.add(first, last)
        assert ranges.missing(1, 33) == [4, 7, 31, 32, 33]
        assert [offset for offset in range(34) if offset in ranges] == [1, 2, 3, 5, 6, *range(8, 31)]
        assert ranges.missing(4, 3) == []

    def test_any_order_has_the_same_ranges(self) -> None:
        from random import Random

        for seed in range(50):
            random = Random(seed)
            ranges, told = _Ranges(), set()
            for _ in range(20):
                first = random.randrange(60)
                last = first + random.randrange(6)
                ranges.add(first, last)
                told |= set(range(first, last + 1))
            assert ranges.missing(0, 70) == sorted(set(range(71)) - told)
