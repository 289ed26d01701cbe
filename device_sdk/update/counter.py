"""The directive counter: which directives a device follows (PROTOCOL §7.2). Pure.

The gateway raises a device's sequence with every directive that it signs, so a lower one is old, and two
with one sequence are two signers. What is kept is (sequence, SHA-256 of the directive, deployment); the
step of each deployment is kept with its job.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from device_sdk.errors import DirectiveConflictError, ReplayError
from device_sdk.wire.signed import Directive


@dataclass(frozen=True, slots=True)
class Counter:
    """The newest directive that was taken.

    Attributes:
        sequence: 0: none was.
        digest: ``Directive.digest``, SHA-256 of the signed payload.
        deployment: Which one it was about.
        enrolment: Of which enrolment of the device.
    """

    sequence: int = 0
    digest: bytes = b""
    deployment: bytes = b""
    enrolment: bytes = b""

    @classmethod
    def of(cls, directive: Directive) -> Counter:
        """Return the counter once ``directive`` is taken."""
        return cls(directive.sequence, directive.digest, directive.deployment, directive.enrolment)

    def to_record(self) -> list[object]:
        """Return what is stored."""
        return [self.sequence, self.digest, self.deployment, self.enrolment]

    @classmethod
    def from_record(cls, record: object) -> Counter:
        """Return what ``to_record`` stored; the empty counter for None."""
        if record is None:
            return cls()
        assert isinstance(record, list | tuple), "written by to_record"
        return cls(*record)


class Verdict(enum.Enum):
    """What a directive that is not refused means."""

    SAME = enum.auto()  # the same job: resumed, or acknowledged again
    RENEWAL = enum.auto()  # a newer directive for a deployment that is held
    NEW = enum.auto()


def judge(directive: Directive, counter: Counter, held: Mapping[bytes, bytes]) -> Verdict:
    """Return what ``directive`` means to a device that counted up to ``counter``.

    Args:
        directive: Authentic, and for this device.
        held: Deployments that are not at their end, and the digest of each one's directive. Several are
            held when several components are updated: each one's own directive is the same job though the
            counter has gone on.

    Raises:
        ReplayError: A lower sequence.
        DirectiveConflictError: An equal one under another hash: somebody else signs.
    """
    if directive.digest in (counter.digest, held.get(directive.deployment)):
        return Verdict.SAME
    if directive.sequence < counter.sequence:
        raise ReplayError(f"directive {directive.sequence} is below {counter.sequence}")
    if directive.sequence == counter.sequence:
        raise DirectiveConflictError(f"two directives with sequence {directive.sequence}")
    return Verdict.RENEWAL if directive.deployment in held else Verdict.NEW
