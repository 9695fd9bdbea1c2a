"""The bytes of a chunk, and its name, as docs/format.md defines them, and nothing else: no policy."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import msgpack

from py_chronolog_client.clock import MODEL_BYTES, ClockModel
from py_chronolog_client.store.crc import crc32
from py_chronolog_client.store.format import MAX_BLOCK_EVENTS, MAX_PAYLOAD_BYTES, MAX_SEQUENCE

CHUNK_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.chunk")
CHUNK_MAGIC = b"CLOGCHK1"
CHUNK_HEADER_BYTES = 64
PAGE_ENTRY_BYTES = 48
TABLE_ENTRY_BYTES = 16
"""What the columns of a page say of each of its clients."""

MAX_CLIENTS_BYTES = 64 * 2**20
"""Largest list of clients, unpacked."""
MAX_PAGES = 2**24

_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<IQQIIIII12s")
_ENTRY = struct.Struct("<QQIIIBBBBIIII")
_TIME_WIDTH, _PLACE_WIDTH, _SIZE_WIDTH = 8, 4, 4


def chunk_name(first_time: int, unique: str) -> str:
    """Return the name of a chunk: names sort by first time, and no two are the same.

    Args:
        first_time: of its events, ns; 0 where there are none.
        unique: 32 hexadecimal digits.
    """
    return f"{first_time:016x}-{unique}.chunk"


def chunk_names(directory: str | os.PathLike[str]) -> frozenset[str]:
    """Return the names of the chunks in the directory of a story.

    Raises:
        OSError: the directory cannot be read.
    """
    return frozenset(filter(CHUNK_NAME.fullmatch, os.listdir(directory)))


class ChunkHeader(NamedTuple):
    """The first 64 bytes of a chunk; docs/format.md explains every field."""

    events: int
    clients_offset: int
    clients_bytes: int
    clients_size: int
    clients_crc: int
    page_count: int
    index_crc: int

    @property
    def index_offset(self) -> int:
        """Where the list of pages begins."""
        return self.clients_offset + self.clients_bytes

    @property
    def file_bytes(self) -> int:
        """Size of the whole chunk."""
        return self.index_offset + PAGE_ENTRY_BYTES * self.page_count

    def pack(self) -> bytes:
        """Return the 64 bytes."""
        body = _HEADER.pack(0, *self, bytes(12))
        return CHUNK_MAGIC + _CRC.pack(crc32(body)) + body

    @classmethod
    def unpack(cls, data: bytes) -> ChunkHeader | None:
        """Read a header, or return None where the bytes are not a valid one."""
        if len(data) < CHUNK_HEADER_BYTES or data[:8] != CHUNK_MAGIC:
            return None
        (crc,) = _CRC.unpack_from(data, 8)
        if crc != crc32(data[12:CHUNK_HEADER_BYTES]):
            return None
        header = cls(*_HEADER.unpack_from(data, 12)[1:-1])
        sound = (
            header.clients_offset >= CHUNK_HEADER_BYTES
            and header.clients_bytes <= header.clients_size <= MAX_CLIENTS_BYTES
            and header.page_count <= MAX_PAGES
            and header.events <= header.page_count * MAX_BLOCK_EVENTS
        )
        return header if sound else None


class PageEntry(NamedTuple):
    """What the list of pages says of one; docs/format.md explains every field."""

    first_time: int
    last_time: int
    events: int
    clients: int
    columns_bytes: int
    time_width: int
    place_width: int
    size_width: int
    reserved: int
    columns_crc: int
    payload_bytes: int
    payload_size: int
    payload_crc: int

    @property
    def columns_size(self) -> int:
        """Size of the columns, unpacked."""
        widths = self.time_width + self.place_width + self.size_width
        return TABLE_ENTRY_BYTES * self.clients + widths * self.events

    @property
    def page_bytes(self) -> int:
        """Size of the page in the file."""
        return self.columns_bytes + self.payload_bytes

    def pack(self) -> bytes:
        """Return the 48 bytes."""
        return _ENTRY.pack(*self)

    def checked(self) -> PageEntry | None:
        """Return the entry if it keeps the limits of the format, else None."""
        sound = (
            0 < self.clients <= self.events <= MAX_BLOCK_EVENTS
            and self.first_time <= self.last_time
            and self.time_width <= _TIME_WIDTH
            and self.place_width <= _PLACE_WIDTH
            and self.size_width <= _SIZE_WIDTH
            and 0 < self.columns_bytes <= self.columns_size
            and self.payload_bytes <= self.payload_size <= MAX_PAYLOAD_BYTES
        )
        return self if sound else None


def unpack_entries(data: bytes) -> list[PageEntry] | None:
    """Read a list of pages, or return None where one is beyond the limits, or before the one in front of it."""
    entries = [PageEntry(*fields) for fields in _ENTRY.iter_unpack(data)]
    latest = 0
    for entry in entries:
        if entry.checked() is None or entry.first_time < latest:
            return None
        latest = entry.last_time
    return entries


class ClockRun(NamedTuple):
    """Consecutive events of a client whose times were made under one clock model."""

    first_sequence: int
    first_time: int
    last_time: int
    clock: ClockModel


class ChunkClient(NamedTuple):
    """What a chunk holds of one client.

    The records are those of the segments that the chunk stands for: the number of the next event behind each, and its
    msgpack map, packed.
    """

    client_id: int
    first_sequence: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants of a client
    segments: int
    records: tuple[tuple[int, bytes], ...]
    runs: tuple[ClockRun, ...]
    expired: bool = False
    """Whether the client's events below `first_sequence` are not there any more, and not missing."""

    @property
    def end_sequence(self) -> int:
        """Sequence number behind the last event."""
        return self.first_sequence + self.count

    @property
    def list_bytes(self) -> int:
        """About the size of this in the list of clients."""
        return 100 * (1 + len(self.runs)) + sum(len(payload) + 100 for _, payload in self.records)

    def ranges(self) -> Iterator[tuple[ClockRun, int]]:
        """Yield every clock run with the sequence number behind it."""
        if self.runs:
            ends = (*(run.first_sequence for run in self.runs[1:]), self.end_sequence)
            yield from zip(self.runs, ends, strict=True)


