"""A page: a run of events in story order, as columns.

What every engine delivers and every reader consumes. Three numpy columns say when, who and which; the records
are fetched only when they are asked for, because most questions about a log are answered by the columns.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]


class Page(ABC):
    """Events in the order (time, client id, sequence).

    Attributes:
        times: uint64, shape (n,), ns since 1970 UTC, never decreasing.
        client_ids: uint64, shape (n,).
        sequences: uint64, shape (n,).
    """

    __slots__ = ("client_ids", "sequences", "times")

    def __init__(self, times: U64, client_ids: U64, sequences: U64) -> None:
        self.times = times
        self.client_ids = client_ids
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.times)

    @property
    def indexes(self) -> U32:
        """The low 32 bits of the sequence numbers: uint32, shape (n,). A view, not a copy."""
        return low_words(self.sequences)

    @abstractmethod
    def records(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """Return the records of the events `start` to `stop` (not included), in order.

        Raises:
            DamageError: the store no longer holds what it held when the page was made.
        """

    def windows_ns(self) -> U64:
        """Return the half-width of the hard window around every time: uint64, shape (n,), ns.

        `UNKNOWN_WINDOW_NS` where the time is the system clock's.
        """
        return np.full(len(self), 2**64 - 1, np.uint64)


class MemoryPage(Page):
    """A page whose records are in memory: one payload and the offset at which each record ends."""

    __slots__ = ("_ends", "_payload", "_windows_ns")

    def __init__(
        self,
        times: U64,
        client_ids: U64,
        sequences: U64,
        ends: U64,
        payload: bytes | bytearray | memoryview,
        windows_ns: U64 | None = None,
    ) -> None:
        """Make a page of n events.

        Args:
            ends: uint64, shape (n,): where record i ends in `payload`; it starts where i - 1 ends.
            payload: the records, one after another.
            windows_ns: uint64, shape (n,), or None for the system's clock.
        """
        super().__init__(times, client_ids, sequences)
        self._ends = ends
        self._payload = memoryview(payload)
        self._windows_ns = windows_ns

    def records(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        start, stop, _ = slice(start, stop).indices(len(self))
        if start >= stop:
            return []
        ends = self._ends[start:stop].tolist()
        first = int(self._ends[start - 1]) if start else 0
        payload = bytes(self._payload[first : ends[-1]])
        return split_records(payload, ends, first)

    def windows_ns(self) -> U64:
        return super().windows_ns() if self._windows_ns is None else self._windows_ns


def split_records(payload: bytes, ends: list[int], origin: int) -> list[bytes]:
    """Cut `payload` at `ends`, offsets that count from `origin`."""
    records = []
    start = 0
    for end in ends:
        stop = end - origin
        records.append(payload[start:stop])
        start = stop
    return records


def low_words(sequences: U64) -> U32:
    """View the low 32 bits of each 64-bit number."""
    return sequences.view(np.uint32)[(0 if sys.byteorder == "little" else 1) :: 2]
