"""A stretch: consecutive events of one client, in a block or copied from a tail.

The unit that readers work with. Its times are loaded to merge it with other clients; its records are fetched only for the events that
somebody looks at, and only their bytes are read.
"""

from __future__ import annotations

import os
import threading
import zlib
from abc import ABC, abstractmethod

import numpy as np

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, ClockModel
from py_chronolog_client.errors import DamageError
from py_chronolog_client.page import U64, split_records
from py_chronolog_client.store.blocks import read_exactly
from py_chronolog_client.store.format import HEADER_BYTES, BlockHeader

_PIECE_BYTES = 2**18
_local = threading.local()


class Descriptor:
    """An open file that closes itself when nobody needs it any more."""

    __slots__ = ("number", "path")

    def __init__(self, path: str) -> None:
        self.number = -1
        self.path = path
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class Stretch(ABC):
    """Events `first_sequence` to `end_sequence` (not included) of one client.

    Attributes:
        first_time: time of the first event, ns.
        last_time: time of the last event, ns.
        clock: model under which the times were made.
    """

    __slots__ = ("clock", "end_sequence", "first_sequence", "first_time", "last_time")

    first_sequence: int
    end_sequence: int
    first_time: int
    last_time: int
    clock: ClockModel

    @abstractmethod
    def times(self) -> U64:
        """Return all times.

        Raises:
            DamageError: the index columns are not what was written.
        """

    @abstractmethod
    def check(self) -> None:
        """Make sure that the records are what was written; once is enough.

        Raises:
            DamageError: they are not.
        """

    @abstractmethod
    def records(self, start: int, stop: int) -> list[bytes]:
        """Return the records of the sequence numbers `start` to `stop` (not included), after `check`.

        Raises:
            DamageError: they are not what was written.
        """

    def windows_ns(self, times: U64) -> U64:
        """Return the half-width of the hard window around each of `times`, in ns."""
        model = self.clock
        if model.window_ns == UNKNOWN_WINDOW_NS:
            return np.full(len(times), UNKNOWN_WINDOW_NS, np.uint64)
        age_ns = times.astype(np.int64) - (model.base_ns + model.offset_ns)
        grown_ns = np.ceil(np.abs(age_ns) * model.window_rate).astype(np.uint64)
        return grown_ns + np.uint64(model.window_ns)


class BlockStretch(Stretch):
    """The events of a block in a segment."""

    __slots__ = ("_checked", "_file", "_header", "_offset")

    def __init__(self, file: Descriptor, offset: int, header: BlockHeader) -> None:
        self._file = file
        self._offset = offset
        self._header = header
        self._checked = False
        self.first_sequence = header.first_sequence
        self.end_sequence = header.end_sequence
        self.first_time = header.first_time
        self.last_time = header.last_time
        self.clock = header.clock

    def times(self) -> U64:
        header, columns_at = self._header, self._offset + HEADER_BYTES
        columns = self._read(header.columns_bytes, columns_at)
        if zlib.crc32(columns) != header.columns_crc:
            raise self._damage("the checksum of the index columns does not hold")
        words: U64 = np.frombuffer(columns, np.uint64)
        times, ends = words[: header.count], words[header.count :]
        self._check_columns(times, ends)
        return times.copy()

    def check(self) -> None:
        if not self._checked:
            header = self._header
            if self._payload_crc(self._offset + HEADER_BYTES + header.columns_bytes) != header.payload_crc:
                raise self._damage("the checksum of the payload does not hold")
            self._checked = True

    def records(self, start: int, stop: int) -> list[bytes]:
        self.check()
        header = self._header
        ends_at = self._offset + HEADER_BYTES + 8 * header.count
        first = start - header.first_sequence
        before = min(first, 1)
        words = np.frombuffer(
            self._read(8 * (stop - start + before), ends_at + 8 * (first - before)), np.uint64
        ).tolist()
        origin = words.pop(0) if before else header.origin
        payload_at = ends_at + 8 * header.count + origin - header.origin
        return split_records(self._read(words[-1] - origin, payload_at), words, origin)

    def _check_columns(self, times: U64, ends: U64) -> None:
        header = self._header
        sound = (
            bool(np.all(times[1:] >= times[:-1]))
            and bool(np.all(ends[1:] >= ends[:-1]))
            and int(ends[0]) >= header.origin
            and int(ends[-1]) == header.origin + header.payload_bytes
            and (int(times[0]), int(times[-1])) == (header.first_time, header.last_time)
        )
        if not sound:
            raise self._damage("times or ends decrease, or disagree with the header")

    def _payload_crc(self, offset: int) -> int:
        buffer: memoryview | None = getattr(_local, "buffer", None)
        if buffer is None:
            buffer = _local.buffer = memoryview(bytearray(_PIECE_BYTES))
        crc, left = 0, self._header.payload_bytes
        while left:
            size_bytes = os.preadv(self._file.number, [buffer[: min(left, _PIECE_BYTES)]], offset)
            if not size_bytes:
                raise self._damage("the file ends inside the block")
            crc = zlib.crc32(buffer[:size_bytes], crc)
            offset += size_bytes
            left -= size_bytes
        return crc

    def _read(self, size_bytes: int, offset: int) -> bytes:
        try:
            data = read_exactly(self._file.number, size_bytes, offset)
        except OSError as error:
            raise self._damage(f"cannot be read: {error.strerror}") from error
        if data is None:
            raise self._damage("the file ends inside the block")
        return data

    def _damage(self, reason: str) -> DamageError:
        return DamageError(self._file.path, self._offset, reason)


class TailStretch(Stretch):
    """The events of a tail, copied at one moment."""

    __slots__ = ("_ends", "_origin", "_payload", "_times")

    def __init__(self, base: int, clock: ClockModel, times: U64, ends: U64, payload: bytes, origin: int) -> None:
        self.first_sequence = base
        self.end_sequence = base + len(times)
        self.first_time = int(times[0])
        self.last_time = int(times[-1])
        self.clock = clock
        self._times = times
        self._ends = ends
        self._payload = payload
        self._origin = origin

    def times(self) -> U64:
        return self._times

    def check(self) -> None:
        """Do nothing: the copy was checked when it was made."""

    def records(self, start: int, stop: int) -> list[bytes]:
        first = start - self.first_sequence
        ends = self._ends[first : stop - self.first_sequence].tolist()
        origin = int(self._ends[first - 1]) if first else self._origin
        payload = self._payload[origin - self._origin : ends[-1] - self._origin]
        return split_records(payload, ends, origin)

    def behind(self, sequence: int) -> TailStretch:
        """Return the part from `sequence` on."""
        skipped = sequence - self.first_sequence
        if skipped <= 0:
            return self
        origin = int(self._ends[skipped - 1])
        payload = self._payload[origin - self._origin :]
        return TailStretch(sequence, self.clock, self._times[skipped:], self._ends[skipped:], payload, origin)
