"""The boot record of two slots, as a bootloader keeps it: what runs, what is on trial, and how often. Pure.

``boot`` is the bootloader's whole decision. The record is CBOR with a CRC-32 behind it; ``slots`` keeps two
copies and replaces the older one, so that a damaged copy costs one change and not the device.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

from device_sdk.update.ports import Image
from device_sdk.wire import cbor
from device_sdk.wire.errors import WireError

RECORD_SIZE_MAX: Final = 4096
_CRC_SIZE: Final = 4


class Slot(enum.StrEnum):
    """One of the two places for a component's image."""

    A = "a"
    B = "b"

    @property
    def other(self) -> Slot:
        """The other one."""
        return Slot.B if self is Slot.A else Slot.A


class Content(enum.StrEnum):
    """What a slot holds."""

    EMPTY = "empty"
    WRITING = "writing"  # a part of an image, never started
    SEALED = "sealed"  # complete and read back; never confirmed
    GOOD = "good"  # ran and was confirmed, or came from the factory
    BAD = "bad"  # was on trial and did not confirm


@dataclass(frozen=True, slots=True)
class SlotState:
    """A slot's content.

    Attributes:
        written: Bytes that are on stable storage, while WRITING.
        image: Whose; None if EMPTY or, in the factory's slot, unknown.
    """

    content: Content = Content.EMPTY
    written: int = 0
    image: Image | None = None


@dataclass(frozen=True, slots=True)
class BootRecord:
    """What a bootloader knows of one component.

    Attributes:
        counter: Rises with each change: which of two copies is newer.
        active: The slot that runs for good.
        running: The slot that was started last.
        trial: The slot that is started next while there are tries.
        tries_left: How often it is started still.
    """

    active: Slot = Slot.A
    running: Slot = Slot.A
    trial: Slot | None = None
    tries_left: int = 0
    slots: Mapping[Slot, SlotState] = field(
        default_factory=lambda: {Slot.A: SlotState(Content.GOOD), Slot.B: SlotState()}
    )
    counter: int = 0

    @property
    def target(self) -> Slot:
        """The slot for the next image: the one that does not run for good."""
        return self.active.other

    def with_slot(self, slot: Slot, state: SlotState) -> BootRecord:
        """Return the record with ``slot`` holding ``state``."""
        return replace(self, slots={**self.slots, slot: state})


def boot(record: BootRecord) -> BootRecord:
    """Return the record after the bootloader has chosen what to start: ``running`` of the result.

    1. A trial with tries left is started, and the try is counted before it is.
    2. A trial without is given up: its slot is bad, and the active one is started.
    3. Without a trial the active slot is started.
    """
    if record.trial is None:  # 3
        return replace(record, running=record.active)
    if record.tries_left > 0:  # 1
        return replace(record, running=record.trial, tries_left=record.tries_left - 1)
    return replace(give_up(record), running=record.active)  # 2


def give_up(record: BootRecord) -> BootRecord:
    """Return the record without its trial, whose slot is bad. What runs now goes on until the next boot."""
    assert record.trial is not None, "there is a trial"
    state = replace(record.slots[record.trial], content=Content.BAD)
    return replace(record.with_slot(record.trial, state), trial=None, tries_left=0)


def encode(record: BootRecord) -> bytes:
    """Return ``record`` as deterministic CBOR (RFC 8949 §4.2.1) and its CRC-32, big-endian."""
    encoded = cbor.encode(
        {
            "active": record.active.value,
            "running": record.running.value,
            "trial": record.trial.value if record.trial else None,
            "tries_left": record.tries_left,
            "counter": record.counter,
            "slots": {slot.value: _slot_to_record(state) for slot, state in record.slots.items()},
        }
    )
    return encoded + zlib.crc32(encoded).to_bytes(_CRC_SIZE, "big")


def decode(data: bytes | None) -> BootRecord | None:
    """Return the record in ``data``; None if there is none, or not a whole one."""
    if data is None or len(data) <= _CRC_SIZE:
        return None
    encoded, crc = data[:-_CRC_SIZE], data[-_CRC_SIZE:]
    if zlib.crc32(encoded).to_bytes(_CRC_SIZE, "big") != crc:
        return None
    try:
        decoded = cbor.decode(encoded, size_max=RECORD_SIZE_MAX)
    except WireError:
        return None
    match decoded:
        case {
            "active": str(active),
            "running": str(running),
            "trial": (str() | None) as trial,
            "tries_left": int(tries_left),
            "counter": int(counter),
            "slots": dict(slots),
        }:
            return BootRecord(
                active=Slot(active),
                running=Slot(running),
                trial=Slot(trial) if trial else None,
                tries_left=tries_left,
                slots={Slot(slot): _slot_from_record(state) for slot, state in slots.items()},
                counter=counter,
            )
        case _:
            return None


def _slot_to_record(state: SlotState) -> list[object]:
    image = state.image
    return [
        state.content.value,
        state.written,
        None if image is None else {item.name: getattr(image, item.name) for item in fields(image)},
    ]


def _slot_from_record(record: list[object]) -> SlotState:
    match record:
        case [str(content), int(written), (dict() | None) as image]:
            return SlotState(Content(content), written, None if image is None else Image(**image))
        case _:
            raise AssertionError("its CRC is good, so encode wrote it")
