"""Keys by role, floors, and the time (PROTOCOL §7)."""

from __future__ import annotations

import pytest

from device_sdk.errors import (
    ClockUnknownError,
    ExpiredError,
    RollbackError,
    StatementReplayedError,
    WrongDeviceError,
)
from device_sdk.store import MemoryFlash, StateStore
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.trust import NO_FLOOR, Floor, TrustState
from device_sdk.wire.errors import BadSignatureError, UnknownKeyError
from device_sdk.wire.keys import PrivateKey, Role
from device_sdk.wire.messages import Installed
from device_sdk.wire.signed import RootKey
from tests.unit.device_sdk.update.world import (
    ALERT,
    CLASS,
    DEVICE,
    DIRECTIVE,
    FLEET,
    HOUR_MS,
    NOW_MS,
    RELEASE,
    RELEASE_2,
    STATEMENT,
    STRANGER,
    FakeClock,
    World,
    root,
)

ROOT_KEY = PrivateKey.from_seed(bytes([20] * 32))
ROOT_KEY_2 = PrivateKey.from_seed(bytes([21] * 32))
statement = World().statement


class Trust:
    """A trust state that can be opened again."""

    def __init__(self, *, wall_ms: int | None = NOW_MS, build_time_ms: int = 0) -> None:
        self.flash = MemoryFlash()
        self.clock = FakeClock(wall_ms=wall_ms)
        self.build_time_ms = build_time_ms
        self.nonces = 0

    def open(self) -> TrustState:
        self.state = StateStore(self.flash)
        return TrustState(
            self.state,
            fleet=FLEET,
            device_id=DEVICE,
            anchors=[RELEASE.public],
            clock=self.clock,
            random=self._nonce,
            limits=UpdateLimits(),
            build_time_ms=self.build_time_ms,
        )

    def _nonce(self, size: int) -> bytes:
        self.nonces += 1
        return self.nonces.to_bytes(size, "big")

    def stored(self) -> dict[str, object]:
        return dict(self.state.items(""))


def keys(*pairs: tuple[Role, PrivateKey]) -> tuple[RootKey, ...]:
    return tuple(RootKey(role, key.public) for role, key in pairs)


class TestRoots:
    def test_before_the_first_the_anchors_vouch_for_releases_only(self) -> None:
        trust = Trust().open()
        assert list(trust.keys_of(Role.RELEASE)) == [RELEASE.public]
        assert trust.release_threshold() == 1
        assert trust.root_version == 0
        for role in set(Role) - {Role.RELEASE}:
            assert not trust.keys_of(role)

    def test_the_first_is_stored_and_outlives_a_restart(self) -> None:
        device = Trust()
        device.open().adopt_root(root())
        trust = device.open()
        assert trust.root_version == 1
        assert trust.keys_of(Role.ALERT) == {ALERT.kid: ALERT.public}
        assert list(trust.keys_of(Role.RELEASE)) == [RELEASE.public]

    def test_one_by_a_stranger_is_refused_and_nothing_is_stored(self) -> None:
        device = Trust()
        trust = device.open()
        with pytest.raises(UnknownKeyError):
            trust.adopt_root(root(signer=STRANGER))
        assert not device.stored()

    def test_a_lower_version_is_refused(self) -> None:
        device = Trust()
        trust = device.open()
        trust.adopt_root(root(2))
        before = device.stored()
        with pytest.raises(RollbackError):
            trust.adopt_root(root(1))
        assert device.stored() == before

    def test_the_version_in_force_is_passed_over_if_it_is_the_same(self) -> None:
        trust = Trust().open()
        trust.adopt_root(root(2))
        trust.adopt_root(root(2))
        with pytest.raises(RollbackError):
            trust.adopt_root(root(2, expires_at=NOW_MS + 1))
        assert trust.root_version == 2

    def test_the_root_keys_of_the_version_in_force_sign_the_next(self) -> None:
        device = Trust()
        trust = device.open()
        trust.adopt_root(root(1, keys=keys((Role.ROOT, ROOT_KEY), (Role.ALERT, ALERT))))
        with pytest.raises(UnknownKeyError):
            trust.adopt_root(root(2))  # by the anchor, which is none any more
        trust.adopt_root(root(2, signer=ROOT_KEY, keys=keys((Role.ROOT, ROOT_KEY_2))))
        trust = device.open()
        assert trust.root_version == 2
        with pytest.raises(UnknownKeyError):
            trust.adopt_root(root(3, signer=ROOT_KEY))
        trust.adopt_root(root(3, signer=ROOT_KEY_2))

    def test_a_root_names_the_release_keys(self) -> None:
        trust = Trust().open()
        trust.adopt_root(
            root(keys=keys((Role.RELEASE, RELEASE), (Role.RELEASE, RELEASE_2)), thresholds={Role.RELEASE: 2})
        )
        assert set(trust.keys_of(Role.RELEASE)) == {RELEASE.kid, RELEASE_2.kid}
        assert trust.release_threshold() == 2

    @pytest.mark.parametrize("role", [role for role in Role if role is not Role.ROOT])
    def test_an_expired_one_vouches_for_its_successor_and_nothing_else(self, role: Role) -> None:
        trust = Trust().open()
        trust.adopt_root(root(1, expires_at=NOW_MS))
        with pytest.raises(ExpiredError):
            trust.keys_of(role)
        trust.adopt_root(root(2))
        assert trust.keys_of(role)

    def test_a_root_of_another_fleet_is_refused(self) -> None:
        trust = Trust().open()
        with pytest.raises(BadSignatureError):
            trust.adopt_root(root(fleet="other"))


