"""Errors that say whose fault it is.

``PeerError``: the other end broke the contract; it is told by code. ``ConflictError``: the request was
good, the state was not. ``UnavailableError``: a dependency is down and the caller may try again.
``AssertionError`` is our bug. ``ConfigError`` ends the start with exit status 2.
``edge/rejections.py`` turns each into a close code or an HTTP status; a test fails on a gap.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Root of what the gateway raises on purpose. ``code`` is stable (docs/reference/codes.md)."""

    code = "internal"

    def __init__(self, detail: str = "", *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code


class PeerError(GatewayError):
    """The peer broke the contract."""

    code = "bad_request"


class ProtocolViolationError(PeerError):
    """A message that the protocol does not allow here."""

    code = "protocol_violation"


class LimitExceededError(PeerError):
    """More than a named limit allows."""

    code = "too_large"

    def __init__(self, limit: str, actual: int, allowed: int) -> None:
        super().__init__(f"{limit}: {actual} is over {allowed}")
        self.limit = limit
        self.actual = actual
        self.allowed = allowed


class NotFoundError(PeerError):
    """Nothing there, or nothing that this peer may see."""

    code = "not_found"


class CredentialRefusedError(PeerError):
    """A definite no: 401, 403, ``active: false``, a bad signature."""

    code = "credential_refused"


class CredentialExpiredError(CredentialRefusedError):
    """The credential's own time is over."""

    code = "credential_expired"


class CredentialRevokedError(CredentialRefusedError):
    """Taken back by the origin or an operator."""

    code = "credential_revoked"


class WrongIdentityError(CredentialRefusedError):
    """The verdict names another fleet or device than the connection claims."""

    code = "wrong_identity"


class PermissionDeniedError(PeerError):
    """A known peer without the scope or the fleet."""

    code = "permission_denied"


class ConflictError(GatewayError):
    """Stale version, idempotency key reused with other content, illegal transition."""

    code = "conflict"


class UnavailableError(GatewayError):
    """A dependency is down; the same request may succeed later."""

    code = "unavailable"

    def __init__(
        self, detail: str = "", *, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail, code=code)
        self.retry_after_s = retry_after_s


class StorageUnavailableError(UnavailableError):
    """The database did not answer, or its queue is full."""

    code = "storage_unavailable"


class OriginUnavailableError(UnavailableError):
    """The origin gave no definite verdict: timeout, 5xx, open circuit, malformed answer."""

    code = "origin_unavailable"


class ConfigError(Exception):
    """Startup only: exit status 2. ``problems`` are whole sentences naming key, file and fix."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
