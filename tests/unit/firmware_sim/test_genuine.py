"""What was truly offered is what the operator signed, and no more of it is kept than is bounded."""

from __future__ import annotations

import hashlib

from device_sdk.store import MemoryFlash, StateStore
from device_sdk.wire.keys import PrivateKey
from device_sdk.wire.messages import Cancel, Roots, Update
from firmware_sim.durable import Floors, has_nack, read_floors, read_handled, read_inbox
from firmware_sim.genuine import KEPT_MAX, Genuine, Releases
from gateway.release import ReleaseContent, author_envelope, sign_envelope

KEY = PrivateKey.generate()
IMAGE = hashlib.sha256(b"image").digest()


def envelope(key: PrivateKey, sequence: int = 7) -> bytes:
    content = ReleaseContent(
        vendor_identifier=bytes(16),
        class_identifier=bytes(16),
        component="main",
        sequence_number=sequence,
        image_digest=IMAGE,
        image_size=5,
        uri="/image",
        version="1",
    )
    return sign_envelope(author_envelope(content), [key])


def test_release_that_the_operator_signed_is_known_by_manifest_and_image() -> None:
    genuine = Genuine(Releases([KEY.public]))
    genuine.said(Update(b"d" * 16, b"not a directive", envelope(KEY)))
    release = genuine.deployments[b"d" * 16]
    assert release is not None
    assert (release.sequence, release.component, release.image_digest) == (7, "main", IMAGE)
    assert genuine.releases == {release.manifest_digest: release}
    assert genuine.is_image(IMAGE)
    assert not genuine.is_image(bytes(32))


def test_what_others_signed_or_nobody_is_no_release() -> None:
    genuine = Genuine(Releases([KEY.public]))
    for number, manifest in enumerate((envelope(PrivateKey.generate()), b"nonsense")):
        genuine.said(Update(bytes([number]) * 16, b"", manifest))
    genuine.said(Roots((b"nonsense",)))
    genuine.said(Cancel(bytes(16)))
    assert list(genuine.deployments.values()) == [None, None]
    assert not genuine.releases
    assert not genuine.root_versions
    assert not genuine.is_image(IMAGE)


def test_deployments_are_bounded_and_their_releases_stay_known() -> None:
    genuine = Genuine(Releases([KEY.public]))
    genuine.said(Update(b"first" + bytes(11), b"", envelope(KEY)))
    for number in range(KEPT_MAX):
        genuine.said(Update(number.to_bytes(16, "big"), b"", b"nonsense"))
    assert len(genuine.deployments) == KEPT_MAX
    assert genuine.is_image(IMAGE)


def test_empty_flash_has_no_floors_and_nothing_waiting() -> None:
    store = StateStore(MemoryFlash())
    assert read_floors(store) == Floors()
    assert (read_inbox(store), read_handled(store), has_nack(store, "ops", 1, 2)) == (set(), {}, False)
