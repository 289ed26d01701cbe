"""Resume tickets: the origin's word on a device, sealed, for the device to carry (PROTOCOL §5.4).

A device that shows one with the token it was given for is admitted without asking the origin, so that the
origin has no storm when a node restarts. The node keeps nothing for it. A ticket is

    0x01 ‖ key id (4 bytes) ‖ nonce (12) ‖ AES-256-GCM of a ``_Sealed`` in MessagePack, tag included

with the first five bytes as additional data. Keys are shared through the database (``TicketKeyStore``): one
seals, the one before still opens. A key seals for an hour, 2³² tickets at most over all nodes, which random
nonces allow for (NIST SP 800-38D §8.3). Who can read the database can make tickets; who can, can read the
operators' rows as well.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import Final, Literal, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from device_sdk.wire.names import DeviceId, FleetName
from gateway.clock import Clock
from gateway.errors import GatewayError
from gateway.identity.limits import IdentityLimits
from gateway.identity.revocations import Revocations
from gateway.identity.validity import CLOCK_SKEW_S
from gateway.identity.verdict import ResumedVerdict, Verdict
from gateway.telemetry import SparseLog, logger

_log = logger("identity")

VERSION: Final = b"\x01"
KEY_SIZE: Final = 32
ROTATE_MS: Final = 3600 * 1000
ACTIVATE_MS: Final = 60 * 1000  # from a key's making to its first use: until then every node has read it
READ_INTERVAL_S: Final = 20.0
_NONCE_SIZE: Final = 12
_HEAD_SIZE: Final = 5
_LIFE_MIN_MS: Final = 10_000  # one that ends sooner is not worth a write to the device's flash

Reason = Literal[
    "behind", "malformed", "unknown_key", "forged", "expired", "wrong_token", "wrong_claim", "revoked"
]


class VoidTicketError(Exception):
    """A ticket that is as none. ``reason`` is for the metric; the device learns nothing."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class TicketKey:
    """A key of the ring.

    Attributes:
        id: 32 random bits.
        created_at: ms UTC; it orders the ring.
    """

    id: int
    secret: bytes = field(repr=False)
    created_at: int

    @classmethod
    def new(cls, *, now_ms: int) -> TicketKey:
        return cls(secrets.randbits(32), secrets.token_bytes(KEY_SIZE), now_ms)


