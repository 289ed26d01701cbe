"""What a hostile gateway makes up, and what a device must answer. Pure.

An attacker has its own keys, sees everything that goes to any device of the fleet (``Notebook``), and knows
every public key. It has neither the operator's keys nor the gateway's. What it can do all the same is to keep
things from a device; that is not an attack that a device could refuse, and is not here.

``invented`` are messages of its own, ``changed`` are genuine ones on their way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from device_sdk.wire.errors import WireError
from device_sdk.wire.keys import Algorithm, PrivateKey, Role
from device_sdk.wire.messages import (
    Alert,
    Cancel,
    FromGateway,
    Recorded,
    Roots,
    StatementMessage,
    Update,
)
from device_sdk.wire.names import ChannelName, DeviceId, FleetName
from device_sdk.wire.signed import (
    Directive,
    RootDocument,
    RootKey,
    Statement,
    assemble_alert,
    sign_alert,
    sign_directive,
    sign_root,
    sign_statement,
)
from device_sdk.wire.signed.root import ROLE_NUMBERS
from device_sdk.wire.signed.seal import encode_fields
from firmware_sim.durable import signed_map

KEPT_MAX: Final = 64
_ID_SIZE: Final = 16
_DAY_MS: Final = 86_400_000
_YEAR_MS: Final = 365 * _DAY_MS
_AHEAD: Final = 1_000_000_000  # sequences of an attacker are far above any that is genuine


@dataclass(slots=True)
class Notebook:
    """What attackers of one fleet have seen, all of them together.

    Attributes:
        updates: With the device that each was for, oldest first.
        manifests: By what they are: each release once.
        alerts: Of all channels.
        keys: Of the fleet, by role: kid and algorithm.
        root_version: Of the newest root document.
    """

    updates: deque[tuple[str, Update]] = field(default_factory=lambda: deque(maxlen=KEPT_MAX))
    manifests: deque[bytes] = field(default_factory=lambda: deque(maxlen=KEPT_MAX))
    alerts: deque[Alert] = field(default_factory=lambda: deque(maxlen=KEPT_MAX))
    keys: dict[Role, tuple[bytes, Algorithm]] = field(default_factory=dict)
    root_version: int = 0
    _own: dict[Algorithm, PrivateKey] = field(default_factory=dict)

    def own_key(self, role: Role) -> PrivateKey:
        """Return a key of the attackers, of the kind that the fleet has for ``role``."""
        _, algorithm = self.keys.get(role, (b"", Algorithm.ED25519))
        if algorithm not in self._own:
            self._own[algorithm] = PrivateKey.generate(algorithm)
        return self._own[algorithm]

    def read(self, device_id: str, message: FromGateway) -> None:
        """Write down what may be useful of a genuine message to ``device_id``."""
        match message:
            case Update():
                if (device_id, message) not in self.updates:
                    self.updates.append((device_id, message))
                if message.manifest not in self.manifests:
                    self.manifests.append(message.manifest)
            case Alert():
                if message not in self.alerts:
                    self.alerts.append(message)
            case Roots():
                for document in message.roots:
                    self._read_root(document)
            case _:
                pass

    def _read_root(self, document: bytes) -> None:
        try:
            fields = signed_map(document)
        except WireError:
            return
        version, keys = fields.get(2), fields.get(5)
        if not isinstance(version, int) or version <= self.root_version or not isinstance(keys, list):
            return
        self.root_version = version
        for key in keys:
            match key:
                case {1: bytes(kid), 2: int(number), 3: int(algorithm)} if number in _ROLES:
                    self.keys[_ROLES[number]] = (kid, Algorithm(algorithm))


_ROLES: Final = {number: role for role, number in ROLE_NUMBERS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """The device that is attacked.

    Attributes:
        alert: The oldest genuine one that it was sent.
        ended: A deployment of it whose outcome is recorded.
    """

    fleet: str
    device_id: str
    now_ms: int
    alert: Alert | None = None
    ended: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack, ready to be sent.

    Attributes:
        deployment: What a report that answers it names; None: no report does.
        is_forged: Whether that deployment is one that the gateway never made for this device.
        alert: Channel, epoch and offset of an alert that a nack answers; None: no nack does.
        codes: What the answer must say; empty: a device has to pass it over.
    """

    name: str
    message: FromGateway
    deployment: bytes | None = None
    is_forged: bool = False
    alert: tuple[str, int, int] | None = None
    codes: frozenset[str] = frozenset()


Invention = Callable[[Notebook, Victim, Random], Attack | None]
Change = Callable[[Notebook, FromGateway, Random], Attack | None]


