"""A story: the logs of all its clients and its chunks, as they are at one moment.

Events move from tails to segments and from segments to chunks, and a reader goes the same way: it lists the segments,
reads tails and segments, and *then* looks whether the chunks are still those that it knows. If they are, it has missed
nothing, because segments are deleted after their chunk has appeared. If not, it begins again with those that are there
now. What was read before stays valid: it has its files open.

From a keeper events also move away, to the grapher, sealed segment by sealed segment (`handover`). Then a client begins
here where `starts` says, and what is before that is to be had there: certainly, because it was there before it went. A
reader that finds that a segment has gone begins again with that client.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from py_chronolog_client.engine.base import ScanReport, Snapshot
from py_chronolog_client.errors import DamageError, NotFoundError
from py_chronolog_client.page import Page
from py_chronolog_client.store import acquisition
from py_chronolog_client.store.archive import Archive
from py_chronolog_client.store.chunk import Chunk
from py_chronolog_client.store.chunkformat import chunk_names
from py_chronolog_client.store.clientlog import ClientLog
from py_chronolog_client.store.merge import AlignedPageItem, ClientItem, Item, PageItem, Selection, merged

_Ranges = Mapping[int, tuple[int, int]]
"""client id -> first sequence number and the one behind the last"""


class StoryLog:
    """The events of a story, up to the last `refresh`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._archive: Archive | None = None
        self.clients: dict[int, ClientLog] = {}

    def refresh(self, report: ScanReport, clients: Sequence[int] | None = None) -> None:
        """Learn what was written since the last time; only by `clients`, if they are given.

        Raises:
            NotFoundError: the story is gone.
            StoreError: this process may not open as many files as there are clients.
        """
        if self._archive is None:
            self._begin_again()
        while True:
            assert self._archive is not None
            found = ScanReport(damages=list(self._archive.damages))
            is_whole = self._refresh_clients(self._archive, found, clients)
            if self._chunk_names() != self._archive.names:
                self._begin_again()
            elif is_whole:
                break
        report.damages += found.damages
        report.missing += found.missing
        report.disbelieved += found.disbelieved
        report.unseen += found.unseen

    def _begin_again(self) -> None:
        """Forget everything that is known of clients, and open the chunks that there are now."""
        self._archive = Archive(self._directory, self._chunk_names(), self._archive)
        self.clients = {}

    def _refresh_clients(self, archive: Archive, report: ScanReport, clients: Sequence[int] | None) -> bool:
        """Learn what clients have written; say whether all that is there was found."""
        is_whole = True
        inode, segments = self._segments()
        there = archive.clients.keys() | segments.keys()
        before = len(report.damages)
        for client_id in sorted(there if clients is None else there & set(clients)):
            if client_id not in self.clients:
                held = archive.clients.get(client_id, ())
                self.clients[client_id] = ClientLog(self._directory, client_id, held)
            if not self.clients[client_id].refresh(segments.get(client_id, ()), report):
                del self.clients[client_id]
                is_whole = False
        report.damages[before:] = self._still_damages(archive, report.damages[before:], inode)
        return is_whole

    def _chunk_names(self) -> frozenset[str]:
        try:
            return chunk_names(self._directory)
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._directory}: the story has just been destroyed") from error

    def _segments(self) -> tuple[int, dict[int, list[int]]]:
        """Return the inode of the story's directory, and the numbers of each client's segments."""
        try:
            return os.stat(self._directory).st_ino, acquisition.segments(self._directory)
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._directory}: the story has just been destroyed") from error

    def _still_damages(self, archive: Archive, damages: list[DamageError], inode: int) -> list[DamageError]:
        """Leave out the files of clients that gave up while the directory was read.

        Raises:
            NotFoundError: the story was destroyed meanwhile.
        """
        if all(os.path.lexists(damage.path) for damage in damages):
            return damages
        inode_now, segments = self._segments()
        if inode_now != inode:
            raise NotFoundError(f"{self._directory}: the story has just been destroyed")
        held = {f"{client_id:016x}" for client_id in segments.keys() | archive.clients.keys()}
        return [damage for damage in damages if os.path.basename(damage.path).partition(".")[0] in held]

    def snapshot(self) -> Snapshot:
        """Return the high-water mark of every client."""
        return {client_id: log.end_sequence for client_id, log in self.clients.items()}

    def starts(self) -> Snapshot:
        """Return for every client the number of the first event that is here; 0 if none was handed over."""
        return {client_id: log.start_sequence for client_id, log in self.clients.items()}

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
        """Yield the events of `[start_ns, end_ns]` whose sequence numbers are from `since` up to `until` (not included).

        What is behind a client's last event and before its mark in `until` is missing; not what is before its start.
        """
        clients = {number: log.aligned() if aligned else log for number, log in self.clients.items()}
        bounds_ns = start_ns, end_ns
        marks = {
            client_id: (since.get(client_id, 0), until[client_id])
            for client_id in sorted(until.keys() & clients.keys())
        }
        for client_id, mark in until.items():
            self._note_absent(client_id, since.get(client_id, 0), mark, report)
        runs: list[list[Item]] = []
        for client_id, own in marks.items():
            log = clients[client_id]
            runs.append([ClientItem(log, stretch, bounds_ns, own) for stretch in log.stretches(*own)])
        for chunk, ranges in self._wanted_of_chunks(marks):
            selection = Selection(chunk, ranges, bounds_ns)
            if aligned:
                runs += ([item] for item in _aligned_items(selection, ranges, clients))
            else:
                runs.append([PageItem(page, selection) for page in chunk.pages])
        inside = [
            [item for item in run if item.first_time <= end_ns and item.last_time >= start_ns] for run in runs
        ]
        runs = [run for run in inside if run]
        yield from merged(runs, clients, report, deadline=deadline, verify=verify, aligned=aligned)

    def _note_absent(self, client_id: int, since: int, until: int, report: ScanReport) -> None:
        """Count what a client has logged, as somebody knows, and is not here."""
        first = max(since, self.clients[client_id].end_sequence if client_id in self.clients else 0)
        if first < until:
            report.missing += until - first
            path = acquisition.segment_path(self._directory, client_id, 0)
            report.damages.append(DamageError(path, 0, f"the events {first} to {until - 1} are missing"))

    def _wanted_of_chunks(self, marks: _Ranges) -> Iterator[tuple[Chunk, _Ranges]]:
        """Yield every chunk that holds events between marks, and which these are."""
        ranges: dict[Chunk, dict[int, tuple[int, int]]] = {}
        for client_id, (since, until) in marks.items():
            for held in self._archive.clients.get(client_id, ()) if self._archive else ():
                first, end = max(since, held.first_sequence), min(until, held.end_sequence)
                if first < end:
                    ranges.setdefault(held.chunk, {})[client_id] = first, end
        yield from ranges.items()


