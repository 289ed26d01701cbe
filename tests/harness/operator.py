"""An operator with a release key: what has to be done before devices get an update, over the operator API."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from device_sdk.wire.keys import PrivateKey, PublicKey, Role
from device_sdk.wire.names import FleetName
from device_sdk.wire.signed import RootDocument, RootKey, sign_root
from device_sdk.wire.suit.target import class_identifier, vendor_identifier
from gateway.release import ReleaseContent, author_envelope, sign_envelope
from tests.harness.gateway import GatewayProcess

VENDOR, DEVICE_CLASS, COMPONENT = "acme.example", "tc3", "main"
DAY_MS = 86_400_000


class Operator:
    """``operator = Operator(gateway)``; ``await operator.trust()`` first."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self.key = PrivateKey.generate()

    async def trust(self) -> None:
        """Register the release key, and have devices trust it and the gateway's online keys."""
        keys = await self._gateway.call("GET", "/keys")
        public = self.key.public
        await self._gateway.call(
            "PUT", f"/release-keys/{public.kid.hex()}", json={"public_pem": public.to_pem().decode()}
        )
        online = [
            RootKey(Role(key["role"]), PublicKey.from_pem(key["public_pem"].encode()))
            for key in keys["online"]
        ]
        document = RootDocument(
            fleet=FleetName(self._gateway.fleet),
            version=keys["root_version"] + 1,
            issued_at=int(time.time() * 1000),
            expires_at=int(time.time() * 1000) + DAY_MS,
            keys=(RootKey(Role.RELEASE, public), *online),
            thresholds={Role.RELEASE: 1},
        )
        await self._gateway.call(
            "PUT",
            "/root",
            data=sign_root(document, self.key),
            headers={"Content-Type": "application/cose"},
        )

    async def channel(self, name: str, kind: str, **options: Any) -> None:
        await self._gateway.call("POST", "/channels", json={"name": name, "kind": kind, **options})

    async def release(self, image: bytes, *, version: str, sequence: int) -> dict[str, Any]:
        """Sign ``image``, upload it and publish the release."""
        digest = hashlib.sha256(image).digest()
        vendor = vendor_identifier(VENDOR)
        content = ReleaseContent(
            vendor_identifier=vendor,
            class_identifier=class_identifier(vendor, DEVICE_CLASS),
            component=COMPONENT,
            sequence_number=sequence,
            image_digest=digest,
            image_size=len(image),
            uri=f"/v1/device/artifacts/{digest.hex()}",
            version=version,
        )
        await self._gateway.call(
            "PUT",
            f"/artifacts/{digest.hex()}",
            data=image,
            headers={"Content-Type": "application/octet-stream"},
        )
        published: dict[str, Any] = await self._gateway.call(
            "POST",
            "/releases",
            data=sign_envelope(author_envelope(content), [self.key]),
            headers={"Content-Type": "application/suit-envelope+cose"},
        )
        return published

    async def rollout(self, release: dict[str, Any], channel: str, *, percent: int = 100) -> dict[str, Any]:
        started: dict[str, Any] = await self._gateway.call(
            "POST",
            "/rollouts",
            json={"release_id": release["id"], "channel": channel, "percent": percent},
        )
        return started
