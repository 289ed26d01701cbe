"""Running the program in this process."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from gateway.cli.program import app

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``fleetcast`` with arguments, and no variables of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("FLEETCAST_")]:
        monkeypatch.delenv(name)

    def run(*arguments: object, text: str | None = None, **variables: str) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=text, env=variables)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run
