"""The registry of WebSocket close codes. Numbers are never reused.

1000-1015 as RFC 6455 §7.4.1 registers them. 4000-4499: come back with backoff. 4500-4999: not with this
credential (the SDK drops its ticket and waits for another credential, or an hour and more). A device that
meets an unknown number treats it by its range; docs/reference/codes.md is the same table for people.
"""

from __future__ import annotations

import enum


class CloseCode(enum.IntEnum):
    """Why a connection ended."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005  # never sent: a close frame without a code
    ABNORMAL = 1006  # never sent: the transport went without a close frame
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013

    SHUTDOWN = 4000  # the node drains or stops
    SLOW_CONSUMER = 4001  # no byte of the outbox drained for 60 s
    HELLO_TIMEOUT = 4002  # no hello within hello_timeout_s
    NO_PONG = 4003  # silent for longer than the heartbeat allows
    REPLACED = 4004  # a newer session of the same device
    INSUFFICIENT_STATE = 4005  # this connection lost continuity; come back and resume
    ORIGIN_UNAVAILABLE = 4006  # the origin could not judge the credential; not the device's fault
    STORAGE_UNAVAILABLE = 4007  # the database is down; nothing is lost
    VERDICT_EXPIRED = 4008  # the credential's time is over; come back with a fresh one
    CHANGED = 4009  # what the device may see changed in a way that needs a new session

    CREDENTIAL_REFUSED = 4500  # the origin said no
    CREDENTIAL_REVOKED = 4501  # the origin or an operator took it back
    WRONG_IDENTITY = 4502  # the verdict names another fleet or device than the connection claims
    DEVICE_DISABLED = 4503  # an operator disabled or deleted the device

    @property
    def is_retryable(self) -> bool:
        """Whether the same credential may come back with backoff."""
        return self < 4500


def is_retryable(code: int) -> bool:
    """Return whether a device may come back with the credential it has; unknown codes go by range."""
    return not 4500 <= code <= 4999
