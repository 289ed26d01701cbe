"""An issuer of signed tokens: GET /jwks.json; its private keys never leave the process.

    POST /_rotate  {kid, alg: ES256 | Ed25519, keep, publish, seed}  make a key, publish it (alone or kept)
    POST /_token   {kid, claims or raw, header}                sign claims with a key it ever had

An Ed25519 key of a seed (64 hexadecimal digits) is the same again after a restart.

Signatures are made with ``cryptography`` alone: what the gateway verifies with is not what made them.
"""

from __future__ import annotations

import base64
import json

from aiohttp import web
from control import Control, serve
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def public_jwk(kid: str, key: PrivateKey) -> dict[str, str]:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        x = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": b64(x)}
    numbers = key.public_key().public_numbers()
    x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
    return {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid, "x": b64(x), "y": b64(y)}


def sign(key: PrivateKey, header: dict[str, object], payload: str) -> str:
    signed = f"{b64(json.dumps(header).encode())}.{b64(payload.encode())}"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return f"{signed}.{b64(key.sign(signed.encode()))}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def make_app() -> web.Application:
    control = Control()
    private: dict[str, PrivateKey] = {}
    published: dict[str, dict[str, str]] = {}

    async def jwks(_request: web.Request) -> web.Response:
        # What a real set holds besides: keys that nobody verifies signatures with.
        others = [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
            {"kty": "EC", "use": "enc"},
            {"kty": "new"},
        ]
        return web.json_response({"keys": [*others, *published.values()]})

    async def rotate(request: web.Request) -> web.Response:
        wanted = await request.json()
        kid = wanted["kid"]
        is_ed25519 = wanted.get("alg") == "Ed25519"
        if "seed" in wanted:
            private[kid] = ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(wanted["seed"]))
        elif is_ed25519:
            private[kid] = ed25519.Ed25519PrivateKey.generate()
        else:
            private[kid] = ec.generate_private_key(ec.SECP256R1())
        if not wanted.get("keep", True):
            published.clear()
        if wanted.get("publish", True):
            published[kid] = public_jwk(kid, private[kid])
        return web.json_response({})

    async def token(request: web.Request) -> web.Response:
        wanted = await request.json()
        key = private[wanted["kid"]]
        payload = wanted.get("raw") or json.dumps(wanted["claims"])
        alg = "Ed25519" if isinstance(key, ed25519.Ed25519PrivateKey) else "ES256"
        header = {"alg": alg, "kid": wanted["kid"], "typ": "JWT"} | wanted.get("header", {})
        return web.json_response({"token": sign(key, header, payload)})

    app = web.Application()
    app.add_routes(
        [
            web.get("/jwks.json", control.wrap(jwks)),
            web.post("/_rotate", rotate),
            web.post("/_token", token),
            *control.routes(),
        ]
    )
    return app


if __name__ == "__main__":
    serve(make_app)
