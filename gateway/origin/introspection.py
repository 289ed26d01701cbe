"""RFC 7662: ask the authorisation server about a token.

``{"active": false}`` is the only definite no. A 401 or 403 here is about the gateway's own client secret, not
about the device, so it is unknown: a rotated secret must not turn a fleet away.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Literal
from urllib.parse import quote_plus

from device_sdk.wire.errors import MalformedError
from gateway.errors import CredentialRefusedError, OriginUnavailableError
from gateway.identity import Credential, Verdict, parse_claims, parse_json
from gateway.origin.http import OriginHTTP


class IntrospectionJudge:
    """The ``Judge`` of ``identity.mode = "introspection"``.

    Args:
        http: Open.
        url: The introspection endpoint, asked with POST.
        client_id, client_secret: The gateway's own, RFC 6749 §2.3.1.
        client_auth: Where they go: the ``Authorization`` header or the form.
    """

    def __init__(
        self,
        http: OriginHTTP,
        *,
        url: str,
        client_id: str,
        client_secret: str,
        client_auth: Literal["basic", "post"] = "basic",
    ) -> None:
        self._http = http
        self._url = url
        self._headers = [("Accept", "application/json")]
        self._form = {"token_type_hint": "access_token"}
        if client_auth == "basic":
            pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
            self._headers.append(("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}"))
        else:
            self._form |= {"client_id": client_id, "client_secret": client_secret}

    def key(self, credential: Credential) -> bytes:
        return credential.sha256

    def kept(self, credential: Credential) -> Credential:
        return Credential(credential.token, (("Authorization", f"Bearer {credential.token}"),))

    async def judge(self, credential: Credential) -> Verdict:
        form = {"token": credential.token, **self._form}
        answer = await self._http.ask("POST", self._url, headers=self._headers, form=form)
        if answer.status != 200:
            raise OriginUnavailableError(
                f"introspection answered {answer.status}", code="origin_malformed", retry_after_s=30.0
            )
        try:
            document = parse_json(answer.body)
            match document:
                case {"active": bool(active)}:
                    pass
                case _:
                    raise MalformedError("an answer without a boolean active")
            if active:
                return replace(parse_claims(document), cache_s=answer.cache_s)
        except MalformedError as error:
            raise OriginUnavailableError(str(error), code="origin_malformed", retry_after_s=30.0) from error
        raise CredentialRefusedError("the token is not active")
