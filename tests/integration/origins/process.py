"""Run one of the origins as a process of its own, and drive its control side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

FOLDER = Path(__file__).parent


class Origin:
    """``with Origin("forward_auth") as origin``; ``stop`` and ``start`` keep the port."""

    def __init__(self, name: str) -> None:
        self._script = FOLDER / f"{name}.py"
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return when it listens; nothing happens if it does."""
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [sys.executable, str(self._script), "--port", str(self._port)], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._port = json.loads(self._process.stdout.readline())["port"]

    def stop(self) -> None:
        """Kill it: connections are cut, later ones refused, what it knew is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    async def reset(self, **wanted: Any) -> None:
        """Bring it back to its first state, started if it was not, then as ``control``."""
        self.start()
        await self.control(reset=True, **wanted)

    async def control(self, **wanted: Any) -> None:
        await self.post("/_control", wanted)

    async def release(self) -> None:
        await self.post("/_release", {})

    async def seen(self, *, held: int = 0) -> dict[str, Any]:
        """Return what was asked; with ``held``, once so many questions are held."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/_seen?held={held}") as answer:
            document: dict[str, Any] = await answer.json()
            return document

    async def post(self, path: str, document: object) -> dict[str, Any]:
        url = f"{self.url}{path}"
        async with aiohttp.ClientSession() as session, session.post(url, json=document) as answer:
            answer.raise_for_status()
            result: dict[str, Any] = await answer.json()
            return result
