from __future__ import annotations

from collections.abc import Iterator

import pytest

from device_sdk import errors
from device_sdk.wire.errors import WireError

CODES = {
    "RollbackError": "rollback",
    "IncompatibleDeviceError": "incompatible",
    "WrongDeviceError": "wrong_device",
    "WrongFleetError": "wrong_fleet",
    "ExpiredError": "expired",
    "InstallByPassedError": "install_by_passed",
    "ClockUnknownError": "clock_unknown",
    "ReplayError": "directive_replayed",
    "DirectiveConflictError": "directive_conflict",
    "StatementReplayedError": "statement_replayed",
    "MixAndMatchError": "mix_and_match",
    "TooLargeError": "too_large",
    "TooSlowError": "too_slow",
    "NoSpaceError": "no_space",
    "ImageDigestMismatchError": "image_digest_mismatch",
    "DownloadFailedError": "download_failed",
    "InstallFailedError": "install_failed",
    "BootFailedError": "boot_failed",
}


def subclasses(cls: type[Exception]) -> Iterator[type[Exception]]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_refusal_has_the_stable_code_of_the_contract() -> None:
    own = {cls for cls in subclasses(errors.UpdateError) if cls.__module__ == errors.__name__}
    assert {cls.__name__: getattr(cls, "code", None) for cls in own} == CODES


@pytest.mark.parametrize("cls", [errors.UpdateError, errors.RollbackError])
def test_a_refusal_of_authentic_bytes_is_no_wire_error(cls: type[Exception]) -> None:
    assert not issubclass(cls, WireError)


def test_a_rollback_says_what_and_how_far() -> None:
    error = errors.RollbackError("manifest sequence", 4, 7)
    assert str(error) == "manifest sequence 4 is below 7"
