"""The list that a replay fills: columns inside, a list of events outside.

A replay appends pages. As long as nobody changes the list in another way, events are made only when they are
looked at; the first change of another kind turns everything into one plain list.
"""

from __future__ import annotations

import gc
import operator
from bisect import bisect_right
from collections.abc import Iterable, Iterator, MutableSequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from py_chronolog_client.errors import DamageError
from py_chronolog_client.event import Event, make_events

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from py_chronolog_client.page import U32, U64, Page

_CHUNK_EVENTS = 4096
_CHUNK_BYTES = 2**22
_COLUMNS = ("times", "client_ids", "sequences")


class EventList(MutableSequence[Event]):
    """A mutable list of events, as `Client.ReplayStory` fills it.

    Everything that a list of equality-comparable elements offers: indexing, slices, `in`, `==`, `append`,
    `extend`, `insert`, `pop`, `remove`, `count`, `clear` and so on. Beyond that the columns `times`,
    `client_ids`, `indexes`, `sequences` as numpy arrays.

    Attributes:
        damages: what the replays that filled the list could not believe in the store.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        """Make a list of the given events."""
        self._pages: list[Page] = []
        self._starts: list[int] = []
        self._length = 0
        self._columns: dict[str, U64] = {}
        self._events: list[Event] | None = None
        self.damages: list[DamageError] = []
        items = list(events)
        if items:
            self._events = [_checked(event) for event in items]

    # -- pages --

    def add_page(self, page: Page) -> None:
        """Append a page of a replay. Its columns move into the list's own, which are never held twice."""
        if self._events is not None:
            self._events += _events_of(page, 0, len(page))
        elif len(page):
            self._pages.append(page)
            self._starts.append(self._length)
            self._length += len(page)
            for name in _COLUMNS:
                self._add_to_column(name)

    @property
    def times(self) -> U64:
        """Times in ns since 1970 UTC: uint64, shape (n,)."""
        return self._column("times", lambda event: event.time())

    @property
    def client_ids(self) -> U64:
        """Client ids: uint64, shape (n,)."""
        return self._column("client_ids", lambda event: event.client_id())

    @property
    def sequences(self) -> U64:
        """Sequence numbers: uint64, shape (n,)."""
        return self._column("sequences", lambda event: event.sequence())

    @property
    def indexes(self) -> U32:
        """The low 32 bits of the sequence numbers: uint32, shape (n,); a view of `sequences`."""
        from py_chronolog_client.page import low_words

        return low_words(self.sequences)

    @property
    def aligned_times(self) -> U64:
        """Times as all synchronisations together tell them: uint64, shape (n,), ns since 1970 UTC.

        What an aligned replay is ordered by; the same as `times` of any other.
        """
        import numpy as np

        if self._events is not None or not self._pages:
            return self.times
        return np.concatenate([page.keys for page in self._pages])

    @property
    def time_window_ns(self) -> U64:
        """Half-width of the hard window around every aligned time: uint64, shape (n,), ns; 2**64 - 1 where nobody knows.

        In a replay that is not aligned, around every time.
        """
        import numpy as np

        if self._events is not None:
            return np.full(len(self._events), 2**64 - 1, np.uint64)
        return (
            np.concatenate([page.windows_ns() for page in self._pages])
            if self._pages
            else np.empty(0, np.uint64)
        )

    def to_numpy(self) -> npt.NDArray[np.void]:
        """Return one structured array, shape (n,): time u8, client_id u8, sequence u8, record O (bytes)."""
        import numpy as np

        kind = [("time", "u8"), ("client_id", "u8"), ("sequence", "u8"), ("record", "O")]
        table = np.empty(len(self), np.dtype(kind))
        table["time"], table["client_id"], table["sequence"] = self.times, self.client_ids, self.sequences
        table["record"] = list(self.records())
        return table

    def records(self) -> Iterator[bytes]:
        """Yield the records as bytes."""
        if self._events is not None:
            yield from [event.record_bytes() for event in self._events]
            return
        for page in self._pages:
            for records in _chunks(page):
                yield from records

    def _column(self, name: str, of_event: Any) -> U64:
        import numpy as np

        if self._events is not None:
            return np.array([of_event(event) for event in self._events], np.uint64)
        if not self._pages:
            return np.empty(0, np.uint64)
        column = self._columns[name][: self._length]
        column.flags.writeable = False  # the events are made of it
        return column

    def _add_to_column(self, name: str) -> None:
        """Copy a column of the last page into the whole, and let the page keep a view of it."""
        import numpy as np

        whole = self._columns.get(name)
        fresh = len(self._pages) - 1
        if whole is None or len(whole) < self._length:
            whole = self._columns[name] = np.empty(max(self._length, 3 * self._length // 2), np.uint64)
            fresh = 0  # memory that nobody has touched costs nothing, so growing by half does not waste it
        for number in range(fresh, len(self._pages)):
            page, start = self._pages[number], self._starts[number]
            part = whole[start : start + len(page)]
            part[:] = getattr(page, name)
            setattr(page, name, part)

    # -- a list --

    def _list(self) -> list[Event]:
        """Turn pages into the plain list, for a change."""
        if self._events is None:
            self._events = list(self)
            self._forget_pages()
        return self._events

    def __len__(self) -> int:
        return self._length if self._events is None else len(self._events)

    def __iter__(self) -> Iterator[Event]:
        if self._events is not None:
            yield from self._events
            return
        for page in self._pages:
            start = 0
            for records in _chunks(page):
                yield from _events_of(page, start, start + len(records), records)
                start += len(records)

    @overload
    def __getitem__(self, place: SupportsIndex) -> Event: ...

    @overload
    def __getitem__(self, place: slice) -> EventList: ...

    def __getitem__(self, place: SupportsIndex | slice) -> Event | EventList:
        if isinstance(place, slice):
            return self._slice(place)
        if self._events is not None:
            return self._events[place]
        number = operator.index(place)
        if number < 0:
            number += self._length
        if not 0 <= number < self._length:
            raise IndexError("EventList index out of range")
        page_number = bisect_right(self._starts, number) - 1
        start = number - self._starts[page_number]
        return _events_of(self._pages[page_number], start, start + 1)[0]

    def _slice(self, place: slice) -> EventList:
        if self._events is not None:
            return EventList(self._events[place])
        start, stop, step = place.indices(self._length)
        if step != 1:
            return EventList([self[number] for number in range(start, stop, step)])
        events: list[Event] = []
        for page, first in zip(self._pages, self._starts, strict=True):
            events += _events_of(page, max(0, start - first), min(len(page), max(0, stop - first)))
        return EventList(events)

    @overload
    def __setitem__(self, place: SupportsIndex, value: Event) -> None: ...

    @overload
    def __setitem__(self, place: slice, value: Iterable[Event]) -> None: ...

    def __setitem__(self, place: SupportsIndex | slice, value: Event | Iterable[Event]) -> None:
        if isinstance(place, slice):
            self._list()[place] = [_checked(event) for event in value]  # type: ignore[union-attr]
        else:
            self._list()[place] = _checked(value)

    def __delitem__(self, place: SupportsIndex | slice) -> None:
        del self._list()[place]

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the place of the first event that is equal to `value`.

        Raises:
            ValueError: there is none.
        """
        try:
            return super().index(value, start, len(self) if stop is None else stop)
        except ValueError:
            raise ValueError(f"{value!r:.200} is not in this EventList") from None

    def insert(self, index: SupportsIndex, value: Event) -> None:
        """Insert an event before `index`."""
        self._list().insert(index, _checked(value))

    def append(self, value: Event) -> None:
        """Add an event at the end."""
        self._list().append(_checked(value))

    def extend(self, values: Iterable[Event]) -> None:
        """Add events at the end; those of another EventList without making them."""
        if isinstance(values, EventList) and values._events is None and self._events is None:
            for page in list(values._pages):
                self.add_page(page)
        else:
            self._list().extend([_checked(event) for event in values])

    def clear(self) -> None:
        """Remove all events."""
        self._forget_pages()
        self._events = None
        self.damages = []

    def _forget_pages(self) -> None:
        self._pages, self._starts, self._length, self._columns = [], [], 0, {}

    def sort(self) -> None:
        """Sort by time, client id, sequence number and record. A replay's result is sorted already."""
        self._list().sort()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EventList):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if len(self) > 6:
            return f"EventList(<{len(self)} events>)"
        return f"EventList({list(self)!r})"

    def __add__(self, other: EventList) -> EventList:
        if not isinstance(other, EventList):
            return NotImplemented
        joined = EventList()
        joined.extend(self)
        joined.extend(other)
        return joined

    def __copy__(self) -> EventList:
        return self + EventList()

    def __reduce__(self) -> tuple[type[EventList], tuple[list[Event]]]:
        return EventList, (list(self),)


def _checked(event: object) -> Event:
    if not isinstance(event, Event):
        raise TypeError(f"an EventList holds events, not {type(event).__name__}")
    return event


def _chunks(page: Page) -> Iterator[list[bytes]]:
    """Yield all records of a page, as many at a time as fit a few MiB if they are like those before."""
    start, count = 0, 8
    while start < len(page):
        records = page.records(start, start + count)
        yield records
        start += len(records)
        size_bytes = 1 + sum(map(len, records))
        count = max(1, min(_CHUNK_EVENTS, 8 * count, len(records) * _CHUNK_BYTES // size_bytes))


def _events_of(page: Page, start: int, stop: int, records: list[bytes] | None = None) -> list[Event]:
    """Make the events of a part of a page. Collecting garbage meanwhile would cost more than making them."""
    if start >= stop:
        return []
    collecting = gc.isenabled()
    gc.disable()
    try:
        if records is None:
            records = page.records(start, stop)
        times, client_ids, sequences = (getattr(page, name)[start:stop].tolist() for name in _COLUMNS)
        return make_events(times, client_ids, sequences, records)
    finally:
        if collecting:
            gc.enable()
