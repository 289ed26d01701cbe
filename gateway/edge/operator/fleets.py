"""Fleets, the keys that sign for them and their root documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web
from pydantic import Field

from device_sdk.wire.errors import WireError
from device_sdk.wire.keys import KID_SIZE, PEM_SIZE_MAX, PublicKey, Role
from device_sdk.wire.limits import SIGNED_SIZE_MAX
from device_sdk.wire.names import parse_fleet_name
from device_sdk.wire.signed.root import verify_root
from gateway.edge.operator.body import JsonBody, NoQuery, Page, RawBody, Strict
from gateway.edge.operator.fields import Name
from gateway.edge.operator.paging import page
from gateway.edge.operator.ports import OnlineKeys
from gateway.edge.operator.results import (
    FleetResult,
    KeysResult,
    OnlineKeyResult,
    OnlineRole,
    ReleaseKeyResult,
    RootResult,
)
from gateway.edge.operator.route import API, FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.edge.problem import FieldError, RequestError
from gateway.errors import ConflictError, NotFoundError
from gateway.fleet.acts import Replay
from gateway.identity import Scope

COSE: Final = "application/cose"
RELEASE_KEY: Final = f"{FLEET}/release-keys/{{kid}}"


class FleetBody(Strict):
    """A fleet to be made."""

    name: Name


class ReleaseKeyBody(Strict):
    """A public key."""

    public_pem: str = Field(max_length=PEM_SIZE_MAX, description="PEM `PUBLIC KEY`: Ed25519 or P-256.")


async def list_fleets(call: Call[None, Page]) -> Answer:
    store = call.services.fleets
    return await page(
        call,
        lambda after, limit: store.fleets(after=after or "", limit=limit),
        kind=str,
        key=lambda fleet: str(fleet.name),
        show=FleetResult.of,
    )


async def create_fleet(call: Call[FleetBody, NoQuery]) -> Outcome:
    name = parse_fleet_name(call.body.name)
    fleet = await call.services.fleets.create_fleet(name, now_ms=call.now_ms, act=call.act(FleetResult.of))
    return fleet if isinstance(fleet, Replay) else Answer(FleetResult.of(fleet))


async def show_fleet(call: Call[None, NoQuery]) -> Answer:
    return Answer(FleetResult.of(await call.services.fleets.fleet(call.fleet.name)))


async def list_keys(call: Call[None, NoQuery]) -> Answer:
    fleet = await call.services.fleets.fleet(call.fleet.name)
    release_keys = await call.services.fleets.release_keys(fleet.key)
    return Answer(
        KeysResult(
            online=[
                OnlineKeyResult.of(role, key) for role, key in _online(call.services.online_keys).items()
            ],
            root_version=fleet.root_version,
            release_keys=[ReleaseKeyResult.of(kid, pem) for kid, pem in sorted(release_keys.items())],
        )
    )


async def put_release_key(call: Call[ReleaseKeyBody, NoQuery]) -> Answer:
    kid = _kid(call.path["kid"])
    try:
        key = PublicKey.from_pem(call.body.public_pem.encode())
    except WireError as error:
        raise _bad_field("public_pem", str(error)) from error
    if key.kid != kid:
        raise _bad_field("public_pem", f"its kid is {key.kid.hex()}, not the one in the path", "kid_mismatch")
    if kid in {online.kid for online in _online(call.services.online_keys).values()}:
        raise ConflictError("a key that this gateway holds cannot vouch for releases", code="online_key")
    pem = key.to_pem().decode()
    is_new = await call.services.fleets.put_release_key(
        call.fleet.key, kid, pem, now_ms=call.now_ms, audit=call.audit()
    )
    return Answer(ReleaseKeyResult.of(kid, pem), status=201 if is_new else 200)


async def delete_release_key(call: Call[None, NoQuery]) -> Answer:
    await call.services.fleets.delete_release_key(call.fleet.key, _kid(call.path["kid"]), audit=call.audit())
    return Answer()


async def show_release_key(call: Call[None, NoQuery]) -> Answer:
    kid = _kid(call.path["kid"])
    pem = (await call.services.fleets.release_keys(call.fleet.key)).get(kid)
    if pem is None:
        raise NotFoundError("no such release key")
    return Answer(ReleaseKeyResult.of(kid, pem))


async def show_root(call: Call[None, NoQuery]) -> web.StreamResponse:
    version, document = await call.services.fleets.root_document(call.fleet.key)
    if document is None:
        raise NotFoundError("the fleet has no root document yet; PUT one that a release key signed")
    return web.Response(
        body=document, content_type=COSE, headers={"ETag": f'"{version}"', "Cache-Control": "no-store"}
    )


async def put_root(call: Call[bytes, NoQuery]) -> Answer:
    """Take a root document in the order of its checks: signature, online keys, time, version."""
    fleet, store = call.fleet, call.services.fleets
    anchors = {
        kid: PublicKey.from_pem(pem.encode()) for kid, pem in (await store.release_keys(fleet.key)).items()
    }
    document = verify_root(call.body, anchors, fleet=fleet.name)
    missing = [
        f"{role} {key.kid.hex()}"
        for role, key in _online(call.services.online_keys).items()
        if document.keys_of(Role(role)).get(key.kid) != key
    ]
    if missing:
        raise ConflictError(
            f"the document does not name this gateway's online keys ({', '.join(missing)}); "
            f"make it with those of GET {FLEET.format(fleet=fleet.name)}/keys",
            code="root_keys",
        )
    if document.expires_at <= call.now_ms:
        raise ConflictError("the document's time is over; sign one that expires later", code="root_expired")
    await store.put_root_document(
        fleet.key, document.version, call.body, seen_version=call.if_match, audit=call.audit()
    )
    call.services.sessions.root_changed(fleet.key)
    return Answer(
        RootResult(version=document.version, expires_at=document.expires_at), version=document.version
    )


def _online(keys: OnlineKeys) -> Mapping[OnlineRole, PublicKey]:
    return {
        "alert": keys.alert.public,
        "directive": keys.directive.public,
        "statement": keys.statement.public,
    }


def _kid(text: str) -> bytes:
    if len(text) != 2 * KID_SIZE or text.lower() != text or not _is_hex(text):
        raise NotFoundError(f"there is no such kid: it is {2 * KID_SIZE} digits of lower-case hexadecimal")
    return bytes.fromhex(text)


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)


def _bad_field(field: str, problem: str, code: str = "invalid_body") -> RequestError:
    return RequestError(422, code, f"{field}: {problem}", errors=[FieldError(field, problem)])


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        method="GET",
        path=f"{API}/fleets",
        operation="fleets.list",
        scope=Scope.READ,
        summary="List the fleets, by name. Only for tokens of all fleets.",
        handler=list_fleets,
        query=Page,
        result=ListOf[FleetResult],
    ),
    Route(
        method="POST",
        path=f"{API}/fleets",
        operation="fleets.create",
        scope=Scope.ADMIN,
        summary="Make a fleet. Only for tokens of all fleets.",
        handler=create_fleet,
        body=JsonBody(FleetBody),
        statuses=(201,),
        result=FleetResult,
        errors={"fleet_exists": 409},
        location=f"{API}/fleets/{{name}}",
    ),
    Route(
        method="GET",
        path=FLEET,
        operation="fleets.show",
        scope=Scope.READ,
        summary="Show a fleet.",
        handler=show_fleet,
        result=FleetResult,
    ),
    Route(
        method="GET",
        path=f"{FLEET}/keys",
        operation="keys.list",
        scope=Scope.READ,
        summary="Show who signs: the gateway's online keys, and the release keys that are registered.",
        handler=list_keys,
        result=KeysResult,
    ),
    Route(
        method="GET",
        path=RELEASE_KEY,
        operation="release-keys.show",
        scope=Scope.READ,
        summary="Show a release key.",
        handler=show_release_key,
        result=ReleaseKeyResult,
    ),
    Route(
        method="PUT",
        path=RELEASE_KEY,
        operation="release-keys.put",
        scope=Scope.ADMIN,
        summary="Register a key whose signature makes a release or a root document acceptable.",
        handler=put_release_key,
        body=JsonBody(ReleaseKeyBody),
        statuses=(200, 201),
        result=ReleaseKeyResult,
        errors={"kid_mismatch": 422, "online_key": 409},
        location=RELEASE_KEY,
    ),
    Route(
        method="DELETE",
        path=RELEASE_KEY,
        operation="release-keys.delete",
        scope=Scope.ADMIN,
        summary="Take a release key back. Releases that it signed stay.",
        handler=delete_release_key,
        statuses=(204,),
    ),
    Route(
        method="GET",
        path=f"{FLEET}/root",
        operation="root.show",
        scope=Scope.READ,
        summary="The root document's bytes; ETag is its version.",
        handler=show_root,
        result=COSE,
        is_versioned=True,
    ),
    Route(
        method="PUT",
        path=f"{FLEET}/root",
        operation="root.put",
        scope=Scope.ADMIN,
        summary=(
            "Give the devices a root document: signed by a registered release key, naming the gateway's "
            "online keys, with a higher version than the last."
        ),
        handler=put_root,
        body=RawBody(COSE, size_bytes_max=SIGNED_SIZE_MAX),
        result=RootResult,
        errors={
            "root_keys": 409,
            "root_version": 409,
            "root_expired": 409,
            "bad_signature": 400,
            "unknown_key": 400,
            "malformed": 400,
        },
        is_versioned=True,
    ),
)
