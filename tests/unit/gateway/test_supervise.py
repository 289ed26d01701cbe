"""What is said to systemd, over a real socket; what its variables mean; when the watchdog is patted."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from pathlib import Path

import pytest

from gateway.config import Supervisor, read_supervisor
from gateway.errors import ConfigError
from gateway.supervise import Notifier, inherited_sockets, keep_alive
from tests.harness.systemd import NotifySocket


class TestEnvironment:
    def test_nothing_is_nobody(self):
        assert read_supervisor({}, pid=7) == Supervisor(None, None, range(0))

    @pytest.mark.parametrize(
        ("environ", "watchdog_s"),
        [
            ({"WATCHDOG_USEC": "30000000"}, 30.0),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
            ({"WATCHDOG_USEC": "0"}, None),
            ({"WATCHDOG_USEC": "soon"}, None),
            ({"WATCHDOG_USEC": "-1"}, None),
        ],
    )
    def test_the_watchdog_is_for_the_process_it_names(self, environ, watchdog_s):
        assert read_supervisor(environ, pid=7).watchdog_s == watchdog_s

    @pytest.mark.parametrize(
        ("environ", "descriptors"),
        [
            ({"LISTEN_FDS": "2", "LISTEN_PID": "7"}, range(3, 5)),
            ({"LISTEN_FDS": "2", "LISTEN_PID": "8"}, range(0)),
            ({"LISTEN_FDS": "2"}, range(0)),
            ({"LISTEN_FDS": "²", "LISTEN_PID": "7"}, range(0)),
        ],
    )
    def test_sockets_are_for_the_process_that_is_named(self, environ, descriptors):
        assert list(read_supervisor(environ, pid=7).descriptors) == list(descriptors)


class TestNotifier:
    @pytest.mark.parametrize("kind", ["file", "abstract"])
    def test_each_state_is_one_datagram(self, tmp_path: Path, kind: str) -> None:
        address = (
            f"@fleetcast-test-{tmp_path.name}-{time.time_ns()}" if kind == "abstract" else tmp_path / "n"
        )
        with NotifySocket(address) as heard:
            notifier = Notifier(heard.address)
            notifier.ready("up")
            notifier.alive("1 device")
            before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            notifier.reloading()
            notifier.stopping("going")
            ready, alive, reloading, stopping = heard.read()
        assert ready == ["READY=1", "STATUS=up"]
        assert alive == ["WATCHDOG=1", "STATUS=1 device"]
        assert reloading[0] == "RELOADING=1"
        assert int(reloading[1].removeprefix("MONOTONIC_USEC=")) >= before_us
        assert stopping == ["STOPPING=1", "STATUS=going"]

    def test_nobody_there_is_no_reason_to_fail(self, tmp_path: Path) -> None:
        Notifier(None).ready("up")
        Notifier(str(tmp_path / "gone")).ready("up")


class _EndError(Exception):
    pass


class TestWatchdog:
    async def beats(self, address: Path, stuck: list[float]) -> list[list[str]]:
        """Return what is said while the writer is stuck for so long at each turn."""
        waits = iter(stuck)
        slept: list[float] = []

        def stuck_s() -> float:
            try:
                return next(waits)
            except StopIteration:
                raise _EndError from None

        async def sleep(delay_s: float) -> None:
            slept.append(delay_s)

        with NotifySocket(address) as heard:
            with pytest.raises(_EndError):
                await keep_alive(
                    Notifier(heard.address),
                    watchdog_s=30.0,
                    stuck_s=stuck_s,
                    status=lambda: "well",
                    sleep=sleep,
                )
            assert set(slept) == {10.0}, "three in each period"
            return heard.read()

    async def test_it_is_patted_while_the_writer_makes_progress(self, tmp_path):
        assert await self.beats(tmp_path / "n", [0.0, 29.9, 0.0]) == [["WATCHDOG=1", "STATUS=well"]] * 3

    @pytest.mark.parametrize("stuck_s", [30.0, math.inf])
    async def test_it_is_left_to_bite_when_the_writer_is_stuck(self, tmp_path, stuck_s):
        assert await self.beats(tmp_path / "n", [0.0, stuck_s, stuck_s]) == [["WATCHDOG=1", "STATUS=well"]]

    async def test_it_is_patted_again_when_the_writer_goes_on(self, tmp_path):
        assert len(await self.beats(tmp_path / "n", [30.0, 0.0])) == 1

    async def test_nobody_watches(self, tmp_path):
        await keep_alive(Notifier(None), watchdog_s=None, stuck_s=lambda: 0.0, status=lambda: "")

    async def test_a_loop_that_stands_still_says_nothing(self, tmp_path):
        with NotifySocket(tmp_path / "n") as heard:
            task = asyncio.create_task(
                keep_alive(Notifier(heard.address), watchdog_s=1e-6, stuck_s=lambda: 0.0, status=str)
            )
            await asyncio.sleep(0)
            heard.read()
            for _ in range(1000):  # much more than a period, without giving the loop a turn
                assert heard.read() == []
            task.cancel()


class TestSockets:
    def test_a_listening_socket_is_taken_and_kept_from_children(self):
        with socket.create_server(("127.0.0.1", 0)) as bound:
            bound.set_inheritable(True)
            (taken,) = inherited_sockets([bound.detach()])
            with taken:
                assert taken.getsockname()[0] == "127.0.0.1"
                assert not taken.get_inheritable()
                assert not taken.getblocking()

    @pytest.mark.parametrize("kind", ["datagram", "not listening", "unix"])
    def test_anything_else_is_refused(self, tmp_path, kind):
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as other:
            other.bind(str(tmp_path / "s") if kind == "unix" else ("127.0.0.1", 0))
            if kind == "unix":
                other.listen()
            with pytest.raises(ConfigError, match="is no listening TCP socket"):
                inherited_sockets([other.detach()])

    def test_no_descriptor_is_refused(self):
        with pytest.raises(ConfigError, match="Bad file descriptor"):
            inherited_sockets([10_000])
