"""What a device has come to is judged by what it told and what the gateway recorded."""

from __future__ import annotations

import pytest

from device_sdk.wire.messages import Nack, Recorded, Report, StatementMessage, Welcome
from firmware_sim.record import DEPLOYMENTS_KEPT_MAX, Record
from firmware_sim.scenario import Expectation

COMMITTED = Expectation(states=("committed",), alerts_min=1)


def report(seq: int, state: str, *, deployment: int = 1, code: str | None = None) -> Report:
    return Report(
        id=bytes([deployment, seq]) * 8, deployment=bytes([deployment] * 16), seq=seq, state=state, code=code
    )


def told(*reports: Report, is_recorded: bool = True) -> Record:
    record = Record()
    for one in reports:
        record.sent(one, 0.0)
        if is_recorded:
            record.received(Recorded(id=one.id, status="recorded"), "websocket", 0.25)
    return record


class TestState:
    def test_newest_report_counts_in_whatever_order_they_go(self) -> None:
        record = told(report(1, "verified"), report(3, "committed"), report(2, "installing"))
        assert record.state == "committed"
        assert not record.is_refusal

    def test_newest_deployment_counts(self) -> None:
        record = told(report(5, "committed"), report(1, "rejected", deployment=2, code="rollback"))
        assert (record.state, record.last.code if record.last else None) == ("rejected", "rollback")
        assert record.is_refusal

    def test_without_a_deployment_a_device_is_idle(self) -> None:
        assert Record().state == "idle"
        assert not Record().is_refusal
        assert not told(report(1, "downloading")).is_refusal

    def test_what_is_kept_is_bounded(self) -> None:
        record = told(*[report(1, "received", deployment=number) for number in range(200)])
        assert len(record.deployments) == DEPLOYMENTS_KEPT_MAX

    def test_welcomes_are_counted_by_transport(self) -> None:
        record = Record()
        welcome = Welcome(session=bytes(16), heads={}, heartbeat_s=25, spread_s=0, server_time=0)
        record.connecting(1.0)
        record.received(welcome, "longpoll", 1.5)
        assert record.welcomes == {"longpoll": 1}
        assert record.series.meter.connected == 1
        assert record.series.meter.welcome.percentile(50) == pytest.approx(500, rel=0.02)


class TestMeter:
    def test_round_trip_is_from_the_last_sending_to_recorded(self) -> None:
        record = told(report(1, "verified"))
        assert record.series.meter.round_trip.count == 1
        assert record.series.meter.round_trip.percentile(50) == pytest.approx(250, rel=0.02)
        record.received(Recorded(id=report(1, "verified").id, status="duplicate"), "websocket", 9.0)
        assert record.series.meter.round_trip.count == 1

    def test_refusals_count_once_however_often_they_are_sent(self) -> None:
        record = Record()
        nack = Nack("ops", 1, 2, "bad_signature")
        for _ in range(3):
            record.sent(nack, 0.0)
            record.sent(report(2, "rejected", code="rollback"), 0.0)
        record.sent(report(3, "committed", deployment=2, code="too_late"), 0.0)
        assert record.series.meter.refused == {"bad_signature": 1, "rollback": 1}

    def test_failed_connections_and_statements_are_counted(self) -> None:
        record = Record()
        record.connection_failed("503")
        record.received(StatementMessage(b"signed"), "websocket", 0.0)
        assert (record.failed, record.series.meter.failed, record.statements) == ({"503": 1}, {"503": 1}, 1)


class TestExpectation:
    def test_end_that_is_recorded_and_alerts_are_enough(self) -> None:
        record = told(report(9, "committed"))
        record.alerts = 1
        assert record.unmet(COMMITTED) is None

    @pytest.mark.parametrize(
        ("record", "expected", "missing"),
        [
            (Record(), COMMITTED, "its state is idle"),
            (told(report(9, "committed"), is_recorded=False), COMMITTED, "committed is not recorded"),
            (told(report(9, "failed")), COMMITTED, "its state is failed"),
            (told(report(9, "committed")), COMMITTED, "it handled 0 of 1 alerts"),
            (
                told(report(9, "rejected", code="expired")),
                Expectation(code="rollback"),
                "its code is expired",
            ),
            (Record(), Expectation(code="rollback"), "its code is None"),
            (Record(crash="AssertionError: x"), Expectation(), "it crashed: AssertionError: x"),
        ],
    )
    def test_what_is_missing_is_said(self, record: Record, expected: Expectation, missing: str) -> None:
        assert record.unmet(expected) == missing

    def test_nothing_expected_is_met(self) -> None:
        assert Record().unmet(Expectation()) is None