def _update_of(notebook: Notebook, victim: Victim) -> Update | None:
    """Return the newest genuine update of ``victim``."""
    return next((update for id, update in reversed(notebook.updates) if id == victim.device_id), None)


def _made_up(name: str, update: Update, *codes: str) -> Attack:
    return Attack(
        name=name, message=update, deployment=update.deployment, is_forged=True, codes=frozenset(codes)
    )


def _renumbered(name: str, update: Update, random: Random, *codes: str) -> Attack:
    """Return ``update`` under a deployment that nobody ever made."""
    return _made_up(name, replace(update, deployment=random.randbytes(_ID_SIZE)), *codes)


def _signed_by_attacker(
    notebook: Notebook, victim: Victim, update: Update, random: Random, *, kid: bytes | None
) -> Update:
    """Return ``update`` with a directive of the attacker's, under the name of the key ``kid``."""
    match signed_map(update.directive):
        case {5: bytes(digest), 6: int(sequence), 10: str(component)}:
            pass
        case _:
            raise AssertionError("a genuine directive has these")
    directive = Directive(
        fleet=FleetName(victim.fleet),
        device=DeviceId(victim.device_id),
        enrolment=random.randbytes(_ID_SIZE),
        deployment=random.randbytes(_ID_SIZE),
        manifest_digest=digest,
        sequence=sequence + _AHEAD,
        issued_at=victim.now_ms,
        expires_at=victim.now_ms + _DAY_MS,
        install_by=victim.now_ms + _DAY_MS,
        component=ChannelName(component),
    )
    key = notebook.own_key(Role.DIRECTIVE)
    signed = sign_directive(directive, key)
    if kid is not None:
        signed = _renamed(signed, key.kid, kid)
    return replace(update, directive=signed, deployment=directive.deployment)


def _renamed(signed: bytes, old: bytes, kid: bytes) -> bytes:
    """Return a signed object that names another key."""
    assert len(old) == len(kid), "kids have one size"
    return signed.replace(old, kid, 1)


