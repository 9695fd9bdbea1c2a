"""Merging runs of events into pages in the order (key, client id, sequence).

A run is a client's log, whose stretches follow each other, or a chunk, whose pages do. The merge goes through all runs
in windows of time. The windows are cut where stretches and pages end, which is known without reading them, so that
each holds about a page of events; within a window every run's events are a few slices of sorted columns. One stable
sort of the slices of clients, laid side by side in the order of client ids, gives the order of the story; where chunks
take part, client id and sequence are sorted by too; a run that is alone needs no sort. Stretches and pages are read and
checked ahead by a few threads: the checksums and the reads release the GIL.
"""

from __future__ import annotations

import heapq
import mmap
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport
from py_chronolog_client.errors import DamageError, ReplayTimeoutError
from py_chronolog_client.page import PAGE_EVENTS, U64, GatheredPage, Page, Payload, grouped
from py_chronolog_client.store.chunk import Chunk, ChunkPage
from py_chronolog_client.store.clientlog import ClientLog
from py_chronolog_client.store.stretch import Stretch

_WORKERS = 4
_MANY_EVENTS = 256
_AHEAD = 8
_WORKER_BYTES = 2**25


class Source(Protocol):
    """Where records are fetched from, by row: a client's log, whose rows are sequence numbers, or a page of a chunk."""

    def payload(self, rows: U64) -> Payload:
        """Return the records of some rows; there is one."""


class Part(NamedTuple):
    """Consecutive events of a run, in order."""

    source: Source
    keys: U64
    times: U64
    client_ids: U64 | int
    """One for all, or each event's."""
    sequences: U64
    rows: U64

    def cut(self, wanted: slice | npt.NDArray[np.bool_]) -> Part:
        """Return some of the events."""
        client_ids = self.client_ids if isinstance(self.client_ids, int) else self.client_ids[wanted]
        columns = self.keys[wanted], self.times[wanted], client_ids, self.sequences[wanted], self.rows[wanted]
        return Part(self.source, *columns)


class Item(ABC):
    """What is read at once.

    Attributes:
        first_time: no event's key is before it.
        last_time: no event's key is behind it.
        events: how many there are, at most.
    """

    __slots__ = ("events", "first_time", "last_time")

    first_time: int
    last_time: int
    events: int

    @abstractmethod
    def load(self, verify: bool) -> Part:
        """Read the events that are wanted, and check their records with `verify`.

        Raises:
            DamageError: they are not what was written.
        """


class ClientItem(Item):
    """A stretch of a client's log."""

    __slots__ = ("_bounds_ns", "_log", "_marks", "_stretch")

    def __init__(
        self, log: ClientLog, stretch: Stretch, bounds_ns: tuple[int, int], marks: tuple[int, int]
    ) -> None:
        """Take of a stretch what is in `[bounds_ns]`, both included, and from `marks[0]` up to `marks[1]` (not included)."""
        self._log, self._stretch, self._bounds_ns, self._marks = log, stretch, bounds_ns, marks
        self.first_time, self.last_time = stretch.first_time, stretch.last_time
        self.events = stretch.end_sequence - stretch.first_sequence

    def load(self, verify: bool) -> Part:
        stretch = self._stretch
        if verify:
            stretch.check()
        times = stretch.times()
        keys = stretch.keys(times)
        wanted = self._wanted(keys)
        first = stretch.first_sequence
        sequences = np.arange(first + wanted.start, first + wanted.stop, dtype=np.uint64)
        return Part(self._log, keys[wanted], times[wanted], self._log.client_id, sequences, sequences)

    def _wanted(self, keys: U64) -> slice:
        start_ns, end_ns = self._bounds_ns
        first_sequence = self._stretch.first_sequence
        first = max(int(np.searchsorted(keys, np.uint64(start_ns))), self._marks[0] - first_sequence)
        stop = min(int(np.searchsorted(keys, np.uint64(end_ns), "right")), self._marks[1] - first_sequence)
        return slice(first, max(first, stop))