class TestFloors:
    def test_nothing_committed_and_nothing_running_is_no_floor(self) -> None:
        trust = Trust().open()
        assert trust.floor("main", CLASS, None) == NO_FLOOR
        NO_FLOOR.check(0, b"any")

    def test_a_change_is_a_floor_once_it_is_committed(self) -> None:
        device = Trust()
        trust = device.open()
        change = trust.floor_change("main", CLASS, 5, b"d")
        assert trust.floor("main", CLASS, None) == NO_FLOOR
        device.state.commit(change)
        assert device.open().floor("main", CLASS, None) == Floor(5, b"d")

    def test_floors_are_apart_by_component_and_class(self) -> None:
        device = Trust()
        trust = device.open()
        device.state.commit(trust.floor_change("main", CLASS, 5, b"d"))
        assert trust.floor("radio", CLASS, None) == NO_FLOOR
        assert trust.floor("main", bytes(16), None) == NO_FLOOR

    def test_no_change_lowers_a_floor(self) -> None:
        device = Trust()
        trust = device.open()
        device.state.commit(trust.floor_change("main", CLASS, 5, b"d"))
        assert trust.floor_change("main", CLASS, 4, b"e") == {}

    @pytest.mark.parametrize(
        ("running", "floor"),
        [
            (Installed(7, "7", b"r", True), Floor(7, b"r")),
            (Installed(7, "7", b"r", False), Floor(5, b"d")),  # a trial raises nothing
            (Installed(4, "4", b"r", True), Floor(5, b"d")),
        ],
    )
    def test_what_runs_confirmed_is_a_floor_if_it_is_higher(self, running: Installed, floor: Floor) -> None:
        device = Trust()
        trust = device.open()
        device.state.commit(trust.floor_change("main", CLASS, 5, b"d"))
        assert trust.floor("main", CLASS, running) == floor

    @pytest.mark.parametrize(
        ("sequence", "digest", "is_allowed"),
        [(6, b"x", True), (5, b"d", True), (5, b"x", False), (4, b"d", False)],
    )
    def test_equal_only_with_the_same_digest(self, sequence: int, digest: bytes, is_allowed: bool) -> None:
        if is_allowed:
            Floor(5, b"d").check(sequence, digest)
        else:
            with pytest.raises(RollbackError):
                Floor(5, b"d").check(sequence, digest)


class TestTime:
    def test_without_anything_it_is_the_build_time_and_what_passed_since(self) -> None:
        device = Trust(wall_ms=None, build_time_ms=NOW_MS)
        trust = device.open()
        device.clock.advance(1.5)
        assert trust.now_ms() == NOW_MS + 1500
        with pytest.raises(ClockUnknownError):
            trust.fresh_now_ms()

    def test_a_clock_is_believed_and_moves_no_floor(self) -> None:
        device = Trust(wall_ms=NOW_MS + 1000 * HOUR_MS, build_time_ms=NOW_MS)
        trust = device.open()
        assert trust.fresh_now_ms() == NOW_MS + 1000 * HOUR_MS
        device.clock.set_wall(None)
        assert trust.now_ms() == NOW_MS
        assert not device.stored()

    @pytest.mark.parametrize(("behind_s", "is_known"), [(300, True), (301, False)])
    def test_a_clock_far_behind_the_floor_is_none(self, behind_s: int, is_known: bool) -> None:
        trust = Trust(wall_ms=NOW_MS - behind_s * 1000, build_time_ms=NOW_MS).open()
        assert trust.now_ms() == NOW_MS
        if is_known:
            assert trust.fresh_now_ms() == NOW_MS
        else:
            with pytest.raises(ClockUnknownError):
                trust.fresh_now_ms()

    def test_a_statement_raises_the_floor_for_good(self) -> None:
        device = Trust(wall_ms=None)
        trust = device.open()
        trust.adopt_root(root())
        nonce = trust.nonce()
        assert nonce is not None
        trust.receive_statement(statement(nonce))
        device.clock.advance(10)
        assert trust.fresh_now_ms() == NOW_MS + 10_000
        trust = device.open()  # after a restart it is a floor, and not known any more
        assert trust.now_ms() == NOW_MS
        with pytest.raises(ClockUnknownError):
            trust.fresh_now_ms()

    def test_a_statement_holds_until_it_expires(self) -> None:
        device = Trust(wall_ms=None)
        trust = device.open()
        trust.adopt_root(root())
        trust.receive_statement(statement(trust.nonce() or b""))
        device.clock.advance(HOUR_MS / 1000 - 0.001)
        assert trust.fresh_now_ms()
        device.clock.advance(0.001)
        with pytest.raises(ClockUnknownError):
            trust.fresh_now_ms()

    def test_an_earlier_statement_never_lowers_the_floor(self) -> None:
        device = Trust(wall_ms=None, build_time_ms=NOW_MS + 1000)
        trust = device.open()
        trust.adopt_root(root())
        trust.receive_statement(statement(trust.nonce() or b""))
        assert trust.now_ms() == NOW_MS + 1000


