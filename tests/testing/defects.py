"""Engines that break one sentence of the contract each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from py_chronolog_client.clock import Clock, ClockModel
from py_chronolog_client.engine.base import (
    MAX_TIME_NS,
    ScanReport,
    Snapshot,
    Writer,
    WriterOptions,
    WriterStatistics,
)
from py_chronolog_client.page import MemoryPage, Page, Payload
from py_chronolog_client.testing import ToyEngine
from py_chronolog_client.testing.toy import _Call

Event = tuple[int, int, int, bytes]


def make_page(events: list[Event]) -> Page:
    times, client_ids, sequences, records = zip(*events, strict=True)
    columns = [np.array(column, np.uint64) for column in (times, client_ids, sequences)]
    return MemoryPage(*columns, Payload.of(records))


class ChangesEvents(ToyEngine):
    """Delivers something else than what is there."""

    def change(self, events: list[Event]) -> list[Event]:
        raise NotImplementedError

    def scan(self, chronicle: str, story: str, *range_ns: int, **arguments: Any) -> Iterator[Page]:
        events: list[Event] = []
        for page in super().scan(chronicle, story, *range_ns, **arguments):
            columns = (page.times.tolist(), page.client_ids.tolist(), page.sequences.tolist())
            events += zip(*columns, page.records(), strict=True)
        events = self.change(events)
        for start in range(0, len(events), self.page_events):
            yield make_page(events[start : start + self.page_events])


class DropsTheLastEvent(ChangesEvents):
    def change(self, events: list[Event]) -> list[Event]:
        return events[:-1]


class RepeatsAnEvent(ChangesEvents):
    def change(self, events: list[Event]) -> list[Event]:
        return [*events[:7], *events[6:]]


class OrdersTiesByChance(ChangesEvents):
    def change(self, events: list[Event]) -> list[Event]:
        return sorted(events, key=lambda event: (event[0], -event[1], event[2]))


class SwapsTiesOfAClient(ChangesEvents):
    def change(self, events: list[Event]) -> list[Event]:
        return sorted(events, key=lambda event: (event[0], event[1], -event[2]))


class CutsSequences(ChangesEvents):
    def change(self, events: list[Event]) -> list[Event]:
        return [
            (time_ns, client_id, sequence % 2**32, record) for time_ns, client_id, sequence, record in events
        ]


class RoundsTimes(ChangesEvents):
    def change(self, events: list[Event]) -> list[Event]:
        return [(min(int(float(event[0])), MAX_TIME_NS), *event[1:]) for event in events]


class StripsZeros(ChangesEvents):
    def change(self, events: list[Event]) -> list[Event]:
        return [(*event[:3], event[3].rstrip(b"\0")) for event in events]


class LosesEmptyRecords(ChangesEvents):
    def change(self, events: list[Event]) -> list[Event]:
        return [event for event in events if event[3]]


class HasOnePage(ToyEngine):
    def __init__(self) -> None:
        super().__init__(page_events=10**9)


class ExcludesTheEnd(ToyEngine):
    def scan(
        self, chronicle: str, story: str, start_ns: int = 0, end_ns: int = MAX_TIME_NS, **arguments: Any
    ) -> Iterator[Page]:
        return super().scan(chronicle, story, start_ns, end_ns - 1, **arguments)


class ExcludesTheStart(ToyEngine):
    def scan(
        self, chronicle: str, story: str, start_ns: int = 0, end_ns: int = MAX_TIME_NS, **arguments: Any
    ) -> Iterator[Page]:
        return super().scan(chronicle, story, start_ns + 1, end_ns, **arguments)


class IgnoresSnapshots(ToyEngine):
    def scan(self, *place: Any, snapshot: Snapshot | None = None, **arguments: Any) -> Iterator[Page]:
        return super().scan(*place, **arguments)


class IgnoresSince(ToyEngine):
    def scan(self, *place: Any, since: Snapshot | None = None, **arguments: Any) -> Iterator[Page]:
        return super().scan(*place, **arguments)


class IgnoresClients(ToyEngine):
    def scan(self, *place: Any, clients: Sequence[int] | None = None, **arguments: Any) -> Iterator[Page]:
        return super().scan(*place, **arguments)


class IgnoresDeadlines(ToyEngine):
    def scan(self, *place: Any, timeout_s: float | None = None, **arguments: Any) -> Iterator[Page]:
        return super().scan(*place, **arguments)


class TakesNoSnapshot(ToyEngine):
    """A scan begins anew for every page, and sees what was written meanwhile."""

    def scan(self, *place: Any, **arguments: Any) -> Iterator[Page]:
        number = 0
        while number < len(pages := list(super().scan(*place, **arguments))):
            yield pages[number]
            number += 1


class HidesDamage(ToyEngine):
    def scan(self, *place: Any, report: Any = None, **arguments: Any) -> Iterator[Page]:
        return super().scan(*place, report=report or ScanReport(), **arguments)


class FollowsByTime(ToyEngine):
    """The cursor is the last time that was seen: events that come late are missed."""

    def follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        pages, following = super().follow(chronicle, story, cursor, timeout_s)
        last_ns = max(
            (int(page.times[-1]) for page in self.scan(chronicle, story, snapshot=cursor)), default=0
        )
        kept = [page for page in pages if int(page.times[-1]) > last_ns]
        return kept, following


class FollowsFromTheStart(ToyEngine):
    def follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        return super().follow(chronicle, story, {}, timeout_s)


class FollowsOnlyKnownClients(ToyEngine):
    def follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        pages, following = super().follow(chronicle, story, cursor, timeout_s)
        if cursor:
            pages = [page for page in pages if all(c in cursor for c in page.client_ids.tolist())]
        return pages, following


class FollowsWithoutWaiting(ToyEngine):
    def follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        return super().follow(chronicle, story, cursor, 0.0)


class DestroysWhatIsAcquired(ToyEngine):
    def destroy_story(self, chronicle: str, story: str) -> None:
        self._story(chronicle, story)
        del self._chronicle(chronicle).stories[story]


class ListsInOrderOfCreation(ToyEngine):
    def chronicles(self) -> list[str]:
        return list(self._chronicles())


class HandsOutItsAttributes(ToyEngine):
    def chronicle_attributes(self, chronicle: str) -> dict[str, str]:
        return self._chronicle(chronicle).attributes


class CreatesWhatIsMissing(ToyEngine):
    def open_writer(
        self, chronicle: str, story: str, attributes: Mapping[str, str], options: WriterOptions
    ) -> Writer:
        if chronicle and chronicle not in self.chronicles():
            self.create_chronicle(chronicle, {})
        return super().open_writer(chronicle, story, attributes, options)


class ReplacesAttributes(ToyEngine):
    def open_writer(
        self, chronicle: str, story: str, attributes: Mapping[str, str], options: WriterOptions
    ) -> Writer:
        writer = super().open_writer(chronicle, story, attributes, options)
        self._story(chronicle, story).attributes = dict(attributes)
        return writer


class ForgetsDescriptions(ToyEngine):
    def clients(self, chronicle: str, story: str) -> dict[int, dict[str, Any]]:
        return {client_id: {} for client_id in super().clients(chronicle, story)}


class ChangesWriters(ToyEngine):
    """Its writers are not those of the toy."""

    def open_writer(
        self, chronicle: str, story: str, attributes: Mapping[str, str], options: WriterOptions
    ) -> Writer:
        return self.changed(super().open_writer(chronicle, story, attributes, options), options.clock)

    def changed(self, writer: Writer, clock: Clock) -> Any:
        raise NotImplementedError


class Around:
    """Passes everything on to a writer."""

    def __init__(self, writer: Writer, clock: Clock) -> None:
        self.writer = writer
        self.clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


class SplitsBatches(ChangesWriters):
    class changed(Around):  # noqa: N801
        def log_events(self, batch: Sequence[str | bytes]) -> int:
            time_ns = 0
            for record in batch:
                time_ns = self.writer.log_event(record)
                time.sleep(0)
            return time_ns


class DoesNotFlush(ChangesWriters):
    class changed(Around):  # noqa: N801
        def flush(self, timeout_s: float | None = None) -> int:
            return self.writer.statistics().logged


class AcknowledgesACount(ChangesWriters):
    class changed(Around):  # noqa: N801
        def flush(self, timeout_s: float | None = None) -> int:
            self.writer.flush()
            return self.writer.statistics().acknowledged


class ForgetsRefusals(ChangesWriters):
    class changed(Around):  # noqa: N801
        def statistics(self) -> WriterStatistics:
            statistics = self.writer.statistics()
            return WriterStatistics(statistics.logged, statistics.acknowledged)


class RaisesWhenClosed(ChangesWriters):
    class changed(Around):  # noqa: N801
        closed = False

        def log_event(self, event_string: Any = "", **arguments: Any) -> int:
            if self.closed:
                raise RuntimeError("closed")
            return self.writer.log_event(event_string, **arguments)

        def close(self, reason: str = "released") -> None:
            self.closed = True
            self.writer.close(reason)


class TakesAnything(ChangesWriters):
    class changed(Around):  # noqa: N801
        def log_event(self, record: Any) -> int:
            return self.writer.log_event(record if isinstance(record, (str, bytes)) else str(record))


class KeepsItsFirstClock(ChangesWriters):
    class changed(Around):  # noqa: N801
        def use_clock(self, clock: Clock) -> None:
            pass


class NumbersByLength(ChangesWriters):
    """Two threads may read the same length: the classic race."""

    class changed(Around):  # noqa: N801
        def log_event(self, record: str) -> int:
            log = self.writer._log  # type: ignore[attr-defined]
            key = len(log.sent)
            call = _Call(log.sent_end, time.time_ns(), (record.encode(),), self.writer._clock, ClockModel())
            time.sleep(0)
            log.sent[key] = call
            return call.time_ns


class WaitsForItself(ChangesWriters):
    """A signal handler finds the lock taken by what it interrupted, which goes on only after the handler."""

    class changed(Around):  # noqa: N801
        def log_event(self, record: str | bytes) -> int:
            lock = self.__dict__.setdefault("lock", threading.Lock())
            if not lock.acquire(timeout=0.05):
                raise RuntimeError("would wait for ever")
            try:
                return self.writer.log_event(record)
            finally:
                lock.release()


class SharesClientsWithChildren(ChangesWriters):
    class changed(Around):  # noqa: N801
        @property
        def client_id(self) -> int:
            return 1


class LetsTimesGoBack(ChangesWriters):
    class changed(Around):  # noqa: N801
        def log_event(self, record: str | bytes) -> int:
            if not self.writer.log_event(record):
                return 0
            sent = self.writer._log.sent  # type: ignore[attr-defined]
            key = len(sent) - 1
            sent[key] = sent[key]._replace(time_ns=self.clock.reading().tick())
            return sent[key].time_ns
