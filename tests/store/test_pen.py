"""A pen writes blocks one behind the other, as the document says, and a new one learns what the old one has written."""

import os
import pathlib
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.store import segment as segments
from py_chronolog_client.store.pen import Pen, Stored
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.segment import Segment
from tests.store import independent

CLIENT_ID = 7
BATCHES = st.lists(st.lists(st.binary(max_size=80), min_size=1, max_size=4), max_size=5)


@pytest.fixture
def segment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Segment]:
    made = make_segment(tmp_path_factory.mktemp("pen"))
    yield made
    made.close()


def make_segment(directory: pathlib.Path, first: int = 0) -> Segment:
    root = StoreRoot.open(directory / "store", create=True)
    path = root.path / f"{CLIENT_ID:016x}.log"
    return Segment(root, path, independent.client_record(CLIENT_ID, first))


def write(pen: Pen, records: list[bytes], time_ns: int = 5, origin: int = 100) -> None:
    ends, end = array("Q"), origin
    for record in records:
        end += len(record)
        ends.append(end)
    times = memoryview(array("Q", [time_ns]) * len(records))
    pen.write(CLIENT_ID, times, memoryview(ends), memoryview(b"".join(records)), origin, ClockModel(3, 1, 2))


@given(
    batches=BATCHES, first=st.sampled_from([0, 2**32 - 2, 2**64 - 50]), origin=st.sampled_from([0, 135168])
)
def test_blocks_are_what_the_document_says(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]], first: int, origin: int
) -> None:
    made = make_segment(tmp_path_factory.mktemp("pen"), first)
    start = Stored(first, made, made.start)
    pen, sequence = Pen(start), first
    for records in batches:
        write(pen, records, origin=origin)
        sequence += len(records)
        assert pen.stored == Stored(sequence, made, os.fstat(made.descriptor).st_size)
        late = Pen(None)
        late.look(start, CLIENT_ID)
        assert late.stored == pen.stored, "who comes next does not know how far it is"
    pen.write_record(CLIENT_ID, {"type": "close", "next_sequence": sequence})
    made.close()
    found = independent.read_segment(made.path.read_bytes(), CLIENT_ID)
    assert [block.records for block in found[1:-1]] == batches
    assert [block.first_sequence for block in found[1:-1]] == [
        first + sum(map(len, batches[:number])) for number in range(len(batches))
    ]
    assert all(
        block.times == [5] * len(block.records) and block.clock[:3] == (3, 1, 2) for block in found[1:-1]
    )
    assert (found[-1].first_sequence, found[-1].fields["next_sequence"]) == (sequence, sequence)


@pytest.mark.parametrize("taken", [0, 1, 127, 128, 150])
def test_a_block_that_came_out_short_is_written_over(
    segment: Segment, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    pen = Pen(Stored(0, segment, segment.start))

    def short(descriptor: int, pieces: list[bytes], offset: int) -> int:
        return os.pwrite(descriptor, b"".join(pieces)[:taken], offset)

    with monkeypatch.context() as patch:
        patch.setattr(segments.os, "pwritev", short)
        with pytest.raises(OSError, match="No space left"):
            write(pen, [b"refused" * 9])
    assert pen.stored == Stored(0, segment, segment.start)
    late = Pen(None)
    late.look(Stored(0, segment, segment.start), CLIENT_ID)
    assert late.stored == pen.stored, "half a block is none"
    write(late, [b"kept"])
    (_, block) = independent.read_segment(segment.path.read_bytes(), CLIENT_ID)
    assert block.records == [b"kept"]


def test_a_pen_that_looks_passes_over_what_is_older_than_its_place(segment: Segment) -> None:
    """Behind a place stands at most what one call wrote: a block with another number is none of it."""
    pen = Pen(Stored(0, segment, segment.start))
    write(pen, [b"a", b"b"])
    late = Pen(None)
    late.look(Stored(1, segment, segment.start), CLIENT_ID)
    assert late.stored == Stored(1, segment, segment.start)


def test_a_pen_is_busy_until_it_knows_its_place(segment: Segment) -> None:
    assert Pen(None).busy
    assert not Pen(Stored(0, segment, segment.start)).busy
