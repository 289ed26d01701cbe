"""The tokens of a fleet's devices, as a file: what ``ops/demo/origin.py`` reads, too. Pure but for chance."""

from __future__ import annotations

import secrets

from firmware_sim.errors import ScenarioError
from firmware_sim.scenario import Scenario, plan


def make_tokens(scenario: Scenario) -> dict[str, str]:
    """Return a random token for each device of ``scenario``."""
    return {one.device_id: secrets.token_urlsafe(32) for one in plan(scenario)}


def parse_tokens(text: str) -> dict[str, str]:
    """Return the tokens in ``text``: on each line a device id, a blank and its token; # begins a comment.

    Raises:
        ScenarioError: A line is something else, or names a device again.
    """
    tokens: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] in tokens:
            problems.append(f"line {number}: a device id and its token, each device once")
            continue
        tokens[words[0]] = words[1]
    if problems:
        raise ScenarioError(problems)
    return tokens
