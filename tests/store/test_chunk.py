"""Reading chunks: every event of the range once, in order; and damaged or hostile ones never give a wrong event."""

import pathlib
import random
import struct
import zlib
from collections.abc import Sequence

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport
from py_chronolog_client.errors import DamageError
from py_chronolog_client.store import chunk as chunk_module
from py_chronolog_client.store import chunkformat, merge
from py_chronolog_client.store.chunk import Chunk
from py_chronolog_client.store.storylog import StoryLog
from py_chronolog_client.testing.contract.base import rows_of
from tests.store import independent, reading
from tests.store.independent import Merged
from tests.support.counts import soak

TIMES = st.sampled_from([0, 1, 2, 3, 2**63 - 1, 2**63, MAX_TIME_NS - 1, MAX_TIME_NS])
RECORDS = st.sampled_from([b"", b"a", b"bcd", b"\0" * 300])
CLIENTS = st.dictionaries(
    st.sampled_from([0, 1, 2**32, 2**64 - 1]),
    st.tuples(st.sampled_from([0, 5, 2**32 - 2, 2**63]), st.lists(st.tuples(TIMES, RECORDS), max_size=9)),
    max_size=4,
)


def put(directory: pathlib.Path, data: bytes, number: int = 0) -> pathlib.Path:
    """Put a chunk into the directory of a story."""
    path = directory / chunkformat.chunk_name(0, f"{number:032x}")
    path.write_bytes(data)
    return path


def merged(clients: dict[int, tuple[int, list[tuple[int, bytes]]]]) -> list[Merged]:
    return [
        Merged(client_id, first, sorted(events, key=lambda event: event[0]))
        for client_id, (first, events) in clients.items()
    ]


def replay(directory: pathlib.Path, *, verify: bool = True) -> tuple[list[independent.Row], ScanReport]:
    log, report = StoryLog(directory), ScanReport()
    log.refresh(report)
    return rows_of(log.pages(0, MAX_TIME_NS, {}, log.snapshot(), report, verify=verify)), report


# -- what is sound --


