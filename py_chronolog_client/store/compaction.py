"""Merging segments that are final into a chunk, in a store of format 2: those of clients that have closed, and sealed ones.

Small chunks are merged along with them (`growth`). What makes it safe is that nothing changes: such a segment is never
written to again, nor is a chunk; a name is never used again; and a chunk says how many segments of each client it stands
for, so that segments and chunks for which it stands are known (`archive`). So the steps are

1. claim `merging`, which keeps others from doing the same work at the same time (`acquisition`);
2. delete what a predecessor that died has left: half a chunk, and segments and chunks for which a chunk stands;
3. write the chunk under a name that readers ignore, and sync it;
4. touch the claim, let the chunk appear, and sync the directory;
5. delete the segments and the chunks.

A death between any two of them leaves a story whose events are all there, once for readers; the next one goes on at
step 2. Should two do it at once all the same, because one was stopped for so long that it was taken for dead, then two
chunks hold the same events, and readers take each from one.

A client of which anything is damaged or missing keeps its segments, and a chunk of which anything is damaged stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport
from py_chronolog_client.errors import DamageError, InvalidArgumentError, NotFoundError
from py_chronolog_client.page import Page
from py_chronolog_client.store import acquisition, files
from py_chronolog_client.store.archive import Archive, Held
from py_chronolog_client.store.blocks import complete_block, read_exactly
from py_chronolog_client.store.chunk import Chunk
from py_chronolog_client.store.chunkformat import ChunkClient, ClockRun, chunk_names
from py_chronolog_client.store.chunking import MAKING, write_chunk
from py_chronolog_client.store.clientlog import ClientLog
from py_chronolog_client.store.format import CHUNK_FORMAT, HEADER_BYTES, KIND_RECORD, decode_map
from py_chronolog_client.store.growth import MAX_LIST_BYTES, taken_along
from py_chronolog_client.store.merge import ClientItem, Item, PageItem, Selection, merged
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.stretch import Descriptor, Stretch

MAX_CLIENTS = 1024
"""No more clients than this are merged at once: each needs an open file."""
_ALWAYS_NS = 0, MAX_TIME_NS

logger = logging.getLogger("py_chronolog_client")


class Compaction(NamedTuple):
    """What was merged."""

    path: Path
    events: int
    size_bytes: int
    client_ids: tuple[int, ...]
    """Whose segments."""
    chunks: int
    """How many chunks were taken along."""


def compact(root: StoreRoot, directory: Path, span_ns: int = MAX_TIME_NS) -> Compaction | None:
    """Merge the segments of clients that have closed, or that are sealed, into one chunk; call it again until it returns None.

    Durability: the chunk is on the device before anything is deleted.

    Args:
        root: the store.
        directory: of the story.
        span_ns: chunks that begin longer than this before the last event are not taken along, so that the chunk can expire.

    Returns:
        What was merged, or None where there is nothing to merge.

    Raises:
        InvalidArgumentError: the store has format 1, which knows no chunks.
        AcquiredError: somebody else is doing it.
        NotFoundError: the story is gone.
        DamageError: something has become unreadable meanwhile; nothing was changed.
        NotAuthorizedError: this user may not write to the store.
    """
    with merging(root, directory) as (claim, number):
        archive = Archive(directory, chunk_names(directory))
        tidy(directory, archive, number)
        final = _final_clients(directory, archive)
        if not final:
            return None
        chunks = taken_along(
            archive, {client_id: client for client_id, (client, _) in final.items()}, span_ns
        )
        clients, pages, report = _merged_with(archive, chunks, final)
        try:
            written = write_chunk(root, directory, clients, pages, lambda: os.utime(claim))
        except InvalidArgumentError:
            if report.damages:
                raise report.damages[0] from None
            raise
        _remove(directory, {client.client_id: client.segments for client in clients}, chunks, number)
        return Compaction(*written, tuple(final), len(chunks))


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


def tidy(directory: Path, archive: Archive, directory_number: int) -> None:
    """Delete what a predecessor has left, and whatever does not count any more."""
    making = [
        name
        for name in os.listdir(directory_number)
        if name.startswith(files.TEMPORARY) and name.endswith(MAKING)
    ]
    for name in making:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory_number)
    merged = {client_id: _merged(several) for client_id, several in archive.clients.items()}
    _remove(directory, merged, archive.superseded, directory_number)


def _merged(several: Sequence[Held]) -> int:
    """Return how many segments of a client chunks stand for."""
    return max((held.client.segments for held in several), default=0)


def _remove(
    directory: Path, merged: Mapping[int, int], chunks: Iterable[Chunk], directory_number: int
) -> None:
    """Delete segments by their numbers (client id -> how many chunks stand for), and chunks."""
    names = [
        acquisition.segment_path(directory, client_id, number).name
        for client_id, numbers in acquisition.segments(directory).items()
        for number in numbers
        if number < merged.get(client_id, 0)
    ]
    for name in [*names, *(os.path.basename(chunk.path) for chunk in chunks)]:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory_number)


_Final = tuple[ChunkClient, ClientLog]
"""What a chunk would hold of a client, and where it is now."""


def _final_clients(directory: Path, archive: Archive) -> dict[int, _Final]:
    """Return the clients whose segments are final."""
    segments, tails = acquisition.segments(directory), acquisition.tails(directory)
    clients: dict[int, _Final] = {}
    list_bytes = 0
    for client_id, numbers in segments.items():
        held = archive.clients.get(client_id, [])
        if numbers[-1] < _merged(held) or client_id in tails:
            continue
        try:
            final = _final_client(directory, client_id, numbers, held)
        except FileNotFoundError:
            continue
        except DamageError as error:
            logger.warning("the segments of client %016x are left as they are: %s", client_id, error)
            continue
        if final is not None:
            clients[client_id] = final
            list_bytes += final[0].list_bytes
        if len(clients) == MAX_CLIENTS or list_bytes > MAX_LIST_BYTES:
            break
    return clients


def _final_client(
    directory: Path, client_id: int, numbers: Sequence[int], held: Sequence[Held]
) -> _Final | None:
    """Return what a chunk would hold of a client's segments; None if it goes on in the last.

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
            runs.append(ClockRun(span.first_sequence, int(times[0]), int(times[-1]), span.clock))
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
    payloads = tuple((next_sequence, payload) for next_sequence, _, payload in records)
    client = ChunkClient(client_id, start, end - start, numbers[-1] + 1, payloads, tuple(runs))
    return _joined([client]), log


