"""A stretch: consecutive events of one client, in a block or copied from a tail.

The unit that readers of segments work with. Its times are loaded to merge it with other clients; its records are fetched
only for the events that somebody looks at, and only their bytes are read.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from abc import ABC, abstractmethod

import numpy as np

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, ClockModel
from py_chronolog_client.errors import DamageError, StoreError
from py_chronolog_client.page import U64, Payload
from py_chronolog_client.store.blocks import read_exactly
from py_chronolog_client.store.crc import crc32
from py_chronolog_client.store.format import HEADER_BYTES, BlockHeader, events_header, padding

_PIECE_BYTES = 2**18
_local = threading.local()


class Descriptor:
    """An open file that closes itself when nobody needs it any more."""

    __slots__ = ("number", "path")

    def __init__(self, path: str) -> None:
        """Open a file for reading.

        Raises:
            FileNotFoundError: it is not there.
            DamageError: it is no regular file, or cannot be read.
            StoreError: this process may not open any more files.
        """
        self.number = -1
        self.path = path
        try:
            self.number = _open(path)
            regular = stat.S_ISREG(os.fstat(self.number).st_mode)
        except (FileNotFoundError, StoreError):
            raise
        except OSError as error:
            raise DamageError(path, 0, f"cannot be read: {error.strerror}") from error
        if not regular:
            raise DamageError(path, 0, "this is no regular file")

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _open(path: str) -> int:
    """Open a file, if need be after raising the number of files that this process may have open."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        raise StoreError(
            path,
            "too many open files: a replay opens one for each client of the story while its EventList lives, and the limit is "
            f"{hard}: raise it (ulimit -n)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return os.open(path, flags)


class Span:
    """What is known of the events `first_sequence` to `end_sequence` (not included) of one client, wherever they are.

    Attributes:
        first_time: key of the first event, ns: its time, unless the span is aligned.
        last_time: key of the last event, ns.
        clock: model under which the times were made.
    """

    __slots__ = ("clock", "end_sequence", "first_sequence", "first_time", "last_time")

    first_sequence: int
    end_sequence: int
    first_time: int
    last_time: int
    clock: ClockModel

    def keys(self, times: U64) -> U64:
        """Return what events with these times are ordered by: uint64, shape (n,), never decreasing."""
        return times

    def windows_ns(self, times: U64) -> U64:
        """Return the half-width of the hard window around each of `times`, in ns."""
        model = self.clock
        if model.window_ns == UNKNOWN_WINDOW_NS:
            return np.full(len(times), UNKNOWN_WINDOW_NS, np.uint64)
        made_ns = np.uint64((model.base_ns + model.offset_ns) % 2**64)
        age_ns = np.where(times >= made_ns, times - made_ns, made_ns - times)
        with np.errstate(invalid="ignore"):
            grown_ns = np.ceil(age_ns * max(0.0, model.window_rate))
        windows = np.full(len(times), UNKNOWN_WINDOW_NS, np.uint64)
        known = grown_ns < UNKNOWN_WINDOW_NS - model.window_ns
        windows[known] = grown_ns[known].astype(np.uint64) + np.uint64(model.window_ns)
        return windows


class Stretch(Span, ABC):
    """A span whose events can be fetched."""

    __slots__ = ()

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
    def payload(self, start: int, stop: int) -> Payload:
        """Return the records of the sequence numbers `start` to `stop` (not included, there is one), after `check`.

        Raises:
            DamageError: they are not what was written.
        """


