"""What a device presents: its bearer token, and the request it came with.

A token is a secret of the operator's: it is never logged, never stored, and known inside by its SHA-256 only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.errors import CredentialRefusedError

TOKEN_LEN_MAX: Final = 8192  # a JWT with many claims; a longer Authorization header is no token of ours

_PACKED_TOKEN: Final = re.compile(r"(?i)\nauthorization: bearer +([A-Za-z0-9\-._~+/]+=*) *(?:\n|\Z)")
_BEARER: Final = re.compile(r"(?i:bearer) +([A-Za-z0-9\-._~+/]+=*) *\Z")  # RFC 6750 §2.1


@dataclass(frozen=True, slots=True)
class Credential:
    """A bearer token and the headers of the request that carried it, in order, names as they came.

    Attributes:
        token: The secret; not in ``repr``.
        headers: All headers of the request, for forward-auth to repeat; not in ``repr``.
        remote: The client's address, if known.
        scheme, host, method, target: Of the request, for ``X-Forwarded-*``.
    """

    token: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    remote: str | None = None
    scheme: str = "http"
    host: str = ""
    method: str = "GET"
    target: str = "/"

    @classmethod
    def from_headers(
        cls,
        headers: Iterable[tuple[str, str]],
        *,
        remote: str | None = None,
        scheme: str = "http",
        method: str = "GET",
        target: str = "/",
    ) -> Credential:
        """Return the credential of a request with ``headers``.

        Raises:
            CredentialRefusedError: No bearer token (``credential_missing``), two of them, or not one by
                RFC 6750 (``credential_refused``).
        """
        pairs = tuple(headers)
        found = [value for name, value in pairs if name.lower() == "authorization"]
        if not found:
            raise CredentialRefusedError("no Authorization header", code="credential_missing")
        match = _BEARER.match(found[0]) if len(found) == 1 and len(found[0]) <= TOKEN_LEN_MAX else None
        if match is None:
            raise CredentialRefusedError("not one bearer token")
        host = next((value for name, value in pairs if name.lower() == "host"), "")
        return cls(
            token=match[1],
            headers=pairs,
            remote=remote,
            scheme=scheme,
            host=host,
            method=method,
            target=target,
        )

    def packed(self) -> str:
        """Return it as one string: what a session keeps, a fifth of the size of the object. A secret too."""
        lines = [self.remote or "", self.scheme, self.host, self.method, self.target]
        return "\n".join([*lines, *(f"{name}: {value}" for name, value in self.headers)])

    @classmethod
    def unpacked(cls, text: str) -> Credential:
        """Return the credential that ``packed`` made ``text`` of; it has an ``Authorization`` header."""
        remote, scheme, host, method, target, *lines = text.split("\n")
        headers = (tuple(line.split(": ", 1)) for line in lines)
        found = cls.from_headers(
            ((name, value) for name, value in headers),
            remote=remote or None,
            scheme=scheme,
            method=method,
            target=target,
        )
        return replace(found, host=host)

    @staticmethod
    def packed_sha256(text: str) -> bytes:
        """Return the ``sha256`` of the credential that ``packed`` made ``text`` of, but sooner."""
        match = _PACKED_TOKEN.search(text)
        assert match is not None, "packed has the token"
        return hashlib.sha256(match[1].encode()).digest()

    @property
    def sha256(self) -> bytes:
        """The token's SHA-256: what it is called in caches and tickets."""
        return hashlib.sha256(self.token.encode()).digest()

    def key(self, header_names: Sequence[str] = ()) -> bytes:
        """Return what verdicts are cached under: the token and the values of ``header_names``.

        Two requests with one key must be the same question to the origin. Lengths are hashed too, so that no
        choice of header values makes two questions one.
        """
        if not header_names:
            return self.sha256
        found: dict[str, list[str]] = {wanted.lower(): [] for wanted in header_names}
        for name, value in self.headers:
            if (values := found.get(name.lower())) is not None:
                values.append(value)
        digest = hashlib.sha256(self.sha256)
        for wanted in header_names:
            values = found[wanted.lower()]
            digest.update(f"{len(values)}:".encode())
            for value in values:
                encoded = value.encode("utf-8", "surrogateescape")
                digest.update(f"{len(encoded)}:".encode() + encoded)
        return digest.digest()
