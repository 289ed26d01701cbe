"""What the bootloader decides, and the record it decides by."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sdk.update.boot_record import (
    BootRecord,
    Content,
    Slot,
    SlotState,
    boot,
    decode,
    encode,
    give_up,
)
from device_sdk.update.ports import Image

IMAGE = Image(digest=b"i" * 32, size=3, manifest_digest=b"m" * 32, sequence=4, version="v")
TRIAL = replace(
    BootRecord(trial=Slot.B, tries_left=2),
    slots={
        Slot.A: SlotState(Content.GOOD),
        Slot.B: SlotState(Content.SEALED, 3, IMAGE),
    },
)


def test_without_a_trial_the_active_slot_runs() -> None:
    assert boot(BootRecord(active=Slot.B)).running is Slot.B


def test_a_trial_is_counted_before_it_is_started() -> None:
    once = boot(TRIAL)
    assert (once.running, once.tries_left, once.active) == (Slot.B, 1, Slot.A)


def test_a_trial_that_never_answers_is_given_up_when_its_tries_are_spent() -> None:
    spent = boot(boot(TRIAL))
    assert (spent.running, spent.tries_left) == (Slot.B, 0)
    back = boot(spent)
    assert (back.running, back.trial, back.active) == (Slot.A, None, Slot.A)
    assert back.slots[Slot.B].content is Content.BAD
    assert boot(back) == back


def test_giving_up_leaves_running_what_runs_until_the_next_boot() -> None:
    given = give_up(boot(TRIAL))
    assert given.running is Slot.B
    assert boot(given).running is Slot.A


images = st.builds(
    Image,
    digest=st.binary(min_size=32, max_size=32),
    size=st.integers(0, 2**53 - 1),
    manifest_digest=st.binary(min_size=32, max_size=32),
    sequence=st.integers(0, 2**53 - 1),
    version=st.text(max_size=128),
)
states = st.builds(SlotState, st.sampled_from(Content), st.integers(0, 2**53 - 1), st.none() | images)
records = st.builds(
    BootRecord,
    active=st.sampled_from(Slot),
    running=st.sampled_from(Slot),
    trial=st.none() | st.sampled_from(Slot),
    tries_left=st.integers(0, 9),
    slots=st.fixed_dictionaries({Slot.A: states, Slot.B: states}),
    counter=st.integers(0, 2**40),
)


@given(records)
def test_a_record_is_read_as_it_was_written(record: BootRecord) -> None:
    assert decode(encode(record)) == record


@given(records, st.data())
def test_a_torn_or_changed_record_is_none(record: BootRecord, data: st.DataObject) -> None:
    encoded = encode(record)
    at = data.draw(st.integers(0, len(encoded) - 1))
    assert decode(encoded[:at]) is None
    flipped = encoded[:at] + bytes([encoded[at] ^ data.draw(st.integers(1, 255))]) + encoded[at + 1 :]
    assert decode(flipped) is None


@pytest.mark.parametrize("data", [None, b"", b"\0\0\0\0", bytes(100)])
def test_no_record_is_none(data: bytes | None) -> None:
    assert decode(data) is None


@pytest.mark.parametrize("content", [b"\xff", b"\xa0", b"\x80"])
def test_other_content_with_a_good_crc_is_none(content: bytes) -> None:
    assert decode(content + zlib.crc32(content).to_bytes(4, "big")) is None
