"""Why a device says no to a good signature.

What both ends refuse the same way, bytes that are not what they should be, is in
``device_sdk.wire.errors``. Here the bytes are authentic and the answer is still no. Each class carries
the stable ``code`` that a report with state ``rejected`` names (docs/reference/codes.md); the text is
for logs. This module imports nothing, so that the checks next to the wire formats can raise these.
"""

from __future__ import annotations


class UpdateError(Exception):
    """An authentic instruction that this device does not follow."""

    code = "rejected"


class RollbackError(UpdateError):
    """A lower sequence or version than one that was accepted before (PROTOCOL §7.1)."""

    code = "rollback"

    def __init__(self, what: str, actual: int, floor: int) -> None:
        super().__init__(what, actual, floor)
        self.what = what
        self.actual = actual
        self.floor = floor

    def __str__(self) -> str:
        return f"{self.what} {self.actual} is below {self.floor}"


class IncompatibleDeviceError(UpdateError):
    """The manifest is for another vendor or class, or for a component that the device has not."""

    code = "incompatible"


class WrongDeviceError(UpdateError):
    """Signed for another device."""

    code = "wrong_device"


class WrongFleetError(UpdateError):
    """Signed for another fleet."""

    code = "wrong_fleet"


class ExpiredError(UpdateError):
    """Its window is over, by the device's trusted clock (PROTOCOL §7.3, §7.5)."""

    code = "expired"


class InstallByPassedError(UpdateError):
    """Too late to begin installing (PROTOCOL §7.3)."""

    code = "install_by_passed"


class ClockUnknownError(UpdateError):
    """The device has no time it can trust, and no fresh statement (PROTOCOL §7.5)."""

    code = "clock_unknown"


class ReplayError(UpdateError):
    """An old directive, sent again (PROTOCOL §7.2)."""

    code = "directive_replayed"


class DirectiveConflictError(ReplayError):
    """Two directives with one sequence: somebody signs what the gateway did not (PROTOCOL §7.2)."""

    code = "directive_conflict"


class StatementReplayedError(ReplayError):
    """A statement that answers another nonce (PROTOCOL §7.5)."""

    code = "statement_replayed"


class MixAndMatchError(UpdateError):
    """Two authentic parts that do not name each other."""

    code = "mix_and_match"


class TooLargeError(UpdateError):
    """The image is larger than the device or the manifest allows."""

    code = "too_large"


class TooSlowError(UpdateError):
    """The download stays under the minimum rate: slow retrieval."""

    code = "too_slow"


class NoSpaceError(UpdateError):
    """The slot cannot hold the image."""

    code = "no_space"


class ImageDigestMismatchError(UpdateError):
    """The downloaded image is not the one the operator signed."""

    code = "image_digest_mismatch"


class DownloadFailedError(UpdateError):
    """The image could not be fetched, however often it was tried."""

    code = "download_failed"


class InstallFailedError(UpdateError):
    """The installer gave up; the running image is untouched."""

    code = "install_failed"


class BootFailedError(UpdateError):
    """The new image did not confirm itself, and the old one runs again."""

    code = "boot_failed"
