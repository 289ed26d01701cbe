"""What operators took back, in memory, and the feed that keeps it so on every node (PROTOCOL §5.4, §5.5).

A revocation is about one token, which is refused from then on whatever the origin says, or about a device:
then everything that the origin said of it before is void (cached verdicts, tickets, sessions), and a token
that says it was issued before is refused. What is after is told by the feed's sequence and not by clocks: a
verdict carries the sequence that its node had read when the origin was asked.

What ends live sessions is ``gateway.session``; the rows are ``gateway.storage.revocations``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from device_sdk.wire.names import DeviceId, FleetName
from gateway.clock import Clock
from gateway.errors import GatewayError
from gateway.identity.limits import IdentityLimits
from gateway.identity.verdict import Verdict
from gateway.telemetry import Metrics, SparseLog, logger

_log = logger("identity")

_PAGE_LEN: Final = 1000


class RevocationRow(Protocol):
    """One entry of the feed; ``fleet.model.Revocation`` is one. Exactly one of the two is not None."""

    @property
    def sequence(self) -> int: ...

    @property
    def fleet(self) -> FleetName: ...

    @property
    def token_sha256(self) -> bytes | None: ...

    @property
    def device_id(self) -> DeviceId | None: ...

    @property
    def at(self) -> int: ...


class RevocationSource(Protocol):
    """Where the feed is read. Sequences commit in order: who has read one has missed none below it."""

    async def revocations(self, *, after: int, limit: int) -> Sequence[RevocationRow]: ...


class Revocations:
    """All that was taken back, as far as this node has read.

    At ``revocations_max`` the oldest go: what they took back so long ago is the origin's to refuse.

    Attributes:
        sequence: Of the last row that was read; 0: none.
    """

    def __init__(self, limits: IdentityLimits, *, clock: Clock) -> None:
        self.sequence = 0
        self._limits = limits
        self._clock = clock
        self._read_at: float | None = None
        self._tokens: dict[bytes, FleetName | None] = {}  # None: of whatever fleet
        self._devices: dict[
            tuple[FleetName, DeviceId], tuple[int, int]
        ] = {}  # the last sequence, and its time

    @property
    def is_behind(self) -> bool:
        """Whether the feed was not read lately: something may have been taken back that is not known here."""
        if self._read_at is None:
            return True
        return self._clock.monotonic() - self._read_at > self._limits.revocations_behind_max_s

    def apply(self, rows: Sequence[RevocationRow]) -> None:
        """Take up ``rows``, in order."""
        for row in rows:
            self.sequence = max(self.sequence, row.sequence)
            if row.token_sha256 is not None:
                self._tokens.pop(row.token_sha256, None)
                self._tokens[row.token_sha256] = row.fleet
            elif row.device_id is not None:
                self._devices.pop((row.fleet, row.device_id), None)
                self._devices[row.fleet, row.device_id] = (row.sequence, row.at)
        for oldest in list(self._tokens)[: max(0, len(self._tokens) - self._limits.revocations_max)]:
            del self._tokens[oldest]
        for device in list(self._devices)[: max(0, len(self._devices) - self._limits.revocations_max)]:
            del self._devices[device]

    def refuse(self, token_sha256: bytes) -> None:
        """Refuse a token now, before its row comes by."""
        self._tokens.setdefault(token_sha256, None)

    def void_device(self, fleet: FleetName, device_id: DeviceId) -> None:
        """Void what was said of a device now, before its row comes by, which has the next sequence or more.

        Until then the device is unknown here: what the origin says is from before the row, too.
        """
        sequence, at = self._devices.get((fleet, device_id), (0, -1))
        self._devices[fleet, device_id] = (max(sequence, self.sequence + 1), at)

    def read(self, at: float) -> None:
        """Note that all was read that was there ``at``, monotonic."""
        self._read_at = at

    def is_revoked(self, token_sha256: bytes, fleet: str | None) -> bool:
        """Return whether the token was taken back in ``fleet``; None: the fleet is not said."""
        if token_sha256 not in self._tokens:
            return False
        revoked_in = self._tokens[token_sha256]
        return fleet is None or revoked_in is None or revoked_in == fleet

    def voids(self, verdict: Verdict) -> bool:
        """Return whether the device was revoked after the origin was asked for ``verdict``."""
        sequence, _ = self._devices.get((verdict.fleet, verdict.device_id), (0, 0))
        return sequence > verdict.seen

    def predates(self, verdict: Verdict) -> bool:
        """Return whether the credential says that it was issued before the device was revoked."""
        if verdict.issued_at is None:
            return False
        _, at = self._devices.get((verdict.fleet, verdict.device_id), (0, -1))
        return verdict.issued_at <= at


class RevocationFeed:
    """Read the feed for ever, and tell of each row.

    Args:
        listener: Called with rows that were just taken up.
        sleep: ``asyncio.sleep``; a simulation brings its own.
    """

    def __init__(
        self,
        source: RevocationSource,
        revocations: Revocations,
        *,
        listener: Callable[[Sequence[RevocationRow]], None],
        interval_s: float,
        clock: Clock,
        metrics: Metrics,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = source
        self._revocations = revocations
        self._listener = listener
        self._interval_s = interval_s
        self._clock = clock
        self._metrics = metrics
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._sparse = SparseLog(_log)

    async def catch_up(self) -> None:
        """Read what is new.

        Raises:
            StorageUnavailableError: Not all of it.
        """
        async with self._turn:
            while True:
                began = self._clock.monotonic()
                rows = await self._source.revocations(after=self._revocations.sequence, limit=_PAGE_LEN)
                if rows:
                    self._revocations.apply(rows)
                    self._metrics.revocations.inc(len(rows))
                    self._listener(rows)
                if len(rows) < _PAGE_LEN:
                    self._revocations.read(began)
                    return

    async def run(self) -> None:
        """Read every ``interval_s``; a database that is away is asked again as often."""
        while True:
            await self._sleep(self._interval_s)
            try:
                await self.catch_up()
            except GatewayError as error:
                self._sparse.warning("revocations not read", self._clock.monotonic(), code=error.code)
            except Exception:
                _log.exception("revocations not read")
