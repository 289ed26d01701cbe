"""Command sequences and their parameters: read strictly, and carried out on paper.

A manifest is a small program. Here it is run symbolically for its one component: what is left is which
conditions it asks for, what it fetches from where, and that nothing is kept that was not matched.
Anything that would make the outcome depend on more than that is unsupported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from device_sdk.wire import cbor
from device_sdk.wire.errors import MalformedError, UnsupportedError
from device_sdk.wire.limits import ENVELOPE_SIZE_MAX, INTEGER_MAX
from device_sdk.wire.suit.digest import SUITDigest
from device_sdk.wire.suit.registry import Command, Parameter

COMMANDS_MAX: Final = 64
UUID_SIZE: Final = 16
_URI = re.compile(r"[!-~]{1,2048}\Z")

_CONDITIONS: Final = {
    Command.CONDITION_VENDOR_IDENTIFIER: Parameter.VENDOR_IDENTIFIER,
    Command.CONDITION_CLASS_IDENTIFIER: Parameter.CLASS_IDENTIFIER,
    Command.CONDITION_DEVICE_IDENTIFIER: Parameter.DEVICE_IDENTIFIER,
    Command.CONDITION_IMAGE_MATCH: Parameter.IMAGE_DIGEST,
}
_TARGET: Final = frozenset(
    {
        Command.CONDITION_VENDOR_IDENTIFIER,
        Command.CONDITION_CLASS_IDENTIFIER,
        Command.CONDITION_DEVICE_IDENTIFIER,
    }
)
SHARED: Final = _TARGET | {Command.SET_COMPONENT_INDEX, Command.OVERRIDE_PARAMETERS}
FETCHING: Final = SHARED | {Command.FETCH, Command.CONDITION_IMAGE_MATCH}
VALIDATING: Final = _TARGET | {Command.SET_COMPONENT_INDEX, Command.CONDITION_IMAGE_MATCH}
INVOKING: Final = _TARGET | {Command.SET_COMPONENT_INDEX, Command.INVOKE}
LOADING: Final[frozenset[Command]] = frozenset({Command.SET_COMPONENT_INDEX})


class Procedure:
    """What the sequences of one manifest come to, in the order in which a recipient runs them."""

    def __init__(self) -> None:
        self.parameters: dict[Parameter, bytes | int | str] = {}
        self.conditions: set[Command] = set()
        self.is_fetched = False
        self.is_matched = False  # since the last fetch
        self.is_invoked = False

    def run(self, sequence: bytes, *, allowed: frozenset[Command], settable: frozenset[Parameter]) -> None:
        """Carry out ``sequence``, CBOR.

        Args:
            sequence: A SUIT_Command_Sequence, authentic.
            allowed: The commands that may stand in this section.
            settable: The parameters that may be overridden in it. Digest, size and identifiers are set in
                the shared sequence only: what was checked cannot change afterwards.

        Raises:
            MalformedError: Not a command sequence.
            UnsupportedError: A command or parameter that is not supported, or not in this section.
        """
        for command, argument in _commands(sequence):
            if command not in allowed:
                raise UnsupportedError(f"command {command.name} in this section")
            if command is Command.OVERRIDE_PARAMETERS:
                self.parameters.update(_parameters(argument, settable))
            elif command is Command.SET_COMPONENT_INDEX:
                if type(argument) is not int or argument != 0:
                    raise UnsupportedError("a component index other than 0")
            else:
                _check_reporting_policy(argument)
                self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        if command is Command.FETCH:
            if Parameter.URI not in self.parameters:
                raise MalformedError("a fetch without a URI")
            self.is_fetched, self.is_matched = True, False
        elif command is Command.INVOKE:
            self.is_invoked = True
        else:
            if _CONDITIONS[command] not in self.parameters:
                raise MalformedError(f"{command.name} without its parameter")
            self.conditions.add(command)
            self.is_matched = self.is_matched or command is Command.CONDITION_IMAGE_MATCH


def _commands(sequence: bytes) -> Iterator[tuple[Command, object]]:
    items = cbor.decode(sequence, size_max=ENVELOPE_SIZE_MAX, depth_max=6)
    if not isinstance(items, list) or not items or len(items) % 2:
        raise MalformedError("a command sequence is an array of pairs")
    if len(items) > 2 * COMMANDS_MAX:
        raise UnsupportedError("a command sequence this long")
    for code, argument in zip(items[::2], items[1::2], strict=True):
        if type(code) is not int:
            raise UnsupportedError("a command that is no integer")
        try:
            yield Command(code), argument
        except ValueError:
            raise UnsupportedError(f"command {code}") from None


def _check_reporting_policy(argument: object) -> None:
    if type(argument) is not int or not 0 <= argument <= 15:
        raise MalformedError("a reporting policy is four bits")


def _parameters(
    argument: object, settable: frozenset[Parameter]
) -> Iterator[tuple[Parameter, bytes | int | str]]:
    if not isinstance(argument, Mapping) or not argument:
        raise MalformedError("parameters are a map")
    for key, value in argument.items():
        if type(key) is not int or key not in settable:
            raise UnsupportedError(f"parameter {key!r} in this section")
        parameter = Parameter(key)
        yield parameter, _parameter(parameter, value)


def _parameter(parameter: Parameter, value: object) -> bytes | int | str:
    if parameter is Parameter.IMAGE_SIZE:
        if type(value) is not int or not 0 <= value <= INTEGER_MAX:
            raise MalformedError("an image size is an integer of 0..2^53-1")
        return value
    if parameter is Parameter.URI:
        if type(value) is not str or not _URI.match(value):
            raise MalformedError("a URI is 1..2048 visible ASCII characters")
        if value.startswith("#"):
            raise UnsupportedError("integrated payloads")
        return value
    if type(value) is not bytes:
        raise MalformedError(f"{parameter.name} is a byte string")
    if parameter is Parameter.IMAGE_DIGEST:
        return SUITDigest.parse(value).value
    if len(value) != UUID_SIZE:
        raise MalformedError(f"{parameter.name} is a UUID")
    return value