def _aligned_items(
    selection: Selection, ranges: _Ranges, clients: Mapping[int, ClientLog]
) -> list[AlignedPageItem]:
    """Return the pages of a chunk with bounds of their aligned times.

    The aligned times of one clock run rise with the times, so those at the ends of a page are the bounds of what the
    run has in it.
    """
    chunk = selection.chunk
    firsts = np.array([page.entry.first_time for page in chunk.pages], np.uint64)
    lasts = np.array([page.entry.last_time for page in chunk.pages], np.uint64)
    lowest, highest = firsts.copy(), lasts.copy()
    for client_id, (first, end) in ranges.items():
        for run, run_end in chunk.clients[client_id].ranges():
            if run.first_sequence >= end or run_end <= first:
                continue
            span = clients[client_id].span_of(max(run.first_sequence, first))
            low, high = np.uint64(run.first_time), np.uint64(run.last_time)
            inside = slice(int(np.searchsorted(lasts, low)), int(np.searchsorted(firsts, high, "right")))
            lowest[inside] = np.minimum(lowest[inside], span.keys(np.maximum(firsts[inside], low)))
            highest[inside] = np.maximum(highest[inside], span.keys(np.minimum(lasts[inside], high)))
    bounds = zip(lowest.tolist(), highest.tolist(), strict=True)
    return [
        AlignedPageItem(page, selection, clients, keys_ns)
        for page, keys_ns in zip(chunk.pages, bounds, strict=True)
    ]
