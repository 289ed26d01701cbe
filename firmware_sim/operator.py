"""What a scenario does as the operator: alerts at their times, rollouts of releases that are published.

It speaks the operator API (docs/reference/api.md) with a token that may publish and start rollouts. A release
is signed offline and published before the run (``fleetcast release``): no key is ever here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp
from yarl import URL

from firmware_sim.dice import Dice, between
from firmware_sim.scenario import AlertTraffic, RolloutStart, Scenario

_log = logging.getLogger("fleetcast.sim")

_TIMEOUT_S: Final = 30.0
_TRIES: Final = 5
_PAUSE_S: Final = 1.0
_TEXT: Final = "Pressure in line 4 is above 8 bar. "


class Operator:
    """The operator of one run.

    Args:
        releases: Ids; a scenario's rollouts name them by their place, from 1.

    Attributes:
        sent: Alerts that the gateway took.
        failed: Requests that it did not take, by status, or by what broke.
    """

    def __init__(
        self, scenario: Scenario, *, url: str, fleet: str, token: str, releases: Sequence[str], seed: int
    ) -> None:
        self._scenario = scenario
        self._base = URL(url) / "api/v1/fleets" / fleet
        self._headers = {"Authorization": f"Bearer {token}"}
        self._releases = tuple(releases)
        self._dice = Dice(seed, "operator")
        self.sent = 0
        self.failed: Counter[str] = Counter()

    async def run(self, now_s: Callable[[], float]) -> None:
        """Do everything at its time, and return."""
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            for number, alerts in enumerate(self._scenario.alerts):
                group.create_task(self._send(session, alerts, number, now_s), name=f"sim.alerts[{number}]")
            for rollout in self._scenario.rollouts:
                group.create_task(self._start(session, rollout, now_s), name="sim.rollout")

    async def _send(
        self, session: aiohttp.ClientSession, alerts: AlertTraffic, number: int, now_s: Callable[[], float]
    ) -> None:
        random = self._dice.stream("alerts", number)
        at_s = alerts.from_s
        while at_s <= alerts.until_s:
            await asyncio.sleep(max(0.0, at_s - now_s()))
            size = int(between(random, alerts.size_bytes))
            body: dict[str, Any] = {"text": (_TEXT * (size // len(_TEXT) + 1))[:size]}
            if alerts.ttl_s:
                body["ttl_s"] = alerts.ttl_s
            key = f"sim-{random.getrandbits(96):024x}"
            if await self._post(session, f"channels/{alerts.channel}/alerts", body, key):
                self.sent += 1
            at_s += between(random, alerts.every_s)

    async def _start(
        self, session: aiohttp.ClientSession, rollout: RolloutStart, now_s: Callable[[], float]
    ) -> None:
        if rollout.release > len(self._releases):
            self.failed["no such release"] += 1
            return
        await asyncio.sleep(max(0.0, rollout.at_s - now_s()))
        body = {
            "release_id": self._releases[rollout.release - 1],
            "channel": rollout.channel,
            "percent": rollout.percent,
        }
        key = f"sim-{self._dice.stream('rollout', rollout.at_s).getrandbits(96):024x}"
        await self._post(session, "rollouts", body, key)

    async def _post(self, session: aiohttp.ClientSession, path: str, body: dict[str, Any], key: str) -> bool:
        """Post until the gateway took it or refused it for good; return whether it took it."""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            try:
                async with session.post(
                    self._base.joinpath(path), json=body, headers={"Idempotency-Key": key}
                ) as answer:
                    if answer.ok:
                        return True
                    self.failed[str(answer.status)] += 1
                    _log.warning("%s: %s %s", path, answer.status, await answer.text())
                    if answer.status < 500 and answer.status != 429:
                        return False
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.failed[type(error).__name__] += 1
        return False
