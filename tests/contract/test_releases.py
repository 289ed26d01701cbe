"""Publishing: what the gateway keeps and what it refuses, on both databases."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from sqlalchemy import insert, update

from device_sdk.wire.errors import BadSignatureError, MalformedError, UnknownKeyError, WireError
from device_sdk.wire.keys import PrivateKey, Role
from device_sdk.wire.signed import RootDocument, RootKey, sign_root
from device_sdk.wire.suit.target import class_identifier, vendor_identifier
from gateway.errors import ConflictError, NotFoundError, PeerError
from gateway.fleet.acts import Replay
from gateway.fleet.model import Fleet
from gateway.release import ReleaseContent, author_envelope, sign_envelope
from gateway.release.service import ARTIFACT_PATH, ReleaseRow, ReleaseService
from gateway.storage.engine import Database
from gateway.storage.releases import SQLReleaseStore
from gateway.storage.tables import fleet, release_key
from tests.harness.acts import act
from tests.harness.rollouts import World

KEY = PrivateKey.from_seed(bytes(range(32)))
SECOND = PrivateKey.from_seed(bytes(31) + b"\1")
STRANGER = PrivateKey.from_seed(bytes(32))
VENDOR = vendor_identifier("acme.example")
IMAGE = hashlib.sha256(b"image").digest()
CONTENT = ReleaseContent(
    vendor_identifier=VENDOR,
    class_identifier=class_identifier(VENDOR, "tc3"),
    component="main:app",
    sequence_number=7,
    image_digest=IMAGE,
    image_size=5,
    uri=f"{ARTIFACT_PATH}{IMAGE.hex()}",
    version="1.4.0",
)
NOW = 1_800_000_000_000


def envelope(*keys: PrivateKey, **changes: object) -> bytes:
    return sign_envelope(author_envelope(dataclasses.replace(CONTENT, **changes)), list(keys or (KEY,)))


@pytest.fixture
def service(database: Database) -> ReleaseService:
    return ReleaseService(SQLReleaseStore(database))


async def register(database: Database, of: Fleet, *keys: PrivateKey) -> None:
    rows = [
        {
            "fleet_id": of.key,
            "kid": key.kid,
            "public_pem": key.public.to_pem().decode(),
            "added_at": 0,
        }
        for key in keys
    ]
    await database.write(lambda conn: conn.execute(insert(release_key), rows).rowcount)


@pytest.fixture
async def acme(database: Database) -> Fleet:
    world = await World.create(database)
    await register(database, world.fleet, KEY, SECOND)
    return world.fleet


async def put_root(
    database: Database, of: Fleet, signer: PrivateKey, *keys: PrivateKey, threshold: int
) -> None:
    document = RootDocument(
        fleet=of.name,
        version=1,
        issued_at=1,
        expires_at=2,  # an expired one still says how many must sign
        keys=tuple(RootKey(Role.RELEASE, key.public) for key in keys),
        thresholds={Role.RELEASE: threshold} if keys else {},
    )
    signed = sign_root(document, signer)
    await database.write(
        lambda conn: (
            conn.execute(
                update(fleet).where(fleet.c.id == of.key).values(root_document=signed, root_version=1)
            ).rowcount
        )
    )


async def published(service: ReleaseService, of: Fleet, data: bytes, **fields: object) -> ReleaseRow:
    row = await service.publish(of, data, now_ms=NOW, **fields)  # type: ignore[arg-type]
    assert isinstance(row, ReleaseRow)
    return row


class TestPublishing:
    async def test_what_the_manifest_says_is_what_is_kept(self, service: ReleaseService, acme: Fleet) -> None:
        data = envelope()
        row = await published(service, acme, data)
        assert (row.name, row.version, row.component, row.sequence) == (
            "main:app 1.4.0",
            "1.4.0",
            "main:app",
            7,
        )
        assert (row.vendor_id, row.class_id) == (CONTENT.vendor_identifier, CONTENT.class_identifier)
        assert (row.image_digest, row.image_size, row.uri) == (IMAGE, 5, CONTENT.uri)
        assert (row.kid, row.envelope, row.created_at) == (KEY.kid, data, NOW)
        assert row.is_served_here
        assert await service.release(acme.key, row.id) == row
        assert await service.release_by_digest(acme.key, row.manifest_digest) == row

    async def test_without_a_version_the_sequence_stands_for_it(
        self, service: ReleaseService, acme: Fleet
    ) -> None:
        row = await published(service, acme, envelope(version=None), name="spring")
        assert (row.name, row.version) == ("spring", "7")

    async def test_the_same_manifest_again_is_the_same_release(
        self, service: ReleaseService, acme: Fleet
    ) -> None:
        first = await published(service, acme, envelope())
        again = await published(service, acme, envelope(KEY, SECOND), name="other")
        assert again == first

    async def test_releases_are_listed_without_their_envelopes(
        self, service: ReleaseService, acme: Fleet
    ) -> None:
        rows = [await published(service, acme, envelope(sequence_number=n)) for n in range(3)]
        page = await service.releases(acme.key, limit=2)
        rest = await service.releases(acme.key, after=page[-1].id)
        assert {row.id for row in (*page, *rest)} == {row.id for row in rows}
        assert [row.envelope for row in (*page, *rest)] == [b""] * 3

    async def test_a_repeated_request_is_answered_as_before(
        self, service: ReleaseService, acme: Fleet
    ) -> None:
        request = act(lambda row: (201, row.id))
        row = await published(service, acme, envelope(), act=request)
        again = await service.publish(acme, envelope(sequence_number=8), now_ms=NOW, act=request)
        assert again == Replay(201, row.id)
        assert len(await service.releases(acme.key)) == 1

    @pytest.mark.parametrize(
        ("data", "refusal"),
        [
            (b"\xa0", MalformedError),
            (author_envelope(CONTENT), WireError),  # unsigned
            (envelope(STRANGER), UnknownKeyError),
            (envelope()[:-1] + bytes([envelope()[-1] ^ 1]), WireError),
        ],
    )
    async def test_what_no_registered_key_vouches_for_is_refused(
        self, service: ReleaseService, acme: Fleet, data: bytes, refusal: type[WireError]
    ) -> None:
        with pytest.raises(refusal):
            await service.publish(acme, data, now_ms=NOW)
        assert await service.releases(acme.key) == []

    async def test_a_signature_that_does_not_verify_is_refused(
        self, service: ReleaseService, acme: Fleet
    ) -> None:
        other = envelope(sequence_number=8)
        forged = bytearray(envelope())
        at = forged.find(KEY.kid) + len(KEY.kid) + 10
        forged[at] ^= 1
        assert bytes(forged) != other
        with pytest.raises(BadSignatureError):
            await service.publish(acme, bytes(forged), now_ms=NOW)

    async def test_a_fleet_without_keys_takes_no_release(
        self, database: Database, service: ReleaseService
    ) -> None:
        world = await World.create(database, name="other")
        with pytest.raises(ConflictError) as refused:
            await service.publish(world.fleet, envelope(), now_ms=NOW)
        assert refused.value.code == "no_release_key"

    @pytest.mark.parametrize("uri", ["/elsewhere", f"{ARTIFACT_PATH}{'00' * 32}", "image.bin"])
    async def test_a_relative_uri_is_where_this_gateway_serves_the_image(
        self, service: ReleaseService, acme: Fleet, uri: str
    ) -> None:
        with pytest.raises(PeerError) as refused:
            await service.publish(acme, envelope(uri=uri), now_ms=NOW)
        assert refused.value.code == "bad_uri"

    async def test_an_image_may_be_elsewhere(self, service: ReleaseService, acme: Fleet) -> None:
        row = await published(service, acme, envelope(uri="https://cdn.example.com/image"))
        assert not row.is_served_here

    @pytest.mark.parametrize("name", ["", "n" * 129])
    async def test_a_name_has_bounds(self, service: ReleaseService, acme: Fleet, name: str) -> None:
        with pytest.raises(PeerError) as refused:
            await service.publish(acme, envelope(), name=name, now_ms=NOW)
        assert refused.value.code == "bad_name"


class TestThresholds:
    async def test_as_many_must_sign_as_the_root_document_says(
        self, database: Database, service: ReleaseService, acme: Fleet
    ) -> None:
        await put_root(database, acme, KEY, KEY, SECOND, threshold=2)
        with pytest.raises(WireError):
            await service.publish(acme, envelope(KEY), now_ms=NOW)
        assert (await published(service, acme, envelope(KEY, SECOND))).sequence == 7

    async def test_a_registered_key_that_the_root_does_not_name_does_not_count(
        self, database: Database, service: ReleaseService, acme: Fleet
    ) -> None:
        await put_root(database, acme, KEY, SECOND, threshold=1)
        with pytest.raises(UnknownKeyError):
            await service.publish(acme, envelope(KEY), now_ms=NOW)
        assert (await published(service, acme, envelope(SECOND))).kid == SECOND.kid

    async def test_a_root_that_names_no_release_key_leaves_them_to_the_registered_ones(
        self, database: Database, service: ReleaseService, acme: Fleet
    ) -> None:
        await put_root(database, acme, KEY, threshold=1)
        assert (await published(service, acme, envelope(SECOND))).kid == SECOND.kid

    async def test_a_root_that_nobody_registered_signed_stops_publishing(
        self, database: Database, service: ReleaseService, acme: Fleet
    ) -> None:
        await put_root(database, acme, STRANGER, KEY, threshold=1)
        with pytest.raises(ConflictError) as refused:
            await service.publish(acme, envelope(KEY), now_ms=NOW)
        assert refused.value.code == "root_unverified"


class TestFleets:
    async def test_one_fleet_sees_nothing_of_another(
        self, database: Database, service: ReleaseService, acme: Fleet
    ) -> None:
        row = await published(service, acme, envelope())
        await service.put_artifact(acme.key, IMAGE, 5, now_ms=NOW)
        other = (await World.create(database, name="other")).fleet
        for question in (
            service.release(other.key, row.id),
            service.release_by_digest(other.key, row.manifest_digest),
            service.artifact(other.key, IMAGE),
        ):
            with pytest.raises(NotFoundError):
                await question
        assert await service.releases(other.key) == []

    async def test_an_artifact_is_each_fleets_own(self, database: Database, service: ReleaseService) -> None:
        a = (await World.create(database, name="a")).fleet
        b = (await World.create(database, name="b")).fleet
        assert await service.put_artifact(a.key, IMAGE, 5, now_ms=NOW)
        assert not await service.put_artifact(a.key, IMAGE, 5, now_ms=NOW + 1)
        assert await service.put_artifact(b.key, IMAGE, 5, now_ms=NOW + 2)
        assert (await service.artifact(a.key, IMAGE)).created_at == NOW
        assert (await service.artifact(b.key, IMAGE)).created_at == NOW + 2