class _Sealed(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    fleet: str
    device_id: str
    enrolment_id: bytes
    token_sha256: bytes
    judged_at: int
    ends_at: int  # of the ticket
    expires_at: int | None  # of the credential
    seen: int


class Tickets:
    """Seal and open, with the keys of ``adopt``; without one, no ticket is made and none is good.

    Args:
        revocations: Every use is checked against it.
    """

    def __init__(self, revocations: Revocations, *, limits: IdentityLimits, clock: Clock) -> None:
        self._revocations = revocations
        self._life_ms = round(limits.ticket_life_s * 1000)
        self._clock = clock
        self._ring: Sequence[TicketKey] = ()
        self._ciphers: Mapping[int, AESGCM] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_Sealed).decode

    def adopt(self, ring: Sequence[TicketKey]) -> None:
        """Take ``ring`` for the one in force, in the place of the one before."""
        self._ring = sorted(ring, key=lambda key: (key.created_at, key.id))
        self._ciphers = {key.id: AESGCM(key.secret) for key in ring}

    def seal(self, verdict: Verdict, *, enrolment_id: bytes, token_sha256: bytes) -> bytes | None:
        """Return a ticket for who was judged so with that token; None: there is none to be had.

        It ends with the credential, and ``ticket_life_s`` after the origin's word.
        """
        now_ms = self._clock.now_ms()
        ends_at = verdict.judged_at + self._life_ms
        if verdict.expires_at is not None:
            ends_at = min(ends_at, verdict.expires_at)
        key = self._sealing_key(now_ms)
        if key is None or ends_at - now_ms < _LIFE_MIN_MS:
            return None
        sealed = _Sealed(
            verdict.fleet,
            verdict.device_id,
            enrolment_id,
            token_sha256,
            verdict.judged_at,
            ends_at,
            verdict.expires_at,
            verdict.seen,
        )
        head = VERSION + key.id.to_bytes(4, "big")
        nonce = secrets.token_bytes(_NONCE_SIZE)
        return head + nonce + self._ciphers[key.id].encrypt(nonce, self._encode(sealed), head)

    def open(
        self,
        ticket: bytes,
        *,
        token_sha256: bytes,
        claimed_fleet: str | None,
        claimed_device: str | None,
    ) -> ResumedVerdict:
        """Return who shows ``ticket`` with the token of that hash.

        Raises:
            VoidTicketError: It is as none.
        """
        if self._revocations.is_behind:
            raise VoidTicketError("behind")
        sealed = self._opened(ticket)
        now_ms = self._clock.now_ms()
        if now_ms >= sealed.ends_at or sealed.judged_at > now_ms + CLOCK_SKEW_S * 1000:
            raise VoidTicketError("expired")
        if not hmac.compare_digest(sealed.token_sha256, token_sha256):
            raise VoidTicketError("wrong_token")
        named = (sealed.fleet, sealed.device_id)
        if (claimed_fleet or sealed.fleet, claimed_device or sealed.device_id) != named:
            raise VoidTicketError("wrong_claim")
        verdict = ResumedVerdict(
            device_id=DeviceId(sealed.device_id),
            fleet=FleetName(intern(sealed.fleet)),
            expires_at=sealed.expires_at,
            judged_at=sealed.judged_at,
            seen=sealed.seen,
            enrolment_id=sealed.enrolment_id,
        )
        if self._revocations.is_revoked(token_sha256, verdict.fleet) or self._revocations.voids(verdict):
            raise VoidTicketError("revoked")
        return verdict

    def _sealing_key(self, now_ms: int) -> TicketKey | None:
        """Return the newest key that every node knows; of a ring without one, the oldest."""
        active = [key for key in self._ring if key.created_at + ACTIVATE_MS <= now_ms]
        return active[-1] if active else next(iter(self._ring), None)

    def _opened(self, ticket: bytes) -> _Sealed:
        if len(ticket) <= _HEAD_SIZE + _NONCE_SIZE or ticket[:1] != VERSION:
            raise VoidTicketError("malformed")
        head = ticket[:_HEAD_SIZE]
        cipher = self._ciphers.get(int.from_bytes(head[1:], "big"))
        if cipher is None:
            raise VoidTicketError("unknown_key")
        body = _HEAD_SIZE + _NONCE_SIZE
        try:
            return self._decode(cipher.decrypt(ticket[_HEAD_SIZE:body], ticket[body:], head))
        except InvalidTag:
            raise VoidTicketError("forged") from None
        except msgspec.MsgspecError:
            # Ours by its seal, and of another form: a node of another release made it.
            raise VoidTicketError("malformed") from None


class TicketKeyStore(Protocol):
    """Where the ring is; ``gateway.storage.ticket_keys`` implements it."""

    async def ring(self) -> Sequence[TicketKey]:
        """Return the keys in force, the oldest first."""
        ...

    async def rotate(self, new: TicketKey, *, if_older_than: int) -> Sequence[TicketKey]:
        """Add ``new`` and leave but one beside it, unless the newest was made at ``if_older_than`` or after;
        return the ring as it is then. Two nodes that do so at once add one key."""
        ...


class TicketKeys:
    """Keep ``tickets`` on the shared ring, and the ring young.

    Args:
        sleep: ``asyncio.sleep``; a simulation brings its own.
    """

    def __init__(
        self,
        store: TicketKeyStore,
        tickets: Tickets,
        *,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._tickets = tickets
        self._clock = clock
        self._sleep = sleep
        self._sparse = SparseLog(_log)

    async def refresh(self) -> None:
        """Read the ring, and add a key if the newest has had its time.

        Raises:
            StorageUnavailableError: Neither.
        """
        now_ms = self._clock.now_ms()
        ring = await self._store.ring()
        if not ring or max(key.created_at for key in ring) <= now_ms - ROTATE_MS:
            new = TicketKey.new(now_ms=now_ms)
            ring = await self._store.rotate(new, if_older_than=now_ms - ROTATE_MS)
        self._tickets.adopt(ring)

    async def run(self) -> None:
        """Refresh for ever."""
        while True:
            await self._sleep(READ_INTERVAL_S)
            try:
                await self.refresh()
            except GatewayError as error:
                self._sparse.warning("ticket keys not read", self._clock.monotonic(), code=error.code)
            except Exception:
                _log.exception("ticket keys not read")