def _merged_with(
    archive: Archive, chunks: Sequence[Chunk], final: Mapping[int, _Final]
) -> tuple[list[ChunkClient], Iterator[Page], ScanReport]:
    """Return what a chunk of final clients and of other chunks holds: clients, events, and what is found wrong meanwhile."""
    pieces: dict[int, list[ChunkClient]] = {}
    ranges: dict[Chunk, dict[int, tuple[int, int]]] = {chunk: {} for chunk in chunks}
    for client_id, several in archive.clients.items():
        for held in several:
            if held.chunk in ranges:
                pieces.setdefault(client_id, []).append(_piece(held))
                ranges[held.chunk][client_id] = held.first_sequence, held.end_sequence
    runs: list[list[Item]] = []
    for client_id, (client, log) in sorted(final.items()):
        pieces.setdefault(client_id, []).append(client)
        bounds = client.first_sequence, client.end_sequence
        runs.append([ClientItem(log, stretch, _ALWAYS_NS, bounds) for stretch in log.stretches(*bounds)])
    for chunk, wanted in ranges.items():
        selection = Selection(chunk, wanted, _ALWAYS_NS)
        runs.append([PageItem(page, selection) for page in chunk.pages])
    report = ScanReport()
    logs = {client_id: log for client_id, (_, log) in final.items()}
    pages = merged([run for run in runs if run], logs, report, deadline=None, verify=False, aligned=False)
    return [_joined(pieces[client_id]) for client_id in sorted(pieces)], pages, report


def _piece(held: Held) -> ChunkClient:
    """Return of what a chunk holds of a client that which counts."""
    runs = tuple(
        ClockRun(span.first_sequence, span.first_time, span.last_time, span.clock) for span in held.spans()
    )
    count = held.end_sequence - held.first_sequence
    return held.client._replace(first_sequence=held.first_sequence, count=count, runs=runs)


def _joined(pieces: Sequence[ChunkClient]) -> ChunkClient:
    """Return consecutive ranges of a client as one."""
    records = [
        (next_sequence, decode_map(payload), payload)
        for piece in pieces
        for next_sequence, payload in piece.records
    ]
    clock_starts = {fields.get("first_sequence") for _, fields, _ in records if fields.get("type") == "clock"}
    runs: list[ClockRun] = []
    for run in (run for piece in pieces for run in piece.runs):
        if runs and runs[-1].clock == run.clock and run.first_sequence not in clock_starts:
            runs[-1] = runs[-1]._replace(last_time=run.last_time)
        else:
            first_time = max(run.first_time, runs[-1].last_time if runs else 0)  # of a part, it is not exact
            runs.append(run._replace(first_time=first_time))
    first, end = pieces[0].first_sequence, pieces[-1].end_sequence
    segments = max(piece.segments for piece in pieces)
    return ChunkClient(pieces[0].client_id, first, end - first, segments, _distinct(records), tuple(runs))


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
    """Return records without those that a later segment repeats, and without what is of no use any more.

    That are clock records that were superseded, and those between two segments of a client that went on.
    """
    latest = {
        fields.get("first_sequence"): payload
        for _, fields, payload in records
        if fields.get("type") == "clock"
    }
    kept: list[tuple[int, bytes]] = []
    last: object = None
    for next_sequence, fields, payload in records:
        kind = fields.get("type")
        if kind == "client" and last == "roll":
            kept.pop()
        elif kind != "clock" or latest[fields.get("first_sequence")] is payload:
            kept.append((next_sequence, payload))
        else:
            continue
        last = kind
    return tuple(dict.fromkeys(kept))