class Selection:
    """What is wanted of a chunk."""

    def __init__(
        self, chunk: Chunk, ranges: Mapping[int, tuple[int, int]], bounds_ns: tuple[int, int]
    ) -> None:
        """Select events.

        Args:
            chunk: of which.
            ranges: client id -> first sequence number and the one behind the last; of others nothing is wanted.
            bounds_ns: first and last key, both included.
        """
        self.chunk = chunk
        self.bounds_ns = bounds_ns
        wanted = [ranges.get(client_id, (0, 0)) for client_id in chunk.clients]
        self._starts, self._stops = np.array(wanted, np.uint64).reshape(-1, 2).T
        first, end = chunk.first_sequences, chunk.first_sequences + chunk.counts
        self._is_whole = bool(np.all((self._starts <= first) & (self._stops >= end)))

    def of_clients(self, places: npt.NDArray[np.intp], sequences: U64) -> npt.NDArray[np.bool_] | None:
        """Tell which events are of clients and numbers that are wanted; None: all are."""
        if self._is_whole:
            return None
        return (sequences >= self._starts[places]) & (sequences < self._stops[places])


class PageItem(Item):
    """A page of a chunk."""

    __slots__ = ("_page", "_selection")

    def __init__(self, page: ChunkPage, selection: Selection) -> None:
        self._page, self._selection = page, selection
        self.first_time, self.last_time = page.entry.first_time, page.entry.last_time
        self.events = page.entry.events

    def load(self, verify: bool) -> Part:
        if verify:
            self._page.check()
        times, places, sequences = self._page.columns()
        rows = np.arange(len(times), dtype=np.uint64)
        part = Part(self._page, times, times, self._selection.chunk.client_ids[places], sequences, rows)
        start_ns, end_ns = self._selection.bounds_ns
        inside = slice(
            int(np.searchsorted(times, np.uint64(start_ns))),
            int(np.searchsorted(times, np.uint64(end_ns), "right")),
        )
        wanted = self._selection.of_clients(places[inside], sequences[inside])
        part = part.cut(inside)
        return part if wanted is None else part.cut(wanted)


class AlignedPageItem(PageItem):
    """A page of a chunk whose events are put where all synchronisations of their clocks say that they belong."""

    __slots__ = ("_clients",)

    def __init__(
        self,
        page: ChunkPage,
        selection: Selection,
        clients: Mapping[int, ClientLog],
        keys_ns: tuple[int, int],
    ) -> None:
        super().__init__(page, selection)
        self._clients = clients
        self.first_time, self.last_time = keys_ns

    def load(self, verify: bool) -> Part:
        if verify:
            self._page.check()
        times, places, sequences = self._page.columns()
        wanted = self._selection.of_clients(places, sequences)
        rows = np.arange(len(times)) if wanted is None else np.flatnonzero(wanted)
        times, sequences = times[rows], sequences[rows]
        client_ids = self._selection.chunk.client_ids[places[rows]]
        keys = np.empty_like(times)
        for client_id, own in grouped(client_ids):
            keys[own] = self._clients[client_id].keys(sequences[own], times[own])
        order = np.lexsort((sequences, client_ids, keys))
        start_ns, end_ns = self._selection.bounds_ns
        order = order[(keys[order] >= np.uint64(start_ns)) & (keys[order] <= np.uint64(end_ns))]
        columns = (
            keys[order],
            times[order],
            client_ids[order],
            sequences[order],
            rows.astype(np.uint64)[order],
        )
        return Part(self._page, *columns)


