from __future__ import annotations

import hashlib
import os
import resource
import stat
from pathlib import Path

import pytest

from device_sdk.wire.errors import DigestMismatchError
from gateway.errors import LimitExceededError, NotFoundError
from gateway.release import Artifact, ArtifactLimits, ArtifactStore

IMAGE = b"image" * 1000
DIGEST = hashlib.sha256(IMAGE).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts", ArtifactLimits(artifact_size_bytes_max=len(IMAGE)))


def write(store: ArtifactStore, data: bytes = IMAGE, *, digest: str | None = None) -> Artifact:
    with store.writer() as writer:
        for start in range(0, len(data), 999):
            writer.write(data[start : start + 999])
        return writer.commit(digest=digest)


def files(store: ArtifactStore) -> list[str]:
    root = store.path(DIGEST).parent.parent
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


class TestWrite:
    @pytest.mark.parametrize("digest", [None, DIGEST])
    def test_an_image_is_found_under_its_digest(self, store: ArtifactStore, digest: str | None) -> None:
        assert write(store, digest=digest) == Artifact(DIGEST, len(IMAGE))
        assert store.find(DIGEST) == Artifact(DIGEST, len(IMAGE))
        with store.open(DIGEST) as file:
            assert file.read() == IMAGE
        assert files(store) == [f"{DIGEST[:2]}/{DIGEST}"]

    def test_an_empty_image_is_an_image(self, store: ArtifactStore) -> None:
        assert write(store, b"") == Artifact(hashlib.sha256(b"").hexdigest(), 0)

    def test_nothing_is_visible_before_the_commit(self, store: ArtifactStore) -> None:
        with store.writer() as writer:
            writer.write(IMAGE)
            with pytest.raises(NotFoundError):
                store.find(DIGEST)
            assert writer.size_bytes == len(IMAGE)

    def test_an_upload_that_is_not_committed_leaves_nothing(self, store: ArtifactStore) -> None:
        with store.writer() as writer:
            writer.write(IMAGE)
        assert files(store) == []

    @pytest.mark.parametrize("size", [200, 1 << 20], ids=["at the commit", "at the write"])
    def test_a_disk_that_takes_no_more_leaves_nothing(self, tmp_path: Path, size: int) -> None:
        store = ArtifactStore(tmp_path / "artifacts")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                write(store, bytes(size))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert files(store) == []

    def test_other_bytes_than_announced_are_dropped(self, store: ArtifactStore) -> None:
        with pytest.raises(DigestMismatchError):
            write(store, b"other", digest=DIGEST)
        assert files(store) == []

    def test_the_size_is_bounded_inclusively(self, store: ArtifactStore) -> None:
        write(store, IMAGE)
        before = files(store)
        with pytest.raises(LimitExceededError) as caught:
            write(store, IMAGE + b"x")
        assert (caught.value.actual, caught.value.allowed) == (len(IMAGE) + 1, len(IMAGE))
        assert files(store) == before

    def test_the_same_image_twice_is_one_file(self, store: ArtifactStore) -> None:
        with store.writer() as first, store.writer() as second:
            first.write(IMAGE)
            second.write(IMAGE)
            assert first.commit() == second.commit()
        assert files(store) == [f"{DIGEST[:2]}/{DIGEST}"]

    def test_directories_are_not_for_everybody(self, store: ArtifactStore) -> None:
        write(store)
        for directory in (store.path(DIGEST).parent, store.path(DIGEST).parent.parent / "tmp"):
            assert stat.S_IMODE(directory.stat().st_mode) & 0o007 == 0


class TestRead:
    @pytest.mark.parametrize(
        ("start", "size_max", "expected"),
        [
            (0, 5, IMAGE[:5]),
            (7, 3, IMAGE[7:10]),
            (len(IMAGE) - 2, 10, IMAGE[-2:]),
            (len(IMAGE), 10, b""),
            (10**9, 10, b""),
        ],
    )
    def test_a_range_is_what_stands_there(
        self, store: ArtifactStore, start: int, size_max: int, expected: bytes
    ) -> None:
        write(store)
        assert store.read(DIGEST, start=start, size_max=size_max) == expected

    @pytest.mark.parametrize(
        "digest",
        [
            "",
            DIGEST[:-1],
            DIGEST + "0",
            DIGEST.upper(),
            DIGEST + "\n",
            "../" * 21 + "x",
            "ab/" + "0" * 61,
            "\x00" * 64,
            "٠" * 64,
            "0" * 64,
        ],
    )
    def test_what_is_no_digest_of_an_image_is_not_found(self, store: ArtifactStore, digest: str) -> None:
        write(store)
        for ask in (store.find, store.open, store.delete):
            with pytest.raises(NotFoundError):
                ask(digest)
        with pytest.raises(NotFoundError):
            store.read(digest, start=0, size_max=1)

    def test_a_deleted_image_is_gone_but_for_those_who_read_it(self, store: ArtifactStore) -> None:
        write(store)
        with store.open(DIGEST) as file:
            store.delete(DIGEST)
            assert file.read() == IMAGE
        with pytest.raises(NotFoundError):
            store.find(DIGEST)
        with pytest.raises(NotFoundError):
            store.delete(DIGEST)


def test_what_a_crash_left_is_swept_and_images_stay(store: ArtifactStore, tmp_path: Path) -> None:
    write(store)
    for name in ("one", "two"):
        (tmp_path / "artifacts" / "tmp" / name).write_bytes(b"half")
        os.utime(tmp_path / "artifacts" / "tmp" / name, (1_000.0, 1_000.0))
    again = ArtifactStore(tmp_path / "artifacts")
    assert again.sweep(modified_before_ms=1_000_000) == 0
    with again.writer() as writer:
        assert again.sweep(modified_before_ms=1_000_001) == 2
        writer.write(IMAGE)
        writer.commit()
    assert files(again) == [f"{DIGEST[:2]}/{DIGEST}"]
