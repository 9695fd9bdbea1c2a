"""How much of a client's segments and tail a keeper does not have: counted by headers alone, so no record is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from py_chronolog_client.store import acquisition
from py_chronolog_client.store.blocks import find_header, read_header
from py_chronolog_client.store.format import ALIGNMENT, KIND_EVENTS, BlockHeader
from py_chronolog_client.store.stretch import Descriptor
from py_chronolog_client.store.tailcopy import copy_tail


class Arrears(NamedTuple):
    """Events of one client that are in its files and not at a keeper, and about how many bytes they are there."""

    events: int
    size_bytes: int


def arrears(directory: Path, client_id: int, sequence: int) -> Arrears:
    """Return what a client's files hold from an event on; while it is being written or shipped, of about now.

    Args:
        directory: with the client's files, a story's.
        client_id: whose.
        sequence: number of the first event that the keeper does not have.

    Raises:
        DamageError: a file is not what was written.
    """
    end, events, size_bytes = sequence, 0, 0
    for number in acquisition.segments(directory).get(client_id, []):
        for header in _headers(acquisition.segment_path(directory, client_id, number), client_id):
            if header.kind == KIND_EVENTS and header.end_sequence > end:
                new = header.end_sequence - max(end, header.first_sequence)
                end = header.end_sequence
                events += new
                size_bytes += header.block_bytes * new // header.count
    tail = copy_tail(str(directory / f"{client_id:016x}.tail"), client_id, end)
    if tail is not None and tail.events is not None and tail.end_sequence > end:
        newest = tail.events.behind(end)
        events += newest.end_sequence - newest.first_sequence
        size_bytes += sum(memoryview(piece).nbytes for piece in newest.block(client_id))
    return Arrears(events, size_bytes)


def _headers(path: Path, client_id: int) -> Iterator[BlockHeader]:
    """Yield the headers of a segment; over the holes that shipping has left nothing is read."""
    try:
        file = Descriptor(str(path))
    except FileNotFoundError:
        return  # shipped, and removed
    size_bytes = os.fstat(file.number).st_size
    offset: int | None = 0
    while offset is not None and offset < size_bytes:
        header = read_header(file.number, offset)
        if header is not None and header.client_id == client_id:
            yield header
            offset += header.block_bytes
        else:
            offset = _next_header(file.number, offset + ALIGNMENT, size_bytes, client_id)


def _next_header(descriptor: int, offset: int, size_bytes: int, client_id: int) -> int | None:
    try:
        data_at = os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError:  # nothing but a hole
        return None
    return find_header(descriptor, data_at - data_at % ALIGNMENT, size_bytes, client_id)
