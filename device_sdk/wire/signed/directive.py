"""A directive: who installs which release, and until when (SECURITY.md, PROTOCOL §7.2, §7.3).

The gateway signs it when it sends it. It names the manifest by digest, so that a device that holds both
signatures knows that the operator's and the gateway's are about the same thing. Which sequence a device
accepts is in ``device_sdk.update``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from device_sdk.errors import ExpiredError, InstallByPassedError, MixAndMatchError, WrongDeviceError
from device_sdk.wire.cose import Keys
from device_sdk.wire.errors import MalformedError
from device_sdk.wire.keys import PrivateKey, Role
from device_sdk.wire.names import (
    ChannelName,
    DeviceId,
    FleetName,
    parse_channel_name,
    parse_device_id,
    parse_fleet_name,
)
from device_sdk.wire.signed.seal import (
    Fields,
    check_fleet,
    encode_fields,
    parse_id,
    parse_sha256,
    parse_uint,
    seal,
    unseal,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """What the gateway's directive key vouches for. Times are milliseconds UTC.

    Attributes:
        manifest_digest: ``Manifest.digest`` of the release, SHA-256.
        sequence: Rises for each device with every directive it is sent.
        expires_at: Gates acceptance; a job begun is finished or rolled back.
        install_by: Gates the start of installing.
        component: ``Manifest.component``, in names' alphabet.
        digest: SHA-256 of the signed payload: what a device compares two directives by. Empty before
            ``verify_directive``.
    """

    fleet: FleetName
    device: DeviceId
    enrolment: bytes
    deployment: bytes
    manifest_digest: bytes
    sequence: int
    issued_at: int
    expires_at: int
    install_by: int
    component: ChannelName
    digest: bytes = field(default=b"", compare=False)

    def check_fresh(self, now_ms: int) -> None:
        """Raise ExpiredError if it can no longer be accepted at ``now_ms``."""
        if now_ms >= self.expires_at:
            raise ExpiredError("the directive's time is over")

    def check_install_by(self, now_ms: int) -> None:
        """Raise InstallByPassedError if installing may no longer begin at ``now_ms``."""
        if now_ms >= self.install_by:
            raise InstallByPassedError("too late to begin installing")

    def check_manifest(self, *, digest: bytes, component: str) -> None:
        """Raise MixAndMatchError unless this directive is about that manifest."""
        if (digest, component) != (self.manifest_digest, self.component):
            raise MixAndMatchError("the directive names another manifest")


def sign_directive(directive: Directive, key: PrivateKey) -> bytes:
    """Return the COSE_Sign1 that travels as ``update.directive``."""
    payload = encode_fields(
        {
            1: directive.fleet,
            2: directive.device,
            3: directive.enrolment,
            4: directive.deployment,
            5: directive.manifest_digest,
            6: directive.sequence,
            7: directive.issued_at,
            8: directive.expires_at,
            9: directive.install_by,
            10: directive.component,
        }
    )
    return seal(payload, key, role=Role.DIRECTIVE, fleet=directive.fleet)


def verify_directive(data: bytes, keys: Keys, *, fleet: str, device: str) -> Directive:
    """Return the directive once a directive key vouches for it, for this device.

    Time and sequence are not looked at: a device that resumes after a reboot verifies again what it
    accepted before. ``check_fresh`` and ``check_manifest`` come next at acceptance.

    Raises:
        WireError: Not a directive that one of ``keys`` signed for ``fleet``.
        WrongDeviceError: It names another device.
    """
    payload = unseal(data, keys, role=Role.DIRECTIVE, fleet=fleet)
    fields = Fields(payload, "directive")
    directive = Directive(
        fleet=fields.required(1, parse_fleet_name),
        device=fields.required(2, parse_device_id),
        enrolment=fields.required(3, parse_id),
        deployment=fields.required(4, parse_id),
        manifest_digest=fields.required(5, parse_sha256),
        sequence=fields.required(6, parse_uint),
        issued_at=fields.required(7, parse_uint),
        expires_at=fields.required(8, parse_uint),
        install_by=fields.required(9, parse_uint),
        component=fields.required(10, parse_channel_name),
        digest=hashlib.sha256(payload).digest(),
    )
    check_fleet(directive.fleet, fleet)
    if directive.expires_at <= directive.issued_at:
        raise MalformedError("directive: it expires before it is issued")
    if directive.device != device:
        raise WrongDeviceError("the directive names another device")
    return directive
