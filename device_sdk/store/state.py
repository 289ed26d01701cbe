"""The device's durable state: a map of keys to plain values, changed by commits that survive power loss.

One file: a snapshot and the commits since (``journal``). Which keys there are is their owners' business:
``position/ seen/ inbox/ dead/ nack/ app/`` of ``inbox`` and ``core``, ``client/`` of ``reconnect``,
``update/`` and ``trust/`` of ``update``. A commit blocks for one write and one sync of the flash.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from device_sdk.store.errors import CorruptStateError, FlashError, StateFullError
from device_sdk.store.flash import Flash
from device_sdk.store.journal import (
    RECORD_HEAD_SIZE,
    SALT_SIZE,
    encode_header,
    encode_record,
    parse_journal,
)
from device_sdk.wire import cbor
from device_sdk.wire.errors import WireError

KEY_LEN_MAX: Final = 300
_ENTRY_OVERHEAD_BYTES: Final = 16  # the most that CBOR adds to a key and a value, rounded up
_VALUE_DEPTH_MAX: Final = 12  # containers inside each other


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Bounds of the durable state; a commit beyond them is refused and changes nothing.

    Attributes:
        state_size_max_bytes: Keys and values together.
        record_size_max_bytes: One commit.
        slack_bytes: The file is compacted when the commits since the snapshot are larger than the
            snapshot and than this. So it is at most twice ``state_size_max_bytes``, and a record.
    """

    state_size_max_bytes: int = 16 * 1024 * 1024
    record_size_max_bytes: int = 4 * 1024 * 1024
    slack_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        assert 0 < self.slack_bytes <= self.state_size_max_bytes
        assert 0 < self.record_size_max_bytes <= self.state_size_max_bytes < 2**31


