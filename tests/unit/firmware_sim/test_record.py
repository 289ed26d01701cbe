"""What a device has come to is judged by what it told and what the gateway recorded."""

from __future__ import annotations

import pytest

from device_sdk.wire.messages import Recorded, Report, Welcome
from firmware_sim.record import DEPLOYMENTS_KEPT_MAX, Record
from firmware_sim.result import percentile
from firmware_sim.scenario import Expectation

COMMITTED = Expectation(states=("committed",), alerts_min=1)


def report(seq: int, state: str, *, deployment: int = 1, code: str | None = None) -> Report:
    return Report(
        id=bytes([deployment, seq]) * 8, deployment=bytes([deployment] * 16), seq=seq, state=state, code=code
    )


def told(*reports: Report, is_recorded: bool = True) -> Record:
    record = Record()
    for one in reports:
        record.sent(one)
        if is_recorded:
            record.received(Recorded(id=one.id, status="recorded"), "websocket")
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
        record.received(welcome, "longpoll")
        assert record.welcomes == {"longpoll": 1}


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
            (Record(disorders=2), Expectation(), "2 alerts were repeated or out of order"),
        ],
    )
    def test_what_is_missing_is_said(self, record: Record, expected: Expectation, missing: str) -> None:
        assert record.unmet(expected) == missing

    def test_nothing_expected_is_met(self) -> None:
        assert Record().unmet(Expectation()) is None


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([], 50) is None
    assert percentile([4.0], 99) == 4.0
    assert percentile([float(number) for number in range(100)], 99) == 99.0
