"""Forward-auth: repeat the device's request headers to the origin, and read its answer as a verdict.

2xx admits: the verdict is in the response's ``Fleetcast-*`` headers if ``Fleetcast-Device`` is among them,
else in its JSON body. 401 and 403 are a definite no. Everything else is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from sys import intern
from typing import Final

from multidict import CIMultiDict

from device_sdk.wire.errors import MalformedError
from gateway.errors import CredentialRefusedError, OriginUnavailableError
from gateway.identity import Credential, Verdict, parse_json, parse_verdict, parse_verdict_headers
from gateway.origin.http import Answer, OriginHTTP

# What the device claims to be; always repeated, and part of the question.
CLAIM_HEADERS: Final = ("Fleetcast-Fleet", "Fleetcast-Device")

# Headers about the device's connection to us or about the body of its request (RFC 9110 §7.6.1 and others),
# and those which would make the origin answer something else than a verdict (304 to a long-poll's cursor).
# Those that say who asks for whom are ours to write: a device does not get to spoof them, nor to plant an
# answer in headers that a careless origin echoes. A ticket is between the device and us.
_DROPPED: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "fleetcast-attributes",
        "fleetcast-channels",
        "fleetcast-expires",
        "fleetcast-ticket",
        "forwarded",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f]")  # all but the tab
_DROPPED_PREFIXES: Final = ("if-", "sec-websocket-", "x-forwarded-")


class ForwardAuthJudge:
    """The ``Judge`` of ``identity.mode = "forward_auth"``.

    Args:
        http: Open.
        url: Asked with GET.
        forward_headers: Repeat only these, ``Authorization`` and the claim; empty: all that may be repeated.
            They are part of the question: two devices with one token and other values are asked about apart.
    """

    def __init__(self, http: OriginHTTP, *, url: str, forward_headers: Sequence[str] = ()) -> None:
        self._http = http
        self._url = url
        self._key_headers = (*CLAIM_HEADERS, *forward_headers)
        self._allowed = (
            frozenset(name.lower() for name in ("authorization", *self._key_headers))
            if forward_headers
            else None
        )

    def key(self, credential: Credential) -> bytes:
        return credential.key(self._key_headers)

    def kept(self, credential: Credential) -> Credential:
        headers = tuple(
            (intern(str(name)), value) for name, value in device_headers(credential, self._allowed)
        )
        return replace(credential, headers=headers)

    async def judge(self, credential: Credential) -> Verdict:
        headers = [*repeated_headers(credential, self._allowed), ("Accept", "application/json")]
        answer = await self._http.ask("GET", self._url, headers=headers)
        if answer.status in (401, 403):
            raise CredentialRefusedError(f"the origin answered {answer.status}")
        if not 200 <= answer.status < 300:
            raise OriginUnavailableError(
                f"the origin answered {answer.status}", code="origin_malformed", retry_after_s=30.0
            )
        try:
            return replace(_verdict(answer), cache_s=answer.cache_s)
        except MalformedError as error:
            raise OriginUnavailableError(str(error), code="origin_malformed", retry_after_s=30.0) from error


def repeated_headers(credential: Credential, allowed: frozenset[str] | None) -> Iterator[tuple[str, str]]:
    """Yield the headers that tell the origin of the device's request.

    Args:
        allowed: Lower-case names; None: all but those about the connection, the body and preconditions.
    """
    yield from device_headers(credential, allowed)
    if credential.remote is not None:
        yield "X-Forwarded-For", credential.remote
    yield "X-Forwarded-Proto", credential.scheme
    yield "X-Forwarded-Host", credential.host
    yield "X-Forwarded-Method", credential.method
    yield "X-Forwarded-Uri", credential.target


def device_headers(credential: Credential, allowed: frozenset[str] | None) -> Iterator[tuple[str, str]]:
    """Yield those of the device's own headers that are repeated; as ``repeated_headers``."""
    named = {
        name.strip().lower()
        for header, value in credential.headers
        if header.lower() == "connection"
        for name in value.split(",")
    } - {"authorization"}
    for name, value in credential.headers:
        lower = name.lower()
        if lower in _DROPPED or lower.startswith(_DROPPED_PREFIXES) or lower in named:
            continue
        # What came in as bytes that are no UTF-8 cannot be repeated faithfully.
        if (allowed is None or lower in allowed) and _is_repeatable(value):
            yield name, value


def _verdict(answer: Answer) -> Verdict:
    if "Fleetcast-Device" not in answer.headers:
        return parse_verdict(parse_json(answer.body))
    joined: CIMultiDict[str] = CIMultiDict()
    for name in answer.headers:
        if name not in joined:
            joined[name] = ",".join(answer.headers.getall(name))
    return parse_verdict_headers(joined)


def _is_repeatable(value: str) -> bool:
    # A header that the client library refuses must not look like a failure of the origin.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return _CONTROL.search(value) is None