@given(
    clients=CLIENTS,
    start=TIMES,
    end=TIMES,
    page=st.sampled_from([1, 2, 5, 1000]),
    page_events=st.sampled_from([1, 3, 100]),
    packed=st.booleans(),
    verify=st.booleans(),
    data=st.data(),
)
def test_every_range_and_every_mark(
    tmp_path_factory: pytest.TempPathFactory,
    clients: dict[int, tuple[int, list[tuple[int, bytes]]]],
    start: int,
    end: int,
    page: int,
    page_events: int,
    packed: bool,
    verify: bool,
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("story")
    several = merged(clients)
    truth = independent.chunk_rows(several)
    put(directory, independent.chunk(several, page_events=page_events, packed=packed))
    log, report = StoryLog(directory), ScanReport()
    log.refresh(report)
    marks = log.snapshot()
    assert marks == {each.client_id: each.first_sequence + len(each.events) for each in several}
    since = {each.client_id: each.first_sequence + data.draw(st.integers(-2, 5)) for each in several}
    until = {
        client_id: mark - data.draw(st.integers(-1, 3))
        for client_id, mark in marks.items()
        if data.draw(st.booleans())
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "PAGE_EVENTS", page)
        everything = list(log.pages(0, MAX_TIME_NS, {}, marks, report, verify=verify))
        some = list(log.pages(start, end, since, until, report, verify=verify))
    assert rows_of(iter(everything)) == truth
    assert all(len(found) <= page for found in [*everything, *some])
    expected = [
        row for row in truth if start <= row[0] <= end and since[row[1]] <= row[2] < until.get(row[1], 0)
    ]
    assert rows_of(iter(some)) == expected
    behind = [max(0, mark - max(marks[each], since.get(each, 0))) for each, mark in until.items()]
    assert (len(report.damages), report.missing) == (sum(map(bool, behind)), sum(behind))


@given(seed=st.integers(0, 2**32), page_events=st.sampled_from([1, 2, 4]))
def test_chunks_and_segments_are_merged(
    tmp_path_factory: pytest.TempPathFactory, seed: int, page_events: int
) -> None:
    """With many equal times between two chunks and segments."""
    directory = tmp_path_factory.mktemp("story")
    numbers = random.Random(seed)
    truth: list[independent.Row] = []
    for number in range(2):
        several = [
            Merged(client_id, 0, [(time, b"%d" % time) for time in sorted(numbers.choices(range(6), k=5))])
            for client_id in range(number, 8, 3)
        ]
        put(directory, independent.chunk(several, page_events=page_events), number)
        truth += independent.chunk_rows(several)
    for client_id in (2, 5):
        events = [(time, b"") for time in sorted(numbers.choices(range(6), k=4))]
        reading.segment(directory, client_id).write_bytes(reading.closed(client_id, [events[:2], events[2:]]))
        truth += reading.rows(client_id, 0, events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "PAGE_EVENTS", numbers.choice([1, 3, 8, 100]))
        rows, report = replay(directory)
    assert rows == sorted(truth)
    assert report.damages == []


SEVERAL = [
    Merged(1, 4, [(10, b"one"), (10, b""), (12, b"three \0"), (15, b"x" * 90)]),
    Merged(2, 0, [(10, b"other"), (12, b"another"), (15, "fünf".encode())]),
    Merged(7, 3, []),
]
ROWS = independent.chunk_rows(SEVERAL)
PAGES = [ROWS[start : start + 3] for start in range(0, len(ROWS), 3)]


@pytest.mark.parametrize("packed", [False, True])
def test_parts_of_a_page(tmp_path: pathlib.Path, packed: bool) -> None:
    put(tmp_path, independent.chunk(SEVERAL, page_events=100, packed=packed))
    log, report = StoryLog(tmp_path), ScanReport()
    log.refresh(report)
    (page,) = log.pages(0, MAX_TIME_NS, {}, log.snapshot(), report)
    records = [row[3] for row in ROWS]
    for start in range(len(ROWS)):
        for stop in range(start + 1, len(ROWS) + 1):
            assert page.records(start, stop) == records[start:stop]
            assert page.payload(start, stop).records() == records[start:stop]
    assert page.payload(2, 2).records() == []
    assert page.windows_ns().tolist() == [2**64 - 1] * len(ROWS)


def test_a_hundredth_reads_about_a_hundredth(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = independent.chunk(
        [Merged(1, 0, [(time, b"%100d" % time) for time in range(5000)])], page_events=50
    )
    put(tmp_path, data)
    log, report = StoryLog(tmp_path), ScanReport()
    log.refresh(report)
    read: list[int] = []
    real = chunk_module.read_exactly
    monkeypatch.setattr(
        chunk_module, "read_exactly", lambda file, size, at: read.append(size) or real(file, size, at)
    )
    assert len(rows_of(log.pages(2510, 2559, {}, log.snapshot(), report))) == 50
    assert 5000 < sum(read) < 3 * len(data) / 100


def test_what_the_future_adds_is_passed_over(tmp_path: pathlib.Path) -> None:
    """Keys in the list of clients."""
    data = independent.chunk(SEVERAL)
    listed = struct.unpack_from("<QI", data, 24)
    maps = msgpack.unpackb(data[listed[0] : sum(listed)])
    for fields in maps:
        fields["colour"] = {"of": [3]}
    put(tmp_path, with_clients(data, msgpack.packb(maps)))
    assert replay(tmp_path)[0] == ROWS


# -- what is damaged --


@pytest.mark.parametrize("packed", [False, True])
def test_any_bit(tmp_path: pathlib.Path, packed: bool) -> None:
    data = bytearray(independent.chunk(SEVERAL, packed=packed))
    untouched = [Merged(9, 0, [(11, b"in another chunk")])]
    put(tmp_path, independent.chunk(untouched), 1)
    reading.segment(tmp_path, 8).write_bytes(reading.closed(8, [[(12, b"in a segment")]]))
    others = [*independent.chunk_rows(untouched), (12, 8, 0, b"in a segment")]
    starts = [page._offset for page in Chunk(put(tmp_path, data)).pages]
    clients_at, clients_bytes = struct.unpack_from("<QI", data, 24)
    bits = range(8 * len(data))
    for bit in random.sample(bits, soak(400, len(bits))):
        data[bit // 8] ^= 1 << bit % 8
        path = put(tmp_path, data)
        data[bit // 8] ^= 1 << bit % 8
        if 64 <= bit // 8 < clients_at:
            touched = max(number for number, start in enumerate(starts) if start <= bit // 8)
            left, offset = (
                [row for page in PAGES if page is not PAGES[touched] for row in page],
                starts[touched],
            )
        else:
            left = []
            offset = (
                0 if bit // 8 < 64 else clients_at + (bit // 8 >= clients_at + clients_bytes) * clients_bytes
            )
        rows, report = replay(tmp_path)
        assert rows == sorted(left + others), f"bit {bit}"
        (damage,) = report.damages
        assert (damage.path, damage.offset) == (str(path), offset), f"bit {bit}"
        assert report.missing == (len(ROWS) - len(left) if left else 0)


def test_without_verification_damage_is_an_error_when_records_are_fetched(tmp_path: pathlib.Path) -> None:
    data = bytearray(independent.chunk(SEVERAL))
    place = data.index(b"three")
    data[place] ^= 1
    path = put(tmp_path, data)
    log, report = StoryLog(tmp_path), ScanReport()
    log.refresh(report)
    (page,) = log.pages(0, MAX_TIME_NS, {}, log.snapshot(), report)
    assert page.sequences.tolist() == [row[2] for row in ROWS]
    assert page.records(0, 3) == [row[3] for row in ROWS[:3]]
    with pytest.raises(DamageError, match="the checksum of the records does not hold") as caught:
        page.records()
    assert (caught.value.path, caught.value.offset) == (str(path), Chunk(path).pages[1]._offset)


def test_any_truncation(tmp_path: pathlib.Path) -> None:
    data = independent.chunk(SEVERAL)
    for size in sorted(random.sample(range(len(data)), soak(150, len(data)))):
        path = put(tmp_path, data[:size])
        rows, report = replay(tmp_path)
        assert rows == []
        assert [damage.path for damage in report.damages] == [str(path)]
        assert report.damages[0].offset <= size
    put(tmp_path, data + b"\0")
    assert [damage.offset for damage in replay(tmp_path)[1].damages] == [len(data)]


def test_a_damaged_chunk_gives_way_to_its_segments(tmp_path: pathlib.Path) -> None:
    events = [(1, b"a"), (2, b"b")]
    reading.segment(tmp_path, 1).write_bytes(reading.closed(1, [events]))
    put(tmp_path, independent.chunk([Merged(1, 0, events)])[:-1])
    rows, report = replay(tmp_path)
    assert rows == reading.rows(1, 0, events)
    assert len(report.damages) == 1


def test_a_file_that_is_cut_while_it_is_open(tmp_path: pathlib.Path) -> None:
    path = put(tmp_path, independent.chunk(SEVERAL))
    log, report = StoryLog(tmp_path), ScanReport()
    log.refresh(report)
    path.write_bytes(path.read_bytes()[:70])
    assert rows_of(log.pages(0, MAX_TIME_NS, {}, log.snapshot(), report)) == []
    assert {damage.reason for damage in report.damages} == {"the file was cut short"}
    assert report.missing == len(ROWS)


# -- what is hostile: all checksums hold --


def with_clients(data: bytes, listed: bytes, size: int | None = None) -> bytes:
    """Return a chunk with another list of clients."""
    fields = list(independent.CHUNK.unpack_from(data))
    at, old_bytes = fields[4], fields[5]
    index = data[at + old_bytes :]
    fields[5:8] = len(listed), len(listed) if size is None else size, zlib.crc32(listed)
    return with_header(fields) + data[64:at] + listed + index


def with_header(fields: Sequence[object]) -> bytes:
    header = independent.CHUNK.pack(*fields)
    return header[:8] + struct.pack("<I", zlib.crc32(header[12:])) + header[12:]


def with_entry(data: bytes, place: int, value: int) -> bytes:
    """Return a chunk of whose first page the list says something else."""
    fields = list(independent.CHUNK.unpack_from(data))
    at = fields[4] + fields[5]
    entry = list(independent.PAGE.unpack_from(data, at))
    entry[place] = value
    index = independent.PAGE.pack(*entry) + data[at + 48 :]
    fields[9] = zlib.crc32(index)
    return with_header(fields) + data[64:at] + index


@pytest.mark.parametrize(
    ("place", "value"),
    [(3, 2**63), (4, 63), (4, 2**64 - 1), (5, 2**32 - 1), (6, 2**26 + 1), (8, 2**32 - 1), (8, 0)],
)
def test_hostile_headers(tmp_path: pathlib.Path, place: int, value: int) -> None:
    data = independent.chunk(SEVERAL)
    fields = list(independent.CHUNK.unpack_from(data))
    fields[place] = value
    path = put(tmp_path, with_header(fields) + data[64:])
    with pytest.raises(DamageError):
        Chunk(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 2**64 - 1),
        (1, 9),
        (2, 0),
        (2, 2**20 + 1),
        (3, 0),
        (3, 2**32 - 1),
        (4, 0),
        (4, 2**32 - 1),
        (5, 9),
        (6, 5),
        (7, 5),
        (10, 2**31),
        (11, 2**27 + 1),
    ],
)
def test_hostile_lists_of_pages(tmp_path: pathlib.Path, place: int, value: int) -> None:
    path = put(tmp_path, with_entry(independent.chunk(SEVERAL), place, value))
    with pytest.raises(DamageError, match="the list of pages contradicts itself"):
        Chunk(path)


GOOD = {
    "client_id": 1,
    "first_sequence": 0,
    "count": 1,
    "segments": 1,
    "records": [],
    "clocks": [[0, 5, 5, bytes(48)]],
}


@pytest.mark.parametrize(
    "maps",
    [
        5,
        [5],
        [{}],
        [{**GOOD, "client_id": -1}],
        [{**GOOD, "client_id": "1"}],
        [{**GOOD, "client_id": True}],
        [{**GOOD, "first_sequence": 2**64 - 1, "clocks": [[2**64 - 1, 5, 5, bytes(48)]]}],
        [{**GOOD, "count": 2}],
        [{**GOOD, "segments": 1.0}],
        [{**GOOD, "records": [[0]]}],
        [{**GOOD, "records": [[0, "text"]]}],
        [{**GOOD, "clocks": []}],
        [{**GOOD, "clocks": [[1, 5, 5, bytes(48)]]}],
        [{**GOOD, "clocks": [[0, 5, 5, bytes(47)]]}],
        [{**GOOD, "clocks": [[0, 6, 5, bytes(48)]]}],
        [{**GOOD, "clocks": [[0, 5, 5, bytes(48)], [0, 5, 5, bytes(48)]]}],
        [{**GOOD, "clocks": [[0, 5, 5, bytes(48)], [1, 5, 5, bytes(48)]]}],
        [GOOD, {**GOOD, "count": 0, "clocks": []}],
        [{**GOOD, "client_id": 2}, {**GOOD, "count": 0, "clocks": []}],
    ],
)
def test_hostile_lists_of_clients(tmp_path: pathlib.Path, maps: object) -> None:
    data = independent.chunk([Merged(1, 0, [(5, b"")])])
    assert len(Chunk(put(tmp_path, with_clients(data, msgpack.packb([GOOD])))).clients) == 1
    path = put(tmp_path, with_clients(data, msgpack.packb(maps)))
    with pytest.raises(DamageError) as caught:
        Chunk(path)
    assert caught.value.offset == struct.unpack_from("<Q", data, 24)[0]


@pytest.mark.parametrize("size", [10**6 - 1, 10**6 + 1])
def test_a_list_that_unpacks_to_another_size(tmp_path: pathlib.Path, size: int) -> None:
    data = with_clients(independent.chunk(SEVERAL), zlib.compress(bytes(10**6)), size)
    with pytest.raises(DamageError, match="another size"):
        Chunk(put(tmp_path, data))


@pytest.mark.parametrize("record", [b"", b"\xc1", msgpack.packb({"type": "clock", "models": 3})])
def test_records_that_cannot_be_understood_are_reported(tmp_path: pathlib.Path, record: bytes) -> None:
    data = independent.chunk([Merged(1, 0, [(5, b"")])])
    path = put(tmp_path, with_clients(data, msgpack.packb([{**GOOD, "records": [[0, record]]}])))
    rows, report = replay(tmp_path)
    assert rows == [(5, 1, 0, b"")]
    assert [damage.path for damage in report.damages] == [str(path)]


def page_of(table: list[int], times: bytes, places: bytes, sizes: bytes, payload: bytes, last: int) -> bytes:
    """Return a chunk of clients 1 (events 0, 1) and 2 (event 0) with one page of three events, whatever it says."""
    columns = struct.pack("<4I2Q", *table) + times + places + sizes
    entry = independent.PAGE.pack(5, last, 3, 2, len(columns), 1, 1, 1, 0, zlib.crc32(columns), len(payload),
                                  len(payload), zlib.crc32(payload))  # fmt: skip
    maps = [
        {**GOOD, "count": 2, "clocks": [[0, 5, 7, bytes(48)]]},
        {**GOOD, "client_id": 2, "clocks": [[0, 5, 7, bytes(48)]]},
    ]
    listed = msgpack.packb(maps)
    fields = [b"CLOGCHK1", 0, 0, 3, 64 + len(columns + payload), len(listed), len(listed), zlib.crc32(listed)]
    return with_header([*fields, 1, zlib.crc32(entry), bytes(12)]) + columns + payload + listed + entry


SOUND = {
    "table": [0, 1, 2, 1, 0, 0],
    "times": b"\0\1\0",
    "places": b"\0\0\1",
    "sizes": b"\1\1\0",
    "payload": b"ab",
    "last": 6,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"table": [1, 0, 2, 1, 0, 0]},
        {"table": [0, 0, 2, 1, 0, 0]},
        {"table": [0, 2, 2, 1, 0, 0]},
        {"table": [0, 1, 1, 2, 0, 0]},
        {"table": [0, 1, 2, 1, 1, 0]},
        {"table": [0, 1, 2, 1, 0, 1]},
        {"table": [0, 1, 2, 1, 2**64 - 1, 0]},
        {"times": b"\0\2\0"},
        {"times": b"\1\0\0"},
        {"places": b"\0\0\2"},
        {"places": b"\0\1\0"},
        {"sizes": b"\1\1\1"},
        {"sizes": b"\1\0\0"},
        {"last": 7},
    ],
)
def test_hostile_pages(tmp_path: pathlib.Path, wrong: dict[str, object]) -> None:
    put(tmp_path, page_of(**SOUND))  # type: ignore[arg-type]
    sound = [(5, 1, 0, b"a"), (6, 1, 1, b"b"), (6, 2, 0, b"")]
    assert replay(tmp_path)[0] == sound
    path = put(tmp_path, page_of(**{**SOUND, **wrong}))  # type: ignore[arg-type]
    if "sizes" in wrong:
        with pytest.raises(DamageError):
            Chunk(path).pages[0].unpacked()
    else:
        rows, report = replay(tmp_path)
        assert rows == []
        assert [(damage.path, damage.offset) for damage in report.damages] == [(str(path), 64)]


def test_times_that_overflow(tmp_path: pathlib.Path) -> None:
    """Of which the last is right again."""
    data = independent.chunk([Merged(1, 0, [(2**63, b""), (2**64 - 1, b""), (2**64 - 1, b"")])])
    columns = bytearray(data[64 : struct.unpack_from("<Q", data, 24)[0]])
    table, deltas = columns[:16], np.array([0, 2**63, 2**63 - 1], np.uint64)
    planes = deltas.view(np.uint8).reshape(3, 8).T.tobytes()
    assert len(columns) == len(table) + len(planes)
    data = data[:64] + bytes(table) + planes + data[64 + len(columns) :]
    data = with_entry(data, 9, zlib.crc32(bytes(table) + planes))
    rows, report = replay(put(tmp_path, data).parent)
    assert rows == []
    assert [damage.offset for damage in report.damages] == [64]
