"""Copying the tail of a client that may be writing to it at this moment.

The writer never waits for a reader. A copy is made with pread in the order of docs/format.md ("Reading a live
tail") and is checked afterwards: if the tail was recycled meanwhile, it is made again.
"""

from __future__ import annotations

import math
import os
import platform
import time

import numpy as np

from py_chronolog_client.errors import DamageError
from py_chronolog_client.page import U64
from py_chronolog_client.store import owner
from py_chronolog_client.store.blocks import read_exactly
from py_chronolog_client.store.format import (
    MAX_SEQUENCE,
    TAIL_FILE_OFFSET,
    TAIL_STATE_BYTES,
    TAIL_STATE_OFFSET,
    TAIL_STATIC_BYTES,
    TailHeader,
    TailState,
)
from py_chronolog_client.store.root import trusts_tails
from py_chronolog_client.store.stretch import Descriptor, TailStretch

_TRIES = 100


class TailCopy:
    """What a tail held at one moment.

    Attributes:
        end_sequence: the sequence number behind its last event: the client's high-water mark.
        events: the events, or None where there are none that can be believed.
        disbelieved: whether they may be torn and are only counted, because the tail is another boot's or a copy, or
            because this machine cannot say in which order the writer's stores arrive.
        unchanged: whether `events` is None because nothing is new, in the blocks neither.
    """

    __slots__ = ("disbelieved", "end_sequence", "events", "unchanged")

    def __init__(
        self, end_sequence: int, events: TailStretch | None, disbelieved: bool, *, unchanged: bool = False
    ) -> None:
        self.end_sequence = end_sequence
        self.events = events
        self.disbelieved = disbelieved
        self.unchanged = unchanged


def copy_tail(path: str, client_id: int, known_end: int = -1) -> TailCopy | None:
    """Copy the tail at `path`, or return None where there is none.

    Args:
        path: file name.
        client_id: whose tail it is by its name.
        known_end: if the tail ends at this sequence number, `events` is left None: nothing is new.

    Raises:
        DamageError: the file is no tail.
    """
    try:
        file = Descriptor(path)
    except FileNotFoundError:
        return None
    header, is_original = _header(file, client_id)
    if not is_original and not trusts_tails():
        # Its columns may be of several moments, so nothing can be damaged in them.
        base, ends, _ = _extent(file, header)
        return TailCopy(base + len(ends), None, disbelieved=True)
    for _ in range(_TRIES):
        base, ends, state = _extent(file, header)
        count = len(ends)
        if not count:  # also while it is being recycled, so there may be more in blocks than `base` says
            return TailCopy(base, None, disbelieved=False)
        if base + count == known_end:
            if _read(file, TAIL_STATE_BYTES, TAIL_STATE_OFFSET) != state:
                continue
            return TailCopy(known_end, None, disbelieved=False, unchanged=True)
        if not _order_stores():
            return TailCopy(base + count, None, disbelieved=True)
        times = _words(file, count, header.times_offset)
        end = min(int(ends[count - 1]), header.tail_bytes)
        payload = _read(file, max(0, end - header.payload_offset), header.payload_offset)
        again = _words(file, count, header.ends_offset)
        if _read(file, TAIL_STATE_BYTES, TAIL_STATE_OFFSET) != state:
            continue
        count = _agreed(ends, again)
        if not count:  # it is being recycled
            continue
        ends, times = ends[:count], times[:count]
        sound = (
            int(ends[0]) >= header.payload_offset
            and int(ends[-1]) <= header.tail_bytes
            and bool(np.all(ends[1:] >= ends[:-1]))
            and bool(np.all(times[1:] >= times[:-1]))
        )
        if not sound:
            raise DamageError(path, header.ends_offset, "times or ends decrease or leave the file")
        clock = TailState.unpack(state).clock
        events = TailStretch(base, clock, times, ends, payload, header.payload_offset)
        return TailCopy(base + count, events, disbelieved=False)
    # The writer recycled its tail at every try: all that it held at the last one is in blocks.
    return TailCopy(base, None, disbelieved=False)


