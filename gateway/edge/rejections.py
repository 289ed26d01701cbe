"""From an error to what a peer is told: one table, one function.

A device gets a close code or a status and the error's stable code, never our text; an operator gets the
text too (``problem``). What is not in the table is our bug, and a test walks the classes to find it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from device_sdk.errors import UpdateError
from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.errors import LimitError, WireError
from gateway.errors import (
    ConflictError,
    CredentialExpiredError,
    CredentialRefusedError,
    CredentialRevokedError,
    GatewayError,
    LimitExceededError,
    NotFoundError,
    OriginUnavailableError,
    PeerError,
    PermissionDeniedError,
    ProtocolViolationError,
    StorageUnavailableError,
    UnavailableError,
    WrongIdentityError,
)


class Rejection(NamedTuple):
    """What the peer is told.

    Attributes:
        code: Stable, machine readable (docs/reference/codes.md).
        retry_after_s: When to come back; None: the status alone says whether.
    """

    close_code: CloseCode
    http_status: int
    code: str
    retry_after_s: float | None = None


# The most derived class that is here decides.
_TABLE: Final[dict[type[Exception], tuple[CloseCode, int]]] = {
    WireError: (CloseCode.POLICY_VIOLATION, 400),
    LimitError: (CloseCode.MESSAGE_TOO_BIG, 413),
    # Next to the formats some checks raise what a device would: an upload is refused with its code.
    UpdateError: (CloseCode.POLICY_VIOLATION, 422),
    GatewayError: (CloseCode.INTERNAL_ERROR, 500),
    PeerError: (CloseCode.POLICY_VIOLATION, 400),
    ProtocolViolationError: (CloseCode.POLICY_VIOLATION, 400),
    LimitExceededError: (CloseCode.MESSAGE_TOO_BIG, 413),
    NotFoundError: (CloseCode.POLICY_VIOLATION, 404),
    CredentialRefusedError: (CloseCode.CREDENTIAL_REFUSED, 401),
    CredentialExpiredError: (CloseCode.CREDENTIAL_REFUSED, 401),
    CredentialRevokedError: (CloseCode.CREDENTIAL_REVOKED, 401),
    WrongIdentityError: (CloseCode.WRONG_IDENTITY, 403),
    PermissionDeniedError: (CloseCode.POLICY_VIOLATION, 403),
    ConflictError: (CloseCode.POLICY_VIOLATION, 409),
    UnavailableError: (CloseCode.TRY_AGAIN_LATER, 503),
    StorageUnavailableError: (CloseCode.STORAGE_UNAVAILABLE, 503),
    OriginUnavailableError: (CloseCode.ORIGIN_UNAVAILABLE, 503),
}
_RETRY_AFTER_S: Final = 5.0


def rejection(error: WireError | UpdateError | GatewayError) -> Rejection:
    """Return what the peer that caused or met ``error`` is told."""
    for cls in type(error).__mro__:
        if cls in _TABLE:
            close_code, http_status = _TABLE[cls]
            break
    else:
        raise AssertionError(f"{type(error).__name__} is in no row")
    retry_after_s = None
    if isinstance(error, UnavailableError):
        retry_after_s = _RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
    if isinstance(error, CredentialRefusedError) and error.code == "device_disabled":
        return Rejection(CloseCode.DEVICE_DISABLED, 403, error.code)
    return Rejection(close_code, http_status, error.code, retry_after_s)
