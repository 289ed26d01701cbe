"""The end of a node for its devices: each is told when to come back, and is waited for (PROTOCOL §4.9)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from device_sdk.wire.close_codes import CloseCode
from gateway.edge.device.admission import Admission
from gateway.edge.device.socket import SocketSession
from gateway.telemetry import logger

_log = logger("device")

_TURN_LEN: Final = 500  # sessions told before the loop serves others
_LOOK_S: Final = 0.02


async def drain(
    admission: Admission, *, grace_s: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Take nobody new, send every device away, and return once all have gone, after ``grace_s`` at most.

    Each device is told a time of its own, spread over as long as the rest of the nodes, or this one once it
    is back, take to let its fleet in. Who has not gone by the end is cut off.
    """
    admission.is_draining = True
    clock, random = admission.node.clock, admission.node.random
    ends_at = clock.monotonic() + grace_s
    sessions = admission.sessions.all
    spread_s = {fleet: admission.spread_s(fleet) for fleet in {session.verdict.fleet for session in sessions}}
    for number, session in enumerate(sessions, 1):
        retry_after_s = round(random.uniform(0, spread_s[session.verdict.fleet]))
        session.go_away(CloseCode.SHUTDOWN, retry_after_s)
        if number % _TURN_LEN == 0:
            await sleep(0)
    staying = [session.connection for session in sessions if isinstance(session, SocketSession)]
    while staying := [connection for connection in staying if not connection.is_gone]:
        if clock.monotonic() >= ends_at:
            _log.warning("devices did not go", count=len(staying))
            for connection in staying:
                connection.abort()
            break
        await sleep(_LOOK_S)
    await sleep(0)  # answers to polls that ended are on their way
