"""The promises of ``RolloutStore`` about rollouts and what devices are offered, on both databases."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.acts import Replay
from gateway.ids import uuid7
from gateway.rollout import OFFER_LEN_MAX, Action, NewRollout, RolloutState, UpdateLimits
from gateway.rollout.deployment import State
from gateway.rollout.rollout import COUNTED_BELOW, SPACE, share_boundary
from gateway.storage.engine import Database
from gateway.storage.tables import artifact, channel, subscription
from tests.harness.acts import act
from tests.harness.rollouts import World, digest_of


@pytest.fixture
async def world(database: Database) -> World:
    return await World.create(database)


def device_keys(pushes: Any) -> list[int]:
    return sorted(push.device_key for push in pushes.pushes)


class TestStarting:
    async def test_a_percentage_of_few_devices_is_a_count_in_the_order_of_shifted_buckets(
        self, world: World
    ) -> None:
        keys = await world.devices(10, buckets=[5, 3, 9, 1, 7, 2, 8, 4, 6, 0])
        started = await world.start(await world.release(), percent=30, shift=SPACE - 4)
        assert started.boundary == 3  # buckets 4, 5 and 6 come first
        assert (started.percent, started.target_count, started.state) == (30, 10, RolloutState.RUNNING)
        assert device_keys(await world.offer(*keys)) == sorted([keys[7], keys[0], keys[8]])

    async def test_at_least_one_device_is_admitted(self, world: World) -> None:
        keys = await world.devices(3)
        await world.start(await world.release(), percent=1)
        assert len((await world.offer(*keys)).pushes) == 1

    async def test_with_nobody_to_count_the_share_decides_who_comes(self, world: World) -> None:
        started = await world.start(await world.release(), percent=10)
        assert (started.boundary, started.target_count) == (share_boundary(10), 0)

    async def test_many_devices_are_a_share(self, world: World) -> None:
        await world.devices(COUNTED_BELOW)
        started = await world.start(await world.release(), percent=10, shift=77)
        assert started.boundary == share_boundary(10)

    async def test_only_matching_enabled_subscribed_devices_of_the_fleet_count(
        self, database: Database, world: World
    ) -> None:
        other = await World.create(database, name="other")
        await other.devices(3, origin={"model": "tc3"})
        await world.devices(2, origin={"model": "tc3"})
        await world.devices(2, prefix="other-model", origin={"model": "tc4"})
        await world.devices(2, prefix="disabled", origin={"model": "tc3"}, is_enabled=False)
        await world.devices(2, prefix="unsubscribed", channels="", origin={"model": "tc3"})
        started = await world.start(await world.release(), percent=50, selector='origin.model == "tc3"')
        assert started.target_count == 2

    async def test_the_release_names_it_unless_the_operator_does(self, world: World) -> None:
        release_id = await world.release(7)
        assert (await world.start(release_id)).name == "main 7"
        assert (await world.start(release_id, name="spring")).name == "spring"

    async def test_an_alert_channel_takes_no_rollout(self, world: World) -> None:
        row = {"fleet_id": world.fleet.key, "name": "news", "kind": "alert", "epoch": 1, "created_at": 0}
        await world.database.write(lambda conn: conn.execute(channel.insert().values(row)).rowcount)
        with pytest.raises(ConflictError) as refused:
            await world.start(await world.release(), channel="news")
        assert refused.value.code == "wrong_kind"

    async def test_another_fleets_release_or_channel_is_not_found(
        self, database: Database, world: World
    ) -> None:
        other = await World.create(database, name="other", channels="theirs")
        with pytest.raises(NotFoundError):
            await world.start(await other.release())
        with pytest.raises(NotFoundError):
            await world.start(await world.release(), channel="theirs")

    async def test_an_image_that_this_gateway_should_serve_must_be_here(self, world: World) -> None:
        release_id = await world.release(uri="/v1/device/artifacts/" + "00" * 32, image_size=9)

        async def put(size: int) -> None:
            row = {"digest": bytes(32), "fleet_id": world.fleet.key, "size_bytes": size, "created_at": 0}
            await world.database.write(lambda conn: conn.execute(artifact.delete()).rowcount)
            await world.database.write(lambda conn: conn.execute(artifact.insert().values(row)).rowcount)

        for size in (None, 8):
            if size is not None:
                await put(size)
            with pytest.raises(ConflictError) as refused:
                await world.start(release_id)
            assert refused.value.code == "artifact_missing"
        await put(9)
        assert (await world.start(release_id)).state is RolloutState.RUNNING

    async def test_a_repeated_request_starts_one_rollout(self, world: World) -> None:
        release_id = await world.release()
        request = act(lambda started: (201, started.id), request=b"a" * 32)
        first = await world.start(release_id, act=request)
        new = NewRollout(
            id=uuid7(1),
            release_id=release_id,
            channel=first.channel,
            percent=5,
            selector=None,
            name=None,
            priority=0,
            shift=0,
        )
        again = await world.store.create_rollout(world.fleet.key, new, now_ms=1, act=request)
        assert again == Replay(201, first.id)
        assert len(await world.store.rollouts(world.fleet.key)) == 1
        other = act(lambda started: (201, started.id), request=b"b" * 32)
        with pytest.raises(ConflictError) as refused:
            await world.store.create_rollout(world.fleet.key, new, now_ms=1, act=other)
        assert refused.value.code == "idempotency_key_reused"


class TestActions:
    async def test_widening_admits_more_and_keeps_who_was_in(self, world: World) -> None:
        keys = await world.devices(10)
        started = await world.start(await world.release(), percent=20)
        first = device_keys(await world.offer(*keys))
        wider = await world.act(started, Action.WIDEN, percent=50)
        assert (wider.percent, wider.version) == (50, started.version + 1)
        everybody = device_keys(await world.offer(*keys))
        assert len(everybody) == 5
        assert set(first) <= set(everybody)

    async def test_a_lower_percentage_is_refused_and_moves_nothing(self, world: World) -> None:
        await world.devices(10)
        started = await world.start(await world.release(), percent=50)
        with pytest.raises(ConflictError) as refused:
            await world.act(started, Action.WIDEN, percent=49)
        assert refused.value.code == "boundary_moves_up"
        assert await world.store.rollout(world.fleet.key, started.id) == started

    async def test_the_boundary_does_not_move_back_when_devices_leave(self, world: World) -> None:
        keys = await world.devices(10)
        started = await world.start(await world.release(), percent=50)
        for key in keys[:5]:
            await world.change_device(key, is_enabled=False)
        same = await world.act(started, Action.WIDEN, percent=50)
        assert same.boundary == max(started.boundary, same.boundary)
        assert same.boundary >= started.boundary

    async def test_a_selector_that_empties_itself_does_not_overshoot(self, world: World) -> None:
        keys = await world.devices(10, reported={"firmware": "1.3"})
        started = await world.start(await world.release(), percent=20, selector='reported.firmware < "1.4"')
        for push in (await world.offer(*keys)).pushes:
            await world.says(push.device_key, push.deployment_id, "committed")
            await world.change_device(push.device_key, reported={"firmware": "1.4"})
        wider = await world.act(started, Action.WIDEN, percent=50)
        assert wider.target_count == 10
        await world.offer(*keys)
        assert await world.deployment_count() == 5

    async def test_at_100_percent_later_devices_are_admitted(self, world: World) -> None:
        await world.devices(2)
        started = await world.start(await world.release(), percent=100)
        assert started.boundary == SPACE
        late = await world.devices(1, prefix="late", buckets=[SPACE - 1])
        assert device_keys(await world.offer(*late)) == late

    async def test_a_paused_rollout_notifies_nobody_and_repeats_nothing(self, world: World) -> None:
        a, b = await world.devices(2)
        started = await world.start(await world.release())
        (push,) = (await world.offer(a)).pushes
        await world.act(started, Action.PAUSE)
        assert await world.offer(a, b) == await world.redeliver(a, push.deployment_id)
        assert await world.store.concerned([a, b]) == []
        assert (await world.deployment(push.deployment_id)).sends == 1
        await world.act(started, Action.RESUME)
        assert device_keys(await world.offer(a, b)) == [a, b]

    async def test_a_finished_rollout_goes_on_with_what_it_notified(self, world: World) -> None:
        a, b = await world.devices(2)
        started = await world.start(await world.release())
        await world.offer(a)
        await world.act(started, Action.FINISH)
        assert device_keys(await world.offer(a, b)) == [a]

    async def test_an_abort_cancels_up_to_downloading_and_asks_from_installing_on(self, world: World) -> None:
        keys = await world.devices(5)
        started = await world.start(await world.release())
        ids = {push.device_key: push.deployment_id for push in (await world.offer(*keys[:4])).pushes}
        await world.says(keys[1], ids[keys[1]], "downloading")
        await world.says(keys[2], ids[keys[2]], "installing")
        await world.says(keys[3], ids[keys[3]], "committed")
        aborted = await world.act(started, Action.ABORT)
        assert aborted.state is RolloutState.ABORTED
        assert aborted.counts == {"cancelled": 2, "installing": 1, "committed": 1}
        told = await world.store.cancelling(keys, now_ms=world.clock.now_ms())
        assert {device_key for device_key, _ in told} == set(keys[:3])
        assert device_keys(await world.offer(*keys)) == []
        assert await world.deployment_count() == 4
        # Asked again, it finds what it asks for.
        assert (await world.act(aborted, Action.ABORT)).version == aborted.version

    async def test_a_long_abort_is_done_in_parts(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.storage.rollouts.CANCELLED_AT_ONCE", 3)
        keys = await world.devices(8)
        started = await world.start(await world.release())
        await world.offer(*keys)
        aborted = await world.act(started, Action.ABORT)
        assert aborted.counts == {"cancelled": 3, "notified": 5}
        assert device_keys(await world.offer(*keys)) == []  # what is left is not sent either
        rest = [await world.store.cancel_rest(now_ms=1) for _ in range(3)]
        assert rest == [3, 2, 0]
        ended = await world.store.rollout(world.fleet.key, started.id)
        assert ended.counts == {"cancelled": 8}

    @pytest.mark.parametrize("action", [Action.WIDEN, Action.PAUSE, Action.RESUME, Action.FINISH])
    async def test_an_aborted_rollout_stays_aborted(self, world: World, action: Action) -> None:
        started = await world.start(await world.release())
        aborted = await world.act(started, Action.ABORT)
        with pytest.raises(ConflictError) as refused:
            await world.act(started, action, percent=100)
        assert refused.value.code == "rollout_state"
        assert await world.store.rollout(world.fleet.key, started.id) == aborted

    async def test_a_version_that_is_stale_changes_nothing(self, world: World) -> None:
        started = await world.start(await world.release(), percent=10)
        await world.act(started, Action.PAUSE, version=started.version)
        with pytest.raises(ConflictError) as refused:
            await world.act(started, Action.WIDEN, percent=20, version=started.version)
        assert refused.value.code == "stale_version"
        assert (await world.store.rollout(world.fleet.key, started.id)).percent == 10

    async def test_another_fleets_rollout_is_not_found(self, database: Database, world: World) -> None:
        other = await World.create(database, name="other")
        started = await world.start(await world.release())
        for question in (
            other.store.rollout(other.fleet.key, started.id),
            other.store.change_rollout(other.fleet.key, started.id, Action.ABORT, now_ms=0),
            other.store.deployments(other.fleet.key, rollout_id=started.id),
        ):
            with pytest.raises(NotFoundError):
                await question
        assert (await world.store.rollout(world.fleet.key, started.id)).state is RolloutState.RUNNING


class TestOffers:
    async def test_a_device_is_notified_once_and_pushed_until_it_acknowledges(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release())
        (push,) = (first := await world.offer(key)).pushes
        assert first.states == (State.NOTIFIED,)
        assert (push.attempt, push.superseded, push.component) == (1, (), "main")
        again = await world.offer(key)
        assert again.states == ()
        assert again.pushes == (push,)  # the same boot: the connection was lost, not the device
        await world.received(key, push.deployment_id)
        assert (await world.offer(key)).pushes == ()
        assert await world.store.concerned([key]) == []
        assert await world.deployment_count() == 1

    async def test_the_push_is_a_fact_before_it_is_sent(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release())
        (push,) = (await world.offer(key)).pushes
        row = await world.deployment(push.deployment_id)
        assert (row.sends, row.sent_at, row.notified_at) == (1, world.clock.now_ms(), world.clock.now_ms())
        assert (
            row.directive_sequence == (await world.device(key)).directive_sequence == push.directive_sequence
        )

    async def test_the_directive_counter_is_above_the_clock_and_above_its_own(self, world: World) -> None:
        a, b = await world.devices(2)
        ahead = world.clock.now_ms() // 1000 + 10_000
        await world.change_device(b, directive_sequence=ahead)
        await world.start(await world.release())
        pushes = {push.device_key: push for push in (await world.offer(a, b)).pushes}
        assert pushes[a].directive_sequence == world.clock.now_ms() // 1000 + 1
        assert pushes[b].directive_sequence == ahead + 1

    async def test_two_components_are_two_deployments_with_two_numbers(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release(component="main"))
        await world.start(await world.release(component="modem"))
        pushes = (await world.offer(key)).pushes
        assert {push.component for push in pushes} == {"main", "modem"}
        assert len({push.directive_sequence for push in pushes}) == 2
        assert (await world.device(key)).directive_sequence == max(p.directive_sequence for p in pushes)

    async def test_who_is_disabled_unsubscribed_or_not_matched_gets_nothing(self, world: World) -> None:
        disabled = await world.devices(1, prefix="disabled", is_enabled=False)
        outside = await world.devices(1, prefix="outside", channels="")
        other = await world.devices(1, prefix="other", tags=["lab"])
        meant = await world.devices(1, prefix="meant", tags=["eu"])
        await world.start(await world.release(), selector='tag == "eu"')
        keys = [*disabled, *outside, *other, *meant]
        assert await world.store.concerned(keys) == meant
        assert device_keys(await world.offer(*keys)) == meant

    async def test_who_runs_the_release_gets_no_deployment(self, world: World) -> None:
        (key,) = await world.devices(1, installed={"main": [4, "4", digest_of("main4").hex(), True]})
        await world.start(await world.release(4))
        assert (await world.offer(key)).pushes == ()
        await world.start(await world.release(5))
        assert len((await world.offer(key)).pushes) == 1

    @pytest.mark.parametrize("outcome", ["committed", "failed", "rejected", "rolled_back", "cancelled"])
    async def test_a_deployment_that_ended_is_not_created_again(self, world: World, outcome: str) -> None:
        (key,) = await world.devices(1)
        started = await world.start(await world.release())
        (push,) = (await world.offer(key)).pushes
        assert (await world.says(key, push.deployment_id, outcome)).ended
        assert await world.store.concerned([key]) == []
        await world.act(started, Action.WIDEN, percent=100)
        assert (await world.offer(key)).pushes == ()
        assert await world.deployment_count() == 1

    async def test_a_directive_that_came_too_late_is_followed_by_a_new_one(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release())
        attempts = []
        for _ in range(4):
            for push in (await world.offer(key)).pushes:
                attempts.append((await world.deployment(push.deployment_id)).attempt)
                await world.says(key, push.deployment_id, "rejected", code="expired")
        assert attempts == [1, 2, 3]

    async def test_a_newer_release_supersedes_and_the_device_is_told(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release(1))
        (old,) = (await world.offer(key)).pushes
        await world.says(key, old.deployment_id, "downloading")
        await world.start(await world.release(2))
        (new,) = (found := await world.offer(key)).pushes
        assert new.superseded == (old.deployment_id,)
        assert set(found.states) == {State.SUPERSEDED, State.NOTIFIED}
        assert new.directive_sequence > old.directive_sequence
        row = await world.deployment(old.deployment_id)
        assert (row.state, row.is_active, row.is_cancelling) == ("superseded", False, True)
        assert await world.store.cancelling([key], now_ms=world.clock.now_ms()) == [(key, old.deployment_id)]

    async def test_from_installing_on_the_next_one_waits_for_the_outcome(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release(1))
        (old,) = (await world.offer(key)).pushes
        await world.says(key, old.deployment_id, "installing")
        await world.start(await world.release(2))
        assert (await world.offer(key)).pushes == ()
        assert (await world.says(key, old.deployment_id, "committed")).ended
        (new,) = (await world.offer(key)).pushes
        assert new.superseded == ()

    async def test_an_older_release_never_follows_a_newer_one(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release(1))
        newer = await world.start(await world.release(2))
        (push,) = (await world.offer(key)).pushes
        await world.says(key, push.deployment_id, "committed")
        assert (await world.offer(key)).pushes == ()
        await world.act(newer, Action.ABORT)
        assert (await world.offer(key)).pushes == ()

    async def test_what_an_aborted_rollout_superseded_comes_back(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release(1))
        (old,) = (await world.offer(key)).pushes
        newer = await world.start(await world.release(2))
        (push,) = (await world.offer(key)).pushes
        await world.act(newer, Action.ABORT)
        (back,) = (await world.offer(key)).pushes
        row = await world.deployment(back.deployment_id)
        assert (row.attempt, row.rollout_id) == (2, (await world.deployment(old.deployment_id)).rollout_id)
        assert back.directive_sequence > push.directive_sequence

    async def test_a_higher_priority_goes_before_a_higher_sequence(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release(9))
        first = await world.start(await world.release(3), priority=1)
        (push,) = (await world.offer(key)).pushes
        assert (await world.deployment(push.deployment_id)).rollout_id == first.id

    async def test_a_deployment_stays_with_its_device_whatever_the_attributes_become(
        self, world: World
    ) -> None:
        (key,) = await world.devices(1, reported={"firmware": "1.3"})
        await world.start(await world.release(1))
        await world.start(await world.release(2), selector='reported.firmware < "1.4"')
        (push,) = (await world.offer(key)).pushes
        await world.change_device(key, reported={"firmware": "1.4"})
        assert (await world.offer(key)).pushes == (push,)
        assert await world.deployment_count() == 1

    async def test_a_device_that_left_the_channel_is_not_pushed_to(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release())
        (push,) = (await world.offer(key)).pushes
        await world.database.write(lambda conn: conn.execute(subscription.delete()).rowcount)
        assert (await world.offer(key)).pushes == ()
        assert (await world.redeliver(key, push.deployment_id)).pushes == ()

    async def test_one_offer_serves_as_many_as_it_says(self, world: World) -> None:
        keys = await world.devices(OFFER_LEN_MAX)
        await world.start(await world.release())
        assert device_keys(await world.offer(*keys)) == keys
        assert await world.store.concerned(keys) == keys


class TestRedelivery:
    async def test_each_attempt_is_durable(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release())
        (push,) = (await world.offer(key)).pushes
        (again,) = (await world.redeliver(key, push.deployment_id)).pushes
        assert again.attempt == 2
        assert again.directive_sequence == push.directive_sequence
        assert (await world.deployment(push.deployment_id)).sends == 2

    async def test_a_crash_is_an_attempt_and_a_lost_connection_is_none(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release())
        await world.offer(key)
        (same,) = (await world.offer(key)).pushes
        await world.change_device(key, boot_id=b"\1" * 16)
        (crashed,) = (await world.offer(key)).pushes
        (still,) = (await world.offer(key)).pushes
        assert (same.attempt, crashed.attempt, still.attempt) == (1, 2, 2)

    async def test_attempts_that_are_spent_time_it_out(self, world: World) -> None:
        world.limits = UpdateLimits(attempts_max=3)
        (key,) = await world.devices(1)
        await world.start(await world.release())
        (push,) = (await world.offer(key)).pushes
        attempts = [await world.redeliver(key, push.deployment_id) for _ in range(3)]
        assert [len(found.pushes) for found in attempts] == [1, 1, 0]
        assert attempts[2].states == (State.TIMED_OUT,)
        row = await world.deployment(push.deployment_id)
        assert (row.state, row.sends, row.code, row.is_active) == ("timed_out", 3, "attempts", False)
        assert (await world.offer(key)).pushes == ()
        # It came after all.
        assert (await world.says(key, push.deployment_id, "committed")).entered is State.COMMITTED

    async def test_a_directive_is_signed_anew_once_half_of_its_life_is_over(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release())
        (push,) = (await world.offer(key)).pushes
        world.clock.advance(world.limits.directive_ttl_s / 2)
        (still,) = (await world.redeliver(key, push.deployment_id)).pushes
        assert (still.directive_sequence, still.issued_at) == (push.directive_sequence, push.issued_at)
        world.clock.advance(0.001)
        (renewed,) = (await world.redeliver(key, push.deployment_id)).pushes
        assert renewed.directive_sequence > push.directive_sequence
        assert renewed.expires_at == world.clock.now_ms() + world.limits.directive_ttl_s * 1000
        assert (await world.device(key)).directive_sequence == renewed.directive_sequence
        (kept,) = (await world.offer(key)).pushes
        assert kept.directive_sequence == renewed.directive_sequence

    async def test_the_same_number_says_the_same_though_the_configuration_changed(self, world: World) -> None:
        (key,) = await world.devices(1)
        await world.start(await world.release())
        (push,) = (await world.offer(key)).pushes
        world.limits = UpdateLimits(directive_ttl_s=9_000, install_by_s=90)
        (again,) = (await world.redeliver(key, push.deployment_id)).pushes
        assert (again.issued_at, again.expires_at, again.install_by) == (
            push.issued_at,
            push.expires_at,
            push.install_by,
        )

    async def test_what_is_not_the_devices_or_has_gone_on_is_not_sent(self, world: World) -> None:
        a, b = await world.devices(2)
        await world.start(await world.release())
        (push,) = (await world.offer(a)).pushes
        assert (await world.redeliver(b, push.deployment_id)).pushes == ()
        assert (await world.redeliver(a, bytes(16))).pushes == ()
        await world.received(a, push.deployment_id)
        assert (await world.redeliver(a, push.deployment_id)).pushes == ()
        assert (await world.deployment(push.deployment_id)).sends == 1


class TestLists:
    async def test_rollouts_are_paged_by_id_with_their_counts(self, world: World) -> None:
        keys = await world.devices(3)
        release_id = await world.release()
        started = []
        for _ in range(3):
            world.clock.advance(1)
            started.append(await world.start(release_id))
        await world.offer(*keys)
        page = await world.store.rollouts(world.fleet.key, limit=2)
        rest = await world.store.rollouts(world.fleet.key, after=page[-1].id, limit=2)
        assert [one.id for one in (*page, *rest)] == [one.id for one in started]
        assert [dict(one.counts) for one in (*page, *rest)] == [{}, {}, {"notified": 3}]
        assert await world.store.rollout_counts() == {"running": 3}

    async def test_deployments_are_found_by_rollout_and_by_device(self, world: World) -> None:
        keys = await world.devices(3)
        first = await world.start(await world.release(component="main"))
        await world.start(await world.release(component="modem"))
        await world.offer(*keys)
        of_rollout = await world.store.deployments(world.fleet.key, rollout_id=first.id)
        assert {(row.device_id, row.component) for row in of_rollout} == {
            (f"d{n:04}", "main") for n in range(3)
        }
        of_device = await world.store.deployments(world.fleet.key, device_id="d0001")
        assert sorted(row.component for row in of_device) == ["main", "modem"]
        (both,) = await world.store.deployments(world.fleet.key, rollout_id=first.id, device_id="d0001")
        assert await world.store.deployment(world.fleet.key, both.id) == both
        page = await world.store.deployments(world.fleet.key, rollout_id=first.id, limit=2)
        rest = await world.store.deployments(world.fleet.key, rollout_id=first.id, after=page[-1].id)
        assert [*page, *rest] == list(of_rollout)
        with pytest.raises(NotFoundError):
            await world.store.deployments(world.fleet.key, device_id="nobody")
        with pytest.raises(NotFoundError):
            await world.store.deployment(world.fleet.key, bytes(16))
