"""The merge of a story: every event of the range once, in order, in pages of bounded size, whatever the blocks are."""

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import NotFoundError, ReplayTimeoutError
from py_chronolog_client.eventlist import EventList
from py_chronolog_client.store import merge, owner, stretch
from py_chronolog_client.store.storylog import StoryLog
from py_chronolog_client.testing.contract.base import Row, rows_of
from tests.store import independent
from tests.store.reading import closed, rows, segment, tail
from tests.store.writing import CHRONICLE, STORY, acquire, connect

TIMES = st.sampled_from([0, 1, 2, 3, 2**63 - 1, 2**63, MAX_TIME_NS - 1, MAX_TIME_NS])
BLOCKS = st.lists(st.lists(TIMES, min_size=1, max_size=4), max_size=4)
CLIENTS = st.dictionaries(
    st.sampled_from([0, 1, 2**32, 2**63 - 1]), st.tuples(BLOCKS, st.lists(TIMES, max_size=3))
)
FIRST = {0: 0, 1: 5, 2**32: 2**32 - 2, 2**63 - 1: 2**63}


def write_story(directory: pathlib.Path, clients: dict[int, tuple[list[list[int]], list[int]]]) -> list[Row]:
    """Write clients with these times in blocks and, where there are any, in a tail; return the rows of the story."""
    found: list[Row] = []
    for client_id, (blocks, newest) in clients.items():
        first = FIRST[client_id]
        times = sorted(time for block in [*blocks, newest] for time in block)
        events = [(time, b"%d %d" % (client_id, place)) for place, time in enumerate(times)]
        pieces, start = [], 0
        for size in map(len, blocks):
            pieces.append(events[start : start + size])
            start += size
        data = closed(client_id, pieces, first)
        if newest:
            size = len(independent.close_record(client_id, first + start))
            data = data[:-size]
            in_tail = independent.tail(client_id, first + start, events[start:], owner.boot_id())
            tail(directory, client_id).write_bytes(in_tail)
        segment(directory, client_id).write_bytes(data)
        found += rows(client_id, first, events)
    return sorted(found)


@given(
    clients=CLIENTS,
    start=TIMES,
    end=TIMES,
    page=st.sampled_from([1, 2, 3, 1000]),
    verify=st.booleans(),
    data=st.data(),
)
def test_every_range_and_every_mark(
    tmp_path_factory: pytest.TempPathFactory,
    clients: dict[int, tuple[list[list[int]], list[int]]],
    start: int,
    end: int,
    page: int,
    verify: bool,
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("story")
    truth = write_story(directory, clients)
    log, report = StoryLog(directory), ScanReport()
    log.refresh(report)
    marks = log.snapshot()
    assert marks == {
        client_id: FIRST[client_id] + sum(row[1] == client_id for row in truth) for client_id in clients
    }
    since = {client_id: FIRST[client_id] + data.draw(st.integers(-2, 5)) for client_id in clients}
    until = {client_id: mark - data.draw(st.integers(-1, 3)) for client_id, mark in marks.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "PAGE_EVENTS", page)
        everything = list(log.pages(0, MAX_TIME_NS, {}, marks, report, verify=verify))
        some = list(log.pages(start, end, since, until, report, verify=verify))
    assert rows_of(iter(everything)) == truth
    assert all(len(found) <= page for found in [*everything, *some])
    expected = [row for row in truth if start <= row[0] <= end and since[row[1]] <= row[2] < until[row[1]]]
    assert rows_of(iter(some)) == expected
    behind = [max(0, mark - max(marks[client_id], since[client_id])) for client_id, mark in until.items()]
    assert (len(report.damages), report.missing) == (sum(map(bool, behind)), sum(behind))


def test_a_range_reads_only_the_blocks_that_it_needs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_story(tmp_path, {0: ([[1, 1], [2, 2], [3, 3]], []), 1: ([[1], [9]], [])})
    log, report, read = StoryLog(tmp_path), ScanReport(), []
    log.refresh(report)
    real = stretch.BlockStretch.times
    monkeypatch.setattr(
        stretch.BlockStretch, "times", lambda block: read.append(block.first_time) or real(block)
    )
    assert [row[0] for row in rows_of(log.pages(2, 3, {}, log.snapshot(), report))] == [2, 2, 3, 3]
    assert sorted(read) == [2, 3]


def test_only_the_clients_that_are_asked_for_are_opened(tmp_path: pathlib.Path) -> None:
    truth = write_story(tmp_path, {0: ([[1]], []), 1: ([[2]], []), 2**32: ([[3]], [])})
    log, report = StoryLog(tmp_path), ScanReport()
    log.refresh(report, [1, 77])
    assert list(log.clients) == [1]
    assert rows_of(log.pages(0, 9, {}, log.snapshot(), report)) == [row for row in truth if row[1] == 1]
    log.refresh(report)
    assert rows_of(log.pages(0, 9, {}, log.snapshot(), report)) == truth


@pytest.mark.parametrize("verify", [False, True])
def test_a_damaged_block_is_left_out_and_counted(tmp_path: pathlib.Path, verify: bool) -> None:
    truth = write_story(tmp_path, {0: ([[1, 2], [3, 4, 5], [6]], []), 1: ([[1], [4]], [])})
    path = segment(tmp_path, 0)
    data = bytearray(path.read_bytes())
    second = data.index(b"CLOGBLK1", data.index(b"CLOGBLK1", 1) + 1)
    data[second + 130] ^= 1
    path.write_bytes(data)
    log, report = StoryLog(tmp_path), ScanReport()
    log.refresh(report)
    found = rows_of(log.pages(0, MAX_TIME_NS, {}, log.snapshot(), report, verify=verify))
    assert found == [row for row in truth if row[1] or row[2] not in (2, 3, 4)]
    assert (report.missing, len(report.damages)) == (3, 1)


def test_a_deadline_that_has_passed(tmp_path: pathlib.Path) -> None:
    write_story(tmp_path, {0: ([[1]], [])})
    log, report = StoryLog(tmp_path), ScanReport()
    log.refresh(report)
    with pytest.raises(ReplayTimeoutError, match="before its deadline"):
        list(log.pages(0, 9, {}, log.snapshot(), report, deadline=0.0))


def test_a_story_without_clients_and_one_that_is_gone(tmp_path: pathlib.Path) -> None:
    log, report = StoryLog(tmp_path), ScanReport()
    log.refresh(report)
    assert log.snapshot() == {}
    assert rows_of(log.pages(0, MAX_TIME_NS, {}, {}, report)) == []
    with pytest.raises(NotFoundError, match="has just been destroyed"):
        StoryLog(tmp_path / "gone").refresh(report)


def test_a_page_whose_columns_have_moved_into_a_list_holds_none_of_its_own(tmp_path: pathlib.Path) -> None:
    """Otherwise a replay takes twice the memory of its columns."""
    for client_id in (1, 2):
        with connect(tmp_path / "store", client_id=client_id) as client:
            acquire(client).log_events([b"%d" % number for number in range(1000)])
    series = EventList()
    for page in EmbeddedEngine(tmp_path / "store").scan(CHRONICLE, STORY):
        series.add_page(page)
    columns = (series.times, series.client_ids, series.sequences)
    slots = {
        name
        for page in series._pages
        for kind in type(page).__mro__
        for name in getattr(kind, "__slots__", ())
    }
    held = {
        name
        for page in series._pages
        for name in slots
        if isinstance(own := getattr(page, name, None), np.ndarray)
        and not any(np.shares_memory(own, column) for column in columns)
    }
    assert held == set()
    assert len(list(series)) == 2000
