"""What the gateway and the operator truly said to a device, before anybody on the way could change it.

Whatever a device installs, or keeps as a floor, has to come from here (``invariants``). Pure.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from device_sdk.wire.errors import WireError
from device_sdk.wire.keys import PublicKey
from device_sdk.wire.messages import FromGateway, Roots, Update
from device_sdk.wire.suit import Envelope, Manifest, authenticate
from firmware_sim.durable import signed_uint

KEPT_MAX: Final = 256
"""Deployments, directives and root documents of one device that are remembered; the oldest go."""
RELEASES_KEPT_MAX: Final = 1024


class Release(NamedTuple):
    """An image that the operator signed."""

    manifest_digest: bytes
    sequence: int
    image_digest: bytes
    component: str


class Releases:
    """The releases of a fleet: each envelope that a gateway ever sent, read once.

    Args:
        keys: The operator's release keys.
    """

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self._keys = tuple(keys)
        self._by_envelope: OrderedDict[bytes, Release | None] = OrderedDict()

    def of(self, envelope: bytes) -> Release | None:
        """Return the release in ``envelope``; None if no release key vouches for one."""
        key = hashlib.sha256(envelope).digest()
        if key not in self._by_envelope:
            self._by_envelope[key] = self._read(envelope)
            bound(self._by_envelope, KEPT_MAX)
        return self._by_envelope[key]

    def _read(self, data: bytes) -> Release | None:
        try:
            envelope = Envelope.parse(data)
            manifest = Manifest.parse(authenticate(envelope, self._keys), envelope.severed)
        except WireError:
            return None
        return Release(manifest.digest, manifest.sequence_number, manifest.image_digest, manifest.component)


class Genuine:
    """What was said to one device.

    Attributes:
        deployments: The release of each, by id.
        releases: All that were offered, by manifest digest.
        directives: Sequences of directives.
        root_versions: Of root documents.
    """

    def __init__(self, releases: Releases) -> None:
        self._releases = releases
        self.deployments: OrderedDict[bytes, Release | None] = OrderedDict()
        self.releases: OrderedDict[bytes, Release] = OrderedDict()
        self.directives: OrderedDict[int, None] = OrderedDict()
        self.root_versions: OrderedDict[int, None] = OrderedDict()

    def said(self, message: FromGateway) -> None:
        """The gateway said ``message``."""
        match message:
            case Update():
                release = self._releases.of(message.manifest)
                self.deployments[message.deployment] = release
                bound(self.deployments, KEPT_MAX)
                if release is not None:
                    self.releases[release.manifest_digest] = release
                    bound(self.releases, RELEASES_KEPT_MAX)
                _add(self.directives, message.directive, key=6)
            case Roots():
                for document in message.roots:
                    _add(self.root_versions, document, key=2)
            case _:
                pass

    def is_image(self, image_digest: bytes) -> bool:
        """Return whether a release with that image was offered."""
        return any(release.image_digest == image_digest for release in self.releases.values())


def _add(kept: OrderedDict[int, None], document: bytes, *, key: int) -> None:
    try:
        kept[signed_uint(document, key)] = None
    except WireError:
        return
    bound(kept, KEPT_MAX)


def bound(kept: OrderedDict[Any, Any], count_max: int) -> None:
    """Drop the oldest of ``kept`` down to ``count_max``."""
    while len(kept) > count_max:
        kept.popitem(last=False)
