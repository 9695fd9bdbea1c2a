"""An EventList is a list, whether its events are in pages or not; and it is columns."""

import copy
import pickle
import random
import tracemalloc
from collections.abc import Iterable, MutableSequence
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from py_chronolog_client import Event, EventList
from py_chronolog_client.errors import DamageError
from py_chronolog_client.page import MemoryPage, Payload
from tests.support.counts import soak

EVENTS = st.builds(
    Event,
    st.integers(0, 3) | st.just(2**64 - 1),
    st.integers(0, 2) | st.just(2**63),
    st.integers(0, 2) | st.just(2**32 + 1),
    st.sampled_from(["", "a", b"\0", b"b\0", b"\xff", "ü"]),
)
BATCHES = st.lists(EVENTS, max_size=6)
PLACES = st.integers(-9, 9)
SLICES = st.builds(
    slice, st.none() | PLACES, st.none() | PLACES, st.none() | st.sampled_from([1, 2, 3, -1, -2, -3, 9])
)


def page_of(events: Iterable[Event]) -> MemoryPage:
    """Return a page, as a replay delivers it."""
    events = list(events)
    columns = [
        np.array([getter(event) for event in events], np.uint64)
        for getter in (Event.time, Event.client_id, Event.sequence)
    ]
    records = [event.record_bytes() for event in events]
    return MemoryPage(*columns, Payload.of(records))


def in_pages(*pages: Iterable[Event]) -> EventList:
    series = EventList()
    for page in pages:
        series.add_page(page_of(page))
    return series


