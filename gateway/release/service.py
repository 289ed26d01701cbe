"""Releases of a fleet: judged, then kept; and which fleet may fetch which image.

What makes an envelope acceptable is ``accept``; the images themselves are in ``store``. Rows are behind the
port ``ReleaseStore``, which ``gateway.storage.releases`` implements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from device_sdk.errors import UpdateError
from device_sdk.wire.errors import UnsupportedError, WireError
from device_sdk.wire.keys import PublicKey, Role
from device_sdk.wire.names import ChannelName, FleetName
from device_sdk.wire.signed import verify_root
from device_sdk.wire.suit.manifest import Manifest
from gateway.errors import ConflictError, PeerError
from gateway.fleet.acts import Act, AuditEntry, Replay
from gateway.fleet.model import Fleet
from gateway.ids import uuid7
from gateway.release.accept import accept_release

NAME_LEN_MAX: Final = 128
ARTIFACT_PATH: Final = "/v1/device/artifacts/"
"""Where devices fetch images from this gateway: the image's SHA-256 in hexadecimal follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    """A release as it is kept.

    Attributes:
        version: For people; the sequence number if the manifest has none.
        uri: Where devices fetch the image; relative to the gateway if it begins with a slash.
        kid: Of the first of the keys that vouched for it.
        envelope: SUIT envelope, as it came. Empty in lists.
    """

    id: bytes
    fleet_key: int
    name: str
    version: str
    component: ChannelName
    sequence: int
    vendor_id: bytes
    class_id: bytes
    manifest_digest: bytes
    image_digest: bytes
    image_size: int
    uri: str
    kid: bytes
    envelope: bytes
    created_at: int

    @property
    def is_served_here(self) -> bool:
        """Whether devices fetch the image from this gateway."""
        return self.uri.startswith("/")


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """An image that devices of the fleet may fetch. ``digest`` is its SHA-256, 32 bytes."""

    fleet_key: int
    digest: bytes
    size_bytes: int
    created_at: int


@dataclass(frozen=True, slots=True)
class Trust:
    """What a fleet has registered to judge releases by.

    Attributes:
        release_keys: PEM by kid.
        root_document: COSE_Sign1, or None.
    """

    release_keys: dict[bytes, str]
    root_document: bytes | None


class ReleaseStore(Protocol):
    """Releases and artifacts of fleets. Each method is one transaction; what returned is committed."""

    async def trust(self, fleet_key: int) -> Trust: ...

    async def add_release(
        self, row: ReleaseRow, *, act: Act[ReleaseRow] | None = None
    ) -> ReleaseRow | Replay:
        """Return ``row``, or the fleet's earlier one of the same manifest, unchanged.

        Raises ConflictError (``idempotency_key_reused``).
        """
        ...

    async def release(self, fleet_key: int, release_id: bytes) -> ReleaseRow:
        """Raises NotFoundError."""
        ...

    async def release_by_digest(self, fleet_key: int, manifest_digest: bytes) -> ReleaseRow:
        """Raises NotFoundError."""
        ...

    async def releases(
        self,
        fleet_key: int,
        *,
        component: str | None = None,
        is_newest_first: bool = False,
        after: bytes | None = None,
        limit: int = 100,
    ) -> Sequence[ReleaseRow]:
        """By id, oldest first unless it is said, without their envelopes."""
        ...

    async def add_artifact(self, row: ArtifactRow, *, audit: AuditEntry | None = None) -> bool:
        """Return whether the fleet did not have it yet."""
        ...

    async def artifact(self, fleet_key: int, digest: bytes) -> ArtifactRow:
        """Raises NotFoundError: the fleet has none such, whatever other fleets have."""
        ...


class ReleaseService:
    """Releases and artifacts, as operators publish them and devices fetch them."""

    def __init__(self, store: ReleaseStore) -> None:
        self._store = store

    async def publish(
        self,
        fleet: Fleet,
        envelope: bytes,
        *,
        name: str | None = None,
        now_ms: int,
        act: Act[ReleaseRow] | None = None,
    ) -> ReleaseRow | Replay:
        """Keep the release in ``envelope`` once the fleet's release keys vouch for it.

        The same manifest again is the same release, and its first row comes back.

        Args:
            name: None: component and version.

        Raises:
            WireError: Unsigned, ill signed, malformed or not supported; ``code`` says which.
            PeerError: (``bad_name``) ``name`` is out of its bounds; (``bad_uri``) the image's uri is
                relative, and not where this gateway serves it.
            ConflictError: (``no_release_key``) The fleet has none registered; (``root_unverified``) none of
                them signed its root document, so that nobody can say how many must sign;
                (``idempotency_key_reused``).
        """
        if name is not None and not 1 <= len(name) <= NAME_LEN_MAX:
            raise PeerError(f"a name is 1..{NAME_LEN_MAX} characters", code="bad_name")
        keys, threshold = _judges(await self._store.trust(fleet.key), fleet.name)
        release = accept_release(envelope, keys, threshold=threshold)
        manifest = release.manifest
        version = manifest.version or str(manifest.sequence_number)
        row = ReleaseRow(
            id=uuid7(now_ms),
            fleet_key=fleet.key,
            name=name or f"{manifest.component} {version}"[:NAME_LEN_MAX],
            version=version,
            component=manifest.component,
            sequence=manifest.sequence_number,
            vendor_id=manifest.vendor_identifier,
            class_id=manifest.class_identifier,
            manifest_digest=manifest.digest,
            image_digest=manifest.image_digest,
            image_size=manifest.image_size,
            uri=_checked_uri(manifest),
            kid=release.kids[0],
            envelope=envelope,
            created_at=now_ms,
        )
        return await self._store.add_release(row, act=act)

    async def release(self, fleet_key: int, release_id: bytes) -> ReleaseRow:
        """Return a release with its envelope. Raises NotFoundError."""
        return await self._store.release(fleet_key, release_id)

    async def release_by_digest(self, fleet_key: int, manifest_digest: bytes) -> ReleaseRow:
        """Return the release whose manifest has this SHA-256. Raises NotFoundError."""
        return await self._store.release_by_digest(fleet_key, manifest_digest)

    async def releases(
        self,
        fleet_key: int,
        *,
        component: str | None = None,
        is_newest_first: bool = False,
        after: bytes | None = None,
        limit: int = 100,
    ) -> Sequence[ReleaseRow]:
        """Return releases by id, oldest first unless it is said, without their envelopes."""
        return await self._store.releases(
            fleet_key, component=component, is_newest_first=is_newest_first, after=after, limit=limit
        )

    async def put_artifact(
        self,
        fleet_key: int,
        digest: bytes,
        size_bytes: int,
        *,
        now_ms: int,
        audit: AuditEntry | None = None,
    ) -> bool:
        """Let the fleet's devices fetch an image of the artifact store; return whether that is new."""
        row = ArtifactRow(fleet_key, digest, size_bytes, now_ms)
        return await self._store.add_artifact(row, audit=audit)

    async def artifact(self, fleet_key: int, digest: bytes) -> ArtifactRow:
        """Return the fleet's image ``digest``.

        Raises:
            NotFoundError: The fleet has none such: what other fleets have is not to be told from nothing.
        """
        return await self._store.artifact(fleet_key, digest)


