"""The attacks of the design's table, each refused with its code and with nothing changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import cbor2
import pytest

from device_sdk.update import Factory, Fetched, UpdateLimits
from device_sdk.wire.cose import sign1
from device_sdk.wire.keys import PrivateKey, Role
from device_sdk.wire.messages import Update
from device_sdk.wire.signed import RootKey
from device_sdk.wire.suit import Envelope, SUITDigest
from tests.unit.device_sdk.update.world import (
    ALERT,
    DIRECTIVE,
    ENROLMENT,
    HOUR_MS,
    IMAGE,
    NOW_MS,
    RELEASE,
    RELEASE_2,
    STATEMENT,
    STRANGER,
    FakeClock,
    Request,
    World,
    deployment,
    envelope,
    root,
)


async def assert_refused(world: World, update: Update, code: str, *, is_counted: bool) -> None:
    """The update is answered with a durable ``rejected`` and ``code``; slots, floors and trust stay.

    ``is_counted``: the directive was the gateway's and counted, though what it brought is refused.
    """
    slots, trust, fetched = world.slots(), world.trust(), len(world.server.requests)
    assert await world.agent.receive_update(update)
    await world.work()
    assert world.told() == [("rejected", code)]
    assert world.slots() == slots
    assert len(world.server.requests) == fetched
    after = world.trust()
    assert (after.pop("trust/counter", None) != trust.pop("trust/counter", None)) is is_counted
    assert after == trust
    # And the refusal outlives a crash.
    world.open()
    assert world.told() == [("rejected", code)]
    assert not world.agent.jobs


def changed(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


class TestArbitrarySoftware:
    async def test_an_unsigned_manifest_is_refused(self) -> None:
        world = World()
        world.open_trusting()
        unsigned = envelope(keys=())
        await assert_refused(world, world.update(manifest=unsigned), "unknown_key", is_counted=True)

    @pytest.mark.parametrize(
        "key", [STRANGER, DIRECTIVE, STATEMENT, ALERT], ids=["stranger", "directive", "statement", "alert"]
    )
    async def test_a_manifest_by_another_key_is_refused(self, key: PrivateKey) -> None:
        world = World()
        world.open_trusting()
        await assert_refused(
            world, world.update(manifest=envelope(keys=[key])), "unknown_key", is_counted=True
        )

    async def test_a_changed_signature_is_refused(self) -> None:
        world = World()
        world.open_trusting()
        good = envelope()
        parsed = Envelope.parse(good)
        bad = Envelope(changed(parsed.wrapper, len(parsed.wrapper) - 1), parsed.manifest, {}).serialize()
        update = world.update(manifest=good)
        await assert_refused(
            world, Update(update.deployment, update.directive, bad), "bad_signature", is_counted=True
        )

    async def test_a_changed_manifest_is_refused(self) -> None:
        world = World()
        world.open_trusting()
        parsed = Envelope.parse(envelope())
        bad = Envelope(parsed.wrapper, changed(parsed.manifest, len(parsed.manifest) // 2), {}).serialize()
        update = world.update()
        await assert_refused(
            world, Update(update.deployment, update.directive, bad), "digest_mismatch", is_counted=True
        )

    async def test_every_changed_byte_of_an_envelope_is_refused(self) -> None:
        good = envelope()
        for position in range(0, len(good), 5):
            world = World()
            world.open_trusting()
            update = world.update()
            await world.agent.receive_update(
                Update(update.deployment, update.directive, changed(good, position))
            )
            await world.work()
            [(state, _)] = world.told()
            assert state == "rejected", position
            assert not world.server.requests

    async def test_a_release_below_its_threshold_is_refused(self) -> None:
        world = World()
        agent = world.open()
        two = root(
            keys=(
                RootKey(Role.DIRECTIVE, DIRECTIVE.public),
                RootKey(Role.RELEASE, RELEASE.public),
                RootKey(Role.RELEASE, RELEASE_2.public),
            ),
            thresholds={Role.RELEASE: 2},
        )
        assert agent.adopt_roots([two]) is None
        await assert_refused(world, world.update(), "unknown_key", is_counted=True)

    async def test_a_release_that_meets_its_threshold_is_installed(self) -> None:
        world = World()
        agent = world.open()
        two = root(
            keys=(
                RootKey(Role.DIRECTIVE, DIRECTIVE.public),
                RootKey(Role.RELEASE, RELEASE.public),
                RootKey(Role.RELEASE, RELEASE_2.public),
            ),
            thresholds={Role.RELEASE: 2},
        )
        assert agent.adopt_roots([two]) is None
        assert await agent.receive_update(world.update(manifest=envelope(keys=[RELEASE, RELEASE_2])))
        await world.work()
        assert world.told()[-1] == ("committed", None)

    async def test_an_image_with_other_bytes_fails_and_what_ran_runs(self) -> None:
        world = World()
        world.open_trusting()
        world.server.images["/image"] = changed(IMAGE, 500)
        running = world.agent.installed()
        await world.agent.receive_update(world.update())
        await world.work()
        assert world.told()[-1] == ("failed", "image_digest_mismatch")
        assert world.agent.installed() == running
        assert not world.floors()
        world.open()
        assert world.agent.installed() == running


class TestRollback:
    async def committed(self, sequence: int = 5) -> World:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update(9, manifest=envelope(sequence=sequence)))
        await world.work()
        assert world.told(9)[-1] == ("committed", None)
        return world

    async def test_a_lower_sequence_is_refused(self) -> None:
        world = await self.committed()
        await assert_refused(
            world,
            world.update(sequence=101, manifest=envelope(b"old", sequence=4)),
            "rollback",
            is_counted=True,
        )

    async def test_an_equal_sequence_with_another_manifest_is_refused(self) -> None:
        world = await self.committed()
        await assert_refused(
            world,
            world.update(sequence=101, manifest=envelope(b"another", sequence=5)),
            "rollback",
            is_counted=True,
        )

    async def test_an_equal_sequence_with_the_same_manifest_is_committed_without_a_download(self) -> None:
        world = await self.committed()
        requests = len(world.server.requests)
        await world.agent.receive_update(world.update(sequence=101))
        await world.work()
        assert world.told() == [("verified", None), ("committed", None)]
        assert len(world.server.requests) == requests

    async def test_the_factory_s_sequence_is_a_floor_too(self) -> None:
        world = World(factory={"main": Factory(sequence=9, version="9")})
        world.open_trusting()
        await assert_refused(world, world.update(), "rollback", is_counted=True)

    async def test_what_runs_is_a_floor_after_the_state_is_lost(self) -> None:
        world = await self.committed()
        world.flash.remove("state")
        world.open_trusting()
        await assert_refused(
            world, world.update(manifest=envelope(b"old", sequence=4)), "rollback", is_counted=True
        )

    async def test_a_failed_update_burns_no_sequence(self) -> None:
        world = World()
        world.open_trusting()
        world.server.images["/image"] = b""
        world.limits = UpdateLimits(attempts_max=1)
        world.open()
        await world.agent.receive_update(world.update(9, manifest=envelope(sequence=7)))
        await world.work()
        assert world.told(9)[-1] == ("failed", "download_failed")
        assert not world.floors()
        world.server.images["/image"] = IMAGE
        await world.agent.receive_update(world.update(sequence=101, manifest=envelope(sequence=6)))
        await world.work()
        assert world.told()[-1] == ("committed", None)
        [floor] = world.floors().values()
        assert isinstance(floor, list)
        assert floor[0] == 6

    async def test_a_boot_that_fails_burns_no_sequence(self) -> None:
        world = World(is_healthy=lambda: False)
        world.open_trusting()
        await world.agent.receive_update(world.update())
        await world.work()
        assert world.told()[-1] == ("rolled_back", "boot_failed")
        assert not world.floors()
        assert world.agent.installed()["main"].sequence == 0


class TestFreeze:
    async def test_an_expired_directive_is_refused(self) -> None:
        world = World()
        world.open_trusting()
        expired = world.update(issued_at=NOW_MS - HOUR_MS, expires_at=NOW_MS)
        await assert_refused(world, expired, "expired", is_counted=True)

    async def test_a_directive_is_fresh_to_the_last_millisecond(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update(expires_at=NOW_MS + 1))
        await world.work()
        assert world.told()[-1] == ("committed", None)

    async def test_a_directive_of_an_expired_root_is_refused(self) -> None:
        world = World()
        agent = world.open()
        agent.adopt_roots([root(expires_at=NOW_MS)])
        await assert_refused(world, world.update(), "expired", is_counted=False)

    async def test_a_device_without_a_clock_and_without_a_statement_refuses(self) -> None:
        world = World(clock=FakeClock(wall_ms=None))
        world.open_trusting()
        await assert_refused(world, world.update(), "clock_unknown", is_counted=True)
        assert world.statements_asked == 1

    async def test_a_clock_behind_the_floor_is_no_clock(self) -> None:
        world = World()
        agent = world.open_trusting()
        nonce = agent.needs_nonce()
        assert nonce is not None
        assert agent.receive_statement(world.statement(nonce)) is None
        world.clock.set_wall(NOW_MS - 24 * HOUR_MS)
        world.open()
        expired = world.update(expires_at=NOW_MS - HOUR_MS, issued_at=NOW_MS - 2 * HOUR_MS)
        await assert_refused(world, expired, "clock_unknown", is_counted=True)

    async def test_a_statement_shows_that_a_directive_is_withheld(self) -> None:
        world = World()
        agent = world.open_trusting()
        nonce = agent.needs_nonce()
        assert nonce is not None
        agent.receive_statement(world.statement(nonce, latest_directive=100))
        assert agent.is_directive_withheld
        await agent.receive_update(world.update(sequence=100))
        assert not agent.is_directive_withheld


class TestReplayAndWrongDevice:
    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"device": "dev-2"}, "wrong_device"),
            ({"fleet": "other"}, "bad_signature"),
        ],
    )
    async def test_a_directive_for_somebody_else_is_refused(self, changes: dict[str, Any], code: str) -> None:
        world = World()
        world.open_trusting()
        await assert_refused(world, world.update(**changes), code, is_counted=False)

    async def test_a_directive_for_another_enrolment_is_refused_by_a_device_that_knows_its_own(self) -> None:
        world = World(enrolment=ENROLMENT)
        world.open_trusting()
        await assert_refused(world, world.update(enrolment=bytes(16)), "wrong_device", is_counted=False)

    @pytest.mark.parametrize("key", [STRANGER, RELEASE, STATEMENT, ALERT])
    async def test_a_directive_by_another_role_s_key_is_refused(self, key: PrivateKey) -> None:
        world = World()
        world.open_trusting()
        await assert_refused(world, world.update(key=key), "unknown_key", is_counted=False)

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"vendor_identifier": bytes(16)}, "incompatible"),
            ({"class_identifier": bytes(16)}, "incompatible"),
            ({"device_identifier": bytes(16)}, "wrong_device"),
            ({"component": "radio"}, "incompatible"),
        ],
    )
    async def test_a_manifest_for_another_device_is_refused(self, changes: dict[str, Any], code: str) -> None:
        world = World()
        world.open_trusting()
        await assert_refused(world, world.update(manifest=envelope(**changes)), code, is_counted=True)

    async def test_a_manifest_for_this_one_device_is_installed(self) -> None:
        world = World(device_uuid=bytes([5] * 16))
        world.open_trusting()
        await world.agent.receive_update(world.update(manifest=envelope(device_identifier=bytes([5] * 16))))
        await world.work()
        assert world.told()[-1] == ("committed", None)

    async def test_a_lower_directive_is_a_replay(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update(9))
        await world.work()
        await assert_refused(world, world.update(sequence=99), "directive_replayed", is_counted=False)

    async def test_an_equal_directive_with_other_content_is_an_attack(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update(9))
        await world.work()
        await assert_refused(world, world.update(sequence=100), "directive_conflict", is_counted=False)


class TestMixAndMatch:
    async def test_a_directive_about_another_manifest_is_refused(self) -> None:
        world = World()
        world.open_trusting()
        update = world.update(manifest=envelope(sequence=6))
        other = Update(update.deployment, update.directive, envelope(sequence=5))
        await assert_refused(world, other, "mix_and_match", is_counted=True)

    async def test_a_directive_about_another_component_is_refused(self) -> None:
        world = World(components=("main", "radio"))
        world.open_trusting()
        await assert_refused(world, world.update(component="radio"), "mix_and_match", is_counted=True)

    async def test_a_message_about_another_deployment_is_refused(self) -> None:
        world = World()
        world.open_trusting()
        update = world.update(2, message_deployment=deployment(1))
        await assert_refused(world, update, "mix_and_match", is_counted=False)


class TestEndlessDataAndSlowRetrieval:
    async def test_an_image_larger_than_the_slot_is_refused_before_the_download(self) -> None:
        world = World(capacity=len(IMAGE) - 1)
        world.open_trusting()
        await assert_refused(world, world.update(), "no_space", is_counted=True)

    async def test_an_image_larger_than_the_device_s_bound_is_refused(self) -> None:
        world = World(limits=UpdateLimits(image_size_max_bytes=len(IMAGE) - 1))
        world.open_trusting()
        await assert_refused(world, world.update(), "too_large", is_counted=True)

    async def test_endless_data_is_cut_and_never_written_past_the_signed_size(self) -> None:
        world = World()
        world.open_trusting()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(100)

        def answer(request: Request) -> Fetched:
            return Fetched(0, None, None, endless())

        world.server.script = [answer]
        await world.agent.receive_update(world.update())
        await world.work()
        assert world.told()[-1] == ("failed", "too_large")
        assert all(len(data) <= len(IMAGE) for name, data in world.slots().items() if ".boot" not in name)
        assert world.agent.installed()["main"].sequence == 0

    async def test_a_trickle_is_given_up(self) -> None:
        world = World()
        world.open_trusting()

        async def trickle() -> AsyncIterator[bytes]:
            while True:
                world.clock.advance(30)
                yield b"x"

        world.server.script = [lambda request: Fetched(request.offset, None, None, trickle())] * 3
        await world.agent.receive_update(world.update())
        await world.work()
        assert world.told()[-1] == ("failed", "too_slow")
        assert len(world.server.requests) == 3


class TestCompromisedGateway:
    async def test_it_cannot_sign_a_release(self) -> None:
        world = World()
        world.open_trusting()
        await assert_refused(
            world, world.update(manifest=envelope(keys=[DIRECTIVE])), "unknown_key", is_counted=True
        )

    async def test_it_cannot_sign_a_root_document(self) -> None:
        world = World()
        agent = world.open_trusting()
        before = world.trust()
        keys = (RootKey(Role.RELEASE, STRANGER.public), RootKey(Role.DIRECTIVE, ALERT.public))
        assert agent.adopt_roots([root(2, signer=DIRECTIVE, keys=keys)]) == "unknown_key"
        assert world.trust() == before
        assert agent.root_version == 1

    async def test_it_can_direct_to_another_release_that_the_operator_signed(self) -> None:
        world = World()
        world.open_trusting()
        await world.agent.receive_update(world.update(manifest=envelope(sequence=8)))
        await world.work()
        assert world.told()[-1] == ("committed", None)


class TestCompromisedOrigin:
    async def test_it_signs_nothing_that_a_device_follows(self) -> None:
        world = World()
        world.open_trusting()
        await assert_refused(world, world.update(key=STRANGER), "unknown_key", is_counted=False)


class TestBeforeTheFirstRoot:
    async def test_no_directive_is_followed(self) -> None:
        world = World()
        world.open()
        assert not world.agent.alert_keys()
        await assert_refused(world, world.update(), "unknown_key", is_counted=False)


class TestUnsupported:
    async def test_a_manifest_that_fetches_nothing_is_refused(self) -> None:
        world = World()
        world.open_trusting()
        members = cbor2.loads(Envelope.parse(envelope()).manifest)
        del members[20]
        manifest = cbor2.dumps(members, canonical=True)
        digest = SUITDigest.of_member(manifest).encode()
        wrapper = cbor2.dumps([digest, sign1(digest, RELEASE, is_detached=True)], canonical=True)
        data = Envelope(wrapper, manifest, {}).serialize()
        await assert_refused(world, world.update(manifest=data), "unsupported", is_counted=True)