class StateStore:
    """Keys and their values: None, bool, int of 64 bits, float, bytes, str, list, dict of these.

    Values are copied in and out: what ``get`` returns is the caller's.

    Args:
        flash: Where the file is; not shared with another store of the same ``name``.
        name: The file's.

    Raises:
        CorruptStateError: The file is damaged in what was committed.
        FlashError: It can be neither read nor made.
    """

    def __init__(self, flash: Flash, *, name: str = "state", limits: StoreLimits | None = None) -> None:
        self._flash = flash
        self._name = name
        self._limits = limits or StoreLimits()
        self._entries: dict[str, bytes] = {}
        self._state_size = 0
        self._salt = b""
        self._sequence = 0
        self._snapshot_size = 0
        self._file_size = 0
        # The file may end in a part of a commit that failed: nothing is appended to it any more.
        self._is_tail_unknown = False
        try:
            self._open()
        except OSError as error:
            raise FlashError(f"{name} cannot be opened") from error

    @property
    def size_bytes(self) -> int:
        """Keys and values together, an upper bound of their encoding."""
        return self._state_size

    @property
    def file_size_bytes(self) -> int:
        """The file, as far as it counts."""
        return self._file_size

    def get(self, key: str) -> object | None:
        """Return the value of ``key``, None if there is none."""
        encoded = self._entries.get(key)
        return None if encoded is None else _decode_value(encoded)

    def items(self, prefix: str) -> Iterator[tuple[str, object]]:
        """Yield the keys that start with ``prefix`` and their values, sorted, as they are at the call."""
        found = sorted((key, value) for key, value in self._entries.items() if key.startswith(prefix))
        return ((key, _decode_value(value)) for key, value in found)

    def commit(self, changes: Mapping[str, object | None]) -> None:
        """Apply all of ``changes`` or none; None deletes. On stable storage when it returns.

        Changes that change nothing cost nothing.

        Raises:
            StateFullError: A bound of ``StoreLimits``; nothing was changed.
            TypeError, ValueError: A value is not plain, or nested too deeply; nothing was changed.
            FlashError: The flash failed. In memory nothing was changed; on the flash the state is the
                one before or the one after, and the next commit settles it.
        """
        encoded = {key: None if value is None else _encode_value(value) for key, value in changes.items()}
        encoded = {key: value for key, value in encoded.items() if self._entries.get(key) != value}
        if not encoded:
            return
        state_size = self._size_after(encoded)
        payload = cbor.encode(encoded)
        if len(payload) > self._limits.record_size_max_bytes:
            raise StateFullError("record_size_bytes", len(payload), self._limits.record_size_max_bytes)
        record_size = RECORD_HEAD_SIZE + len(payload)
        since_snapshot = self._file_size - self._snapshot_size + record_size
        is_due = since_snapshot > max(self._snapshot_size, self._limits.slack_bytes)
        try:
            if is_due or self._is_tail_unknown:
                self._write_snapshot(_applied(self._entries, encoded))
            else:
                record = encode_record(self._salt, self._sequence + 1, payload)
                self._is_tail_unknown = True
                self._flash.append(self._name, record)
                self._flash.sync(self._name)
                self._is_tail_unknown = False
                self._sequence += 1
                self._file_size += record_size
                _apply(self._entries, encoded)
        except OSError as error:
            raise FlashError(f"{self._name} cannot be written") from error
        self._state_size = state_size

    def compact(self) -> None:
        """Write the snapshot anew, as ``commit`` does by itself when it is due.

        Raises:
            FlashError: As for ``commit``.
        """
        try:
            self._write_snapshot(self._entries)
        except OSError as error:
            raise FlashError(f"{self._name} cannot be written") from error

    def _open(self) -> None:
        if self._flash.read(self._name) is None:
            self._write_snapshot({})
            return
        # What a crashed process wrote may be readable and yet not stable: never act upon it before it is.
        self._flash.sync(self._name)
        data = self._flash.read(self._name)
        assert data is not None, "a file that is synced exists"
        journal = parse_journal(data, record_size_max=self._limits.record_size_max_bytes)
        for payload in journal.payloads:
            _apply(self._entries, _decode_payload(payload))
        self._state_size = sum(map(_entry_size, self._entries.keys(), self._entries.values()))
        self._salt = journal.salt
        self._sequence = journal.sequence
        self._snapshot_size = len(encode_header(journal.salt)) + RECORD_HEAD_SIZE + len(journal.payloads[0])
        self._file_size = journal.size_bytes
        if journal.is_torn:
            self._write_snapshot(self._entries)

    def _write_snapshot(self, entries: dict[str, bytes]) -> None:
        """Make a file of ``entries`` alone, and those the state."""
        salt = secrets.token_bytes(SALT_SIZE)
        data = encode_header(salt) + encode_record(salt, self._sequence + 1, cbor.encode(entries))
        self._is_tail_unknown = True  # a replacement that fails may be there, under another salt
        self._flash.replace(self._name, data)
        self._entries = entries
        self._salt = salt
        self._sequence += 1
        self._snapshot_size = self._file_size = len(data)
        self._is_tail_unknown = False

    def _size_after(self, encoded: Mapping[str, bytes | None]) -> int:
        size = self._state_size
        for key, value in encoded.items():
            assert 0 < len(key) <= KEY_LEN_MAX, key
            old = self._entries.get(key)
            size -= 0 if old is None else _entry_size(key, old)
            size += 0 if value is None else _entry_size(key, value)
        if size > max(self._limits.state_size_max_bytes, self._state_size):
            raise StateFullError("state_size_bytes", size, self._limits.state_size_max_bytes)
        return size


def _entry_size(key: str, value: bytes) -> int:
    return len(key.encode()) + len(value) + _ENTRY_OVERHEAD_BYTES


def _apply(entries: dict[str, bytes], changes: Mapping[str, bytes | None]) -> None:
    for key, value in changes.items():
        if value is None:
            entries.pop(key, None)
        else:
            entries[key] = value


def _applied(entries: Mapping[str, bytes], changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    result = dict(entries)
    _apply(result, changes)
    return result


def _decode_payload(payload: bytes) -> dict[str, bytes | None]:
    """Return the changes of a record; its CRC was good, so anything else is a foreign or later format."""
    try:
        decoded = cbor.decode(payload, size_max=len(payload))
    except WireError as error:
        raise CorruptStateError("a record is not of this format") from error
    if not isinstance(decoded, dict):
        raise CorruptStateError("a record is not of this format")
    changes: dict[str, bytes | None] = {}
    for key, value in decoded.items():
        if type(key) is not str or not (value is None or type(value) is bytes):
            raise CorruptStateError("a record is not of this format")
        changes[key] = value
    return changes


def _encode_value(value: object) -> bytes:
    if _depth(value) > _VALUE_DEPTH_MAX:
        raise ValueError(f"a value is nested more than {_VALUE_DEPTH_MAX} deep")
    return cbor.encode(value)


def _depth(value: object) -> int:
    if isinstance(value, Mapping):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list | tuple):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _decode_value(encoded: bytes) -> object:
    return cbor.decode(encoded, size_max=len(encoded), depth_max=_VALUE_DEPTH_MAX)
