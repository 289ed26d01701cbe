"""Bounds of updates. The configuration's ``[updates]`` has keys of the same names, but for the last two."""

from __future__ import annotations

from dataclasses import dataclass

OFFER_LEN_MAX = 200  # devices in one call of ``Updates.offer``, which is one transaction


@dataclass(frozen=True, slots=True)
class UpdateLimits:
    """Lives of signed objects, and attempts.

    Attributes:
        directive_ttl_s: How long after signing a device may accept a directive.
        install_by_s: How long after signing it may start to install.
        attempts_max: Attempts to push an update after which it is ``timed_out``; ``[device]`` has the key.
        statement_ttl_s: Life of a statement: it answers a nonce of a moment ago.
    """

    directive_ttl_s: int = 3600
    install_by_s: int = 7 * 86_400
    attempts_max: int = 20
    statement_ttl_s: int = 300

    def __post_init__(self) -> None:
        assert min(self.directive_ttl_s, self.install_by_s, self.statement_ttl_s) > 0, (
            "nothing would be valid"
        )
        assert self.attempts_max >= 1, "nothing would ever be sent"
