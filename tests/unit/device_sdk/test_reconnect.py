"""When a device comes back (PROTOCOL §4.8, §4.9), and by which way."""

from __future__ import annotations

from random import Random

import pytest

from device_sdk.choice import ChoiceLimits, TransportChoice
from device_sdk.reconnect import Ending, Reconnect
from device_sdk.store import MemoryFlash, StateStore
from device_sdk.wire.close_codes import CloseCode

HOUR = 3_600.0


class Bounds(Random):
    """Notes the bounds it is asked for, and returns the upper one."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.asked.append((a, b))
        return b


def reconnect(flash: MemoryFlash | None = None) -> tuple[Reconnect, Bounds]:
    random = Bounds()
    return Reconnect(StateStore(flash or MemoryFlash()), random), random


LOST = Ending(was_welcomed=True, lasted_s=100.0, close_code=None)
FAILED = Ending()


class TestAbnormalEnd:
    def test_the_first_wait_is_the_fleets_spread_then_full_jitter(self):
        device, random = reconnect()
        device.welcomed(spread_s=40)
        device.ended(LOST)
        for _ in range(14):
            device.ended(FAILED)
        assert random.asked[0] == (0, 40)
        assert [high for _, high in random.asked[1:8]] == [0.5, 1, 2, 4, 8, 16, 20]
        assert all(low == 0 for low, _ in random.asked)
        assert [high for _, high in random.asked[10:14]] == [256, 300, 300, 300], (
            "after 10 failures it is patient"
        )

    def test_a_connection_that_lasted_ends_the_row(self):
        device, random = reconnect()
        device.welcomed(40)
        for _ in range(5):
            device.ended(FAILED)
        device.ended(LOST)
        assert random.asked[-1] == (0, 40)

    def test_a_gateway_that_welcomes_and_drops_is_not_stormed(self):
        device, random = reconnect()
        device.welcomed(0)
        for _ in range(6):
            device.ended(Ending(was_welcomed=True, lasted_s=0.1))
        assert [high for _, high in random.asked] == [0, 0.5, 1, 2, 4, 8]

    def test_what_concerns_this_device_alone_needs_no_spread(self):
        device, random = reconnect()
        device.welcomed(40)
        device.ended(Ending(was_welcomed=True, lasted_s=100.0, is_continuity=True))
        assert random.asked == [(0, 0.5)]

    def test_the_servers_word_wins_within_reason(self):
        device, _ = reconnect()
        assert device.ended(Ending(retry_after_s=17.0)).seconds == 17.0
        assert device.ended(Ending(was_welcomed=True, retry_after_s=0.0)).seconds == 0.0
        assert device.ended(Ending(http_status=503, retry_after_s=1e12)).seconds == 24 * HOUR

    def test_counts_are_kept_on_flash(self):
        flash = MemoryFlash()
        device, _ = reconnect(flash)
        device.welcomed(40)
        for _ in range(4):
            device.ended(FAILED)
        again, random = reconnect(MemoryFlash(flash.files))
        again.first_wait()
        assert random.asked == [(0, 4)]
        again.ended(FAILED)
        again.ended(FAILED)
        assert random.asked[-1] == (0, 8)


class TestStart:
    def test_a_new_device_does_not_wait(self):
        device, random = reconnect()
        assert device.first_wait().seconds == 0.0
        assert random.asked == []

    def test_a_fleet_that_lost_its_power_does_not_return_as_one(self):
        flash = MemoryFlash()
        device, _ = reconnect(flash)
        device.welcomed(40)
        again, random = reconnect(MemoryFlash(flash.files))
        again.first_wait()
        assert random.asked == [(0, 40)]

    def test_after_a_clean_stop_there_is_no_wait(self):
        flash = MemoryFlash()
        device, _ = reconnect(flash)
        device.welcomed(40)
        device.ended(FAILED)
        device.stopped()
        again, _ = reconnect(MemoryFlash(flash.files))
        assert again.first_wait().seconds == 0.0


class TestRefusedCredential:
    @pytest.mark.parametrize(
        "ending",
        [
            Ending(http_status=401),
            Ending(http_status=403, retry_after_s=1.0),
            Ending(close_code=CloseCode.CREDENTIAL_REVOKED),
            Ending(was_welcomed=True, lasted_s=99.0, close_code=4999),
        ],
    )
    def test_it_waits_one_to_two_hours_doubling_to_a_day_for_ever(self, ending):
        device, random = reconnect()
        for _ in range(7):
            assert device.ended(ending).is_refused
        hours = [(low / HOUR, high / HOUR) for low, high in random.asked]
        assert hours == [(1, 2), (2, 4), (4, 8), (8, 16), (12, 24), (12, 24), (12, 24)]

    def test_a_welcome_or_a_restart_starts_anew(self):
        flash = MemoryFlash()
        device, random = reconnect(flash)
        device.ended(Ending(http_status=401))
        device.welcomed(0)
        device.ended(Ending(http_status=401))
        assert random.asked == [(HOUR, 2 * HOUR)] * 2
        again, _ = reconnect(MemoryFlash(flash.files))
        assert again.first_wait().seconds == 0.0

    @pytest.mark.parametrize("code", [CloseCode.REPLACED, CloseCode.ORIGIN_UNAVAILABLE, 4499, 1008])
    def test_the_other_codes_come_back_with_backoff(self, code):
        device, _ = reconnect()
        assert not device.ended(Ending(close_code=code)).is_refused


class TestChoice:
    LIMITS = ChoiceLimits(attempts_max=3, return_s=100, return_max_s=250)

    def choice(self) -> TransportChoice:
        return TransportChoice(("websocket", "longpoll"), self.LIMITS)

    def test_three_failures_in_a_row_change_the_transport(self):
        choice = self.choice()
        for _ in range(2):
            choice.failed(0.0)
        choice.welcomed()
        for _ in range(2):
            choice.failed(0.0)
        assert choice.next(0.0) == "websocket"
        choice.failed(0.0)
        assert choice.next(0.0) == "longpoll"
        assert choice.return_at == 100.0

    def test_it_returns_to_the_preferred_one_less_and_less_often_while_that_fails(self):
        choice = self.choice()
        for _ in range(3):
            choice.failed(0.0)
        choice.next(1.0)
        choice.welcomed()
        returns, now = [], 0.0
        for _ in range(3):
            at = choice.return_at
            assert at is not None
            returns.append(at - now)
            now = at
            assert choice.next(now) == "websocket"
            assert choice.return_at is None
            choice.failed(now)
            assert choice.next(now) == "longpoll"
        assert returns == [100.0, 200.0, 250.0]
        at = choice.return_at
        assert at is not None
        assert choice.next(at) == "websocket"
        choice.welcomed()
        assert choice.return_at is None

    def test_a_failing_second_choice_leads_back_to_the_first(self):
        choice = self.choice()
        for _ in range(6):
            choice.failed(0.0)
        assert choice.next(0.0) == "websocket"

    def test_a_device_with_one_transport_keeps_it(self):
        choice = TransportChoice(("longpoll",), self.LIMITS)
        for _ in range(9):
            choice.failed(0.0)
        assert choice.next(1e9) == "longpoll"
        assert choice.return_at is None