def forged_directive(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A directive of the attacker's that names the gateway's key."""
    update = _update_of(notebook, victim)
    if update is None or Role.DIRECTIVE not in notebook.keys:
        return None
    kid, _ = notebook.keys[Role.DIRECTIVE]
    forged = _signed_by_attacker(notebook, victim, update, random, kid=kid)
    return _made_up("forged_directive", forged, "bad_signature")


def unknown_signer(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A directive of the attacker's, under its own key."""
    update = _update_of(notebook, victim)
    if update is None:
        return None
    forged = _signed_by_attacker(notebook, victim, update, random, kid=None)
    return _made_up("unknown_signer", forged, "unknown_key")


def alert_as_directive(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A genuine alert in the place of a directive: signed by the gateway, for something else."""
    update = _update_of(notebook, victim)
    if update is None or not notebook.alerts:
        return None
    body = notebook.alerts[-1].body
    return _renumbered("alert_as_directive", replace(update, directive=body), random, "unknown_key")


def truncated_directive(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A genuine directive without its end."""
    update = _update_of(notebook, victim)
    if update is None:
        return None
    cut = replace(update, directive=update.directive[: random.randrange(1, len(update.directive))])
    return _renumbered("truncated_directive", cut, random, "malformed")


def other_device(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """Another device's genuine update."""
    others = [update for id, update in notebook.updates if id != victim.device_id]
    if not others:
        return None
    return _made_up("other_device", random.choice(others), "wrong_device")


def renamed_deployment(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A genuine update in a message about another deployment."""
    update = _update_of(notebook, victim)
    return None if update is None else _renumbered("renamed_deployment", update, random, "mix_and_match")


def replayed_update(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """An update of the past, as it was: the oldest that is remembered."""
    update = next((update for id, update in notebook.updates if id == victim.device_id), None)
    return None if update is None else Attack(name="replayed_update", message=update)


def forged_cancel(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A cancel of a deployment that never was: nothing is cancelled by it."""
    deployment = random.randbytes(_ID_SIZE)
    return Attack(
        name="forged_cancel",
        message=Cancel(deployment),
        deployment=deployment,
        is_forged=True,
        codes=frozenset({"cancelled"}),
    )


_ONLINE: Final = (Role.DIRECTIVE, Role.STATEMENT, Role.ALERT)


def forged_root(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A root document with the attacker's keys in every role."""
    if not notebook.root_version:
        return None
    key = notebook.own_key(Role.ROOT)
    document = RootDocument(
        fleet=FleetName(victim.fleet),
        version=notebook.root_version + 1,
        issued_at=victim.now_ms,
        expires_at=victim.now_ms + _YEAR_MS,
        keys=(
            RootKey(Role.RELEASE, key.public),
            *(RootKey(role, PrivateKey.generate().public) for role in _ONLINE),
        ),
    )
    return Attack(name="forged_root", message=Roots((sign_root(document, key),)))


def forged_statement(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A statement of the attacker's, ten years ahead."""
    statement = Statement(
        fleet=FleetName(victim.fleet),
        device=DeviceId(victim.device_id),
        nonce=random.randbytes(_ID_SIZE),
        latest_directive=0,
        root_version=0,
        time=victim.now_ms + 10 * _YEAR_MS,
        expires_at=victim.now_ms + 11 * _YEAR_MS,
    )
    key = notebook.own_key(Role.STATEMENT)
    body = sign_statement(statement, key)
    if Role.STATEMENT in notebook.keys:
        body = _renamed(body, key.kid, notebook.keys[Role.STATEMENT][0])
    return Attack(name="forged_statement", message=StatementMessage(body))


def forged_receipt(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A receipt for a report that was never made."""
    return Attack(name="forged_receipt", message=Recorded(random.randbytes(_ID_SIZE), "recorded"))


def repeated_alert(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """An alert of the past, at its own place."""
    return None if victim.alert is None else Attack(name="repeated_alert", message=victim.alert)


def late_cancel(notebook: Notebook, victim: Victim, random: Random) -> Attack | None:
    """A cancel of a deployment that has ended: it stays what it is."""
    return None if victim.ended is None else Attack(name="late_cancel", message=Cancel(victim.ended))


INVENTED: Final[Mapping[str, Invention]] = {
    invention.__name__: invention
    for invention in (
        forged_directive,
        unknown_signer,
        alert_as_directive,
        truncated_directive,
        other_device,
        renamed_deployment,
        replayed_update,
        forged_cancel,
        late_cancel,
        forged_root,
        forged_statement,
        forged_receipt,
        repeated_alert,
    )
}


def mixed_manifest(notebook: Notebook, message: FromGateway, random: Random) -> Attack | None:
    """A genuine directive with another genuine release."""
    if not isinstance(message, Update):
        return None
    others = [manifest for manifest in notebook.manifests if manifest != message.manifest]
    if not others:
        return None
    mixed = replace(message, manifest=random.choice(others))
    return _changed("mixed_manifest", mixed, "mix_and_match")


def truncated_manifest(notebook: Notebook, message: FromGateway, random: Random) -> Attack | None:
    """A genuine update whose manifest lacks its end."""
    if not isinstance(message, Update):
        return None
    cut = replace(message, manifest=message.manifest[: random.randrange(1, len(message.manifest))])
    return _changed("truncated_manifest", cut, "malformed")


def _changed(name: str, update: Update, *codes: str) -> Attack:
    return Attack(name=name, message=update, deployment=update.deployment, codes=frozenset(codes))


def _changed_alert(name: str, alert: Alert, code: str) -> Attack:
    position = (alert.channel, alert.epoch, alert.offset)
    return Attack(name=name, message=alert, alert=position, codes=frozenset({code}))


def forged_alert(notebook: Notebook, message: FromGateway, random: Random) -> Attack | None:
    """An alert with other data, signed by the attacker under the name of the gateway's key."""
    if not isinstance(message, Alert) or Role.ALERT not in notebook.keys:
        return None
    fields = {key: value for key, value in signed_map(message.body).items() if isinstance(key, int)}
    payload = encode_fields({**fields, 9: b"forged"})
    kid, algorithm = notebook.keys[Role.ALERT]
    signature = sign_alert(payload, notebook.own_key(Role.ALERT), str(fields[1]))
    body = assemble_alert(payload, signature, kid=kid, algorithm=algorithm)
    return _changed_alert("forged_alert", replace(message, body=body), "bad_signature")


def moved_alert(notebook: Notebook, message: FromGateway, random: Random) -> Attack | None:
    """An older genuine alert in the place of a new one."""
    if not isinstance(message, Alert):
        return None
    others = [alert for alert in notebook.alerts if alert.body != message.body]
    if not others:
        return None
    moved = replace(message, body=random.choice(others).body)
    return _changed_alert("moved_alert", moved, "mix_and_match")


def truncated_alert(notebook: Notebook, message: FromGateway, random: Random) -> Attack | None:
    """A genuine alert without its end."""
    if not isinstance(message, Alert):
        return None
    cut = replace(message, body=message.body[: random.randrange(1, len(message.body))])
    return _changed_alert("truncated_alert", cut, "malformed")


CHANGED: Final[Mapping[str, Change]] = {
    change.__name__: change
    for change in (mixed_manifest, truncated_manifest, forged_alert, moved_alert, truncated_alert)
}
