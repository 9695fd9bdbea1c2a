"""A page: a run of events in story order, as columns.

What every engine delivers and every reader consumes. Three numpy columns say when, who and which; the records
are fetched only when they are asked for, because most questions about a log are answered by the columns.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]

PAGE_EVENTS = 2**18
"""How many events a page of a scan holds at most."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Records, one after another.

    Attributes:
        ends: uint64, shape (n,): where each record ends in `data`. It starts where the one before ends, the first at 0.
        data: the records' bytes.
    """

    ends: U64
    data: bytes | memoryview

    @classmethod
    def of(cls, records: Sequence[bytes]) -> Payload:
        """Put records one after another."""
        ends = np.cumsum(np.fromiter(map(len, records), np.uint64, len(records)), dtype=np.uint64)
        return cls(ends, b"".join(records))

    @classmethod
    def join(cls, payloads: Iterable[Payload]) -> Payload:
        """Put the records of several payloads one after another."""
        several = list(payloads)
        if len(several) == 1:
            return several[0]
        data = b"".join([payload.data for payload in several])
        sizes = [payload.sizes() for payload in several]
        return cls(
            np.cumsum(np.concatenate(sizes) if sizes else np.empty(0, np.uint64), dtype=np.uint64), data
        )

    def __len__(self) -> int:
        return len(self.ends)

    def sizes(self) -> U64:
        """Return the length of each record: uint64, shape (n,), bytes."""
        return np.diff(self.ends, prepend=np.uint64(0))

    def records(self) -> list[bytes]:
        """Return the records."""
        data = bytes(self.data)
        records = []
        start = 0
        for end in self.ends.tolist():
            records.append(data[start:end])
            start = end
        return records

    def part(self, start: int, stop: int) -> Payload:
        """Return the records from `start` up to `stop` (not included), without copying them."""
        ends = self.ends[start:stop]
        if not len(ends):
            return Payload(ends, b"")
        first = self.ends[start - 1] if start else np.uint64(0)
        return Payload(ends - first, memoryview(self.data)[int(first) : int(ends[-1])])

    def take(self, order: npt.NDArray[np.intp]) -> Payload:
        """Return the records with the given numbers, in that order."""
        if not len(order):
            return Payload(np.empty(0, np.uint64), b"")
        sizes = self.sizes()
        size_bytes = int(sizes[0])
        if size_bytes and np.all(sizes == sizes[0]):
            rows = np.take(np.frombuffer(self.data, np.uint8).reshape(-1, size_bytes), order, axis=0)
            return Payload(np.arange(1, len(order) + 1, dtype=np.uint64) * sizes[0], rows.reshape(-1).data)
        breaks = np.flatnonzero(np.diff(order) != 1) + 1  # neighbours that stay neighbours are moved together
        firsts = (self.ends - sizes)[order[np.concatenate([[0], breaks])]].tolist()
        lasts = self.ends[order[np.concatenate([breaks - 1, [-1]])]].tolist()
        data = memoryview(self.data)
        moved = b"".join([data[first:last] for first, last in zip(firsts, lasts, strict=True)])
        return Payload(np.cumsum(sizes[order], dtype=np.uint64), moved)


class Page(ABC):
    """Events in the order (time, client id, sequence), or of an aligned replay (aligned time, client id, sequence).

    Attributes:
        times: uint64, shape (n,), ns since 1970 UTC, as `log_event` returned them.
        client_ids: uint64, shape (n,).
        sequences: uint64, shape (n,).
        aligned: uint64, shape (n,), ns since 1970 UTC; None if the replay is not aligned.
    """

    __slots__ = ("aligned", "client_ids", "sequences", "times")

    def __init__(self, times: U64, client_ids: U64, sequences: U64, aligned: U64 | None = None) -> None:
        self.times = times
        self.client_ids = client_ids
        self.sequences = sequences
        self.aligned = aligned

    def __len__(self) -> int:
        return len(self.times)

    @property
    def keys(self) -> U64:
        """What the events are ordered by, before client id and sequence: aligned times if there are any."""
        return self.times if self.aligned is None else self.aligned

    @property
    def indexes(self) -> U32:
        """The low 32 bits of the sequence numbers: uint32, shape (n,). A view, not a copy."""
        return low_words(self.sequences)

    @abstractmethod
    def payload(self, start: int = 0, stop: int | None = None) -> Payload:
        """Return the records of the events `start` to `stop` (not included), in order, as one piece of memory.

        Raises:
            DamageError: the store no longer holds what it held when the page was made.
        """

    def records(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """Return the records of the events `start` to `stop` (not included), in order.

        Raises:
            DamageError: the store no longer holds what it held when the page was made.
        """
        return self.payload(start, stop).records()

    def windows_ns(self) -> U64:
        """Return the half-width of the hard window around every key: uint64, shape (n,), ns.

        `UNKNOWN_WINDOW_NS` where the time is the system clock's.
        """
        return np.full(len(self), 2**64 - 1, np.uint64)


class MemoryPage(Page):
    """A page whose records are in memory."""

    __slots__ = ("_payload", "_windows_ns")

    def __init__(
        self,
        times: U64,
        client_ids: U64,
        sequences: U64,
        payload: Payload,
        windows_ns: U64 | None = None,
        aligned: U64 | None = None,
    ) -> None:
        """Make a page of n events.

        Args:
            payload: the records.
            windows_ns: uint64, shape (n,), or None for the system's clock.
            aligned: uint64, shape (n,), or None if the replay is not aligned.
        """
        super().__init__(times, client_ids, sequences, aligned)
        self._payload = payload
        self._windows_ns = windows_ns

    def payload(self, start: int = 0, stop: int | None = None) -> Payload:
        start, stop, _ = slice(start, stop).indices(len(self))
        return self._payload.part(start, stop)

    def windows_ns(self) -> U64:
        return super().windows_ns() if self._windows_ns is None else self._windows_ns


class GatheredPage(Page):
    """A page whose records are gathered from several origins, when they are asked for."""

    __slots__ = ()

    @abstractmethod
    def payloads(self, start: int, stop: int | None) -> Iterator[tuple[npt.NDArray[np.intp], Payload]]:
        """Yield, for each origin, the places of its events among `start` to `stop`, rising, and their records."""

    def payload(self, start: int = 0, stop: int | None = None) -> Payload:
        parts = list(self.payloads(start, stop))
        payload = Payload.join([payload for _, payload in parts])
        places = np.concatenate([np.empty(0, np.intp), *(places for places, _ in parts)])
        if bool(np.all(places[1:] > places[:-1])):  # one origin, or one after another
            return payload
        order = np.empty(len(payload), np.intp)
        order[places] = np.arange(len(order))
        return payload.take(order)

    def records(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        parts = list(self.payloads(start, stop))
        found = np.empty(sum(len(places) for places, _ in parts), object)
        for places, payload in parts:
            found[places] = payload.records()
        records: list[bytes] = found.tolist()
        return records


def grouped(origins: npt.NDArray[np.unsignedinteger]) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Yield each of some numbers that stand for origins with the places where it stands, rising."""
    if not len(origins):
        return
    order = np.argsort(origins, kind="stable")
    sorted_origins = origins[order]
    starts = [0, *(np.flatnonzero(sorted_origins[1:] != sorted_origins[:-1]) + 1).tolist(), len(order)]
    for first, stop in pairwise(starts):
        yield int(sorted_origins[first]), order[first:stop]


def low_words(sequences: U64) -> U32:
    """View the low 32 bits of each 64-bit number."""
    return sequences.view(np.uint32)[(0 if sys.byteorder == "little" else 1) :: 2]
