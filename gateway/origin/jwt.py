"""Signed tokens (RFC 7519), verified here with the origin's published keys.

The order of the checks is the order of the lines: form, algorithm, key, signature, issuer and audience, time,
and only then what the claims say. A definite no needs proof: a key that is not in the set is looked for in a
set fetched after the token came, since the origin may have rotated a moment ago.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from joserfc import jws
from joserfc.errors import ExpiredTokenError, JoseError, UnsupportedAlgorithmError
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from device_sdk.wire.errors import MalformedError
from gateway.clock import Clock
from gateway.errors import CredentialExpiredError, CredentialRefusedError, OriginUnavailableError
from gateway.identity import Credential, Verdict, parse_claims, parse_json
from gateway.identity.validity import CLOCK_SKEW_S
from gateway.origin.jwks import KeyRing, KeyRingSource


class JWTJudge:
    """The ``Judge`` of ``identity.mode = "jwt"``.

    Args:
        keys: Where the origin's keys come from.
        issuer, audience: What ``iss`` must be, and ``aud`` be or contain.
        algorithms: Those accepted; asymmetric ones only.
        clock: Wall time.
    """

    def __init__(
        self, keys: KeyRingSource, *, issuer: str, audience: str, algorithms: Sequence[str], clock: Clock
    ) -> None:
        assert not any(name == "none" or name.startswith("HS") for name in algorithms), (
            "public keys sign nothing"
        )
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._registry = _Registry(algorithms)
        self._algorithms = frozenset(algorithms)
        self._clock = clock

    def key(self, credential: Credential) -> bytes:
        return credential.sha256

    async def judge(self, credential: Credential) -> Verdict:
        kid, alg = self._header(credential.token)
        payload = await self._payload(credential.token, kid, alg)
        try:
            claims = parse_json(payload)
        except MalformedError as error:
            raise CredentialRefusedError("signed, but no claims set") from error
        if not isinstance(claims, dict):
            raise CredentialRefusedError("signed, but no claims set")
        self._check_registered(claims)
        try:
            return parse_claims(claims)
        except MalformedError as error:
            # Well signed for us: the origin's mistake, and one that it makes for each token alike.
            raise OriginUnavailableError(str(error), code="origin_malformed", retry_after_s=30.0) from error

    def _header(self, token: str) -> tuple[str | None, str]:
        try:
            header: dict[str, Any] = dict(
                jws.extract_compact(token.encode(), registry=self._registry).headers()
            )
        except (JoseError, ValueError) as error:
            raise CredentialRefusedError("not a signed token") from error
        kid, alg = header.get("kid"), header.get("alg")
        if not isinstance(kid, str | None) or not isinstance(alg, str) or alg not in self._algorithms:
            raise CredentialRefusedError("an algorithm that is not accepted")
        return kid, alg

    async def _payload(self, token: str, kid: str | None, alg: str) -> bytes:
        """Return what a key of the set vouches for.

        Raises:
            CredentialRefusedError: No key does, of a set that was asked for after the token came; or the key
                that the token names does not, and the set is seconds old.
            OriginUnavailableError: Such a set cannot be had now.
        """
        fetches = self._keys.fetches
        ring = await self._keys.ring()
        payload = self._verified(ring, token, kid, alg)
        if payload is None and ring.number <= fetches:
            is_named = kid is not None and bool(ring.candidates(kid=kid, alg=alg))
            if is_named and not self._keys.may_fetch:
                raise CredentialRefusedError("the key it names does not verify the signature")
            ring = await self._keys.fresh_ring()
            payload = self._verified(ring, token, kid, alg)
        if payload is not None:
            return payload
        if ring.number <= fetches:
            raise OriginUnavailableError("the set was asked for before the token came", retry_after_s=1.0)
        raise CredentialRefusedError("no key of the set verifies the signature")

    def _verified(self, ring: KeyRing, token: str, kid: str | None, alg: str) -> bytes | None:
        for candidate in ring.candidates(kid=kid, alg=alg):
            try:
                return jws.deserialize_compact(
                    token.encode(), candidate.key, algorithms=[alg], registry=self._registry
                ).payload
            except (JoseError, ValueError, TypeError):
                continue
        return None

    def _check_registered(self, claims: dict[str, Any]) -> None:
        now_s = self._clock.now_ms() // 1000
        not_before = claims.pop("nbf", None)
        claims.pop("iat", None)
        try:
            JWTClaimsRegistry(
                now=now_s,
                leeway=CLOCK_SKEW_S,
                iss={"essential": True, "value": self._issuer},
                aud={"essential": True, "value": self._audience},
                exp={"essential": True},
                sub={"essential": True},
            ).validate(claims)
        except ExpiredTokenError as error:
            raise CredentialExpiredError("exp has passed") from error
        except (JoseError, ValueError, TypeError) as error:
            raise CredentialRefusedError(f"claims: {error}") from error
        if not_before is None:
            return
        if isinstance(not_before, bool) or not isinstance(not_before, int | float):
            raise CredentialRefusedError("nbf is not a NumericDate")
        if not_before > now_s + CLOCK_SKEW_S:
            # Good later, or our clock is slow: nothing that should keep a device away for hours.
            raise OriginUnavailableError(
                "nbf is to come", code="credential_not_yet_valid", retry_after_s=30.0
            )


class _Registry(JWSRegistry):
    """The accepted algorithms and no others. Unknown header parameters are ignored (RFC 7515 §4)."""

    max_header_length = 4096  # x5c chains are not used here, but issuers send them

    def __init__(self, algorithms: Collection[str]) -> None:
        super().__init__(algorithms=algorithms, strict_check_header=False)
        self._accepted = frozenset(algorithms)

    def get_alg(self, name: str) -> Any:
        # The parent warns at each use of "EdDSA", which the configuration names on purpose.
        if name not in self._accepted or name not in self.algorithms:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]
