"""A node takes so many connections a second, ticket holders first, and tells the others when to come."""

from __future__ import annotations

import pytest

from gateway.edge.device.accept import AcceptBucket, AcceptLane, AcceptLimits

TICKET, STRANGER = AcceptLane.TICKET, AcceptLane.STRANGER


def bucket(rate: float = 100.0, most_s: float = 300.0) -> AcceptBucket:
    return AcceptBucket(AcceptLimits(accept_rate_per_s=rate, accept_retry_max_s=most_s), 0.0)


def taken(of: AcceptBucket, lane: AcceptLane, count: int, now: float) -> int:
    return sum(of.take(lane, now, jitter=0.5) is None for _ in range(count))


class TestRate:
    def test_a_full_bucket_takes_a_seconds_worth_of_ticket_holders_at_once(self):
        assert taken(bucket(), TICKET, 500, 0.0) == 100

    def test_over_time_it_takes_the_rate_and_saves_no_more_than_a_second(self):
        node = bucket()
        taken(node, TICKET, 500, 0.0)
        assert [taken(node, TICKET, 500, now) for now in (0.1, 0.2, 10.0)] == [10, 10, 100]

    @pytest.mark.parametrize("lane", AcceptLane)
    def test_each_lane_alone_gets_the_whole_rate(self, lane):
        node = bucket()
        taken(node, lane, 500, 0.0)
        assert sum(taken(node, lane, 50, 1 + step / 10) for step in range(100)) == pytest.approx(
            1000, abs=110
        )

    def test_a_node_that_takes_one_a_second_takes_a_stranger_too(self):
        node = bucket(rate=1)
        assert taken(node, STRANGER, 5, 0.0) == 1
        assert taken(node, STRANGER, 5, 0.5) == 0
        assert taken(node, STRANGER, 5, 1.0) == 1


class TestLanes:
    def test_strangers_leave_half_of_it_to_who_shows_a_ticket(self):
        node = bucket()
        assert taken(node, STRANGER, 500, 0.0) == 50
        assert taken(node, TICKET, 500, 0.0) == 50

    def test_while_ticket_holders_come_in_a_row_strangers_have_a_tenth(self):
        node = bucket()
        taken(node, TICKET, 500, 0.0)
        taken(node, STRANGER, 500, 0.0)
        tickets = strangers = 0
        for step in range(1, 1001):
            now = step / 100
            strangers += taken(node, STRANGER, 20, now)
            tickets += taken(node, TICKET, 20, now)
        assert strangers == pytest.approx(100, abs=15)
        assert tickets == pytest.approx(900, abs=25)

    def test_a_flood_of_strangers_does_not_move_the_row_of_ticket_holders(self):
        node = bucket()
        for _ in range(10_000):
            node.take(STRANGER, 0.0, jitter=0.5)
        taken(node, TICKET, 50, 0.0)
        assert node.take(TICKET, 0.0, jitter=0.5) == pytest.approx(0.01)


class TestRow:
    def test_each_is_told_a_time_of_its_own_one_after_the_other(self):
        node = bucket()
        taken(node, TICKET, 100, 0.0)
        waits = [node.take(TICKET, 0.0, jitter=0.5) for _ in range(1000)]
        assert waits == [pytest.approx((n + 1) / 100) for n in range(1000)]

    def test_those_who_come_when_they_were_told_are_all_taken(self):
        node = bucket()
        due = [0.0] * 1000
        rounds = 0
        while due:
            rounds += 1
            later = []
            for at in sorted(due):
                wait_s = node.take(STRANGER, at, jitter=0.5)
                if wait_s is not None:
                    later.append(at + wait_s)
            due = later
        assert rounds <= 3

    def test_the_row_gets_shorter_as_time_goes_by(self):
        node = bucket()
        taken(node, TICKET, 1100, 0.0)
        taken(node, TICKET, 1000, 9.0)
        assert node.take(TICKET, 9.0, jitter=0.5) == pytest.approx(10.01 - 9.0 + 9.0, abs=0.2)
        assert node.take(STRANGER, 9.0, jitter=0.5) is None

    @pytest.mark.parametrize(("jitter", "wait_s"), [(0.0, 5.0), (0.5, 7.5), (0.999, 9.995)])
    def test_a_row_that_is_full_tells_times_in_its_later_half(self, jitter, wait_s):
        node = bucket(most_s=10)
        taken(node, TICKET, 100 + 1000, 0.0)
        assert node.take(TICKET, 0.0, jitter=jitter) == pytest.approx(wait_s)
