"""Merging sources: one order over all of them, against sorted lists, whatever their pages are."""

import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from py_chronolog_client.engine import merged
from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.engine.merged import merge_clients, merge_pages, merge_reports, merge_snapshots
from py_chronolog_client.errors import DamageError, NotConnectedError
from py_chronolog_client.page import U64, MemoryPage, Page, Payload

Row = tuple[int, int, int, bytes]
"""Key, client id, sequence number and record."""

KEYS = st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1])
CLIENTS = st.sampled_from([0, 1, 2, 2**32, 2**63 - 1])
EVENTS = st.lists(st.tuples(KEYS, CLIENTS, st.integers(0, 3)), unique=True, max_size=25)


@st.composite
def sources_of_pages(draw: st.DrawFn) -> list[list[list[Row]]]:
    """Deal the events of a story to sources, and cut each source into pages, some of them empty."""
    sources: list[list[Row]] = [[] for _ in range(draw(st.integers(0, 4)))]
    for key, client_id, sequence in sorted(draw(EVENTS)):
        if sources:
            # Nothing says that a client is in one source only: the order is what counts.
            record = b"%d of %d" % (sequence, client_id)
            draw(st.sampled_from(sources)).append((key, client_id, sequence, record))
    return [cut(source, draw(st.lists(st.integers(0, len(source)), max_size=5))) for source in sources]


def cut(rows: list[Row], places: list[int]) -> list[list[Row]]:
    return [rows[start:stop] for start, stop in pairwise([0, *sorted(places), len(rows)])]


def window_ns(row: Row) -> int:
    return 1000 * (row[0] % 10) + 10 * (row[1] % 7) + row[2]


def page_of(rows: list[Row], *, aligned: bool = False) -> MemoryPage:
    """Make a page; of an aligned replay one whose times are 7 before the keys."""
    keys, client_ids, sequences = (np.array([row[part] for row in rows], np.uint64) for part in range(3))
    windows = np.array([window_ns(row) for row in rows], np.uint64)
    payload = Payload.of([row[3] for row in rows])
    times = keys - np.uint64(7) if aligned else keys
    return MemoryPage(times, client_ids, sequences, payload, windows, keys if aligned else None)


def rows_of(page: Page) -> list[Row]:
    columns = page.keys, page.client_ids, page.sequences
    return list(zip(*(column.tolist() for column in columns), page.records(), strict=True))


@given(sources_of_pages(), st.sampled_from([1, 2, 3, 1000]), st.booleans())
@example([[[(1, 1, 0, b"")], [(1, 3, 0, b"")]], [[(1, 2, 0, b"")]]], 1000, False)
def test_one_order_over_all_sources(sources: list[list[list[Row]]], page_events: int, aligned: bool) -> None:
    everything = sorted(row for source in sources for rows in source for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged, "PAGE_EVENTS", page_events)
        pages = list(merge_pages([iter([page_of(p, aligned=aligned) for p in source]) for source in sources]))
    assert [row for page in pages for row in rows_of(page)] == everything
    assert [window for page in pages for window in page.windows_ns().tolist()] == [
        *map(window_ns, everything)
    ]
    for page in pages:
        assert (page.aligned is not None) == aligned
        assert page.times.tolist() == [(key - 7 * aligned) % 2**64 for key in page.keys.tolist()]
        assert len(page) <= max(page_events, *(len(rows) for source in sources for rows in source), 0)


@given(sources_of_pages(), st.data())
def test_any_part_of_a_page(sources: list[list[list[Row]]], data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged, "PAGE_EVENTS", data.draw(st.sampled_from([2, 5, 1000])))
        for page in merge_pages([iter([page_of(rows) for rows in source]) for source in sources]):
            places = st.integers(-len(page) - 1, len(page) + 1)
            start, stop = data.draw(places), data.draw(st.none() | places)
            assert page.payload(start, stop).records() == page.records()[start:stop]
            assert page.records(start, stop) == page.records()[start:stop]


@given(sources_of_pages(), st.integers(0, 6), st.integers(0, 3))
def test_a_source_fails_after_everything_that_was_certainly_before(
    sources: list[list[list[Row]]], place: int, number: int
) -> None:
    if not sources:
        return
    failing = number % len(sources)
    before = [row for rows in sources[failing][:place] for row in rows]

    def streams() -> Iterator[Iterator[Page]]:
        for which, source in enumerate(sources):
            pages = [page_of(rows) for rows in source]
            yield failing_after(pages[:place]) if which == failing else iter(pages)

    got: list[Row] = []
    with pytest.raises(NotConnectedError, match="the cable"):
        for page in merge_pages(list(streams())):
            got += rows_of(page)
    everything = sorted(row for source in sources for rows in source for row in rows)
    assert got == [row for row in everything if before and row <= before[-1]]


def failing_after(pages: Sequence[Page]) -> Iterator[Page]:
    yield from pages
    raise NotConnectedError("somebody has cut the cable")


def test_a_single_source_is_passed_on_as_it_is() -> None:
    pages = [page_of([(1, 1, 0, b"a")]), page_of([]), page_of([(1, 1, 1, b"b")])]
    delivered = list(merge_pages([iter(pages)]))
    assert [*map(id, delivered)] == [*map(id, pages)]


def test_what_no_other_source_has_a_part_in_is_not_copied() -> None:
    first, last = page_of([(1, 1, 0, b"a"), (2, 1, 1, b"b")]), page_of([(9, 2, 0, b"c"), (9, 2, 1, b"d")])
    delivered = list(merge_pages([iter([first]), iter([last])]))
    assert [*map(id, delivered)] == [id(first), id(last)]


