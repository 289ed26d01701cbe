"""The resume ticket that a gateway gave: kept on flash, shown with the token it goes with (PROTOCOL §5.4).

The device cannot read it and need not: a ticket that is no longer good is as none.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Final

from device_sdk.inbox import State
from device_sdk.store.errors import StoreError

_log = logging.getLogger("fleetcast.ticket")

_KEY: Final = "client/ticket"


class TicketKeeper:
    """The newest ticket of one device. What cannot be stored is done without: the token is enough."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._ticket: bytes | None = None
        self._token_sha256 = b""
        match state.get(_KEY):
            case [bytes(ticket), bytes(token_sha256)]:
                self._ticket, self._token_sha256 = ticket, token_sha256

    def for_token(self, token: str) -> bytes | None:
        """Return the ticket that goes with ``token``; one of another token is dropped."""
        if self._ticket is not None and self._token_sha256 != _sha256(token):
            self.drop()
        return self._ticket

    def keep(self, ticket: bytes, token: str) -> None:
        """Keep ``ticket``, which was given while ``token`` was presented, in the place of the one before."""
        self._ticket, self._token_sha256 = ticket, _sha256(token)
        self._store([ticket, self._token_sha256])

    def drop(self) -> None:
        """Forget it: the credential was refused, or is another."""
        if self._ticket is not None:
            self._ticket, self._token_sha256 = None, b""
            self._store(None)

    def _store(self, value: list[bytes] | None) -> None:
        try:
            self._state.commit({_KEY: value})
        except StoreError:
            _log.exception("the ticket cannot be stored")


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