class _Cursor:
    """Where the merge stands in a run."""

    __slots__ = ("_items", "_part", "_place")

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items
        self._place = 0
        self._part: Part | None = None

    @property
    def next_time(self) -> int | None:
        """A key that no remaining event is before; None at the end."""
        if self._part is not None:
            return int(self._part.keys[0])
        return self._items[self._place].first_time if self._place < len(self._items) else None

    def take(self, until_ns: int, loader: _Loader) -> Iterator[Part]:
        """Yield the events up to `until_ns`, included."""
        while (time_ns := self.next_time) is not None and time_ns <= until_ns:
            part = self._part or loader.load(self._items[self._place])
            count = 0 if part is None else int(np.searchsorted(part.keys, np.uint64(until_ns), "right"))
            if part is not None and count:
                yield part.cut(slice(count))
            if part is not None and count < len(part.keys):
                self._part = part.cut(slice(count, None))
            else:
                self._place, self._part = self._place + 1, None


def merged(
    runs: Sequence[Sequence[Item]],
    clients: Mapping[int, ClientLog],
    report: ScanReport,
    *,
    deadline: float | None,
    verify: bool,
    aligned: bool,
) -> Iterator[Page]:
    """Merge runs.

    Args:
        runs: those of clients in the order of their ids, then others. The items of a run are in order.
        clients: the logs of all clients.
        report: where to note what is wrong.
        deadline: when to give up, by the monotonic clock; None: never.
        verify: check the records too.
        aligned: the keys are not the times.

    Raises:
        ReplayTimeoutError: the deadline has passed.
    """
    cursors = [_Cursor(items) for items in runs]
    with _Loader([item for items in runs for item in items], report, verify) as loader:
        for window in _windows(cursors, _cuts(item for items in runs for item in items), loader):
            if deadline is not None and time.monotonic() > deadline:
                raise ReplayTimeoutError("the replay did not finish before its deadline")
            yield from _pages(window, clients, aligned)


def _windows(cursors: Sequence[_Cursor], cuts: Iterable[int], loader: _Loader) -> Iterator[list[list[Part]]]:
    """Go through all events in windows of time; yield the parts of each run that has some in it."""
    heap = [(cursor.next_time, place) for place, cursor in enumerate(cursors)]
    heapq.heapify(heap)
    for cut_ns in cuts:
        active = []
        while heap and heap[0][0] <= cut_ns:  # type: ignore[operator]
            active.append(heapq.heappop(heap)[1])
        window = []
        for place in sorted(active):
            if parts := list(cursors[place].take(cut_ns, loader)):
                window.append(parts)
            if (time_ns := cursors[place].next_time) is not None:
                heapq.heappush(heap, (time_ns, place))
        yield window


def _cuts(items: Iterable[Item]) -> Iterator[int]:
    """Yield rising times that cut the items into windows of about a page; the last is behind everything."""
    events = 0
    for last_time, count in sorted((item.last_time, item.events) for item in items):
        events += count
        if events >= PAGE_EVENTS:
            yield last_time
            events = 0
    yield MAX_TIME_NS


class _Loader:
    """Loads and checks items, a few of them ahead of the merge."""

    def __init__(self, items: list[Item], report: ScanReport, verify: bool) -> None:
        self._order = sorted(items, key=lambda item: item.first_time)
        self._report = report
        self._verify = verify
        self._next = 0
        self._running: dict[Item, Future[Part]] = {}
        # Only checking is worth a thread, as it releases the GIL for long; not of the few events that a follower gets.
        worth = verify and len(items) > 1 and sum(item.events for item in items) >= _MANY_EVENTS
        workers = min(len(os.sched_getaffinity(0)), _WORKERS) if worth else 0
        workers = workers if _have_room_for(workers) else 0
        self._pool = ThreadPoolExecutor(workers, "chronolog-scan") if workers > 1 else None

    def __enter__(self) -> _Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def load(self, item: Item) -> Part | None:
        """Return the events of an item; None if it is damaged, which is noted in the report."""
        try:
            if self._pool is None:
                return item.load(self._verify)
            while item not in self._running or len(self._running) < _AHEAD:
                if self._next == len(self._order):
                    break
                ahead = self._order[self._next]
                self._running[ahead] = self._pool.submit(ahead.load, self._verify)
                self._next += 1
            return self._running.pop(item).result()
        except DamageError as error:
            self._report.caught(error)
            self._report.missing += item.events
            return None


