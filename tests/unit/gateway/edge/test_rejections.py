"""Every error of ours has a row: what a peer is told is decided, not fallen into."""

from __future__ import annotations

import pytest

from device_sdk.errors import UpdateError
from device_sdk.wire.close_codes import CloseCode
from device_sdk.wire.errors import WireError
from gateway.edge.rejections import rejection
from gateway.errors import (
    CredentialRefusedError,
    GatewayError,
    LimitExceededError,
    OriginUnavailableError,
    UnavailableError,
)


def every(root: type[Exception]) -> list[type[Exception]]:
    return [root, *(found for child in root.__subclasses__() for found in every(child))]


def made(cls: type[Exception]) -> Exception:
    error = cls.__new__(cls)
    Exception.__init__(error)
    for name in ("detail", "retry_after_s"):
        if not hasattr(error, name):
            setattr(error, name, None)
    return error


@pytest.mark.parametrize("cls", [*every(WireError), *every(UpdateError), *every(GatewayError)])
def test_every_error_is_told_by_a_stable_code(cls: type[Exception]) -> None:
    told = rejection(made(cls))  # type: ignore[arg-type]
    assert told.code == cls.code  # type: ignore[attr-defined]
    assert 400 <= told.http_status <= 599
    assert (told.http_status == 503) is issubclass(cls, UnavailableError)


@pytest.mark.parametrize("cls", every(UnavailableError))
def test_what_is_away_is_always_retryable_and_says_when(cls: type[Exception]) -> None:
    told = rejection(made(cls))  # type: ignore[arg-type]
    assert told.retry_after_s is not None
    assert told.close_code.is_retryable


@pytest.mark.parametrize("cls", every(CredentialRefusedError))
def test_definite_refusals_are_not_for_this_credential(cls: type[Exception]) -> None:
    assert not rejection(made(cls)).close_code.is_retryable  # type: ignore[arg-type]


def test_the_origins_wait_is_passed_on() -> None:
    assert rejection(OriginUnavailableError("busy", retry_after_s=7.5)).retry_after_s == 7.5


def test_disabled_device_has_its_own_close_code() -> None:
    told = rejection(CredentialRefusedError("no", code="device_disabled"))
    assert (told.close_code, told.http_status) == (CloseCode.DEVICE_DISABLED, 403)


def test_limit_is_a_413() -> None:
    assert rejection(LimitExceededError("alert", 2, 1)).http_status == 413