class WatchedPage(MemoryPage):
    """Notes which of its records are fetched."""

    __slots__ = ("fetched",)

    def payload(self, start: int = 0, stop: int | None = None) -> Payload:
        self.fetched = (start, stop)
        return super().payload(start, stop)


def watched(times: list[int], client_id: int) -> WatchedPage:
    keys = np.array(times, np.uint64)
    records = Payload.of([b"%d" % time for time in times])
    return WatchedPage(
        keys, np.full(len(keys), client_id, np.uint64), np.arange(len(keys), dtype=np.uint64), records
    )


def test_a_page_fetches_the_records_of_its_own_events_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "PAGE_EVENTS", 4)
    one, other = watched([1, 3, 5, 7, 100, 101], 1), watched([2, 4, 6, 8], 2)
    first, second, rest = merge_pages([iter([one]), iter([other])])
    assert not hasattr(one, "fetched")
    assert second.records() == [b"5", b"6", b"7", b"8"]
    assert (one.fetched, other.fetched) == ((2, 4), (2, 4))
    assert first.records(1, 3) == [b"2", b"3"]
    assert (one.fetched, other.fetched) == ((1, 2), (0, 1))
    assert rest.records(1) == [b"101"]
    assert one.fetched == (5, 6)


def test_a_source_is_asked_for_its_next_page_when_the_one_before_is_used_up() -> None:
    asked: list[int] = []

    def source(number: int, pages: Sequence[Page]) -> Iterator[Page]:
        for page in pages:
            asked.append(number)
            yield page

    early = [page_of([(time, 1, time, b"")]) for time in range(3)]
    merge = merge_pages([source(1, early), source(2, [page_of([(9, 2, 0, b"")])])])
    next(merge)
    assert asked == [1, 2]
    next(merge)
    assert asked == [1, 2, 1]


def test_sources_are_closed_when_nobody_wants_more() -> None:
    closed: list[int] = []

    def source(number: int) -> Iterator[Page]:
        try:
            for time in range(5):
                yield page_of([(time, number, time, b"")])
        finally:
            closed.append(number)

    kept = [source(1), source(2)]
    merge = merge_pages(kept)
    next(merge)
    assert not closed
    merge.close()  # type: ignore[attr-defined]
    assert closed == [1, 2]


def test_the_others_are_closed_when_one_fails() -> None:
    closed: list[int] = []

    def source() -> Iterator[Page]:
        try:
            for time in range(5):
                yield page_of([(time, 1, time, b"")])
        finally:
            closed.append(1)

    kept = [failing_after([]), source(), iter([page_of([])])]
    next(kept[1])
    with pytest.raises(NotConnectedError) as caught:
        list(merge_pages(kept))
    assert closed == [1], caught


PAGE_BYTES = 2**20


def long_source(client_id: int, pages: int) -> Iterator[Page]:
    """Yield pages of a mebibyte."""
    count = PAGE_BYTES // 128
    for number in range(pages):
        sequences = np.arange(number * count, (number + 1) * count, dtype=np.uint64)
        times: U64 = sequences * np.uint64(10) + np.uint64(client_id)
        ends = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(128)
        yield MemoryPage(
            times, np.full(count, client_id, np.uint64), sequences, Payload(ends, bytes(PAGE_BYTES))
        )


@pytest.mark.parametrize("pages", [4, 40])
def test_no_more_is_held_than_a_page_of_each_source_and_the_window(pages: int) -> None:
    tracemalloc.start()
    try:
        count = 0
        for page in merge_pages([long_source(client_id, pages) for client_id in range(3)]):
            count += len(page)
            page.payload(0, 1)
            del page
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 3 * pages * PAGE_BYTES // 128
    assert peak_bytes < 8 * PAGE_BYTES


def test_a_page_that_is_used_up_is_let_go_before_the_next_one_comes() -> None:
    alive: list[int] = []

    class Counted(MemoryPage):
        __slots__ = ()

        def __init__(self, time: int, client_id: int) -> None:
            alive.append(client_id)
            columns = (np.array([value], np.uint64) for value in (time, client_id, time))
            super().__init__(*columns, Payload.of([b""]))

        def __del__(self) -> None:
            alive.remove(client_id_of(self))

    def client_id_of(page: Page) -> int:
        return int(page.client_ids[0])

    most = 0

    def source(client_id: int) -> Iterator[Page]:
        nonlocal most
        for time in range(4):
            yield Counted(time, client_id)
            most = max(most, len(alive))

    for page in merge_pages([source(1), source(2)]):
        del page
    assert (most, alive) == (1, [])


def test_marks() -> None:
    assert merge_snapshots([]) == {}
    assert merge_snapshots([{1: 5, 2: 7}, {}, {2: 3, 3: 0}, {1: 6}]) == {1: 6, 2: 7, 3: 0}


def test_descriptions() -> None:
    answers: list[dict[int, dict[str, object]]] = [{7: {"rank": 1}, 2: {}}, {2: {"rank": 0}, 3: {}}, {7: {}}]
    found = merge_clients(answers)
    assert found == {2: {"rank": 0}, 3: {}, 7: {"rank": 1}}
    assert list(found) == [2, 3, 7]


def test_reports() -> None:
    report = ScanReport([DamageError("a", 1, "r")], 1, 2, 3)
    merge_reports([ScanReport([DamageError("b", 2, "s")], 10, 20, 30), ScanReport(missing=100)], report)
    assert [damage.path for damage in report.damages] == ["a", "b"]
    assert (report.missing, report.disbelieved, report.unseen) == (111, 22, 33)
