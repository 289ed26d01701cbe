"""What both ends refuse the same way: errors about bytes, never about policy.

``WireError`` is the root of everything that ``device_sdk.wire`` raises. Each class carries a stable
``code`` (docs/reference/codes.md): the text is for logs, the code is what travels.
"""

from __future__ import annotations


class WireError(Exception):
    """Bytes from a peer that cannot be accepted."""

    code = "malformed"


class MalformedError(WireError):
    """Not the encoding, the type or the range that the contract asks for."""

    code = "malformed"


class LimitError(WireError):
    """Well formed, but larger than the contract allows.

    Args:
        limit: Name of the limit, as in docs/reference/limits.md.
        actual: What came, in the limit's unit.
        allowed: The bound, in the limit's unit.
    """

    code = "too_large"

    def __init__(self, limit: str, actual: int, allowed: int) -> None:
        super().__init__(limit, actual, allowed)
        self.limit = limit
        self.actual = actual
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.limit}: {self.actual} is over {self.allowed}"


class UnknownKeyError(WireError):
    """No signature names a key that is trusted for this role."""

    code = "unknown_key"


class BadSignatureError(WireError):
    """A trusted key was named, and its signature does not verify."""

    code = "bad_signature"


class DigestMismatchError(WireError):
    """The signature is good, but over other content."""

    code = "digest_mismatch"


class UnsupportedError(WireError):
    """Well formed and perhaps signed, but it asks for what this implementation does not do."""

    code = "unsupported"