class BlockStretch(Stretch):
    """The events of a block in a segment."""

    __slots__ = ("_checked", "_file", "_header", "_indexed", "_offset")

    def __init__(self, file: Descriptor, offset: int, header: BlockHeader) -> None:
        self._file = file
        self._offset = offset
        self._header = header
        self._checked = False
        self._indexed = False
        self.first_sequence = header.first_sequence
        self.end_sequence = header.end_sequence
        self.first_time = header.first_time
        self.last_time = header.last_time
        self.clock = header.clock

    def times(self) -> U64:
        header, columns_at = self._header, self._offset + HEADER_BYTES
        columns = self._read(header.columns_bytes, columns_at)
        if crc32(columns) != header.columns_crc:
            raise self._damage("the checksum of the index columns does not hold")
        words: U64 = np.frombuffer(columns, np.uint64)
        times, ends = words[: header.count], words[header.count :]
        if not are_sound(header, times, ends):
            raise self._damage("times or ends decrease, or disagree with the header")
        self._indexed = True
        return times.copy()

    def check(self) -> None:
        if not self._checked:
            header = self._header
            if self._payload_crc(self._offset + HEADER_BYTES + header.columns_bytes) != header.payload_crc:
                raise self._damage("the checksum of the payload does not hold")
            self._checked = True

    def payload(self, start: int, stop: int) -> Payload:
        self.check()
        if not self._indexed:
            self.times()
        header = self._header
        ends_at = self._offset + HEADER_BYTES + 8 * header.count
        first = start - header.first_sequence
        before = min(first, 1)
        words = np.frombuffer(
            self._read(8 * (stop - start + before), ends_at + 8 * (first - before)), np.uint64
        )
        origin, end = int(words[0]) if before else header.origin, int(words[-1])
        if not header.origin <= origin <= end <= header.origin + header.payload_bytes:
            raise self._damage("ends have changed since they were checked")
        payload_at = ends_at + 8 * header.count + origin - header.origin
        return Payload(words[before:] - np.uint64(origin), self._read(end - origin, payload_at))

    def _payload_crc(self, offset: int) -> int:
        buffer: memoryview | None = getattr(_local, "buffer", None)
        if buffer is None:
            buffer = _local.buffer = memoryview(bytearray(_PIECE_BYTES))
        crc, left = 0, self._header.payload_bytes
        while left:
            try:
                size_bytes = os.preadv(self._file.number, [buffer[: min(left, _PIECE_BYTES)]], offset)
            except OSError as error:
                raise self._damage(f"cannot be read: {error.strerror}") from error
            if not size_bytes:
                raise self._damage("the file ends inside the block")
            crc = crc32(buffer[:size_bytes], crc)
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


def are_sound(header: BlockHeader, times: U64, ends: U64) -> bool:
    """Tell whether the columns of an events block are what its header says."""
    return (
        bool(np.all(times[1:] >= times[:-1]))
        and bool(np.all(ends[1:] >= ends[:-1]))
        and int(ends[0]) >= header.origin
        and int(ends[-1]) == header.origin + header.payload_bytes
        and (int(times[0]), int(times[-1])) == (header.first_time, header.last_time)
    )


class PartStretch(Stretch):
    """Some of the events of a stretch: those that nothing else has.

    Its first and last time are those of the whole stretch: none of its events is before or after them.
    """

    __slots__ = ("_whole",)

    def __init__(self, whole: Stretch, first_sequence: int, end_sequence: int) -> None:
        self._whole = whole
        self.first_sequence, self.end_sequence = first_sequence, end_sequence
        self.first_time, self.last_time = whole.first_time, whole.last_time
        self.clock = whole.clock

    def times(self) -> U64:
        before = self._whole.first_sequence
        return self._whole.times()[self.first_sequence - before : self.end_sequence - before]

    def check(self) -> None:
        self._whole.check()

    def payload(self, start: int, stop: int) -> Payload:
        return self._whole.payload(start, stop)


class TailStretch(Stretch):
    """The events of a tail, copied at one moment."""

    __slots__ = ("_ends", "_origin", "_payload", "_times")

    def __init__(
        self, base: int, clock: ClockModel, times: U64, ends: U64, payload: bytes, origin: int
    ) -> None:
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

    def payload(self, start: int, stop: int) -> Payload:
        first = start - self.first_sequence
        ends = self._ends[first : stop - self.first_sequence]
        origin = int(self._ends[first - 1]) if first else self._origin
        data = self._payload[origin - self._origin : int(ends[-1]) - self._origin]
        return Payload(ends - np.uint64(origin), data)

    def behind(self, sequence: int) -> TailStretch:
        """Return the part from `sequence` on."""
        skipped = sequence - self.first_sequence
        if skipped <= 0:
            return self
        origin = int(self._ends[skipped - 1])
        payload = self._payload[origin - self._origin :]
        return TailStretch(sequence, self.clock, self._times[skipped:], self._ends[skipped:], payload, origin)

    def block(self, client_id: int) -> list[bytes | memoryview]:
        """Return an events block with these events, in pieces."""
        times, ends = self._times.data, self._ends.data
        size_bytes = int(self._ends[-1]) - self._origin
        payload = memoryview(self._payload)[:size_bytes]
        header = events_header(client_id, self.first_sequence, times, ends, payload, self._origin, self.clock)
        zeros = padding(HEADER_BYTES + header.columns_bytes + header.payload_bytes)
        return [header.pack(), times, ends, payload, zeros]
