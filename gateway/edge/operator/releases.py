"""Releases, signed offline, and the images that they name."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from pydantic import Field

from device_sdk.wire.limits import ENVELOPE_SIZE_MAX
from gateway.edge.artifacts import OCTETS
from gateway.edge.operator.body import NoQuery, OrderedPage, RawBody, StreamedBody
from gateway.edge.operator.fields import AnyName, Label
from gateway.edge.operator.paging import page
from gateway.edge.operator.results import ArtifactResult, ReleaseResult
from gateway.edge.operator.route import FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.fleet.acts import Replay
from gateway.identity import Scope

RELEASE: Final = f"{FLEET}/releases/{{id}}"
ARTIFACT: Final = f"{FLEET}/artifacts/{{sha256}}"
ENVELOPE: Final = "application/suit-envelope+cose"


class ReleaseQuery(NoQuery):
    """How a release is called."""

    name: Label | None = Field(default=None, description="Without it: component and version.")


class ReleasesQuery(OrderedPage):
    """Which releases."""

    component: AnyName | None = Field(default=None, description="Of this component.")


async def list_releases(call: Call[None, ReleasesQuery]) -> Answer:
    releases, fleet_key, query = call.services.releases, call.fleet.key, call.query
    return await page(
        call,
        lambda after, limit: releases.releases(
            fleet_key,
            component=query.component,
            is_newest_first=query.is_newest_first,
            after=after,
            limit=limit,
        ),
        kind=bytes,
        key=lambda release: release.id,
        show=ReleaseResult.of,
    )


async def publish_release(call: Call[bytes, ReleaseQuery]) -> Outcome:
    outcome = await call.services.releases.publish(
        call.fleet,
        call.body,
        name=call.query.name,
        now_ms=call.now_ms,
        act=call.act(ReleaseResult.of),
    )
    return outcome if isinstance(outcome, Replay) else Answer(ReleaseResult.of(outcome))


async def show_release(call: Call[None, NoQuery]) -> Answer:
    return Answer(ReleaseResult.of(await call.services.releases.release(call.fleet.key, call.id())))


async def show_envelope(call: Call[None, NoQuery]) -> web.StreamResponse:
    release = await call.services.releases.release(call.fleet.key, call.id())
    return web.Response(
        body=release.envelope,
        content_type=ENVELOPE,
        headers={"ETag": f'"{release.manifest_digest.hex()}"', "Cache-Control": "no-store"},
    )


async def put_artifact(call: Call[None, NoQuery]) -> Answer:
    transfers = call.services.transfers
    artifact, is_new = await transfers.receive(
        call.request, call.fleet.key, call.path["sha256"], audit=call.audit()
    )
    result = ArtifactResult(sha256=artifact.digest, size_bytes=artifact.size_bytes)
    return Answer(result, status=201 if is_new else 200)


async def fetch_artifact(call: Call[None, NoQuery]) -> web.StreamResponse:
    return await call.services.transfers.send(call.request, call.fleet.key, call.path["sha256"])


def _fetch(method: str, operation: str, summary: str) -> AnyRoute:
    return Route(
        method=method,
        path=ARTIFACT,
        operation=operation,
        scope=Scope.READ,
        summary=summary,
        handler=fetch_artifact,
        statuses=(200, 206, 304),
        result=OCTETS,
        errors={"precondition_failed": 412, "range_not_satisfiable": 416, "artifacts_busy": 503},
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        method="GET",
        path=f"{FLEET}/releases",
        operation="releases.list",
        scope=Scope.READ,
        summary="List the releases, the oldest first.",
        handler=list_releases,
        query=ReleasesQuery,
        result=ListOf[ReleaseResult],
    ),
    Route(
        method="POST",
        path=f"{FLEET}/releases",
        operation="releases.publish",
        scope=Scope.RELEASES,
        summary="Upload a signed SUIT envelope. The same manifest again is the same release.",
        handler=publish_release,
        body=RawBody(ENVELOPE, size_bytes_max=ENVELOPE_SIZE_MAX),
        query=ReleaseQuery,
        statuses=(201,),
        result=ReleaseResult,
        errors={
            "bad_signature": 400,
            "unknown_key": 400,
            "digest_mismatch": 400,
            "malformed": 400,
            "unsupported": 400,
            "bad_uri": 400,
            "no_release_key": 409,
            "root_unverified": 409,
        },
        location=RELEASE,
    ),
    Route(
        method="GET",
        path=RELEASE,
        operation="releases.show",
        scope=Scope.READ,
        summary="Show a release.",
        handler=show_release,
        result=ReleaseResult,
    ),
    Route(
        method="GET",
        path=f"{RELEASE}/envelope",
        operation="releases.envelope",
        scope=Scope.READ,
        summary="The envelope's bytes, as they were uploaded.",
        handler=show_envelope,
        result=ENVELOPE,
    ),
    Route(
        method="PUT",
        path=ARTIFACT,
        operation="artifacts.put",
        scope=Scope.RELEASES,
        summary="Upload an image. Its SHA-256 must be the one in the path. 200 if the fleet had it.",
        handler=put_artifact,
        body=StreamedBody(),
        statuses=(201, 200),
        result=ArtifactResult,
        errors={
            "digest_mismatch": 400,
            "artifact_uploads_busy": 503,
            "artifact_store_unavailable": 503,
        },
        location=ARTIFACT,
    ),
    _fetch("GET", "artifacts.fetch", "An image, whole or one range of it."),
    _fetch("HEAD", "artifacts.head", "Whether the image is here, and how long it is."),
)
