"""The order in which an update is checked before it is accepted (SECURITY.md, PROTOCOL §7). Pure.

The order of the checks is the order of the lines. ``authentic_directive`` and ``judge_directive`` run when
the update comes, before anything of it is stored; ``accept_manifest`` when its turn has come. None of them
changes anything: a refusal leaves slots and floors as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from device_sdk.errors import ExpiredError, MixAndMatchError, NoSpaceError, TooLargeError, WrongDeviceError
from device_sdk.update.counter import Verdict, judge
from device_sdk.update.limits import UpdateLimits
from device_sdk.update.ports import Image, Installer
from device_sdk.update.trust import TrustState
from device_sdk.wire.errors import UnsupportedError
from device_sdk.wire.keys import Role
from device_sdk.wire.messages import Update
from device_sdk.wire.signed import Directive, verify_directive
from device_sdk.wire.suit import Envelope, Manifest, authenticate, check_target


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the device is, as it was provisioned: the SDK never learns it from a peer (PROTOCOL §5.1).

    Attributes:
        vendor: UUID, 16 bytes.
        device_class: UUID, 16 bytes.
        device_uuid: UUID, 16 bytes, if it has one.
        enrolment: If the device was told: no directive for another one is followed.
    """

    fleet: str
    device_id: str
    vendor: bytes
    device_class: bytes
    device_uuid: bytes | None = None
    enrolment: bytes | None = None


def authentic_directive(update: Update, trust: TrustState, target: Target) -> Directive:
    """Return the directive of ``update`` once it is known to be the gateway's, for this device.

    1. Signature, by a directive key of the root document in force, for this fleet.
    2. This device, this enrolment if the device knows its own, and the deployment the message names.

    Raises:
        WireError, ExpiredError: 1: not signed so, or the root document's time is over.
        WrongDeviceError, MixAndMatchError: 2.
    """
    directive = verify_directive(  # 1, and the device's name of 2
        update.directive, trust.keys_of(Role.DIRECTIVE), fleet=target.fleet, device=target.device_id
    )
    if target.enrolment is not None and directive.enrolment != target.enrolment:  # 2
        raise WrongDeviceError("the directive is for another enrolment of the device")
    if directive.deployment != update.deployment:
        raise MixAndMatchError("the directive names another deployment than the message")
    return directive


def judge_directive(directive: Directive, trust: TrustState, held: Mapping[bytes, bytes]) -> Verdict:
    """Return what an authentic directive means.

    3. The counter (PROTOCOL §7.2).

    Raises:
        ReplayError, DirectiveConflictError: As ``judge``.
    """
    return judge(directive, trust.counter, held)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What may be installed: the image, and where it is."""

    image: Image
    uri: str


def accept_manifest(
    envelope: bytes,
    *,
    manifest_digest: bytes,
    component: str,
    expires_at: int,
    trust: TrustState,
    target: Target,
    installer: Installer,
    limits: UpdateLimits,
) -> Accepted:
    """Return what ``envelope`` installs, once the operator vouches for it and the directive is about it.

    4. The directive is fresh, by a time that is known (PROTOCOL §7.3, §7.5).
    5. The manifest is authentic: the threshold of release keys, then its digest, then its content.
    6. It is the one that the directive names.
    7. It is for this vendor, class, device and component.
    8. It is no rollback (PROTOCOL §7.1).
    9. The image fits.
    10. It asks for what is done here: fetching an image and matching it.

    Args:
        envelope: SUIT envelope as it came; untrusted.
        manifest_digest, component, expires_at: Of the directive.

    Raises:
        WireError: 5, 10.
        UpdateError: 4, 6, 7, 8, 9.
    """
    if trust.fresh_now_ms() >= expires_at:  # 4
        raise ExpiredError("the directive's time is over")
    parsed = Envelope.parse(envelope)  # 5
    keys = trust.keys_of(Role.RELEASE)
    manifest = Manifest.parse(authenticate(parsed, keys, threshold=trust.release_threshold()), parsed.severed)
    if (manifest.digest, manifest.component) != (manifest_digest, component):  # 6
        raise MixAndMatchError("the directive names another manifest")
    check_target(  # 7
        manifest,
        vendor=target.vendor,
        device_class=target.device_class,
        device=target.device_uuid,
        components=installer.components,
    )
    floor = trust.floor(component, target.device_class, installer.running().get(component))  # 8
    floor.check(manifest.sequence_number, manifest.digest)
    if manifest.image_size > limits.image_size_max_bytes:  # 9
        raise TooLargeError(f"{manifest.image_size} bytes are over {limits.image_size_max_bytes}")
    if manifest.image_size > installer.capacity_bytes(component):
        raise NoSpaceError(f"{manifest.image_size} bytes do not fit")
    if not manifest.is_installable or manifest.uri is None:  # 10
        raise UnsupportedError("the manifest does not fetch an image and match it")
    image = Image(
        digest=manifest.image_digest,
        size=manifest.image_size,
        manifest_digest=manifest.digest,
        sequence=manifest.sequence_number,
        version=manifest.version or "",
    )
    return Accepted(image, manifest.uri)
