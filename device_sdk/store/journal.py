"""The file format of the durable state, pure: one header, one snapshot, then one record for each commit.

::

    file    = header record*            the first record is the snapshot
    header  = "FLEETST1" salt crc       crc over "FLEETST1" and salt
    record  = salt length sequence crc payload

Numbers are big-endian: salt, length and crc (CRC-32) of 32 bits, sequence of 64. A record's crc covers
salt, length, sequence and payload; sequences rise by one. The salt is random for each file, so that
nobody who can put bytes into a payload can make them look like a record.

A loss of power can only tear the last record, since each is synced before the next is written. So an
unreadable tail with no readable record behind it is cut; anything else that is unreadable was committed
once, and is corruption.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from device_sdk.store.errors import CorruptStateError

MAGIC: Final = b"FLEETST1"
SALT_SIZE: Final = 4
_CRC: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">4sIQI")
HEADER_SIZE: Final = len(MAGIC) + SALT_SIZE + _CRC.size
RECORD_HEAD_SIZE: Final = _HEAD.size


@dataclass(frozen=True, slots=True)
class Journal:
    """What a file holds.

    Attributes:
        payloads: One for each record, oldest first; the first is the snapshot.
        sequence: Of the last record.
        size_bytes: Up to the end of the last record.
        is_torn: Bytes follow that a loss of power left of a commit which never returned.
    """

    salt: bytes
    payloads: tuple[bytes, ...]
    sequence: int
    size_bytes: int
    is_torn: bool


def encode_header(salt: bytes) -> bytes:
    """Return the first ``HEADER_SIZE`` bytes of a file."""
    assert len(salt) == SALT_SIZE
    return MAGIC + salt + _CRC.pack(zlib.crc32(MAGIC + salt))


def encode_record(salt: bytes, sequence: int, payload: bytes) -> bytes:
    """Return ``payload`` as a record."""
    return _HEAD.pack(salt, len(payload), sequence, _crc(salt, sequence, payload)) + payload


def parse_journal(data: bytes, *, record_size_max: int) -> Journal:
    """Return what ``data``, a whole file, holds.

    Args:
        data: The file's content, all of it on stable storage.
        record_size_max: Payload bytes of a record that is not the snapshot.

    Raises:
        CorruptStateError: Something that was committed is damaged.
    """
    salt = data[len(MAGIC) : len(MAGIC) + SALT_SIZE]
    if len(salt) < SALT_SIZE or data[:HEADER_SIZE] != encode_header(salt):
        raise CorruptStateError("the state's header is damaged")
    payloads: list[bytes] = []
    position, sequence = HEADER_SIZE, 0
    while (found := _read_record(data, position, salt)) is not None:
        if payloads and found[0] != sequence + 1:
            raise CorruptStateError(f"record {sequence + 1} is missing")
        sequence, payload = found
        payloads.append(payload)
        position += RECORD_HEAD_SIZE + len(payload)
    if not payloads:
        raise CorruptStateError("the state's snapshot is damaged")
    tail_size = len(data) - position
    if tail_size > RECORD_HEAD_SIZE + record_size_max or _has_record(data, position + 1, salt, sequence):
        raise CorruptStateError(f"record {sequence + 1} is damaged, and it was committed")
    return Journal(salt, tuple(payloads), sequence, position, is_torn=tail_size > 0)


def _read_record(data: bytes, position: int, salt: bytes) -> tuple[int, bytes] | None:
    if len(data) - position < RECORD_HEAD_SIZE:
        return None
    marker, length, sequence, crc = _HEAD.unpack_from(data, position)
    start = position + RECORD_HEAD_SIZE
    if marker != salt or len(data) - start < length:
        return None
    payload = data[start : start + length]
    return (sequence, payload) if _crc(salt, sequence, payload) == crc else None


def _has_record(data: bytes, position: int, salt: bytes, sequence: int) -> bool:
    """Return whether a record later than ``sequence`` can be read anywhere from ``position`` on."""
    while (position := data.find(salt, position)) >= 0:
        found = _read_record(data, position, salt)
        if found is not None and found[0] > sequence:
            return True
        position += 1
    return False


def _crc(salt: bytes, sequence: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack(">4sIQ", salt, len(payload), sequence)))
