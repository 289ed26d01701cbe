"""Signed tokens (RFC 7519), verified here with the origin's published keys.

The order of the checks is the order of the lines: form, algorithm, key, signature, issuer and audience, what
the claims say, time. A definite no needs proof: a key that is not in the set is looked for in a
set fetched after the token came, since the origin may have rotated a moment ago.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
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

    def kept(self, credential: Credential) -> Credential:
        return Credential(credential.token, (("Authorization", f"Bearer {credential.token}"),))

    async def judge(self, credential: Credential) -> Verdict:
        kid, alg = self._header(credential.token)
        payload = await self._payload(credential.token, kid, alg)
        try:
            claims = parse_json(payload)
            if not isinstance(claims, dict):
                raise MalformedError("the payload is not a claims set")
            self._check_purpose(claims)
            verdict = parse_claims(claims)
            self._check_time(verdict, claims.get("nbf"))
        except MalformedError as error:
            # Well signed: the origin's mistake, and one that it likely makes for each token alike.
            raise OriginUnavailableError(str(error), code="origin_malformed", retry_after_s=30.0) from error
        return verdict

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

    def _check_purpose(self, claims: dict[str, Any]) -> None:
        """Raise ``CredentialRefusedError`` if the token is another issuer's, or for somebody else."""
        purpose = {name: value for name, value in claims.items() if name in ("iss", "aud")}
        try:
            JWTClaimsRegistry(
                iss={"essential": True, "value": self._issuer},
                aud={"essential": True, "value": self._audience},
            ).validate(purpose)
        except JoseError as error:
            raise CredentialRefusedError(str(error)) from error

    def _check_time(self, verdict: Verdict, not_before: object) -> None:
        """Raise what the token's time calls for; both clocks may be wrong by a minute.

        Raises:
            CredentialExpiredError: ``exp`` has passed.
            OriginUnavailableError: ``nbf`` is to come: good later, or our clock is slow. Nothing that should
                keep a device away for hours.
            MalformedError: No ``exp``, or ``nbf`` is no number.
        """
        now_ms = self._clock.now_ms()
        if verdict.expires_at is None:
            raise MalformedError("a token without exp would be good for ever")
        if verdict.expires_at <= now_ms - CLOCK_SKEW_S * 1000:
            raise CredentialExpiredError("exp has passed")
        if not_before is None:
            return
        if isinstance(not_before, bool) or not isinstance(not_before, int | float):
            raise MalformedError("nbf is not a NumericDate")
        if not_before * 1000 > now_ms + CLOCK_SKEW_S * 1000:
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
