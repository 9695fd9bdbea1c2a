"""Merging segments that are final into a chunk, in a store of format 2: those of clients that have closed, and sealed ones.

What makes it safe is that nothing changes: such a segment is never written to again, a name is never used again,
and a chunk says how many segments of each client it stands for. So the steps are

1. claim `merging`, which keeps others from doing the same work at the same time (`acquisition`);
2. delete what a predecessor that died has left: half a chunk, and segments for which a chunk stands;
3. write the chunk under a name that readers ignore, and sync it;
4. touch the claim, let the chunk appear, and sync the directory;
5. delete the segments.

A death between any two of them leaves a story whose events are all there, once for readers; the next one goes on at
step 2. Should two do it at once all the same, because one was stopped for so long that it was taken for dead, then two
chunks hold the same events, and readers take each from one.

A client of which anything is damaged or missing keeps its segments.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport
from py_chronolog_client.errors import DamageError, InvalidArgumentError, NotFoundError
from py_chronolog_client.store import acquisition, files
from py_chronolog_client.store.archive import Archive, Held
from py_chronolog_client.store.blocks import complete_block, read_exactly
from py_chronolog_client.store.chunkformat import ChunkClient, ClockRun, chunk_names
from py_chronolog_client.store.chunking import MAKING, write_chunk
from py_chronolog_client.store.clientlog import ClientLog
from py_chronolog_client.store.format import CHUNK_FORMAT, HEADER_BYTES, KIND_RECORD, decode_map
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.storylog import StoryLog
from py_chronolog_client.store.stretch import Descriptor, Stretch

MAX_CLIENTS = 1024
"""No more clients than this are merged at once: each needs an open file."""
MAX_CLIENT_LIST_BYTES = 2**24
"""About the size of what a chunk says of its clients, at which no more are added."""

logger = logging.getLogger("py_chronolog_client")


class Compaction(NamedTuple):
    """What was merged."""

    path: Path
    events: int
    size_bytes: int
    client_ids: tuple[int, ...]


def compact(root: StoreRoot, directory: Path) -> Compaction | None:
    """Merge the segments of clients that have closed, or that are sealed, into one chunk; call it again until it returns None.

    Durability: the chunk is on the device before the segments are deleted.

    Args:
        root: the store.
        directory: of the story.

    Returns:
        What was merged, or None where there is nothing to merge.

    Raises:
        InvalidArgumentError: the store has format 1, which knows no chunks.
        AcquiredError: somebody else is doing it.
        NotFoundError: the story is gone.
        DamageError: the segments have become unreadable meanwhile; nothing was changed.
        NotAuthorizedError: this user may not write to the store.
    """
    with merging(root, directory) as (claim, number):
        return _compact(root, directory, claim, number)


@contextmanager
def merging(root: StoreRoot, directory: Path) -> Iterator[tuple[Path, int]]:
    """Hold the sole right to delete segments and chunks of a story.

    Yields:
        The file that is the claim, to be touched from time to time; and a descriptor of the directory, through which files
        are deleted wherever it is by then.

    Raises:
        InvalidArgumentError: the store has format 1, which knows no chunks.
        AcquiredError: somebody else has it.
        NotFoundError: the story is gone, before or within the block.
        NotAuthorizedError: this user may not write to the store.
        StoreError: the file system failed, also within the block.
    """
    if root.format < CHUNK_FORMAT:
        raise InvalidArgumentError(
            f"{root.path}: a store of format {root.format} holds no chunks: make the store with format {CHUNK_FORMAT}"
        )
    with files.os_errors(directory):
        try:
            with acquisition.claimed(root, directory, 0.0, acquisition.MERGING) as claim:
                number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    yield claim, number
                finally:
                    os.close(number)
        except FileNotFoundError as error:
            raise NotFoundError(f"{directory}: the story has just been destroyed") from error


def _compact(root: StoreRoot, directory: Path, claim: Path, directory_number: int) -> Compaction | None:
    """Do it, as the holder of the claim."""
    archive = Archive(directory, chunk_names(directory))
    tidy(directory, archive, directory_number)
    clients = _final_clients(directory, archive)
    if not clients:
        return None
    log, report = StoryLog(directory), ScanReport()
    log.refresh(report, list(clients))
    since = {client_id: client.first_sequence for client_id, client in clients.items()}
    until = {client_id: client.end_sequence for client_id, client in clients.items()}
    pages = log.pages(0, MAX_TIME_NS, since, until, report)
    try:
        written = write_chunk(root, directory, list(clients.values()), pages, lambda: os.utime(claim))
    except InvalidArgumentError:
        if report.damages:
            raise report.damages[0] from None
        raise
    _remove_merged(
        directory, {client_id: client.segments for client_id, client in clients.items()}, directory_number
    )
    return Compaction(*written, tuple(clients))


def tidy(directory: Path, archive: Archive, directory_number: int) -> None:
    """Delete what a predecessor has left, and whatever does not count any more."""
    making = [
        name
        for name in os.listdir(directory_number)
        if name.startswith(files.TEMPORARY) and name.endswith(MAKING)
    ]
    for name in [*making, *archive.superseded]:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory_number)
    _remove_merged(
        directory,
        {client_id: _merged(several) for client_id, several in archive.clients.items()},
        directory_number,
    )


def _merged(several: Sequence[Held]) -> int:
    """Return how many segments of a client chunks stand for."""
    return max((held.client.segments for held in several), default=0)


def _remove_merged(directory: Path, merged: dict[int, int], directory_number: int) -> None:
    """Delete segments by their numbers: client id -> how many chunks stand for."""
    for client_id, numbers in acquisition.segments(directory).items():
        for number in numbers:
            if number < merged.get(client_id, 0):
                with suppress(FileNotFoundError):
                    os.unlink(
                        acquisition.segment_path(directory, client_id, number).name, dir_fd=directory_number
                    )


def _final_clients(directory: Path, archive: Archive) -> dict[int, ChunkClient]:
    """Return what a chunk would hold of clients whose segments are final."""
    segments, tails = acquisition.segments(directory), acquisition.tails(directory)
    clients: dict[int, ChunkClient] = {}
    size_bytes = 0
    for client_id, numbers in segments.items():
        held = archive.clients.get(client_id, [])
        if numbers[-1] < _merged(held) or client_id in tails:
            continue
        try:
            client = _final_client(directory, client_id, numbers, held)
        except FileNotFoundError:
            continue
        except DamageError as error:
            logger.warning("the segments of client %016x are left as they are: %s", client_id, error)
            continue
        if client is not None:
            clients[client_id] = client
            size_bytes += 100 * len(client.runs) + sum(len(payload) + 100 for _, payload in client.records)
        if len(clients) == MAX_CLIENTS or size_bytes > MAX_CLIENT_LIST_BYTES:
            break
    return clients


def _final_client(
    directory: Path, client_id: int, numbers: Sequence[int], held: Sequence[Held]
) -> ChunkClient | None:
    """Return what a chunk would hold of a client; None if it goes on in its last segment.

    Raises:
        DamageError: some of it is damaged or missing.
        FileNotFoundError: its files are gone.
    """
    numbers = [number for number in numbers if number >= _merged(held)]
    records = [
        record
        for number in numbers
        for record in _records(acquisition.segment_path(directory, client_id, number), client_id)
    ]
    if not records or records[-1][1].get("type") not in ("close", "roll"):
        return None
    log, report = ClientLog(directory, client_id, held), ScanReport()
    log.refresh(numbers, report)
    end = records[-1][0]
    runs: list[ClockRun] = []
    expected = log.first_sequence
    for span in log.spans(expected, end):
        if span.first_sequence != expected:
            break
        if isinstance(span, Stretch):
            span.check()
            times = span.times()
            run = ClockRun(span.first_sequence, int(times[0]), int(times[-1]), span.clock)
            if runs and runs[-1].clock == span.clock and span.first_sequence not in log.clock_starts:
                runs[-1] = runs[-1]._replace(last_time=run.last_time)
            else:
                runs.append(run)
        elif runs:
            break  # a chunk of its own holds one range, and this would be one on either side of another's
        expected = span.end_sequence
    if report.damages:
        raise report.damages[0]
    if expected != end:
        path = directory / f"{client_id:016x}.log"
        raise DamageError(
            path, 0, f"event {expected} is missing, or in a chunk that has not the events before it"
        )
    start = runs[0].first_sequence if runs else end
    return ChunkClient(client_id, start, end - start, numbers[-1] + 1, _distinct(records), tuple(runs))


_Record = tuple[int, dict[str, Any], bytes]


def _records(path: Path, client_id: int) -> list[_Record]:
    """Return the records of a segment: number of the next event, what the record says, the same as it is written.

    Raises:
        FileNotFoundError: it is gone.
        DamageError: it does not consist of blocks.
    """
    file = Descriptor(str(path))
    size_bytes = os.fstat(file.number).st_size
    records: list[_Record] = []
    offset = 0
    while offset < size_bytes:
        header = complete_block(file.number, offset, client_id)
        if header is None:
            raise DamageError(path, offset, "no whole block")
        if header.kind == KIND_RECORD:
            payload = read_exactly(
                file.number, header.payload_bytes, offset + HEADER_BYTES + header.columns_bytes
            )
            try:
                records.append((header.first_sequence, decode_map(payload or b""), payload or b""))
            except ValueError as error:
                raise DamageError(path, offset, str(error)) from error
        offset += header.block_bytes
    return records


def _distinct(records: Sequence[_Record]) -> tuple[tuple[int, bytes], ...]:
    """Return records without those that a later segment repeats, and without clock records that were superseded."""
    latest = {
        fields.get("first_sequence"): payload
        for _, fields, payload in records
        if fields.get("type") == "clock"
    }
    kept = [
        (next_sequence, payload)
        for next_sequence, fields, payload in records
        if fields.get("type") != "clock" or latest[fields.get("first_sequence")] is payload
    ]
    return tuple(dict.fromkeys(kept))
