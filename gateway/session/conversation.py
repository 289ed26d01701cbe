"""A conversation with one device: it opens, messages go both ways, it ends. What about is in its subclasses.

It knows no socket and no HTTP: a transport is a subclass that can ``_send`` encoded messages and ``_end``.
What needs the database is work that the node spawns; its failure ends the conversation, never silently.
``updates`` and ``deliveries`` build on it, ``session`` is the whole.
"""

from __future__ import annotations

import enum
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.messages import Error, Goaway, Message, Recorded, Uplink, encode_cbor, encode_json
from gateway.errors import GatewayError, StorageUnavailableError
from gateway.identity import Verdict
from gateway.session.limits import IN_FLIGHT_MAX
from gateway.session.ports import Node
from gateway.telemetry import logger

_log = logger("session")

_BACKOFF_EXPONENT_MAX: Final = 16


class State(enum.Enum):
    """CONNECTING → OPEN → CLOSED; there is no way back."""

    CONNECTING = enum.auto()  # admitted; no hello yet
    OPEN = enum.auto()
    CLOSED = enum.auto()  # the end was said or seen; input is discarded


class Conversation:
    """A connected device, and what is said.

    Attributes:
        rtt_s: Of the last ping; 0: not measured yet.
        in_flight: Answers to the device's messages that are under way.
    """

    __slots__ = (
        "boot_id",
        "device_key",
        "fleet_key",
        "id",
        "in_flight",
        "is_json",
        "is_waiting",
        "node",
        "opened_at",
        "rtt_s",
        "state",
        "verdict",
    )

    def __init__(self, node: Node, verdict: Verdict, *, is_json: bool, now: float) -> None:
        self.node = node
        self.verdict = verdict
        self.is_json = is_json
        self.opened_at = now
        self.state = State.CONNECTING
        self.id = b""
        self.fleet_key = 0
        self.device_key = 0
        self.boot_id = b""
        self.rtt_s = 0.0
        self.in_flight = 0
        self.is_waiting = False

    # --- what a transport gives ---------------------------------------------------------------------------

    @property
    def token_sha256(self) -> bytes:
        """Of the bearer token that it stands on; empty: it keeps none."""
        return b""

    def _send(self, messages: Sequence[bytes]) -> None:
        """Write encoded messages, in order."""
        raise AssertionError("a transport decides")

    def _end(self, code: CloseCode) -> None:
        """Tell the peer, and let go of it."""
        raise AssertionError("a transport decides")

    def _hold_input(self) -> None:
        """Read no more from the peer until ``_take_input``."""

    def _take_input(self) -> None:
        """Read again."""

    def judged(self, verdict: Verdict) -> None:
        """The origin spoke again."""
        self.verdict = verdict

    # --- messages -----------------------------------------------------------------------------------------

    def send(self, *messages: Message) -> None:
        """Encode and write ``messages``."""
        if self.is_json:
            self._send([encode_json(message).encode() for message in messages])
        else:
            self._send([encode_cbor(message) for message in messages])

    async def _uplinked(self, uplink: Uplink) -> None:
        answer = await self.uplink(uplink)
        if self.state is State.OPEN:
            self.send(answer)

    async def uplink(self, uplink: Uplink) -> Recorded | Error:
        """Give ``uplink`` to the operator's backend; return the answer to it."""
        verdict = self.verdict
        return await self.node.uplinks.deliver(verdict.fleet, verdict.device_id, uplink)

    # --- work ---------------------------------------------------------------------------------------------

    def _answer(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do ``work`` for a message of the peer; it is not read while too much of that is under way."""
        self.in_flight += 1
        if self.in_flight == IN_FLIGHT_MAX:
            self._hold_input()
        self._work(self._counted(work), name)

    async def _counted(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            if self.in_flight == IN_FLIGHT_MAX:
                self._take_input()
            self.in_flight -= 1

    def _work(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.node.spawn(self._guarded(work), name=f"session[{self.verdict.device_id}].{name}")

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work``; a database that is away ends the session, since what it needs cannot be had."""
        try:
            await work
        except StorageUnavailableError:
            self.close(CloseCode.STORAGE_UNAVAILABLE)
        except GatewayError as error:
            _log.info("session cannot go on", device=self.verdict.device_id, code=error.code)
            self.close(CloseCode.INSUFFICIENT_STATE)
        except Exception:
            _log.exception("session failed", device=self.verdict.device_id)
            self.close(CloseCode.INTERNAL_ERROR)

    def _wait_for_room(self) -> None:
        if not self.is_waiting:
            self.is_waiting = True
            self._hold_input()
            self._work(self._room(), "room")

    async def _room(self) -> None:
        await self.node.writer.drained()
        self.is_waiting = False
        self._take_input()

    def _wait(self, attempts: int, least_s: float, most_s: float) -> float:
        """Return d/2 + U(0, d/2); d doubles with each attempt and is never less than four round trips."""
        d = max(least_s, 4 * self.rtt_s) * 2 ** min(attempts, _BACKOFF_EXPONENT_MAX)
        d = min(d, max(most_s, least_s))
        jittered: float = d / 2 + self.node.random.uniform(0, d / 2)
        return jittered

    # --- the end ------------------------------------------------------------------------------------------

    def close(self, code: CloseCode) -> None:
        """End the session for the reason ``code``."""
        if self.state is State.CLOSED:
            return
        self._end(code)
        self.ended()

    def go_away(self, code: CloseCode, retry_after_s: int) -> None:
        """End the session for the reason ``code``, and say when to come back."""
        if self.state is State.OPEN:  # the first message of all is the welcome
            self.send(Goaway(int(code), retry_after_s))
        self.close(code)

    def revoke(self) -> None:
        """End the session: its credential was taken back."""
        self.close(CloseCode.CREDENTIAL_REVOKED)

    def ended(self) -> None:
        """The transport is gone or told to go. Idempotent."""
        raise AssertionError("a session decides")