def pack_clients(clients: list[ChunkClient]) -> bytes:
    """Return the list of clients, which are sorted by client id."""
    packed: bytes = msgpack.packb(
        [
            {
                "client_id": client.client_id,
                "first_sequence": client.first_sequence,
                "count": client.count,
                "segments": client.segments,
                "records": client.records,
                "clocks": [(*run[:3], run.clock.pack()) for run in client.runs],
                **({"expired": True} if client.expired else {}),
            }
            for client in clients
        ]
    )
    return packed


def unpack_clients(data: bytes, events: int) -> list[ChunkClient]:
    """Read a list of clients.

    Args:
        data: what `pack_clients` made.
        events: how many events the chunk holds.

    Raises:
        ValueError: it is none.
    """
    try:
        clients = [_client(fields) for fields in msgpack.unpackb(data, strict_map_key=True, max_ext_len=0)]
    except (
        Exception
    ) as error:  # msgpack raises its own and others; a foreign shape is a TypeError or a KeyError
        raise ValueError(f"no list of clients: {error}") from error
    if any(one.client_id >= next_one.client_id for one, next_one in pairwise(clients)):
        raise ValueError("the clients are not in order")
    if sum(client.count for client in clients) != events:
        raise ValueError("the clients have more or fewer events than the chunk")
    return clients


def _client(fields: dict[str, Any]) -> ChunkClient:
    """Return one client of a list, or raise whatever comes of a wrong shape."""
    client_id, first_sequence, count, segments = words = [
        fields[key] for key in ("client_id", "first_sequence", "count", "segments")
    ]
    records = tuple((next_sequence, payload) for next_sequence, payload in fields["records"])
    runs = []
    for first, first_time, last_time, model in fields["clocks"]:
        if len(model) != MODEL_BYTES:
            raise ValueError("a clock model has another size")
        runs.append(ClockRun(first, first_time, last_time, ClockModel.unpack(model)))
    expired = fields.get("expired", False)
    client = ChunkClient(client_id, first_sequence, count, segments, records, tuple(runs), expired)
    numbers = [*words, *(record[0] for record in records), *(number for run in runs for number in run[:3])]
    starts = [run.first_sequence for run in runs]
    times = [time for run in runs for time in run[1:3]]
    sound = (
        all(type(number) is int and 0 <= number < 2**64 for number in numbers)
        and all(type(payload) is bytes for _, payload in records)
        and client.end_sequence <= MAX_SEQUENCE
        and times == sorted(times)
        and starts == sorted(set(starts))
        and (starts[0] == client.first_sequence if client.count else not starts)
        and (not starts or starts[-1] < client.end_sequence)
        and (expired is False or (expired is True and not client.count))
    )
    if not sound:
        raise ValueError(f"what it says of client {client.client_id!r:.30} contradicts itself")
    return client