def _judges(trust: Trust, fleet: FleetName) -> tuple[dict[bytes, PublicKey], int]:
    """Return the keys that may vouch for a release, and how many must."""
    if not trust.release_keys:
        raise ConflictError("the fleet has no release key registered", code="no_release_key")
    keys = {kid: PublicKey.from_pem(pem.encode()) for kid, pem in trust.release_keys.items()}
    if trust.root_document is None:
        return keys, 1
    try:
        root = verify_root(trust.root_document, keys, fleet=fleet)
    except (WireError, UpdateError) as error:
        raise ConflictError(
            "no registered release key signed the fleet's root document; put a new one",
            code="root_unverified",
        ) from error
    # Devices go by the root's release keys where it names some: no other signature would count there.
    named = root.keys_of(Role.RELEASE)
    return ({kid: key for kid, key in keys.items() if kid in named} if named else keys), root.threshold_of(
        Role.RELEASE
    )


def _checked_uri(manifest: Manifest) -> str:
    uri = manifest.uri
    if uri is None:
        raise UnsupportedError("the manifest fetches nothing")
    if "://" not in uri and uri != f"{ARTIFACT_PATH}{manifest.image_digest.hex()}":
        raise PeerError(
            f"a relative uri is {ARTIFACT_PATH} and the image's SHA-256 in hexadecimal", code="bad_uri"
        )
    return uri
