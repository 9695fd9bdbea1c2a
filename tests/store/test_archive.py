"""Chunks beside segments: each event once, wherever it is and however often."""

import itertools
import pathlib

import pytest

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.store import census, compaction
from py_chronolog_client.store.archive import Archive
from py_chronolog_client.store.chunk import Chunk
from py_chronolog_client.store.chunkformat import chunk_names
from py_chronolog_client.store.root import StoreRoot
from tests.store import independent, reading
from tests.store.independent import Merged
from tests.store.test_chunk import put, replay

EVENTS = [(10 + number // 2, b"%d" % number) for number in range(12)]


def part(first: int, end: int, **more: object) -> bytes:
    """Return a chunk of the events `first` to `end` (not included) of client 1, which stands for no segment."""
    record = (0, {"type": "client", "client_id": 1, "first_sequence": 0})
    fields = {"segments": 0, "records": [record], **more}
    return independent.chunk([Merged(1, first, EVENTS[first:end], **fields)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "chunks", list(itertools.combinations([(0, 4), (2, 6), (3, 5), (6, 12), (0, 12), (9, 11)], 2))
)
@pytest.mark.parametrize("verify", [False, True])
def test_a_chunk_and_blocks_may_share_some_events(
    tmp_path: pathlib.Path, chunks: tuple[tuple[int, int], ...], verify: bool
) -> None:
    for number, (first, end) in enumerate(chunks):
        put(tmp_path, part(first, end), number)
    reading.segment(tmp_path, 1).write_bytes(reading.closed(1, [EVENTS[:3], EVENTS[3:8], EVENTS[8:]]))
    rows, report = replay(tmp_path, verify=verify)
    assert rows == reading.rows(1, 0, EVENTS)
    assert (report.damages, report.missing) == ([], 0)


def test_what_neither_a_chunk_nor_a_block_has_is_missing(tmp_path: pathlib.Path) -> None:
    put(tmp_path, part(0, 4))
    put(tmp_path, part(6, 8), 1)
    rows, report = replay(tmp_path)
    assert rows == [row for row in reading.rows(1, 0, EVENTS[:8]) if row[2] not in (4, 5)]
    assert report.missing == 2
    assert [damage.reason for damage in report.damages] == ["the events 4 to 5 are missing"]


def test_a_segment_for_which_a_chunk_stands_is_not_looked_at(tmp_path: pathlib.Path) -> None:
    put(tmp_path, independent.chunk([Merged(1, 0, EVENTS, segments=2)]))
    reading.segment(tmp_path, 1).write_bytes(b"half deleted, or anything")
    reading.segment(tmp_path, 1, 1).mkdir()
    assert replay(tmp_path)[0] == reading.rows(1, 0, EVENTS)
    assert replay(tmp_path)[1] == ScanReport()
    later = [(99, b"later")]
    reading.segment(tmp_path, 1, 2).write_bytes(reading.closed(1, [later], len(EVENTS)))
    assert replay(tmp_path)[0] == reading.rows(1, 0, EVENTS + later)
    assert replay(tmp_path)[1] == ScanReport()


def test_of_several_the_first_has_an_event(tmp_path: pathlib.Path) -> None:
    paths = [
        put(tmp_path, part(first, end), number)
        for number, (first, end) in enumerate([(2, 9), (0, 4), (0, 4), (3, 9), (1, 4)])
    ]
    archive = Archive(tmp_path, chunk_names(tmp_path))
    taken = {held.chunk.path: (held.first_sequence, held.end_sequence) for held in archive.clients[1]}
    assert taken == {str(paths[1]): (0, 4), str(paths[0]): (4, 9)}
    assert [chunk.path for chunk in archive.superseded] == [str(path) for path in sorted(paths[2:])]
    again = Archive(tmp_path, chunk_names(tmp_path), archive)
    assert again.chunks == archive.chunks, "nothing was opened twice"


def test_names_that_are_no_chunks(tmp_path: pathlib.Path) -> None:
    name = put(tmp_path, part(0, 1)).name
    for other in (f".tmp-{name}", name.upper(), f"{name}.old", name[1:], f"x{name}"):
        (tmp_path / other).write_bytes(b"?")
    assert chunk_names(tmp_path) == {name}


def test_a_chunk_that_goes_between_listing_and_opening(tmp_path: pathlib.Path) -> None:
    name = put(tmp_path, part(0, 1)).name
    archive = Archive(tmp_path, [name, name.replace("0.chunk", "1.chunk")])
    assert (list(archive.chunks), archive.damages) == ([name], [])


def test_who_is_in_chunks_and_in_segments(tmp_path: pathlib.Path) -> None:
    first = (0, {"type": "client", "client_id": 1, "first_sequence": 0, "host": "of the chunk"})
    path = put(tmp_path, independent.chunk([Merged(1, 0, EVENTS, 1, [first]), Merged(2, 0, [])]))
    reading.segment(tmp_path, 1, 1).write_bytes(reading.closed(1, [], len(EVENTS)))
    reading.segment(tmp_path, 3).write_bytes(reading.closed(3, []))
    assert census.client_ids(tmp_path) == [1, 2, 3]
    found = census.census(tmp_path)
    assert [found[number].description.get("host") for number in (1, 2, 3)] == [
        "of the chunk",
        None,
        "node-17",
    ]
    segment_bytes = reading.segment(tmp_path, 1, 1).stat().st_size
    assert found[1].size_bytes == path.stat().st_size + segment_bytes
    assert census.census(tmp_path, [2, 7]).keys() == {2}


def test_a_client_with_a_tail_is_not_merged(tmp_path: pathlib.Path) -> None:
    directory = independent.make_story(tmp_path / "store", reading.CHRONICLE, reading.STORY, 2)
    reading.segment(directory, 1).write_bytes(reading.closed(1, [EVENTS]))
    reading.tail(directory, 1).write_bytes(independent.tail(1, len(EVENTS), [], bytes(16)))
    root = StoreRoot.open(tmp_path / "store", create=False)
    assert compaction.compact(root, directory) is None
    reading.tail(directory, 1).unlink()
    assert compaction.compact(root, directory) is not None


@pytest.mark.parametrize(
    ("first", "end", "is_merged"), [(0, 4, True), (0, 12, True), (4, 12, False), (4, 8, False)]
)
def test_a_client_of_whom_a_chunk_holds_later_events_is_not_merged(
    tmp_path: pathlib.Path, first: int, end: int, is_merged: bool
) -> None:
    """A chunk holds one range of a client, so events on both sides of a chunk would be left out."""
    directory = independent.make_story(tmp_path / "store", reading.CHRONICLE, reading.STORY, 2)
    put(directory, part(first, end))
    reading.segment(directory, 1).write_bytes(reading.closed(1, [EVENTS[:3], EVENTS[3:8], EVENTS[8:]]))
    done = compaction.compact(StoreRoot.open(tmp_path / "store", create=False), directory)
    assert (done is not None) == is_merged
    assert reading.segment(directory, 1).exists() != is_merged
    assert replay(directory) == (reading.rows(1, 0, EVENTS), ScanReport())


def test_a_clock_run_ends_where_a_clock_record_begins(tmp_path: pathlib.Path) -> None:
    """And where the model changes, and nowhere else."""
    directory = independent.make_story(tmp_path / "store", reading.CHRONICLE, reading.STORY, 2)
    model, other = (ClockModel(number, number, 0, 0.0, 9, 0.0).pack() for number in (1, 2))
    data = independent.client_record(1)
    for place, clock in enumerate([model, model, model, other, other, model]):
        data += independent.events_block(1, 2 * place, EVENTS[2 * place : 2 * place + 2], clock=clock)
    for since, models in ((0, model), (4, model), (4, model + other)):
        data += independent.record_block(1, 12, {"type": "clock", "first_sequence": since, "models": models})
    data += independent.close_record(1, 12)
    reading.segment(directory, 1).write_bytes(data)
    done = compaction.compact(StoreRoot.open(tmp_path / "store", create=False), directory)
    assert done is not None
    client = Chunk(done.path).clients[1]
    assert [
        (run.first_sequence, run.first_time, run.last_time, run.clock.model_id) for run in client.runs
    ] == [
        (0, 10, 11, 1),
        (4, 12, 12, 1),
        (6, 13, 14, 2),
        (10, 15, 15, 1),
    ]
    assert len(client.records) == 4, "the clock record that was superseded is left out"
