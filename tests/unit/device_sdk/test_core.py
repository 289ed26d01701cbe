"""The device's side of the conversation: what it stores, acknowledges, refuses, and when it breaks off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from device_sdk.core import SEEN_MIN, ContinuityError, CoreLimits, DeviceCore
from device_sdk.inbox import Inbox, InboxLimits
from device_sdk.store import FlashError, MemoryFlash, StateStore
from device_sdk.wire.keys import PrivateKey, PublicKey
from device_sdk.wire.messages import (
    Ack,
    Advance,
    Alert,
    Cancel,
    Error,
    Hello,
    Installed,
    Lost,
    Nack,
    Position,
    Recorded,
    Report,
    Roots,
    StatementMessage,
    Subscriptions,
    Uplink,
    Welcome,
)
from device_sdk.wire.signed import AlertPayload, alert_payload, assemble_alert, sign_alert

KEY = PrivateKey.from_seed(b"a" * 32)
OTHER_KEY = PrivateKey.from_seed(b"b" * 32)
FLEET, DEVICE, EPOCH = "acme", "dev-1", 7
BOOT = b"b" * 16


class FakeTrust:
    """Trust as the update agent has it, with one alert key that a root document ``ROOT`` brings."""

    def __init__(self, *, has_root: bool = True, now_ms: int = 1_000) -> None:
        self.has_root = has_root
        self.time_ms = now_ms
        self.nonce: bytes | None = None
        self.reports: list[Report] = []
        self.told: list[Any] = []
        self.last_directive = 3

    @property
    def root_version(self) -> int:
        return int(self.has_root)

    def installed(self) -> Mapping[str, Installed]:
        return {"main": Installed(4, "1.2", b"d" * 32, True)}

    def needs_nonce(self) -> bytes | None:
        return self.nonce

    def alert_keys(self) -> dict[bytes, PublicKey]:
        return {KEY.kid: KEY.public} if self.has_root else {}

    def now_ms(self) -> int:
        return self.time_ms

    def adopt_roots(self, roots: Sequence[bytes]) -> str | None:
        self.has_root = self.has_root or b"ROOT" in roots
        return None if b"ROOT" in roots else "bad_signature"

    def receive_statement(self, body: bytes, nonce: bytes | None = None) -> str | None:
        self.told.append((body, nonce))
        return None if self.has_root else "unknown_key"

    def cancel(self, deployment: bytes) -> None:
        self.told.append(deployment)

    def pending_reports(self) -> Sequence[Report]:
        return self.reports

    def recorded(self, recorded: Recorded) -> None:
        assert any(report.id == recorded.id for report in self.reports), "the core's own"
        self.reports = [report for report in self.reports if report.id != recorded.id]


class Device:
    """A core on a flash, through connections and crashes."""

    def __init__(
        self,
        flash: MemoryFlash | None = None,
        *,
        trust: FakeTrust | None = None,
        inbox_limits: InboxLimits | None = None,
    ) -> None:
        self.flash = flash or MemoryFlash()
        self.trust = trust or FakeTrust()
        self.store = StateStore(self.flash)
        self.inbox_limits = inbox_limits
        self.inbox = Inbox(self.store, inbox_limits)
        self.core = DeviceCore(
            fleet=FLEET,
            device_id=DEVICE,
            boot_id=BOOT,
            state=self.store,
            inbox=self.inbox,
            trust=self.trust,
            attributes={"model": "tc3"},
            limits=CoreLimits(),
        )

    def crash(self) -> Device:
        return Device(MemoryFlash(self.flash.files), inbox_limits=self.inbox_limits)

    def connect(self, **heads: int) -> Hello:
        hello = self.core.hello()
        self.core.receive(welcome(**heads), 0.0)
        self.core.commit()
        return hello

    def receive(self, *messages: Any, now: float = 0.0) -> None:
        for message in messages:
            self.core.receive(message, now)
        self.core.commit()

    def handed_over(self) -> list[tuple[str, int]]:
        found = []
        while (taken := self.inbox.take(0.0)) is not None:
            found.append((taken[1].channel, taken[1].offset))
            self.inbox.done(taken[0])
        return found


def welcome(statement: bytes | None = None, **heads: int) -> Welcome:
    return Welcome(
        session=b"s" * 16,
        heads={name: Position(EPOCH, head) for name, head in heads.items()},
        heartbeat_s=25,
        spread_s=4,
        server_time=1,
        statement=statement,
    )


def alert(
    offset: int,
    *,
    channel: str = "ops",
    epoch: int = EPOCH,
    key: PrivateKey = KEY,
    id: bytes | None = None,
    signed_offset: int | None = None,
    expires_at: int | None = None,
    size: int = 4,
) -> Alert:
    payload = alert_payload(
        AlertPayload(
            fleet=FLEET,  # type: ignore[arg-type]
            channel=channel,  # type: ignore[arg-type]
            epoch=epoch,
            offset=signed_offset or offset,
            id=id or offset.to_bytes(16, "big"),
            issued_at=1,
            expires_at=expires_at,
            content_type="text/plain",
            data=bytes(size),
        )
    )
    body = assemble_alert(payload, sign_alert(payload, key, FLEET), kid=key.kid, algorithm=int(key.algorithm))
    return Alert(channel, epoch, offset, body)


def ack(**offsets: int) -> Ack:
    return Ack(positions={name: Position(EPOCH, offset) for name, offset in offsets.items()})


class TestHello:
    def test_it_says_who_where_and_what(self):
        device = Device()
        device.trust.nonce = b"n" * 16
        device.connect(ops=9)
        device.receive(alert(9))
        assert device.core.hello() == Hello(
            protocol=1,
            window=32,
            boot_id=BOOT,
            positions={"ops": Position(EPOCH, 9)},
            installed={"main": Installed(4, "1.2", b"d" * 32, True)},
            last_directive=3,
            root_version=1,
            attributes={"model": "tc3"},
            nonce=b"n" * 16,
            fleet=FLEET,
            device=DEVICE,
        )

    def test_positions_survive_a_crash_and_what_was_not_committed_did_not_happen(self):
        device = Device()
        device.connect(ops=9)
        device.receive(alert(5))
        device.core.receive(alert(6), 0.0)
        assert device.crash().core.hello().positions == {"ops": Position(EPOCH, 5)}
        assert device.core.hello().positions == {"ops": Position(EPOCH, 5)}
        device.receive(welcome(ops=9), alert(6))
        assert device.handed_over() == [("ops", 5), ("ops", 6)]

    def test_a_full_inbox_says_window_0(self):
        device = Device(inbox_limits=InboxLimits(alerts_max=2))
        device.connect(ops=9)
        device.receive(alert(1), alert(2))
        assert device.core.hello().window == 0

    def test_a_hello_over_its_bound_is_our_mistake(self):
        device = Device()
        device.core.attributes = {f"a{n}": "x" * 1000 for n in range(20)}
        with pytest.raises(ValueError, match="16 KiB"):
            device.core.hello()


class TestAlerts:
    def test_an_alert_is_stored_and_then_acknowledged(self):
        device = Device()
        device.connect(ops=9)
        device.core.receive(alert(1), 0.0)
        assert len(device.inbox) == 0, "nothing is handed over before it is stored"
        assert device.core.outgoing(0.3) == [ack(ops=1)]
        assert device.crash().handed_over() == [("ops", 1)]

    def test_nothing_is_acknowledged_if_it_could_not_be_stored(self):
        class Failing(MemoryFlash):
            is_worn = False

            def append(self, name: str, data: bytes) -> None:
                raise OSError("worn out")

            def replace(self, name: str, data: bytes) -> None:
                if self.is_worn:
                    raise OSError("worn out")
                super().replace(name, data)

        device = Device(Failing())
        device.flash.is_worn = True
        device.core.hello()
        device.core.receive(alert(1), 0.0)
        with pytest.raises(FlashError):
            device.core.commit()
        with pytest.raises(FlashError):
            device.core.outgoing(1.0)
        assert device.core.hello().positions == {}

    def test_the_first_of_a_channel_says_where_the_subscription_stands(self):
        device = Device()
        device.connect(ops=900)
        device.receive(alert(857), alert(858))
        assert device.handed_over() == [("ops", 857), ("ops", 858)]

    def test_a_duplicate_is_not_stored_and_is_acknowledged_again_at_once(self):
        device = Device()
        device.connect(ops=9)
        device.receive(alert(1), alert(2))
        device.core.outgoing(1.0)
        device.receive(alert(1), now=2.0)
        assert device.core.deadline() == 0.0
        assert device.core.outgoing(2.0) == [ack(ops=2)]
        assert device.handed_over() == [("ops", 1), ("ops", 2)]

    @pytest.mark.parametrize("later", [alert(3), Advance("ops", EPOCH, 3, 5, "expired"), alert(2, epoch=8)])
    def test_a_gap_or_another_epoch_ends_the_connection_and_nothing_is_stored(self, later):
        device = Device()
        device.connect(ops=9)
        device.receive(alert(1))
        with pytest.raises(ContinuityError):
            device.core.receive(later, 0.0)
        assert device.core.hello().positions == {"ops": Position(EPOCH, 1)}
        assert device.handed_over() == [("ops", 1)]

    def test_channels_do_not_disturb_each_other(self):
        device = Device()
        device.connect(ops=9, lab=9)
        device.receive(alert(1), alert(8, channel="lab"), alert(2), alert(9, channel="lab"))
        assert device.core.outgoing(1.0) == [ack(ops=2, lab=9)]
        assert device.handed_over() == [("ops", 1), ("lab", 8), ("ops", 2), ("lab", 9)]

    def test_an_advance_moves_the_position_like_an_alert(self):
        device = Device()
        device.connect(ops=9)
        device.receive(alert(1), Advance("ops", EPOCH, 2, 6, "pruned"), alert(7))
        assert device.core.outgoing(1.0) == [ack(ops=7)]
        device.receive(Advance("ops", EPOCH, 5, 9, "expired"))  # overlaps what is known
        assert device.core.hello().positions == {"ops": Position(EPOCH, 9)}


class TestRefusals:
    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            pytest.param(alert(2, key=OTHER_KEY), "unknown_key", id="wrong key"),
            pytest.param(alert(2, signed_offset=1), "mix_and_match", id="moved"),
            pytest.param(alert(2, expires_at=1_000), "expired", id="freeze"),
            pytest.param(Alert("ops", EPOCH, 2, b"\xff"), "malformed", id="rubbish"),
            pytest.param(
                Alert("ops", EPOCH, 2, alert(2).body[:-1] + bytes([alert(2).body[-1] ^ 1])),
                "bad_signature",
                id="one bit changed",
            ),
        ],
    )
    def test_a_bad_alert_is_nacked_and_the_channel_goes_on(self, bad, code):
        device = Device()
        device.connect(ops=9)
        device.receive(alert(1), bad, alert(3))
        assert device.core.outgoing(0.0) == [Nack("ops", EPOCH, 2, code), ack(ops=3)]
        assert device.handed_over() == [("ops", 1), ("ops", 3)]
        assert device.core.refusals == 1

    def test_an_alert_expires_by_trusted_time_only(self):
        device = Device(trust=FakeTrust(now_ms=0))
        device.connect(ops=9)
        device.receive(alert(1, expires_at=1_000))
        assert device.handed_over() == [("ops", 1)]

    def test_a_nack_is_said_again_after_a_crash_until_a_connection_lasted(self):
        device = Device()
        device.connect(ops=9)
        device.receive(Alert("ops", EPOCH, 1, b"\xff"))
        again = device.crash()
        again.connect(ops=9)
        assert again.core.outgoing(5.0) == [Nack("ops", EPOCH, 1, "malformed")]
        assert again.core.deadline() == 15.0
        assert again.core.outgoing(15.0) == []
        last = again.crash()
        last.connect(ops=9)
        assert last.core.outgoing(30.0) == []


class TestBeforeTheRootDocument:
    def test_alerts_are_held_unacknowledged_and_judged_when_it_comes(self):
        device = Device(trust=FakeTrust(has_root=False))
        assert device.connect(ops=9).root_version == 0
        device.receive(alert(1), alert(2), alert(1))
        assert device.core.is_holding
        assert device.core.outgoing(9.0) == []
        assert device.core.hello().positions == {}
        device.receive(welcome(ops=9), alert(1), alert(2))
        device.receive(Roots((b"ROOT",)))
        assert not device.core.is_holding
        assert device.core.outgoing(9.0) == [ack(ops=2)]
        assert device.handed_over() == [("ops", 1), ("ops", 2)]

    def test_a_forged_root_document_changes_nothing(self):
        device = Device(trust=FakeTrust(has_root=False))
        device.connect(ops=9)
        device.receive(alert(1), Roots((b"FORGED",)))
        assert device.core.is_holding
        assert device.core.refusals == 1
        assert device.core.outgoing(9.0) == []

    def test_more_than_can_be_held_comes_again_on_a_new_connection(self):
        device = Device(trust=FakeTrust(has_root=False))
        device.connect(ops=99)
        device.receive(*(alert(offset) for offset in range(1, 80)))
        with pytest.raises(ContinuityError):
            device.core.receive(Roots((b"ROOT",)), 0.0)
        device.core.commit()
        assert device.core.hello().positions == {"ops": Position(EPOCH, 64)}

    def test_an_advance_behind_held_alerts_is_not_taken_before_them(self):
        device = Device(trust=FakeTrust(has_root=False))
        device.connect(ops=9)
        device.receive(alert(1), Advance("ops", EPOCH, 2, 3, "pruned"))
        with pytest.raises(ContinuityError):
            device.core.receive(Roots((b"ROOT",)), 0.0)

    def test_a_statement_that_came_before_its_key_is_judged_after_it(self):
        device = Device(trust=FakeTrust(has_root=False))
        device.trust.nonce = b"n" * 16
        device.core.hello()
        device.receive(welcome(statement=b"S"), Roots((b"ROOT",)))
        assert device.trust.told == [(b"S", b"n" * 16)] * 2
        assert device.core.refusals == 0

    def test_a_statement_that_nobody_asked_for_is_passed_over(self):
        device = Device()
        device.connect()
        device.receive(StatementMessage(b"S"))
        assert device.trust.told == []

    def test_a_refused_statement_is_counted_once_the_keys_are_known(self):
        device = Device(trust=FakeTrust(has_root=False))
        device.trust.nonce = b"n" * 16
        device.core.hello()
        device.receive(welcome(statement=b"S"), StatementMessage(b"S"))
        assert device.core.refusals == 1


class TestLost:
    def test_the_device_adopts_the_position_and_tells_repeats_by_their_ids(self):
        device = Device()
        device.connect(ops=3)
        device.receive(alert(1), alert(2), alert(3))
        device.receive(Lost("ops", 8, 0, "epoch_changed"))
        repeated = [alert(offset, epoch=8) for offset in (1, 2, 3)]
        device.receive(*repeated, alert(4, epoch=8))
        assert device.handed_over() == [("ops", 1), ("ops", 2), ("ops", 3), ("ops", 4)]
        assert device.core.hello().positions == {"ops": Position(8, 4)}

    def test_the_adopted_position_is_acknowledged_at_once(self):
        device = Device()
        device.connect(ops=3)
        device.receive(Lost("ops", 8, 5, "epoch_changed"))
        assert device.core.outgoing(0.0) == [Ack(positions={"ops": Position(8, 5)})]

    def test_the_last_1024_ids_are_remembered_across_crashes(self):
        device = Device(inbox_limits=InboxLimits(alerts_max=4000, size_max_bytes=4 * 1024 * 1024))
        device.connect(ops=3000)
        total = 1_500
        for offset in range(1, total + 1):
            device.core.receive(alert(offset), 0.0)
        device.core.commit()
        device = device.crash()
        before = len(device.inbox)
        device.connect(ops=3000)
        first_remembered = total - SEEN_MIN + 1
        device.receive(Lost("ops", 8, first_remembered - 1, "epoch_changed"))
        device.receive(*(alert(offset, epoch=8) for offset in range(first_remembered, total + 1)))
        assert len(device.inbox) == before
        device.receive(alert(total + 1, epoch=8))
        assert len(device.inbox) == before + 1


class TestSubscriptions:
    def test_an_added_channel_starts_where_the_gateway_says(self):
        device = Device()
        device.connect(ops=9)
        device.receive(Subscriptions(added={"lab": Position(EPOCH, 40)}))
        device.receive(alert(41, channel="lab"))
        with pytest.raises(ContinuityError):
            device.core.receive(alert(43, channel="lab"), 0.0)

    def test_a_removed_channel_is_forgotten_and_may_start_elsewhere(self):
        device = Device()
        device.connect(ops=9)
        device.receive(alert(1), Subscriptions(removed=("ops", "never-known")))
        assert device.core.outgoing(1.0) == []
        assert device.core.hello().positions == {}
        device.receive(welcome(ops=99), alert(70))
        assert device.handed_over() == [("ops", 1), ("ops", 70)]

    def test_a_channel_that_welcome_does_not_name_is_no_longer_subscribed_to(self):
        device = Device()
        device.connect(ops=9, lab=9)
        device.receive(alert(1), alert(1, channel="lab"))
        device.core.hello()
        device.receive(welcome(lab=9))
        assert device.crash().core.hello().positions == {"lab": Position(EPOCH, 1)}

    def test_ids_of_ended_subscriptions_make_room_for_new_ones(self):
        device = Device()
        for n in range(200):
            device.connect(**{f"c{n}": 1})
            device.receive(alert(1, channel=f"c{n}", id=n.to_bytes(16, "big")))
            device.handed_over()
        assert len(list(device.store.items("position/"))) <= 128
        assert len(list(device.store.items("seen/"))) <= 128

    def test_more_channels_than_the_contract_allows_end_the_connection(self):
        device = Device()
        device.connect(**{f"c{n}": 1 for n in range(129)})
        with pytest.raises(ContinuityError):
            device.receive(*(alert(1, channel=f"c{n}", id=n.to_bytes(16, "big")) for n in range(129)))


class TestAcks:
    def test_one_ack_goes_for_16_alerts(self):
        device = Device()
        device.connect(ops=99)
        device.receive(*(alert(offset) for offset in range(1, 16)))
        assert device.core.outgoing(0.1) == []
        device.receive(alert(16))
        assert device.core.outgoing(0.1) == [ack(ops=16)]

    def test_or_250_ms_after_the_first_of_them(self):
        device = Device()
        device.connect(ops=99)
        device.receive(alert(1), now=10.0)
        device.receive(alert(2), now=10.2)
        assert device.core.deadline() == 10.25
        assert device.core.outgoing(10.24) == []
        assert device.core.outgoing(10.25) == [ack(ops=2)]
        assert device.core.deadline() is None

    def test_at_once_when_half_the_window_is_used(self):
        device = Device(inbox_limits=InboxLimits(alerts_max=8))
        assert device.connect(ops=99).window == 8
        device.receive(*(alert(offset) for offset in range(1, 5)))
        [sent] = device.core.outgoing(0.0)
        assert sent == Ack(positions={"ops": Position(EPOCH, 4)}, window=4)

    def test_at_once_when_the_bytes_under_way_are_many(self):
        device = Device()
        device.connect(ops=99)
        device.receive(alert(1, size=64_000), alert(2, size=64_000), alert(3, size=64_000))
        assert device.core.outgoing(0.0) == [ack(ops=3)]

    def test_a_deployment_is_acknowledged_once(self):
        device = Device()
        device.connect()
        device.core.deployment_received(b"d" * 16)
        device.core.deployment_received(b"d" * 16)
        assert device.core.deadline() == 0.0
        assert device.core.outgoing(0.0) == [Ack(deployment=b"d" * 16)]
        assert device.core.outgoing(0.0) == []


class TestWindow:
    def test_a_full_inbox_closes_the_window_drops_nothing_and_opens_it_again(self):
        device = Device(inbox_limits=InboxLimits(alerts_max=4))
        assert device.connect(ops=99).window == 4
        device.receive(*(alert(offset) for offset in range(1, 5)))
        assert device.core.outgoing(0.0) == [Ack(positions={"ops": Position(EPOCH, 4)}, window=0)]
        device.receive(alert(5))  # was on its way
        assert device.core.outgoing(0.0) == [ack(ops=5)]
        taken = device.inbox.take(0.0)
        assert taken is not None
        device.inbox.done(taken[0])
        assert device.core.outgoing(0.0) == []
        assert device.core.deadline() is None
        assert device.handed_over() == [("ops", offset) for offset in range(2, 6)]
        assert device.core.deadline() == 0.0
        assert device.core.outgoing(0.0) == [Ack(window=4)]

    def test_a_gateway_that_ignores_the_window_is_cut_off_and_nothing_is_lost(self):
        device = Device(inbox_limits=InboxLimits(alerts_max=4))
        device.connect(ops=99)
        device.receive(*(alert(offset) for offset in range(1, 9)))
        with pytest.raises(ContinuityError, match="window"):
            device.core.receive(alert(9), 0.0)
        device.core.commit()
        assert device.core.hello().positions == {"ops": Position(EPOCH, 8)}
        assert len(device.handed_over()) == 8


class TestReports:
    REPORT = Report(b"r" * 16, b"d" * 16, 1, "received")

    def test_a_report_is_repeated_with_doubling_waits_until_it_is_recorded(self):
        device = Device()
        device.connect()
        device.trust.reports = [self.REPORT]
        times = [now for now in range(0, 1_000, 5) if device.core.outgoing(float(now))]
        assert times == [0, 10, 30, 70, 150, 310, 610, 910]
        device.receive(Recorded(b"r" * 16, "recorded"))
        assert device.core.deadline() is None

    def test_a_new_connection_says_it_again_at_once(self):
        device = Device()
        device.connect()
        device.trust.reports = [self.REPORT]
        assert device.core.outgoing(0.0) == [self.REPORT]
        device.connect()
        assert device.core.outgoing(1.0) == [self.REPORT]

    def test_many_reports_go_in_groups(self):
        device = Device()
        device.connect()
        device.trust.reports = [Report(n.to_bytes(16, "big"), b"d" * 16, n, "received") for n in range(50)]
        assert [len(device.core.outgoing(0.0)) for _ in range(3)] == [32, 18, 0]


class TestWhatElseTheGatewaySays:
    def test_a_cancel_reaches_the_update_agent(self):
        device = Device()
        device.connect()
        device.receive(Cancel(b"d" * 16))
        assert device.trust.told == [b"d" * 16]

    def test_a_refused_position_makes_the_device_say_hello_anew(self):
        device = Device()
        device.connect(ops=9)
        device.receive(alert(1))
        device.core.outgoing(1.0)
        with pytest.raises(ContinuityError):
            device.core.receive(Error("bad_position", "ops"), 1.0)

    def test_a_refused_nack_is_forgotten_and_the_connection_goes_on(self):
        device = Device()
        device.connect(ops=9)
        device.receive(Alert("ops", EPOCH, 1, b"\xff"))
        device.core.outgoing(0.0)
        device.receive(Error("bad_position", "ops"))
        again = device.crash()
        again.connect(ops=9)
        assert again.core.outgoing(0.0) == []

    def test_other_errors_are_for_the_log(self):
        device = Device()
        device.connect(ops=9)
        device.receive(Error("unknown_channel", "ops"), Error("bad_position"))

    def test_update_and_goaway_are_the_callers(self):
        from device_sdk.wire.messages import Goaway

        with pytest.raises(AssertionError):
            Device().core.receive(Goaway(4000, 1), 0.0)


class TestUplinks:
    def test_it_is_said_until_it_is_recorded_and_then_never_again(self):
        device = Device()
        device.connect()
        uplink = Uplink(b"u" * 16, "text/plain", b"8.25 bar")
        device.core.uplink(uplink)
        assert device.core.deadline() == 0.0
        assert device.core.outgoing(0.0) == [uplink]
        assert device.core.outgoing(1.0) == []
        again = device.crash()
        again.connect()
        assert again.core.outgoing(0.0) == [uplink]
        again.receive(Recorded(uplink.id, "recorded"))
        again.connect()
        assert again.core.outgoing(0.0) == []

    def test_one_that_is_refused_for_good_is_given_up_and_counted(self):
        device = Device()
        device.connect()
        device.core.uplink(Uplink(b"u" * 16, "text/plain", b""))
        device.core.outgoing(0.0)
        device.receive(Recorded(b"u" * 16, "refused", "uplink_refused"))
        assert (device.core.uplinks.waiting, device.core.refusals) == ([], 1)

    def test_an_error_changes_nothing_and_it_comes_again_later(self):
        device = Device()
        device.connect()
        uplink = Uplink(b"u" * 16, "text/plain", b"")
        device.core.uplink(uplink)
        device.core.outgoing(0.0)
        device.receive(Error("uplink_unavailable", uplink.id.hex()))
        assert device.core.outgoing(29.9) == []
        assert device.core.outgoing(30.0) == [uplink]


def test_the_hello_carries_the_ticket_that_the_transport_shows():
    device = Device()
    assert device.core.hello(b"ticket").ticket == b"ticket"
    assert device.core.hello().ticket is None
