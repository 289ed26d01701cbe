"""The origin's published keys (RFC 7517): fetched once for all who wait, kept while the origin is down.

The last good set serves until a newer one is here, however old it is: the tokens it verifies have expiries of
their own, and no key set is no reason to turn a fleet away.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from device_sdk.wire.errors import MalformedError
from gateway.clock import Clock
from gateway.errors import OriginUnavailableError
from gateway.identity import parse_json
from gateway.origin.http import OriginHTTP
from gateway.telemetry import logger

KEYS_MAX: Final = 64  # more are cut off: each may be tried for a token without a kid
RSA_MODULUS_LEN_MIN: Final = 342  # base64url characters: 2048 bits

_log = logger("origin")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One public key of the set. ``alg`` None: whatever its type can do."""

    kid: str | None
    alg: str | None
    key: Key


@dataclass(frozen=True, slots=True)
class KeyRing:
    """A fetched set.

    Attributes:
        number: Of the fetch, counted from 1 at its start: what was asked for after fetch n was begun is
            answered by fetch n + 1 at the earliest.
        asked_at: When the fetch was begun, monotonic.
    """

    keys: tuple[SigningKey, ...]
    number: int
    asked_at: float

    def candidates(self, *, kid: str | None, alg: str) -> list[SigningKey]:
        """Return the keys that may have signed a token with this header; those of its kid, if it has one."""
        # RFC 9864 renamed EdDSA over this curve; key sets and tokens change at different times.
        algs = (None, alg, "EdDSA") if alg == "Ed25519" else (None, alg)
        return [key for key in self.keys if (kid is None or key.kid == kid) and key.alg in algs]


def parse_key_ring(document: object, *, number: int, asked_at: float) -> KeyRing:
    """Return the usable keys of a JWK Set: public signature keys of types and sizes that we verify with.

    A key that is not usable is left out, not an error: sets hold encryption keys and keys of tomorrow.

    Raises:
        MalformedError: Not a JWK Set, or none of its keys is usable.
    """
    match document:
        case {"keys": list(items)}:
            found = [key for item in items[:KEYS_MAX] if (key := _parse_key(item)) is not None]
        case _:
            raise MalformedError("not a JSON Web Key Set")
    if not found:
        raise MalformedError("a JSON Web Key Set without a usable key")
    return KeyRing(tuple(found), number, asked_at)


class KeyRingSource:
    """Fetch the set when it is asked for and old, at most every ``jwks_refetch_min_s``.

    Args:
        http: Open.
        url: Of the set.
        clock: Monotonic time.
        jwks_refresh_s: An older set is fetched again, in the background: it serves meanwhile.
        jwks_refetch_min_s: Least time between two fetches, successful or not.
    """

    def __init__(
        self, http: OriginHTTP, *, url: str, clock: Clock, jwks_refresh_s: float, jwks_refetch_min_s: float
    ) -> None:
        self._http = http
        self._url = url
        self._clock = clock
        self._refresh_s = jwks_refresh_s
        self._refetch_min_s = jwks_refetch_min_s
        self._ring: KeyRing | None = None
        self._failure: OriginUnavailableError | None = None
        self._asked_at = -float("inf")
        self.fetches = 0  # begun so far
        self._fetch: asyncio.Task[None] | None = None

    async def ring(self) -> KeyRing:
        """Return the set, an old one rather than none.

        Raises:
            OriginUnavailableError: There was never one, and it cannot be had now.
        """
        if self._ring is None:
            return await self.fresh_ring()
        if self._clock.monotonic() - self._ring.asked_at >= self._refresh_s and self.may_fetch:
            self._start()
        return self._ring

    async def fresh_ring(self) -> KeyRing:
        """Return a set fetched now; with others who ask for one, or by the fetch that is under way.

        Raises:
            OriginUnavailableError: It cannot be had, or was asked for less than ``jwks_refetch_min_s`` ago;
                ``retry_after_s`` is the rest of that time.
        """
        if self._fetch is None:
            if not self.may_fetch:
                wait_s = self._asked_at + self._refetch_min_s - self._clock.monotonic()
                detail = self._failure.detail if self._failure else "the key set was fetched just now"
                raise OriginUnavailableError(detail, retry_after_s=wait_s)
            self._start()
        assert self._fetch is not None, "just started"
        await asyncio.shield(self._fetch)
        if self._failure is not None:
            raise OriginUnavailableError(
                self._failure.detail, code=self._failure.code, retry_after_s=self._failure.retry_after_s
            )
        assert self._ring is not None, "a fetch ends with a failure or a ring"
        return self._ring

    @property
    def may_fetch(self) -> bool:
        """Whether the last question is ``jwks_refetch_min_s`` old."""
        return self._clock.monotonic() - self._asked_at >= self._refetch_min_s

    async def close(self) -> None:
        """End a fetch that is under way."""
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.gather(self._fetch, return_exceptions=True)

    def _start(self) -> None:
        if self._fetch is None:
            self._asked_at = self._clock.monotonic()
            self.fetches += 1
            self._fetch = asyncio.create_task(self._load(self.fetches, self._asked_at), name="origin.jwks")
            self._fetch.add_done_callback(self._ended)

    def _ended(self, _fetch: asyncio.Task[None]) -> None:
        self._fetch = None

    async def _load(self, number: int, asked_at: float) -> None:
        try:
            answer = await self._http.ask("GET", self._url, headers=[("Accept", "application/json")])
            if answer.status != 200:
                raise MalformedError(f"answered {answer.status}")
            self._ring = parse_key_ring(parse_json(answer.body), number=number, asked_at=asked_at)
            self._failure = None
        except MalformedError as error:
            self._failure = OriginUnavailableError(
                f"key set: {error}", code="origin_malformed", retry_after_s=30.0
            )
        except OriginUnavailableError as error:
            self._failure = error
        if self._failure is not None:
            _log.warning("key set not fetched", detail=self._failure.detail, kept=self._ring is not None)


def _parse_key(item: object) -> SigningKey | None:
    if not isinstance(item, dict) or item.get("use", "sig") != "sig" or "d" in item:
        return None
    if "verify" not in item.get("key_ops", ["verify"]):
        return None
    kid, alg = item.get("kid"), item.get("alg")
    if not isinstance(kid, str | None) or not isinstance(alg, str | None):
        return None
    # The algorithm is ours to match: the library knows nothing of the renaming in ``candidates``.
    bare = {name: value for name, value in item.items() if name != "alg"}
    try:
        match item.get("kty"):
            case "EC":
                return SigningKey(kid, alg, ECKey.import_key(bare))
            case "OKP":
                return SigningKey(kid, alg, OKPKey.import_key(bare))
            case "RSA" if isinstance(item.get("n"), str) and len(item["n"]) >= RSA_MODULUS_LEN_MIN:
                return SigningKey(kid, alg, RSAKey.import_key(bare))
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return None
