"""One answer made of the answers of several sources, each of which has some of a story's clients.

The pages of the sources are merged by windows of the order (time or aligned time, client id, sequence). No source
has anything before the last event of its present page that is not in that page. So everything up to the smallest
of these last events is there, becomes the next page, and at least one source's page is used up by it. Whatever
the story, no more is held than a page of each source and the window.

The cut is a place in the whole order, not a time: events of one time are never torn from their order where
one source's page ends within them, and a batch that was logged under one time needs no window of its size.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from py_chronolog_client.engine.base import ScanReport, Snapshot
from py_chronolog_client.order import around, story_order
from py_chronolog_client.page import PAGE_EVENTS, U64, GatheredPage, Page, Payload, grouped


def merge_pages(sources: Sequence[Iterator[Page]]) -> Iterator[Page]:
    """Yield the events of all sources in the order of the story, in pages of bounded size.

    A single source's pages are passed on as they are. A source is asked for its next page when the one before is used
    up, so what it raises comes when everything that was certainly in order before has been delivered.

    Args:
        sources: each in order, all of them aligned or none; no event is in two of them. They are closed at the end, if
            they can be.
    """
    try:
        if len(sources) == 1:
            yield from sources[0]
            return
        heads = [_Head(source) for source in sources]
        while heads := [head for head in heads if head.has_more()]:
            cut = min(head.last for head in heads)
            yield from _in_order(
                [part for part in [head.take(cut) for head in heads] if part.stop > part.start]
            )
    finally:
        for source in sources:
            if isinstance(source, Generator):
                source.close()


def merge_snapshots(snapshots: Iterable[Snapshot]) -> dict[int, int]:
    """Return the high-water mark of every client; where several know of it, the highest."""
    merged: dict[int, int] = {}
    for snapshot in snapshots:
        for client_id, mark in snapshot.items():
            merged[client_id] = max(mark, merged.get(client_id, 0))
    return merged


def merge_clients(answers: Iterable[Mapping[int, dict[str, Any]]]) -> dict[int, dict[str, Any]]:
    """Return what each client said of itself, by client id; where several know of it, the one who knows what it said."""
    merged: dict[int, dict[str, Any]] = {}
    for answer in answers:
        for client_id, description in answer.items():
            merged[client_id] = merged.get(client_id) or description
    return dict(sorted(merged.items()))


def merge_reports(reports: Iterable[ScanReport], report: ScanReport) -> None:
    """Add what several scans found wrong to `report`."""
    for found in reports:
        report.damages += found.damages
        report.missing += found.missing
        report.disbelieved += found.disbelieved
        report.unseen += found.unseen


class _Part(NamedTuple):
    """Consecutive events of one page."""

    page: Page
    start: int
    stop: int


class _Head:
    """Where the merge stands in one source."""

    __slots__ = ("_page", "_pages", "_start", "last")

    def __init__(self, pages: Iterator[Page]) -> None:
        self._pages = pages
        self._page: Page | None = None

    def has_more(self) -> bool:
        """Fetch the next page that is not empty if the one before is used up; tell whether there is one."""
        while self._page is None:
            page = next(self._pages, None)
            if page is None:
                return False
            if len(page):
                self._page, self._start = page, 0
                self.last = tuple(int(column[-1]) for column in _columns(page))
        return True

    def take(self, cut: tuple[int, ...]) -> _Part:
        """Return the events that are not behind the place `cut`."""
        page, start = self._page, self._start
        assert page is not None
        self._start = len(page) if cut == self.last else around(_columns(page), cut)[1]
        if self._start == len(page):
            self._page = None
        return _Part(page, start, self._start)


def _columns(page: Page) -> tuple[U64, U64, U64]:
    return page.keys, page.client_ids, page.sequences


class _CutPage(Page):
    """A part of another page."""

    __slots__ = ("_part",)

    def __init__(self, part: _Part) -> None:
        page, start, stop = part
        aligned = None if page.aligned is None else page.aligned[start:stop]
        super().__init__(
            page.times[start:stop], page.client_ids[start:stop], page.sequences[start:stop], aligned
        )
        self._part = part

    def payload(self, start: int = 0, stop: int | None = None) -> Payload:
        start, stop, _ = slice(start, stop).indices(len(self))
        first = self._part.start
        return self._part.page.payload(first + start, first + stop)

    def windows_ns(self) -> U64:
        page, start, stop = self._part
        return page.windows_ns()[start:stop]


class _MergedPage(GatheredPage):
    """Parts of several pages in the order of the story.

    Attributes:
        origins: unsigned, shape (n,): the page that each event comes from.
    """

    __slots__ = ("_pages", "_starts", "origins")

    def __init__(
        self,
        columns: tuple[U64, U64, U64, U64 | None],
        origins: npt.NDArray[np.unsignedinteger],
        pages: Sequence[Page],
        starts: npt.NDArray[np.intp],
    ) -> None:
        """Make a page of n events.

        Args:
            columns: times, client ids, sequence numbers and aligned times.
            origins: as the attribute.
            pages: the pages.
            starts: intp, shape (pages,): the first event in each.
        """
        super().__init__(*columns)
        self.origins = origins
        self._pages = pages
        self._starts = starts

    def payloads(self, start: int, stop: int | None) -> Iterator[tuple[npt.NDArray[np.intp], Payload]]:
        firsts = self._starts + np.bincount(self.origins[:start], minlength=len(self._pages))
        for origin, places in grouped(self.origins[start:stop]):
            first = int(firsts[origin])
            yield places, self._pages[origin].payload(first, first + len(places))

    def windows_ns(self) -> U64:
        windows = np.empty(len(self), np.uint64)
        for origin, places in grouped(self.origins):
            first = int(self._starts[origin])
            windows[places] = self._pages[origin].windows_ns()[first : first + len(places)]
        return windows


def _in_order(parts: Sequence[_Part]) -> Iterator[Page]:
    """Put the parts of a window in order, and cut what is more than a page."""
    if len(parts) == 1:
        part = parts[0]
        yield part.page if part.stop - part.start == len(part.page) else _CutPage(part)
        return
    times, client_ids, sequences = (
        np.concatenate([getattr(part.page, name)[part.start : part.stop] for part in parts])
        for name in ("times", "client_ids", "sequences")
    )
    keys = times
    if parts[0].page.aligned is not None:
        keys = np.concatenate([part.page.keys[part.start : part.stop] for part in parts])
    order = story_order(keys, client_ids, sequences)
    numbers = np.arange(len(parts), dtype=np.min_scalar_type(len(parts)))
    origins = np.repeat(numbers, [part.stop - part.start for part in parts])[order]
    starts = np.array([part.start for part in parts])
    for first in range(0, len(order), PAGE_EVENTS):
        piece = order[first : first + PAGE_EVENTS]
        columns = (
            times[piece],
            client_ids[piece],
            sequences[piece],
            None if keys is times else keys[piece],
        )
        page = _MergedPage(
            columns, origins[first : first + PAGE_EVENTS], [part.page for part in parts], starts
        )
        starts = starts + np.bincount(page.origins, minlength=len(parts))
        yield page
