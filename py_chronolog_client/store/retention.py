"""Retention: deleting what is older than somebody wants to keep it, in a store of format 2.

Files are deleted, not events: a chunk or a segment expires when its last event is too old, so some events live on for as
long as a younger one in the same file. And of each client always the beginning expires: what holds later events
of a client stays while something with earlier ones does, so that what is left has no gap.

That events have expired is itself kept, in a chunk without events: how far, for every client, who that was and whether it
has left. So its numbers are not used again, nobody reports as missing what was deleted on purpose, and what comes of it
later goes on where it was. That chunk appears first, and from then on readers pass over what it says has expired. Then
files are deleted (`compaction.tidy`), which whoever comes next goes on with after a death. The next such chunk says what the
one before said, and supersedes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from py_chronolog_client.store import acquisition
from py_chronolog_client.store.archive import Archive
from py_chronolog_client.store.blocks import read_exactly, read_header
from py_chronolog_client.store.chunk import Chunk
from py_chronolog_client.store.chunkformat import ChunkClient, chunk_names
from py_chronolog_client.store.chunking import write_chunk
from py_chronolog_client.store.compaction import merging, tidy
from py_chronolog_client.store.format import HEADER_BYTES, KIND_EVENTS, KIND_RECORD, decode_map
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.stretch import Descriptor

_NEVER = 2**64
"""Last time of what cannot expire."""


class Expired(NamedTuple):
    """What was deleted."""

    events: int
    size_bytes: int


class _Own(NamedTuple):
    """What a file holds of one client."""

    first_sequence: int
    end_sequence: int
    segments: int
    """It is, or stands for, the client's segments with smaller numbers; the higher, the later."""
    records: Sequence[bytes]


class _File(NamedTuple):
    """A chunk or a segment."""

    last_time: int
    size_bytes: int
    clients: dict[int, _Own]


def expire(root: StoreRoot, directory: Path, before_ns: int) -> Expired:
    """Delete the chunks and the final segments of a story whose last event is before a certain time.

    Durability: that it has expired is on the device before anything is deleted.

    Args:
        root: the store.
        directory: of the story.
        before_ns: the time, in ns since 1970 UTC.

    Raises:
        InvalidArgumentError: the store has format 1, in which nobody keeps that something has expired; or there are too many
            clients for a chunk.
        AcquiredError: somebody merges segments at this moment: try again.
        NotFoundError: the story is gone.
        NotAuthorizedError: this user may not write to the store.
    """
    with merging(root, directory) as (claim, number):
        archive = Archive(directory, chunk_names(directory))
        tidy(directory, archive, number)
        files = _expiring([*_chunks(archive), *_segments(directory, archive)], before_ns)
        if not files:
            return Expired(0, 0)
        known = {
            client_id: held[0].client for client_id, held in archive.clients.items() if held[0].client.expired
        }
        clients = {**known}
        events = 0
        for client_id in {client_id for file in files for client_id in file.clients}:
            own = sorted(
                (file.clients[client_id] for file in files if client_id in file.clients),
                key=lambda each: (each.segments, each.first_sequence),
            )
            clients[client_id] = _end(client_id, own, known.get(client_id))
            events += _count(own)
        write_chunk(root, directory, [clients[each] for each in sorted(clients)], [], lambda: os.utime(claim))
        tidy(directory, Archive(directory, chunk_names(directory)), number)
        return Expired(events, sum(file.size_bytes for file in files))


def _chunks(archive: Archive) -> Iterable[_File]:
    """Yield the chunks that hold more than what has expired."""
    own: dict[Chunk, dict[int, _Own]] = {}
    for client_id, several in archive.clients.items():
        for chunk, client, first, end in several:
            if not client.expired:
                records = [payload for _, payload in client.records]
                own.setdefault(chunk, {})[client_id] = _Own(first, end, client.segments, records)
    for chunk, clients in own.items():
        last_time = chunk.pages[-1].entry.last_time if chunk.pages else 0
        yield _File(last_time, chunk.size_bytes, clients)


def _segments(directory: Path, archive: Archive) -> Iterable[_File]:
    """Yield the segments for which no chunk stands."""
    segments, tails = acquisition.segments(directory), acquisition.tails(directory)
    for client_id, numbers in segments.items():
        merged = max((held.client.segments for held in archive.clients.get(client_id, ())), default=0)
        for number in numbers:
            if number >= merged:
                path = acquisition.segment_path(directory, client_id, number)
                with suppress(FileNotFoundError):
                    file = _segment(path, client_id, number)
                    yield file._replace(last_time=_NEVER) if client_id in tails else file


def _segment(path: Path, client_id: int, number: int) -> _File:
    """Return what a segment holds; it never expires if it is not final, or damaged."""
    file = Descriptor(str(path))
    size_bytes = os.fstat(file.number).st_size
    last_time, offset, ends = 0, 0, [0, 0]
    records: list[bytes] = []
    while offset < size_bytes:
        header = read_header(file.number, offset)
        if header is None or header.client_id != client_id:
            records = []
            break
        if header.kind == KIND_EVENTS:
            last_time = max(last_time, header.last_time)
        elif header.kind == KIND_RECORD:
            records.append(read_exactly(file.number, header.payload_bytes, offset + HEADER_BYTES) or b"")
        ends = [ends[0] if offset else header.first_sequence, max(ends[1], header.end_sequence)]
        offset += header.block_bytes
    is_final = records and _type(records[-1]) in ("close", "roll")
    own = _Own(ends[0], ends[1], number + 1, records)
    return _File(last_time if is_final else _NEVER, size_bytes, {client_id: own})


def _expiring(files: Sequence[_File], before_ns: int) -> list[_File]:
    """Return those that are old, and behind nothing of the same clients that is not."""
    expiring = [file for file in files if file.last_time < before_ns]
    kept = [file for file in files if file.last_time >= before_ns]
    while kept:
        first_kept: dict[int, int] = {}
        for file in kept:
            for client_id, own in file.clients.items():
                first_kept[client_id] = min(own.segments, first_kept.get(client_id, own.segments))
        kept = [
            file
            for file in expiring
            if any(own.segments >= first_kept.get(each, _NEVER) for each, own in file.clients.items())
        ]
        expiring = [file for file in expiring if file not in kept]
    return expiring


def _end(client_id: int, own: Sequence[_Own], known: ChunkClient | None) -> ChunkClient:
    """Return how far a client has expired."""
    end = max(each.end_sequence for each in own)
    records = [payload for _, payload in known.records] if known else []
    records += [payload for each in own for payload in each.records]
    wanted = [payload for payload in records if _type(payload) == "client"][:1]
    wanted += [payload for payload in records[-1:] if _type(payload) == "close"]
    segments = max(each.segments for each in own)
    return ChunkClient(
        client_id, end, 0, segments, tuple((end, payload) for payload in wanted), (), expired=True
    )


def _count(own: Sequence[_Own]) -> int:
    """Return how many events there are, each counted once."""
    events = end = 0
    for each in own:
        events += max(0, each.end_sequence - max(end, each.first_sequence))
        end = max(end, each.end_sequence)
    return events


def _type(payload: bytes) -> object:
    """Return the type of a record; None where it cannot be read."""
    with suppress(ValueError):
        return decode_map(payload).get("type")
    return None