def some(count: int, start: int = 0) -> list[Event]:
    return [
        Event(number, number % 3, number // 3, f"record {number}") for number in range(start, start + count)
    ]


def outcome(action: Any) -> Any:
    """Return what an action gives, or the type of its error."""
    try:
        return action()
    except (IndexError, ValueError) as error:
        return type(error)


class ListMachine(RuleBasedStateMachine):
    """Does the same to an EventList and to a list."""

    def __init__(self) -> None:
        super().__init__()
        self.series = EventList()
        self.model: list[Event] = []

    def both(self, action: Any) -> None:
        """Do an action to both and compare what it gives."""
        expected, given = outcome(lambda: action(self.model)), outcome(lambda: action(self.series))
        if isinstance(expected, list):
            assert isinstance(given, EventList)
            given = list(given)
        assert given == expected

    @rule(events=BATCHES)
    def replay(self, events: list[Event]) -> None:
        self.series.add_page(page_of(events))
        self.model += events

    @rule(events=BATCHES)
    def construct(self, events: list[Event]) -> None:
        self.series, self.model = EventList(iter(events)), list(events)

    @rule()
    def construct_from_itself(self) -> None:
        self.series = EventList(self.series)

    @rule()
    def clear(self) -> None:
        self.both(lambda it: it.clear())

    @rule(event=EVENTS)
    def append(self, event: Event) -> None:
        self.both(lambda it: it.append(event))

    @rule(events=BATCHES)
    def extend(self, events: list[Event]) -> None:
        self.both(lambda it: it.extend(iter(events)))

    @rule(events=BATCHES)
    def extend_by_pages(self, events: list[Event]) -> None:
        other = in_pages(events, events[:2])
        self.series.extend(other)
        self.model += events + events[:2]
        assert list(other) == events + events[:2], "the other list keeps its own"

    @rule()
    def extend_by_itself(self) -> None:
        if len(self.model) < 50:
            self.series.extend(self.series)
            self.model.extend(list(self.model))

    @rule(events=BATCHES)
    def add_in_place(self, events: list[Event]) -> None:
        self.series += events
        self.model += events

    @rule(place=PLACES, event=EVENTS)
    def insert(self, place: int, event: Event) -> None:
        self.both(lambda it: it.insert(place, event))

    @rule(place=PLACES)
    def pop(self, place: int) -> None:
        self.both(lambda it: it.pop(place))

    @rule()
    def pop_last(self) -> None:
        self.both(lambda it: it.pop())

    @rule(event=EVENTS)
    def remove(self, event: Event) -> None:
        self.both(lambda it: it.remove(event))

    @rule(event=EVENTS)
    def look_for(self, event: Event) -> None:
        self.both(lambda it: it.count(event))
        self.both(lambda it: it.index(event))
        self.both(lambda it: event in it)

    @rule(place=PLACES)
    def get(self, place: int) -> None:
        self.both(lambda it: it[place])

    @rule(place=SLICES)
    def get_slice(self, place: slice) -> None:
        self.both(lambda it: it[place])

    @rule(place=PLACES, event=EVENTS)
    def set(self, place: int, event: Event) -> None:
        self.both(lambda it: it.__setitem__(place, event))

    @rule(place=SLICES, events=BATCHES)
    def set_slice(self, place: slice, events: list[Event]) -> None:
        self.both(lambda it: it.__setitem__(place, list(events)))

    @rule(place=SLICES, data=st.data())
    def set_slice_of_the_same_length(self, place: slice, data: st.DataObject) -> None:
        length = len(self.model[place])
        events = data.draw(st.lists(EVENTS, min_size=length, max_size=length))
        self.both(lambda it: it.__setitem__(place, iter(events)))

    @rule(place=SLICES)
    def set_slice_to_itself(self, place: slice) -> None:
        if len(self.model) < 50:
            self.both(lambda it: it.__setitem__(place, it))

    @rule(place=PLACES)
    def delete(self, place: int) -> None:
        self.both(lambda it: it.__delitem__(place))

    @rule(place=SLICES)
    def delete_slice(self, place: slice) -> None:
        self.both(lambda it: it.__delitem__(place))

    @rule()
    def reverse(self) -> None:
        self.both(lambda it: it.reverse())

    @rule()
    def sort(self) -> None:
        self.both(lambda it: it.sort())

    @rule()
    def replace_by_a_twin(self) -> None:
        for twin in (copy.copy(self.series), pickle.loads(pickle.dumps(self.series)), self.series[:]):
            assert twin == self.series
            assert list(twin) == self.model
        self.series = twin

    @invariant()
    def they_are_the_same(self) -> None:
        assert len(self.series) == len(self.model)
        assert bool(self.series) == bool(self.model)
        assert list(self.series) == self.model
        assert list(reversed(self.series)) == self.model[::-1]
        assert self.series == EventList(self.model)
        assert self.series != EventList([*self.model, Event()])

    @invariant()
    def the_columns_are_those_of_the_events(self) -> None:
        for name, getter in (
            ("times", Event.time),
            ("client_ids", Event.client_id),
            ("sequences", Event.sequence),
        ):
            column = getattr(self.series, name)
            assert (column.dtype, column.shape) == (np.uint64, (len(self.model),))
            assert column.tolist() == [getter(event) for event in self.model]
        assert self.series.indexes.dtype == np.uint32
        assert self.series.indexes.tolist() == [event.index() for event in self.model]
        assert self.series.time_window_ns.tolist() == [2**64 - 1] * len(self.model)
        records = [event.record_bytes() for event in self.model]
        assert list(self.series.records()) == records
        table = self.series.to_numpy()
        assert table.dtype.names == ("time", "client_id", "sequence", "record")
        assert table["record"].tolist() == records
        assert table["time"].tolist() == [event.time() for event in self.model]
        assert table["client_id"].tolist() == [event.client_id() for event in self.model]
        assert table["sequence"].tolist() == [event.sequence() for event in self.model]


TestListMachine = ListMachine.TestCase
TestListMachine.settings = settings(max_examples=soak(60, 1500), stateful_step_count=25, deadline=None)


def test_it_is_a_mutable_sequence() -> None:
    assert isinstance(EventList(), MutableSequence)
    assert len(EventList()) == 0
    assert not EventList()
    assert list(EventList()) == []
    assert EventList(some(3)) == EventList(event for event in some(3)) == in_pages(some(3))
    for name in ("append", "clear", "count", "extend", "insert", "pop", "remove"):
        assert callable(getattr(EventList(), name)), "bind_vector has it"


@pytest.mark.parametrize("wrong", [None, 1, "event", (0, 0, 0, ""), [Event()]])
def test_only_events_are_in_it(wrong: object) -> None:
    for series in (EventList(some(2)), in_pages(some(2))):
        for action in (
            lambda series=series: series.append(wrong),
            lambda series=series: series.insert(0, wrong),
            lambda series=series: series.extend([Event(), wrong]),
            lambda series=series: series.__setitem__(0, wrong),
            lambda series=series: series.__setitem__(slice(0, 1), [wrong]),
            lambda: EventList([wrong]),  # type: ignore[list-item]
        ):
            with pytest.raises(TypeError):
                action()
        assert list(series) == some(2), "nothing has changed"
        assert wrong not in series
        assert series.count(wrong) == 0  # type: ignore[arg-type]


def test_what_is_missing_is_named() -> None:
    for series in (EventList(some(2)), in_pages(some(2))):
        for action in (series.remove, series.index):
            with pytest.raises(ValueError, match=r"Event\(.*'missing'\) is not in this EventList"):
                action(Event(1, 2, 3, "missing"))
        assert list(series) == some(2)
        assert [series.index(event) for event in some(2)] == [0, 1]
        series.remove(some(2)[0])
        assert list(series) == some(2)[1:]


def test_what_it_is_not() -> None:
    assert EventList() != []
    assert EventList() != None  # noqa: E711  what == answers is the subject
    with pytest.raises(TypeError):
        hash(EventList())
    with pytest.raises(TypeError):
        _ = EventList() + [Event()]  # type: ignore[operator]  # noqa: RUF005 - this is the operator that is tested
    for wrong in ("0", 1.0, None):
        with pytest.raises(TypeError):
            _ = in_pages(some(3))[wrong]  # type: ignore[index]
    with pytest.raises(TypeError):
        EventList(5)  # type: ignore[arg-type]


def test_numpy_integers_are_indexes() -> None:
    for series in (EventList(some(3)), in_pages(some(3))):
        assert series[np.uint64(1)] == series[np.int32(-2)] == some(3)[1]


def test_addition_makes_a_new_list() -> None:
    one, two = in_pages(some(2)), EventList(some(2, 5))
    assert list(one + two) == some(2) + some(2, 5)
    assert list(one) == some(2)
    both = one + one
    both.append(Event(9))
    assert list(one) == some(2)


def test_repr_is_short() -> None:
    assert repr(EventList()) == "EventList([])"
    assert repr(in_pages(some(1))) == "EventList([Event(0, 0, 0, 'record 0')])"
    assert repr(in_pages(some(1000))) == "EventList(<1000 events>)"


def test_pages_stay_pages_until_something_else_is_done() -> None:
    series = in_pages(some(10), some(10, 10))
    _ = (
        series[3],
        series[-1],
        series[2:4],
        len(series),
        list(series),
        series.times,
        series.to_numpy(),
        Event() in series,
    )
    assert series._events is None
    series.append(Event(99))
    assert series._events is not None
    series.add_page(page_of(some(2, 50)))
    assert list(series) == [*some(20), Event(99), *some(2, 50)]
    series.clear()
    assert (len(series), list(series)) == (0, [])
    series.add_page(page_of(some(2)))
    assert series._events is None


def test_empty_pages_do_no_harm() -> None:
    series = in_pages([], some(2), [], some(1, 2), [])
    assert list(series) == some(3)
    assert series[2] == some(3)[2]
    assert in_pages([]).times.tolist() == []


def test_columns_taken_before_stay_as_they_were() -> None:
    series = in_pages(some(5))
    times = series.times
    for start in range(5, 500, 5):
        series.add_page(page_of(some(5, start)))
    assert times.tolist() == list(range(5))
    series.clear()
    series.append(Event(7))
    assert times.tolist() == list(range(5))
    assert series.times.tolist() == [7]


def test_two_lists_share_pages_without_harm() -> None:
    one = in_pages(some(5), some(5, 5))
    two = EventList()
    two.add_page(page_of(some(3, 50)))
    two.extend(one)
    one.extend(two)
    for number in range(20):
        two.add_page(page_of(some(4, 100 + number)))
    assert list(one) == some(10) + some(3, 50) + some(10)
    assert list(two)[:13] == some(3, 50) + some(10)
    assert one.times.tolist() == [event.time() for event in one]


def test_windows_come_from_the_pages() -> None:
    page = page_of(some(3))
    page._windows_ns = np.array([7, 8, 9], np.uint64)
    series = in_pages(some(1))
    series.add_page(page)
    assert series.time_window_ns.tolist() == [2**64 - 1, 7, 8, 9]


def test_damages_are_kept_until_the_list_is_cleared() -> None:
    series = EventList()
    assert series.damages == []
    series.damages.append(DamageError("/a", 1, "x"))
    series.append(Event())
    assert len(series.damages) == 1
    series.clear()
    assert series.damages == []


def large_page(count: int, record_bytes: int) -> MemoryPage:
    columns = [np.arange(count, dtype=np.uint64) for _ in range(3)]
    ends = np.arange(record_bytes, record_bytes * (count + 1), record_bytes, dtype=np.uint64)
    return MemoryPage(*columns, Payload(ends, bytes(record_bytes * count)))


@pytest.mark.slow
def test_iterating_makes_events_by_and_by() -> None:
    series = EventList()
    for _ in range(4):
        series.add_page(large_page(2**16, 64))
    tracemalloc.start()
    try:
        count = sum(1 for _ in series)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 2**18
    assert peak_bytes < 16 << 20, "all events at once would be more than 40 MiB"


@pytest.mark.slow
def test_columns_are_held_once() -> None:
    tracemalloc.start()
    try:
        series = EventList()
        for _ in range(64):
            series.add_page(large_page(2**14, 1))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    columns_bytes = 3 * 8 * 2**20
    records_bytes = 2**20 * (8 + 1)
    assert held_bytes < 1.6 * columns_bytes + records_bytes + (2 << 20)
    assert len(series) == 2**20


def test_random_access_in_many_pages() -> None:
    chance = random.Random(5)
    pages, events = [], []
    for _ in range(50):
        pages.append(some(chance.randrange(0, 9), len(events)))
        events += pages[-1]
    series = in_pages(*pages)
    for place in range(-len(events), len(events)):
        assert series[place] == events[place]
    for _ in range(300):
        start, stop = (chance.choice([None, chance.randrange(-400, 400)]) for _ in range(2))
        step = chance.choice([None, 1, 2, -1, 7])
        assert list(series[start:stop:step]) == events[start:stop:step]


def test_columns_cannot_be_written_by_accident() -> None:
    series = EventList()
    series.add_page(large_page(5, 2))
    for column in (series.times, series.client_ids, series.sequences, series.indexes):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 9
    series.add_page(large_page(5, 2))
    assert len(series.times) == 10
    assert series[0].time() == 0
