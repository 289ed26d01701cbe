"""The update procedure: which step follows which, as a table, and the record of one deployment. Pure.

Every step is stored before it is acted on, so that a device that lost its power goes on from its disk. What
is done in a step is in ``agent``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from device_sdk.errors import InstallByPassedError, WrongDeviceError
from device_sdk.update.ports import Image
from device_sdk.wire.signed import Directive


class Step(enum.StrEnum):
    """Where a deployment stands on the device; all but IDLE are states of a report."""

    IDLE = "idle"  # the device does not hold it
    RECEIVED = "received"  # the directive is authentic and counted, the manifest unread
    VERIFIED = "verified"  # accepted: nothing was fetched
    DOWNLOADING = "downloading"  # into the slot that does not run
    INSTALLING = "installing"  # complete and verified; handed to the bootloader
    REBOOTING = "rebooting"  # on trial from the next boot on, until confirmed or given up
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"  # the trial failed, the old image runs
    FAILED = "failed"  # accepted, and it did not work; what ran runs
    REJECTED = "rejected"  # not accepted: nothing was touched
    CANCELLED = "cancelled"  # taken back, or superseded, in time


class Event(enum.Enum):
    """What moves a deployment on."""

    RECEIVE = enum.auto()
    REFUSE = enum.auto()
    VERIFY = enum.auto()
    DOWNLOAD = enum.auto()
    INSTALL = enum.auto()
    REBOOT = enum.auto()
    COMMIT = enum.auto()
    ROLL_BACK = enum.auto()
    FAIL = enum.auto()
    CANCEL = enum.auto()


TRANSITIONS: Final[Mapping[Step, Mapping[Event, Step]]] = {
    Step.IDLE: {
        Event.RECEIVE: Step.RECEIVED,
        Event.REFUSE: Step.REJECTED,
        Event.CANCEL: Step.CANCELLED,
    },
    Step.RECEIVED: {
        Event.VERIFY: Step.VERIFIED,
        Event.REFUSE: Step.REJECTED,
        Event.CANCEL: Step.CANCELLED,
    },
    Step.VERIFIED: {
        Event.DOWNLOAD: Step.DOWNLOADING,
        Event.COMMIT: Step.COMMITTED,  # it runs already
        Event.FAIL: Step.FAILED,
        Event.CANCEL: Step.CANCELLED,
    },
    Step.DOWNLOADING: {
        Event.INSTALL: Step.INSTALLING,
        Event.FAIL: Step.FAILED,
        Event.CANCEL: Step.CANCELLED,
    },
    # From here on a cancel comes too late, and the next deployment waits (PROTOCOL §6.5).
    Step.INSTALLING: {
        Event.REBOOT: Step.REBOOTING,
        Event.FAIL: Step.FAILED,
    },
    Step.REBOOTING: {
        Event.COMMIT: Step.COMMITTED,
        Event.ROLL_BACK: Step.ROLLED_BACK,
        Event.FAIL: Step.FAILED,
    },
    Step.COMMITTED: {},
    Step.ROLLED_BACK: {},
    Step.FAILED: {},
    Step.REJECTED: {},
    Step.CANCELLED: {},
}


def step_after(step: Step, event: Event) -> Step:
    """Return where ``event`` leads from ``step``."""
    following = TRANSITIONS[step].get(event)
    assert following is not None, f"{event.name} in {step.value}"
    return following


def is_cancellable(step: Step) -> bool:
    """Return whether a deployment at ``step`` can still be taken back or superseded."""
    return Event.CANCEL in TRANSITIONS[step]


def is_final(step: Step) -> bool:
    """Return whether nothing follows ``step``."""
    return not TRANSITIONS[step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One deployment that is held, as it is stored.

    Attributes:
        sequence, digest, enrolment, component, manifest_digest, expires_at, install_by: Of its newest
            directive.
        step: Not IDLE, not final.
        report_seq: The last ``seq`` that was given to a report of it, or set aside for progress.
        image, uri: From ``VERIFIED`` on.
        reboots: Restarts asked for.
    """

    deployment: bytes
    sequence: int
    digest: bytes
    enrolment: bytes
    component: str
    manifest_digest: bytes
    expires_at: int
    install_by: int
    step: Step = Step.RECEIVED
    report_seq: int = 0
    image: Image | None = None
    uri: str = ""
    reboots: int = 0

    @classmethod
    def of(cls, directive: Directive) -> Job:
        """Return the job of a deployment that ``directive`` begins."""
        return cls(deployment=directive.deployment, component=directive.component, **_terms(directive))

    def check_renewal(self, directive: Directive) -> None:
        """Return if ``directive``, a newer one for this deployment, only renews it (PROTOCOL §7.2).

        Raises:
            WrongDeviceError: For another enrolment of the device.
            MixAndMatchError: It names another release.
        """
        if directive.enrolment != self.enrolment:
            raise WrongDeviceError("the directive is for another enrolment of the device")
        directive.check_manifest(digest=self.manifest_digest, component=self.component)

    def renewed(self, directive: Directive) -> Job:
        """Return the job under ``directive``, which ``check_renewal`` let through."""
        return replace(self, **_terms(directive))

    def check_install_by(self, now_ms: int) -> None:
        """Raise InstallByPassedError if installing may no longer begin at ``now_ms``."""
        if now_ms >= self.install_by:
            raise InstallByPassedError("too late to begin installing")

    def after(self, event: Event) -> Job:
        """Return the job after ``event``, its report counted."""
        return replace(self, step=step_after(self.step, event), report_seq=self.report_seq + 1)

    def to_record(self) -> dict[str, object]:
        """Return what is stored."""
        record: dict[str, object] = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "image"
        }
        record["step"] = self.step.value
        if self.image is not None:
            record["image"] = {field.name: getattr(self.image, field.name) for field in fields(self.image)}
        return record

    @classmethod
    def from_record(cls, record: object) -> Job:
        """Return what ``to_record`` stored. Members that a later version added are passed over."""
        assert isinstance(record, Mapping), "written by to_record"
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        known["step"] = Step(known["step"])
        if "image" in known:
            known["image"] = Image(**known["image"])
        return cls(**known)


def _terms(directive: Directive) -> dict[str, Any]:
    """Return the members of a job that a renewal replaces."""
    names = ("sequence", "digest", "enrolment", "manifest_digest", "expires_at", "install_by")
    return {name: getattr(directive, name) for name in names}
