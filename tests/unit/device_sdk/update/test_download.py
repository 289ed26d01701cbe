"""A download from servers that are not what they should be (SECURITY.md: endless data, slow retrieval)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from device_sdk.errors import (
    DownloadFailedError,
    ImageDigestMismatchError,
    InstallByPassedError,
    InstallFailedError,
    NoSpaceError,
    TooLargeError,
    TooSlowError,
)
from device_sdk.store import MemoryFlash
from device_sdk.update.download import Download
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.ports import (
    FetchBusyError,
    Fetched,
    FetchError,
    FetchRangeError,
    FetchUnreachableError,
    Image,
)
from device_sdk.update.slots import SlotInstaller
from tests.unit.device_sdk.update.world import FakeClock, FlashSlotFiles, Request, Server

BYTES = bytes(i * 7 % 256 for i in range(1000))


def image_of(data: bytes) -> Image:
    digest = hashlib.sha256(data).digest()
    return Image(digest=digest, size=len(data), manifest_digest=b"m" * 32, sequence=1, version="")


class Device:
    """A slot, a server and a download into the one from the other."""

    def __init__(self, data: bytes = BYTES, **limits: float) -> None:
        self.flash = MemoryFlash()
        self.clock = FakeClock()
        self.server = Server({"/i": data})
        self.limits = UpdateLimits(**{"checkpoint_bytes": 300, "attempt_progress_bytes": 100, **limits})  # type: ignore[arg-type]
        self.image = image_of(data)
        self.etags: list[str | None] = []
        self.progress: list[int] = []
        self.check_time: Callable[[], None] = lambda: None
        self.installer = SlotInstaller(FlashSlotFiles(self.flash))

    def restart(self) -> None:
        self.installer = SlotInstaller(FlashSlotFiles(self.flash))

    async def download(self, *, etag: str | None = None) -> bytes:
        await Download(
            image=self.image,
            uri="/i",
            component="main",
            installer=self.installer,
            fetch=self.server,
            clock=self.clock,
            limits=self.limits,
            uniform=lambda: 1.0,
            etag=etag,
            keep_etag=self.etags.append,
            report_progress=self.progress.append,
            check_time=lambda: self.check_time(),
        ).run()
        return self.flash.files["main.b"]

    def asked(self) -> list[tuple[int, str | None]]:
        return [(request.offset, request.etag) for request in self.server.requests]


def cut(data: bytes, size: int, *, etag: str | None = '"1"') -> Callable[[Request], Fetched]:
    """An answer that says it is whole and ends ``size`` bytes early of where it began."""

    def answer(request: Request) -> Fetched:
        return Fetched(request.offset, len(data), etag, chunks(data[request.offset :][:size]))

    return answer


async def chunks(data: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def raising(error: Exception) -> Callable[[Request], Exception]:
    return lambda request: error


async def test_an_image_arrives_whole_with_one_request() -> None:
    device = Device()
    assert await device.download() == BYTES
    assert device.asked() == [(0, None)]
    assert device.progress[-1] == len(BYTES)
    assert device.server.is_open == 0
    assert device.clock.slept == []


async def test_an_empty_image_needs_no_request() -> None:
    device = Device(b"")
    assert await device.download() == b""
    assert device.asked() == []


class TestResuming:
    async def test_a_broken_answer_is_gone_on_with_by_range_and_if_range(self) -> None:
        device = Device()
        device.server.script = [cut(BYTES, 250)]
        assert await device.download() == BYTES
        assert device.asked() == [(0, None), (250, '"1"')]
        assert device.etags == ['"1"']

    async def test_after_a_restart_it_goes_on_behind_the_last_checkpoint(self) -> None:
        device = Device(attempts_max=1)
        device.server.script = [cut(BYTES, 700)]
        with pytest.raises(DownloadFailedError):
            await device.download()
        device.restart()
        assert await device.download(etag='"1"') == BYTES
        # 300 and 600 were synced; the flash may have lost what came after.
        assert device.asked() == [(0, None), (600, '"1"')]

    async def test_what_is_on_flash_is_hashed_again_and_not_believed(self) -> None:
        device = Device(attempts_max=1)
        device.server.script = [cut(BYTES, 600)]
        with pytest.raises(DownloadFailedError):
            await device.download()
        rotten = bytearray(device.flash.files["main.b"])
        rotten[10] ^= 1
        device.flash.replace("main.b", bytes(rotten))
        device.restart()
        assert await device.download(etag='"1"') == BYTES
        assert device.asked() == [(0, None), (600, '"1"'), (0, None)]

    async def test_a_server_that_ignores_the_range_is_taken_from_the_beginning(self) -> None:
        device = Device()
        whole = lambda request: Fetched(0, len(BYTES), '"1"', chunks(BYTES))  # noqa: E731
        device.server.script = [cut(BYTES, 250), whole]
        assert await device.download() == BYTES

    async def test_another_entity_is_taken_from_the_beginning(self) -> None:
        device = Device()
        device.server.script = [cut(bytes(1000), 500, etag='"0"')]
        assert await device.download() == BYTES
        assert device.asked() == [(0, None), (500, '"0"')]
        assert device.etags == ['"0"', '"1"']

    async def test_pieces_of_two_entities_are_fetched_anew_once(self) -> None:
        device = Device()
        device.server.script = [cut(bytes(1000), 500, etag=None), cut(BYTES, 500, etag=None)]
        assert await device.download() == BYTES
        assert [offset for offset, _ in device.asked()] == [0, 500, 0]

    async def test_and_not_twice(self) -> None:
        device = Device()
        device.server.images["/i"] = bytes(1000)
        device.server.script = [cut(bytes(1000), 500)]
        with pytest.raises(ImageDigestMismatchError):
            await device.download()
        assert [offset for offset, _ in device.asked()] == [0, 500, 0]

    async def test_a_server_without_that_range_is_asked_from_the_beginning(self) -> None:
        device = Device()
        device.server.script = [cut(BYTES, 250), raising(FetchRangeError())]
        assert await device.download() == BYTES
        assert device.asked() == [(0, None), (250, '"1"'), (0, None)]

    async def test_a_range_that_was_not_asked_for_is_no_answer(self) -> None:
        device = Device()
        device.server.script = [
            cut(BYTES, 250),
            lambda request: Fetched(300, len(BYTES), None, chunks(BYTES[300:])),
        ]
        assert await device.download() == BYTES
        assert [offset for offset, _ in device.asked()] == [0, 250, 250]

    async def test_bytes_of_an_earlier_image_are_not_kept(self) -> None:
        device = Device(attempts_max=1)
        device.server.script = [cut(BYTES, 600)]
        with pytest.raises(DownloadFailedError):
            await device.download()
        device.image = image_of(b"another")
        device.server.images["/i"] = b"another"
        assert await device.download(etag='"1"') == b"another"
        assert device.asked()[1] == (0, None)


class TestHostile:
    async def test_wrong_bytes_are_refused(self) -> None:
        device = Device()
        device.server.images["/i"] = bytes(1000)
        with pytest.raises(ImageDigestMismatchError):
            await device.download()
        assert len(device.asked()) == 1

    async def test_a_server_that_says_it_has_more_is_refused_before_a_byte_is_written(self) -> None:
        device = Device()
        device.server.images["/i"] = BYTES + b"x"
        with pytest.raises(TooLargeError):
            await device.download()
        assert device.flash.files.get("main.b", b"") == b""

    async def test_endless_data_is_cut_at_the_signed_size(self) -> None:
        device = Device()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield BYTES[:300]

        device.server.script = [lambda request: Fetched(0, None, None, endless())]
        with pytest.raises(TooLargeError):
            await device.download()
        assert len(device.flash.files["main.b"]) <= len(BYTES)
        assert device.server.is_open == 0

    async def test_a_page_of_a_portal_is_no_image_and_not_written(self) -> None:
        device = Device()
        device.server.script = [lambda request: Fetched(0, 10, None, chunks(b"<html>..."))]
        assert await device.download() == BYTES
        assert device.asked() == [(0, None), (0, None)]

    async def test_a_server_that_always_cuts_is_given_up(self) -> None:
        device = Device(attempts_max=4)
        device.server.script = [cut(BYTES, 0)] * 4
        with pytest.raises(DownloadFailedError):
            await device.download()
        assert len(device.asked()) == 4

    async def test_progress_gives_a_cutting_server_new_attempts(self) -> None:
        device = Device(attempts_max=2)
        device.server.script = [cut(BYTES, 100)] * 9
        assert await device.download() == BYTES

    async def test_a_trickle_is_given_up(self) -> None:
        device = Device(slow_attempts_max=3, rate_min_bytes_per_s=10, rate_window_s=60)

        async def trickle(data: bytes) -> AsyncIterator[bytes]:
            for byte in data:
                device.clock.advance(1)
                yield bytes([byte])

        slow = lambda request: Fetched(request.offset, None, None, trickle(BYTES[request.offset :]))  # noqa: E731
        device.server.script = [slow] * 3
        with pytest.raises(TooSlowError):
            await device.download()
        assert [offset for offset, _ in device.asked()] == [0, 60, 120]

    async def test_a_slow_server_that_is_fast_enough_is_not(self) -> None:
        device = Device(rate_min_bytes_per_s=10, rate_window_s=60)

        async def steady(data: bytes) -> AsyncIterator[bytes]:
            for start in range(0, len(data), 10):
                device.clock.advance(1)
                yield data[start : start + 10]

        device.server.script = [lambda request: Fetched(0, None, None, steady(BYTES))]
        assert await device.download() == BYTES
        assert len(device.asked()) == 1

    async def test_silence_ends_an_attempt(self) -> None:
        device = Device(chunk_timeout_s=0.01)

        async def silent() -> AsyncIterator[bytes]:
            yield BYTES[:100]
            await asyncio.Event().wait()

        device.server.script = [lambda request: Fetched(0, None, '"1"', silent())]
        assert await device.download() == BYTES
        assert device.asked() == [(0, None), (100, '"1"')]
        assert device.server.is_open == 0

    async def test_no_answer_ends_an_attempt(self) -> None:
        device = Device(chunk_timeout_s=0.01)
        honest = device.server.fetch

        class Silent:
            requests = 0

            def fetch(self, uri: str, *, offset: int, etag: str | None):  # type: ignore[no-untyped-def]
                self.requests += 1
                return self if self.requests == 1 else honest(uri, offset=offset, etag=etag)

            async def __aenter__(self) -> Fetched:
                await asyncio.Event().wait()
                raise AssertionError

            async def __aexit__(self, *_: object) -> None:
                return None

        device.server = Silent()  # type: ignore[assignment]
        assert await device.download() == BYTES


class TestWaiting:
    async def test_a_busy_server_is_no_failed_attempt_and_is_asked_when_it_says(self) -> None:
        device = Device(attempts_max=1)
        device.server.script = [raising(FetchBusyError(42))] * 50
        assert await device.download() == BYTES
        assert device.clock.slept == [42.0] * 50

    @pytest.mark.parametrize(("asked_s", "waited_s"), [(None, 30.0), (0, 1.0), (1e9, 3600.0)])
    async def test_what_it_says_is_bounded(self, asked_s: float | None, waited_s: float) -> None:
        device = Device()
        device.server.script = [raising(FetchBusyError(asked_s))]
        await device.download()
        assert device.clock.slept == [waited_s]

    async def test_being_offline_is_no_failed_attempt(self) -> None:
        device = Device(attempts_max=1)
        device.server.script = [raising(FetchUnreachableError())] * 12
        assert await device.download() == BYTES
        assert device.clock.slept[:4] == [2.0, 4.0, 8.0, 16.0]
        assert device.clock.slept[-1] == 300.0

    async def test_failures_wait_longer_each_time_up_to_a_bound(self) -> None:
        device = Device(attempts_max=12, backoff_s=1.0, backoff_max_s=10.0)
        device.server.script = [raising(FetchError("status 500"))] * 11
        assert await device.download() == BYTES
        assert device.clock.slept == [2.0, 4.0, 8.0] + [10.0] * 8

    async def test_it_ends_when_it_has_become_too_late(self) -> None:
        device = Device()
        device.server.script = [raising(FetchUnreachableError())] * 100

        def check_time() -> None:
            if device.clock.monotonic() > 5000:
                raise InstallByPassedError("too late to begin installing")

        device.check_time = check_time
        with pytest.raises(InstallByPassedError):
            await device.download()


class TestFlash:
    async def test_a_full_file_system_is_no_space(self) -> None:
        device = Device()
        append = device.installer._files.append

        def full(name: str, data: bytes) -> None:
            if device.progress and device.progress[-1] >= 300:
                raise OSError(28, "No space left on device")
            append(name, data)

        device.installer._files.append = full  # type: ignore[method-assign]
        with pytest.raises(NoSpaceError):
            await device.download()

    async def test_bytes_that_are_not_there_after_all_are_fetched_again(self) -> None:
        device = Device()
        device.server.script = [cut(BYTES, 600)]

        async def nothing(component: str, offset: int, size: int) -> bytes:
            return b""

        device.limits = replace(device.limits, attempts_max=1)
        with pytest.raises(DownloadFailedError):
            await device.download()
        device.restart()
        device.installer.read = nothing  # type: ignore[method-assign]
        assert await device.download(etag='"1"') == BYTES
        assert device.asked()[-1] == (0, None)

    async def test_a_failing_flash_is_not_taken_for_the_network(self) -> None:
        device = Device()

        def broken(name: str, data: bytes) -> None:
            raise OSError(5, "Input/output error")

        device.installer._files.append = broken  # type: ignore[method-assign]
        with pytest.raises(InstallFailedError):
            await device.download()
        assert len(device.asked()) == 1
