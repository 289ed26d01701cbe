"""What a device trusts: keys by role, floors below which it never goes, and the time.

The rules (PROTOCOL §7):

* Keys come from the root document; before there is one, the keys the device was provisioned with vouch
  for releases and for root documents, and nobody for anything else.
* An expired root vouches for its successor and for nothing else, whatever the role. The device then
  installs nothing and believes no statement and no alert: who keeps a rotation from it gains nothing.
* Every floor is stored before it is acted on, and none of them ever falls: root version, manifest
  sequence per (component, class), directive sequence, time.

Everything is under ``trust/`` in the state store. Which directive is followed is in ``counter``; the order
of the checks in ``acceptance``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from device_sdk.errors import (
    ClockUnknownError,
    RollbackError,
    StatementReplayedError,
)
from device_sdk.update.counter import Counter
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.ports import DeviceClock, StateStore
from device_sdk.wire.cose import Keys
from device_sdk.wire.keys import PublicKey, Role
from device_sdk.wire.messages import Installed
from device_sdk.wire.signed import RootDocument, Statement, verify_root, verify_statement
from device_sdk.wire.signed.statement import NONCE_SIZE_MIN

_ROOT: Final = "trust/root"
_TIME: Final = "trust/time"
_COUNTER: Final = "trust/counter"
_FLOOR: Final = "trust/floor/"

NO_KEYS: Final[Mapping[bytes, PublicKey]] = {}


@dataclass(frozen=True, slots=True)
class Floor:
    """The release that was committed last: sequence, and SHA-256 of its manifest (empty: unknown)."""

    sequence: int
    digest: bytes

    def check(self, sequence: int, digest: bytes) -> None:
        """Return if a release may follow this one (PROTOCOL §7.1).

        Raises:
            RollbackError: A lower sequence, or an equal one that names another manifest.
        """
        if sequence < self.sequence:
            raise RollbackError("manifest sequence", sequence, self.sequence)
        # The factory's image has sequence 0 and no manifest: the first release may have sequence 0 too.
        if sequence == self.sequence and digest != self.digest and self != NO_FLOOR:
            raise RollbackError("another manifest's sequence", sequence, self.sequence + 1)


NO_FLOOR: Final = Floor(0, b"")


class TrustState:
    """The trust state of one device; what is read from it is stored, what is stored is read.

    Args:
        anchors: The release or root keys that the device was provisioned with.
        build_time_ms: When this software was built: no earlier time is believed.
        random: Returns as many random bytes as it is asked for.
    """

    def __init__(
        self,
        state: StateStore,
        *,
        fleet: str,
        device_id: str,
        anchors: Sequence[PublicKey],
        clock: DeviceClock,
        random: Callable[[int], bytes],
        limits: UpdateLimits,
        build_time_ms: int = 0,
    ) -> None:
        self._state = state
        self._fleet = fleet
        self._device_id = device_id
        self._anchors = tuple(anchors)
        self._clock = clock
        self._random = random
        self._limits = limits
        self._root = self._load_root()
        self._counter = Counter.from_record(state.get(_COUNTER))
        floor_ms = statement_at = 0
        match state.get(_TIME):
            case [int(floor_ms), int(statement_at)]:
                pass
            case record:
                assert record is None, "written by receive_statement"
        self._statement_at = statement_at
        self._floor_ms = max(floor_ms, build_time_ms)
        self._floor_at = clock.monotonic()
        self._nonce: bytes | None = None
        self._nonce_at = 0.0
        self._told: Statement | None = None
        self._told_at = 0.0

    # --- keys ---

    @property
    def root_version(self) -> int:
        """The version of the root document in force; 0 before the first."""
        return 0 if self._root is None else self._root.version

    def adopt_root(self, data: bytes) -> None:
        """Store the root document in ``data`` and act by it from now on. The one in force is passed over.

        Time is not asked: an expired root may lead to one that is not.

        Raises:
            WireError: Not signed by a root key of the version in force (or an anchor), or inconsistent.
            RollbackError: A lower version, or other content under the version in force.
        """
        keys = self._root_keys()
        document = verify_root(data, keys, fleet=self._fleet, version_min=max(1, self.root_version))
        if self._root is not None and document.version == self._root.version:
            if document != self._root:
                raise RollbackError("another root's version", document.version, document.version + 1)
            return
        signers = keys.values() if isinstance(keys, Mapping) else keys
        vouching = [[int(key.algorithm), key.raw] for key in signers]
        self._state.commit({_ROOT: [data, vouching]})
        self._root = document

    def keys_of(self, role: Role) -> Keys:
        """Return the keys that vouch for ``role`` now.

        Raises:
            ExpiredError: The root document's time is over.
        """
        if self._root is None:
            return self._anchors if role is Role.RELEASE else NO_KEYS
        self._root.check_fresh(self.now_ms())
        keys = self._root.keys_of(role)
        # A root document that names no release keys leaves releases with those of the factory.
        return self._anchors if role is Role.RELEASE and not keys else keys

    def release_threshold(self) -> int:
        """Return how many distinct release keys must sign a manifest."""
        return 1 if self._root is None else self._root.threshold_of(Role.RELEASE)

    def _root_keys(self) -> Keys:
        keys = {} if self._root is None else self._root.keys_of(Role.ROOT)
        return keys or self._anchors

    def _load_root(self) -> RootDocument | None:
        record = self._state.get(_ROOT)
        if record is None:
            return None
        match record:
            case [bytes(data), list(vouching)]:
                keys = [PublicKey.from_raw(algorithm, raw) for algorithm, raw in vouching]
                return verify_root(data, keys, fleet=self._fleet)
            case _:
                raise AssertionError("written by adopt_root")

    # --- floors ---

    @property
    def counter(self) -> Counter:
        """The newest directive that was taken."""
        return self._counter

    def counter_change(self, counter: Counter) -> dict[str, object | None]:
        """Return what to commit with the job that ``counter`` comes from; then ``take_counter``."""
        assert counter.sequence > self._counter.sequence, "judge lets no other through"
        return {_COUNTER: counter.to_record()}

    def take_counter(self, counter: Counter) -> None:
        """Act by ``counter``, which is stored."""
        self._counter = counter

    def floor(self, component: str, device_class: bytes, running: Installed | None) -> Floor:
        """Return the floor for ``component``: what was committed last or, if higher, what runs confirmed.

        A device fresh from the factory, or with its state lost, runs something nevertheless.
        """
        match self._state.get(_floor_key(component, device_class)):
            case [int(sequence), bytes(digest)]:
                stored = Floor(sequence, digest)
            case record:
                assert record is None, "written by floor_change"
                stored = NO_FLOOR
        if running is not None and running.is_confirmed and running.sequence > stored.sequence:
            return Floor(running.sequence, running.digest)
        return stored

    def floor_change(
        self, component: str, device_class: bytes, sequence: int, digest: bytes
    ) -> dict[str, object | None]:
        """Return what to commit with ``committed``, and not before: a failed boot burns no sequence."""
        stored = self.floor(component, device_class, None)
        if sequence < stored.sequence:  # committed while a newer one already was: never lower it
            return {}
        return {_floor_key(component, device_class): [sequence, digest]}

    # --- time (PROTOCOL §7.5) ---

    def now_ms(self) -> int:
        """Return the time, or what it is at least, milliseconds UTC.

        The floor and the monotonic time since; later if the device's own clock says so. That clock moves
        no floor: one bad day of it would be for ever.
        """
        wall_ms = self._wall_ms()
        floor_ms = self._floor_now_ms()
        return floor_ms if wall_ms is None else max(floor_ms, wall_ms)

    def fresh_now_ms(self) -> int:
        """Return the time, known and not merely a floor.

        Raises:
            ClockUnknownError: The device has no clock, and no statement that still holds.
        """
        if self._wall_ms() is None and not self._is_statement_fresh():
            raise ClockUnknownError("no clock and no fresh statement")
        return self.now_ms()

    def nonce(self) -> bytes | None:
        """Return the nonce for the next hello; None while no statement is needed.

        A device without a clock asks when the statement it has is past half its life or missing, one with
        a clock once in ``statement_interval_s``: a reconnect storm costs the gateway no signatures.
        """
        if not self._needs_statement():
            return None
        now = self._clock.monotonic()
        if self._nonce is None or now - self._nonce_at > self._limits.nonce_life_s / 2:
            self._nonce, self._nonce_at = self._random(NONCE_SIZE_MIN), now
        return self._nonce

    def receive_statement(self, body: bytes) -> Statement:
        """Raise the time floor to a statement that answers the nonce outstanding; a nonce is used up once.

        1. A nonce is outstanding, and young: how late the statement's time may be is bounded.
        2. Signature, fleet, device, nonce.
        3. The root document vouches for it at that time; so no statement carries the clock past the end
           of the root document that it stands on.
        4. It has not expired by what the device knew before.

        Raises:
            StatementReplayedError: No nonce, an old one, or another one.
            WireError, WrongDeviceError, ExpiredError: As the lines say.
        """
        now = self._clock.monotonic()
        if self._nonce is None or now - self._nonce_at > self._limits.nonce_life_s:  # 1
            raise StatementReplayedError("no nonce is outstanding")
        statement = verify_statement(  # 2
            body,
            self.keys_of(Role.STATEMENT),
            fleet=self._fleet,
            device=self._device_id,
            nonce=self._nonce,
        )
        if self._root is not None:
            self._root.check_fresh(statement.time)  # 3
        statement.check_fresh(self.now_ms())  # 4
        floor_ms = max(self._floor_now_ms(), statement.time)
        self._state.commit({_TIME: [floor_ms, statement.time]})
        self._floor_ms, self._floor_at = floor_ms, now
        self._statement_at = statement.time
        self._told, self._told_at = statement, now
        self._nonce = None
        return statement

    @property
    def is_directive_withheld(self) -> bool:
        """Whether the last statement names a newer directive than any that came: somebody keeps it."""
        return self._told is not None and self._told.latest_directive > self._counter.sequence

    @property
    def is_root_withheld(self) -> bool:
        """Whether the last statement names a newer root document than the one in force."""
        return self._told is not None and self._told.root_version > self.root_version

    def _floor_now_ms(self) -> int:
        return self._floor_ms + int((self._clock.monotonic() - self._floor_at) * 1000)

    def _wall_ms(self) -> int | None:
        """Return the device's own clock, if it is one: behind the floor it is provably wrong."""
        wall_ms = self._clock.wall_ms()
        if wall_ms is None or wall_ms < self._floor_now_ms() - self._limits.clock_skew_s * 1000:
            return None
        return wall_ms

    def _is_statement_fresh(self, part: float = 1.0) -> bool:
        """Return whether less than ``part`` of the life of the last statement of this boot is over."""
        if self._told is None:
            return False
        life_s = (self._told.expires_at - self._told.time) / 1000
        return self._clock.monotonic() < self._told_at + life_s * part

    def _needs_statement(self) -> bool:
        if self._wall_ms() is None:
            return not self._is_statement_fresh(0.5)
        return self.now_ms() - self._statement_at >= self._limits.statement_interval_s * 1000


def _floor_key(component: str, device_class: bytes) -> str:
    return f"{_FLOOR}{component}/{device_class.hex()}"
