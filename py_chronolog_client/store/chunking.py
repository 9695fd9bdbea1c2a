"""Writing a chunk: events in the order of the story go into pages, and the file appears when it is complete.

The pages are written one after another, lists of clients and pages behind them, and the header last, all under a name that
readers ignore. What is in memory is one page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.page import U64, Page, Payload
from py_chronolog_client.store import deflate, files
from py_chronolog_client.store.chunk import consecutive, in_order
from py_chronolog_client.store.chunkformat import (
    CHUNK_HEADER_BYTES,
    MAX_CLIENTS_BYTES,
    ChunkClient,
    ChunkHeader,
    PageEntry,
    chunk_name,
    pack_clients,
    unpack_clients,
)
from py_chronolog_client.store.crc import crc32
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.segment import write_whole

PAGE_EVENTS = 2**14
"""A page of a chunk holds no more events than this."""
PAGE_BYTES = 2 * 2**20
"""A page is full when its records take this; a larger record has a page of its own."""
MAKING = ".chunk"
"""Names that begin with `files.TEMPORARY` and end so are chunks that are being made."""

_FIRST_STEP = 2**10


class Written(NamedTuple):
    """A chunk that has appeared."""

    path: Path
    events: int
    size_bytes: int


def write_chunk(
    root: StoreRoot,
    directory: Path,
    clients: Sequence[ChunkClient],
    pages: Iterable[Page],
    confirm: Callable[[], object],
) -> Written:
    """Write a chunk into the directory of a story.

    Durability: file and name are on the device.

    Args:
        root: the store.
        directory: of the story.
        clients: what the chunk will hold, by rising client id.
        pages: exactly the events that `clients` names, in the order of the story.
        confirm: called now and then, and before the chunk appears; it raises where that may not happen any more.

    Raises:
        InvalidArgumentError: the pages hold other events, or in another order; or there are too many clients.
        OSError: the chunk cannot be written.
    """
    making = directory / f"{files.TEMPORARY}{files.unique_name()}{MAKING}"
    descriptor = root.create_file(making, os.O_RDWR)
    try:
        writer = _Writer(descriptor, clients, confirm)
        for page in pages:
            writer.add(page)
        first_time, size_bytes = writer.finish()
        os.fsync(descriptor)
        confirm()
        path = directory / chunk_name(first_time, files.unique_name())
        files.appear(making, path)
        files.sync_directory(directory)
    finally:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(making)
    return Written(path, sum(client.count for client in clients), size_bytes)


class _Rows(NamedTuple):
    """Events that wait for their page."""

    times: U64
    places: npt.NDArray[np.intp]
    sequences: U64
    payload: Payload


class _Writer:
    """Cuts pages and writes them."""

    def __init__(
        self, descriptor: int, clients: Sequence[ChunkClient], confirm: Callable[[], object]
    ) -> None:
        self._descriptor = descriptor
        self._clients = list(clients)
        self._client_ids = np.array([client.client_id for client in clients], np.uint64)
        self._next = np.array([client.first_sequence for client in clients], np.uint64)
        self._ends = np.array([client.end_sequence for client in clients], np.uint64)
        self._confirm = confirm
        self._entries: list[PageEntry] = []
        self._offset = CHUNK_HEADER_BYTES
        self._waiting: list[_Rows] = []
        self._events = self._bytes = 0
        self._step = _FIRST_STEP
        self._last = 0, 0

    def add(self, page: Page) -> None:
        """Add events behind those before.

        Records are fetched in steps whose size follows that of the records.
        """
        start = 0
        while start < len(page):
            piece = slice(start, min(start + self._step, len(page)))
            payload = page.payload(piece.start, piece.stop)
            places = np.searchsorted(self._client_ids, page.client_ids[piece])
            self._require(bool(np.all(places < len(self._client_ids))))
            self._require(np.array_equal(self._client_ids[places], page.client_ids[piece]))
            self._cut(_Rows(page.times[piece], places, page.sequences[piece], payload))
            fetched = max(1, int(payload.ends[-1]))
            self._step = max(1, min(2 * self._step, PAGE_EVENTS, self._step * PAGE_BYTES // fetched))
            start = piece.stop

    def _cut(self, rows: _Rows) -> None:
        """Fill pages with rows."""
        start, count, ends = 0, len(rows.times), rows.payload.ends
        while start < count:
            before = int(ends[start - 1]) if start else 0
            fits = int(np.searchsorted(ends, np.uint64(before + max(0, PAGE_BYTES - self._bytes)), "right"))
            stop = min(count, fits, start + PAGE_EVENTS - self._events)
            if stop <= start and not self._events:
                stop = start + 1
            if stop > start:
                payload = rows.payload.part(start, stop)
                piece = slice(start, stop)
                self._waiting.append(
                    _Rows(rows.times[piece], rows.places[piece], rows.sequences[piece], payload)
                )
                self._events += stop - start
                self._bytes += len(payload.data)
                start = stop
            if start < count:
                self._write_page()

    def finish(self) -> tuple[int, int]:
        """Write what remains; return the first time and the size of the file."""
        if self._events:
            self._write_page()
        self._require(np.array_equal(self._next, self._ends))
        packed = pack_clients(self._clients)
        if len(packed) > MAX_CLIENTS_BYTES:
            raise InvalidArgumentError(
                f"what a chunk says of its {len(self._clients)} clients takes {len(packed)} bytes, over the limit of "
                f"{MAX_CLIENTS_BYTES}: put fewer clients into a chunk"
            )
        events = sum(entry.events for entry in self._entries)
        try:
            unpack_clients(packed, events)
        except ValueError as error:
            raise InvalidArgumentError(f"nobody could read what this chunk would say: {error}") from error
        clients = deflate.pack(packed)
        index = b"".join(entry.pack() for entry in self._entries)
        header = ChunkHeader(
            events=events,
            clients_offset=self._offset,
            clients_bytes=len(clients),
            clients_size=len(packed),
            clients_crc=crc32(clients),
            page_count=len(self._entries),
            index_crc=crc32(index),
        )
        write_whole(self._descriptor, [clients, index], self._offset)
        write_whole(self._descriptor, [header.pack()], 0)
        return self._entries[0].first_time if self._entries else 0, header.file_bytes

    def _write_page(self) -> None:
        waiting, self._waiting, self._events, self._bytes = self._waiting, [], 0, 0
        times, places, sequences = (np.concatenate(column) for column in list(zip(*waiting, strict=True))[:3])
        payload = Payload.join([rows.payload for rows in waiting])
        counts = np.bincount(places, minlength=len(self._clients)).astype(np.uint64)
        of_table = np.flatnonzero(counts)
        firsts, counts = self._next[of_table], counts[of_table]
        own_places = np.searchsorted(of_table, places)
        self._require(np.array_equal(sequences, consecutive(own_places, firsts, counts)))
        self._next[of_table] += counts
        self._require(bool(np.all(self._next <= self._ends)))
        self._require(in_order(times, places))
        self._require((int(times[0]), int(places[0])) >= self._last)
        self._last = int(times[-1]), int(places[-1])
        deltas = np.diff(times, prepend=times[:1])
        columns = [deltas, own_places.astype(np.uint64), payload.sizes()]
        widths = [(int(column.max()).bit_length() + 7) // 8 for column in columns]
        pieces = [of_table.astype(np.uint32).tobytes(), counts.astype(np.uint32).tobytes(), firsts.tobytes()]
        pieces += [_planes(column, width) for column, width in zip(columns, widths, strict=True)]
        packed_columns, packed_payload = deflate.pack(b"".join(pieces)), deflate.pack(payload.data)
        entry = PageEntry(
            first_time=int(times[0]),
            last_time=int(times[-1]),
            events=len(times),
            clients=len(of_table),
            columns_bytes=len(packed_columns),
            time_width=widths[0],
            place_width=widths[1],
            size_width=widths[2],
            reserved=0,
            columns_crc=crc32(packed_columns),
            payload_bytes=len(packed_payload),
            payload_size=len(payload.data),
            payload_crc=crc32(packed_payload),
        )
        self._confirm()
        self._offset += write_whole(self._descriptor, [packed_columns, packed_payload], self._offset)
        self._entries.append(entry)

    @staticmethod
    def _require(holds: bool) -> None:
        if not holds:
            raise InvalidArgumentError(
                "these are not the events that the chunk shall hold, in the order of the story"
            )


def _planes(column: U64, width: int) -> bytes:
    """Return the lowest `width` bytes of every word, the lowest byte of all words first."""
    planes = np.ascontiguousarray(column).view(np.uint8).reshape(-1, 8)[:, :width]
    return np.ascontiguousarray(planes.T).tobytes()
