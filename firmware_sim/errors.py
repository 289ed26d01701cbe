"""What can be wrong with a simulation before it runs."""

from __future__ import annotations

from collections.abc import Sequence


class ScenarioError(Exception):
    """The scenario, or a file that goes with it, cannot be used; ``problems`` has one line for each fault."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(*problems)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)