class TestStatements:
    def trusting(self, **options: int | None) -> tuple[Trust, TrustState]:
        device = Trust(**options)  # type: ignore[arg-type]
        trust = device.open()
        trust.adopt_root(root())
        return device, trust

    def test_one_nobody_asked_for_is_a_replay(self) -> None:
        device, trust = self.trusting()
        before = device.stored()
        with pytest.raises(StatementReplayedError):
            trust.receive_statement(statement(bytes(16)))
        assert device.stored() == before

    def test_one_for_another_nonce_is_a_replay(self) -> None:
        device, trust = self.trusting()
        assert trust.nonce()
        before = device.stored()
        with pytest.raises(StatementReplayedError):
            trust.receive_statement(statement(bytes(16)))
        assert device.stored() == before

    def test_the_same_one_again_is_a_replay(self) -> None:
        _, trust = self.trusting()
        body = statement(trust.nonce() or b"")
        trust.receive_statement(body)
        with pytest.raises(StatementReplayedError):
            trust.receive_statement(body)

    def test_one_that_was_held_back_is_a_replay(self) -> None:
        device, trust = self.trusting()
        body = statement(trust.nonce() or b"")
        device.clock.advance(121)
        with pytest.raises(StatementReplayedError):
            trust.receive_statement(body)

    def test_one_of_before_the_restart_is_a_replay(self) -> None:
        device, trust = self.trusting()
        body = statement(trust.nonce() or b"")
        with pytest.raises(StatementReplayedError):
            device.open().receive_statement(body)

    def test_one_by_another_key_is_refused(self) -> None:
        _, trust = self.trusting()
        with pytest.raises(UnknownKeyError):
            trust.receive_statement(statement(trust.nonce() or b"", key=DIRECTIVE))

    def test_one_for_another_device_is_refused(self) -> None:
        _, trust = self.trusting()
        with pytest.raises(WrongDeviceError):
            trust.receive_statement(statement(trust.nonce() or b"", device="dev-2"))

    def test_one_that_has_expired_is_refused(self) -> None:
        _, trust = self.trusting()
        with pytest.raises(ExpiredError):
            trust.receive_statement(statement(trust.nonce() or b"", time=NOW_MS - 2, expires_at=NOW_MS))

    def test_none_carries_the_clock_past_the_root_it_stands_on(self) -> None:
        device, trust = self.trusting(wall_ms=None)
        before = device.stored()
        late = NOW_MS + 1000 * HOUR_MS
        with pytest.raises(ExpiredError):
            trust.receive_statement(statement(trust.nonce() or b"", time=late, expires_at=late + 1))
        assert device.stored() == before
        assert trust.now_ms() < NOW_MS

    def test_it_tells_of_what_is_withheld(self) -> None:
        _, trust = self.trusting()
        assert not trust.is_directive_withheld
        trust.receive_statement(statement(trust.nonce() or b"", latest_directive=1, root_version=2))
        assert trust.is_directive_withheld
        assert trust.is_root_withheld
        trust.adopt_root(root(2))
        assert not trust.is_root_withheld


class TestNonces:
    def test_a_device_with_a_clock_asks_once_a_day(self) -> None:
        device = Trust()
        trust = device.open()
        trust.adopt_root(root())
        trust.receive_statement(statement(trust.nonce() or b""))
        assert trust.nonce() is None
        trust = device.open()
        assert trust.nonce() is None
        device.clock.advance(86_400)
        assert trust.nonce() is not None

    def test_a_device_without_one_asks_at_every_boot_and_at_half_of_the_life(self) -> None:
        device = Trust(wall_ms=None)
        trust = device.open()
        trust.adopt_root(root())
        trust.receive_statement(statement(trust.nonce() or b""))
        assert trust.nonce() is None
        device.clock.advance(HOUR_MS / 2000)
        assert trust.nonce() is not None
        assert device.open().nonce() is not None

    def test_a_young_nonce_is_used_again_an_old_one_is_not(self) -> None:
        device = Trust()
        trust = device.open()
        first = trust.nonce()
        assert trust.nonce() == first
        device.clock.advance(61)
        assert trust.nonce() != first

    def test_keys_of_statements_are_those_of_the_role(self) -> None:
        trust = Trust().open()
        trust.adopt_root(root())
        assert trust.keys_of(Role.STATEMENT) == {STATEMENT.kid: STATEMENT.public}
