"""How a command ends that did not do what it was asked: one line, a stable code, an exit status."""

from __future__ import annotations

import enum
from collections.abc import Iterable


class ExitStatus(enum.IntEnum):
    """What the shell sees. Scripts rely on these numbers."""

    OK = 0
    FAILURE = 1  # the gateway, the network, a file or the database said no
    USAGE = 2  # the command line or the configuration is wrong; nothing was tried
    REFUSED = 3  # signatures or digests: the content is not to be trusted


class Failure(Exception):
    """The end of a command. ``str`` is one sentence that says what to do; ``details`` are further lines."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        exit_status: ExitStatus = ExitStatus.FAILURE,
        details: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.exit_status = exit_status
        self.details = tuple(details)

    def render(self) -> str:
        """Return the text for standard error, without a newline at its end."""
        lines = [f"error: {self} [{self.code}]", *(f"  {detail}" for detail in self.details)]
        return "\n".join(lines)


class UsageFailure(Failure):
    """The command line asks for what makes no sense, found out only after it was parsed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="usage", exit_status=ExitStatus.USAGE)


class RefusedFailure(Failure):
    """Content that must not be trusted; ``code`` is of docs/reference/codes.md."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message, code=code, exit_status=ExitStatus.REFUSED)


class UnreachableFailure(Failure):
    """The gateway gave no answer. Whether it did what was asked is not known."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unreachable")


class AnswerFailure(Failure):
    """The gateway answered, and the answer is no."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int,
        details: Iterable[str] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, details=details)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.status in (429, 502, 503, 504)