class TailWatch:
    """Tells at the price of three system calls that a tail holds nothing new, so that it need not be copied.

    Whoever wants its events as a block learns also how soon the writer makes one.
    """

    def __init__(self, path: str, client_id: int) -> None:
        """Watch the tail at `path`.

        Raises:
            FileNotFoundError: there is none.
            DamageError: the file is no tail.
        """
        self._file = Descriptor(path)
        self._header, _ = _header(self._file, client_id)
        self._seen_at_s, self._seen_end = time.monotonic(), -1

    def slot_of(self, sequence: int) -> int | None:
        """Return the slot of an event that is there or may come; None if that is elsewhere, or the tail another."""
        if not os.fstat(self._file.number).st_nlink:
            return None
        slot = sequence - int.from_bytes(_read(self._file, 8, TAIL_STATE_OFFSET), "little")
        return slot if 0 <= slot < self._header.capacity else None

    def holds(self, slot: int) -> bool:
        """Tell whether there is an event in a slot."""
        return any(_read(self._file, 8, self._header.ends_offset + 8 * slot))

    def full_in_s(self) -> float:
        """Return how soon the tail is full if the writer goes on as since this was asked last; inf: nobody knows."""
        header, now_s = self._header, time.monotonic()
        base, ends, _ = _extent(self._file, header)
        before_s, before = self._seen_at_s, self._seen_end
        self._seen_at_s, self._seen_end = now_s, base + len(ends)
        grown = self._seen_end - before
        if before < 0 or grown <= 0 or not len(ends):
            return math.inf
        used = (int(ends[-1]) - header.payload_offset) / (header.tail_bytes - header.payload_offset)
        room = len(ends) / max(used, len(ends) / header.capacity) - len(ends)
        return room / grown * (now_s - before_s)


def _header(file: Descriptor, client_id: int) -> tuple[TailHeader, bool]:
    """Return the constant part of the header, and whether this is the file that a writer on this boot has mapped."""
    status = os.fstat(file.number)
    header = TailHeader.unpack(_read(file, min(TAIL_STATIC_BYTES, status.st_size), 0))
    if header is None or status.st_size < header.tail_bytes:
        raise DamageError(file.path, 0, "this is no tail, or it was cut short")
    if header.client_id != client_id:
        raise DamageError(file.path, 16, f"this is the tail of another client, {header.client_id:016x}")
    inode = int(_words(file, 1, TAIL_FILE_OFFSET)[0])
    return header, header.boot_id == owner.boot_id() and inode in (0, status.st_ino % 2**64)


def _extent(file: Descriptor, header: TailHeader) -> tuple[int, U64, bytes]:
    """Return the sequence number of slot 0, the committed ends, and the changing part of the header."""
    state = _read(file, TAIL_STATE_BYTES, TAIL_STATE_OFFSET)
    ends = _words(file, header.capacity, header.ends_offset)
    ends = ends[: _committed(ends)]
    base = TailState.unpack(state).base
    if base + len(ends) > MAX_SEQUENCE:
        raise DamageError(file.path, TAIL_STATE_OFFSET, f"the number {base} of its first event is impossible")
    return base, ends, state


def _read(file: Descriptor, size_bytes: int, offset: int) -> bytes:
    try:
        data = read_exactly(file.number, size_bytes, offset)
    except OSError as error:
        raise DamageError(file.path, offset, f"cannot be read: {error.strerror}") from error
    if data is None:
        raise DamageError(file.path, offset, "the tail was cut short")
    return data


def _words(file: Descriptor, count: int, offset: int) -> U64:
    return np.frombuffer(_read(file, 8 * count, offset), np.uint64)


def _committed(ends: U64) -> int:
    """Return the number of slots before the first that is 0."""
    empty = ends == 0
    first = int(np.argmax(empty))
    return first if empty[first] else len(ends)


def _agreed(ends: U64, again: U64) -> int:
    """Return how many ends are the same in both readings: a word that was torn in the first is whole in the second."""
    differ = ends != again
    first = int(np.argmax(differ))
    return first if differ[first] else len(ends)


_IN_ORDER = platform.machine() in ("x86_64", "AMD64", "i686")
"""Whether this processor never shows a commit before the stores that it commits."""
_NUMBERS = {"aarch64": 283, "riscv64": 283, "loongarch64": 283, "ppc64le": 365, "x86_64": 324}
_MEMBARRIER = _NUMBERS.get(platform.machine()) if platform.system() == "Linux" else None
_MEMBARRIER_GLOBAL = 1


def _order_stores() -> bool:
    """Make the writer's stores before a commit visible; return whether they are."""
    if _IN_ORDER:
        return True
    if _MEMBARRIER is None:
        return False
    import ctypes

    done: int = ctypes.CDLL(None).syscall(_MEMBARRIER, _MEMBARRIER_GLOBAL, 0)
    return done == 0
