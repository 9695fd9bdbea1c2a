"""Reading a chunk: a sorted run of a story's events in one file that never changes.

Opening one reads its header, its list of clients and its list of pages. Columns and records of a page are read
with pread when they are asked for, checked, and unpacked into memory whose size was checked before. A `ChunkPage`
keeps nothing but its place, so there may be many; the records that were unpacked last stay with the chunk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from py_chronolog_client.errors import DamageError
from py_chronolog_client.page import U64, Payload
from py_chronolog_client.store import deflate
from py_chronolog_client.store.blocks import checksum, read_exactly
from py_chronolog_client.store.chunkformat import (
    CHUNK_HEADER_BYTES,
    PAGE_ENTRY_BYTES,
    ChunkClient,
    ChunkHeader,
    ClockRun,
    PageEntry,
    unpack_clients,
    unpack_entries,
)
from py_chronolog_client.store.crc import crc32
from py_chronolog_client.store.format import decode_map
from py_chronolog_client.store.stretch import Descriptor, Span


class Chunk:
    """A chunk that is open.

    Attributes:
        path: its name.
        size_bytes: size of the file.
        events: how many it holds.
        clients: what it holds of each client, by client id.
        client_ids: uint64, shape (n,): their ids, rising; pages name clients by their place here.
        first_sequences: uint64, shape (n,): the numbers of their first events.
        counts: uint64, shape (n,): how many events there are of each.
        pages: its pages, in the order of the story.
    """

    def __init__(self, path: Path) -> None:
        """Open a chunk.

        Raises:
            FileNotFoundError: it is not there.
            DamageError: it is none.
            StoreError: this process may not open any more files.
        """
        self.path = str(path)
        self._file = Descriptor(self.path)
        header = ChunkHeader.unpack(self._read(CHUNK_HEADER_BYTES, 0))
        if header is None:
            raise DamageError(path, 0, "this is no chunk")
        size_bytes = os.fstat(self._file.number).st_size
        if size_bytes != header.file_bytes:
            raise DamageError(
                path, min(size_bytes, header.file_bytes), f"{size_bytes} bytes instead of {header.file_bytes}"
            )
        entries = self._entries(header)
        self.size_bytes, self.events = size_bytes, header.events
        self.clients = self._clients(header)
        self.client_ids: U64 = np.array(list(self.clients), np.uint64)
        self.first_sequences: U64 = np.array(
            [client.first_sequence for client in self.clients.values()], np.uint64
        )
        self.counts: U64 = np.array([client.count for client in self.clients.values()], np.uint64)
        self.pages: list[ChunkPage] = []
        offset = CHUNK_HEADER_BYTES
        for entry in entries:
            self.pages.append(ChunkPage(self, len(self.pages), offset, entry))
            offset += entry.page_bytes
        self._unpacked: tuple[int, Payload] | None = None

    def _entries(self, header: ChunkHeader) -> list[PageEntry]:
        data = self._read(PAGE_ENTRY_BYTES * header.page_count, header.index_offset)
        if crc32(data) != header.index_crc:
            raise DamageError(
                self.path, header.index_offset, "the checksum of the list of pages does not hold"
            )
        entries = unpack_entries(data)
        if (
            entries is None
            or sum(entry.events for entry in entries) != header.events
            or sum(entry.page_bytes for entry in entries) != header.clients_offset - CHUNK_HEADER_BYTES
        ):
            raise DamageError(self.path, header.index_offset, "the list of pages contradicts itself")
        return entries

    def _clients(self, header: ChunkHeader) -> dict[int, ChunkClient]:
        data = self._read(header.clients_bytes, header.clients_offset)
        if crc32(data) != header.clients_crc:
            raise DamageError(
                self.path, header.clients_offset, "the checksum of the list of clients does not hold"
            )
        try:
            clients = unpack_clients(deflate.unpack(data, header.clients_size), header.events)
        except ValueError as error:
            raise DamageError(self.path, header.clients_offset, str(error)) from error
        return {client.client_id: client for client in clients}

    def check(self) -> None:
        """Make sure that all columns, all records and what clients said of themselves is what was written.

        Raises:
            DamageError: it is not.
        """
        for page in self.pages:
            page.check()
            page.columns()
        try:
            for client in self.clients.values():
                for _, payload in client.records:
                    decode_map(payload)
        except ValueError as error:
            raise DamageError(self.path, 0, f"a record of client {client.client_id:016x}: {error}") from error

    def payload(self, page: ChunkPage) -> Payload:
        """Return all records of a page."""
        unpacked = self._unpacked
        if unpacked is None or unpacked[0] != page.number:
            unpacked = self._unpacked = page.number, page.unpacked()
        return unpacked[1]

    def checksum(self, size_bytes: int, offset: int) -> int | None:
        """Return the CRC-32 of a part of the file, or None where it is shorter.

        Raises:
            OSError: it cannot be read.
        """
        return checksum(self._file.number, size_bytes, offset)

    def _read(self, size_bytes: int, offset: int) -> bytes:
        return self.read(size_bytes, offset, offset)

    def read(self, size_bytes: int, offset: int, damaged_at: int) -> bytes:
        """Read a part of the file.

        Args:
            size_bytes: how much.
            offset: where it begins.
            damaged_at: the offset that is reported where it cannot be read.

        Raises:
            DamageError: it cannot be read.
        """
        try:
            data = read_exactly(self._file.number, size_bytes, offset)
        except OSError as error:
            raise DamageError(self.path, damaged_at, f"cannot be read: {error.strerror}") from error
        if data is None:
            raise DamageError(self.path, damaged_at, "the file was cut short")
        return data


class Columns(NamedTuple):
    """The columns of a page, each of shape (n,)."""

    times: U64
    places: npt.NDArray[np.intp]
    """Whose each event is, as its place in `Chunk.client_ids`."""
    sequences: U64


class ChunkPage:
    """A page of a chunk.

    Attributes:
        number: which.
        entry: what the list of pages says of it.
    """

    __slots__ = ("_chunk", "_offset", "entry", "number")

    def __init__(self, chunk: Chunk, number: int, offset: int, entry: PageEntry) -> None:
        self._chunk = chunk
        self._offset = offset
        self.number = number
        self.entry = entry

    def columns(self) -> Columns:
        """Return the columns.

        Raises:
            DamageError: they are not what was written.
        """
        entry, chunk = self.entry, self._chunk
        data = self._column_bytes()
        words, firsts = _table(data, entry.clients)
        of_table, counts = words[0].astype(np.intp), words[1]
        start = 16 * entry.clients
        times = _planes(data, start, entry.events, entry.time_width)
        np.cumsum(times, out=times)
        times += np.uint64(entry.first_time)
        start += entry.events * entry.time_width
        places = _planes(data, start, entry.events, entry.place_width).view(np.intp)
        if not (
            bool(np.all(of_table[1:] > of_table[:-1]))
            and int(of_table[-1]) < len(chunk.client_ids)
            and int(places.max()) < entry.clients
            and np.array_equal(np.bincount(places, minlength=entry.clients), counts)
            and in_order(times, places)
            and (int(times[0]), int(times[-1])) == (entry.first_time, entry.last_time)
        ):
            raise self._damage("the columns contradict themselves or the list of pages")
        starts, held = chunk.first_sequences[of_table], chunk.counts[of_table]
        if bool(np.any((firsts < starts) | (counts > held) | (firsts - starts > held - counts))):
            raise self._damage("the columns name events that the chunk does not hold")
        return Columns(times, of_table[places], consecutive(places, firsts, counts))

    def check(self) -> None:
        """Make sure that the records are what was written.

        Raises:
            DamageError: they are not.
        """
        try:
            crc = self._chunk.checksum(self.entry.payload_bytes, self._offset + self.entry.columns_bytes)
        except OSError as error:
            raise self._damage(f"cannot be read: {error.strerror}") from error
        if crc != self.entry.payload_crc:
            raise self._damage("the checksum of the records does not hold")

    def payload(self, rows: U64) -> Payload:
        """Return the records of some rows, in that order; there is one.

        Raises:
            DamageError: they are not what was written.
        """
        first, last = int(rows.min()), int(rows.max())
        part = self._chunk.payload(self).part(first, last + 1)
        order = (rows - np.uint64(first)).astype(np.intp)
        is_all = len(part) == len(rows) and bool(np.all(order[1:] > order[:-1]))
        return part if is_all else part.take(order)

    def unpacked(self) -> Payload:
        """Read all records.

        Raises:
            DamageError: they are not what was written.
        """
        entry = self.entry
        packed = self._chunk.read(entry.payload_bytes, self._offset + entry.columns_bytes, self._offset)
        if crc32(packed) != entry.payload_crc:
            raise self._damage("the checksum of the records does not hold")
        columns = self._column_bytes()
        sizes = _planes(
            columns, entry.columns_size - entry.events * entry.size_width, entry.events, entry.size_width
        )
        ends = np.cumsum(sizes, out=sizes)
        try:
            data = deflate.unpack(packed, entry.payload_size)
        except ValueError as error:
            raise self._damage(f"the records cannot be unpacked: {error}") from error
        if int(ends[-1]) != len(data):
            raise self._damage("the records have other sizes than the columns say")
        return Payload(ends, data)

    def _column_bytes(self) -> bytes:
        entry = self.entry
        data = self._chunk.read(entry.columns_bytes, self._offset, self._offset)
        if crc32(data) != entry.columns_crc:
            raise self._damage("the checksum of the columns does not hold")
        try:
            return deflate.unpack(data, entry.columns_size)
        except ValueError as error:
            raise self._damage(f"the columns cannot be unpacked: {error}") from error

    def _damage(self, reason: str) -> DamageError:
        return DamageError(self._chunk.path, self._offset, reason)


class ChunkSpan(Span):
    """The events of one client in a chunk whose times were made under one clock model, as far as they count."""

    __slots__ = ()

    def __init__(self, run: ClockRun, first_sequence: int, end_sequence: int) -> None:
        self.first_sequence, self.end_sequence = first_sequence, end_sequence
        self.first_time, self.last_time = run.first_time, run.last_time
        self.clock = run.clock


def _table(data: bytes, clients: int) -> tuple[U64, U64]:
    """Return places and counts (shape (2, clients)), and first sequence numbers, of the clients of a page."""
    words = np.frombuffer(data, np.uint32, 2 * clients).reshape(2, clients)
    return words.astype(np.uint64), np.frombuffer(data, np.uint64, clients, 8 * clients)


def _planes(data: bytes, offset: int, count: int, width: int) -> U64:
    """Return a column that is stored as planes of bytes, the lowest first."""
    words = np.zeros((count, 8), np.uint8)
    if width:
        words[:, :width] = np.frombuffer(data, np.uint8, width * count, offset).reshape(width, count).T
    column: U64 = words.view(np.uint64).reshape(count)
    return column


def in_order(times: U64, places: npt.NDArray[np.intp]) -> bool:
    """Tell whether times do not decrease, and places do not where times are equal."""
    rise = times[1:] > times[:-1]
    return bool(np.all(rise | ((times[1:] == times[:-1]) & (places[1:] >= places[:-1]))))


def consecutive(places: npt.NDArray[np.intp], firsts: U64, counts: U64) -> U64:
    """Return the sequence numbers of events, of which each client's are consecutive.

    Args:
        places: whose each event is, shape (n,).
        firsts: number of the first event of each client, shape (clients,).
        counts: how many events each has, shape (clients,).
    """
    """Return the sequence numbers of events: each client's are consecutive."""
    narrow = places.astype(
        np.uint16 if len(counts) <= 2**16 else np.uint32
    )  # numpy sorts the former in one pass
    order = np.argsort(narrow, kind="stable")
    before = np.cumsum(counts) - counts
    sequences = np.empty(len(places), np.uint64)
    sequences[order] = np.arange(len(places), dtype=np.uint64) + np.repeat(
        firsts - before, counts.view(np.intp)
    )
    return sequences
