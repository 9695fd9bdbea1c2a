"""Where a client begins in a store of format 2, in which a segment that is closed is never written to again.

Whoever merges closed segments into a chunk can then take all the time that it needs, and delete them afterwards: a
client that comes back makes its next segment, under a name that nobody has used before. Its number is behind those of the
segments that are there and of those that are in chunks; segments are looked at first, because that is the way
events go.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.store import acquisition
from py_chronolog_client.store.chunkformat import chunk_names
from py_chronolog_client.store.format import decode_map
from py_chronolog_client.store.records import read_close_record
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.segment import Segment, require_that_it_left


class Departure(NamedTuple):
    """How a client has left a story."""

    next_number: int
    """Of the segment that it makes when it comes back."""
    closing: dict[str, Any] | None
    """Its close record; None where it has not left."""


def open_segment(
    root: StoreRoot, directory: Path, client_id: int, first_block: bytes, first_sequence: int
) -> Segment:
    """Make the segment of a client that is new, or the next one of a client that comes back.

    Args:
        root: the store.
        directory: of the story.
        client_id: whose segment.
        first_block: its client record.
        first_sequence: number of its next event.

    Raises:
        InvalidArgumentError: the client id is another client's, or has not left with that number.
        OSError: the segment cannot be made.
    """
    path = directory / f"{client_id:016x}.log"
    departure = last_departure(directory, client_id)
    if departure is None:
        return Segment(root, path, first_block)
    if not first_sequence:
        raise InvalidArgumentError(f"{path}: this client id is taken, every client has its own")
    closed_ns = require_that_it_left(path, departure.closing, first_sequence)
    segment = Segment(root, path, first_block, departure.next_number)
    segment.closed_ns = closed_ns
    return segment


def last_departure(directory: Path, client_id: int) -> Departure | None:
    """Return how a client has left the story in a directory; None if it was never there.

    Raises:
        OSError: the directory cannot be read.
    """
    numbers = acquisition.segments(directory).get(client_id, [])
    closing = (
        _closing(acquisition.segment_path(directory, client_id, numbers[-1]), client_id) if numbers else None
    )
    merged = _merged(directory, client_id)
    if merged is not None and (not numbers or numbers[-1] < merged.next_number):
        return merged
    return Departure(numbers[-1] + 1, closing) if numbers else None


def _closing(path: Path, client_id: int) -> dict[str, Any] | None:
    """Return the close record at the end of a segment; None also where the segment is gone, because it was merged."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return read_close_record(descriptor, client_id)
    finally:
        os.close(descriptor)


def _merged(directory: Path, client_id: int) -> Departure | None:
    """Return what the chunks say of a client's departure."""
    names = chunk_names(directory)
    if not names:
        return None
    from py_chronolog_client.store.archive import Archive

    held = max(
        Archive(directory, names).clients.get(client_id, ()),
        key=lambda each: each.client.segments,
        default=None,
    )
    if held is None:
        return None
    fields = decode_map(held.client.records[-1][1]) if held.client.records else {}
    return Departure(held.client.segments, fields if fields.get("type") == "close" else None)
