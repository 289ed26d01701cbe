"""``fleet trust``: what is believed of a gateway before its keys are signed."""

from __future__ import annotations

from typing import Any

import pytest

from device_sdk.wire.keys import Algorithm, PrivateKey, Role
from device_sdk.wire.signed.root import verify_root
from gateway.cli.failure import Failure, UsageFailure
from gateway.cli.fleets import parse_offer, sign_document

RELEASE = PrivateKey.from_seed(bytes(range(32)))
SECOND = PrivateKey.generate(Algorithm.ESP256)
ONLINE = {role: PrivateKey.generate() for role in (Role.DIRECTIVE, Role.STATEMENT, Role.ALERT)}
NOW_MS = 1_800_000_000_000


def answer(**changes: Any) -> dict[str, Any]:
    online = [
        {
            "role": role.value,
            "kid": key.kid.hex(),
            "algorithm": "Ed25519",
            "public_pem": key.public.to_pem().decode(),
        }
        for role, key in ONLINE.items()
    ]
    return {"online": online, "root_version": 3, "release_keys": []} | changes


class TestOffer:
    def test_keys_are_known_by_role(self) -> None:
        offer = parse_offer(answer(release_keys=[{"kid": "aa", "public_pem": "x"}]))
        assert offer.online == {role: key.public for role, key in ONLINE.items()}
        assert (offer.root_version, offer.release_kids) == (3, ("aa",))

    @pytest.mark.parametrize(
        "online",
        [
            [],
            answer()["online"][:2],
            [*answer()["online"], answer()["online"][0]],
            [answer()["online"][0] | {"kid": "00" * 8}, *answer()["online"][1:]],
            [answer()["online"][0] | {"role": "release"}, *answer()["online"][1:]],
            [answer()["online"][0] | {"role": "emperor"}, *answer()["online"][1:]],
            [answer()["online"][0] | {"public_pem": "no"}, *answer()["online"][1:]],
            [answer()["online"][0] | {"public_pem": 7}, *answer()["online"][1:]],
            [{}],
            None,
            "online",
        ],
    )
    def test_anything_else_than_one_key_a_role_is_refused(self, online: object) -> None:
        with pytest.raises(Failure) as caught:
            parse_offer(answer(online=online))
        assert caught.value.code == "bad_answer"


class TestDocument:
    def sign(self, fleet: str = "acme", **changes: Any) -> bytes:
        arguments: dict[str, Any] = {"threshold": 1, "now_ms": NOW_MS, "lifetime_ms": 1000} | changes
        releases = arguments.pop("releases", [RELEASE.public])
        return sign_document(fleet, RELEASE, parse_offer(answer()), releases, **arguments)

    def test_devices_with_the_release_key_take_it(self) -> None:
        document = verify_root(self.sign(), [RELEASE.public], fleet="acme")
        assert document.version == 4
        assert (document.issued_at, document.expires_at) == (NOW_MS, NOW_MS + 1000)
        assert document.keys_of(Role.RELEASE) == {RELEASE.kid: RELEASE.public}
        for role, key in ONLINE.items():
            assert document.keys_of(role) == {key.kid: key.public}

    def test_release_keys_are_those_the_operator_names(self) -> None:
        """A gateway that was taken over lists a release key of its own: it is not signed."""
        offer = parse_offer(
            answer(release_keys=[{"kid": SECOND.kid.hex(), "public_pem": SECOND.public.to_pem().decode()}])
        )
        data = sign_document(
            "acme", RELEASE, offer, [RELEASE.public], threshold=1, now_ms=NOW_MS, lifetime_ms=1000
        )
        document = verify_root(data, [RELEASE.public], fleet="acme")
        assert document.keys_of(Role.RELEASE) == {RELEASE.kid: RELEASE.public}

    def test_threshold_is_of_releases(self) -> None:
        data = self.sign(releases=[RELEASE.public, SECOND.public], threshold=2)
        document = verify_root(data, [RELEASE.public], fleet="acme")
        assert document.threshold_of(Role.RELEASE) == 2
        assert document.threshold_of(Role.ALERT) == 1

    @pytest.mark.parametrize("changes", [{"fleet": "no fleet"}, {"threshold": 2}, {"lifetime_ms": 0}])
    def test_what_devices_would_refuse_is_not_signed(self, changes: dict[str, Any]) -> None:
        with pytest.raises(UsageFailure):
            self.sign(**changes)