def _have_room_for(workers: int) -> bool:
    """Tell whether threads may be started. A thread that finds no memory at its start never comes up, and is waited for."""
    try:
        mmap.mmap(-1, max(1, workers * _WORKER_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


class _StoryPage(GatheredPage):
    """A page of a scan: columns in memory, records where they are."""

    __slots__ = ("_clients", "_origins", "_rows", "_sources")

    def __init__(
        self,
        times: U64,
        client_ids: U64,
        sequences: U64,
        aligned: U64 | None,
        clients: Mapping[int, ClientLog],
        sources: Mapping[int, Source],
        origins: U64 | None = None,
        rows: U64 | None = None,
    ) -> None:
        """Make a page of n events.

        Args:
            clients: the logs of all clients.
            sources: where the records are.
            origins: which source has each, shape (n,); None: the client. Columns that are the page's own are not held
                here, because they may move (see `EventList.add_page`).
            rows: and in which row, uint64, shape (n,); None: the sequence number.
        """
        super().__init__(times, client_ids, sequences, aligned)
        self._clients, self._sources, self._origins, self._rows = clients, sources, origins, rows

    def payloads(self, start: int, stop: int | None) -> Iterator[tuple[npt.NDArray[np.intp], Payload]]:
        rows = (self.sequences if self._rows is None else self._rows)[start:stop]
        origins = self.client_ids if self._origins is None else self._origins
        for origin, places in grouped(origins[start:stop]):
            yield places, self._sources[origin].payload(rows[places])

    def windows_ns(self) -> U64:
        if self.aligned is None and not any(log.has_windows for log in self._clients.values()):
            return super().windows_ns()
        windows = np.empty(len(self), np.uint64)
        for client_id, places in grouped(self.client_ids):
            log = self._clients[client_id]
            windows[places] = log.windows_ns(self.sequences[places], self.times[places])
        return windows


def _pages(window: list[list[Part]], clients: Mapping[int, ClientLog], aligned: bool) -> Iterator[Page]:
    """Put the parts of a window in order, and cut what is much more than a page."""
    parts = [part for run in window for part in run]
    total = sum(len(part.keys) for part in parts)
    keys, client_ids, sequences = (np.empty(total, np.uint64) for _ in range(3))
    has_chunks = not all(isinstance(part.client_ids, int) for part in parts)
    times = np.empty(total, np.uint64) if aligned else keys
    rows, origins = (np.empty(total if has_chunks else 0, np.uint64) for _ in range(2))
    start = 0
    for number, part in enumerate(parts):
        place = slice(start, start + len(part.keys))
        keys[place], client_ids[place], sequences[place] = part.keys, part.client_ids, part.sequences
        if aligned:
            times[place] = part.times
        if has_chunks:
            origins[place], rows[place] = number, part.rows
        start = place.stop
    columns = [times, client_ids, sequences]
    if aligned:
        columns.append(keys)
    if has_chunks:
        columns += [origins, rows]
    if len(window) > 1:
        order = np.lexsort((sequences, client_ids, keys)) if has_chunks else np.argsort(keys, kind="stable")
        columns = [column[order] for column in columns]
    sources: Mapping[int, Source] = dict(enumerate(part.source for part in parts)) if has_chunks else clients
    for start in range(0, total, PAGE_EVENTS):
        times, client_ids, sequences, *others = (column[start : start + PAGE_EVENTS] for column in columns)
        keys_of_page = others.pop(0) if aligned else None
        yield _StoryPage(times, client_ids, sequences, keys_of_page, clients, sources, *others)
