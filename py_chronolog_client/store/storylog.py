"""A story: the logs of all its clients, merged into pages in the order (time, client id, sequence).

The merge goes through the story in windows of time. The windows are cut where blocks end, which the headers
tell, so that each holds about a page of events; within a window every client's events are one slice of its
sorted times, and one stable sort of the slices, laid side by side in the order of client ids, gives the order
of the story. Blocks are read and checked ahead by a few
threads: the checksums and the reads release the GIL.
"""

from __future__ import annotations

import heapq
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport, Snapshot
from py_chronolog_client.errors import DamageError, NotFoundError, ReplayTimeoutError
from py_chronolog_client.page import PAGE_EVENTS, U64, GatheredPage, Page, Payload, grouped
from py_chronolog_client.store import acquisition
from py_chronolog_client.store.clientlog import ClientLog
from py_chronolog_client.store.stretch import Stretch

_WORKERS = 4
_AHEAD = 8
_WORKER_BYTES = 2**25


class StoryLog:
    """The events of a story, up to the last `refresh`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.clients: dict[int, ClientLog] = {}

    def refresh(self, report: ScanReport, clients: Sequence[int] | None = None) -> None:
        """Learn what was written since the last time; only by `clients`, if they are given.

        Raises:
            NotFoundError: the story is gone.
            StoreError: this process may not open as many files as there are clients.
        """
        inode, segments = self._segments()
        before = len(report.damages)
        for client_id in segments if clients is None else segments.keys() & set(clients):
            if client_id not in self.clients:
                self.clients[client_id] = ClientLog(self._directory, client_id)
            self.clients[client_id].refresh(segments[client_id], report)
        report.damages[before:] = self._still_damages(report.damages[before:], inode)

    def _segments(self) -> tuple[int, dict[int, list[int]]]:
        """Return the inode of the story's directory, and the numbers of each client's segments."""
        try:
            return os.stat(self._directory).st_ino, acquisition.segments(self._directory)
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._directory}: the story has just been destroyed") from error

    def _still_damages(self, damages: list[DamageError], inode: int) -> list[DamageError]:
        """Leave out the files of clients that gave up while the directory was read.

        Raises:
            NotFoundError: the story was destroyed meanwhile.
        """
        if all(os.path.lexists(damage.path) for damage in damages):
            return damages
        inode_now, segments = self._segments()
        if inode_now != inode:
            raise NotFoundError(f"{self._directory}: the story has just been destroyed")
        held = {f"{client_id:016x}" for client_id in segments}
        return [damage for damage in damages if os.path.basename(damage.path).partition(".")[0] in held]

    def snapshot(self) -> Snapshot:
        """Return the high-water mark of every client."""
        return {client_id: log.end_sequence for client_id, log in self.clients.items()}

    def pages(
        self,
        start_ns: int,
        end_ns: int,
        since: Snapshot,
        until: Snapshot,
        report: ScanReport,
        deadline: float | None = None,
        verify: bool = False,
        aligned: bool = False,
    ) -> Iterator[Page]:
        """Yield the events of `[start_ns, end_ns]` whose sequence numbers are from `since` up to `until` (not included)."""
        cursors = []
        clients = {number: log.aligned() if aligned else log for number, log in self.clients.items()}
        for client_id in sorted(until.keys() & clients.keys()):
            marks = since.get(client_id, 0), until[client_id]
            stretches = [
                stretch
                for stretch in clients[client_id].stretches(*marks)
                if stretch.first_time <= end_ns and stretch.last_time >= start_ns
            ]
            if stretches:
                cursors.append(_Cursor(client_id, stretches, (start_ns, end_ns), marks))
        with _Loader(
            [stretch for cursor in cursors for stretch in cursor.stretches], report, verify
        ) as loader:
            for parts in _windows(cursors, loader):
                if deadline is not None and time.monotonic() > deadline:
                    raise ReplayTimeoutError("the replay did not finish before its deadline")
                yield from _pages(parts, clients, aligned)


class _Part(NamedTuple):
    """Consecutive events of one client within a window."""

    client_id: int
    keys: U64
    times: U64
    first_sequence: int


class _Cursor:
    """Where the merge stands in the stretches of one client."""

    __slots__ = ("_bounds_ns", "_first", "_keys", "_marks", "_place", "_times", "client_id", "stretches")

    def __init__(
        self, client_id: int, stretches: list[Stretch], bounds_ns: tuple[int, int], marks: tuple[int, int]
    ) -> None:
        self.client_id = client_id
        self.stretches = stretches
        self._bounds_ns = bounds_ns
        self._marks = marks
        self._place = 0
        self._keys: U64 | None = None
        self._times = np.empty(0, np.uint64)
        self._first = 0

    @property
    def next_time(self) -> int | None:
        """A key that no remaining event is before; None at the end."""
        if self._keys is not None:
            return int(self._keys[0])
        return self.stretches[self._place].first_time if self._place < len(self.stretches) else None

    def take(self, until_ns: int, loader: _Loader) -> Iterator[_Part]:
        """Yield the events up to `until_ns`, included."""
        while (time_ns := self.next_time) is not None and time_ns <= until_ns:
            stretch = self.stretches[self._place]
            keys = self._keys
            if keys is None:
                self._times = loader.times(stretch)
                keys = stretch.keys(self._times)
                wanted = self._wanted(stretch, keys)
                keys, self._times = keys[wanted], self._times[wanted]
                self._first = stretch.first_sequence + wanted.start
            count = int(np.searchsorted(keys, np.uint64(until_ns), "right"))
            if count:
                yield _Part(self.client_id, keys[:count], self._times[:count], self._first)
            if count < len(keys):
                self._first, self._keys, self._times = self._first + count, keys[count:], self._times[count:]
            else:
                self._place, self._keys = self._place + 1, None

    def _wanted(self, stretch: Stretch, keys: U64) -> slice:
        """Return which events of a stretch are wanted."""
        start_ns, end_ns = self._bounds_ns
        first = max(int(np.searchsorted(keys, np.uint64(start_ns))), self._marks[0] - stretch.first_sequence)
        stop = min(
            int(np.searchsorted(keys, np.uint64(end_ns), "right")), self._marks[1] - stretch.first_sequence
        )
        return slice(first, max(first, stop))


def _windows(cursors: Sequence[_Cursor], loader: _Loader) -> Iterator[list[_Part]]:
    """Go through all events in windows of time; yield each window's parts in the order of client ids."""
    heap = [(cursor.next_time, place) for place, cursor in enumerate(cursors)]
    heapq.heapify(heap)
    for cut_ns in _cuts(stretch for cursor in cursors for stretch in cursor.stretches):
        active = []
        while heap and heap[0][0] <= cut_ns:  # type: ignore[operator]
            active.append(heapq.heappop(heap)[1])
        parts: list[_Part] = []
        for place in sorted(active):
            parts += cursors[place].take(cut_ns, loader)
            if (time_ns := cursors[place].next_time) is not None:
                heapq.heappush(heap, (time_ns, place))
        yield parts


def _cuts(stretches: Iterable[Stretch]) -> Iterator[int]:
    """Yield rising times that cut the stretches into windows of about a page; the last is behind everything."""
    events = 0
    for last_time, count in sorted((s.last_time, s.end_sequence - s.first_sequence) for s in stretches):
        events += count
        if events >= PAGE_EVENTS:
            yield last_time
            events = 0
    yield MAX_TIME_NS


class _Loader:
    """Loads and checks stretches, a few of them ahead of the merge."""

    def __init__(self, stretches: list[Stretch], report: ScanReport, verify: bool) -> None:
        self._order = sorted(stretches, key=lambda stretch: stretch.first_time)
        self._report = report
        self._next = 0
        self._running: dict[Stretch, Future[U64]] = {}
        self._load = _checked_times if verify else _times
        # Only checking is worth a thread: it releases the GIL for long.
        workers = min(len(os.sched_getaffinity(0)), _WORKERS) if verify and len(stretches) > 1 else 0
        workers = workers if _have_room_for(workers) else 0
        self._pool = ThreadPoolExecutor(workers, "chronolog-scan") if workers > 1 else None

    def __enter__(self) -> _Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def times(self, stretch: Stretch) -> U64:
        """Return the times of a stretch; none of them if it is damaged, which is noted in the report."""
        try:
            if self._pool is None:
                return self._load(stretch)
            while stretch not in self._running or len(self._running) < _AHEAD:
                if self._next == len(self._order):
                    break
                ahead = self._order[self._next]
                self._running[ahead] = self._pool.submit(self._load, ahead)
                self._next += 1
            return self._running.pop(stretch).result()
        except DamageError as error:
            self._report.caught(error)
            self._report.missing += stretch.end_sequence - stretch.first_sequence
            return np.empty(0, np.uint64)


def _have_room_for(workers: int) -> bool:
    """Tell whether threads may be started. A thread that finds no memory at its start never comes up, and is waited for."""
    try:
        mmap.mmap(-1, max(1, workers * _WORKER_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


def _times(stretch: Stretch) -> U64:
    return stretch.times()


def _checked_times(stretch: Stretch) -> U64:
    stretch.check()
    return stretch.times()


class _StoryPage(GatheredPage):
    """A page of a scan: columns in memory, records where they are."""

    __slots__ = ("_clients",)

    def __init__(
        self,
        times: U64,
        client_ids: U64,
        sequences: U64,
        aligned: U64 | None,
        clients: Mapping[int, ClientLog],
    ) -> None:
        super().__init__(times, client_ids, sequences, aligned)
        self._clients = clients

    def payloads(self, start: int, stop: int | None) -> Iterator[tuple[npt.NDArray[np.intp], Payload]]:
        sequences = self.sequences[start:stop]
        for client_id, places in grouped(self.client_ids[start:stop]):
            yield places, self._clients[client_id].payload(sequences[places])

    def windows_ns(self) -> U64:
        windows = np.empty(len(self), np.uint64)
        for client_id, places in grouped(self.client_ids):
            log = self._clients[client_id]
            windows[places] = log.windows_ns(self.sequences[places], self.times[places])
        return windows


def _pages(parts: list[_Part], clients: Mapping[int, ClientLog], aligned: bool) -> Iterator[Page]:
    """Put the parts of a window in order, and cut what is much more than a page."""
    total = sum(len(part.keys) for part in parts)
    keys, client_ids, sequences = (np.empty(total, np.uint64) for _ in range(3))
    times = np.empty(total, np.uint64) if aligned else keys
    start = 0
    for part in parts:
        stop = start + len(part.keys)
        keys[start:stop] = part.keys
        if aligned:
            times[start:stop] = part.times
        client_ids[start:stop] = part.client_id
        sequences[start:stop] = np.arange(
            part.first_sequence, part.first_sequence + stop - start, dtype=np.uint64
        )
        start = stop
    if parts and parts[0].client_id != parts[-1].client_id:
        order = np.argsort(keys, kind="stable")
        client_ids, sequences, keys = client_ids[order], sequences[order], keys[order]
        times = times[order] if aligned else keys
    for start in range(0, total, PAGE_EVENTS):
        piece = slice(start, start + PAGE_EVENTS)
        columns = times[piece], client_ids[piece], sequences[piece]
        yield _StoryPage(*columns, keys[piece] if aligned else None, clients)
